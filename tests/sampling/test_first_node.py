"""Runs from noise at times that are not noisy: one warning each, and none for sensible lists."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.grids.registry import GRIDS
from fastsample.integrations import openai
from tests.helpers.networks import denoiser, halve

SD = fs.NoiseSchedule.scaled_linear()
LONG = fs.NoiseSchedule.linear(4000, 2.5e-5, 0.005)
FLOW = fs.NoiseSchedule.flow()
EDM = fs.NoiseSchedule.from_functions(alpha=lambda t: 1.0, sigma=lambda t: t, T=80.0)
ALL = {
    "linear": fs.NoiseSchedule.linear(),
    "cosine": fs.NoiseSchedule.cosine(),
    "scaled linear": SD,
    "vdm": fs.NoiseSchedule.vdm(),
    "flow": FLOW,
    "edm": EDM,
}


def model(schedule):
    kind = "flow" if schedule.kind == "flow" else "epsilon"
    time = "index" if schedule.num_steps else "fraction"
    return denoiser(halve, 2, schedule=schedule, prediction=kind, time=time)


def warned(run):
    """The messages of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in caught]


WRONG = {
    "flow times": (SD, fs.grids.flow(4), "got t = 1 of T = 1000, where alpha = 1 and sigma = 0.0"),
    "sigmas as times": (SD, fs.Grid([14.6, 3.0, 0.5, 0.03, 0.0]), "got t = 14.6 of T = 1000, wh"),
    "respaced for T = 1000": (LONG, openai.grid("ddim25"), "got t = 961 of T = 4000, where alpha"),
    "part of flow": (FLOW, fs.Grid([0.5, 0.2, 0.0]), "got t = 0.5 of T = 1, where alpha = 0.5"),
    "one step of DDIM's list": (SD, fs.grids.ddim(1000, 1), "got t = 1 of T = 1000, where alpha"),
}


@pytest.mark.parametrize("case", WRONG)
def test_times_at_which_samples_are_data_are_told_once_per_plan(case):
    schedule, grid, message = WRONG[case]
    sampler = fs.Sampler(model(schedule), grid)
    [told] = warned(lambda: [sampler(2), sampler(3), sampler(2, stop=float(grid.times[-2]) / 2)])
    assert told.startswith("Sampler: steps should begin near pure noise where no start= is passed")
    assert message in told
    assert told.endswith(
        "; times fall from T to 0 (fs.grids.from_sigmas turns sigmas into times), and start= takes "
        "samples of another level"
    )
    start = torch.zeros(2, 2)
    assert not warned(lambda: fs.Sampler(model(schedule), grid)(start=start))
    assert not warned(lambda: fs.sample(model(schedule), grid, start=start))
    [told] = warned(lambda: fs.sample(model(schedule), grid, num_samples=2))
    assert told.startswith("sample: steps should begin")


def test_other_functions_that_draw_the_noise():
    grid = fs.grids.flow(4)
    sampler = fs.Sampler(model(SD), grid, method="ddim")
    [told] = warned(lambda: [sampler.start(2, seed=0), sampler.start(2, seed=1)])
    assert told.startswith("start: steps should begin near pure noise")
    good = fs.Sampler(sampler.denoiser, 4)
    stack = fs.SamplerStack([good, sampler])
    assert not warned(lambda: stack.start(2, seed=0))
    assert len(warned(lambda: stack.start(2, seed=0, sampler=[0, 1]))) == 1

    known, mask = torch.zeros(1, 2), torch.tensor([1, 0])
    [told] = warned(lambda: fs.inpaint(model(SD), known, mask, grid))
    assert told.startswith("inpaint: steps should begin near pure noise")
    assert not warned(lambda: fs.inpaint(model(SD), known, mask, grid, start=known))


@pytest.mark.parametrize("K", [2, 5, 20])
@pytest.mark.parametrize("name", ALL)
def test_named_grids_are_fine(name, K):
    schedule = ALL[name]
    for grid in GRIDS if schedule.num_steps else ("uniform", "log_snr", "karras", "power"):
        told = warned(lambda g=grid: fs.sample(model(schedule), K, grid=g))
        # Two times of these lists start at 501, where alpha is 0.70 (cosine) and 0.53.
        at_half = (
            K == 2 and grid in ("ddim:leading", "ddim") and name in ("cosine", "scaled linear")
        )
        assert len(told) == at_half, grid


def test_lists_that_start_below_T_on_purpose_are_fine():
    for first in (800, 901):
        for name in ("linear", "cosine", "scaled linear"):
            assert not warned(lambda n=name, t=first: fs.sample(model(ALL[n]), [t, 300, 0]))
    six = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.5)  # DiffWave's end at alpha = 0.61
    for schedule in (
        fs.NoiseSchedule.linear(50, 1e-4, 0.05),
        fs.NoiseSchedule.linear(200, 1e-4, 0.02),
    ):
        assert not warned(lambda s=schedule: fs.sample(model(s), variances=six))


def test_schedules_that_are_never_noisy_are_fine():
    for last in (0.01, 0.02):
        mild = fs.NoiseSchedule.linear(20, 1e-3, last)
        assert float(mild.alpha(20)) > 0.8
        for first in (20, 5):
            assert not warned(lambda s=mild, t=first: fs.sample(model(s), [t, 2, 0]))


def test_the_rule_is_the_share_of_signal():
    """On flow the share is (1 - t) / sqrt((1 - t)^2 + t^2), which is 1/2 at t = 0.634."""
    edge = 1.0 / (1.0 + 1.0 / np.sqrt(3.0))
    assert not warned(lambda: fs.sample(model(FLOW), [edge + 1e-6, 0.1, 0]))
    assert warned(lambda: fs.sample(model(FLOW), [edge - 1e-6, 0.1, 0]))
    # EDM's x is data plus noise of deviation t, a share of 1 / sqrt(1 + t^2).
    edge = np.sqrt(3.0)
    assert not warned(lambda: fs.sample(model(EDM), [edge + 1e-6, 0.1, 0]))
    assert warned(lambda: fs.sample(model(EDM), [edge - 1e-6, 0.1, 0]))


@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_a_compiled_caller_draws_the_same_noise():
    """The first node is looked at while planning, which torch.compile does not trace."""
    toy = fs.Denoiser(lambda x, t: 0.5 * x, fs.NoiseSchedule.linear(), (2,))

    def run():
        return fs.sample(toy, 3, seed=0, num_samples=2)

    compiled = torch.compile(run, backend="eager")
    assert torch.equal(compiled(), run())
