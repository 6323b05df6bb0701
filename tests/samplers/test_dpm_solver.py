"""DPM-Solver++: its rows are the published loop's, at every level and order; what it refuses."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fastsample import grids
from fastsample.grids.grid import Grid
from fastsample.plans.rows import COLUMNS
from fastsample.samplers.ancestral import ancestral
from fastsample.samplers.ddim import ddim
from fastsample.samplers.dpm_solver import dpm_solver
from fastsample.samplers.exponential import phi
from fastsample.samplers.unipc import unipc
from fastsample.schedules.schedule import NoiseSchedule
from tests.helpers import oracles
from tests.helpers.cases import SCHEDULES, turns
from tests.helpers.refusals import check_refusal, refusals

LINEAR, FLOW, TEN = NoiseSchedule.linear(), NoiseSchedule.flow(), grids.uniform(1000, 10)

VARIANTS = {
    "1": {"order": 1},
    "2": {"order": 2},
    "3": {"order": 3},
    "3, high to the end": {"order": 3, "lower_order_final": False},
    "SDE 1": {"order": 1, "stochastic": True},
    "SDE 2": {"order": 2, "stochastic": True},
}
variants = pytest.mark.parametrize("variant", VARIANTS)
schedules = pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear", "vdm", "flow"])


@schedules
@variants
def test_rows_are_the_published_steps(name, variant):
    schedule = SCHEDULES[name]
    for grid, prediction, clip in turns(schedule):
        knobs = {**VARIANTS[variant], "order": min(VARIANTS[variant]["order"], len(grid))}
        plan = dpm_solver(schedule, grid, clip=clip, prediction=prediction, **knobs)

        def loop(x, denoise, noise, plan=plan, knobs=knobs):
            return oracles.dpm_solver(
                x,
                plan.alphas,
                plan.sigmas,
                denoise,
                knobs["order"],
                noise if knobs.get("stochastic") else None,
                knobs.get("lower_order_final", True),
            )

        oracles.assert_plan_is(plan, loop, clip)


@schedules
@pytest.mark.parametrize("K", [1, 2, 12, 40])
def test_first_order_is_ddim_and_ancestral(name, K):
    schedule = SCHEDULES[name]
    for make in (grids.log_snr, grids.karras):
        grid = make(schedule, K)
        one = dpm_solver(schedule, grid, order=1, prediction="v")
        noisy = dpm_solver(schedule, grid, order=1, stochastic=True, prediction="v")
        for plan, other in (
            (one, ddim(schedule, grid, prediction="v")),
            (noisy, ancestral(schedule, grid, prediction="v")),
        ):
            np.testing.assert_allclose(plan.rows, other.rows, rtol=1e-12, atol=1e-14)
            assert plan.check == "all"


def history(K, **knobs):
    """Earlier x0's that each row looks at."""
    plan = dpm_solver(LINEAR, grids.uniform(1000, K), **knobs)
    return np.where(plan.column("c2") != 0, 2, (plan.column("c1") != 0).astype(int)).tolist()


def test_orders_at_both_ends():
    assert history(1, order=1) == [0]
    assert history(2) == [0, 0]
    assert history(3, order=3) == [0, 1, 0]
    assert history(5) == history(5, lower_order_final=False) == [0, 1, 1, 1, 0]
    assert history(6, order=3) == [0, 1, 2, 2, 1, 0]
    assert history(6, order=3, lower_order_final=False) == [0, 1, 2, 2, 2, 0]
    # Fifteen rows are enough for the authors to stay at the third order.
    assert history(14, order=3) == [0, 1, *[2] * 10, 1, 0]
    assert history(15, order=3) == history(15, order=3, lower_order_final=False)
    assert history(15, order=3) == [0, 1, *[2] * 12, 0]
    assert history(4, stochastic=True) == [0, 1, 1, 0]


@variants
@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_a_start_without_signal_is_a_limit(variant, prediction):
    """At alpha(T) = 0 the first step is infinite; its share in the next falls off as 1 / h."""
    levels = np.linspace(0.99, 0.0, 30)
    grid = Grid([30, 25, 19, 14, 12, 8, 5, 2, 1, 0])

    def states(lowest):
        schedule = NoiseSchedule.from_alpha_bar([*levels[:-1], lowest])
        plan = dpm_solver(schedule, grid, prediction=prediction, **VARIANTS[variant])
        assert np.all(np.isfinite(plan.rows[:, COLUMNS.index("w") :]))
        noise = oracles.noise_formula(len(grid))
        return oracles.states(plan, lambda x, t: np.tanh(x) * (0.3 + t / 30), oracles.X_T, noise)

    limit = states(0.0)
    far, near, nearer = (
        float(np.abs(states(lowest) - limit).max()) for lowest in (1e-74, 1e-148, 1e-296)
    )
    assert nearer < 5e-3
    assert nearer < max(0.55 * near, 1e-13)
    assert near < max(0.55 * far, 1e-13)
    assert (far > 1e-6) == (VARIANTS[variant]["order"] > 1)


