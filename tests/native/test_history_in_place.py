"""A kernel may write x0 over an earlier x0: it reads all of them first."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample import _native
from fastsample.ops import launch
from tests.helpers.tensors import DTYPES, HISTORY, laid_out, operands, same_bits

NAMES = {
    "history": {"seeds", *HISTORY},
    "everything": {"learned", "uncond", "noise", "row per sample", *HISTORY},
}
SHAPES = [(3, 7), (2, 2051), (2, 5, 9, 7)]


def launched(given, over=None, in_place=False):
    """(x_next, x0) of one launch.

    Args:
        given: the operands; they are not changed.
        over: the earlier x0 whose memory takes the new one.
        in_place: whether x_next goes over x as well, as in a loop.
    """
    given = {name: t.clone(memory_format=torch.preserve_format) for name, t in given.items()}
    x_next = given["x"] if in_place else torch.full_like(given["x"], torch.nan)
    x0 = torch.full_like(given["h1"], torch.nan) if over is None else given[over]
    before = {name: t.clone() for name, t in given.items()}
    fmt = launch.packing(given["x"], given["out"])
    launch.launch_step(_native.step, fmt, (x_next.data_ptr(), x0.data_ptr()), **given)
    for name in given.keys() - {over, "x" if in_place else None}:
        assert torch.equal(given[name], before[name]), name
    return x_next, x0


def assert_every_history_may_be_replaced(given):
    expected = launched(given)
    assert not any(t.isnan().any() for t in expected)
    for over in HISTORY:
        for in_place in (False, True):
            found = launched(given, over, in_place)
            for ours, theirs in zip(found, expected, strict=True):
                assert same_bits(ours, theirs), (over, in_place)


def cases():
    for shape in SHAPES:
        for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
            for names in NAMES.values():
                yield shape, layout, names


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_instruction_set(isa, dtype):
    for name in fs.build_info()["cpu_available"]:
        isa(name)
        for shape, layout, names in cases():
            given = operands(shape, names, dtype, row=1)
            assert_every_history_may_be_replaced(laid_out(given, layout))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_threads_of_a_gpu(monkeypatch, dtype):
    monkeypatch.setattr(launch, "device_arguments", lambda tensor: (-2, 0, 0))
    for shape, layout, names in cases():
        given = operands(shape, names, dtype, row=1)
        assert_every_history_may_be_replaced(laid_out(given, layout))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_gpu(dtype):
    for shape, layout, names in cases():
        given = operands(shape, names, dtype, "cuda:0", row=1)
        assert_every_history_may_be_replaced(laid_out(given, layout))


def test_threads(threads):
    """Enough elements to wake a second thread."""
    given = operands((2, 3, 111, 50), NAMES["history"], row=1)
    expected = launched(given)
    threads(3)
    for over in HISTORY:
        assert all(same_bits(*pair) for pair in zip(launched(given, over), expected, strict=True))


def test_results_too_large_for_the_caches():
    """From 24 MiB on x_next is stored around the caches."""
    given = operands((3, 2_200_003), {"h1", "h2"})
    expected = launched(given)
    assert all(same_bits(*pair) for pair in zip(launched(given, "h2"), expected, strict=True))
