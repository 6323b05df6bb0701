"""The examples run as their first lines say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import fastsample as fs

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_compare_samplers_draws_every_method(tmp_path, monkeypatch, capsys):
    out = tmp_path / "compare.png"
    monkeypatch.setattr(sys, "argv", ["compare", "--steps", "3", "--digit", "3", "--out", str(out)])
    names = runpy.run_path(str(EXAMPLES / "compare_samplers.py"), run_name="__main__")["ROWS"]
    printed = capsys.readouterr().out.splitlines()
    assert [line[:28].rstrip() for line in printed[:-1]] == list(names)
    assert out.stat().st_size > 1000


def run(name, monkeypatch, capsys, *arguments):
    """What an example prints."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_swirl_goes_on_and_draws(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    printed = run(
        "swirl", monkeypatch, capsys, "--iterations", 3, "--fine-tune", 2, "--out", tmp_path
    )
    assert sum("calls" in line and "energy distance" in line for line in printed) == 6
    for name in ("fig3.png", "fig4.png", "curves.png"):
        assert (tmp_path / name).stat().st_size > 1000
    again = run(
        "swirl", monkeypatch, capsys, "--iterations", 3, "--fine-tune", 2, "--out", tmp_path
    )
    assert printed == again


def test_finetuned_digits_carry_their_plan(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    arguments = ("--steps", 4, "--iterations", 1, "--out", tmp_path)
    printed = run("finetune_digits", monkeypatch, capsys, *arguments)
    assert [line.split()[0] for line in printed[:2]] == ["before", "after"]
    assert (tmp_path / "before-after.png").stat().st_size > 1000
    model = fs.load(tmp_path / "model.safetensors")
    assert model.plans == {4: fs.load("digits").plans[4]}
    assert fs.sample(model, 4, num_samples=2).shape == (2, 1, 8, 8)


def test_serving_gives_what_sample_gives(monkeypatch, capsys):
    arguments = ("--requests", 40, "--rates", 30, "--slots", 4)
    printed = run("serving", monkeypatch, capsys, *arguments)
    assert printed[-1] == "images that differ from fs.sample of their request alone: 0"
    assert [line.split()[1] for line in printed[1:-1]] == ["continuous", "batches", "equal"]


def test_finetuning_for_a_reward_raises_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    arguments = ("--iterations", 4, "--batch", 32, "--held-out", 64, "--every", 4)
    printed = run("finetune_reward", monkeypatch, capsys, *arguments, "--out", tmp_path)
    before, after = map(float, printed[0].split(",")[0].split()[-2:])
    assert after > before + 0.02
    for name in ("before-after.png", "reward.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_mnist_is_trained_and_bundled(tmp_path, monkeypatch, capsys):
    """Two iterations of a network, what comes with it, and its picture."""
    pytest.importorskip("mlxtend")
    for kind in ("diffusion", "flow"):
        folder = tmp_path / kind
        arguments = ("--model", kind, "--iterations", 2, "--batch-size", 4, "--out", folder)
        run("train_mnist", monkeypatch, capsys, *arguments)
        assert (folder / "samples.png").stat().st_size > 1000
        model = fs.load(folder / "model.safetensors")
        assert fs.sample(model, 3, cond={"y": [1, 10]}).shape == (2, 1, 28, 28)


def test_a_diffusers_pipeline_with_four_schedulers(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    out = tmp_path / "pictures.png"
    printed = run(
        *("diffusers_pipeline", monkeypatch, capsys),
        *("--steps", 4, "--samples", 16, "--out", out),
    )
    assert sum("4 calls in" in line for line in printed) == 4
    assert out.stat().st_size > 1000
