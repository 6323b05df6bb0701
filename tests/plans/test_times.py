"""Times that the network is told, levels of a schedule, and plans that end part way."""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.plans.rows import COLUMNS
from fastsample.plans.text import PLAN
from tests.helpers import oracles
from tests.helpers.cases import SAMPLERS, SCHEDULES
from tests.helpers.laws import assert_rows_obey_the_laws
from tests.helpers.refusals import check_refusal, refusals

LINEAR = SCHEDULES["linear"]
TEN = fs.ddim(LINEAR, grids.uniform(1000, 10))
KARRAS = fs.dpm_solver(SCHEDULES["scaled_linear"], grids.karras(SCHEDULES["scaled_linear"], 10))
ROUNDED = KARRAS.with_times(np.rint(KARRAS.times))
OLD = Path(__file__).parents[1] / "data" / "old"


def four_back() -> fs.Plan:
    """Rows of DDIM that take some of x0 from up to four rows before."""
    rows = TEN.rows.copy()
    for n in (1, 2, 3, 4):
        rows[n:-1, COLUMNS.index("b")] -= 0.25 / n
        rows[n:-1, COLUMNS.index(f"c{n}")] += 0.25 / n
    return replace(TEN, rows=rows, check="mean", times=TEN.times - 0.25)


# ---- what the network is told


def test_by_default_they_are_the_nodes_before_the_rows():
    for plan in (TEN, fs.ddim_inversion(LINEAR, grids.uniform(1000, 10))):
        np.testing.assert_array_equal(plan.times, plan.nodes[:-1])
        assert plan.with_times(None) == plan
        assert "network" not in repr(plan).splitlines()[2]


def test_other_times_change_what_is_told_and_nothing_else():
    assert np.all(ROUNDED.times == np.rint(KARRAS.nodes[:-1]))
    assert np.any(ROUNDED.times != KARRAS.times)
    for name in ("nodes", "rows", "alphas", "sigmas"):
        assert getattr(ROUNDED, name).tobytes() == getattr(KARRAS, name).tobytes()
    told: list[float] = []

    def network(x, t):
        told.append(t)
        return 0.1 * x

    oracles.execute(ROUNDED, network, oracles.X_T, np.zeros((10, 8)))
    assert told == ROUNDED.times.tolist()
    head, *lines = repr(ROUNDED).splitlines()[2:]
    assert head.split()[:4] == ["row", "time", "network", "p"]
    assert [float(line.split()[4]) for line in lines] == ROUNDED.times.tolist()
    for other in (ROUNDED.with_guidance(3.0), ROUNDED.with_clip(1.0), ROUNDED.with_provenance({})):
        np.testing.assert_array_equal(other.times, ROUNDED.times)


def test_plans_with_other_times_are_other_plans():
    assert ROUNDED != KARRAS
    assert hash(ROUNDED) != hash(KARRAS)
    assert ROUNDED.with_times(KARRAS.times) == KARRAS
    assert pickle.loads(pickle.dumps(ROUNDED)) == ROUNDED
    assert hash(pickle.loads(pickle.dumps(ROUNDED))) == hash(ROUNDED)
    with pytest.raises(ValueError, match="read-only"):
        ROUNDED.times[0] = 1.0


def test_dpm_solver_on_karras_levels_with_rounded_times():
    """ "DPM++ 2M Karras": exact levels between whole steps, and whole steps for the network.

    The times are a part of the plan, not of a `Denoiser(time=callable)` that no file can keep.
    """
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True
    )
    with warnings.catch_warnings():
        # diffusers 0.42 hands a tensor to np.array, which NumPy 2 asks for a copy keyword.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(10)
    schedule = fs.NoiseSchedule.from_betas(scheduler.betas.double().numpy())
    sigma = scheduler.sigmas.double().numpy()[:-1]
    log_snr = np.maximum(-2 * np.log(sigma), float(schedule.log_snr(1000.0)))
    grid = fs.Grid(np.append(schedule.time_at_log_snr(log_snr), 0.0))
    plan = fs.dpm_solver(schedule, grid).with_times(scheduler.timesteps.numpy() + 1.0)
    assert np.abs(plan.nodes[1:-1] - plan.times[1:]).max() > 0.1

    x = torch.from_numpy(oracles.X_T).float()
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x) * (0.3 + t / 1000), t, x, return_dict=False)[0]

    def network(x, t):
        return np.tanh(x) * (0.3 + (t - 1) / 1000)

    found, at_the_nodes = (
        oracles.execute(p, network, oracles.X_T, np.zeros((10, 8)))
        for p in (fs.Plan.from_json(plan.to_json()), plan.with_times(None))
    )
    scale = np.abs(found).max()
    assert np.abs(found - x.numpy()).max() < 1e-5 * scale
    assert np.abs(found - at_the_nodes).max() > 5e-5 * scale


