"""The five stored formats alike: round trips, damage, truncation, newer and older versions."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

import fastsample as fs
from fastsample._support import files
from fastsample._support.files import write_atomically
from fastsample.bundled import checkpoint
from fastsample.bundled.checkpoint import load_checkpoint, save_checkpoint
from fastsample.bundled.digits import load_digits_model
from fastsample.plans import files as plan_files
from fastsample.plans.text import PLAN
from fastsample.profiling.file import FORMAT as PROFILE
from fastsample.training.trainer import checkpoints
from tests.helpers.networks import denoiser, halve_wide
from tests.helpers.profile_cases import levels
from tests.helpers.refusals import check_refusal
from tests.helpers.training_cases import trainer

OLD = Path(__file__).parents[1] / "data" / "old"
LINEAR = fs.NoiseSchedule.linear()
PLAN_OF_3 = fs.dpm_solver(LINEAR, fs.Grid([999, 500, 120, 0])).with_provenance({"note": "é"})
PLAN_OF_2 = fs.ddim(LINEAR, fs.Grid([3, 1, 0]), eta=0.5, clip=1.0)
TENSORS = {
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "tied": torch.arange(6.0).reshape(2, 3),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 3, dtype=torch.float64),
    "mask": torch.tensor([True, False]),
}


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {k: (v.dtype, v.shape, files._byte_view(v).tobytes()) for k, v in tensors.items()}


def profile() -> fs.Profile:
    model = denoiser(halve_wide, 2, variance="learned_range", clip=1.0)
    return fs.profile(model, levels(3, 2), times=[1.0, 900.0], trajectories=2, nodes=3)


def content(found: fs.Profile) -> Any:
    arrays = {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.arrays().items()}
    return found.schedule, found.shape, found.times.tolist(), found.settings, found.count, arrays


def read_plan(path: Path) -> str:
    return fs.Plan.from_json(path.read_bytes().decode("latin-1")).to_json()


def read_plans(path: Path) -> list[str]:
    return [plan.to_json() for plan in fs.load_plans(path).values()]


def read_model(path: Path) -> Any:
    state, metadata = load_checkpoint(path)
    return bits(state), metadata


def write_training(path: Path) -> None:
    file = checkpoints.save(path.parent, 4, TENSORS, {"loss": 0.1, "none": None})
    if file != path:
        file.replace(path)


def read_training(path: Path) -> Any:
    found = checkpoints.load(path)
    return found.iteration, bits(found.tensors), found.notes


class Kind(NamedTuple):
    format: files.Format
    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


KINDS = {
    "plan": Kind(PLAN, "p.json", lambda path: path.write_text(PLAN_OF_3.to_json()), read_plan),
    "plans": Kind(
        plan_files._FORMAT,
        "p.json",
        lambda path: fs.save_plans(path, [PLAN_OF_3, PLAN_OF_2]),
        read_plans,
    ),
    "profile": Kind(
        PROFILE,
        "p.safetensors",
        lambda path: profile().save(path),
        lambda path: content(fs.Profile.load(path)),
    ),
    "model": Kind(
        checkpoint._FORMAT,
        "m.safetensors",
        lambda path: save_checkpoint(path, TENSORS, {"version": 7, "é": [1, 2.5, None]}),
        read_model,
    ),
    "training": Kind(
        checkpoints._FORMAT, "checkpoint-000000004.safetensors", write_training, read_training
    ),
}
TENSOR_KINDS = ("profile", "model", "training")


# A single plan is a text, which its user writes and reads.
of_files = pytest.mark.parametrize("kind", [k for k in KINDS if k != "plan"], indirect=True)


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def path(tmp_path, kind) -> Path:
    place = tmp_path / kind.name
    kind.write(place)
    return place


def refused(kind: Kind, path: Path, reason: str = "") -> None:
    """In the words of the format, whatever the reason."""
    got = "'.*'" if kind.format is PLAN else ".*"
    rule = rf"^{kind.format.function}: {kind.format.rule}, got {got} \(.*{reason}"
    check_refusal(lambda: kind.read(path), ValueError, f"(?s){rule}")


# ---- what is written


def test_the_same_content_makes_the_same_bytes(kind, path):
    before, found = path.read_bytes(), kind.read(path)
    kind.write(path)
    assert path.read_bytes() == before
    assert kind.read(path) == found


def test_plans_are_strict_and_readable(tmp_path):
    text = PLAN_OF_3.to_json()
    assert text.startswith('{"format": "fastsample.plan", "version": 3, "columns": ["p", ')
    assert list(json.loads(text, parse_constant=pytest.fail))[-1] == "sha256"
    data = json.loads(fs.save_plans(tmp_path / "p.json", [PLAN_OF_3]).read_text())
    assert fs.Plan.from_json(json.dumps(data["plans"][0])) == PLAN_OF_3
    # Another layout of the same JSON is the same plan.
    assert fs.Plan.from_json(json.dumps(json.loads(text), indent=2, sort_keys=True)) == PLAN_OF_3


@of_files
def test_a_failed_write_leaves_the_old_file(kind, path, monkeypatch):
    before = path.read_bytes()

    def fail(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", fail)
        with pytest.raises(KeyboardInterrupt):
            kind.write(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [kind.name]


# ---- what is refused


def failure(kind: Kind, path: Path) -> str:
    """What reading says; nothing where it succeeds."""
    try:
        kind.read(path)
    except ValueError as error:
        return str(error)
    return ""


def test_a_changed_byte(kind, path):
    """Refused, but for JSON that says the same: 1e-05 may become 1E-05."""
    data, found = path.read_bytes(), kind.read(path)
    masks = np.random.default_rng(0).choice([1, 2, 4, 8, 16, 32, 64, 128, 255], len(data))
    accepted = []
    for i, mask in enumerate(masks.tolist()):
        path.write_bytes(data[:i] + bytes([data[i] ^ mask]) + data[i + 1 :])
        message = failure(kind, path)
        if message == "":
            accepted.append(i)
            assert kind.read(path) == found
        else:
            assert message.startswith(f"{kind.format.function}: {kind.format.rule}, got "), i
    if kind.name.endswith(".safetensors"):
        assert accepted == []
    else:  # in numbers, or the line's end
        assert all(data[i : i + 1] in b"e0123456789\n" for i in accepted)
        assert len(accepted) <= 0.02 * len(data)


@pytest.mark.parametrize("name", KINDS)
def test_any_digit_of_a_checksum(tmp_path, name):
    kind, path = KINDS[name], tmp_path / KINDS[name].name
    kind.write(path)
    data = path.read_bytes()
    start = data.rindex(b"sha256") + 9
    for i in range(start + 3, start + 60, 7):
        path.write_bytes(data[:i] + (b"0" if data[i : i + 1] != b"0" else b"1") + data[i + 1 :])
        refused(kind, path, "damaged: its checksum is not that of its content")


def test_any_truncation(kind, path):
    data = path.read_bytes().rstrip()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        message = failure(kind, path)
        assert message.startswith(f"{kind.format.function}: {kind.format.rule}, got "), length
        assert "(cut off, or no " in message
    path.write_bytes(data + b"{}")
    refused(kind, path, "cut off, or no (JSON|safetensors file): ")


def test_a_newer_version(kind, path):
    newer = replace(kind.format, version=kind.format.version + 1)
    fields = {"what": "is to come"}
    if isinstance(newer, files.TensorFormat):
        newer.save(path, fields, {})
    else:
        newer.save_text(path, fields)
    refused(kind, path, rf"version {newer.version}, made by a newer fastsample; upgrade to read it")


def test_other_kinds(kind, path, tmp_path):
    """Each format in place of each other one."""
    name = f'no "format": "{kind.format.name}" in it'
    for other in KINDS.values():
        if other.format.name != kind.format.name:
            other.write(tmp_path / other.name)
            (tmp_path / other.name).replace(path)
            same = isinstance(other.format, files.TensorFormat) == (
                isinstance(kind.format, files.TensorFormat)
            )
            refused(kind, path, name if same else "cut off, or no ")


@of_files
def test_no_file(kind, tmp_path):
    error = ValueError if kind.format.name == "fastsample.training" else FileNotFoundError
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(error, match="path must name a file, got "):
            kind.read(place)


@pytest.mark.parametrize("name", TENSOR_KINDS)
def test_missing_fields(tmp_path, name):
    kind, path = KINDS[name], tmp_path / KINDS[name].name
    kind.format.save(path, {}, {})
    refused(kind, path, "'(settings|metadata|iteration)' missing")


# ---- sizes


def safetensors_file(header: dict[str, Any], data: bytes = b"") -> bytes:
    """A file with any header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("name", TENSOR_KINDS)
