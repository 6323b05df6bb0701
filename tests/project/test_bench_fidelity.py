"""The benchmark of the fidelity loss: a short run of every part, and what its tables say."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.filterwarnings("ignore:CollapseDetector")
@pytest.mark.slow
def test_swirl_and_cost_run_and_render(monkeypatch):
    from benchmarks import bench_fidelity, fidelity_report, swirl

    monkeypatch.setattr(swirl, "LARGE", 64)
    monkeypatch.setattr(swirl, "SAMPLES", 32)
    monkeypatch.setattr(swirl, "SAMPLING_SEEDS", (101,))
    known = swirl.known_samplers
    monkeypatch.setattr(swirl, "known_samplers", lambda model, steps: known(model, steps)[:2])
    tune = functools.partial(bench_fidelity.fs.tune, max_runs=1, teacher_steps=24)
    few = functools.partial(lambda model, K, samples: tune(model, K, samples=32))
    monkeypatch.setattr(bench_fidelity.fs, "tune", few)
    found = {"cost": bench_fidelity.cost(5)}
    assert found["cost"]["cpu_ratio"] > 1.0
    seed = bench_fidelity.one_swirl(0, 2.0, trained=2, fine_tuned=2)
    found["swirl"] = {"seeds": {"0": seed}, "trained": 2, "fine_tuned": 2}
    arms = ["start", "control", "compute", "zero", "paper", "paired", "energy", "energy5"]
    assert list(seed["arms"]) == arms
    # Equal weights and batches: what differs is the term.
    assert seed["arms"]["control"]["bits"] != seed["arms"]["zero"]["bits"]
    text = fidelity_report.markdown(json.loads(json.dumps(found)))
    for label in ("energy distance, DDIM in 10 calls", "Cost", "fs.tune"):
        assert label in text


def test_a_step_of_zero_gradient_moves_the_weights():
    from benchmarks.swirl import SteppedTwice

    moved = []
    for kind in (torch.optim.AdamW, SteppedTwice):
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = kind([weight], lr=0.1, weight_decay=0.0)
        weight.grad = torch.ones(1)
        optimizer.step()
        moved.append(1.0 - weight.item())
    # Adam by hand: the second step has m = 0.09 / 0.19 and v = 0.000999 / 0.001999.
    second = 0.1 * (0.09 / 0.19) / (0.000999 / 0.001999) ** 0.5
    assert moved == pytest.approx([0.1, 0.1 + second], rel=1e-4)


def test_the_committed_tables_are_those_of_the_json():
    from benchmarks import fidelity_report

    path = ROOT / "benchmarks" / "results" / "fidelity.json"

    text = fidelity_report.markdown(json.loads(path.read_text()))
    assert path.with_suffix(".md").read_text() == text