def test_times_of_rows_without_a_call_are_free():
    """Nobody is told them."""
    rows = TEN.rows.copy()
    for column in ("p", "b"):
        rows[0, COLUMNS.index(column)] = 0.0
    rows[0, COLUMNS.index("q")] = 0.0
    rows[0, COLUMNS.index("a")] = TEN.alphas[1] / TEN.alphas[0]
    free = replace(TEN, rows=rows, check="mean", times=np.append(0.0, TEN.times[1:]))
    assert free.times[0] == 0.0
    assert free.calls == 9


def telling(times) -> object:
    return lambda: TEN.with_times(times)


TIMES = TEN.times


@refusals(
    times={
        "zero": (
            telling(np.append(TIMES[:9], 0.0)),
            ValueError,
            "^Plan: times must be above 0 where the network is called, got 0 in row 9$",
        ),
        "negative": (
            telling(np.append(-1.0, TIMES[1:])),
            ValueError,
            "^Plan: times must be above 0 where the network is called, got -1 in row 0$",
        ),
        "as many as nodes": (
            telling(TEN.nodes),
            ValueError,
            r"^Plan: times must have shape \(10,\) for 11 nodes, got \(11,\)$",
        ),
        "a number": (telling(5.0), ValueError, r"^Plan: times must have shape \(10,\) .*\(\)$"),
        "above T": (
            telling(TIMES + 1.0),
            ValueError,
            "^Plan: times must be at or below T = 1000, got 1001$",
        ),
        "NaN": (telling(TIMES * np.nan), ValueError, "^Plan: times must be finite, got nan"),
        "infinite": (telling(TIMES * np.inf), ValueError, "^Plan: times must be finite, got inf"),
        "float32": (
            telling(TIMES.astype(np.float32)),
            TypeError,
            "^Plan: times must be float64, got float32; ",
        ),
        "text": (telling(["1"] * 10), TypeError, "^Plan: times must hold real numbers, got <U1"),
    }
)
def test_refused_times(call, error, match):
    check_refusal(call, error, match)


# ---- files


@pytest.mark.parametrize("plan", [ROUNDED, four_back()], ids=["times", "four histories"])
def test_json_round_trip(plan, tmp_path):
    text = plan.to_json()
    assert json.loads(text)["version"] == 3
    assert json.loads(text)["times"] == plan.times.tolist()
    found = fs.Plan.from_json(text)
    assert found == plan
    assert hash(found) == hash(plan)
    for name in ("rows", "times"):
        assert getattr(found, name).tobytes() == getattr(plan, name).tobytes()
    assert found.needs_history == plan.needs_history
    assert fs.load_plans(fs.save_plans(tmp_path / "plans.json", [plan])) == {10: plan}


def test_four_histories():
    plan = four_back()
    assert (plan.needs_history, plan.order) == (4, 5)
    assert_rows_obey_the_laws(plan)


def as_version(plan: fs.Plan, version: int) -> str:
    """The text that a fastsample wrote before there were times and four histories."""
    fields = json.loads(plan.to_json())
    kept = [i for i, name in enumerate(COLUMNS) if name not in ("c3", "c4")]
    fields["columns"] = [COLUMNS[i] for i in kept]
    fields["rows"] = [[row[i] for i in kept] for row in fields["rows"]]
    del fields["times"], fields["sha256"]
    fields["version"] = version
    return json.dumps(fields) if version == 1 else PLAN.to_text(fields)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_old_versions_load(sampler, version):
    plan = SAMPLERS[sampler](LINEAR, grids.uniform(1000, 6), "v")
    text = as_version(plan, version)
    assert json.loads(text)["version"] == version
    assert len(json.loads(text)["columns"]) == 13
    assert fs.Plan.from_json(text) == plan


def test_stored_old_files_load_with_the_rows_they_hold():
    text = (OLD / "plan.json").read_text()
    stored = [json.loads(text), *json.loads((OLD / "plans.json").read_text())["plans"]]
    found = [fs.Plan.from_json(text), *fs.load_plans(OLD / "plans.json").values()]
    by_length = {len(plan): plan for plan in found}
    for fields in stored:
        assert fields["version"] < 3
        plan = by_length[len(fields["rows"])]
        for i, name in enumerate(fields["columns"]):
            assert plan.column(name).tolist() == [float(row[i]) for row in fields["rows"]]
        assert not plan.column("c3").any()
        assert not plan.column("c4").any()
        assert plan.times.tolist() == fields["nodes"][:-1]
        assert fs.Plan.from_json(plan.to_json()) == plan


def edited(version: int = 3, **changes) -> str:
    """A plan's text with other entries and their right checksum."""
    fields = json.loads(TEN.to_json() if version == 3 else as_version(TEN, version))
    fields.pop("sha256", None)
    return PLAN.to_text({**fields, **changes})


# ---- levels


