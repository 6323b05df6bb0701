from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest

from fastsample import grids
from fastsample.plans.plan import Plan
from fastsample.plans.rows import COLUMNS, NEUTRAL, row_table
from fastsample.plans.text import ARRAYS, PLAN
from fastsample.samplers.ancestral import ancestral
from fastsample.samplers.ddim import ddim, ddim_inversion
from fastsample.schedules.schedule import NoiseSchedule
from tests.helpers.cases import PREDICTIONS, SAMPLERS, SCHEDULES, plans
from tests.helpers.laws import assert_rows_obey_the_laws

LINEAR = NoiseSchedule.linear()
DDIM = ddim(LINEAR, grids.uniform(1000, 10))
# Levels of order one, where an error of 1e-9 in any coefficient is far above rounding.
MILD = NoiseSchedule.linear(50, 1e-2, 0.05)
MILD_GRID = grids.uniform(50, 5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_row_law(sampler, schedule, prediction):
    count = 0
    for _, plan in plans(sampler, schedule, prediction):
        assert_rows_obey_the_laws(plan)
        assert plan.schedule == SCHEDULES[schedule]
        count += 1
    assert count


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_corrupted_coefficient_is_caught(sampler, prediction):
    plan = SAMPLERS[sampler](MILD, MILD_GRID, prediction)
    for column in ("p", "q", "a", "b", "e", "c1", "c2", "c3", "c4", "d"):
        for i in range(len(plan)):
            last = i == len(plan) - 1
            if column == "d" and not last and (plan.check != "all" or not plan.column("d")[i]):
                continue  # no law fixes d, or the law is quadratic around d = 0
            blind = plan.check != "all" or not plan.rows[i, COLUMNS.index("a")]
            if column == "e" and not last and blind and prediction == "epsilon":
                continue  # only the variance law sees e there, and at a = 0 it is quadratic in it
            rows = plan.rows.copy()
            j = COLUMNS.index(column)
            rows[i, j] += 1e-9 * max(1.0, abs(rows[i, j]))
            with pytest.raises(ValueError, match="Plan: rows"):
                Plan(plan.nodes, rows, plan.alphas, plan.sigmas, plan.prediction, check=plan.check)
            Plan(plan.nodes, plan.rows, plan.alphas, plan.sigmas, prediction, check=plan.check)


def test_properties():
    assert len(DDIM) == 10
    assert DDIM.times.tolist() == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    assert not DDIM.is_stochastic
    assert not DDIM.inverts
    assert not DDIM.learns_variance
    assert (DDIM.needs_history, DDIM.order) == (0, 1)
    assert ddim(LINEAR, grids.uniform(1000, 3), eta=0.1).is_stochastic
    learned = ancestral(LINEAR, grids.uniform(1000, 3), variance="learned_range")
    assert learned.learns_variance
    assert ddim_inversion(LINEAR, grids.uniform(1000, 3)).inverts
    assert not ancestral(LINEAR, grids.uniform(1000, 1), variance="learned_range").learns_variance


def test_history():
    rows = DDIM.rows.copy()
    rows[1:, COLUMNS.index("b")] -= 0.25
    rows[1:, COLUMNS.index("c1")] += 0.25
    two = Plan(DDIM.nodes, rows, DDIM.alphas, DDIM.sigmas, check="mean")
    assert (two.needs_history, two.order) == (1, 2)
    for n in (2, 3, 4):  # row n is the first that has n earlier x0's
        rows[n:, COLUMNS.index("b")] -= 0.5
        rows[n:, COLUMNS.index(f"c{n}")] += 0.5
        more = Plan(DDIM.nodes, rows, DDIM.alphas, DDIM.sigmas, check="mean")
        assert (more.needs_history, more.order) == (n, n + 1)
        assert f"c{n} h{n}" in repr(more)
        assert Plan.from_json(more.to_json()) == more


def test_guidance_and_clip():
    guided = DDIM.with_guidance(7.5)
    assert np.all(guided.column("w") == 7.5)
    assert np.all(DDIM.column("w") == 1.0)
    assert guided.with_guidance(1.0) == DDIM
    np.testing.assert_array_equal(DDIM.with_guidance(np.arange(10)).column("w"), np.arange(10))
    clipped = DDIM.with_clip(1.5)
    assert (clipped.column("lo")[0], clipped.column("hi")[0]) == (-1.5, 1.5)
    assert clipped.with_clip((0.0, 1.0)).column("lo")[3] == 0.0
    assert clipped.with_clip(None) == DDIM
    assert clipped == ddim(LINEAR, grids.uniform(1000, 10), clip=1.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_json_round_trip(sampler, schedule):
    for _, plan in plans(sampler, schedule, "v"):
        text = plan.to_json()
        back = Plan.from_json(text)
        assert back == plan
        assert back.rows.tobytes() == plan.rows.tobytes()
        assert back.to_json() == text
        json.loads(text, parse_constant=pytest.fail)  # strict: no NaN or Infinity tokens


def test_is_a_value():
    copy = pickle.loads(pickle.dumps(DDIM))
    assert copy == DDIM
    assert hash(copy) == hash(DDIM)
    assert DDIM.with_clip(1.0) != DDIM
    assert DDIM != "ddim"
    for array in (*(getattr(DDIM, name) for name in ARRAYS), DDIM.column("a")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0


def test_repr_shows_the_table():
    lines = repr(DDIM).splitlines()
    assert lines[0] == "Plan ddim(eta=0.0): 10 network calls, epsilon, deterministic"
    assert lines[1] == "x0 = p x + q m,  x_next = a x + b x0"
    assert lines[2].split() == ["row", "time", "p", "q", "a", "b"]
    assert lines[3].split() == [
        "0",
        "1000",
        "->",
        "900",
        "157.41",
        "-157.41",
        "0.99988",
        "0.010237",
    ]
    assert len(lines) == 13
    assert len({len(line) for line in lines[2:]}) == 1
    long = ancestral(LINEAR, grids.uniform(1000, 500), variance="learned_range", clip=1)
    text = repr(long.with_guidance(2.0))
    assert "m = u + w (c - u),  x0 = clamp(p x + q m, lo, hi)" in text
    assert "lv_lo" in text
    lines = text.splitlines()
    assert len(lines) == 14
    assert lines[8] == "..."
    assert lines[-1].split()[0] == "499"


def rebuilt(**changes):
    """DDIM with some fields replaced."""
    fields = {
        name: getattr(DDIM, name)
        for name in ("nodes", "rows", "alphas", "sigmas", "prediction", "method", "check")
    }
    return Plan(**{**fields, **changes})


def with_entry(row: int, column: str, value: float):
    rows = DDIM.rows.copy()
    rows[row, COLUMNS.index(column)] = value
    return rebuilt(rows=rows)


def scaled_levels():
    alphas = DDIM.alphas.copy()
    alphas[-1] = 0.99
    return rebuilt(alphas=alphas)


LARGE = ancestral(LINEAR, grids.uniform(1000, 1000), variance="large")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Plan(LARGE.nodes, LARGE.rows, LARGE.alphas, LARGE.sigmas),
         ValueError,
         r'^Plan: rows\[\d+\] breaks the variance law by \d[\d.e-]+; '
         r'pass check="mean" if this sampler is meant to$'),
        (lambda: with_entry(4, "b", 0.5), ValueError,
         r'rows\[4\] breaks the mean law by 0\.\d+; pass check="none" if'),
        (lambda: with_entry(4, "p", 0.5), ValueError, r"rows\[4\] breaks the x0 law by"),
        (lambda: with_entry(4, "q", np.nan), ValueError, "Plan: rows must not be NaN"),
        (lambda: with_entry(4, "q", np.inf), ValueError,
         "rows must be finite in column q, got inf in row 4"),
        (lambda: with_entry(4, "lo", np.inf), ValueError,
         "rows must be finite in column lo, got inf in row 4"),
        (lambda: with_entry(4, "hi", -np.inf), ValueError, "rows must be finite in column hi"),
        (lambda: with_entry(4, "d", -0.1), ValueError, "rows must have d >= 0, got -0.1 in row 4"),
        (lambda: with_entry(3, "lv_hi", -1.0), ValueError,
         "rows must have lv_lo <= lv_hi, got 0 > -1 in row 3"),
        (lambda: with_entry(0, "c1", 0.1), ValueError,
         "rows must not use an x0 from before the start"),
        (lambda: with_entry(1, "c2", 0.1), ValueError,
         "^Plan: rows must not use an x0 from before the start or before a rise of the nodes, "
         "got c2 in row 1, which has 1 earlier ones$"),
        (lambda: with_entry(3, "c4", 0.1), ValueError,
         "got c4 in row 3, which has 3 earlier ones$"),
        (lambda: with_entry(9, "d", 0.1), ValueError,
         r"rows\[-1\] must draw no noise \(d = 0\), got d = 0.1"),
        (lambda: with_entry(9, "a", 0.1), ValueError,
         r"rows\[-1\] must land on x0 .* got a = 0.1, e = 0"),
        (lambda: with_entry(9, "e", 0.1), ValueError,
         r"rows\[-1\] must land on x0 .* got a = 0, e = 0.1"),
        (scaled_levels, ValueError, r"must end at 1 and 0 \(clean data\), got 0.99 and 0; "
         r'end at the node of these levels, or pass check="none"$'),
        (lambda: rebuilt(nodes=DDIM.nodes[None]), ValueError,
         r"nodes must have shape \(K' \+ 1,\), got \(1, 11\)"),
        (lambda: rebuilt(nodes=DDIM.nodes[:1]), ValueError,
         r"nodes must have shape \(K' \+ 1,\), got \(1,\)"),
        (lambda: rebuilt(nodes=DDIM.nodes[1:]), ValueError,
         r"rows must have shape \(9, 15\) for 10 nodes, got \(10, 15\)"),
        (lambda: rebuilt(sigmas=DDIM.sigmas[1:]), ValueError, r"sigmas must have shape \(11,\)"),
        (lambda: rebuilt(nodes=DDIM.nodes - 1), ValueError,
         r"^Plan: nodes must not be negative, got \[999. .* -1.\]$"),
        (lambda: rebuilt(nodes=np.full(11, 5.0)), ValueError,
         r"^Plan: nodes must fall from row to row, and may rise only in rows without a network "
         r"call \(q = e = 0\), got 5 then 5 in row 0 of \[5. 5. 5. ... 5. 5. 5.\]$"),
        (lambda: rebuilt(nodes=np.full(11, np.nan)), ValueError, "nodes must be finite, got nan"),
        (lambda: rebuilt(alphas=-DDIM.alphas), ValueError, "alphas must not be negative, got"),
        (lambda: rebuilt(rows=DDIM.rows.astype(np.float32)), TypeError,
         "rows must be float64, got float32"),
        (lambda: rebuilt(rows=DDIM.rows.astype(str)), TypeError,
         "rows must hold real numbers, got <U"),
        (lambda: rebuilt(prediction="score"), ValueError,
         r"prediction must be one of \['epsilon'.*'score'"),
        (lambda: rebuilt(check="some"), ValueError,
         r"check must be one of \['all', 'mean', 'none'\], got 'some'"),
        (lambda: rebuilt(method=3), TypeError, "Plan: method must be a string, got 3"),
        (lambda: rebuilt(schedule="linear"), TypeError,
         "schedule must be a NoiseSchedule, got 'linear'"),
        (lambda: DDIM.column("z"), ValueError, r"Plan.column: name must be one of .*, got 'z'"),
        (lambda: DDIM.with_guidance([1, 2]), ValueError,
         r"with_guidance: w must be a number or have shape \(10,\), got shape \(2,\)"),
        (lambda: DDIM.with_guidance(np.nan), ValueError,
         "with_guidance: w must be finite, got nan"),
        (lambda: DDIM.with_clip(0), ValueError, "Plan.with_clip: clip must be positive, got 0"),
        (lambda: DDIM.with_clip((1, -1)), ValueError, r"clip must have lo < hi, got \(1, -1\)"),
        (lambda: DDIM.with_clip((1, 2, 3)), ValueError,
         r"clip must be a bound or a pair \(lo, hi\)"),
        (lambda: DDIM.with_clip("1"), TypeError, "with_clip: clip must be a real number, got '1'"),
        (lambda: DDIM.with_clip((-1, np.inf)), ValueError,
         r"with_clip: clip\[1\] must be finite, got inf"),
    ],
)  # fmt: skip
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_json_must_be_text():
    with pytest.raises(TypeError, match=r"Plan\.from_json: text must be a string, got bytes"):
        Plan.from_json(DDIM.to_json().encode())


