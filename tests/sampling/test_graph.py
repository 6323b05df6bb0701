"""The logic of `graph=True` on the CPU, where a plain function stands in for the captured graph."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.plans.rows import COLUMNS, row_table
from fastsample.sampling import graph
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, halve_wide, per_sample
from tests.helpers.tensors import same_bits

SHAPE = (2, 3, 4)


class Captures:
    """Stands in for `graph.capture`, and counts the captures and the replays."""

    def __init__(self):
        self.count = self.replays = 0

    def __call__(self, function, one_row, row):
        self.count += 1
        for _ in range(graph._WARMUP_CALLS):
            row.zero_()
            one_row()
        row.zero_()  # the capture itself runs nothing

        def replay():
            self.replays += 1
            one_row()

        return replay


@pytest.fixture(autouse=True)
def captures(monkeypatch):
    found = Captures()
    monkeypatch.setattr(graph, "capture", found)
    return found


def labelled(x, t, y=None, extra=None, **_):
    out = 0.5 * x + per_sample(t, x) * 2.0**-10
    if y is not None:
        out = out + 0.25 * per_sample(y, x)
    if extra is not None:
        out = out + 0.125 * per_sample(extra["text"][0].sum(1), x) + extra["table"].sum()
    return out


def texts(x, t, texts, **_):
    sums = torch.stack([text.sum() for text in texts])
    return 0.5 * x + per_sample(sums, x)


def nested(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        "extra": {
            "text": (torch.randn(count, 5, generator=generator),),
            "table": fs.shared(torch.randn(4, generator=generator)),
        }
    }


def lists(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"texts": [torch.randn(n, 2, generator=generator) for n in (4, 1, 2)]}


def multistep(order):
    """Rows that look back, with numbers of no meaning."""
    nodes = np.array([900.0, 700.0, 500.0, 300.5, 100.0, 40.0, 0.0])
    rows = len(nodes) - 1
    columns = {"p": 0.9, "q": -0.3, "a": 0.5, "b": 0.4, "e": 0.02, "d": 0.1}
    table = row_table(rows, **columns)
    for n in range(order - 1):
        for k in range(n + 1, rows):
            table[k, COLUMNS.index(f"c{n + 1}")] = 0.2 / (n + 1 + k)
    table[-1, COLUMNS.index("d")] = 0.0
    alphas, sigmas = LINEAR.levels(nodes)
    return fs.Plan(nodes, table, alphas, sigmas, "epsilon", "multistep", "none", LINEAR)


def restart():
    """Goes down, back up by a row without a call, and down again, with history on the way."""
    nodes = np.array([900.0, 500.0, 200.0, 600.0, 300.0, 50.0, 0.0])
    alphas, sigmas = LINEAR.levels(nodes)
    k = np.arange(6)
    calls = k != 2
    ratio = alphas[3] / alphas[2]
    rows = row_table(
        6,
        p=np.where(calls, 0.9, 0.0),
        q=np.where(calls, -0.3, 0.0),
        a=np.where(calls, 0.5, ratio),
        b=np.where(calls, 0.4, 0.0),
        c1=np.where((k == 1) | (k > 3), 0.3, 0.0),
        c2=np.where(k == 5, 0.1, 0.0),
        d=np.where(calls, 0.0, np.sqrt(sigmas[3] ** 2 - (ratio * sigmas[2]) ** 2)),
    )
    return fs.Plan(nodes, rows, alphas, sigmas, "epsilon", "restart", "none", LINEAR)


def first_row_free():
    """The first row calls no network: x0 of pure noise is known to be 0."""
    plan = fs.ddim(LINEAR, fs.Grid([900, 600, 300, 0]))
    rows = np.array(plan.rows)
    rows[0, :] = row_table(1, a=plan.alphas[1] / plan.alphas[0])[0]
    return fs.Plan(plan.nodes, rows, plan.alphas, plan.sigmas, "epsilon", "free", "none", LINEAR)


UNCOND = {"y": 0.0}
CASES = {
    "default": ({}, [{}, {}]),
    "ddim": ({"method": "ddim"}, [{}, {}]),
    "noisy": ({"eta": 1.0, "clip": 1.0}, [{}, {}]),
    "ancestral": ({"method": "ancestral"}, [{}, {}]),
    "dpm++ 3": ({"method": "dpm++", "order": 3}, [{}, {}]),
    "dpm++ corrected": ({"method": "dpm++", "order": 3, "corrected": True}, [{}, {}]),
    "dpm++ sde": ({"method": "dpm++", "stochastic": True}, [{}, {}]),
    "half": ({"dtype": torch.bfloat16, "method": "dpm++", "order": 3}, [{}, {}]),
    "float64": ({"dtype": torch.float64, "eta": 0.5}, [{}, {}]),
    "history of 4": ({"steps": multistep(5)}, [{}, {}]),
    "restart": ({"steps": restart()}, [{}, {}]),
    "first row free": ({"steps": first_row_free()}, [{}, {}]),
    "guided": (
        {"guidance": 3.0, "uncond": UNCOND, "eta": 1.0},
        [{"cond": {"y": [1.0, 2.0, 3.0]}}, {"cond": {"y": [0.0, -2.0, 7.0]}}],
    ),
    "guided history": (
        {"guidance": 3.0, "uncond": UNCOND},
        [{"cond": {"y": [1.0, 2.0, 3.0]}}, {"cond": {"y": torch.tensor([0.5, -2.0, 7.0])}}],
    ),
    "seeds": ({"eta": 1.0}, [{"seed": [3, 2**63 + 1, 5]}, {"seed": [1, 1, 2]}]),
    "index": ({"eta": 1.0}, [{"sample_index": [3, 2**40, 5]}, {"sample_index": 9}]),
    "tensor": (
        {},
        [{"cond": {"y": torch.tensor([1.0, 2.0, 3.0])}}, {"cond": {"y": torch.zeros(3)}}],
    ),
    "number": ({}, [{"cond": {"y": 1.0}}, {"cond": {"y": -3.0}}]),
    "nested": ({}, [{"cond": nested(1)}, {"cond": nested(2)}]),
    "lists": ({}, [{"cond": lists(1)}, {"cond": lists(2)}]),
}


def model_of(name):
    return denoiser(texts if name == "lists" else labelled, *SHAPE)


def calls(name, twice=3):
    """Arguments of calls of equal shapes, whose results all differ."""
    fixed, given = CASES[name]
    generator = torch.Generator().manual_seed(4)
    for k in range(twice):
        options = {"num_samples": 3, "seed": 11 + k, **given[k % 2]}
        if k == 2:
            dtype = fixed.get("dtype", torch.float32)
            options["start"] = torch.randn(3, *SHAPE, generator=generator).to(dtype)
        yield options


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_plain_loop_bit_for_bit_and_captures_once(name, captures):
    fixed, _ = CASES[name]
    model = model_of(name)
    spy = Spy(model.model)
    spied = denoiser(spy, *SHAPE)
    captured = fs.Sampler(spied, **{"steps": 5, **fixed}, graph=True)
    plain = fs.Sampler(model, **{"steps": 5, **fixed})
    before = 0
    for k, given in enumerate(calls(name)):
        expected = plain(**given)
        start = given.get("start")
        copied = None if start is None else start.clone()
        assert same_bits(captured(**given), expected)
        assert copied is None or torch.equal(start, copied)
        made = len(spy) - before
        assert made == plain.plan.calls + (0 if k else graph._WARMUP_CALLS)
        before = len(spy)
    same_identity = "seed" not in CASES[name][1][0]
    assert captures.count == 1 or not same_identity
    assert captures.replays == 3 * plain.plan.calls


def test_learned_variance():
    model = denoiser(halve_wide, *SHAPE, variance="learned_range")
    for options in ({"method": "ancestral"}, {"method": "ancestral", "guidance": 2.0}):
        options |= {"uncond": {}} if "guidance" in options else {}
        sampler = fs.Sampler(model, 4, graph=True, **options)
        for seed in (1, 2):
            expected = fs.sample(model, 4, num_samples=3, seed=seed, **options)
            assert same_bits(sampler(3, seed=seed), expected)


@pytest.mark.parametrize("options", [{"method": "ddim"}, {"eta": 1.0}, {}], ids=str)
def test_rows_of_scale_1_take_both_halves(options):
    """A captured row runs 2 B samples always, and gives the same as the plain loop."""
    given = {"cond": {"y": [1.0, 2.0, 3.0]}, "seed": 3}
    options = {"guidance": [2.0, 1.0, 3.0, 1.0], "uncond": UNCOND, **options}
    spy = Spy(labelled)
    sampler = fs.Sampler(denoiser(spy, *SHAPE), 4, graph=True, **options)
    got = sampler(**given)
    assert same_bits(got, fs.sample(denoiser(labelled, *SHAPE), 4, **options, **given))
    assert set(spy.batches) == {6}


def test_other_shapes_dtypes_and_options_are_captured_again(captures):
    sampler = fs.Sampler(labelled, 3, shape=SHAPE, graph=True)
    plain = fs.Sampler(labelled, 3, shape=SHAPE)
    start = torch.ones(2, *SHAPE)
    last = start.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    asked = [
        {"num_samples": 2, "seed": 0},
        {"num_samples": 3, "seed": 0},
        {"start": start.double()},
        {"start": last},
        {"num_samples": 2, "seed": 0, "cond": {"y": 1.0}},
        {"num_samples": 2, "seed": 0, "cond": {"y": torch.ones(2).double()}},
        {"num_samples": 2, "seed": 0, "cond": {"flag": "a"}},
        {"num_samples": 2, "seed": 0, "cond": {"flag": "b"}},
        {"num_samples": 2, "seed": 0, "stop": 300.0},
    ]
    for rounds in range(2):
        for k, options in enumerate(asked):
            assert same_bits(sampler(**options), plain(**options)), options
            assert captures.count == (k + 1 if not rounds else len(asked))


def test_a_flag_that_changes_is_not_replayed_from_the_old_graph():
    def flagged(x, t, scale):
        return x * (0.5 if scale == "half" else 0.25)

    sampler = fs.Sampler(flagged, 3, shape=SHAPE, graph=True)
    for scale in ("half", "quarter", "half"):
        expected = fs.sample(flagged, 3, shape=SHAPE, seed=1, cond={"scale": scale})
        assert same_bits(sampler(seed=1, cond={"scale": scale}), expected)


def test_one_seed_and_a_seed_per_sample_are_not_confused():
    sampler = fs.Sampler(labelled, 3, shape=SHAPE, graph=True, eta=1.0)
    plain = fs.Sampler(labelled, 3, shape=SHAPE, eta=1.0)
    for seed in (5, [1, 2, 3], 6, [4, 4, 5], [7, 8, 9], 5):
        assert same_bits(sampler(3, seed=seed), plain(3, seed=seed))


def test_batch_size_and_progress(captures, capsys):
    sampler = fs.Sampler(labelled, 4, shape=SHAPE, graph=True, batch_size=2, eta=1.0)
    expected = fs.sample(labelled, 4, shape=SHAPE, eta=1.0, num_samples=5, seed=3)
    assert same_bits(sampler(5, seed=3, progress=True), expected)
    assert captures.count == 2  # of two samples and of one
    assert "12/12" in capsys.readouterr().err
    expected = fs.sample(labelled, 4, shape=SHAPE, num_samples=0, eta=1.0, seed=0)
    assert same_bits(sampler(0), expected)


def test_a_result_that_is_not_finite_leaves_nothing_behind():
    """Not even in the history, where 0 times NaN would be NaN."""
    sampler = fs.Sampler(labelled, 5, shape=SHAPE, graph=True, method="dpm++", order=3)
    with pytest.raises(ValueError, match="start must be finite, got NaN"):
        sampler(start=torch.full((2, *SHAPE), torch.nan))
    expected = fs.sample(labelled, 5, shape=SHAPE, method="dpm++", order=3, num_samples=2, seed=1)
    assert same_bits(sampler(2, seed=1), expected)


def test_results_are_copies():
    sampler = fs.Sampler(labelled, 3, shape=SHAPE, graph=True)
    first = sampler(2, seed=1)
    kept = first.clone()
    sampler(2, seed=2)
    assert torch.equal(first, kept)
    first.zero_()
    assert same_bits(sampler(2, seed=1), kept)


def test_conditions_of_the_caller_are_neither_kept_nor_changed():
    y = torch.tensor([1.0, 2.0])
    sampler = fs.Sampler(labelled, 3, shape=SHAPE, graph=True)
    first = sampler(seed=1, cond={"y": y})
    other = torch.tensor([5.0, 6.0])
    sampler(seed=1, cond={"y": other})
    assert y.tolist() == [1.0, 2.0]
    y.fill_(9.0)
    assert same_bits(sampler(seed=1, cond={"y": torch.tensor([1.0, 2.0])}), first)


def test_threads_share_the_graphs(captures):
    sampler = fs.Sampler(labelled, 6, shape=SHAPE, graph=True, eta=1.0)
    expected = [
        fs.sample(labelled, 6, shape=SHAPE, eta=1.0, num_samples=2 + k % 2, seed=k)
        for k in range(4)
    ]
    barrier = threading.Barrier(4)

    def work(k):
        barrier.wait(30)
        return [sampler(2 + k % 2, seed=k) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(work, range(4)), expected, strict=True):
            assert all(same_bits(x, right) for x in found)
    assert captures.count == 2


def test_a_capture_that_fails_is_tried_again(monkeypatch):
    sampler = fs.Sampler(labelled, 3, shape=SHAPE, graph=True)
    working = graph.capture

    def fails(function, one_row, row):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(graph, "capture", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        sampler(2, seed=1)
    monkeypatch.setattr(graph, "capture", working)
    assert same_bits(sampler(2, seed=1), fs.sample(labelled, 3, shape=SHAPE, num_samples=2, seed=1))


def test_networks_of_another_dtype():
    network = torch.nn.Linear(4, 4).bfloat16()

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t):
            return self.inner(x)

    model = denoiser(Network(), 2, 4)
    options = {"num_samples": 3, "seed": 1, "dtype": torch.float32}
    assert same_bits(fs.sample(model, 3, graph=True, **options), fs.sample(model, 3, **options))


def test_no_gradient_reaches_the_parameters():
    layer = torch.nn.Linear(4, 4)
    modes = []

    def network(x, t):
        modes.append(torch.is_grad_enabled())
        return layer(x)

    got = fs.sample(network, 3, shape=(2, 4), graph=True, seed=0)
    assert not got.requires_grad
    assert not any(modes)
    assert not got.is_inference()


@pytest.mark.parametrize(
    "options",
    [
        {"callback": print},
        {"return_states": True},
        {"noise": torch.ones(3, 1, *SHAPE), "eta": 1.0},
        {"start": torch.ones(1, *SHAPE, requires_grad=True)},
        {"threshold": 0.9, "clip": 1.0},
    ],
    ids=list,
)
def test_what_a_graph_cannot_do_is_refused_before_a_capture(options, captures):
    with pytest.raises(ValueError, match=r"^sample: graph must be False with "):
        fs.sample(halve, 3, shape=SHAPE, graph=True, **options)
    assert captures.count == 0


# ---- rows without a call that look back


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_row_without_a_call_may_look_back(length, captures):
    """It reads the x0 of earlier calls, and leaves none of its own."""
    nodes = np.array([900.0, 700.0, 600.0, 500.0, 400.0, 200.0, 100.0, 40.0, 0.0])
    count = len(nodes) - 1
    k = np.arange(count)
    free = (k == 4) | (k == 6)
    columns = {"p": 0.9, "q": -0.3, "a": 0.5, "b": 0.4}
    rows = row_table(count, **{n: np.where(free & (n != "a"), 0.0, columns[n]) for n in columns})
    for n in range(length):
        rows[k >= 4, COLUMNS.index(f"c{n + 1}")] = 0.3 / (n + 1 + k[k >= 4])
    alphas, sigmas = LINEAR.levels(nodes)
    plan = fs.Plan(nodes, rows, alphas, sigmas, "epsilon", "free", "none", LINEAR)
    assert plan.calls == count - 2
    sampler = fs.Sampler(labelled, plan, shape=SHAPE, graph=True)
    for seed in (1, 2):
        expected = fs.sample(labelled, plan, shape=SHAPE, num_samples=3, seed=seed)
        assert same_bits(sampler(3, seed=seed), expected)
    assert captures.replays == 2 * plan.calls


# ---- inference mode


@pytest.mark.parametrize(
    "options", [{}, {"eta": 1.0}, {"guidance": 2.0, "uncond": UNCOND}], ids=str
)
def test_a_graph_of_inference_mode_serves_outside(options, captures):
    given = {"num_samples": 3, "cond": {"y": [1.0, 2.0, 3.0]}}
    sampler = fs.Sampler(labelled, 4, shape=SHAPE, graph=True, **options)
    plain = fs.Sampler(labelled, 4, shape=SHAPE, **options)
    with torch.inference_mode():
        assert same_bits(sampler(seed=1, **given), plain(seed=1, **given))
    got = sampler(seed=2, **given)
    assert same_bits(got, plain(seed=2, **given))
    assert not got.is_inference()
    with torch.inference_mode():
        assert same_bits(sampler(seed=3, **given), plain(seed=3, **given))
    assert captures.count == 1


# ---- conditions that are no tensors


class Style:
    """An object whose value only the network knows."""

    def __init__(self, scale):
        self.scale = scale


def styled(x, t, flags=None, numbers=None, table=None, style=None, name=None):
    scale = 0.5
    if flags is not None:
        scale = scale + 0.125 * sum(flag["on"] for flag in flags)
        scale = scale + sum(flag["text"].sum() for flag in flags if "text" in flag)
    if numbers is not None:
        scale = scale + sum(numbers)
    if table is not None:
        scale = scale + float(np.sum(table))
    if style is not None:
        scale = scale + style.scale
    if name is not None:
        scale = scale + len(name)
    return scale * x


def spike(position):
    """A large array, of which NumPy prints the ends only."""
    table = np.zeros(3000)
    table[position] = 0.25 * position / 1500
    return table


TEXT = torch.full((3,), 0.125)
CHANGING = {
    "flags beside tensors": [
        {"flags": [{"on": on, "text": TEXT}, {"on": True, "text": TEXT}]} for on in (True, False)
    ],
    "shared numbers beside tensors": [
        {"numbers": fs.shared([torch.tensor(0.1), value])} for value in (0.25, 0.5)
    ],
    "flags": [{"flags": [{"on": on}, {"on": True}]} for on in (True, False)],
    "shared numbers": [{"numbers": fs.shared([0.1, value])} for value in (0.25, 0.5)],
    "shared tuples": [{"numbers": fs.shared((0.1, value))} for value in (0.25, 0.5)],
    "arrays": [{"table": fs.shared(spike(position))} for position in (1000, 1500)],
    "objects": [{"style": Style(scale)} for scale in (0.25, 0.5)],
    "listed objects": [{"flags": [{"on": k}, {"on": 0}]} for k in (3, 4)],
    "names": [{"name": fs.shared(name)} for name in ("a", "ab")],
}


@pytest.mark.parametrize("name", CHANGING)
def test_conditions_that_are_no_tensors_are_captured_anew(name, captures):
    first, second = CHANGING[name]
    if name == "arrays":
        assert repr(first["table"].value) == repr(second["table"].value)
    sampler = fs.Sampler(styled, 3, shape=SHAPE, graph=True)
    results = []
    for cond in (first, second, first):
        expected = fs.sample(styled, 3, shape=SHAPE, num_samples=2, seed=1, cond=cond)
        results.append(sampler(2, seed=1, cond=cond))
        assert same_bits(results[-1], expected)
    assert not torch.equal(results[0], results[1])
    assert captures.count == 2  # the third finds the graph of the first


def test_a_list_that_is_changed_in_place_is_captured_anew():
    numbers = [0.1, 0.25]
    sampler = fs.Sampler(styled, 3, shape=SHAPE, graph=True)
    for value in (0.25, 0.5, 0.25):
        numbers[1] = value
        cond = {"numbers": fs.shared(numbers)}
        expected = fs.sample(styled, 3, shape=SHAPE, seed=1, cond=cond)
        assert same_bits(sampler(seed=1, cond=cond), expected)


def test_a_new_object_at_an_old_address_is_another():
    """A graph keeps the objects that it was captured with, so that no other takes their place."""
    sampler = fs.Sampler(styled, 2, shape=SHAPE, graph=True)
    for k in range(20):
        got = sampler(seed=1, cond={"style": Style(k / 8)})
        expected = fs.sample(styled, 2, shape=SHAPE, seed=1, cond={"style": Style(k / 8)})
        assert same_bits(got, expected)


# ---- copies


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "inside a module"])
def test_a_copy_captures_graphs_of_its_own(way, captures):
    sampler = fs.Sampler(labelled, 4, shape=SHAPE, graph=True, eta=1.0)
    expected = sampler(3, seed=1)
    if way == "deepcopy":
        other = copy.deepcopy(sampler)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(sampler))
    else:
        module = torch.nn.Linear(2, 2)
        module.sampler = sampler
        other = copy.deepcopy(module).sampler
    assert captures.count == 1
    assert same_bits(other(3, seed=1), expected)
    assert captures.count == 2
    assert same_bits(sampler(3, seed=1), expected)
    assert captures.count == 2