def test_without_signal_the_second_row_is_first_order():
    schedule = SCHEDULES["linear, zero SNR"]
    for stochastic in (False, True):
        one, two = (
            dpm_solver(
                schedule,
                grids.uniform(20, 6),
                order=order,
                stochastic=stochastic,
                prediction="x0",
            )
            for order in (1, 2)
        )
        np.testing.assert_array_equal(one.rows[:2], two.rows[:2])
        assert np.all(two.column("c1")[2:-1] != 0)


def test_steps_of_no_length_have_no_slope():
    """Below 1e-16 all levels of vdm are one; a difference over such a step would be 0 / 0."""
    grid = Grid([1.0, 0.5, 1e-17, 1e-18, 1e-19, 0.0])
    schedule = NoiseSchedule.vdm()
    for knobs in VARIANTS.values():
        plan = dpm_solver(schedule, grid, prediction="v", **knobs)
        assert np.all(np.isfinite(plan.rows[:, COLUMNS.index("w") :]))
        assert not plan.column("c1")[3:].any()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_phi(k):
    """Against the series in exact fractions, on both sides of the switch at 0.5."""
    h = np.array([0.0, 1e-300, 1e-12, 1e-5, 0.03, 0.4999999, 0.5, 0.7, 1.0, 2.0, 5.0, 12.0, 40.0])
    exact = [
        float(
            sum((-Fraction(z)) ** n / math.factorial(n + k) for n in range(20 if z < 0.5 else 160))
        )
        for z in h.tolist()
    ]
    np.testing.assert_allclose(phi(k, h), exact, rtol=2e-15)


def test_names():
    for knobs, method in (
        ({}, "dpm_solver(order=2)"),
        ({"order": 3}, "dpm_solver(order=3)"),
        ({"stochastic": True, "order": 1}, "dpm_solver(SDE, order=1)"),
    ):
        plan = dpm_solver(LINEAR, TEN, **knobs)
        assert plan.method == method
        assert plan.is_stochastic == ("SDE" in method)
        assert plan.order == knobs.get("order", 2)


def refuse(*arguments, **knobs):
    """One call with one bad argument."""
    return lambda: dpm_solver(*(arguments or (LINEAR, TEN)), **knobs)


RANGE = r"^dpm_solver: order must be in \[1, 3\], got "
BAD = {
    "order 0": (refuse(order=0), ValueError, RANGE + "0$"),
    "order 4": (refuse(order=4), ValueError, RANGE + "4$"),
    "order 2.5": (refuse(order=2.5), TypeError, r"dpm_solver: order must be an integer, got 2\.5"),
    "stochastic text": (
        refuse(stochastic="no"),
        TypeError,
        "stochastic must be True or False, got 'no'",
    ),
    "order True": (refuse(order=True), TypeError, "order must be an integer, got True"),
    "order NaN": (refuse(order=np.nan), TypeError, "order must be an integer, got nan"),
    "order > K": (
        refuse(LINEAR, grids.uniform(1000, 2), order=3),
        ValueError,
        "^dpm_solver: order must be at most the number of steps 2, got 3$",
    ),
    "order > K = 1": (
        refuse(LINEAR, grids.uniform(1000, 1), order=2),
        ValueError,
        "order must be at most the number of steps 1, got 2",
    ),
    "SDE 3": (
        refuse(order=3, stochastic=True),
        ValueError,
        r"^dpm_solver: order must be in \[1, 2\], got 3$",
    ),
    "schedule": (refuse("linear", TEN), TypeError, "schedule must be a NoiseSchedule, got 'lin"),
    "grid": (refuse(LINEAR, [3, 2, 0]), TypeError, r"grid must be a Grid, got \[3, 2, 0\]"),
    "above T": (refuse(FLOW, TEN), ValueError, "grid must start at or below T = 1, got 1000"),
    "no signal": (
        refuse(FLOW, grids.uniform(1.0, 5)),
        ValueError,
        r"dpm_solver: prediction must determine x0 .*, got 'epsilon' where alpha = 0 \(row 0\)",
    ),
    "prediction": (refuse(prediction="eps"), ValueError, "prediction must be one of .*'eps'"),
    "clip": (refuse(clip=-1), ValueError, "dpm_solver: clip must be positive, got -1"),
    "clip NaN": (refuse(clip=np.nan), ValueError, "dpm_solver: clip must be finite, got nan"),
}


@refusals(dpm_solver=BAD)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_one_step_needs_no_order():
    one = grids.uniform(1000, 1)
    for sampler in (dpm_solver, unipc):
        assert sampler(LINEAR, one) == sampler(LINEAR, one, order=1)
        assert sampler(LINEAR, TEN) == sampler(LINEAR, TEN, order=2)
