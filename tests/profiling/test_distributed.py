"""Profiles under torch.distributed: two processes share the batches and end with the same sums."""

from __future__ import annotations

import os

import pytest
import torch

import fastsample as fs
from tests.helpers.networks import denoiser, halve_wide
from tests.helpers.processes import meeting
from tests.helpers.profile_cases import TIMES, assert_same, levels

pytestmark = pytest.mark.slow

DATA = levels(17, 3)
RUNS = {
    "five batches": {"batch_size": 4},
    "one batch": {"batch_size": 64},
    "trajectories in the first batches": {"batch_size": 4, "trajectories": 6},
    "no trajectories": {"batch_size": 9, "trajectories": 0},
    "second half of a series": {"batch_size": 4, "trajectories": 6, "sample_index": 3},
    "latents in a later batch": {"batch_size": 4, "data": torch.cat([DATA[:13], 5.0 * DATA[13:]])},
    "conditions": {"batch_size": 3, "cond": {"y": torch.arange(17.0)}},
}
INTERRUPTED = 9  # samples in the file that both processes go on from


def network(x, t, y=None):
    out = halve_wide(x, t)
    return out if y is None else out + 0.01 * y[:, None]


def measure(data=DATA, **options):
    model = denoiser(network, 3, variance="learned_range")
    return fs.profile(model, data, **{"times": TIMES, "nodes": 5, **options})


def work(rank, folder):
    """One process: all runs, because starting it is what takes the time."""
    with meeting(rank, folder):
        for name, options in RUNS.items():
            path = os.path.join(folder, f"{name} of both")
            measure(**options, save=path).save(os.path.join(folder, f"{name} {rank}"))
        resumed = measure(batch_size=2, save=os.path.join(folder, "interrupted"))
        resumed.save(os.path.join(folder, f"resumed {rank}"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    measure(DATA[:INTERRUPTED], save=path / "interrupted")
    torch.multiprocessing.spawn(work, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_the_sums_of_one(folder, name):
    expected = measure(**RUNS[name])
    for rank in (0, 1):
        assert_same(fs.Profile.load(folder / f"{name} {rank}"), expected)
    assert_same(fs.Profile.load(folder / f"{name} of both"), expected)  # saved by the first alone


def test_two_processes_go_on_from_one_file(folder):
    for name in ("resumed 0", "resumed 1", "interrupted"):
        assert_same(fs.Profile.load(folder / name), measure())
