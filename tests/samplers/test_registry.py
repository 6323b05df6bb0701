"""Samplers by name: every method, every knob of it, the times it is given, and what it refuses."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.cli.main import main
from fastsample.evaluation.compare import compare
from fastsample.grids.registry import GRIDS, maker_for
from fastsample.samplers.registry import METHODS, Method, Setting, table
from fastsample.tuning.baselines import check_methods, solver_plans
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, halve_wide
from tests.helpers.refusals import MODEL, START, check_refusal, refusals, sample

K = 12  # FastDPM's variances reach T without a warning
GRID = grids.uniform(1000, K)
PLANS = {
    name: partial(method.make, LINEAR, K if method.chooses_times else GRIDS[method.grid](LINEAR, K))
    for name, method in METHODS.items()
}
# Other values than the default, with what they need beside them.
KNOBS = {
    "eta": [{"eta": 0.4}],
    "sigma_hat": [{"sigma_hat": True}],
    "rederive": [{"rederive": False}],
    "variance": [{"variance": "large"}, {"variance": np.linspace(0.3, 0.0, K)}],
    "approximation": [{"approximation": "var"}],
    "spacing": [{"spacing": "quadratic"}],
    "kappa": [{"kappa": 0.6}],
    "extended": [{"spacing": "quadratic", "extended": True}],
    "variances": [{"variances": np.linspace(1e-4, 0.6, K)}],
    "noise_levels": [{"noise_levels": np.linspace(0.999, 0.1, K)}],
    "last": [{"last": "first"}, {"last": 20.0}],
    "order": [{"order": 1}],
    "stochastic": [{"stochastic": True}],
    "lower_order_final": [{"order": 3, "lower_order_final": False}],
    "intervals": [{"intervals": [(200.0, 600.0, 2)]}],
    "base": [{"base": "dpm++"}],
    "corrected": [{"order": 3, "corrected": True}],
}
CASES = [
    (name, knobs)
    for name, method in METHODS.items()
    for knob in method.knobs
    for knobs in KNOBS[knob]
]
WITH_GRIDS = [name for name, method in METHODS.items() if not method.chooses_times]
START_12 = torch.linspace(-1.5, 2.0, 12).double().reshape(2, 2, 3)


def run(steps=K, network=halve, **options):
    """Samples with a clip that acts, so that re-deriving eps matters."""
    clip = {} if isinstance(steps, fs.Plan) else {"clip": 1.2}
    return fs.sample(denoiser(network, 2, 3), steps, start=START_12, seed=3, **clip, **options)


# ---- the registry


def test_every_knob_is_tried():
    assert KNOBS.keys() == {knob for method in METHODS.values() for knob in method.knobs}
    assert all(knobs[knob] is not None for knob, each in KNOBS.items() for knobs in each)


def test_what_the_registry_says_of_a_method_is_so():
    for method in METHODS.values():
        chosen = K if method.chooses_times else GRID
        settings = [setting.knobs for setting in method.deterministic]
        plans = [method.make(LINEAR, chosen, **knobs) for knobs in settings or ({},)]
        assert not settings or not any(plan.is_stochastic for plan in plans)
        # A corrector at no extra call looks back at one x0 more than the order says.
        assert max(plan.order for plan in plans) in (method.order, method.order + 1)


def toy(schedule, grid, *, lean=0.5, clip=None, prediction="epsilon"):
    """DDIM under another name."""
    assert 0.0 <= lean <= 1.0
    return fs.ddim(schedule, grid, clip=clip, prediction=prediction)


def test_a_sampler_is_a_function_and_one_entry(monkeypatch, capsys, tmp_path):
    """Everybody who names samplers reads the registry: no third place has to know."""
    entry = Method(toy, "a toy", "nobody, arXiv:0000.00000", deterministic=(Setting("Toy"),))
    monkeypatch.setitem(METHODS, "toy", entry)
    monkeypatch.delitem(fs.__dict__, "toy", raising=False)
    same = fs.sample(MODEL, 5, method="ddim", seed=0)
    assert torch.equal(fs.sample(MODEL, 5, method="toy", lean=0.25, seed=0), same)
    assert torch.equal(fs.sample(MODEL, 5, lean=0.25, seed=0), same)  # its knob selects it
    assert fs.toy is toy  # type: ignore[attr-defined]
    monkeypatch.delitem(fs.__dict__, "toy")
    assert '| `"toy"`, `fs.toy` | a toy | `lean=0.5` | nobody' in table()
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    assert "toy" in capsys.readouterr().out
    assert main(["sample", "digits", "--method", "toy", "--out", str(tmp_path / "x.npy")]) == 0
    assert "toy" in check_methods(None)
    assert [plan.method for plan in solver_plans(MODEL, GRID, ["toy"], None)] == ["ddim(eta=0.0)"]
    plan = fs.ddim(LINEAR, GRID)
    line_up = compare(MODEL, [plan], samples=4)
    assert any(entry.name.startswith("toy") for entry in line_up.entries)


def test_the_table_lists_every_method_with_its_knobs_and_source():
    head, rule, *lines = table().splitlines()
    assert head.count("|") == rule.count("|") == 5
    assert len(lines) == len(METHODS)
    for line, (name, method) in zip(lines, METHODS.items(), strict=True):
        assert line.startswith(f'| `"{name}"`, `fs.{method.make.__name__}` | ')
        assert line.count("|") == 5
        assert line.endswith(f"| {method.source} |")
        listed = re.findall(r"`(\w+)=([^`]*)`", line.split("|")[3])
        defaults = {
            knob: f'"{value}"' if isinstance(value, str) else str(value)
            for knob, value in method.knobs.items()
        }
        assert dict(listed) == defaults
        assert method.source.count("arXiv:") >= 1
        assert getattr(fs, method.make.__name__) is method.make
    assert '| `last="data"` |' in lines[list(METHODS).index("shortcut")]


# ---- from arguments to the plan


@pytest.mark.parametrize("method", METHODS)
def test_each_method_by_name_is_its_plan_by_hand(method):
    spy = Spy(halve)
    got = run(network=spy, method=method)
    assert spy.batches == [2] * K
    plan = PLANS[method](clip=1.2)
    assert torch.equal(got, run(plan))
    assert [float(t[0]) + 1 for t in spy.told] == pytest.approx(plan.times.tolist(), rel=1e-6)
    other = "unipc" if method != "unipc" else "dpm++"
    assert not torch.equal(got, run(method=other))


@pytest.mark.parametrize(("method", "knobs"), CASES, ids=str)
def test_each_knob_reaches_the_sampler(method, knobs):
    got = run(method=method, **knobs)
    plan = PLANS[method](clip=1.2, **knobs)
    assert torch.equal(got, run(plan))
    assert not torch.equal(got, run(method=method))
    # Every one of them: without its last the plan is another.
    fewer = dict(list(knobs.items())[:-1])
    assert not torch.equal(got, run(method=method, **fewer))


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
@pytest.mark.parametrize("method", METHODS)
def test_prediction_and_clip_are_the_models_own(method, prediction):
    model = denoiser(halve, 2, 3, prediction=prediction, clip=(-0.3, 0.8))
    plan = PLANS[method](prediction=prediction, clip=(-0.3, 0.8))
    assert torch.equal(fs.sample(model, K, method=method, seed=1), fs.sample(model, plan, seed=1))


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("method", WITH_GRIDS)
def test_methods_take_grids_by_name_or_as_they_are(method, grid):
    named = run(method=method, grid=grid)
    made = maker_for(grid, METHODS[method].family)(LINEAR, K)
    assert torch.equal(named, run(made, method=method))
    assert torch.equal(named, run(made.times.tolist(), method=method))


def test_learned_variances_run_under_every_method():
    wide = denoiser(halve_wide, 2, 3, variance="learned_range")
    for method in METHODS:
        got, narrow = (fs.sample(model, K, method=method, seed=0) for model in (wide, MODEL))
        assert torch.equal(got, narrow) == (method != "ancestral")


# ---- times drawn from a seed of their own


@pytest.mark.parametrize("method", WITH_GRIDS)
def test_random_times_are_those_of_the_grid_seed(method):
    def told(grid_seed, batch=2):
        spy = Spy(halve)
        options = {"grid": "random", "grid_seed": grid_seed, "seed": 1, "num_samples": batch}
        got = fs.sample(denoiser(spy, 3), K, method=method, **options)
        return got, [float(t[0]) + 1 for t in spy.told]

    small, times = told(5)
    large, again = told(np.int64(5), 7)
    assert again == times
    assert torch.equal(large[:2], small)
    assert times == grids.random(1000, K, 5).times[:-1].tolist()
    assert times[0] == 1000.0
    assert told(6)[1] != times


def test_random_times_of_a_continuous_schedule():
    spy = Spy(halve)
    flow = fs.NoiseSchedule.flow()
    model = denoiser(spy, 3, schedule=flow, prediction="flow", time="fraction")
    fs.sample(model, 5, grid="random", grid_seed=0)
    expected = grids.random(1.0, 5, 0).times[:-1]
    assert [float(t[0]) for t in spy.told] == pytest.approx(expected.tolist(), rel=1e-6)


# ---- what is refused

PLAN = fs.ddim(LINEAR, GRID)
LEFT_OUT = "must be left out with"
WRONG = {
    "not its knob": (
        sample(method="unipc", kappa=0.5),
        ValueError,
        rf"sample: kappa {LEFT_OUT} method=\"unipc\", got 0\.5; its knobs are \['order', 'last'\]",
    ),
    "one knob": (
        sample(method="shortcut", eta=0.5),
        ValueError,
        r"got 0\.5; its knobs are \['last'\]",
    ),
    "method": (
        sample(method="euler"),
        ValueError,
        r"\['auto', 'ddim', .*\], got 'euler'",
    ),
    "no text": (sample(method=None), ValueError, "sample: method must be one of .*, got None"),
    "a list": (sample(method=["ddim"]), ValueError, r"method must be one of .*, got \['ddim'\]"),
    "value": (sample(method="dpm++", order=4), ValueError, r"order must be in \[1, 3\], got 4"),
    "grid too": (sample(steps=GRID, grid="karras"), ValueError, "grid must be left out with given"),
}
TIMES = {
    **{
        f"fastdpm, {grid}": (
            sample(method="fastdpm", grid=grid),
            ValueError,
            rf'sample: grid {LEFT_OUT} method="fastdpm", which chooses its times, got .{grid}',
        )
        for grid in ("karras", "random", "bogus")
    },
    **{
        f"fastdpm, {type(steps).__name__}": (
            sample(steps=steps, method="fastdpm"),
            ValueError,
            r'sample: steps must be a number with method="fastdpm", which chooses .*, got ',
        )
        for steps in (GRID, [9, 5, 0], np.array([9.0, 0.0]), torch.tensor([9, 0]))
    },
    "fastdpm, text": (
        sample(steps="9", method="fastdpm"),
        TypeError,
        "must be an integer, got '9'",
    ),
    "no grid seed": (
        sample(grid="random", seed=1),
        ValueError,
        '^sample: grid_seed must be given with grid="random", got None; it determines the times$',
    ),
    "no grid seed to invert": (
        lambda: fs.invert(MODEL, START, 4, grid="random"),
        ValueError,
        '^invert: grid_seed must be given with grid="random", got None; it determines the times$',
    ),
}
WITH_PLAN = {
    name: (sample(steps=PLAN, **{name: value}), ValueError, f"sample: {name} {LEFT_OUT} a Plan, wh")
    for name, value in {
        "method": "ddim",  # also a plan's own, and what "auto" would be
        "grid": "uniform",
        "eta": 0.5,
        "variance": "small",
        "order": 2,
        "rederive": True,
        "bogus": 1,
        "clip": 1.0,
    }.items()
}


@pytest.mark.parametrize("name", ["bogus", "prediction", "num_sample"])
@pytest.mark.parametrize("call", [fs.sample, partial(fs.invert, x0=START)])
def test_a_name_that_nothing_has(call, name):
    with pytest.raises(
        TypeError, match=rf"arguments must be those of \w+ or knobs of a method, got {name}=1"
    ):
        call(MODEL, steps=3, **{name: 1})


@refusals(wrong=WRONG, times=TIMES, plan=WITH_PLAN)
def test_refused(call, error, match):
    check_refusal(call, error, match)
