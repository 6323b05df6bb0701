"""The folder of a run: which files it holds, and what is done with damaged and foreign ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import fastsample as fs
from fastsample._support import files
from fastsample._support.files import write_atomically
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training import DiffusionLoss, FidelityLoss, Optimizer, VDMLoss
from fastsample.training.trainer import settings
from tests.helpers.networks import LINEAR
from tests.helpers.training_cases import (
    Sometimes,
    Tiny,
    assert_same_run,
    fidelity,
    lines,
    points,
    tiny,
    trainer,
)

# ---- damage


def test_two_checkpoints_are_kept_and_nothing_else(tmp_path):
    run = trainer(folder=tmp_path, save_every=2)
    (tmp_path / "iteration-000000001.safetensors").write_bytes(b"half a checkpoint")
    (tmp_path / ".iteration-000000001.json.x1").write_bytes(b"half a file")
    (tmp_path / ".checkpoint-000000007.safetensors.x1").write_bytes(b"half a file")
    for name in ("best", "000000002.safetensors.bak"):
        (tmp_path / f"checkpoint-{name}").write_bytes(b"somebody's own")
    run.run(7)
    kept = [f"checkpoint-00000000{i}.safetensors" for i in (6, 7)]
    own = ["checkpoint-000000002.safetensors.bak", "checkpoint-best"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*own, *kept, "log.jsonl"])


class Crash(BaseException):
    """As sudden as SIGKILL, but for this process."""


@pytest.mark.parametrize("point", ["before", "after", "removal"])
def test_a_crash_inside_of_saving(tmp_path, monkeypatch, point):
    whole = trainer(fidelity=fidelity())
    whole.run(6)
    for number in (1, 3):
        calls = []

        def crash(path, *data, number=number, calls=calls):
            calls.append(path)
            if point == "after":
                write_atomically(path, *data)
            if len(calls) == number:
                raise Crash
            return write_atomically(path, *data) if data else os.unlink(path)

        with monkeypatch.context() as patched:
            part = trainer(fidelity=fidelity(), folder=tmp_path, save_every=1, resume=True)
            if point == "removal":
                patched.setattr(Path, "unlink", lambda path, missing_ok: crash(path))
            else:
                patched.setattr(files, "write_atomically", crash)
            with pytest.raises(Crash):
                part.run(6)
    part = trainer(fidelity=fidelity(), folder=tmp_path, save_every=1, resume=True)
    part.run(6)
    assert_same_run(part, whole)
    assert [line["iteration"] for line in lines(tmp_path)] == list(range(6))


def damaged(path: Path, how: str) -> None:
    """The newest checkpoint after an accident."""
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[:-40])
    elif how == "header cut":
        path.write_bytes(data[:300])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "bit":
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif how == "foreign":
        path.write_bytes(b"somebody's own")
    else:  # one bit of the detector's own numbers, or of the trainer's
        position = data.index(f'"{how}'.encode() + b'\\":4') + len(how) + 4
        path.write_bytes(data[:position] + b"5" + data[position + 1 :])


DAMAGES = ["cut", "header cut", "empty", "bit", "foreign", "updates", "iteration"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, how):
    trainer(fidelity=fidelity(), folder=tmp_path, save_every=1).run(4)
    damaged(tmp_path / "checkpoint-000000004.safetensors", how)
    message = (
        r"folder must hold intact checkpoints, got .*-000000004\.safetensors \(.*from iteration 3"
    )
    with pytest.warns(UserWarning, match=message):
        part = trainer(fidelity=fidelity(), folder=tmp_path, resume=True, save_every=3)
    assert part.iteration == 3
    assert [line["iteration"] for line in lines(tmp_path)] == [0, 1, 2]
    part.run(6)
    whole = trainer(fidelity=fidelity())
    whole.run(6)
    assert_same_run(part, whole)
    assert trainer(fidelity=fidelity(), folder=tmp_path, resume=True).iteration == 6
    damaged(tmp_path / "checkpoint-000000006.safetensors", "cut")
    damaged(tmp_path / "checkpoint-000000003.safetensors", "bit")
    with pytest.raises(
        ValueError, match=r"Trainer: folder must hold intact checkpoints, got .*6\."
    ):
        trainer(fidelity=fidelity(), folder=tmp_path, resume=True)


def test_a_later_damaged_checkpoint_is_removed(tmp_path):
    trainer(folder=tmp_path, save_every=2).run(8)
    damaged(tmp_path / "checkpoint-000000008.safetensors", "bit")
    with pytest.warns(UserWarning, match="iteration 6"):
        part = trainer(folder=tmp_path, resume=True)
    part.run(7)
    names = sorted(p.stem for p in tmp_path.glob("*.safetensors"))
    assert names == ["checkpoint-000000006", "checkpoint-000000007"]


def test_a_broken_line_of_the_log_is_dropped(tmp_path):
    with pytest.warns(UserWarning, match="not finite in iteration 1"):
        trainer(folder=tmp_path, save_every=2, loss=Sometimes({1})).run(4)
    log = tmp_path / "log.jsonl"
    assert lines(tmp_path)[1]["norm"] is None
    text = log.read_text()
    log.write_text(text + '{"iteration": 4, "loss": 0.1}\n{"iteration": 5, "lo')
    part = trainer(folder=tmp_path, resume=True, loss=Sometimes({}))
    assert log.read_text() == text
    part.run(6)
    assert [line["iteration"] for line in lines(tmp_path)] == list(range(6))


# ---- folders

OTHERS = {
    "weights": ({"model": tiny(width=5)}, r"of this model, got .* \(average.* is .* instead of"),
    "layers": ({"model": tiny(labels=4)}, r"of this model, got .*labels.* is missing instead of"),
    "seed": ({"seed": 1}, "of this run, got .* with seed 0 instead of 1"),
    "count": ({"data": points(63)}, ".* with data 64 instead of 63"),
    "batch": ({"batch_size": 8}, ".* with batch_size 16 instead of 8"),
    "optimiser": (
        {"optimizer": Optimizer(make=torch.optim.SGD)},
        ".* with optimizer 'AdamW' instead of 'SGD'",
    ),
    "prediction": (
        {"model": fs.Denoiser(Tiny(), LINEAR, (2,), prediction="v")},
        ".* with prediction 'epsilon' instead of 'v'",
    ),
    "schedule": (
        {"model": fs.Denoiser(Tiny(), NoiseSchedule.cosine(), (2,))},
        ".* with loss .*NoiseSchedule.linear.* instead of .*NoiseSchedule.cosine",
    ),
    "weighting": (
        {"loss": DiffusionLoss.of(tiny(), weighting="min_snr")},
        ".* with loss .*weighting=None.* instead of .*weighting='min_snr'",
    ),
    "term": ({"fidelity": fidelity()}, ".* with fidelity 'None' instead of .FidelityLoss.3,"),
    "loss": (
        {
            "model": fs.Denoiser(Tiny(), NoiseSchedule.vdm(), (2,), time="log_snr"),
            "loss": VDMLoss(),
        },
        r".* with loss .DiffusionLoss\(NoiseSchedule.linear.* instead of 'VDMLoss",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    trainer(folder=path).run(2)
    return path


@pytest.mark.parametrize("name", OTHERS)
def test_folders_of_other_runs(folder, name):
    options, message = OTHERS[name]
    log = (folder / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"Trainer: folder must hold checkpoints {message}"):
        trainer(folder=folder, resume=True, **options)
    assert (folder / "log.jsonl").read_bytes() == log


def test_folders_are_not_overwritten(folder):
    message = r"folder must not hold checkpoints, got .* of iteration 2; pass resume=True to go on"
    with pytest.raises(ValueError, match=message):
        trainer(folder=folder)
    assert trainer(folder=folder, resume=True).iteration == 2
    assert trainer(folder=folder / "new", resume=True).iteration == 0


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 4},
        {"clip": 1.0},
        {"eta": 1.0},
        {"gradient": "last"},
        {"start": "paired"},
        {"seed": 1},
    ],
    ids=str,
)
def test_folders_of_another_term(tmp_path, other):
    trainer(folder=tmp_path, fidelity=fidelity()).run(1)
    for term, name in ((fidelity(**other), "FidelityLoss"), (None, "None")):
        with pytest.raises(
            ValueError, match=f"of this run, got .* with fidelity .* instead of .{name}"
        ):
            trainer(folder=tmp_path, fidelity=term, resume=True)
    assert trainer(folder=tmp_path, fidelity=fidelity(), resume=True).iteration == 1


def test_plans_of_other_times_are_other_terms(tmp_path):
    one, other = (FidelityLoss(fs.ddim(LINEAR, fs.Grid(times))) for times in ([9, 0], [8, 0]))
    trainer(folder=tmp_path, fidelity=one).run(1)
    with pytest.raises(ValueError, match=r"with fidelity .*Grid\(\[9, 0\].* instead of .*\[8, 0\]"):
        trainer(folder=tmp_path, fidelity=other, resume=True)


def test_a_log_without_checkpoint_is_not_overwritten(tmp_path):
    """Of a run that was killed before it saved."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"iteration": 0, "loss": 1.0}\n')
    with pytest.raises(
        ValueError, match=r"folder must not hold another run's log, got .*; pass res"
    ):
        trainer(folder=tmp_path)
    assert log.read_text() != ""
    trainer(folder=tmp_path, resume=True).run(1)
    assert [line["iteration"] for line in lines(tmp_path)] == [0]


def test_lines_of_others_do_not_matter(tmp_path):
    trainer(folder=tmp_path, save_every=1).run(2)
    log = tmp_path / "log.jsonl"
    own = log.read_text()
    foreign = ['{"note": "x"}', '{"iteration": "x"}', '{"iteration": null, "values": [NaN]}']
    log.write_text("\n".join(["3", '"x"', "[1]", "null", *foreign, own]))
    part = trainer(folder=tmp_path, resume=True)
    assert log.read_text() == "".join(f"{line}\n" for line in foreign) + own
    part.run(3)
    assert log.read_text().splitlines()[-1].startswith('{"iteration": 2,')


def test_a_run_with_noise_of_another_version_goes_on_with_a_warning(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(settings, "NOISE_VERSION", 1)
        trainer(folder=tmp_path, save_every=2).run(4)
    message = (
        r"folder should hold a run with noise of version 2, got .* with version 1; the run goes"
    )
    with pytest.warns(UserWarning, match=message):
        part = trainer(folder=tmp_path, resume=True, save_every=2)
    part.run(6)
    assert part.iteration == 6
    again = trainer(folder=tmp_path, resume=True)  # what it has saved since is of this version
    assert again.iteration == 6
