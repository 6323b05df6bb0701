"""Schedules from any functions of time: levels, times, grids, samplers, refusals."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.grids.registry import GRIDS
from tests.helpers.cases import SAMPLERS
from tests.helpers.laws import assert_rows_obey_the_laws
from tests.helpers.networks import Gaussian
from tests.helpers.refusals import check_refusal, refusals

make = fs.NoiseSchedule.from_functions


def edm_alpha(t):
    return 1.0


def edm_sigma(t):
    return t


def vp_alpha(t):
    """The VP schedule of azula, with its smallest alpha and sigma of 1e-3."""
    return np.exp(math.log(1e-3) * t**2)


def vp_sigma(t):
    return np.sqrt(1.0 - vp_alpha(t) ** 2 + 1e-6)


def cosine_log_snr(t):
    return -2.0 * np.log(np.tan(0.5 * np.pi * t))


def takes_real_times(grid):
    """Whether a grid can be made for a schedule without whole steps."""
    try:
        return bool(grid(fs.NoiseSchedule.vdm(), 3))
    except ValueError:
        return False


EDM = make(alpha=edm_alpha, sigma=edm_sigma, T=80.0)
VE = make(alpha=lambda t: 1.0, sigma=lambda t: 0.002 * 40000.0**t)
AZULA = make(alpha=vp_alpha, sigma=vp_sigma)
COSINE = make(log_snr=cosine_log_snr)
SCALARS = make(alpha=lambda t: math.cos(1.5 * t), sigma=lambda t: math.sin(1.5 * t))
SCHEDULES = {"edm": EDM, "ve": VE, "azula": AZULA, "cosine": COSINE, "scalars": SCALARS}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
STEPLESS = [name for name, grid in GRIDS.items() if takes_real_times(grid)]


# ---- levels and times


@each_schedule
def test_times_are_found_again(schedule):
    # From 1e-3 T on, since nearer to 0 the rounding of 1 - alpha^2 in the functions shows.
    t = schedule.T * np.linspace(1e-3, 1.0, 301)
    np.testing.assert_allclose(
        schedule.time_at_log_snr(schedule.log_snr(t)), t, rtol=1e-9, atol=1e-9 * schedule.T
    )
    # alpha_bar near 1 has lost the digits of 1 - alpha_bar.
    later = t[t > 0.05 * schedule.T]
    found = schedule.time_at(schedule.alpha_bar(later))
    np.testing.assert_allclose(found, later, rtol=1e-9, atol=1e-9 * schedule.T)
    assert schedule.time_at_log_snr(np.inf) == 0.0
    assert schedule.time_at(1.0) == 0.0


@each_schedule
def test_time_zero_is_clean_data(schedule):
    assert schedule.levels(0.0) == (1.0, 0.0)
    assert schedule.levels(0) == (1.0, 0.0)
    alpha, sigma = schedule.levels([0.0, schedule.T])
    assert (alpha[0], sigma[0]) == (1.0, 0.0)
    assert schedule.alpha_bar(0.0) == 1.0
    assert schedule.log_snr(0.0) == np.inf
    assert schedule.num_steps is None


def test_levels_are_those_of_the_functions():
    t = np.linspace(0.01, 1.0, 50)
    for got, expected in zip(AZULA.levels(t), (vp_alpha(t), vp_sigma(t)), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert EDM.T == 80.0
    assert EDM.sigma(40.0) == 40.0
    assert EDM.alpha(40.0) == 1.0
    np.testing.assert_allclose(EDM.alpha_bar([1.0, 80.0]), [0.5, 1.0 / 6401.0], rtol=1e-14)
    np.testing.assert_allclose(EDM.log_snr([1.0, 80.0]), [0.0, -2 * math.log(80)], atol=1e-14)
    # With a log SNR alone the process is variance preserving.
    alpha, sigma = COSINE.levels(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-14)
    np.testing.assert_allclose(alpha, np.cos(0.5 * np.pi * t), rtol=1e-12, atol=1e-15)


def test_the_same_schedule_by_three_ways():
    flow = fs.NoiseSchedule.flow()
    by_hand = make(alpha=lambda t: 1.0 - t, sigma=lambda t: t)
    t = np.linspace(0.0, 1.0, 101)
    for got, expected in zip(by_hand.levels(t), flow.levels(t), strict=True):
        np.testing.assert_array_equal(got, expected)
    vdm = fs.NoiseSchedule.vdm()
    by_hand = make(log_snr=lambda t: 13.3 - 18.3 * t)
    for got, expected in zip(by_hand.levels(t), vdm.levels(t), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


# ---- every grid and sampler


@each_schedule
@pytest.mark.parametrize("grid", STEPLESS)
def test_every_grid(schedule, grid):
    made = GRIDS[grid](schedule, 7)
    assert len(made) == 7
    assert made.times[0] == schedule.T


@each_schedule
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(schedule, sampler):
    plan = SAMPLERS[sampler](schedule, GRIDS["log_snr"](schedule, 6), "v")
    assert_rows_obey_the_laws(plan)
    assert plan.schedule is schedule


@each_schedule
def test_samples_have_the_distribution_of_the_data(schedule):
    model = Gaussian(schedule, 0.3, 0.5, "v").denoiser(4)
    x = fs.sample(model, 60, num_samples=4000, seed=0, dtype=torch.float64, grid="log_snr")
    # 16000 numbers: mean to 0.5 / sqrt(16000) = 0.004, deviation to 0.003, four of each; the start
    # has the deviation of data of variance 1.
    assert float(x.mean()) == pytest.approx(0.3, abs=0.016)
    assert float(x.std()) == pytest.approx(0.5, abs=0.02)


def test_the_start_has_the_noise_of_the_first_node():
    model = Gaussian(EDM, 0.0, 1.0).denoiser(3)
    states = fs.sample(model, 4, num_samples=2, seed=5, return_states=True)
    half = fs.sample(model, [20.0, 1.0, 0.0], num_samples=2, seed=5, return_states=True)
    unit = fs.sample(
        Gaussian(COSINE, 0.0, 1.0, "v").denoiser(3), 4, num_samples=2, seed=5, return_states=True
    )
    torch.testing.assert_close(states[0], unit[0] * math.sqrt(6401.0))
    torch.testing.assert_close(half[0], unit[0] * math.sqrt(401.0))
    parts = fs.sample(model, 4, num_samples=2, seed=5, batch_size=1)
    assert torch.equal(parts, states[-1])
    assert COSINE.start_scale(1.0) == fs.NoiseSchedule.flow().start_scale(0.9) == 1.0


def test_diffusing_and_inverting():
    model = Gaussian(EDM, 0.3, 0.5).denoiser(4)
    x0 = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)
    noise = torch.ones_like(x0)
    torch.testing.assert_close(fs.diffuse(x0, EDM, 12.5, noise=noise), x0 + 12.5)
    z = fs.invert(model, x0, 12, grid="log_snr", tolerance=1e-8)
    assert (fs.sample(model, 12, grid="log_snr", start=z) - x0).abs().max() <= 1e-8


# ---- as an object


def test_equality_hash_and_text():
    same = make(alpha=edm_alpha, sigma=edm_sigma, T=80.0)
    assert same == EDM
    assert hash(same) == hash(EDM)
    assert same != make(alpha=edm_alpha, sigma=edm_sigma, T=40.0)
    assert same != make(alpha=edm_alpha, sigma=lambda t: t, T=80.0)
    assert repr(EDM) == "NoiseSchedule.from_functions(alpha=edm_alpha, sigma=edm_sigma, T=80.0)"
    assert repr(COSINE) == "NoiseSchedule.from_functions(log_snr=cosine_log_snr, T=1.0)"


def test_pickles_if_the_functions_do():
    assert pickle.loads(pickle.dumps(EDM)) == EDM
    plan = fs.ddim(EDM, fs.grids.karras(EDM, 5))
    assert pickle.loads(pickle.dumps(plan)) == plan
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(VE)


def test_a_plan_is_saved_without_the_schedule():
    plan = fs.ddim(EDM, fs.grids.karras(EDM, 5))
    bare = replace(plan, schedule=None)
    read = fs.Plan.from_json(bare.to_json())
    assert read == bare
    model = Gaussian(EDM, 0.3, 0.5).denoiser(4)
    assert torch.equal(fs.sample(model, read, seed=0), fs.sample(model, plan, seed=0))


def test_a_network_needs_a_time_of_its_own():
    with pytest.raises(ValueError, match=r"^Denoiser: time must not be 'index' for NoiseSchedule"):
        fs.Denoiser(edm_alpha, EDM, (2,))


@pytest.mark.parametrize(
    "schedule",
    [
        COSINE,
        make(alpha=lambda t: np.cos(0.5 * np.pi * t), sigma=lambda t: np.sin(0.5 * np.pi * t)),
    ],
)
def test_rounding_errors_of_no_signal_are_none(schedule):
    assert np.cos(0.5 * np.pi) > 0.0
    assert schedule.alpha(1.0) == 0.0
    assert schedule.log_snr(1.0) == -np.inf
    assert schedule.time_at(0.0) == 1.0


# ---- what is refused

PREFIX = r"^NoiseSchedule\.from_functions: "
FUNCTIONS = {
    "none": (lambda: make(), ValueError, PREFIX + "functions must be alpha and sigma, or log_snr"),
    "alpha alone": (lambda: make(alpha=edm_alpha), ValueError, r"alone, got \['alpha'\]$"),
    "all": (
        lambda: make(alpha=edm_alpha, sigma=edm_sigma, log_snr=cosine_log_snr),
        ValueError,
        r"got \['alpha', 'sigma', 'log_snr'\]$",
    ),
    "a number": (
        lambda: make(alpha=1.0, sigma=edm_sigma),
        TypeError,
        PREFIX + r"alpha must be callable, got 1\.0$",
    ),
    "T": (
        lambda: make(alpha=edm_alpha, sigma=edm_sigma, T=0),
        ValueError,
        PREFIX + "T must be positive, got 0$",
    ),
    "T of text": (
        lambda: make(alpha=edm_alpha, sigma=edm_sigma, T="1"),
        TypeError,
        PREFIX + "T must be a real number, got '1'$",
    ),
    "reversed time": (
        lambda: make(alpha=lambda t: t, sigma=lambda t: 1.0 - t),
        ValueError,
        PREFIX + r"alpha must be 1 at t = 0, which is clean data \(T is noise\), got 1e-06 at",
    ),
    "noise at 0": (
        lambda: make(alpha=edm_alpha, sigma=lambda t: 1.0 + t),
        ValueError,
        PREFIX + "sigma must be 0 or small at t = 0, which is clean data",
    ),
    "noise at 0, log SNR": (
        lambda: make(log_snr=lambda t: -t),
        ValueError,
        PREFIX + "log_snr must be infinite or large at t = 0",
    ),
    "not falling": (
        lambda: make(alpha=edm_alpha, sigma=lambda t: np.minimum(t, 0.5)),
        ValueError,
        PREFIX + r"alpha / sigma must fall everywhere from t = 0 \(data\) to T \(noise\), got 2 at",
    ),
    "constant": (
        lambda: make(log_snr=lambda t: 9.0),
        ValueError,
        PREFIX + "log_snr must fall everywhere",
    ),
    "negative": (
        lambda: make(alpha=lambda t: 1.0 - 2.0 * t, sigma=edm_sigma),
        ValueError,
        PREFIX + "alpha must be positive below T, got 0 at t = 0.5$",
    ),
    "infinite": (
        lambda: make(alpha=edm_alpha, sigma=lambda t: t / (1.0 - t)),
        ValueError,
        PREFIX + "sigma must be finite, got inf at t = 1$",
    ),
    "NaN": (
        lambda: make(log_snr=lambda t: np.where(t > 0.5, np.nan, 9.0 - t)),
        ValueError,
        PREFIX + "log_snr must be finite below T, got nan at t = 0.50",
    ),
    "float32": (
        lambda: make(alpha=edm_alpha, sigma=lambda t: np.asarray(t, np.float32)),
        TypeError,
        PREFIX + "sigma must give float64 values, got float32; compute in double precision$",
    ),
    "float32 of torch": (
        lambda: make(log_snr=lambda t: torch.logit(1.0 - torch.as_tensor(t).float())),
        TypeError,
        PREFIX + "log_snr must give float64 values, got float32",
    ),
    "shape": (
        lambda: make(alpha=edm_alpha, sigma=lambda t: np.stack([t, t])),
        ValueError,
        PREFIX + r"sigma must give one value per time \(1027,\), got shape \(2, 1027\)$",
    ),
}
SAVED = {
    "schedule": (
        EDM.to_dict,
        TypeError,
        r"^NoiseSchedule\.to_dict: schedule must not be made of functions, which no file can hold,",
    ),
    "plan": (
        fs.ddim(EDM, fs.grids.karras(EDM, 3)).to_json,
        TypeError,
        r"save a plan without it: dataclasses\.replace\(plan, schedule=None\)$",
    ),
    "time": (
        lambda: EDM.sigma(81.0),
        ValueError,
        r"^sigma: t must be in \[0, 80\], got 81",
    ),
}


@refusals(functions=FUNCTIONS, saved=SAVED)
def test_refused(call, error, match):
    check_refusal(call, error, match)
