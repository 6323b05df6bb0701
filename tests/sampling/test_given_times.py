"""Times as users have them: whole ones, a network's timesteps, diffusers' spacings by name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)

import fastsample as fs
from fastsample import grids
from fastsample.samplers.registry import METHODS
from tests.helpers.networks import LINEAR, Spy, denoiser, halve

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
INDICES = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]


def told(steps, **options):
    """The network's timesteps in a run."""
    spy = Spy(halve)
    fs.sample(denoiser(spy, 3), steps, **options)
    return [t[0].item() for t in spy.told]


# ---- whole times


@pytest.mark.parametrize("K", [1, 10, 40, 100, 999])
@pytest.mark.parametrize("name", ["karras", "log_snr"])
def test_whole_times_are_rounded_and_repeats_dropped(name, K):
    exact = getattr(grids, name)(LINEAR, K)
    expected = sorted({max(round(t), 1) - 1 for t in exact.times[:-1].tolist()}, reverse=True)
    got = told(K, grid=name, whole=True)
    assert got == expected
    assert all(isinstance(t, int) for t in got)
    assert told(exact, whole=True) == told(exact.rounded()) == expected


def test_rounded_grids():
    assert fs.Grid([10, 2.6, 2.4, 1.2, 0.9, 0.2, 0]).rounded().times.tolist() == [10, 3, 2, 1, 0]
    whole = fs.Grid([3, 2, 0])
    assert whole.rounded() == whole


def test_whole_leaves_whole_times_alone():
    for options in ({}, {"method": "ddim"}, {"method": "fastdpm"}):
        assert told(7, whole=True, **options) == told(7, **options)


def test_rows_that_cannot_move_keep_their_levels():
    """A plan's rows, and those of a method that chooses its times."""
    plan = fs.dpm_solver(LINEAR, fs.grids.karras(LINEAR, 8))
    sampler = fs.Sampler(denoiser(halve, 3), plan, whole=True)
    assert sampler.plan == plan.with_times(np.rint(plan.times))
    options = {"method": "fastdpm", "approximation": "var", "extended": True}
    exact = fs.Sampler(denoiser(halve, 3), 8, **options).plan
    assert np.any(exact.times != np.rint(exact.times))
    assert fs.Sampler(denoiser(halve, 3), 8, whole=True, **options).plan == exact.with_times(
        np.rint(exact.times)
    )


def test_whole_plans_are_remembered_apart():
    for _ in range(2):
        assert told(6, grid="karras", whole=True) != told(6, grid="karras")


def test_whole_stops_too():
    sampler = fs.Sampler(denoiser(halve, 3), 6, grid="karras", whole=True)
    node = sampler.plan.nodes[3]
    assert sampler(stop=float(node)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"whole": 1}, TypeError, "sample: whole must be True or False, got 1"),
        (
            {"whole": True, "schedule": fs.NoiseSchedule.flow()},
            ValueError,
            "sample: whole must be False for a schedule without whole steps, got True with ",
        ),
    ],
)
def test_whole_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        fs.sample(halve, 3, shape=(3,), **options)


# ---- timesteps given as times


def test_timesteps_without_a_last_0_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"must end at 0 .*, got 24; .*to Grid\.from_indices$"):
        told(INDICES)


@pytest.mark.parametrize(
    "steps",
    [
        [*INDICES, 0],
        np.array([*INDICES, 0]),
        torch.tensor([*INDICES, 0]),
        torch.tensor([900, 800, 700, 0]),
        (999, 0),
    ],
    ids=["list", "array", "tensor", "leading", "tuple"],
)
def test_lists_that_may_be_timesteps_are_warned_of(steps):
    with pytest.warns(UserWarning, match=r"^sample: steps must be times, .*Grid\.from_indices"):
        told(steps)


