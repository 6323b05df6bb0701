"""Grids of whole times hold K different ones from T to 0, however few times there are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from tests.helpers.networks import denoiser, model_a

SHARES, EXPONENTS = (0.0, 0.5, 1.0), (1.0, 1.25, 16.0)
BUDGETS = {
    1000: (1, 2, 3, 10, 168, 211, 228, 250, 500, 704, 999, 1000),
    100: range(1, 101),
    20: range(1, 21),
}
"""Numbers of steps by T. A run of raised times once led beyond T at some of them."""


def schedules(T):
    """Schedules whose noise rises fast near the data, fast near the noise, and evenly."""
    s = np.arange(1, T + 1) / T
    levels = {
        "sigmoid": 1.0 / (1.0 + np.exp(12.0 * (s - 0.5))),
        "sqrt": 1.0 - np.sqrt(0.999 * s),
        "linear": 1.0 - 0.999 * s,
    }
    found = {name: fs.NoiseSchedule.from_alpha_bar(values) for name, values in levels.items()}
    return {**found, "cosine": fs.NoiseSchedule.cosine(T)}


def check(grid, T, K):
    times = grid.times
    assert len(times) == K + 1
    assert (times[0], times[-1]) == (T, 0.0)
    assert np.all(times == np.round(times))
    assert np.all(np.diff(times) <= -1.0)


@pytest.mark.parametrize("T", BUDGETS)
@pytest.mark.parametrize("name", schedules(20))
def test_blended_times(name, T):
    schedule = schedules(T)[name]
    for K in BUDGETS[T]:
        for share in SHARES:
            for exponent in EXPONENTS:
                check(grids.blended(schedule, K, exponent, share), T, K)


@pytest.mark.parametrize("T", BUDGETS)
def test_powers_of_times(T):
    for K in BUDGETS[T]:
        check(grids.quadratic(T, K), T, K)
        for exponent in EXPONENTS:
            check(grids.power(T, K, exponent), T, K)


def test_as_many_steps_as_times_are_all_times():
    every = list(range(100, -1, -1))
    for schedule in schedules(100).values():
        for share in SHARES:
            assert grids.blended(schedule, 100, 16.0, share).times.tolist() == every
    assert grids.power(100, 100, 16.0).times.tolist() == every
    assert grids.quadratic(100, 100).times.tolist() == every


def test_times_are_moved_apart_by_no_more_than_needed():
    """8 (k / 6)^4 rounds to 0 0 0 1 2 4 8: the repeats are raised, and nothing else is moved."""
    assert grids.power(8, 6, 4.0).times.tolist() == [8, 5, 4, 3, 2, 1, 0]
    assert grids.power(64, 4, 4.0).times.tolist() == [64, 20, 4, 1, 0]


@pytest.mark.parametrize("name", schedules(20))
def test_the_default_samples_in_250_steps(name):
    """The exact model of data from N(0, I) keeps every sample where it starts.

    A step of DDIM over an angle h of atan2(sigma, alpha) shrinks it by cos h, in all by at most
    half the sum of h^2. The default is of higher order, and does not shrink it more.
    """
    schedule = schedules(1000)[name]
    model = denoiser(model_a(schedule), 8, schedule=schedule)
    start = torch.randn(4, 8, dtype=torch.float64)
    got = fs.sample(model, 250, start=start)
    alphas, sigmas = schedule.levels(fs.Sampler(model, 250).plan.nodes)
    angles = np.diff(np.arctan2(sigmas, alphas))
    bound = float(np.square(angles).sum()) / 2.0
    assert bound < math.pi**2 / 8.0
    assert ((got - start).abs() <= bound * start.abs()).all()


@pytest.mark.parametrize("exponent", [16.5, 17, 1e9])
def test_an_exponent_above_16_is_refused(exponent):
    schedule = schedules(20)["cosine"]
    message = rf"exponent must be in \[1, 16\], got {exponent:g}$".replace("+", r"\+")
    with pytest.raises(ValueError, match="^grids.power: " + message):
        grids.power(20, 5, exponent)
    with pytest.raises(ValueError, match="^grids.blended: " + message):
        grids.blended(schedule, 5, exponent)
