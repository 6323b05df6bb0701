"""Tuned plans: never worse than what they start from, the same everywhere, refused elsewhere."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.ops.draws import NOISE_VERSION, TUNE_DRAW
from fastsample.plans.files import load_plans, save_plans
from fastsample.plans.rows import row_table
from fastsample.tuning.regression import FittedRun, linear_combination
from fastsample.tuning.search import nearest_positions, search_times
from fastsample.tuning.split import Split
from fastsample.tuning.teacher import teacher_times
from tests.helpers.mixture import mixture
from tests.helpers.networks import LINEAR, denoiser
from tests.helpers.refusals import check_refusal, refusals

SMALL = {"samples": 96, "teacher_steps": 32, "max_runs": 15}


def rmse(a, b):
    return float((a - b).double().square().mean().sqrt())


def typical(a, b):
    """The same over the better nine tenths: a sample that ends in another mode outweighs all."""
    squares = (a - b).double().square().mean(1).sort().values
    return float(squares[: len(squares) * 9 // 10].mean().sqrt())


def fresh(model, count=200, **options):
    """Other noise, and where a fine run takes it."""
    start = torch.randn(count, 2, generator=torch.Generator().manual_seed(3))
    return start, fs.sample(model, 300, start=start, method="dpm++", **options)


@pytest.mark.parametrize("steps", [3, 5, 8])
def test_it_is_better_than_every_start_on_fresh_noise(steps):
    model = mixture()
    plan = fs.tune(model, steps, samples=400, teacher_steps=64, max_runs=25)
    assert len(plan) == steps
    start, fine = fresh(model)
    error = typical(fs.sample(model, plan, start=start), fine)
    for method, knobs in (("ddim", {}), ("dpm++", {"order": 2}), ("unipc", {"order": 2})):
        for grid in ("uniform", "quadratic", "log_snr"):
            known = fs.sample(model, steps, start=start, method=method, grid=grid, **knobs)
            assert error < (0.9 if steps < 8 else 1.001) * typical(known, fine), (method, grid)


@pytest.mark.parametrize("objective", ["endpoint", "robust"])
def test_the_report_says_what_was_chosen(objective):
    plan = fs.tune(mixture(), 4, objective=objective, **SMALL)
    note = plan.provenance
    entries = [*note["starts"], *note["stages"]]
    best = min(entries, key=lambda entry: entry["validation"])
    assert note["chosen"] == best["name"]
    assert note["samples"] == [72, 24]
    assert note["noise"] == NOISE_VERSION
    assert 0 < note["runs"] <= SMALL["max_runs"] + 8
    text = plan.describe()
    assert repr(plan) in text
    assert f"{best['name']:44}" in text
    assert text.count("<- this plan") == 1


def test_the_error_it_states_is_the_plan_s():
    """The report's run and `sample` are the same sampler."""
    model = mixture()
    plan = fs.tune(model, 4, **SMALL)
    split = Split.of(96, torch.device("cpu"))
    index = torch.as_tensor(split.index[split.held_out])
    given = {"start": ops.noise(torch.tensor([0]), index, (2,), draw=TUNE_DRAW)}
    times = teacher_times(model.schedule, 32)
    teacher = fs.dpm_solver(model.schedule, fs.Grid([*times[::-1], 0.0]), order=3, corrected=True)
    error = rmse(fs.sample(model, plan, **given), fs.sample(model, teacher, **given))
    chosen = [s for s in plan.provenance["stages"] if s["name"] == plan.provenance["chosen"]]
    assert error == pytest.approx(chosen[0]["validation"], rel=1e-3)


def test_same_plan_every_time_and_in_any_batches():
    one = fs.tune(mixture(), 4, **SMALL)
    assert one == fs.tune(mixture(), 4, **SMALL)
    other = fs.tune(mixture(), 4, batch_size=7, **SMALL)
    np.testing.assert_allclose(other.rows, one.rows, rtol=1e-4, atol=1e-4)
    assert one != fs.tune(mixture(), 4, seed=1, **SMALL)


