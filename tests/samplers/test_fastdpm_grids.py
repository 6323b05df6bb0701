"""FastDPM's own times: the authors' lists, and chains of variances that reach T or say so."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import grids
from fastsample.samplers.fastdpm import fastdpm, steps_grid, var_betas, var_grid
from fastsample.schedules.schedule import NoiseSchedule

LINEAR = NoiseSchedule.linear()


def test_extended_steps_reach_T():
    short = []
    for S in range(2, 1001):
        linear = steps_grid(LINEAR, S)
        assert len(linear) == S
        assert linear.times[-2] == 1
        short.append(linear.times[0] < 1000)
        assert linear.times[0] >= 999
        assert steps_grid(LINEAR, S, extended=True).times[0] == 1000
    assert sum(short) == 136  # the reference's floor of a float product
    for S in (2, 10, 50, 1000):
        quadratic = steps_grid(LINEAR, S, "quadratic")
        assert quadratic == grids.ddim(1000, S, "quadratic")
        assert quadratic.times[0] == 801
        extended = steps_grid(LINEAR, S, "quadratic", extended=True)
        assert (extended.times[0], extended.times[-2]) == (1000, 1)
    assert steps_grid(LINEAR, 5, "quadratic", extended=True).times.tolist() == (
        [1000, 562, 250, 63, 1, 0]  # (i / 4)^2 999, floored, plus 1
    )


@pytest.mark.parametrize(("spacing", "enough"), [("linear", 9), ("quadratic", 23)])
def test_short_chains_of_variances_say_so(spacing, enough):
    """The lengths from which the default schedule's search ends inside its bounds."""
    for S in (2, enough - 1, enough, 60):
        short = enough > S
        warns = pytest.warns(
            UserWarning,
            match=rf"^fastdpm: num_steps should reach alpha_bar\(T\) = 4\.04e-05 but {S} {spacing} "
            r"variances end at .* \(t = .*\), as in the authors' code; pass extended=True",
        )
        with warns if short else nullcontext():
            plan = fastdpm(LINEAR, S, approximation="var", spacing=spacing)
        extended = fastdpm(LINEAR, S, approximation="var", spacing=spacing, extended=True)
        assert np.array_equal(plan.rows, extended.rows) == (not short)
        assert extended.times[0] == pytest.approx(1000, abs=1e-6 if short else 0.01)
        assert (plan.times[0] < 999.9) == short
        betas = var_betas(LINEAR, S, spacing, extended=True)
        np.testing.assert_allclose(np.prod(1 - betas), LINEAR.alpha_bar(1000), rtol=1.01e-4)
        assert betas.max() < 1.0


def test_variances_where_the_search_has_corners():
    # All steps of constant betas are the trained chain itself, but for rounding.
    for beta, T in ((0.01, 50), (0.03, 20), (0.1, 50)):
        for spacing in ("linear", "quadratic"):
            grid = var_grid(NoiseSchedule.linear(T, beta, beta), T, spacing)
            np.testing.assert_allclose(grid.times, np.arange(T, -1, -1), atol=1e-6)
    # Two quadratic variances above 1 would multiply to a level that is positive again.
    steep = NoiseSchedule.linear(55, 0.57, 7e-4)
    for S, extended in ((10, False), (10, True), (4, True)):
        betas = var_betas(steep, S, "quadratic", extended=extended)
        assert np.all((betas > 0) & (betas < 1))
    # The variance that alpha_bar(T) = 1e-58 takes rounds to 1 or to the float below.
    low = NoiseSchedule.linear(193, 1e-4, 0.87)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert var_grid(low, 6, "quadratic", extended=True).times[0] == 193


@st.composite
def schedules(draw):
    """Linear, cosine and tables, small enough to search quickly."""
    T = draw(st.integers(2, 60))
    kind = draw(st.sampled_from(["linear", "cosine", "from_betas"]))
    beta = st.floats(1e-5, 0.5)
    if kind == "linear":
        return NoiseSchedule.linear(T, draw(beta), draw(beta))
    if kind == "cosine":
        return NoiseSchedule.cosine(T, draw(st.floats(0.3, 0.9999)))
    return NoiseSchedule.from_betas(draw(st.lists(beta, min_size=T, max_size=T)))


@settings(max_examples=40, deadline=None)
@given(schedules(), st.data())
@pytest.mark.parametrize("spacing", ["linear", "quadratic"])
def test_variances_fall_to_T_or_are_refused(spacing, schedule, data):
    T, S = schedule.T, data.draw(st.integers(2, schedule.num_steps))
    target, first = float(schedule.alpha_bar(T)), 1 - float(schedule.alpha_bar(1.0))
    try:
        betas = var_betas(schedule, S, spacing, extended=True)
    except ValueError as error:
        assert "num_steps must be smaller for growing variances" in str(error)  # noqa: PT017
        assert (1 - first) ** S < target
        return
    assert betas.shape == (S,)
    np.testing.assert_allclose(betas[0], first, rtol=1e-9)
    assert np.all(np.diff(betas) >= -1e-15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid = var_grid(schedule, S, spacing, extended=True)
    assert len(grid) == S
    assert grid.times[-2] == 1.0
    levels = schedule.alpha_bar(grid.times)  # of a grid, so of strictly falling times
    assert np.all(np.diff(levels) > 0)
    assert target <= levels[0] <= target * (1 + 1.1e-4)
    np.testing.assert_allclose(levels[1:-1], np.cumprod(1 - betas)[-2::-1], rtol=1e-7)