def test_check_none_accepts_tuned_rows():
    rows = DDIM.rows * np.where(np.isfinite(DDIM.rows), 1.001, 1.0)
    plan = rebuilt(rows=rows, check="none")
    assert Plan.from_json(plan.to_json()) == plan


def test_neutral_row_does_nothing_but_guide():
    assert row_table(1)[0].tolist() == [NEUTRAL[name] for name in COLUMNS]
    assert row_table(2, a=3.0, d=[0, 1]).shape == (2, 15)


def edited(**changes) -> str:
    """DDIM's text with other entries, and the checksum of what it then holds.

    An Ellipsis removes an entry; a `sha256` is kept as given.
    """
    data = {**json.loads(DDIM.to_json()), "sha256": ..., **changes}
    data = {key: value for key, value in data.items() if value is not ...}
    return json.dumps(data) if "sha256" in changes else PLAN.to_text(data)


def edited_rows(value: object) -> str:
    rows = json.loads(DDIM.to_json())["rows"]
    rows[3][0] = value
    return edited(rows=rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"got '' \(cut off, or no JSON: Expecting value"),
        (DDIM.to_json()[:-20], r"got '{.*' \(cut off, or no JSON: "),
        ("[" * 100_000, r"got '\[\[.*' \(cut off, or no JSON: "),
        ("[1, 2]", r"got '\[1, 2\]' \(no .format.: .fastsample.plan. in it\)$"),
        ('{"format": "other"}', r'\(no "format": "fastsample.plan" in it\)$'),
        (edited(version=4), r"\(version 4, made by a newer fastsample; upgrade to read it\)$"),
        *(
            (edited(version=version, sha256=None), r"\(damaged: its checksum is not that of its ")
            for version in (2, 3)
        ),
        (edited(sha256="0"), r"\(damaged: its checksum is not that of its content\)$"),
        (edited(times=[1.0]), r"Plan: times must have shape \(10,\) for 11 nodes, got \(1,\)"),
        (edited(times=[0.0] * 10), "Plan: times must be above 0 where the network is called"),
        (edited(times=None), "Plan: times must"),
        (edited(version=2), r"columns must be \['p', .* 'c2', 'd', .*\], got \['p', .* 'c4', 'd'"),
        (edited(version=None), r"\(version None\)$"),
        (edited(version=True), r"\(version True\)$"),
        (edited(version=0), r"\(version 0\)$"),
        (edited(columns=list("pq")), "columns must be"),
        (edited(rows=[[1.0]]), "rows must hold 15 numbers each"),
        (edited(rows=json.loads(DDIM.to_json())["rows"][1:]), r"Plan: rows must have shape"),
        (edited(rows=[1.0]), "'float' object is not iterable"),
        (edited(rows=[[1.0], [1.0, 2.0]]), "inhomogeneous shape"),
        (edited(rows={"a": 1}), "could not convert string to float: 'a'"),
        (edited(nodes="x"), "could not convert string to float: 'x'"),
        (edited(prediction=["v"]), "Plan: prediction must be one of"),
        (edited(schedule={"kind": "magic"}), r"NoiseSchedule.from_dict"),
        (edited(schedule=7), "NoiseSchedule.from_dict"),
        (edited_rows(0.5), r"Plan: rows\[3\] breaks the x0 law"),
        (edited_rows("nan"), "Plan: rows must not be NaN"),
        (edited_rows("inf"), "Plan: rows must be finite in column p"),
        (edited_rows(None), ".* not 'NoneType'"),
        *(
            (edited(**{key: ...}), rf"\[?'{key}'\]? missing")
            for key in json.loads(DDIM.to_json()) if key not in ("format", "version", "sha256")
        ),
    ],
)  # fmt: skip
def test_broken_json(text, message):
    with pytest.raises(
        ValueError,
        match=f"^Plan.from_json: text must be a plan written by to_json, .*{message}",
    ):
        Plan.from_json(text)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies_are_equal_and_read_only(duplicate):
    schedule = NoiseSchedule.cosine(100)
    grid = grids.uniform(100, 4)
    plan = ddim(schedule, grid, clip=1.0)
    for original in (schedule, grid, plan):
        found = duplicate(original)
        assert found == original
        assert hash(found) == hash(original)
    with pytest.raises(ValueError, match="read-only"):
        duplicate(plan).rows[0, 0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        duplicate(grid).times[0] = 1.0
