"""Runs under torch's modes, transforms and tracing, and what they leave behind: nothing."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs
from fastsample import ops
from fastsample.sampling import recent
from fastsample.sampling.recent import Recent
from tests.helpers.networks import denoiser, halve
from tests.helpers.tensors import operands, same_bits

SHAPE = (2, 3)
START = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def under(mode):
    """Run a function under a mode."""

    def enter(function):
        with mode():
            function(START)

    return enter


def fake(function):
    # Such tensors have no values, so that the check for NaN fails. What counts is what is left.
    with FakeTensorMode(allow_non_fake_inputs=True), contextlib.suppress(Exception):
        function(START)


TRANSFORMS = {
    "fake tensors": fake,
    "func.grad": lambda function: torch.func.grad(lambda x: function(x).sum())(START),
    "func.functionalize": lambda function: torch.func.functionalize(function)(START),
    "dispatch mode": under(Dispatches),
    "function mode": under(Functions),
    "default device": under(lambda: torch.device("meta")),
    "inference mode": under(torch.inference_mode),
}
METHODS = {
    "default": {},
    "ddim": {"method": "ddim"},
    "noise": {"eta": 1.0},
    "history": {"method": "dpm++", "order": 3},
    "guided": {"guidance": 2.0, "uncond": {}},
}

each_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
each_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)


@pytest.fixture(autouse=True)
def _empty_memory(monkeypatch):
    monkeypatch.setattr(recent, "_PREPARED", Recent(64))


def expected_of(monkeypatch, options):
    """The result of a run that remembers nothing."""
    got = fs.sample(halve, 4, shape=SHAPE, start=START, seed=1, **options)
    monkeypatch.setattr(recent, "_PREPARED", Recent(64))
    return got


@each_transform
@each_method
def test_a_run_leaves_nothing_behind_in_the_memory(transform, options, monkeypatch):
    expected = expected_of(monkeypatch, options)

    def run(start):
        return fs.sample(halve, 4, shape=SHAPE, start=start, seed=1, **options)

    transform(run)  # it is this run that plans
    assert same_bits(run(START), expected)
    transform(run)  # this one finds the plan of a plain run
    assert same_bits(run(START), expected)


@each_transform
@each_method
def test_a_run_leaves_nothing_behind_in_a_sampler(transform, options, monkeypatch):
    expected = expected_of(monkeypatch, options)
    sampler = fs.Sampler(halve, 4, shape=SHAPE, **options)

    def run(start):
        return sampler(start=start, seed=1)

    for _ in range(2):
        transform(run)
        got = run(START)
        assert type(got) is torch.Tensor
        assert not got.is_inference()
        assert same_bits(got, expected)


@each_method
def test_transforms_give_the_result_of_a_plain_run(options):
    def run(start):
        return fs.sample(halve, 4, shape=SHAPE, start=start, seed=1, **options)

    expected = run(START)
    assert same_bits(torch.func.functionalize(run)(START), expected)
    for mode in (Dispatches, Functions, torch.inference_mode):
        with mode():
            assert same_bits(run(START), expected)
    start = START.clone().requires_grad_()
    run(start).sum().backward()
    assert same_bits(torch.func.grad(lambda x: run(x).sum())(START), start.grad)


# ---- torch.jit.trace

_traced = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",  # shapes and coefficients are constants of a trace
    "ignore:.*torch.jit.*deprecated:DeprecationWarning",
)


def check_trace(function, x):
    traced = torch.jit.trace(function, x, check_trace=False)
    assert "fastsample::step" in str(traced.graph)
    assert same_bits(traced(2.0 * x), function(2.0 * x))
    assert not torch.equal(traced(2.0 * x), traced(x))


@_traced
@pytest.mark.parametrize(
    "names",
    [set(), {"seeds"}, {"noise"}, {"h1", "h2", "noise"}],
    ids=lambda names: "+".join(sorted(names)),
)
def test_a_trace_records_the_step(names):
    given = operands((2, 3, 4), names)

    def step(x):
        return ops.step(**{**given, "x": x, "out": 0.5 * x})

    def x_next_of_step_x0(x):
        return ops.step_x0(**{**given, "x": x, "out": 0.5 * x})[0]

    check_trace(step, given["x"])
    check_trace(x_next_of_step_x0, given["x"])


@_traced
@each_method
def test_a_trace_records_the_steps_of_a_run(options):
    model = denoiser(halve, *SHAPE)
    check_trace(lambda start: fs.sample(model, 4, start=start, seed=1, **options), START)
    sampler = fs.Sampler(model, 4, **options)
    expected = sampler(start=START, seed=1)
    check_trace(lambda start: sampler(start=start, seed=1), START)
    assert same_bits(sampler(start=START, seed=1), expected)