def test_without_rows_the_sampler_is_a_known_one():
    plan = fs.tune(mixture(), 4, rows=False, methods=["dpm++"], **SMALL)
    assert plan.method.startswith("dpm_solver")
    assert plan.check != "none"
    note = plan.provenance
    assert min(s["validation"] for s in note["stages"]) <= note["starts"][0]["validation"]


def one_call_fewer_than_rows():
    """Its first row calls no network: x0 of pure noise is taken to be 0."""
    plan = fs.ddim(LINEAR, fs.Grid([1000, 600, 300, 0]))
    rows = np.array(plan.rows)
    rows[0] = row_table(1, a=plan.alphas[1] / plan.alphas[0])[0]
    return fs.Plan(plan.nodes, rows, plan.alphas, plan.sigmas, "epsilon", "free", "none", LINEAR)


def test_plans_are_stored_and_chosen_by_their_network_calls(tmp_path):
    plan = one_call_fewer_than_rows()
    assert (plan.calls, len(plan)) == (2, 3)
    save_plans(tmp_path / "plans.json", [plan])
    assert load_plans(tmp_path / "plans.json") == {2: plan}
    model = mixture().with_plans([plan])
    assert list(model.plans) == [2]
    start = torch.randn(4, 2)
    assert torch.equal(fs.sample(model, 2, start=start), fs.sample(model, plan, start=start))
    assert fs.Sampler(model, 2).plan == plan
    assert fs.Sampler(model, 3).plan != plan
    with pytest.raises(ValueError, match="got 3 for one of 2"):
        model.with_plans({3: plan})


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_predictions(prediction):
    plan = fs.tune(mixture(prediction), 4, **SMALL)
    expected = fs.tune(mixture(), 4, **SMALL)
    assert plan.prediction == prediction
    np.testing.assert_allclose(
        plan.provenance["stages"][0]["validation"],
        expected.provenance["stages"][0]["validation"],
        rtol=0.02,
    )


def test_continuous_times():
    flow = fs.NoiseSchedule.flow()
    model = mixture("flow", flow, time="fraction")
    plan = fs.tune(model, 4, **SMALL)
    best_start = plan.provenance["starts"][0]["validation"]
    chosen = min(s["validation"] for s in plan.provenance["stages"])
    assert chosen < 0.5 * best_start
    assert not np.all(plan.times == np.rint(plan.times))


def test_guidance_becomes_part_of_the_plan():
    model = mixture()
    cond, uncond = {"y": torch.ones(96)}, {"y": 0.0}
    plan = fs.tune(model, 4, guidance=2.0, cond=cond, uncond=uncond, **SMALL)
    assert np.all(plan.column("w") == 2.0)
    start, fine = fresh(model, 50, guidance=2.0, cond={"y": 1.0}, uncond=uncond)
    given = {"start": start, "cond": {"y": 1.0}, "uncond": uncond}
    error = rmse(fs.sample(model, plan, **given), fine)
    known = fs.sample(model, 4, guidance=2.0, method="dpm++", **given)
    assert error < 0.7 * rmse(known, fine)


def test_files_hold_the_same_plans(tmp_path):
    model = mixture()
    plans = [fs.tune(model, steps, **SMALL) for steps in (5, 3)]
    found = load_plans(save_plans(tmp_path / "plans.json", plans))
    assert list(found) == [3, 5]
    for plan in plans:
        again = found[len(plan)]
        assert again == plan
        assert again.provenance == plan.provenance == pickle.loads(pickle.dumps(plan)).provenance
        one, two = (fs.sample(model, p, num_samples=5, seed=2) for p in (plan, again))
        assert torch.equal(one, two)


def test_a_model_with_plans_uses_them():
    model = mixture()
    plan = fs.tune(model, 4, **SMALL)
    tuned = model.with_plans([plan])
    options = {"num_samples": 6, "seed": 4}
    with_plan = fs.sample(model, plan, **options)
    assert torch.equal(fs.sample(tuned, 4, **options), with_plan)
    assert torch.equal(fs.sample(tuned, 5, **options), fs.sample(model, 5, **options))
    for asked in ({"method": "ddim"}, {"grid": "uniform"}, {"clip": None}, {"eta": 0.5}):
        found = fs.sample(tuned, 4, **asked, **options)
        assert torch.equal(found, fs.sample(model, 4, **asked, **options)), asked
    assert model.plans == {}


