"""Profiles with adjoints: measured, merged, saved, gone on with, and refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from adjoint_cases import D, Linear, identity, signs
from networks import Spy, denoiser, halve
from profile_cases import assert_same, levels
from refusals import check_refusal, refusals
from torch import nn

import fastsample as fs
from fastsample import ops
from fastsample.profiling.adjoint import Adjoints

TIMES = np.array([1.0, 60.0, 200.0, 480.0, 777.0, 1000.0])
PAIRS = [(t, s) for t in range(1, len(TIMES) + 1) for s in range(t)]
DATA = levels(9, D)
RUN = {"times": TIMES, "trajectories": 7, "adjoint": True}


def profiled(network=None, data=DATA, model=None, **changes):
    network = Linear() if network is None else network
    return fs.profile(model or denoiser(network, D), data, **{**RUN, **changes})


def test_a_profile_s_costs_are_those_of_skipping_times():
    """For a linear network first order is everything: the sampler itself says what a step does."""
    network = Linear()
    model = denoiser(network, D)
    x = ops.noise(*identity(7), (D,), dtype=torch.float64)
    costs = profiled(network, batch_size=4).costs("trajectory", weighting="adjoint")
    fine = fs.sample(model, fs.Grid([*TIMES[::-1], 0.0]), start=x)
    every = np.append(0.0, TIMES)
    for t, s in PAIRS:
        grid = fs.Grid(np.delete(every, range(s + 1, t))[::-1])
        away = (signs(7) * (fs.sample(model, grid, start=x) - fine)).sum(1)
        expected = float(away.square().mean()) / D
        assert costs.costs[t, s] == pytest.approx(expected, rel=1e-6, abs=1e-20)
    best = costs.best_grid(3)
    others = (
        fs.Grid([*(TIMES[i] for i in reversed(chosen)), 0.0])
        for chosen in itertools.combinations(range(len(TIMES)), 3)
    )
    assert costs.cost(best) == min(costs.cost(grid) for grid in others)


def test_nothing_else_changes_and_parameters_get_no_gradient():
    network = Linear()
    found = profiled(network)
    assert network.matrices.grad is None
    assert network.matrices.requires_grad
    plain = profiled(network, adjoint=False)
    assert plain.adjoints is None
    assert_same(found.with_arrays({k: found.arrays()[k] for k in plain.arrays()}), plain)
    assert found.arrays().keys() - plain.arrays().keys() == {
        "adjoint_count",
        "adjoint_steps",
        "adjoint_starts",
    }


@pytest.mark.parametrize(("count", "groups"), [(9, 4), (36, 1)])
def test_calls_and_their_modes(count, groups):
    """A quarter of a batch at once, because of the graph."""
    spy = Spy(halve)
    profiled(spy, levels(count, D))
    assert len(spy) == 6 + 2 * groups * 6
    assert sum(spy.batches) == 6 * (count + 2 * 7)
    assert spy.modes.count((True, False)) == groups * 6
    assert spy.modes.count((False, True)) == 6 + groups * 6
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_networks(dtype):
    found = profiled(Linear(dtype)).costs("trajectory", weighting="adjoint").costs
    wanted = profiled().costs("trajectory", weighting="adjoint").costs
    far = [pair for pair in PAIRS if pair[0] - pair[1] > 2]
    for t, s in far:
        tolerance = 1e-4 if dtype == torch.float32 else 0.2
        assert found[t, s] == pytest.approx(wanted[t, s], rel=tolerance)


def test_learned_variances_conditions_and_embeddings():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(1000, D)
            self.scale = nn.Parameter(torch.full((D,), 0.5))

        def forward(self, x, t, y):
            out = self.scale * x * y[:, None] + self.table(t)
            return torch.cat((out, torch.zeros_like(out)), dim=1)

    model = denoiser(Net(), D, variance="learned_range", clip=1.0)
    y = torch.linspace(0.5, 1.0, 9)
    one = profiled(model=model, cond={"y": y})
    other = profiled(model=model, cond={"y": y}, batch_size=4)
    assert one.adjoints.count == other.adjoints.count == 7
    size = one.adjoints.steps.max()
    np.testing.assert_allclose(one.adjoints.steps, other.adjoints.steps, 1e-3, 1e-6 * size)


def test_halves_and_files_add_up(tmp_path):
    whole = profiled()
    parts = [profiled(data=DATA[:4]), profiled(data=DATA[4:], sample_index=4)]
    assert [part.adjoints.count for part in parts] == [4, 3]
    path = parts[0].save(tmp_path / "profile")
    merged = fs.Profile.load(path).merge(parts[1])
    assert_same(merged, whole)
    assert_same(parts[1].merge(parts[0]), whole)
    plain = profiled(adjoint=False)
    assert plain.merge(whole).adjoints is whole.adjoints
    assert fs.Profile.load(plain.save(tmp_path / "plain")).adjoints is None
    total = Adjoints.empty(6) + whole.adjoints
    assert total.count == 7


def test_an_interrupted_run_goes_on(tmp_path):
    path = tmp_path / "profile"
    profiled(data=DATA[:4], save=path)
    assert_same(profiled(save=path, batch_size=2), profiled())
    with pytest.raises(ValueError, match=r"profile: adjoint must be as in .* adjoints of 7 .* got"):
        profiled(save=path, adjoint=False)
    other = tmp_path / "other"
    profiled(save=other, adjoint=False)
    check_refusal(
        lambda: profiled(save=other),
        ValueError,
        "profile: adjoint must be as in .*, which has adjoints of 0 for its 7 trajectories, "
        "got True",
    )


# ---- refusals ----


def plain_costs(**options):
    return lambda: profiled(adjoint=False).costs(**{"objective": "trajectory", **options})


def detached(x, t):
    return halve(x.detach(), t)


def on_the_host(x, t):
    return torch.from_numpy(0.5 * x.numpy())


class Rooted(torch.autograd.Function):
    """A gradient that is NaN at one time."""

    @staticmethod
    def forward(ctx, x, t):
        ctx.bad = float(t[0]) == 199.0
        return 0.5 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (np.nan if ctx.bad else 0.5), None


@refusals(
    costs={
        "no adjoints": (
            plain_costs(weighting="adjoint"),
            ValueError,
            'costs: weighting must be "none" for a profile without adjoints, got "adjoint"; pass '
            "adjoint=True to profile",
        ),
        "name": (plain_costs(weighting="dual"), ValueError, "weighting must be .*, got 'dual'"),
        "objective": (
            plain_costs(weighting="adjoint", objective="elbo"),
            ValueError,
            "weighting must be \"none\" but for .*, got \"adjoint\" for 'elbo' with 'ddim'",
        ),
        "second order": (
            plain_costs(weighting="adjoint", method="dpm++"),
            ValueError,
            "weighting must be .*, got \"adjoint\" for 'trajectory' with 'dpm\\+\\+'",
        ),
    },
    profile={
        "kind": (lambda: profiled(adjoint=1), TypeError, "adjoint must be True or False, got 1"),
        "no trajectories": (
            lambda: profiled(trajectories=0),
            ValueError,
            "profile: trajectories must be at least 1 with adjoint=True, got 0",
        ),
    },
)
def test_refused(call, error, match):
    check_refusal(call, error, match)


@pytest.mark.parametrize("network", [detached, on_the_host])
def test_networks_without_a_gradient(network):
    with pytest.raises(ValueError, match="profile: model must be differentiable with adjoint=True"):
        profiled(network)
    profiled(network, adjoint=False)


def test_a_gradient_that_is_not_finite():
    with pytest.raises(ValueError, match="gradient must be finite, got NaN or infinity at t = 200"):
        profiled(Rooted.apply)


def test_a_file_with_half_the_adjoints(tmp_path):
    found = profiled()
    arrays = found.arrays()
    arrays["adjoint_starts"] = np.zeros(3)
    path = found.with_arrays(arrays).save(tmp_path / "profile")
    check_refusal(
        lambda: fs.Profile.load(path), ValueError, r"adjoint starts of shape \(3,\), not \(7,\)"
    )