def test_headers_that_ask_for_much(tmp_path, name):
    kind, path = KINDS[name], tmp_path / KINDS[name].name
    size = 2**50
    for data in (
        (2**60).to_bytes(8, "little") + b"{}",
        safetensors_file({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}),
        safetensors_file({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, 4]}}, b"1234"),
        safetensors_file({"w": {"dtype": "F64", "shape": [2**63] * 9, "data_offsets": [0, 0]}}),
    ):
        path.write_bytes(data)
        refused(kind, path, "cut off, or no safetensors file: ")


def test_documents_that_are_too_long(tmp_path, monkeypatch):
    path = fs.save_plans(tmp_path / "p.json", [PLAN_OF_2])
    monkeypatch.setattr(files, "_LARGEST", 100)
    refused(KINDS["plans"], path, "more than 100 bytes")


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_schedule_of_too_many_steps(kind):
    data = json.loads((OLD / "plan.json").read_text())
    data["schedule"] = {**getattr(fs.NoiseSchedule, kind)().to_dict(), "num_steps": 10**13}
    with pytest.raises(ValueError, match=r"num_steps.* must be at most 10000000, got 10000000000"):
        fs.Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("width", [10**9, 8 * 10**7])
def test_a_network_of_any_width(tmp_path, width):
    path = tmp_path / "model.safetensors"
    state, metadata = load_checkpoint(OLD / "model.safetensors")
    save_checkpoint(path, state, {**metadata, "config": {"width": width}})
    with pytest.raises(ValueError, match="path must hold weights that fit their config"):
        fs.load(path)
    model, metadata = load_digits_model()
    config = {**model.config, "channels": 8 * width}
    save_checkpoint(path, model, {**metadata, "config": config})
    with pytest.raises(ValueError, match="path must hold weights that fit their config"):
        load_digits_model(path)


