"""``fastsample tune``: plans in a file, one number of steps after another."""

from __future__ import annotations

import json

import pytest
from networks import denoiser, halve

import fastsample as fs
from fastsample import plots
from fastsample.cli import main
from fastsample.plan_file import load_plans

OPTIONS = ["--samples", "16", "--max-runs", "2", "--quiet"]


@pytest.fixture(autouse=True)
def _a_quick_model(monkeypatch):
    monkeypatch.setattr(fs, "load", lambda name, device=None: denoiser(halve, 2, uncond={}))


def tune(*arguments):
    return main(["tune", "digits", *arguments, *OPTIONS])


def test_plans_are_the_library_s(tmp_path, capsys):
    out = tmp_path / "plans.json"
    assert tune("--steps", "3,5", "--out", str(out), "--seed", "4") == 0
    found = load_plans(out)
    assert list(found) == [3, 5]
    expected = fs.tune(denoiser(halve, 2), 5, samples=16, max_runs=2, seed=4)
    assert found[5] == expected
    printed = capsys.readouterr().out
    assert expected.describe() in printed


def test_a_picture_of_the_errors(tmp_path, capsys):
    out, picture = tmp_path / "plans.json", tmp_path / "errors.png"
    assert tune("--steps", "3,5", "--out", str(out), "--picture", str(picture)) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert str(picture) in capsys.readouterr().out
    axes = plots.tuned_errors(load_plans(out)).axes[0]
    known, tuned = (line.get_xydata() for line in axes.lines)
    assert known[:, 0].tolist() == tuned[:, 0].tolist() == [3, 5]
    assert (tuned[:, 1] <= known[:, 1]).all()
    with pytest.raises(ValueError, match=r"plans must be made by fastsample\.tune, got ddim"):
        plots.tuned_errors({3: fs.ddim(fs.NoiseSchedule.linear(), fs.grids.uniform(1000, 3))})
    with pytest.raises(ValueError, match="plans must hold at least one, got none"):
        plots.tuned_errors({})


def test_what_is_there_is_not_tuned_again(tmp_path, capsys):
    out = tmp_path / "plans.json"
    tune("--steps", "3", "--out", str(out))
    before = out.read_text()
    capsys.readouterr()
    assert tune("--steps", "3,4", "--out", str(out), "--seed", "9") == 0
    assert "3 steps: " in capsys.readouterr().out
    after = json.loads(out.read_text())["plans"]
    assert after[0] == json.loads(before)["plans"][0]
    assert [len(plan["rows"]) for plan in after] == [3, 4]


def test_an_interruption_keeps_what_is_finished(tmp_path, monkeypatch):
    out, real = tmp_path / "plans.json", fs.tune

    def interrupted(model, steps, **options):
        if steps == 4:
            raise KeyboardInterrupt
        return real(model, steps, **options)

    monkeypatch.setattr(fs, "tune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune("--steps", "3,4", "--out", str(out))
    assert list(load_plans(out)) == [3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1", "--out", "{}/p.json"], "steps must be in"),
        (["--steps", "3", "--out", "{}/p.png"], "out must end in .json"),
        (["--steps", "3", "--out", "{}/broken.json"], "must be a file of save_plans"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments, message):
    (tmp_path / "broken.json").write_text('{"format": "other"')
    assert tune(*(part.format(tmp_path) for part in arguments)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_steps_are_numbers(capsys):
    with pytest.raises(SystemExit):
        tune("--steps", "3,x", "--out", "p.json")
    assert "must look like 5,8,10, got '3,x'" in capsys.readouterr().err


def test_a_plan_of_another_model_is_refused(tmp_path, capsys):
    out = tmp_path / "plans.json"
    tune("--steps", "3", "--out", str(out))
    fs.load = lambda name, device=None: denoiser(
        halve, 2, schedule=fs.NoiseSchedule.cosine(), uncond={}
    )
    capsys.readouterr()
    assert tune("--steps", "4", "--out", str(out)) == 2
    assert "plans must be for the model's schedule" in capsys.readouterr().err