@pytest.mark.parametrize(
    "steps",
    [
        [1000, 500, 0],
        torch.tensor([1000, 500, 0]),
        [900, 500, 0],
        [999.0, 500.0, 0.0],
        torch.tensor([999.0, 500.0, 0.0]),
        fs.Grid([999, 500, 0]),
    ],
    ids=str,
)
def test_times_are_not_warned_of(steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = told(steps)
    times = steps.times if isinstance(steps, fs.Grid) else steps
    assert [t + 1 for t in got] == [float(t) for t in times][:-1]


def test_bits_per_dim_warns_too():
    with pytest.warns(UserWarning, match=r"^bits_per_dim: steps must be times"):
        fs.bits_per_dim(denoiser(halve, 3), torch.ones(1, 3), [999, 500, 0])


# ---- spacings of diffusers by name

SPACINGS = ("linspace", "leading", "trailing")
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ancestral": DDPMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
FAMILIES = {"ddim": DDIMScheduler, "multistep": UniPCMultistepScheduler}


def of_diffusers(scheduler, spacing, K):
    made = scheduler(timestep_spacing=spacing)
    made.set_timesteps(K)
    indices = made.timesteps.tolist()
    return [t for i, t in enumerate(indices) if t >= 0 and t not in indices[:i]]


@pytest.mark.parametrize("K", [1, 2, 7, 10, 33, 50, 333, 998])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("method", SCHEDULERS)
def test_a_spacing_is_that_of_the_methods_own_scheduler(method, spacing, K):
    made = fs.Sampler(
        denoiser(halve, 3),
        K,
        method=method,
        grid=spacing,
        **({"order": 1} if "order" in METHODS[method].knobs else {}),
    )
    assert (made.plan.times - 1).tolist() == of_diffusers(SCHEDULERS[method], spacing, K)


@pytest.mark.parametrize("method", SCHEDULERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_can_be_forced(family, spacing, method):
    got = told(10, method=method, grid=f"{family}:{spacing}")
    assert got == of_diffusers(FAMILIES[family], spacing, 10)


def test_a_spacing_with_too_many_steps_is_refused():
    with pytest.raises(ValueError, match=r"num_steps must be below T = 1000 .*, got 1000"):
        grids.diffusers(1000, 1000, "leading", family="multistep")
    with pytest.raises(ValueError, match=r'family must be "ddim" or "multistep", got .unipc'):
        grids.diffusers(1000, 10, family="unipc")


# ---- noise for a plan without any


def test_noise_for_a_plan_that_draws_none_is_refused():
    noise = torch.ones(3, 2, 3)
    with pytest.raises(
        ValueError,
        match=r"^sample: noise must be left out with a plan whose rows draw none, got a tensor "
        r"\(3, 2, 3\); the starting noise is start=",
    ):
        fs.sample(halve, 3, shape=(3,), noise=noise)
    assert fs.sample(halve, 3, shape=(3,), noise=noise, eta=1.0).shape == (2, 3)


# ---- schedules whose signal vanishes


@pytest.mark.parametrize("method", ["auto", "ddim", "ancestral", "fastdpm", "dpm++", "shortcut"])
def test_a_schedule_whose_alpha_underflows_is_refused_when_the_plan_is_made(method):
    schedule = fs.NoiseSchedule.linear(20000)
    with pytest.raises(
        ValueError,
        match=r"^Plan: rows must fit into float32, got p = 8\.72e\+43 in "
        r"row 0; where p is 1 / alpha, the schedule leaves too little signal",
    ):
        fs.Sampler(halve, 10, shape=(3,), schedule=schedule, method=method)
    assert fs.sample(halve, [10000, 100, 0], shape=(3,), schedule=schedule).shape == (1, 3)


# ---- weights of interpolate


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_weights_of_interpolate_are_finite(weight):
    z = torch.ones(3)
    with pytest.raises(ValueError, match=f"^interpolate: weights must be finite, got {weight}$"):
        fs.interpolate(z, -z, [0.0, weight])
