"""Grids of variance-exploding schedules, and eq. (5) of Karras et al. wherever it is used."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import fastsample as fs
from fastsample import grids
from fastsample.grids.registry import auto_name
from fastsample.grids.sigmas import karras_sigmas
from fastsample.integrations import edm, k_diffusion, lucidrains
from tests.helpers.cases import SCHEDULES
from tests.helpers.refusals import check_refusal, refusals


def functions(sigma, T):
    return fs.NoiseSchedule.from_functions(alpha=lambda t: 1.0, sigma=sigma, T=T)


EDM = fs.NoiseSchedule.exploding(80.0)
SAME = {
    "exploding": EDM,
    "functions": functions(lambda t: t, 80.0),
    "geometric": functions(lambda t: 0.001 * 8e4**t, 1.0),
    "squared": functions(lambda t: t**2, 80.0**0.5),
}


def eq5(steps, low, high, rho=7.0):
    i = np.arange(steps)
    return (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("steps", [2, 10, 50])
def test_lists_end_at_a_clean_level_whatever_the_time_is(name, steps):
    schedule = SAME[name]
    even, karras = grids.log_snr(schedule, steps), grids.karras(schedule, steps)
    want = np.geomspace(80.0, 0.02, steps)
    np.testing.assert_allclose(schedule.sigma(even.times[:-1]), want, rtol=1e-9)
    want = eq5(steps, 0.02, 80.0)
    np.testing.assert_allclose(schedule.sigma(karras.times[:-1]), want, rtol=1e-9)
    assert even.times[0] == karras.times[0] == schedule.T
    assert grids.log_snr(schedule, 1) == grids.karras(schedule, 1) == fs.Grid([schedule.T, 0.0])


def test_lists_end_where_a_noisier_schedule_does():
    schedule = functions(lambda t: 0.04 * 2000.0**t, 1.0)
    for make in (grids.log_snr, grids.karras):
        grid = make(schedule, 6)
        assert schedule.sigma(grid.times[-2]) == pytest.approx(0.04, rel=1e-6)
        assert len(grid) == 6


def test_only_exploding_schedules_have_another_default():
    for schedule in (*SCHEDULES.values(), fs.NoiseSchedule.exploding(1.5)):
        assert auto_name(schedule, "uniform") == "uniform"
        assert auto_name(schedule, "blended") == "blended"
    for schedule in (*SAME.values(), fs.NoiseSchedule.exploding(14.6)):
        assert auto_name(schedule, "uniform") == auto_name(schedule, "blended") == "log_snr"
    narrow = fs.NoiseSchedule.exploding(1.5)  # whose lists end at T / 1000, as any others
    assert grids.log_snr(narrow, 4).times[-2] == pytest.approx(0.0015, rel=1e-12)


def test_every_user_of_equation_5_gets_its_numbers():
    want = eq5(9, 0.03, 50.0, 5.0)
    elucidated = SimpleNamespace(sigma_min=0.03, sigma_max=50.0, rho=5.0, num_sample_steps=9)
    net = SimpleNamespace(sigma_min=0.03, sigma_max=50.0)
    for levels in (
        karras_sigmas("f", 9, sigma_min=0.03, sigma_max=50.0, rho=5.0),
        k_diffusion.karras(9, sigma_min=0.03, sigma_max=50.0, rho=5.0).times[:-1],
        edm.grid(net, 9, rho=5.0).times[:-1],
        lucidrains.grid(elucidated).times[:-1],
    ):
        np.testing.assert_allclose(levels, want, rtol=1e-13)
        assert levels[0] == 50.0


@refusals(
    karras={
        name: (
            lambda values=values: karras_sigmas("f", values[0], sigma_min=values[1], **values[2]),
            error,
            f"^f: {message}",
        )
        for name, (values, error, message) in {
            "steps": ((0, 0.1, {"sigma_max": 1.0, "rho": 7.0}), ValueError, "steps must be at"),
            "real": ((2.5, 0.1, {"sigma_max": 1.0, "rho": 7.0}), TypeError, "steps must be an int"),
            "rho": ((3, 0.1, {"sigma_max": 1.0, "rho": 0.0}), ValueError, "rho must be positive"),
            "low": ((3, 0.0, {"sigma_max": 1.0, "rho": 7.0}), ValueError, "sigma_min must be pos"),
            "high": ((3, 2.0, {"sigma_max": 1.0, "rho": 7.0}), ValueError, "sigma_max must be ab"),
        }.items()
    }
)
def test_bad_input_gets_one_line(call, error, match):
    check_refusal(call, error, match)
