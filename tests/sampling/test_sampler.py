"""`Sampler`: planned once, run many times, with what `sample` gives; its arguments of a call."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.grids.registry import GRIDS
from fastsample.samplers.registry import METHODS
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, halve_wide, per_sample
from tests.helpers.refusals import check_refusal, refusals
from tests.helpers.tensors import same_bits

SHAPE = (2, 3, 4)


def labelled(x, t, y, tags=None):
    return 0.5 * x + per_sample(t, x) * 2.0**-10 + 0.25 * per_sample(y, x)


def network(x, t, y=None, **_):
    return halve(x, t) if y is None else labelled(x, t, y)


Y = [1.0, -2.0, 5.0, 0.5, 3.0]
GUIDED = {"guidance": 2.5, "uncond": {"y": 0.0}}
CASES = {
    "default": ({}, {}),
    "ddim": ({"method": "ddim"}, {}),
    "eta": ({"eta": 0.7, "clip": 1.0}, {}),
    "raw": ({"rederive": False, "clip": 0.5}, {}),
    "ancestral": ({"method": "ancestral", "variance": "large"}, {}),
    "learned": ({"method": "ancestral", "variance": "learned_range"}, {}),
    "fastdpm": ({"method": "fastdpm", "kappa": 0.3}, {}),
    "shortcut": ({"method": "shortcut", "grid": "random", "grid_seed": 5}, {}),
    "dpm++": ({"method": "dpm++", "order": 3}, {}),
    "dpm++ corrected": ({"method": "dpm++", "order": 3, "corrected": True}, {}),
    "dpm++ sde": ({"method": "dpm++", "stochastic": True}, {}),
    "restart": ({"method": "restart", "intervals": ((200.0, 600.0, 2),)}, {}),
    "karras": ({"grid": "karras"}, {}),
    "times": ({"steps": [1000, 400.5, 20, 3, 0]}, {}),
    "plan": ({"steps": fs.ddim(LINEAR, fs.Grid([900, 500, 30, 0]), eta=0.5)}, {}),
    "guided": (GUIDED, {"cond": {"y": Y}}),
    "guided rows": (
        {**GUIDED, "guidance": [2.0, 1.0, 0.0, 1.0, 3.0], "eta": 1.0},
        {"cond": {"y": torch.tensor(Y)}},
    ),
    "interval": ({**GUIDED, "guidance_interval": (100, 700)}, {"cond": {"y": Y}}),
    "rescaled": (
        {**GUIDED, "guidance_rescale": 0.7, "threshold": 0.9, "clip": 1.0},
        {"cond": {"y": Y}},
    ),
    "condition": ({}, {"cond": {"y": 2.0}}),
    "lists": ({}, {"cond": {"y": Y, "tags": ["a", "b", "c", "d", "e"]}}),
    "seeds": ({"eta": 1.0}, {"seed": [3, 5, 3, 2**64 - 1, 0]}),
    "index": ({"eta": 1.0}, {"sample_index": [7, 0, 2**40, 7, 1]}),
    "first index": ({"eta": 1.0}, {"sample_index": 11}),
    "float64": ({"dtype": torch.float64}, {}),
    "bfloat16": ({"dtype": torch.bfloat16, "eta": 1.0}, {}),
}
GENERATOR = torch.Generator().manual_seed(1)
START = torch.randn(5, *SHAPE, generator=GENERATOR)
GIVEN_NOISE = torch.randn(5, 5, *SHAPE, generator=GENERATOR)
CASES["start"] = ({"method": "ancestral"}, {"start": START})
CASES["channels_last"] = ({}, {"start": START.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)})
CASES["noise"] = ({"method": "ancestral"}, {"start": START, "noise": GIVEN_NOISE})

each_case = pytest.mark.parametrize("name", CASES)


def parts(name, **options):
    """(model, arguments of the constructor, arguments of the call)."""
    fixed, given = CASES[name]
    wide = name == "learned"
    model = denoiser(
        halve_wide if wide else network, *SHAPE, variance="learned_range" if wide else "small"
    )
    given = {"num_samples": 5, "seed": 7, **given}
    return model, {"steps": 5, **fixed, **options}, given


def test_every_method_is_among_the_cases():
    plans = [fs.Sampler(*parts(name)[:1], **parts(name)[1]).plan.method for name in CASES]
    for method in METHODS.values():
        name = method.make.__name__
        assert any(plan.startswith(name.removesuffix("_solver")) for plan in plans), name


# ---- what `sample` gives


@each_case
def test_it_is_sample_bit_for_bit(name):
    model, fixed, given = parts(name)
    sampler = fs.Sampler(model, **fixed)
    expected = fs.sample(model, **fixed, **given)
    for _ in range(2):  # nothing is left over from the first call
        assert same_bits(sampler(**given), expected)
    assert not expected.is_inference()
    assert not expected.requires_grad


def test_calls_of_other_batches_dtypes_and_conditions_leave_nothing_behind():
    sampler = fs.Sampler(network, 4, shape=SHAPE, method="dpm++", order=3)
    first = sampler(3, seed=1)
    sampler(7, seed=2, cond={"y": 4.0})
    sampler(start=START.double())
    sampler(0)
    sampler(3, seed=1, stop=50.0)
    sampler(3, seed=1, return_states=True)
    with pytest.raises(ValueError, match="must be finite"):
        sampler(start=START * torch.nan)
    assert same_bits(sampler(3, seed=1), first)


def test_results_and_starts_are_not_kept_alive():
    sampler = fs.Sampler(network, 4, shape=SHAPE)
    start = START.clone()
    kept = [weakref.ref(tensor) for tensor in (start, sampler(start=start))]
    del start
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_results_serve_in_autograd():
    for name in ("default", "guided", "dpm++", "plan"):
        model, fixed, given = parts(name)
        got = fs.Sampler(model, **fixed)(**given, return_states=True)
        weight = torch.ones((), requires_grad=True)
        (got * weight).sum().backward()
        torch.testing.assert_close(weight.grad, got.sum())
        got += 1.0


def test_eight_threads_at_once():
    model, fixed, _ = parts("eta")
    sampler = fs.Sampler(model, **fixed)
    expected = [sampler(5, seed=seed) for seed in range(8)]
    barrier = threading.Barrier(8)

    def work(seed):
        barrier.wait(30)
        found = [sampler(5, seed=seed) for _ in range(10)]
        assert sampler.seed == seed  # that of this thread
        return found

    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(pool.map(work, range(8)), expected, strict=True):
            assert all(same_bits(x, right) for x in found)
    assert sampler.seed == 7


def test_eight_threads_that_stop_and_plan_at_once():
    model = denoiser(network, *SHAPE)
    stops = [None, 700.0, 300.0, 33.3]
    expected = [fs.sample(model, 6, seed=3, stop=stop) for stop in stops]
    sampler, barrier = fs.Sampler(model, 6), threading.Barrier(8)

    def work(k):
        barrier.wait(30)
        return sampler(seed=3, stop=stops[k % 4])

    with ThreadPoolExecutor(8) as pool:
        for k, found in enumerate(pool.map(work, range(8))):
            assert same_bits(found, expected[k % 4])


def test_the_plan_is_that_of_the_moment_of_construction():
    model = denoiser(network, *SHAPE)
    sampler = fs.Sampler(model, 4)
    plan, before = sampler.plan, sampler(seed=1)
    tuned = model.with_plans([fs.ddim(LINEAR, fs.Grid([1000, 700, 200, 30, 0]))])
    model.plans, model.clip = tuned.plans, 0.01
    assert sampler.plan is plan
    assert same_bits(sampler(seed=1), before)
    assert fs.Sampler(model, 4, clip=None).plan == plan  # a clip excludes tuned plans
    assert fs.Sampler(tuned, 4).plan == tuned.plans[4]
    assert fs.Sampler(model, 4).plan != plan


def test_its_plan_is_the_one_that_runs():
    spy = Spy(network)
    sampler = fs.Sampler(spy, 6, shape=SHAPE)
    times = GRIDS[METHODS["unipc"].grid](LINEAR, 6)
    assert sampler.plan == fs.unipc(LINEAR, times, order=2)  # the default method
    sampler()
    assert [float(t[0]) + 1 for t in spy.told] == sampler.plan.times.tolist()
    assert repr(sampler.plan) in repr(sampler)
    assert repr(sampler.denoiser) in repr(sampler)


def test_random_times_come_from_grid_seed_alone():
    plans = [
        fs.Sampler(network, 6, shape=SHAPE, method="shortcut", grid="random", grid_seed=s).plan
        for s in (1, 1, 2)
    ]
    assert plans[0] == plans[1] != plans[2]
    assert plans[0] == fs.shortcut(LINEAR, fs.grids.random(1000, 6, seed=1))
    options = {"shape": SHAPE, "grid": "random", "grid_seed": 1}
    spies = [Spy(network), Spy(network)]
    for seed, spy in enumerate(spies):
        fs.sample(spy, 6, seed=seed, **options)
    assert [t.tolist() for t in spies[0].told] == [t.tolist() for t in spies[1].told]


# ---- batch_size


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@each_case
def test_any_batch_size_gives_the_same(name, size):
    model, fixed, given = parts(name)
    expected = fs.sample(model, **fixed, **given)
    assert same_bits(fs.sample(model, **fixed, **given, batch_size=size), expected)
    states = fs.sample(model, **fixed, **given, batch_size=size, return_states=True)
    assert same_bits(states[-1], expected)


def test_batch_size_bounds_the_batches_of_the_network():
    spy = Spy(network)
    fs.sample(spy, 3, shape=SHAPE, num_samples=5, batch_size=2)
    assert spy.batches == [2] * 6 + [1] * 3
    spy = Spy(network)
    options = {"guidance": 2.0, "uncond": {"y": 0.0}, "cond": {"y": Y}, "batch_size": 2}
    fs.sample(spy, 2, shape=SHAPE, **options)
    assert spy.batches == [4] * 4 + [2] * 2
    assert spy.conditions[2]["y"].tolist() == [0.0, 0.0, 5.0, 0.5]


def test_list_conditions_are_split_too():
    spy = Spy(network)
    cond = {"y": Y, "tags": ["a", "b", "c", "d", "e"]}
    fs.sample(spy, 1, shape=SHAPE, cond=cond, batch_size=3)
    assert [given["tags"] for given in spy.conditions] == [["a", "b", "c"], ["d", "e"]]


def test_an_empty_batch_with_a_batch_size():
    for options in ({}, {"eta": 1.0}, {"return_states": True}):
        got = fs.sample(network, 3, shape=SHAPE, num_samples=0, batch_size=2, **options)
        assert got.shape == ((4, 0, *SHAPE) if options.get("return_states") else (0, *SHAPE))


def test_gradients_go_through_the_parts():
    def gradients(size):
        leaves = [START.clone().requires_grad_(), torch.tensor(Y, requires_grad=True)]
        got = fs.sample(
            network, 3, shape=SHAPE, start=leaves[0], cond={"y": leaves[1]}, batch_size=size
        )
        assert got.requires_grad
        (got * torch.arange(5.0).reshape(-1, 1, 1, 1)).sum().backward()
        return [leaf.grad for leaf in leaves]

    for found, expected in zip(gradients(2), gradients(None), strict=True):
        assert found.abs().max() > 0
        torch.testing.assert_close(found, expected)


def test_the_callback_sees_every_part():
    seen, whole = [], []
    options = {"shape": SHAPE, "num_samples": 5, "seed": 1, "eta": 1.0}
    fs.sample(network, 3, batch_size=2, callback=seen.append, **options)
    fs.sample(network, 3, callback=whole.append, **options)
    assert [step.row for step in seen] == [0, 1, 2] * 3
    for k, step in enumerate(whole):
        assert same_bits(torch.cat([part.x for part in seen[k::3]]), step.x)
        assert same_bits(torch.cat([part.x0 for part in seen[k::3]]), step.x0)


def test_progress_counts_the_calls_of_all_parts(capsys):
    fs.sample(network, 4, shape=SHAPE, num_samples=5, batch_size=2, progress=True)
    assert "12/12" in capsys.readouterr().err


def test_a_part_that_is_not_finite_is_named():
    start = START.clone()
    start[4, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="sample: start must be finite, got infinity"):
        fs.sample(network, 3, shape=SHAPE, start=start, batch_size=2)


# ---- return_states


@each_case
def test_states_are_the_start_and_what_the_callback_sees(name):
    model, fixed, given = parts(name)
    seen, inputs = [], []
    spy = Spy(model.model)
    spied = copy.copy(model)
    spied.model = spy
    sampler = fs.Sampler(spied, **fixed)
    states = sampler(**given, return_states=True)
    inputs = spy.inputs
    plain = fs.sample(model, **fixed, **given, callback=lambda step: seen.append(step.x))
    assert states.shape == (len(sampler.plan) + 1, 5, *SHAPE)
    assert states.dtype == plain.dtype
    assert same_bits(states[0][:5], inputs[0][:5])
    for state, x in zip(states[1:], seen, strict=True):
        assert same_bits(state, x)
    assert same_bits(states[-1], fs.sample(model, **fixed, **given))


def test_states_and_a_callback_together():
    seen = []
    sampler = fs.Sampler(network, 4, shape=SHAPE)
    states = sampler(2, seed=1, return_states=True, callback=seen.append)
    assert same_bits(states[1:], torch.stack([step.x for step in seen]))


def test_states_are_differentiable():
    start = START.clone().requires_grad_()
    states = fs.sample(network, 3, shape=SHAPE, start=start, return_states=True)
    assert torch.equal(states[0], start)
    gradients = [torch.autograd.grad(s.sum(), start, retain_graph=True)[0] for s in states]
    assert torch.equal(gradients[0], torch.ones_like(start))
    assert all(gradient.abs().min() > 0 for gradient in gradients)
    assert start.grad is None


def test_states_do_not_share_memory_with_the_start():
    start = START.clone()
    states = fs.sample(network, 2, shape=SHAPE, start=start, return_states=True)
    states.zero_()
    assert torch.equal(start, START)


# ---- stop


@each_case
def test_stopping_at_a_node_is_the_state_there(name):
    model, fixed, given = parts(name)
    sampler = fs.Sampler(model, **fixed)
    rows = len(sampler.plan)
    states = sampler(**given, return_states=True)
    nodes = sampler.plan.nodes.tolist()
    for k in (1, rows // 2 + 1, rows):
        k = nodes.index(nodes[k], 1)  # a plan that returns to a node stops at its first visit
        asked = dict(given)
        if "noise" in asked:
            asked["noise"] = asked["noise"][:k]
        stop = float(sampler.plan.nodes[k])
        assert same_bits(sampler(**asked, stop=stop), states[k])
        assert same_bits(fs.sample(model, **fixed, **asked, stop=stop), states[k])
        partial = sampler(**asked, stop=stop, return_states=True)
        assert same_bits(partial, states[: k + 1])


def test_stopping_at_a_node_calls_the_network_no_more_than_that():
    spy = Spy(network)
    sampler = fs.Sampler(spy, 5, shape=SHAPE)
    sampler(stop=float(sampler.plan.nodes[2]))
    assert len(spy) == 2


BETWEEN = {
    "ddim": {"method": "ddim"},
    "ancestral": {"method": "ancestral"},
    "dpm++": {"method": "dpm++", "order": 2},
    "unipc": {},
}


@pytest.mark.parametrize("options", BETWEEN.values(), ids=BETWEEN)
def test_stopping_between_nodes_makes_the_last_row_end_there(options):
    model = denoiser(network, *SHAPE)
    sampler = fs.Sampler(model, 5, **options)
    stop = float(sampler.plan.nodes[2:4].mean())
    states = sampler(3, seed=1, stop=stop, return_states=True)
    assert len(states) == 4
    whole = sampler(3, seed=1, return_states=True)
    assert same_bits(states[:3], whole[:3]) or options.get("method") == "ddim"
    torch.testing.assert_close(states[:3], whole[:3])
    named = fs.Sampler(model, 5, last=stop, **{"method": "unipc", **options})
    assert named.plan.nodes[-1] == stop
    assert same_bits(named(3, seed=1), states[-1])
    assert sampler.plan.nodes[-1] == 0.0


def test_stopping_below_the_last_node_before_data():
    sampler = fs.Sampler(network, 4, shape=SHAPE, method="ddim")
    got = sampler(2, seed=1, stop=0.5)
    close = sampler(2, seed=1, stop=1e-9)
    torch.testing.assert_close(close, sampler(2, seed=1), rtol=1e-3, atol=1e-3)
    assert not torch.equal(got, close)


def test_stopping_at_data_is_the_whole_run():
    sampler = fs.Sampler(network, 4, shape=SHAPE)
    assert same_bits(sampler(2, seed=1, stop=0), sampler(2, seed=1))


def test_a_stopped_run_of_a_stochastic_plan_may_need_no_seed():
    """The plan draws no noise in its first row."""
    grid = fs.Grid([900, 500, 100, 0])
    plan = fs.ancestral(LINEAR, grid, variance=np.array([0.0, 0.5, 0.0]))
    sampler = fs.Sampler(network, plan, shape=SHAPE)
    state = torch.get_rng_state()
    sampler(start=START, stop=500)
    assert torch.equal(torch.get_rng_state(), state)


# ---- dtypes of networks and samples


@pytest.mark.parametrize("method", ["unipc", "ddim", "ancestral", "dpm++"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["module low", "samples low", "float64"])
def test_networks_are_called_in_their_dtype_and_samples_keep_theirs(method, low, way):
    inner = {"module low": low, "samples low": torch.float32, "float64": low}[way]
    outer = {"module low": torch.float32, "samples low": low, "float64": torch.float64}[way]
    layer = torch.nn.Linear(4, 4).to(inner)
    seen = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, t):
            seen.append(x.dtype)
            return self.layer(x)

    options = {"method": method, "num_samples": 3, "seed": 1, "dtype": outer}
    got = fs.sample(denoiser(Network(), 2, 4), 4, **options)
    assert got.dtype == outer
    assert seen == [inner] * 4

    def cast(x, t):
        with torch.no_grad():
            return layer(x.to(inner)).to(outer)

    assert same_bits(got, fs.sample(denoiser(cast, 2, 4), 4, **options))


# ---- what is refused

MODEL = denoiser(network, *SHAPE)
PLAN = fs.ddim(LINEAR, fs.Grid([900, 500, 30, 0]))


def make(*arguments, **options):
    return lambda: fs.Sampler(MODEL, *arguments, **{"steps": 3, **options})


def call(fixed=None, **options):
    return lambda: fs.Sampler(MODEL, **{"steps": 3, **(fixed or {})})(**options)


def both(fixed=None, name="", error=ValueError, match="", **options):
    """The same refusal of `Sampler` and of `sample`, each in its own name."""
    whole = {"steps": 3, **(fixed or {}), **options}
    return {
        f"Sampler, {name}": (call(fixed, **options), error, "^Sampler: " + match),
        f"sample, {name}": (lambda: fs.sample(MODEL, **whole), error, "^sample: " + match),
    }


NAN = float("nan")
ARGUMENTS = {
    **both({"batch_size": 0}, "batch_size 0", ValueError, "batch_size must be at least 1, got 0"),
    **both({"batch_size": -3}, "-3", ValueError, "batch_size must be at least 1, got -3"),
    **both({"batch_size": True}, "True", TypeError, "batch_size must be an integer, got True"),
    **both({"batch_size": 2.5}, "2.5", TypeError, r"batch_size must be an integer, got 2\.5"),
    **both({"batch_size": "2"}, "'2'", TypeError, "batch_size must be an integer, got '2'"),
    **both(None, "stop -1", ValueError, r"stop must be in \[0, inf\], got -1", stop=-1),
    **both(
        None,
        "stop T",
        ValueError,
        "stop must be below the start at 1000 and not below the end at 0, got 1000",
        stop=1000,
    ),
    **both(None, "stop > T", ValueError, "stop must be below .* at 0, got 2000", stop=2000),
    **both(None, "stop NaN", ValueError, r"stop must be in \[0, inf\], got nan", stop=NAN),
    **both(None, "stop text", TypeError, "stop must be a real number, got 'a'", stop="a"),
    **both(None, "stop True", TypeError, "stop must be a real number, got True", stop=True),
    **both(
        {"steps": PLAN},
        "stop of a plan",
        ValueError,
        r"stop must be a node of the plan, one of \[500\.0, 30\.0, 0\.0\], got 400",
        stop=400,
    ),
    **both(
        {"grid": "random"}, "no grid_seed", ValueError, 'grid_seed must be given with grid="ran'
    ),
    **both(
        {"grid": "uniform", "grid_seed": 1},
        "grid_seed of another grid",
        ValueError,
        "grid_seed must be left out",
    ),
    "graph": (call({"graph": True}), ValueError, "graph must be False on cpu, got True"),
    **both({"graph": 1}, "graph 1", TypeError, "graph must be True or False, got 1"),
    **both(
        {"graph": True},
        "graph and states",
        ValueError,
        "graph must be False with .*return_states.*, got True",
        return_states=True,
    ),
    **both({}, "callback", TypeError, "callback must be callable, got 3", callback=3),
    **both(
        {}, "states", TypeError, "return_states must be True or False, got 'a'", return_states="a"
    ),
    **both({"dtype": torch.int32}, "dtype", TypeError, r"dtype must be .*, got torch\.int32"),
    **both({"dtype": "float32"}, "dtype text", TypeError, "dtype must be .*, got float32"),
    **both(
        {"dtype": [1]}, "dtypes", TypeError, r"dtype must be one of \['torch\.float32', .*\[1\]"
    ),
    **both(
        {"guidance": 2.0, "uncond": 3},
        "uncond",
        TypeError,
        "uncond must be a mapping of keyword arguments, got int$",
    ),
    **both({"device": "gpu"}, "device", ValueError, "device must be the name of a device"),
    **both({"steps": 0}, "steps", ValueError, r"steps must be in \[1, 1000\], got 0"),
    **both({"method": "euler"}, "method", ValueError, "method must be one of .* got 'euler'"),
    **both({}, "num_samples", ValueError, "num_samples must be at least 0, got -1", num_samples=-1),
    **both({}, "seed", TypeError, "seed must be an integer, got '7'", seed="7"),
    "model": (lambda: fs.Sampler(3), TypeError, "Sampler: model must be .*got int"),
}


@refusals(arguments=ARGUMENTS)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_constructor_errors_come_before_a_call():
    for fixed in ({"steps": 0}, {"batch_size": 0}, {"method": "euler"}, {"guidance": 2.0}):
        with pytest.raises(ValueError, match=r"^Sampler: "):
            make(**fixed)()
    for fixed in ({"guidance": 2.0, "uncond": 3}, {"dtype": [1]}, {"batch_size": "2"}):
        with pytest.raises(TypeError, match=r"^Sampler: "):
            make(**fixed)()
