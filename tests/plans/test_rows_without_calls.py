"""Rows without a network call: their laws, and plans that go back up to a noisier time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import fastsample as fs
from fastsample.plans.rows import COLUMNS, row_table
from tests.helpers import oracles
from tests.helpers.cases import PREDICTIONS, SCHEDULES
from tests.helpers.laws import assert_rows_obey_the_laws
from tests.helpers.refusals import check_refusal, refusals

LINEAR = SCHEDULES["linear"]
UP_AND_DOWN = [900.0, 600.0, 300.0, 600.0, 300.0, 600.0, 300.0, 0.0]
"""A jump of RePaint, done twice."""


def up(schedule, s, t) -> np.ndarray:
    """The row that adds the noise between s and t: `x = a x + sd z`."""
    alpha_s, sigma_s, alpha_t, sigma_t = (*schedule.levels(s), *schedule.levels(t))
    a = alpha_t / alpha_s
    return row_table(1, a=a, d=np.sqrt(sigma_t**2 - a**2 * sigma_s**2))


def down(schedule, t, s, eta, prediction) -> np.ndarray:
    """A row of DDIM."""
    grid = fs.Grid([t, s, 0.0] if s else [t, 0.0])
    return fs.ddim(schedule, grid, eta=eta, prediction=prediction).rows[:1]


def jumping(nodes=UP_AND_DOWN, schedule=LINEAR, eta=1.0, prediction="epsilon", **fields) -> fs.Plan:
    """DDIM where the nodes fall, fresh noise where they rise."""
    rows = [
        up(schedule, t, s) if s > t else down(schedule, t, s, eta, prediction)
        for t, s in pairwise(nodes)
    ]
    levels = schedule.levels(np.array(nodes))
    return fs.Plan(
        np.array(nodes), np.concatenate(rows), *levels, prediction, schedule=schedule, **fields
    )


def with_entries(plan: fs.Plan, row: int, **values: float) -> fs.Plan:
    rows = plan.rows.copy()
    for name, value in values.items():
        rows[row, COLUMNS.index(name)] = value
    return replace(plan, rows=rows)


# ---- counts


def test_calls_and_rows_are_counted_apart():
    plan = jumping()
    assert plan.calls_network.tolist() == [True, True, False, True, False, True, True]
    assert (len(plan), plan.calls) == (7, 5)
    assert not plan.inverts
    assert plan.is_stochastic
    first, *_ = repr(plan).splitlines()
    assert first == "Plan custom: 5 network calls in 7 rows, epsilon, stochastic"
    assert fs.Plan.from_json(plan.to_json()) == plan


def test_what_calls_the_network():
    quiet = {"p": 1.0, "a": 0.5, "b": 0.5, "d": 0.3}
    for columns, calls in (
        ({}, False),
        ({"q": -0.1}, True),
        ({"e": 0.1}, True),
        ({"lv_lo": -2.0, "lv_hi": -1.0}, True),
        ({"lv_lo": -2.0}, True),
        ({"lv_lo": -2.0, "lv_hi": -1.0, "d": 0.0}, False),
        ({"w": 3.0, "lo": -1.0, "hi": 1.0}, False),
    ):
        rows = row_table(2, **{**quiet, **columns})
        rows[1] = row_table(1, q=1.0, b=1.0)
        alphas, sigmas = LINEAR.levels([700.0, 300.0, 0.0])
        plan = fs.Plan(np.array([700.0, 300.0, 0.0]), rows, alphas, sigmas, "x0", check="none")
        assert plan.calls_network.tolist() == [calls, True], columns
        assert plan.calls == 1 + calls


def test_files_are_by_calls(tmp_path):
    plans = [jumping(), fs.ddim(LINEAR, fs.grids.uniform(1000, 7))]
    assert fs.load_plans(fs.save_plans(tmp_path / "p.json", plans)) == {5: plans[0], 7: plans[1]}
    equal = [jumping(), fs.ddim(LINEAR, fs.grids.uniform(1000, 5))]
    with pytest.raises(ValueError, match=r"^save_plans: plans must differ in their steps, got \[5"):
        fs.save_plans(tmp_path / "p.json", equal)


# ---- the laws


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "vdm", "flow"])
def test_jumps_obey_all_laws(name, eta, prediction):
    schedule = SCHEDULES[name]
    nodes = [schedule.T * t / 1000 for t in UP_AND_DOWN]
    plan = jumping(nodes, schedule, eta, prediction)
    assert plan.check == "all"
    assert_rows_obey_the_laws(plan)
    assert plan.needs_history == 0


def test_a_jump_up_gives_the_forward_process():
    """Noise at s, jumped to t, is distributed as noise at t: mean alpha_t, variance sigma_t^2."""
    x = np.stack([np.full(8, 1.5), np.zeros(8)])  # what multiplies x0, and the noise
    plan = jumping([900.0, 300.0, 600.0, 0.0])
    a, d = plan.column("a")[1], plan.column("d")[1]
    (alpha_s, alpha_t), (sigma_s, sigma_t) = LINEAR.levels([300.0, 600.0])
    np.testing.assert_allclose(a * alpha_s, alpha_t, rtol=1e-14)
    np.testing.assert_allclose((a * sigma_s) ** 2 + d**2, sigma_t**2, rtol=1e-14)
    jump = fs.Plan(
        np.array([300.0, 299.0]),
        row_table(1, a=a, d=d),
        np.array([alpha_s, alpha_t]),
        np.array([sigma_s, sigma_t]),
    )
    # Run as a row on its own: it needs no network, and adds its own draw.
    got = oracles.execute(jump, pytest.fail, x[0] * alpha_s, np.ones((1, 8)))
    np.testing.assert_allclose(got, 1.5 * alpha_t + d, rtol=1e-14)


@pytest.mark.parametrize("column", ["a", "b", "d", "c1"])
def test_a_corrupted_jump_is_caught(column):
    plan = jumping()
    if column == "b":
        with_entries(plan, 2, b=0.3)  # of an x0 that is 0 x
        with pytest.raises(ValueError, match=r"^Plan: rows\[2\] breaks the mean law by"):
            with_entries(plan, 2, b=1e-9, p=1.0)
        return
    law = {"a": "mean", "d": "variance", "c1": "mean"}[column]
    for i in (2, 4):
        value = plan.column(column)[i] + 1e-9
        with pytest.raises(ValueError, match=rf"^Plan: rows\[{i}\] breaks the {law} law by"):
            with_entries(plan, i, **{column: value})


def test_there_is_no_x0_law_without_a_call():
    plan = jumping()
    for values in ({"p": 7.0}, {"p": -1.0, "lo": -1.0, "hi": 1.0}):
        assert with_entries(plan, 2, **values).calls == 5
    with pytest.raises(ValueError, match=r"^Plan: rows\[1\] breaks the x0 law"):
        with_entries(plan, 1, p=7.0)


def test_x0_of_a_row_without_a_call_is_a_share_of_x():
    """`b p` counts as a part of `a` in both laws."""
    plan = jumping()
    a = plan.column("a")[2]
    split = with_entries(plan, 2, a=0.25 * a, p=3.0, b=0.25 * a)
    assert_rows_obey_the_laws(split)
    run = [
        oracles.execute(p, lambda x, t: np.tanh(x), oracles.X_T, oracles.noise_formula(7))
        for p in (plan, split)
    ]
    np.testing.assert_allclose(run[0], run[1], rtol=1e-12)


def test_a_first_row_for_free():
    """x0 of pure noise is known to first order: here the mean of the data, 0."""
    plan = fs.ddim(LINEAR, fs.grids.uniform(1000, 4))
    ratio = plan.sigmas[1] / plan.sigmas[0]
    free = replace(plan, check="none")
    free = with_entries(free, 0, p=0.0, q=0.0, a=ratio, b=0.0)
    assert free.calls_network.tolist() == [False, True, True, True]
    assert (len(free), free.calls) == (4, 3)
    with pytest.raises(ValueError, match=r"^Plan: rows\[0\] breaks the mean law by 0\.\d+; "):
        replace(free, check="all")  # the signal is not carried over
    seen: list[float] = []

    def network(x, t):
        seen.append(t)
        return np.tanh(x)

    oracles.execute(free, network, oracles.X_T, np.zeros((4, 8)))
    assert seen == [750.0, 500.0, 250.0]


def test_earlier_x0s_are_those_of_rows_with_a_call():
    """A row without a call in between leaves no x0 behind."""
    nodes = np.array([900.0, 700.0, 650.0, 300.0, 0.0])
    alphas, sigmas = LINEAR.levels(nodes)
    rows = row_table(4, q=1.0, b=alphas[1:])
    rows[1] = row_table(1, a=alphas[2] / alphas[1])
    for name, value in (("b", 0.5), ("c1", alphas[3] - 0.5)):
        rows[2, COLUMNS.index(name)] = value
    plan = fs.Plan(nodes, rows, alphas, sigmas, "x0", check="mean", schedule=LINEAR)
    assert plan.needs_history == 1
    got = oracles.states(plan, lambda x, t: np.full_like(x, t), oracles.X_T, np.zeros((4, 8)))
    np.testing.assert_allclose(got[1], alphas[2] * 900.0)  # what row 2 is shown
    np.testing.assert_allclose(got[2], 0.5 * 650.0 + (alphas[3] - 0.5) * 900.0)
    match = "got c2 in row 2, which has 1 earlier ones$"
    with pytest.raises(ValueError, match=match):
        with_entries(plan, 2, c1=0.0, c2=alphas[3] - 0.5)


def test_until_the_first_visit():
    plan = jumping()
    assert plan.until(300.0).nodes.tolist() == UP_AND_DOWN[:3]
    assert plan.until(600.0).nodes.tolist() == UP_AND_DOWN[:2]
    top = jumping([900.0, 300.0, 600.0, 0.0])
    assert top.until(600.0).nodes.tolist() == [900.0, 300.0, 600.0]  # it may end after a rise
    assert top.until(600.0).calls == 1
    assert not top.until(600.0).inverts


# ---- what is refused

PLAN = jumping()
RISE = (
    r"^Plan: nodes must fall from row to row, and may rise only in rows without a network call "
    r"\(q = e = 0\), got "
)
LOOK = (
    r"^Plan: rows must not use an x0 from before the start or before a rise of the nodes, got "
    r"c{} in row {}, which has {} earlier ones$"
)
NODES = np.array([900.0, 400.0, 600.0, 0.0])


def custom(nodes, rows, prediction="epsilon"):
    """A plan without any laws."""
    nodes = np.array(nodes)
    return fs.Plan(nodes, rows, *LINEAR.levels(nodes), prediction, check="none", schedule=LINEAR)


def three(**columns):
    """Rows 0 and 2 call the network; row 1 has these columns."""
    rows = row_table(3, q=1.0, b=1.0)
    rows[1] = row_table(1, **{"a": 0.5, **columns})
    return rows


def looking(row: int, n: int):
    """Rows that call the network but row 2, which rises; one looks back n x0's."""
    rows = row_table(6, q=1.0, b=1.0)
    rows[2] = row_table(1, a=0.5)
    rows[row, COLUMNS.index(f"c{n}")] = 0.1
    return lambda: custom([900.0, 700.0, 500.0, 800.0, 400.0, 200.0, 0.0], rows)