@pytest.mark.parametrize("version", [1, 2, 3])
def test_halved_nodes_are_refused(version):
    """They would start sampling at T / 2 with the coefficients of T, without a word."""
    assert fs.Plan.from_json(edited(version)) == TEN
    halved = (TEN.nodes / 2).tolist()
    with pytest.raises(
        ValueError,
        match=r"\(Plan: alphas must be the schedule's levels at the nodes, got 0\.16087\d* at t = "
        r"300, where the schedule has 0\.62961\d*; pass schedule=None for levels of another origin",
    ):
        fs.Plan.from_json(edited(version, nodes=halved))
    # Without a schedule nothing is known to contradict them.
    assert fs.Plan.from_json(edited(version, nodes=halved, schedule=None)).nodes[0] == 500.0


def moved(name: str, by: float, **changes):
    """A plan of which one level differs from the schedule's."""
    levels = getattr(TEN, name).copy()
    levels[4] += by
    return replace(TEN, **{name: levels}, check="none", **changes)


@pytest.mark.parametrize("name", ["alphas", "sigmas"])
def test_levels_are_those_of_the_schedule(name):
    for by in (5e-13, -5e-13):
        moved(name, by)
    for by in (2e-12, -2e-12, 0.1):
        with pytest.raises(
            ValueError,
            match=f"^Plan: {name} must be the schedule's levels at the nodes, got .* at t = 600, "
            "where the schedule has .*; pass schedule=None for levels of another origin$",
        ):
            moved(name, by)
    moved(name, 0.1, schedule=None)


def test_nodes_above_the_schedule():
    with pytest.raises(ValueError, match=r"^Plan: nodes must be at or below T = 100, got 1000$"):
        replace(TEN, schedule=fs.NoiseSchedule.linear(100))


# ---- the first rows of a plan


@pytest.mark.parametrize("node", [900.0, 500.0, 100.0, 0.0])
@pytest.mark.parametrize("plan", [TEN, four_back()], ids=["ddim", "four histories"])
def test_until(plan, node):
    first = plan.until(node)
    count = plan.nodes.tolist().index(node)
    assert len(first) == first.calls == count
    assert first.nodes.tolist() == plan.nodes[: count + 1].tolist()
    for name in ("rows", "times"):
        np.testing.assert_array_equal(getattr(first, name), getattr(plan, name)[:count])
    for name in ("method", "check", "schedule", "prediction"):
        assert getattr(first, name) == getattr(plan, name)
    assert (first == plan) == (node == 0.0)
    assert_rows_obey_the_laws(first)
    assert fs.Plan.from_json(first.to_json()) == first


def test_until_keeps_told_times():
    first = ROUNDED.until(ROUNDED.nodes[3])
    np.testing.assert_array_equal(first.times, ROUNDED.times[:3])


def test_until_of_an_inversion():
    plan = fs.ddim_inversion(LINEAR, grids.uniform(1000, 10))
    assert plan.until(400.0).nodes.tolist() == [100, 200, 300, 400]
    assert plan.until(400.0).inverts


@pytest.mark.parametrize("node", [1000.0, 950.0, -1.0, np.nan, 1e9])
def test_until_another_time(node):
    """The start is no end either: no row would be left."""
    match = rf"^Plan\.until: node must be one of \[900\.0, .* 0\.0\], got {node}$"
    with pytest.raises(ValueError, match=match):
        TEN.until(node)


def test_a_plan_that_ends_part_way_may_draw_noise_in_its_last_row():
    plan = fs.ancestral(LINEAR, grids.uniform(1000, 10)).until(300.0)
    assert plan.column("d")[-1] > 0
    assert plan.column("a")[-1] != 0
    np.testing.assert_array_equal([plan.alphas[-1], plan.sigmas[-1]], LINEAR.levels(300.0))
    assert_rows_obey_the_laws(plan)


def test_a_last_row_that_lands_above_data_obeys_the_laws_of_its_level():
    """Stable Diffusion's set_alpha_to_one=False by hand: the last row lands on t = 1."""
    schedule = fs.NoiseSchedule.scaled_linear()
    plan = fs.ddim(schedule, grids.diffusers(1000, 10, "leading", 1), rederive=False)
    alpha, sigma = (float(level) for level in schedule.levels(1.0))
    rows, nodes = plan.rows.copy(), plan.nodes.copy()
    alphas, sigmas = plan.alphas.copy(), plan.sigmas.copy()
    rows[-1, [COLUMNS.index(name) for name in ("a", "b", "e")]] = 0.0, alpha, sigma
    nodes[-1], alphas[-1], sigmas[-1] = 1.0, alpha, sigma
    first = replace(plan, nodes=nodes, rows=rows, alphas=alphas, sigmas=sigmas)
    assert first.check == "all"
    assert fs.ddim(schedule, fs.Grid(plan.nodes), rederive=False, last="first") == first
    with pytest.raises(ValueError, match=r"alphas must be the schedule's levels at the nodes"):
        replace(first, nodes=plan.nodes)  # such levels at t = 0
    rows[-1, COLUMNS.index("e")] *= 1.0 + 1e-9
    with pytest.raises(ValueError, match=r"rows\[9\] breaks the variance law"):
        replace(first, rows=rows)
