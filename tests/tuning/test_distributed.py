"""Tuning under torch.distributed: two processes find the plan of one, and fail together."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import fastsample as fs
from tests.helpers.mixture import mixture
from tests.helpers.networks import denoiser
from tests.helpers.processes import meeting

pytestmark = pytest.mark.slow

SMALL = {"samples": 256, "teacher_steps": 32, "max_runs": 6}
RUNS = {
    "free": {},
    "robust": {"objective": "robust"},
    "gradients": {"gradient_steps": 8},
    "times only": {"rows": False},
    "conditions": {"cond": {"y": torch.linspace(0.0, 1.0, 256)}},
}


def tuned(**options):
    return fs.tune(mixture(), 4, **SMALL, **options)


def work(rank, folder):
    """One process: all runs, because starting it is what takes the time."""
    with meeting(rank, folder):
        for name, options in RUNS.items():
            fs.save_plans(os.path.join(folder, f"{name} {rank}"), [tuned(**options)])
        # Only the first process's network fails, after a while.
        good, calls = mixture(), 0

        def network(x, t):
            nonlocal calls
            calls += 1
            if rank == 0 and calls == 40:
                raise KeyError("the disk with the weights is gone")
            return good.model(x, t)

        try:
            fs.tune(denoiser(network, 2), 4, **SMALL)
            message = "none"
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
        with open(os.path.join(folder, f"message {rank}"), "w") as file:
            file.write(message)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_find_the_plan_of_one(folder, name):
    (expected,) = [tuned(**RUNS[name])]
    for rank in (0, 1):
        plan = fs.load_plans(folder / f"{name} {rank}")[4]
        assert plan.provenance["chosen"] == expected.provenance["chosen"]
        assert plan.provenance["network_calls"] == expected.provenance["network_calls"]
        assert np.array_equal(plan.nodes, expected.nodes)
        # Sums of float32 samples in another order, through Adam's division where it is used.
        np.testing.assert_allclose(plan.rows, expected.rows, rtol=1e-4, atol=1e-6)


def test_a_failure_of_one_process_is_told_to_the_other(folder):
    first, second = ((folder / f"message {rank}").read_text() for rank in (0, 1))
    assert first == "KeyError: 'the disk with the weights is gone'"
    assert second == "OtherProcessFailedError: tune: another process failed; see its message"
