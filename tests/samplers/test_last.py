"""The knob `last` of every sampler: a plan may land above clean data."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import fastsample as fs
from fastsample import grids
from fastsample.samplers.registry import METHODS
from tests.helpers import oracles
from tests.helpers.cases import PREDICTIONS, SCHEDULES
from tests.helpers.laws import assert_rows_obey_the_laws
from tests.helpers.refusals import check_refusal, refusals

LINEAR, VDM = SCHEDULES["linear"], SCHEDULES["vdm"]
TWENTY = grids.uniform(1000, 20)

FIRST_ORDER = {
    "ddim": partial(fs.ddim),
    "ddim eta=0.5": partial(fs.ddim, eta=0.5),
    "ddim eta=1": partial(fs.ddim, eta=1.0),
    "ddim raw": partial(fs.ddim, eta=0.3, rederive=False),
    "ddim sigma_hat": partial(fs.ddim, sigma_hat=True),
    "ancestral small": partial(fs.ancestral),
    "ancestral large": partial(fs.ancestral, variance="large"),
    "ancestral learned": partial(fs.ancestral, variance="learned_range"),
    "shortcut": partial(fs.shortcut),
    "dpm++ 1": partial(fs.dpm_solver, order=1),
    "dpm++ sde 1": partial(fs.dpm_solver, order=1, stochastic=True),
    "restart": partial(fs.restart),
}
HIGHER_ORDER = {
    "dpm++ 2": partial(fs.dpm_solver, order=2),
    "dpm++ 3": partial(fs.dpm_solver, order=3),
    "dpm++ 3 corrected": partial(fs.dpm_solver, order=3, corrected=True),
    "dpm++ 3 high": partial(fs.dpm_solver, order=3, lower_order_final=False),
    "dpm++ sde 2": partial(fs.dpm_solver, order=2, stochastic=True),
    "unipc 1": partial(fs.unipc, order=1),
    "unipc 2": partial(fs.unipc, order=2),
}
SAMPLERS = {**FIRST_ORDER, **HIGHER_ORDER}
DRAWS = {name for name in SAMPLERS if any(word in name for word in ("eta", "raw", "sde", "sigma"))}
DRAWS |= {name for name in SAMPLERS if name.startswith(("ancestral", "shortcut"))}

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def held_back(sampler: str, rows: int) -> int:
    """The number of rows at the end that are held to a lower order, for that many rows."""
    if sampler.startswith("unipc"):
        return 0 if sampler == "unipc 1" else 1
    if sampler in FIRST_ORDER or "high" in sampler or rows >= 15:
        return 0
    return 2 if "3" in sampler else 1


def test_every_method_takes_it():
    assert all(method.knobs["last"] == "data" for method in METHODS.values())
    names = {partial.func.__name__ for partial in SAMPLERS.values()}
    assert names == {m.make.__name__ for m in METHODS.values() if not m.chooses_times}


@every_sampler
def test_by_default_it_is_data(sampler):
    make = SAMPLERS[sampler]
    plan = make(LINEAR, TWENTY)
    assert make(LINEAR, TWENTY, last="data") == plan
    assert make(LINEAR, TWENTY, last=0.0) == make(LINEAR, TWENTY, last=0) == plan
    assert plan.nodes[-1] == 0.0


@every_sampler
def test_the_first_step_is_time_one(sampler):
    make = SAMPLERS[sampler]
    first = make(LINEAR, TWENTY, last="first")
    assert first == make(LINEAR, TWENTY, last=1.0)
    assert first.nodes.tolist() == [*TWENTY.times[:-1].tolist(), 1.0]
    assert len(first) == first.calls == 20
    np.testing.assert_array_equal([first.alphas[-1], first.sigmas[-1]], LINEAR.levels(1.0))
    assert (first.column("d")[-1] > 0) == (sampler in DRAWS)
    assert_rows_obey_the_laws(first)
    assert fs.Plan.from_json(first.to_json()) == first


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("last", [50.0, 200.0, 450.0, 500.0, 523.7])
@every_sampler
def test_rows_above_it_are_those_of_the_full_plan(sampler, last, prediction):
    """All but the last one or two, which the order rule of each solver holds back."""
    make = SAMPLERS[sampler]
    plan, full = (make(LINEAR, TWENTY, prediction=prediction, **k) for k in ({"last": last}, {}))
    above = TWENTY.times[TWENTY.times > last]
    assert plan.nodes.tolist() == [*above.tolist(), last]
    assert plan.times.tolist() == above.tolist()
    assert_rows_obey_the_laws(plan)
    rows = len(plan)
    on_the_grid = last in TWENTY.times
    equal = rows - max(held_back(sampler, rows), int(not on_the_grid))
    np.testing.assert_array_equal(plan.rows[:equal], full.rows[:equal])
    if equal == rows:
        assert plan == full.until(last)
    for i in range(equal, rows):
        assert np.any(plan.rows[i] != full.rows[i])
    assert (plan.method, plan.check) == (full.method, full.check)


@pytest.mark.parametrize("sampler", HIGHER_ORDER)
def test_the_last_rows_are_of_lower_order(sampler):
    for last in (1.0, 500.0, 523.7):
        plan = SAMPLERS[sampler](LINEAR, TWENTY, last=last)
        rows = len(plan)
        orders = [
            int(max(np.flatnonzero([plan.column(f"c{n}")[i] != 0 for n in (1, 2)]), default=-1) + 2)
            for i in range(rows)
        ]
        if sampler.startswith("unipc"):
            continue  # its corrector looks back in every row; see the published loop below
        highest = plan.order
        expected = np.minimum(highest, np.arange(1, rows + 1))
        if "high" not in sampler and rows < 15:
            expected[-2] = min(expected[-2], 2)
            expected[-1] = 1
        assert orders == expected.tolist()


def dpm(x, denoise, noise, *, plan, order, stochastic=False, lower=True, curvature=1.0):
    levels = plan.alphas, plan.sigmas
    draws = noise if stochastic else None
    return oracles.dpm_solver(x, *levels, denoise, order, draws, lower, curvature)


def unipc(x, denoise, noise, *, plan, order):
    return oracles.unipc(x, plan.alphas, plan.sigmas, denoise, order)


LOOPS = {
    "dpm++ 1": partial(dpm, order=1),
    "dpm++ 2": partial(dpm, order=2),
    "dpm++ 3": partial(dpm, order=3),
    "dpm++ 3 corrected": partial(dpm, order=3, curvature=2.0),
    "dpm++ 3 high": partial(dpm, order=3, lower=False),
    "dpm++ sde 1": partial(dpm, order=1, stochastic=True),
    "dpm++ sde 2": partial(dpm, order=2, stochastic=True),
    "unipc 1": partial(unipc, order=1),
    "unipc 2": partial(unipc, order=2),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "cosine", "vdm", "flow"])
@pytest.mark.parametrize("sampler", LOOPS)
def test_rows_are_the_published_steps(sampler, name, prediction):
    schedule = SCHEDULES[name]
    for K in (6, 9, 20):
        grid = fs.Grid(schedule.T * np.append(np.linspace(0.95, 0.02, K), 0.0))
        for last in (0.001 * schedule.T, 0.3 * schedule.T):
            plan = SAMPLERS[sampler](schedule, grid, last=last, prediction=prediction)
            oracles.assert_plan_is(plan, partial(LOOPS[sampler], plan=plan))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rederive", [True, False])
def test_ddim_is_equation_12(eta, rederive):
    for last in (1.0, 310.0):
        plan = fs.ddim(LINEAR, TWENTY, eta=eta, rederive=rederive, last=last)
        levels, etas = (plan.alphas, plan.sigmas), np.full(len(plan), eta)

        def loop(x, denoise, noise, levels=levels, etas=etas):
            return oracles.ddim_eq12(x, *levels, denoise, etas, noise)

        oracles.assert_plan_is(plan, loop)


@pytest.mark.parametrize("approximation", ["steps", "var"])
@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_fastdpm(approximation, kappa):
    make = partial(fs.fastdpm, LINEAR, 20, approximation=approximation, kappa=kappa)
    full = make()
    assert make(last="data") == full
    plan = make(last=400.0)
    above = full.times[full.times > 400.0]
    assert plan.nodes.tolist() == [*above.tolist(), 400.0]
    np.testing.assert_array_equal(plan.rows[:-1], full.rows[: len(plan) - 1])
    assert (plan.column("d")[-1] > 0) == (kappa > 0)
    assert_rows_obey_the_laws(plan)
    # Its last step is at index 0, time 1, from where there is nothing left to do.
    first = make(last="first")
    assert full.times[-1] == 1.0
    assert first == full.until(1.0)


@every_sampler
def test_times_of_the_grid_at_or_below_it_are_left_out(sampler):
    make = SAMPLERS[sampler]
    fine, coarse = fs.Grid([900, 500, 300, 2, 1, 0.5, 0]), fs.Grid([900, 500, 300, 2, 0])
    assert make(LINEAR, fine, last="first") == make(LINEAR, coarse, last="first")
    assert make(VDM, fs.Grid([0.9, 0.7, 0.5, 0.1, 0]), last=0.3).nodes.tolist() == [
        *(0.9, 0.7, 0.5, 0.3)
    ]


def test_variances_of_a_plan_that_ends_part_way():
    """One for each row that is left; the last may be above 0, since it does not land on data."""
    grid = fs.Grid([900, 600, 300, 1, 0])
    plan = fs.ancestral(LINEAR, grid, variance=[0.3, 0.2, 0.1], last="first")
    np.testing.assert_allclose(plan.column("d"), np.sqrt([0.3, 0.2, 0.1]), rtol=1e-15)
    for variance, message in (
        ([0.3, 0.2, 0.1, 0.0], r"^ancestral: variance must have shape \(3,\), got \(4,\)$"),
        ([0.3, -0.2, 0.1], "^ancestral: variance must not be negative, got -0.2$"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.ancestral(LINEAR, grid, variance=variance, last="first")


def test_one_row_may_be_left():
    for make in SAMPLERS.values():
        if make.keywords.get("order", 1) > 1:
            continue
        plan = make(LINEAR, TWENTY, last=999.0)
        assert len(plan) == 1
        assert_rows_obey_the_laws(plan)
    for make in (fs.dpm_solver, fs.unipc):
        assert make(LINEAR, TWENTY, last=999.0) == make(LINEAR, TWENTY, last=999.0, order=1)
        with pytest.raises(ValueError, match="order must be at most the number of steps 1, got 2"):
            make(LINEAR, TWENTY, last=999.0, order=2)


def refuse(last, schedule=LINEAR, grid=TWENTY):
    """One call of DDIM with a bad `last`."""
    return lambda: fs.ddim(schedule, grid, last=last, prediction="v")


@refusals(
    last={
        "another word": (
            refuse("end"),
            ValueError,
            """^ddim: last must be "data", "first" or a time, got 'end'$""",
        ),
        "no first step": (
            refuse("first", VDM, grids.uniform(1.0, 5)),
            ValueError,
            r'^ddim: last must be "data" or a time for a schedule without whole steps, got "first" '
            r"for NoiseSchedule\.vdm\(.*\)$",
        ),
        "the start": (
            refuse(1000.0),
            ValueError,
            "^ddim: last must be below the grid's first time 1000, got 1000$",
        ),
        "above the start": (
            refuse(700.0, grid=fs.Grid([600, 300, 0])),
            ValueError,
            "^ddim: last must be below the grid's first time 600, got 700$",
        ),
        "above T": (refuse(1000.5), ValueError, r"^ddim: last must be in \[0, 1000\], got 1000.5$"),
        "negative": (refuse(-1.0), ValueError, r"^ddim: last must be in \[0, 1000\], got -1$"),
        "NaN": (refuse(np.nan), ValueError, r"^ddim: last must be in \[0, 1000\], got nan$"),
        "None": (refuse(None), TypeError, "^ddim: last must be a real number, got None$"),
        "True": (refuse(True), TypeError, "^ddim: last must be a real number, got True$"),
        "a list": (refuse([1.0]), TypeError, r"^ddim: last must be a real number, got \[1\.0\]$"),
    }
)
def test_refused(call, error, match):
    check_refusal(call, error, match)