def test_reading_holds_one_copy(tmp_path):
    """Of numpy's arrays, whose memory can be traced; PyTorch's come the same way."""
    form = files.TensorFormat("test", 1, "read", "path must be a test", framework="numpy")
    arrays = {str(i): np.full(250_000, float(i)) for i in range(8)}
    path = form.save(tmp_path / "x", {}, arrays)
    tracemalloc.start()
    found = form.load(path)[1]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    size = sum(array.nbytes for array in arrays.values())
    assert size <= peak < 1.2 * size


def test_what_was_read_does_not_follow_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, TENSORS, {}, dtype=torch.float32)
    found = load_checkpoint(path)[0]
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(found["tied"], TENSORS["tied"])


# ---- old files


def test_an_old_plan():
    text = (OLD / "plan.json").read_text()
    plan, said = fs.Plan.from_json(text), json.loads(text)
    assert said["version"] == 1
    assert plan.nodes.tolist() == said["nodes"]
    rows = [[float(x) for x in row] for row in said["rows"]]
    assert plan.rows.tolist() == [[*row[:10], 0.0, 0.0, *row[10:]] for row in rows]
    assert plan.times.tolist() == said["nodes"][:-1]
    assert (plan.schedule, plan.provenance) == (LINEAR, said["provenance"])
    assert fs.Plan.from_json(plan.to_json()) == plan
    new = json.loads(plan.to_json())
    changed = ("version", "columns", "rows", "times", "sha256")
    assert {k: v for k, v in new.items() if k not in changed} == {
        k: v for k, v in said.items() if k not in changed
    }


def test_old_plans(tmp_path):
    found = fs.load_plans(OLD / "plans.json")
    assert list(found) == [2, 3]
    assert found[3] == fs.Plan.from_json((OLD / "plan.json").read_text())
    assert fs.load_plans(fs.save_plans(tmp_path / "new" / "p.json", found)) == found


def test_an_old_profile(tmp_path):
    path = OLD / "profile.safetensors"
    found, arrays = fs.Profile.load(path), safetensors.numpy.load_file(path)
    assert np.array_equal(found.times, arrays.pop("times"))
    assert {k: v.tobytes() for k, v in found.arrays().items()} == {
        k: v.tobytes() for k, v in arrays.items()
    }
    assert (found.count, found.settings.nodes, found.settings.clip) == (5, 3, (-1.0, 1.0))
    assert content(fs.Profile.load(found.save(tmp_path / "new"))) == content(found)


