"""UniPC: one row is the published corrector and the published predictor; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from fastsample import grids
from fastsample.grids.grid import Grid
from fastsample.plans.rows import COLUMNS
from fastsample.samplers.dpm_solver import dpm_solver
from fastsample.samplers.unipc import unipc
from fastsample.schedules.schedule import NoiseSchedule
from tests.helpers import oracles
from tests.helpers.cases import SCHEDULES, turns
from tests.helpers.refusals import check_refusal, refusals

LINEAR, FLOW, TEN = NoiseSchedule.linear(), NoiseSchedule.flow(), grids.uniform(1000, 10)

orders = pytest.mark.parametrize("order", [1, 2])
schedules = pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear", "vdm", "flow"])


@schedules
@orders
def test_rows_are_the_published_steps(name, order):
    schedule = SCHEDULES[name]
    for grid, prediction, clip in turns(schedule):
        highest = min(order, len(grid))
        plan = unipc(schedule, grid, order=highest, clip=clip, prediction=prediction)

        def loop(x, denoise, _, plan=plan, highest=highest):
            return oracles.unipc(x, plan.alphas, plan.sigmas, denoise, highest)

        oracles.assert_plan_is(plan, loop, clip)


@schedules
@orders
def test_a_network_that_never_changes_its_mind_is_not_corrected(name, order):
    """Then all x0's are one, every difference is 0, and only the first-order step is left."""
    schedule = SCHEDULES[name]
    grid = grids.karras(schedule, 12)
    x0 = np.linspace(-1.0, 1.0, 8)
    none = np.zeros((12, 8))
    got, expected = (
        oracles.states(make(schedule, grid, order=n, prediction="x0"), lambda x, t: x0, x, none)
        for make, n, x in ((unipc, order, oracles.X_T), (dpm_solver, 1, oracles.X_T))
    )
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(got[-1], x0)


@orders
def test_the_corrector_acts(order):
    """UniP is DPM-Solver++: they differ by the corrector, from the second row on."""
    plan, without = (make(LINEAR, TEN, order=order) for make in (unipc, dpm_solver))
    np.testing.assert_allclose(plan.rows[0], without.rows[0], rtol=1e-13)
    for name in ("b", "c1"):
        gap = plan.column(name) - without.column(name)
        assert np.all(np.abs(gap[1:-1]) > 1e-3)
    np.testing.assert_array_equal(plan.column("a"), without.column("a"))


def test_what_a_row_looks_at():
    one, two = unipc(LINEAR, TEN, order=1), unipc(LINEAR, TEN)
    assert (one.needs_history, two.needs_history) == (1, 2)
    assert (one.column("c1") != 0).tolist() == [False, *[True] * 8, False]
    assert (two.column("c1") != 0).tolist() == [False, *[True] * 8, False]
    assert (two.column("c2") != 0).tolist() == [False, False, *[True] * 7, False]
    for plan, method in ((one, "unipc(order=1)"), (two, "unipc(order=2)")):
        assert plan.method == method
        assert not plan.is_stochastic
        assert plan.check == "all"
    single = unipc(LINEAR, grids.uniform(1000, 1), order=1)
    assert single.needs_history == 0


@orders
@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_a_start_without_signal_is_a_limit(order, prediction):
    """At alpha(T) = 0 the first step is infinite; its share in later rows falls off as 1 / h."""
    levels = np.linspace(0.99, 0.0, 30)
    grid = Grid([30, 25, 19, 14, 12, 8, 5, 2, 1, 0])

    def states(lowest):
        schedule = NoiseSchedule.from_alpha_bar([*levels[:-1], lowest])
        plan = unipc(schedule, grid, order=order, prediction=prediction)
        assert np.all(np.isfinite(plan.rows[:, COLUMNS.index("w") :]))
        noise = np.zeros((len(grid), 8))
        return oracles.states(plan, lambda x, t: np.tanh(x) * (0.3 + t / 30), oracles.X_T, noise)

    limit = states(0.0)
    far, near, nearer = (
        float(np.abs(states(lowest) - limit).max()) for lowest in (1e-74, 1e-148, 1e-296)
    )
    assert nearer < 5e-3
    assert nearer < max(0.55 * near, 1e-13)
    assert near < max(0.55 * far, 1e-13)
    assert (far > 1e-6) == (order > 1)


@orders
def test_steps_of_no_length(order):
    """Below 1e-16 all levels of vdm are one; a difference over such a step would be 0 / 0."""
    plan = unipc(
        NoiseSchedule.vdm(),
        Grid([1.0, 0.5, 1e-17, 1e-18, 1e-19, 0.0]),
        order=order,
        prediction="v",
    )
    assert np.all(np.isfinite(plan.rows[:, COLUMNS.index("w") :]))
    assert np.abs(plan.rows[:, COLUMNS.index("a") :]).max() < 10


def refuse(*arguments, **knobs):
    """One call with one bad argument."""
    return lambda: unipc(*(arguments or (LINEAR, TEN)), **knobs)


RANGE = r"^unipc: order must be in \[1, 2\], got "
BAD = {
    "order 0": (refuse(order=0), ValueError, RANGE + "0$"),
    "order 3": (refuse(order=3), ValueError, RANGE + "3$"),
    "order 2.5": (refuse(order=2.5), TypeError, r"unipc: order must be an integer, got 2\.5"),
    "order text": (refuse(order="2"), TypeError, "order must be an integer, got '2'"),
    "order True": (refuse(order=True), TypeError, "order must be an integer, got True"),
    "order NaN": (refuse(order=np.nan), TypeError, "order must be an integer, got nan"),
    "order > K": (
        refuse(LINEAR, grids.uniform(1000, 1), order=2),
        ValueError,
        "^unipc: order must be at most the number of steps 1, got 2$",
    ),
    "schedule": (refuse(None, TEN), TypeError, "schedule must be a NoiseSchedule, got None"),
    "grid": (refuse(LINEAR, 10), TypeError, r"unipc: grid must be a Grid, got 10"),
    "above T": (refuse(FLOW, TEN), ValueError, "grid must start at or below T = 1, got 1000"),
    "no signal": (
        refuse(FLOW, grids.uniform(1.0, 5)),
        ValueError,
        r"unipc: prediction must determine x0 .*, got 'epsilon' where alpha = 0 \(row 0\)",
    ),
    "prediction": (refuse(prediction="score"), ValueError, "prediction must be one of .*'score'"),
    "clip": (refuse(clip=(1, -1)), ValueError, r"unipc: clip must have lo < hi, got \(1, -1\)"),
}


@refusals(unipc=BAD)
def test_refused(call, error, match):
    check_refusal(call, error, match)
