"""The short way to the kernels gives the bits of the way that autograd and callbacks take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.ops import direct
from fastsample.plans.rows import COLUMNS, row_table
from fastsample.sampling import loop
from fastsample.sampling.noise import Identity
from tests.helpers.networks import LINEAR, denoiser, halve, halve_wide, per_sample
from tests.helpers.tensors import DTYPES, LAYOUTS, same_bits

NODES = np.array([900.0, 600.0, 300.5, 120.0, 40.0, 0.0])
BATCH, SHAPE = 3, (4, 5, 7)


def plan_of(history, *, noisy=False, learned=False, guidance=1.0):
    """Rows with numbers of no meaning that look back as far as `history` says."""
    rows = len(NODES) - 1
    k = np.arange(rows)
    table = row_table(
        rows,
        p=0.9,
        q=-0.3,
        lo=-2.0,
        hi=2.5,
        w=guidance,
        a=0.5 - 0.05 * k,
        b=0.4,
        e=0.02,
        d=np.where(k < rows - 1, 0.3, 0.0) if noisy else 0.0,
        lv_lo=-1.0 if learned else 0.0,
        lv_hi=0.5 if learned else 0.0,
    )
    for n in range(history):
        table[n + 1 :, COLUMNS.index(f"c{n + 1}")] = 0.2 / (n + 1.0 + k[n + 1 :])
    if learned:
        table[-1, COLUMNS.index("lv_lo") :] = 0.0
    alphas, sigmas = LINEAR.levels(NODES)
    return fs.Plan(NODES, table, alphas, sigmas, "epsilon", "test", "none", LINEAR)


def labelled(x, t, y):
    return halve(x, t) + 0.125 * per_sample(y, x)


def labelled_wide(x, t, y):
    return torch.cat((labelled(x, t, y), torch.tanh(x)), dim=1)


@pytest.fixture
def steps(monkeypatch):
    """Counts the rows that are run directly."""
    found = []
    original = direct.DirectSteps.step

    def step(self, k, *arguments, **options):
        found.append(k)
        return original(self, k, *arguments, **options)

    monkeypatch.setattr(direct.DirectSteps, "step", step)
    return found


def both_ways(model, plan, x, steps, **options):
    """The bits of the two ways, which must agree, and have run as they should."""
    options.setdefault("identity", Identity(torch.tensor([5]), torch.arange(len(x))))
    del steps[:]
    kept = x.clone()
    functional = loop.run(model, plan, x, inference=True, callback=lambda step: None, **options)
    assert not steps
    assert same_bits(x, kept)
    assert not functional.requires_grad
    target = x.clone(memory_format=torch.preserve_format)
    found = loop.run(model, plan, target, inference=True, in_place=True, **options)
    assert steps == list(range(len(plan)))
    assert found.data_ptr() == target.data_ptr()
    assert not found.is_inference()
    assert same_bits(found, functional)
    return found


def start(dtype=torch.float32, batch=BATCH, shape=SHAPE):
    generator = torch.Generator().manual_seed(8)
    return torch.randn(batch, *shape, generator=generator).to(dtype)


@pytest.mark.parametrize("history", range(5))
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("noise", ["none", "generated", "seeds", "explicit"])
def test_dtypes_layouts_noise_and_history(steps, history, dtype, layout, noise):
    plan = plan_of(history, noisy=noise != "none")
    options = {}
    if noise == "seeds":
        seeds = torch.tensor([3, -7, 2**62])
        options["identity"] = Identity(seeds, torch.tensor([5, 0, 2**40]))
    if noise == "explicit":
        options["noise"] = start(dtype, len(plan) * BATCH).view(len(plan), BATCH, *SHAPE)
    both_ways(denoiser(halve, *SHAPE), plan, LAYOUTS[layout](start(dtype)), steps, **options)


@pytest.mark.parametrize("history", [0, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("scales", [2.5, [2.0, 1.0, 0.0, 1.0, -3.0]], ids=["all", "some"])
def test_guidance_and_learned_variance(steps, history, dtype, layout, learned, scales):
    plan = plan_of(history, noisy=True, learned=learned, guidance=scales)
    model = denoiser(
        labelled_wide if learned else labelled,
        *SHAPE,
        variance="learned_range" if learned else "small",
    )
    x = LAYOUTS[layout](start(dtype))
    for uncond in ({"y": 0.5}, None):
        conditions = Conditions("run", {"y": [1.0, -2.0, 0.5]}, uncond, BATCH, x.device)
        unguided = plan.with_guidance(1.0) if uncond is None else plan
        both_ways(model, unguided, x, steps, conditions=conditions)


def strided(x):
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]


class Subclass(torch.Tensor):
    """A tensor that behaves as its base class."""


KEPT = []
PARAMETER = torch.nn.Parameter(torch.ones(BATCH, *SHAPE))
NETWORKS = {
    "its input": lambda x, t: x,
    "a view of its input": lambda x, t: x.view(x.shape),
    "strided": lambda x, t: strided(halve(x, t)),
    "transposed": lambda x, t: LAYOUTS["transposed"](halve(x, t)),
    "channels_last": lambda x, t: LAYOUTS["channels_last"](halve(x, t)),
    "contiguous": lambda x, t: halve(x, t).contiguous(),
    "an offset": lambda x, t: LAYOUTS["offset"](halve(x, t)),
    "expanded": lambda x, t: (t.to(x.dtype) * 2.0**-10)[:, None, None, None].expand(x.shape),
    "a kept output": lambda x, t: KEPT.append(halve(x, t)) or KEPT[-1],
    "a subclass": lambda x, t: halve(x, t).as_subclass(Subclass),
    "a parameter": lambda x, t: PARAMETER if x.is_contiguous() else PARAMETER.clone(),
    "a new parameter": lambda x, t: torch.nn.Parameter(halve(x, t)),
    "float64": lambda x, t: halve(x, t).double(),
    "bfloat16": lambda x, t: halve(x, t).bfloat16(),
    "a tuple": lambda x, t: (halve(x, t), None),
    "gradients": lambda x, t: outside_inference(x, t),
}


def outside_inference(x, t):
    """Leaves inference mode, as a network that computes gradients inside must."""
    with torch.inference_mode(False), torch.enable_grad():
        inner = x.clone().requires_grad_()
        return torch.autograd.grad(halve(inner, t).square().sum(), inner)[0]


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("history", [0, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_networks_of_every_kind(steps, network, history, layout):
    del KEPT[:]
    model = denoiser(network, *SHAPE)
    found = both_ways(model, plan_of(history, noisy=True), LAYOUTS[layout](start()), steps)
    assert type(found) is torch.Tensor
    assert not found.requires_grad
    if KEPT:  # what the network kept is not overwritten
        half = len(KEPT) // 2
        assert all(same_bits(a, b) for a, b in zip(KEPT[:half], KEPT[half:], strict=True))


@pytest.mark.parametrize(
    "shape", [(1,), (7,), (5, 13), (0, 4, 4), (3, 0, 4), (2, 3, 4, 5), (1030, 3, 1)], ids=str
)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shapes(steps, shape, batch):
    x = torch.randn(batch, *shape)
    model = denoiser(halve, *[max(size, 1) for size in shape])
    model.shape = shape
    both_ways(model, plan_of(2, noisy=True), x, steps)


@pytest.mark.parametrize("size", [1, 2], ids=["one channel", "one pixel"])
def test_layouts_that_are_both(steps, size):
    """With one channel or one pixel a tensor is contiguous and channels_last at once."""
    shape = (1, 4, 4) if size == 1 else (4, 1, 1)
    x = LAYOUTS["channels_last"](start(shape=shape))
    for network in (halve, lambda x, t: LAYOUTS["channels_last"](halve(x, t))):
        both_ways(denoiser(network, *shape), plan_of(3, noisy=True), x, steps)


def test_volumes_in_channels_last(steps):
    shape = (3, 4, 3, 5)
    x = LAYOUTS["channels_last"](start(shape=shape))
    both_ways(denoiser(halve, *shape), plan_of(3, noisy=True), x, steps)


def test_rows_without_a_call_and_rising_nodes(steps):
    nodes = np.array([900.0, 500.0, 200.0, 600.0, 300.0, 50.0, 0.0])
    alphas, sigmas = LINEAR.levels(nodes)
    k = np.arange(6)
    calls = k != 2
    ratio = alphas[3] / alphas[2]
    table = row_table(
        6,
        p=np.where(calls, 0.9, 0.0),
        q=np.where(calls, -0.3, 0.0),
        a=np.where(calls, 0.5, ratio),
        b=np.where(calls, 0.4, 0.0),
        c1=np.where((k == 1) | (k > 3), 0.3, 0.0),
        c2=np.where(k == 5, 0.1, 0.0),
        d=np.where(calls, 0.0, np.sqrt(sigmas[3] ** 2 - (ratio * sigmas[2]) ** 2)),
    )
    plan = fs.Plan(nodes, table, alphas, sigmas, "epsilon", "restart", "none", LINEAR)
    assert plan.calls == 5
    both_ways(denoiser(halve, *SHAPE), plan, start(), steps)


@pytest.mark.parametrize("options", [{"threshold": 0.9, "clip": 1.0}, {"guidance_rescale": 0.5}])
@pytest.mark.parametrize("method", ["ddim", "unipc", "ancestral"])
def test_corrections(steps, options, method):
    options = {"guidance": 2.0, "uncond": {"y": 0.0}, "cond": {"y": [1.0, 2.0, 3.0]}, **options}
    options |= {"shape": SHAPE, "seed": 1, "method": method}
    found = fs.sample(labelled, 4, **options)
    assert steps == [0, 1, 2, 3]
    assert same_bits(found, fs.sample(labelled, 4, **options, callback=lambda step: None))


# ---- when the short way is taken


def test_what_takes_the_short_way():
    x = start()
    assert direct.DirectSteps.can_run(x)
    assert direct.DirectSteps.can_run(LAYOUTS["channels_last"](x))
    assert direct.DirectSteps.can_run(x[:0])
    for other in ("sliced", "transposed"):
        assert not direct.DirectSteps.can_run(LAYOUTS[other](x))
    assert not ops.is_plain(x.as_subclass(Subclass))
    assert not ops.is_plain(x.to("meta"))
    assert not ops.is_plain(x, None, torch.nn.Parameter(x))
    assert ops.is_plain(x, None)


def test_modes_and_transforms_take_the_long_way(steps):
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Function(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    expected = fs.sample(halve, 3, shape=(4,), seed=0)
    assert len(steps) == 3
    for mode in (Function, Dispatch):
        with mode():
            assert same_bits(fs.sample(halve, 3, shape=(4,), seed=0), expected)
    assert len(steps) == 3
    seen = []
    torch.func.vmap(lambda x: seen.append(ops.is_plain(x)) or x)(torch.ones(2, 2))
    assert seen == [False]


@pytest.mark.parametrize("layout", ["sliced", "transposed"])
def test_starts_of_other_strides_take_either(layout):
    x = start()
    options = {"steps": 4, "seed": 1, "eta": 1.0}
    expected = fs.sample(denoiser(halve, *SHAPE), start=x, **options)
    odd = LAYOUTS[layout](x)
    assert same_bits(fs.sample(denoiser(halve, *SHAPE), start=odd, **options), expected)
    assert same_bits(odd, x)


def test_learned_variance_of_the_default_method():
    """A multistep method leaves the second half alone."""
    wide = denoiser(halve_wide, *SHAPE, variance="learned_range")
    for options in ({}, {"guidance": 2.0, "uncond": {}}):
        options |= {"seed": 3, "num_samples": 3}
        narrow = fs.sample(denoiser(halve, *SHAPE), 5, **options)
        assert same_bits(fs.sample(wide, 5, **options), narrow)
