"""Outputs whose memory does not hold their values as a plain tensor's does."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample import ops
from tests.helpers.networks import denoiser
from tests.helpers.tensors import operands, same_bits

SHAPE = (2, 3, 4)


class Wrapper(torch.Tensor):
    """Holds another tensor, and has no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def map_both(function, tree):
            return torch.utils._pytree.tree_map(function, tree)

        args = map_both(lambda a: a.inner if isinstance(a, cls) else a, args)
        result = func(*args, **(kwargs or {}))
        return map_both(lambda a: cls(a) if isinstance(a, torch.Tensor) else a, result)


class Subclass(torch.Tensor):
    """Of its own type, but with memory like any other."""


def discard(step):
    """A callback, with which rows are run the other way."""


WAYS = {
    "direct": {},
    "callback": {"callback": discard},
    "noise": {"eta": 1.0},
    "history": {"method": "dpm++", "order": 3},
    "guided": {"guidance": 2.0, "uncond": {}},
    "corrected": {"guidance": 2.0, "uncond": {}, "guidance_rescale": 0.5},
    "threshold": {"clip": 1.0, "threshold": 0.9},
    "batches": {"batch_size": 2},
}
each_way = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


def run(network, **options):
    return fs.sample(denoiser(network, *SHAPE), 4, num_samples=3, seed=5, **options)


# ---- the negative bit: a view of the opposite of what the memory holds


def imaginary(x):
    return torch.complex(x, 0.1 * x).conj().imag


def negated(x):
    return torch._neg_view(0.1 * x)


def tenth(x):
    """What both of them are."""
    return -(0.1 * x)


each_negative = pytest.mark.parametrize("negative", [imaginary, negated])


@each_negative
def test_they_have_the_negative_bit(negative):
    x = torch.ones(2, 3)
    assert negative(x).is_neg()
    assert torch.equal(negative(x), tenth(x))


@each_way
@each_negative
def test_negative_views_as_outputs_of_a_network(negative, options):
    expected = run(lambda x, t: tenth(x), **options)
    assert same_bits(run(lambda x, t: negative(x), **options), expected)


@each_negative
def test_negative_views_with_a_gradient(negative):
    def gradient(function):
        start = torch.ones(3, *SHAPE, requires_grad=True)
        got = fs.sample(denoiser(lambda x, t: function(x), *SHAPE), 4, start=start)
        got.sum().backward()
        return got.detach(), start.grad

    for found, expected in zip(gradient(negative), gradient(tenth), strict=True):
        assert same_bits(found, expected)


@pytest.mark.parametrize("callback", [None, discard])
def test_negative_views_as_start_and_noise(callback):
    start, noise = torch.randn(3, *SHAPE), torch.randn(4, 3, *SHAPE)

    def draw(start, noise):
        return run(lambda x, t: 0.5 * x, eta=1.0, start=start, noise=noise, callback=callback)

    assert same_bits(draw(torch._neg_view(start), torch._neg_view(noise)), draw(-start, -noise))


OPERANDS = ("x", "out", "uncond", "noise", "h1", "h2")


@pytest.mark.parametrize("name", OPERANDS)
def test_negative_views_as_operands_of_a_step(name):
    given = operands((2, 3, 4), {"uncond", "noise", "h1", "h2"})
    view = {**given, name: torch._neg_view(given[name])}
    plain = {**given, name: -given[name]}
    assert same_bits(ops.step(**view), ops.step(**plain))
    for found, expected in zip(ops.step_x0(**view), ops.step_x0(**plain), strict=True):
        assert same_bits(found, expected)


@each_negative
def test_a_step_of_a_negative_output(negative):
    given = operands((2, 3, 4), set())
    view, plain = ({**given, "out": f(given["out"])} for f in (negative, tenth))
    assert same_bits(ops.step(**view), ops.step(**plain))
    for found, expected in zip(ops.step_x0(**view), ops.step_x0(**plain), strict=True):
        assert same_bits(found, expected)


# ---- tensors without such memory


SPARSE = {"coo": torch.Tensor.to_sparse, "csr": lambda x: x.flatten(1).to_sparse_csr()}


@pytest.mark.parametrize(
    "options", [{}, {"callback": discard}, WAYS["guided"]], ids=["direct", "callback", "guided"]
)
def test_sparse_outputs_are_refused(options):
    with pytest.raises(TypeError, match=r"out.* must be a dense tensor.*, got .*torch\.sparse_coo"):
        run(lambda x, t: (0.5 * x).to_sparse(), **options)


def test_a_wrapper_without_memory_is_refused():
    with pytest.raises(
        TypeError,
        match="^Denoiser: the model's output must be a dense tensor with memory of its own, got "
        r"Wrapper of layout torch\.strided$",
    ):
        run(lambda x, t: Wrapper(0.5 * x))


@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("step", [ops.step, ops.step_x0])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_a_step_refuses_a_sparse_output(step, make):
    given = operands((2, 12), set())
    with pytest.raises(
        TypeError,
        match=rf"^{step.__name__}: out must be a dense tensor, got torch\.sparse_c",
    ):
        step(**{**given, "out": make(given["out"])})


@each_way
def test_a_subclass_with_memory_is_a_tensor(options):
    expected = run(lambda x, t: 0.5 * x, **options)
    got = run(lambda x, t: (0.5 * x).as_subclass(Subclass), **options)
    assert same_bits(got.as_subclass(torch.Tensor), expected)


@each_way
def test_a_parameter_is_a_tensor(options):
    values = torch.randn(6, *SHAPE)
    parameter = torch.nn.Parameter(values.clone())
    got = run(lambda x, t: parameter[: len(x)], **options)
    assert same_bits(got, run(lambda x, t: values[: len(x)], **options))
    assert not got.requires_grad
    assert torch.equal(parameter, values)


def test_a_whole_parameter_is_a_tensor():
    parameter = torch.nn.Parameter(torch.randn(3, *SHAPE))
    for options in ({}, {"callback": discard}):
        got = run(lambda x, t: parameter, **options)
        assert type(got) is torch.Tensor
        assert not got.requires_grad
        assert same_bits(got, run(lambda x, t: parameter.detach(), **options))
