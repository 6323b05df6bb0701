"""``fastsample tune``: plans in a file, one number of steps after another."""

from __future__ import annotations

import json
import sys

import pytest

import fastsample as fs
from fastsample.cli.main import main
from fastsample.plans.files import load_plans
from tests.helpers.networks import denoiser, halve

OPTIONS = ["--samples", "16", "--max-runs", "2", "--quiet"]


@pytest.fixture(autouse=True)
def _a_quick_model(monkeypatch):
    monkeypatch.setattr(fs, "load", lambda name, device=None: denoiser(halve, 2, uncond={}))


def tune(*arguments):
    return main(["tune", "digits", *arguments, *OPTIONS])


def test_plans_are_the_library_s(tmp_path, capsys):
    out = tmp_path / "plans.json"
    assert tune("--steps", "3,5", "--out", str(out), "--seed", "4") == 0
    result = load_plans(out)
    assert list(result) == [3, 5]
    expected = fs.tune(denoiser(halve, 2), 5, samples=16, max_runs=2, seed=4)
    assert result[5] == expected
    printed = capsys.readouterr().out
    assert expected.describe() in printed


def test_a_picture_of_the_errors(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "plans.json", tmp_path / "errors.png"
    assert tune("--steps", "3,5", "--out", str(out), "--picture", str(picture)) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    *_, head, three, five, where = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "calls"
    assert (three.split()[0], five.split()[0]) == ("3", "5")
    assert where == str(picture)


def test_the_picture_has_the_steps_asked_for_alone(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr("fastsample.evaluation.diffusers_schedulers.is_installed", lambda: False)
    out, picture = tmp_path / "plans.json", tmp_path / "errors.png"
    tune("--steps", "3,5", "--out", str(out))
    capsys.readouterr()
    assert tune("--steps", "5", "--out", str(out), "--picture", str(picture)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("3 ")]
    assert "diffusers is not installed: without its schedulers" in lines
    assert picture.stat().st_size > 10_000


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
    """Ctrl-C arrives while the network runs; the same command then goes on."""
    out, whole = tmp_path / "plans.json", tmp_path / "whole.json"
    tune("--steps", "3,4", "--out", str(whole))
    calls = 0

    def interrupted(x, t, **cond):
        nonlocal calls
        calls += 1
        if list(load_plans(out) if out.exists() else {}) == [3] and calls % 50 == 0:
            raise KeyboardInterrupt
        return halve(x, t)

    quick = fs.load
    monkeypatch.setattr(fs, "load", lambda name, device=None: denoiser(interrupted, 2, uncond={}))
    with pytest.raises(KeyboardInterrupt):
        tune("--steps", "3,4", "--out", str(out))
    assert list(load_plans(out)) == [3]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("plans")] == [out.name]
    monkeypatch.setattr(fs, "load", quick)
    assert tune("--steps", "3,4", "--out", str(out)) == 0
    assert out.read_bytes() == whole.read_bytes()


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


def test_a_plan_of_another_model_is_refused(tmp_path, capsys, monkeypatch):
    out = tmp_path / "plans.json"
    tune("--steps", "3", "--out", str(out))
    other = denoiser(halve, 2, schedule=fs.NoiseSchedule.cosine(), uncond={})
    monkeypatch.setattr(fs, "load", lambda name, device=None: other)
    capsys.readouterr()
    assert tune("--steps", "4", "--out", str(out)) == 2
    assert "plans must fit the model's schedule" in capsys.readouterr().err
