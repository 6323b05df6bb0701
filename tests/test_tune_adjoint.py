"""Tuning from the adjoint grid: the same in every batch and process, refused without gradients."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from mixture import mixture
from networks import LINEAR, denoiser
from processes import meeting
from refusals import check_refusal

import fastsample as fs
from fastsample.tuning.split import Shares
from fastsample.tuning.stages import shared_candidates
from fastsample.tuning.teacher import Network, Teacher, teacher_times
from fastsample.tuning.weighing import adjoint_grid

SMALL = {"samples": 96, "teacher_steps": 32, "max_runs": 8}


def teacher(model, batch_size=256, **options):
    times = teacher_times(model.schedule, 32)
    options = {"clip": model.clip, "cond": None, "uncond": None, "guidance": None, **options}
    network = Network(model, times, batch_size=batch_size, **options)
    return Teacher(network, Shares.of(96, torch.device("cpu")), 0)


def names(plan):
    note = plan.provenance
    return [entry["name"] for entry in note["starts"] + note["stages"]]


@pytest.mark.parametrize("steps", [4, 8])
def test_the_grid_is_a_start(steps):
    model, options = mixture(), {"methods": ["ddim"], **SMALL}
    plan = fs.tune(model, steps, adjoint=True, **options)
    assert "ddim(eta=0.0) on adjoint" in names(plan)
    plain = fs.tune(model, steps, **options)
    assert not any("adjoint" in name for name in names(plain))
    # Three calls at 32 times with 64 of 96 samples, and those of more candidates.
    first, second = plan.provenance["network_calls"], plain.provenance["network_calls"]
    assert first - second > 32 * 3 * 64 / 96


def test_the_other_starts_lose_no_candidates_to_it():
    starts = [(0.1, "auto", (3,)), (0.2, "adjoint", (4,)), (0.3, "karras", (5,)), (0.4, "x", (6,))]

    def shares(order):
        return [(share, start[1]) for share, start in shared_candidates([starts[i] for i in order])]

    assert shares([0, 2, 3]) == [(0.7, "auto"), (0.3, "karras")]
    assert shares([0, 1, 2, 3]) == [(0.7, "auto"), (0.4, "adjoint"), (0.3, "karras")]
    assert shares([1]) == [(0.4, "adjoint")]
    late = [(0.1, "auto", (3,)), (0.2, "karras", (5,)), (0.3, "adjoint", (4,))]
    assert [start[1] for _, start in shared_candidates(late)] == ["auto", "karras"]


def test_the_grid_is_good_without_any_search():
    """DDIM in five steps ends nearer to a fine run on it than on grids that know no model."""
    model = mixture()
    found = adjoint_grid(teacher(model), 5, 0)
    start = torch.randn(400, 2, generator=torch.Generator().manual_seed(3))
    fine = fs.sample(model, 300, start=start, method="dpm++")

    def typical(grid):
        squares = (fs.sample(model, grid, start=start) - fine).square().mean(1)
        return float(squares.median())

    others = [fs.grids.uniform(1000, 5), fs.grids.quadratic(1000, 5), fs.grids.karras(LINEAR, 5)]
    assert typical(found) < min(typical(grid) for grid in others)


@pytest.mark.parametrize("batch_size", [256, 40, 3])
def test_batches_do_not_matter(batch_size):
    run = teacher(mixture(), batch_size)
    before = run.network.calls
    assert adjoint_grid(run, 4, 0) == adjoint_grid(teacher(mixture()), 4, 0)
    assert run.network.calls - before == 3 * 32 * 64


def test_guidance_and_conditions():
    """Guidance 0 is no condition, 1 the condition alone."""
    cond, uncond = {"y": torch.linspace(0.0, 2.0, 96)}, {"y": torch.zeros(96)}
    alone = adjoint_grid(teacher(mixture(), cond=cond), 4, 0)
    for scale, expected in ((1.0, alone), (0.0, adjoint_grid(teacher(mixture()), 4, 0))):
        run = teacher(mixture(), cond=cond, uncond=uncond, guidance=scale)
        assert adjoint_grid(run, 4, 0) == expected
    options = {"cond": cond, "uncond": {"y": 0.0}, "guidance": 2.0, "methods": ["ddim"], **SMALL}
    found = names(fs.tune(mixture(), 4, adjoint=True, **options))
    assert any("adjoint" in name for name in found)


def test_parameters_get_no_gradient():
    net = torch.nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(0.5 * torch.eye(2))
    fs.tune(denoiser(Timeless(net), 2), 4, adjoint=True, **SMALL)
    assert all(p.grad is None for p in net.parameters())


class Timeless(torch.nn.Module):
    """Does not look at the time."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t):
        return self.net(x)


def cut_off(x, t):
    with torch.no_grad():
        return mixture().model(x, t)


def test_a_network_without_a_gradient():
    model = denoiser(cut_off, 2)
    with pytest.raises(ValueError, match="tune: model must be differentiable with adjoint=True"):
        fs.tune(model, 4, adjoint=True, **SMALL)
    assert fs.tune(model, 4, **SMALL) == fs.tune(mixture(), 4, **SMALL)


def no_room(x, t):
    if torch.is_grad_enabled():
        raise torch.cuda.OutOfMemoryError("no room")
    return mixture().model(x, t)


def test_a_graph_that_finds_no_room_is_not_called_something_else():
    with pytest.raises(torch.cuda.OutOfMemoryError, match="no room"):
        fs.tune(denoiser(no_room, 2), 4, adjoint=True, **SMALL)


def test_refused():
    check_refusal(
        lambda: fs.tune(mixture(), 4, adjoint="yes", **SMALL),
        TypeError,
        "tune: adjoint must be True or False, got 'yes'",
    )


def work(rank, folder):
    with meeting(rank, folder):
        grid = adjoint_grid(teacher(mixture()), 4, 0)
        np.save(os.path.join(folder, f"times {rank}.npy"), grid.times)
        # One process fails, and the other does not wait for it.
        broken = mixture() if rank else denoiser(cut_off, 2)
        with pytest.raises(RuntimeError if rank else ValueError):
            adjoint_grid(teacher(broken), 4, 0)
        plan = fs.tune(mixture(), 8, adjoint=True, methods=["ddim"], **SMALL)
        np.save(os.path.join(folder, f"plan {rank}.npy"), plan.nodes)


def test_two_processes_find_the_grid_of_one(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    expected = adjoint_grid(teacher(mixture()), 4, 0).times
    plan = fs.tune(mixture(), 8, adjoint=True, methods=["ddim"], **SMALL)
    for rank in range(2):
        assert np.array_equal(np.load(tmp_path / f"times {rank}.npy"), expected)
        assert np.array_equal(np.load(tmp_path / f"plan {rank}.npy"), plan.nodes)
