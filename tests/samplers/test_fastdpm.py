"""FastDPM: the rows are the authors' loop on any schedule; what it refuses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fastsample import grids
from fastsample.samplers.ancestral import ancestral
from fastsample.samplers.ddim import ddim
from fastsample.samplers.fastdpm import fastdpm, steps_grid, var_betas
from fastsample.schedules.schedule import NoiseSchedule
from tests.helpers import oracles
from tests.helpers.cases import SCHEDULES, STEP_SAMPLERS
from tests.helpers.laws import assert_rows_obey_the_laws
from tests.helpers.refusals import check_refusal, refusals

LINEAR = NoiseSchedule.linear()
ZERO_SNR, FALLING = SCHEDULES["linear, zero SNR"], SCHEDULES["linear, falling"]
WHOLE = [name for name, schedule in SCHEDULES.items() if schedule.num_steps]

spacings = pytest.mark.parametrize("spacing", ["linear", "quadratic"])


def chains(approximation: str, schedule: NoiseSchedule, steps=(2, 3, 7, 19, 20)):
    """Numbers of steps that a schedule allows: growing variances cannot end anywhere."""
    for S in steps:
        if approximation == "var":
            target = float(schedule.alpha_bar(schedule.T))
            if not 0 < target < float(schedule.alpha_bar(1.0)) ** S:
                continue
        yield S


@pytest.mark.parametrize("name", WHOLE)
@spacings
@pytest.mark.parametrize("approximation", ["steps", "var"])
def test_rows_are_the_authors_steps(name, spacing, approximation):
    schedule = SCHEDULES[name]
    for S in chains(approximation, schedule):
        for kappa, extended in ((0.0, True), (0.5, False), (1.0, True)):
            knobs = {"approximation": approximation, "spacing": spacing, "extended": extended}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "fastdpm: num_steps should reach")
                plan = fastdpm(schedule, S, kappa=kappa, prediction="x0", **knobs)
            if plan.alphas[0] == 0:
                continue  # the authors' epsilon says nothing there
            levels = plan.alphas[-2::-1] ** 2
            if approximation == "var":  # the levels as products, not through the times
                products = np.cumprod(1 - var_betas(schedule, S, spacing, extended=extended))
                # A last variance near 1 rounds: 1e-16 of it is 1e-8 of what is left.
                np.testing.assert_allclose(products[-1], levels[-1], rtol=1e-7)
                levels[:-1] = products[:-1]

            def loop(x, denoise, noise, plan=plan, kappa=kappa, levels=levels):
                rows = dict(zip(plan.times.tolist(), range(len(plan)), strict=True))

                def model(x, t):
                    i = rows[t]
                    return (x - plan.alphas[i] * denoise(x, i)) / plan.sigmas[i]

                told = plan.times[::-1].tolist()
                return oracles.fastdpm_sampling(x, levels, told, model, kappa, noise)

            oracles.assert_plan_is(plan, loop)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("sampler", STEP_SAMPLERS)
def test_row_law(sampler, name, prediction):
    schedule, count = SCHEDULES[name], 0
    for S in chains(sampler.split()[1].strip(","), schedule, (5, schedule.num_steps)):
        if prediction == "epsilon" and schedule.alpha(schedule.T) == 0:
            continue
        plan = STEP_SAMPLERS[sampler](schedule, S, prediction)
        assert_rows_obey_the_laws(plan)
        assert plan.schedule == schedule
        assert len(plan) <= S
        count += 1
    reachable = float(schedule.alpha_bar(schedule.T)) > 0
    assert count or not reachable


def test_kappa_runs_from_ddim_to_ddpm():
    grid = steps_grid(LINEAR, 12)
    for kappa, other in ((0.0, ddim(LINEAR, grid)), (1.0, ancestral(LINEAR, grid))):
        plan = fastdpm(LINEAR, 12, kappa=kappa)
        np.testing.assert_allclose(plan.rows, other.rows, rtol=1e-12, atol=1e-14)
    half = fastdpm(LINEAR, 12, kappa=0.5)
    np.testing.assert_allclose(half.column("d"), plan.column("d") / 2, rtol=1e-14)


def test_names():
    for knobs, method in (
        ({}, "fastdpm(steps, linear, kappa=0.0)"),
        ({"spacing": "quadratic", "kappa": 1}, "fastdpm(steps, quadratic, kappa=1.0)"),
        (
            {"approximation": "var", "extended": True},
            "fastdpm(var, linear, kappa=0.0, extended=True)",
        ),
    ):
        assert fastdpm(LINEAR, 30, **knobs).method == method


def refuse(schedule=LINEAR, num_steps=10, **knobs):
    """One call with one bad argument."""
    return lambda: fastdpm(schedule, num_steps, **knobs)


VAR = {"approximation": "var"}
KAPPA, STEPS = r"^fastdpm: kappa must be in \[0, 1\], got ", r"^fastdpm: num_steps must be "
BAD = {
    "kappa > 1": (refuse(kappa=1.01), ValueError, KAPPA + "1.01$"),
    "kappa < 0": (refuse(kappa=-0.1), ValueError, KAPPA + "-0.1$"),
    "kappa NaN": (refuse(kappa=np.nan), ValueError, KAPPA + "nan$"),
    "kappa text": (refuse(kappa="1"), TypeError, "fastdpm: kappa must be a real number, got '1'"),
    "1 step": (refuse(num_steps=1), ValueError, STEPS + r"in \[2, 1000\], got 1$"),
    "1 variance": (refuse(num_steps=1, **VAR), ValueError, STEPS + r"in \[2, 1000\], got 1$"),
    "> T": (refuse(num_steps=1001), ValueError, STEPS + r"in \[2, 1000\], got 1001$"),
    "float": (refuse(num_steps=10.0), TypeError, STEPS + r"an integer, got 10\.0"),
    "NaN": (refuse(num_steps=np.nan), TypeError, STEPS + "an integer, got nan"),
    "a grid": (refuse(num_steps=grids.uniform(9, 3)), TypeError, STEPS + r"an integer, got Grid"),
    "continuous": (
        refuse(NoiseSchedule.vdm()),
        ValueError,
        r"^fastdpm: schedule must have whole steps, got NoiseSchedule\.vdm\(.*\); "
        'take method="ddim" on real times instead$',
    ),
    "schedule": (refuse("linear"), TypeError, "^fastdpm: schedule must be a NoiseSchedule, got 'l"),
    "approximation": (
        refuse(approximation="VAR"),
        ValueError,
        """^fastdpm: approximation must be "steps" or "var", got 'VAR'$""",
    ),
    "spacing": (
        refuse(spacing="quad"),
        ValueError,
        """^fastdpm: spacing must be "linear" or "quadratic", got 'quad'$""",
    ),
    "spacing of variances": (refuse(spacing=None, **VAR), ValueError, "spacing must be .*got None"),
    "no signal to reach": (
        refuse(ZERO_SNR, **VAR),
        ValueError,
        r"^fastdpm: schedule must keep some signal at T for the variances to reach, "
        r"got alpha_bar\(T\) = 0$",
    ),
    "betas that fall": (
        refuse(FALLING, 60, **VAR),
        ValueError,
        r"^fastdpm: num_steps must be smaller for growing variances to end at alpha_bar\(T\) = "
        r"0\.0822, got 60, where already equal ones of beta_1 end at 0\.00672$",
    ),
    "no signal": (
        refuse(ZERO_SNR, extended=True),
        ValueError,
        r"prediction must determine x0 at every level, got 'epsilon' where alpha = 0 \(row 0\)",
    ),
    "prediction": (refuse(prediction="eps"), ValueError, "prediction must be one of .*'eps'"),
    "clip": (refuse(clip=0), ValueError, "clip must be positive, got 0"),
}


@refusals(fastdpm=BAD)
def test_refused(call, error, match):
    check_refusal(call, error, match)