def test_an_old_model(tmp_path):
    path = OLD / "model.safetensors"
    state, metadata = load_checkpoint(path)
    assert bits(state) == bits(safetensors.torch.load_file(path))
    assert metadata["config"] == {"width": 4}
    model = fs.load(path)
    assert list(model.plans) == [2]
    assert fs.sample(model, 2, num_samples=3).isfinite().all()
    save_checkpoint(tmp_path / "new", state, metadata, dtype=torch.float32)
    assert read_model(tmp_path / "new") == read_model(path)
    data = path.read_bytes()
    for i in range(len(data)):
        (tmp_path / "new").write_bytes(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
        assert failure(KINDS["model"], tmp_path / "new") != "", i


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of a run of 2 iterations, both saved, by version 1."""
    return Path(shutil.copytree(OLD / "training", tmp_path / "run"))


def test_an_old_run_goes_on(folder):
    tensors = safetensors.torch.load_file(folder / "iteration-000000002.safetensors")
    assert bits(checkpoints.newest(folder).tensors) == bits(tensors)
    with pytest.warns(
        UserWarning, match=r"noise of version 2, got .* with version 1; the run goes on"
    ):
        run = trainer(folder=folder, resume=True, save_every=1)
    assert run.iteration == 2
    assert bits(run.updater.tensors()) == bits(tensors)
    run.run(3)
    names = ["checkpoint-000000003.safetensors"]
    names += [f"iteration-000000002.{end}" for end in ("json", "safetensors")]
    assert sorted(p.name for p in folder.iterdir()) == [*names, "log.jsonl"]
    run.run(4)
    names = [f"checkpoint-00000000{i}.safetensors" for i in (3, 4)]
    assert sorted(p.name for p in folder.iterdir()) == [*names, "log.jsonl"]
    assert trainer(folder=folder, resume=True).iteration == 4


@pytest.mark.parametrize("how", ["cut", "bit", "gone", "json cut", "json empty", "json digit"])
def test_an_old_checkpoint_that_is_damaged(folder, how):
    path = folder / "iteration-000000002.json"
    tensors, data = path.with_suffix(".safetensors"), path.read_bytes()
    raw = tensors.read_bytes()
    if how == "gone":
        tensors.unlink()
    elif how in ("cut", "bit"):
        tensors.write_bytes(raw[:-40] if how == "cut" else raw[:-1] + bytes([raw[-1] ^ 1]))
    else:
        digit = data.replace(b'"updates": 0', b'"updates": 1')
        path.write_bytes({"json cut": data[:-99], "json empty": b"", "json digit": digit}[how])
    message = r"folder must hold intact checkpoints, got .*-000000002\.json \(.*from iteration 1"
    with pytest.warns(UserWarning, match=message):
        assert checkpoints.newest(folder).iteration == 1


def test_tensors_that_an_old_run_left_alone(folder):
    """It was killed between the two files of its checkpoint."""
    (folder / "iteration-000000002.json").unlink()
    assert checkpoints.newest(folder).iteration == 1
    (folder / "iteration-000000001.json").unlink()
    assert checkpoints.newest(folder) is None


def test_bundled_files_are_old_ones():
    bundled = Path(fs.__file__).parent / "bundled"
    assert json.loads((bundled / "digits-plans.json").read_text())["version"] == 1
    for name, key in (
        ("digits-profile", "fastsample_profile"),
        ("digits", "fastsample-checkpoint"),
    ):
        with safe_open(bundled / f"{name}.safetensors", framework="numpy") as file:
            assert list(file.metadata()) == [key]
    model = fs.load("digits")
    assert model.profile is not None
    assert len(model.plans) > 0


# ---- where files go


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_of_the_process(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        path = write_atomically(tmp_path / "new", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_replaced_file_keeps_its_permissions_and_its_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize("plans", [None, 3, ["x"], PLAN_OF_3])
def test_only_several_plans_are_saved(plans, tmp_path):
    with pytest.raises(TypeError, match=r"save_plans: plans must be .*Plans, got "):
        fs.save_plans(tmp_path / "plans.json", plans)
    assert not list(tmp_path.iterdir())