def elsewhere(**options):
    plan = fs.tune(mixture(), 3, **SMALL)
    return lambda: mixture(**options).with_plans({3: plan})


def tuned(**options):
    return lambda: fs.tune(mixture(), **{"steps": 4, **SMALL, **options})


@refusals(
    tune={
        "one step": (tuned(steps=1), ValueError, "steps must be in .2, 16., got 1"),
        "more steps than the teacher": (tuned(steps=17), ValueError, "steps must be in"),
        "few samples": (tuned(samples=8), ValueError, "samples must be at least 16, got 8"),
        "stochastic": (
            tuned(methods=["ancestral"]),
            ValueError,
            "methods must be deterministic ones of .*, got 'ancestral'",
        ),
        "unknown": (tuned(methods="euler"), ValueError, "methods must be names of .*, got 'euler'"),
        "none": (tuned(methods=[]), ValueError, "methods must be some of .*, got none"),
        "objective": (tuned(objective="l1"), ValueError, "objective must be"),
        "guidance": (tuned(guidance=2.0), ValueError, "uncond must be given with guidance"),
        "rows": (tuned(rows="no"), TypeError, "rows must be True or False, got 'no'"),
        "model": (lambda: fs.tune(None, 4), TypeError, "denoiser must be a Denoiser, got NoneType"),
    },
    plans={
        "schedule": (
            elsewhere(schedule=fs.NoiseSchedule.cosine(1000)),
            ValueError,
            "with_plans: plans must fit the model's schedule .*, got",
        ),
        "prediction": (
            elsewhere(prediction="v"),
            ValueError,
            "with_plans: plans must fit the model's prediction 'v', got a plan for 'epsilon'",
        ),
        "length": (
            lambda: mixture().with_plans({4: fs.ddim(LINEAR, fs.grids.uniform(1000, 3))}),
            ValueError,
            "with_plans: plans must be one of each number of network calls, got 4 for one of 3",
        ),
        "part way": (
            lambda: mixture().with_plans([fs.ddim(LINEAR, fs.grids.uniform(1000, 3), last=50)]),
            ValueError,
            r"with_plans: plans must be complete \(end at data\), got ddim.* of 3 calls",
        ),
        "kind": (lambda: mixture().with_plans([3]), TypeError, "plans must be Plans, got int"),
    },
)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_nan_names_the_time():
    times = teacher_times(LINEAR, 32)

    def network(x, t):
        return x * (torch.nan if float(t[0]) + 1 == times[20] else 0.5)

    with pytest.raises(ValueError, match=f"NaN or infinity at t = {times[20]:g}"):
        fs.tune(denoiser(network, 2), 4, **SMALL)


def test_search_finds_the_best_of_a_bowl():
    best = (17, 9, 4)

    def fit(positions, previous):
        assert previous is None or previous.positions != positions
        error = 1.0 + sum((a - b) ** 2 for a, b in zip(positions, best, strict=True))
        return FittedRun(positions, [], [], []), error

    result = search_times(fit, (12, 6, 1), 20, has_budget=lambda: True)
    assert result.best.positions == best
    assert result.error == 1.0


def test_nearest_positions_are_distinct():
    times = np.arange(1.0, 11.0)
    assert nearest_positions(times, np.array([9.8, 5.1, 1.0])) == (9, 4, 0)
    assert nearest_positions(times, np.array([1.2, 1.1, 1.0])) == (2, 1, 0)
    assert nearest_positions(times, np.array([10.0, 9.9, 9.8])) == (9, 8, 7)
    assert nearest_positions(times[:2], np.array([3.0, 2.0, 1.0])) is None


def test_a_linear_combination_is_the_sum():
    features = tuple(torch.randn(4, 3) for _ in range(3))
    c = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    expected = 0.5 * features[0] - features[1] + 2.0 * features[2]
    torch.testing.assert_close(linear_combination(features, c), expected)
