"""Restart sampling: where its rows go, that they keep the marginals, and what it refuses."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.samplers.restart import joined
from tests.helpers.cases import PREDICTIONS, SCHEDULES
from tests.helpers.networks import LINEAR, Gaussian, Spy, halve
from tests.helpers.networks import denoiser as denoise
from tests.helpers.refusals import check_refusal, refusals, sample

TEN = grids.uniform(1000, 10)
BASES = {"ddim": fs.ddim, "dpm++": fs.dpm_solver, "unipc": fs.unipc}
each_base = pytest.mark.parametrize("base", BASES)


def test_without_intervals_it_is_the_base():
    for base, make in BASES.items():
        plan = fs.restart(LINEAR, TEN, base=base, clip=1.0)
        expected = make(LINEAR, TEN, clip=1.0)
        for name in ("nodes", "rows", "times"):
            np.testing.assert_array_equal(getattr(plan, name), getattr(expected, name))
        assert plan.method == f"restart({expected.method})"


@each_base
def test_the_rows_of_the_grid_are_run_again(base):
    plan = fs.restart(LINEAR, TEN, intervals=[(210, 480, 2)], base=base)
    down = [1000, 900, 800, 700, 600, 500, 400, 300, 200]
    again = [500, 400, 300, 200]
    assert plan.nodes.tolist() == [*down, *again, *again, 100, 0]
    assert (plan.calls, len(plan)) == (10 + 2 * 3, 10 + 2 * 4)
    rises = np.flatnonzero(np.diff(plan.nodes) > 0)
    assert rises.tolist() == [8, 12]
    assert np.flatnonzero(~plan.calls_network).tolist() == rises.tolist()
    assert np.flatnonzero(plan.column("d")).tolist() == rises.tolist()
    # The noise of the forward process from t = 200 to t = 500 (Ho et al. 2020, eq. 2).
    alpha_bar = LINEAR.alpha_bar([200.0, 500.0])
    np.testing.assert_allclose(plan.column("a")[8] ** 2, alpha_bar[1] / alpha_bar[0], rtol=1e-12)
    np.testing.assert_allclose(
        plan.column("d")[8] ** 2, 1 - alpha_bar[1] / alpha_bar[0], rtol=1e-12
    )


def test_rows_of_ddim_are_copies():
    plain, plan = fs.ddim(LINEAR, TEN), fs.restart(LINEAR, TEN, intervals=[(200, 500, 1)])
    np.testing.assert_array_equal(plan.rows[:8], plain.rows[:8])
    np.testing.assert_array_equal(plan.rows[9:], plain.rows[5:])


@pytest.mark.parametrize("base", ["dpm++", "unipc"])
def test_a_multistep_base_begins_anew(base):
    plan = fs.restart(LINEAR, TEN, intervals=[(200, 500, 2)], base=base)
    begun = BASES[base](LINEAR, fs.Grid([500, 400, 300, 200, 100, 0]))
    np.testing.assert_array_equal(plan.rows[13:], begun.rows)
    np.testing.assert_array_equal(plan.rows[9:12], begun.rows[:3])
    assert plan.column("c1")[9] == 0.0  # of first order after the rise
    assert plan.column("c1")[10] != 0.0


def test_an_interval_with_a_number_of_steps():
    plan = fs.restart(LINEAR, TEN, intervals=[(200, 650, 1, 3)])
    # Evenly spaced in the number of the node, 3.5 to 8, at whole times.
    assert plan.nodes[8:13].tolist() == [200, 650, 500, 350, 200]
    assert plan.calls == 13
    crowded = fs.restart(LINEAR, TEN, intervals=[(200, 204, 1, 4)])
    assert crowded.nodes[8:14].tolist() == [200, 204, 203, 202, 201, 200]
    real = fs.restart(LINEAR, TEN, intervals=[(200, 204.5, 1, 6)])
    np.testing.assert_allclose(np.diff(real.nodes[9:16]), -0.75)
    higher = fs.restart(LINEAR, fs.Grid([600, 400, 200, 0]), intervals=[(200, 900, 1, 3)])
    assert higher.nodes.tolist() == [600, 400, 200, 900, 467, 333, 200, 0]


def test_intervals_run_from_noisy_to_clean():
    one, two = (300, 500, 1), (600, 900, 2)
    plan = fs.restart(LINEAR, TEN, intervals=[one, two])
    assert plan == fs.restart(LINEAR, TEN, intervals=(two, one))
    assert plan.calls == 10 + 2 + 6
    tops = plan.nodes[1:][np.diff(plan.nodes) > 0]
    assert tops.tolist() == [900, 900, 500]
    same = fs.restart(LINEAR, TEN, intervals=[(300, 500, 1), (300, 900, 1)])
    assert same.nodes[1:][np.diff(same.nodes) > 0].tolist() == [500, 900]


@each_base
def test_last(base):
    plan = fs.restart(LINEAR, TEN, intervals=[(200, 500, 1)], base=base, last="first")
    assert plan.nodes[-1] == 1.0
    assert plan == fs.restart(LINEAR, TEN, intervals=[(200, 500, 1)], base=base, last=1.0)


@each_base
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_schedule_and_prediction(schedule, prediction, base):
    grid = fs.Grid(schedule.T * np.array([0.95, 0.7, 0.45, 0.2, 0.05, 0.0]))  # checks the laws
    interval = (0.2 * schedule.T, 0.7 * schedule.T, 2)
    plan = fs.restart(schedule, grid, intervals=[interval], base=base, prediction=prediction)
    assert plan.calls == 5 + 2 * 2
    zero = (0.2 * schedule.T, schedule.T, 2, 3)
    if prediction != "epsilon" or schedule.alpha(schedule.T) > 0:
        plan = fs.restart(schedule, grid, intervals=[zero], base=base, prediction=prediction)
        assert plan.calls == 5 + 2 * 3


@each_base
def test_the_marginal_stays(base):
    """Gaussian data keep mean and deviation: each row keeps them, the rises too."""
    model = Gaussian(LINEAR, 0.3, 0.5).denoiser(4)
    options = {"num_samples": 4000, "seed": 1, "dtype": torch.float64}
    intervals = [(300, 700, 2, 100)]
    x = fs.sample(model, 200, method="restart", base=base, intervals=intervals, **options)
    # 16000 numbers: four standard errors are 0.016 and 0.011; DDIM of 200 rows adds 0.007.
    assert float(x.mean()) == pytest.approx(0.3, abs=0.016)
    assert float(x.std()) == pytest.approx(0.5, abs=0.018)


def test_by_name_and_by_knob():
    spy = Spy(halve)
    model, options = denoise(spy, 2, 3), {"intervals": [(200, 500, 2)], "seed": 3}
    named = fs.sample(model, 10, method="restart", **options)
    assert len(spy) == 16
    assert [float(t[0]) + 1 for t in spy.told[7:11]] == [300, 500, 400, 300]
    plan = fs.restart(LINEAR, TEN, intervals=((200, 500, 2),))
    assert torch.equal(named, fs.sample(model, plan, seed=3))
    assert torch.equal(named, fs.sample(model, 10, **options))  # the knob selects the method
    assert torch.equal(named[:1], fs.sample(model, 10, num_samples=3, **options)[:1])
    sampler = fs.Sampler(model, 10, method="restart", intervals=[(200, 500, 2)])
    assert (sampler.plan.calls, len(sampler.plan)) == (16, 18)


def test_guidance_and_stop():
    model = denoise(lambda x, t, y: halve(x, t) + 0.1 * y[:, None, None], 2, 3, uncond={"y": 0.0})
    options = {"method": "restart", "intervals": [(200, 500, 1)], "cond": {"y": [1.0]}, "seed": 0}
    sampler = fs.Sampler(
        model,
        10,
        method="restart",
        intervals=[(200, 500, 1)],
        guidance=3.0,
        guidance_interval=(250, 600),
    )
    scales = dict(zip(sampler.plan.nodes[:-1].tolist(), sampler.plan.column("w"), strict=True))
    assert scales[200.0] == 1.0  # and the row that rises is not guided
    assert sampler.plan.column("w").tolist() == [1, 1, 1, 1, 3, 3, 3, 3, 1, 3, 3, 3, 1, 1]
    # A run that stops at a node ends at its first visit.
    short = fs.sample(model, 10, stop=400.0, **options)
    plain = fs.sample(model, 10, method="ddim", stop=400.0, cond={"y": [1.0]}, seed=0)
    assert torch.equal(short, plain)
    with pytest.raises(ValueError, match=r"^sample: stop must be a node of the plan, one of \["):
        fs.sample(model, 10, stop=350.0, **options)


def test_joined_plans_need_no_row_where_the_nodes_agree():
    plan = fs.ddim(LINEAR, TEN)
    rest = fs.ddim(LINEAR, fs.Grid([500, 400, 300, 200, 100, 0]))
    assert joined("joined", [plan.until(500.0), rest]) == plan


PLAN = partial(fs.restart, LINEAR, TEN)
REFUSED = {
    "no list": (
        lambda: PLAN(intervals=3),
        TypeError,
        r"^restart: intervals must be a list of \(t_min, t_max, repeats\[, steps\]\), got 3$",
    ),
    "bare interval": (
        lambda: PLAN(intervals=(200, 500, 2)),
        TypeError,
        r"^restart: intervals\[0\] must be \(t_min, t_max, repeats\) or .*, got 200$",
    ),
    "order": (
        lambda: PLAN(intervals=[(200, 500, 1), (500, 200, 1)]),
        ValueError,
        r"^restart: intervals\[1\] must have 0 < t_min < t_max, got \(500, 200, 1\)$",
    ),
    "from data": (lambda: PLAN(intervals=[(0, 500, 1)]), ValueError, "0 < t_min < t_max"),
    "above T": (
        lambda: PLAN(intervals=[(200, 1001, 1)]),
        ValueError,
        r"^restart: t_max of intervals\[0\] must be in \[0, 1000\], got 1001$",
    ),
    "repeats": (
        lambda: PLAN(intervals=[(200, 500, 0)]),
        ValueError,
        r"^restart: repeats of intervals\[0\] must be at least 1, got 0$",
    ),
    "real repeats": (
        lambda: PLAN(intervals=[(200, 500, 1.5)]),
        TypeError,
        r"^restart: repeats of intervals\[0\] must be an integer, got 1\.5$",
    ),
    "steps": (
        lambda: PLAN(intervals=[(200, 500, 1, 0)]),
        ValueError,
        r"^restart: steps of intervals\[0\] must be at least 1, got 0$",
    ),
    "too many whole times": (
        lambda: PLAN(intervals=[(200, 204, 1, 5)]),
        ValueError,
        r"^restart: steps of intervals\[0\] must be at most the number of whole times from 200 to "
        "204, got 5$",
    ),
    "between two nodes": (
        lambda: PLAN(intervals=[(190, 195, 1, 2)]),
        ValueError,
        r"^restart: t_max of intervals\[0\] must be above the node nearest to t_min, 200, got 195$",
    ),
    "one row": (
        lambda: fs.restart(LINEAR, grids.uniform(1000, 1), intervals=[(200, 500, 1)]),
        ValueError,
        r"^restart: grid must have nodes between its ends for intervals, got \[1000\.0, 0\.0\]$",
    ),
    "base": (
        lambda: PLAN(base="ancestral"),
        ValueError,
        r"^restart: base must be one of \['ddim', 'dpm\+\+', 'unipc'\], got 'ancestral'$",
    ),
    "a knob of another": (
        sample(method="ddim", intervals=[(200, 500, 1)]),
        ValueError,
        r'^sample: intervals must be left out with method="ddim"',
    ),
}


@refusals(refused=REFUSED)
def test_refused(call, error, match):
    check_refusal(call, error, match)