@refusals(
    rises={
        "q": (
            lambda: custom(NODES, three(q=0.1)),
            ValueError,
            RISE + r"400 then 600 in row 1 of \[900. 400. 600.   0.\]$",
        ),
        "e": (lambda: custom(NODES, three(e=-0.1)), ValueError, RISE + "400 then 600 in row 1 of"),
        "a learned variance": (
            lambda: custom(NODES, three(d=0.1, lv_lo=-1.0)),
            ValueError,
            RISE + "400 then 600 in row 1 of",
        ),
        "a call at the last rise": (
            lambda: custom([900.0, 400.0, 600.0, 700.0], row_table(3, a=0.5, q=[1.0, 0.0, 1.0])),
            ValueError,
            RISE + "600 then 700 in row 2 of",
        ),
        "standing still": (
            lambda: custom([900.0, 400.0, 400.0, 0.0], three()),
            ValueError,
            RISE + "400 then 400 in row 1 of",
        ),
        "above the start": (
            lambda: custom([500.0, 400.0, 600.0], three()[:2]),
            ValueError,
            r"^Plan: nodes must end at or below the first one, unless all rise \(inversion\), "
            r"got \[500. 400. 600.\]$",
        ),
        "an inversion without a call": (
            lambda: custom([100.0, 400.0, 600.0, 900.0], three()),
            ValueError,
            r"^Plan: rows must all call the network where all nodes rise \(inversion\), "
            r"got none in row 1$",
        ),
    },
    looks={
        "over the rise": (looking(3, 1), ValueError, LOOK.format(1, 3, 0)),
        "past one after it": (looking(4, 2), ValueError, LOOK.format(2, 4, 1)),
        "past two after it": (looking(5, 3), ValueError, LOOK.format(3, 5, 2)),
        "before the start": (looking(1, 4), ValueError, LOOK.format(4, 1, 1)),
    },
)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_what_may_be_looked_at_around_a_rise():
    for row, n in ((1, 1), (2, 1), (2, 2), (4, 1), (5, 1), (5, 2)):
        assert looking(row, n)().needs_history == n
