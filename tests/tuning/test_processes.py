"""Plans in other processes, and tuning that is interrupted or whose network fails."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

import fastsample as fs
from fastsample.tuning.teacher import teacher_times
from tests.helpers.mixture import mixture
from tests.helpers.networks import denoiser

SMALL = {"samples": 64, "teacher_steps": 32, "max_runs": 6}

ELSEWHERE = """
import hashlib, json, sys
import torch
import fastsample as fs
from tests.helpers.mixture import mixture

torch.set_num_threads(1)
plans = fs.load_plans(sys.argv[1])
plans |= {0: fs.Plan.from_json(open(sys.argv[2]).read())}
for steps, plan in plans.items():
    x = fs.sample(mixture(), plan, num_samples=37, seed=11)
    print(steps, hashlib.sha256(x.numpy().tobytes()).hexdigest())
print(json.dumps(plans[4].provenance, sort_keys=True))
"""


def digest(plan):
    x = fs.sample(mixture(), plan, num_samples=37, seed=11)
    return hashlib.sha256(x.numpy().tobytes()).hexdigest()


def test_another_process_draws_the_same_bits(tmp_path):
    plans = [fs.tune(mixture(), K, gradient_steps=3, **SMALL) for K in (4, 5)]
    file = fs.save_plans(tmp_path / "plans.json", plans)
    single = tmp_path / "plan.json"
    single.write_text(plans[1].to_json())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        four, five = map(digest, plans)
    finally:
        torch.set_num_threads(threads)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(file), str(single)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *there, provenance = done.stdout.splitlines()
    assert there == [f"4 {four}", f"5 {five}", f"0 {five}"]
    assert four != five
    assert json.loads(provenance) == plans[0].provenance


@pytest.mark.parametrize("at", [1, 20, 40, 60])
def test_an_interruption_leaves_model_and_torch_as_they_were(at):
    """In the teacher's run, the known samplers, the search."""
    calls, good = 0, mixture()

    def network(x, t):
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return good.model(x, t)

    model = denoiser(network, 2)
    with pytest.raises(KeyboardInterrupt):
        fs.tune(model, 4, **SMALL)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert fs.tune(model, 4, **SMALL) == fs.tune(good, 4, **SMALL)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", [..., (0, 0)])
def test_a_network_that_fails_at_a_time_names_it(value, where):
    """In all samples, or in one element of one."""
    bad = float(teacher_times(fs.NoiseSchedule.linear(), 32)[21])

    def network(x, t):
        out = 0.5 * x
        if float(t[0]) + 1 == bad:
            out[where] = value
        return out

    with pytest.raises(ValueError, match=f"finite, got NaN or infinity at t = {bad:g}"):
        fs.tune(denoiser(network, 2), 4, **SMALL)
