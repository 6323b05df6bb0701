"""A step's result is the same, bit for bit, however it is computed.

Threads, batch splits, memory formats, instruction sets, alignment and stores around the caches: a
sample may not depend on any of them.
"""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample import ops
from tests.helpers.step_oracle import forward_and_backward
from tests.helpers.tensors import (
    DTYPES,
    OPERANDS,
    WHOLE,
    laid_out,
    operands,
    same_bits,
    sample_of,
)

ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
EVERY_COMBINATION = pytest.mark.parametrize("combination", OPERANDS)

# 2 x 3 x 111 x 50 elements wake a second thread; 111 * 50 is no multiple of 4 nor of a tile.
SHAPE = (2, 3, 111, 50)


def assert_same(found, expected):
    assert len(found) == len(expected)
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


@ALL_DTYPES
@pytest.mark.parametrize(
    "combination",
    ["plain", "seeds", "learned, guidance", "everything", "everything, generated"],
)
def test_threads(threads, combination, dtype):
    for layout in ("contiguous", "channels_last"):
        given = laid_out(operands(SHAPE, OPERANDS[combination], dtype), layout)
        threads(1)
        alone = forward_and_backward(given)
        for count in (2, 3):
            threads(count)
            assert_same(forward_and_backward(given), alone)


@ALL_DTYPES
@EVERY_COMBINATION
def test_batch_splits(device, combination, dtype):
    for shape in [(7, 3), (7, 1029), (7, 5, 3, 7)]:
        given = operands(shape, OPERANDS[combination], dtype, device)
        together = forward_and_backward(given)
        for cut in (1, 3):
            parts = [
                forward_and_backward(sample_of(given, slice(first, first + cut)))
                for first in range(0, 7, cut)
            ]
            assert_same([torch.cat(pieces) for pieces in zip(*parts, strict=True)], together)
        order = torch.randperm(7).to(device)
        assert_same(forward_and_backward(sample_of(given, order)), [t[order] for t in together])


@ALL_DTYPES
@EVERY_COMBINATION
@pytest.mark.parametrize(
    "shape", [(2, 3, 8, 8), (2, 5, 3, 7), (1, 1030, 3, 1), (2, 3, 4, 3, 5)], ids=str
)
def test_layouts(device, shape, combination, dtype):
    given = operands(shape, OPERANDS[combination], dtype, device)
    expected = forward_and_backward(given)
    for layout in ("channels_last", "sliced", "transposed", "offset"):
        assert_same(forward_and_backward(laid_out(given, layout)), expected)
    mixed = {**given, "out": laid_out(given, "channels_last")["out"]}
    assert_same(forward_and_backward(mixed), expected)


@ALL_DTYPES
@EVERY_COMBINATION
def test_instruction_sets(isa, combination, dtype):
    names = fs.build_info()["cpu_available"]
    for shape in [(2, 1037), (2, 5, 9, 7)]:
        for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
            given = laid_out(operands(shape, OPERANDS[combination], dtype), layout)
            isa(names[-1])
            widest = forward_and_backward(given)
            for name in names[:-1]:
                isa(name)
                assert_same(forward_and_backward(given), widest)


@ALL_DTYPES
@pytest.mark.parametrize("combination", ["plain", "guidance", "noise", "everything"])
def test_instruction_sets_at_special_values(isa, combination, dtype):
    given = operands((2, 4099), OPERANDS[combination], dtype)
    info = torch.finfo(dtype)
    specials = [0.0, -0.0, info.tiny, info.tiny * info.eps, info.max, torch.inf, torch.nan, 1.0]
    values = torch.tensor([s * sign for s in specials for sign in (1, -1)], dtype=torch.float64)
    for name in given.keys() - WHOLE:
        t = given[name]
        chosen = values[torch.randint(len(values), t.shape)].to(t.dtype)
        # Any magnitude as well: rounding of the fused multiply-add is hardest far from 1.
        spread = t * torch.exp2(torch.randint(-30, 30, t.shape).to(t.dtype))
        given[name] = torch.where(torch.rand(t.shape) < 0.2, chosen, spread)
    expected = forward_and_backward(given)
    assert expected[0].isnan().any()
    assert expected[0].isfinite().any()
    for name in fs.build_info()["cpu_available"]:
        isa(name)
        assert_same(forward_and_backward(given), expected)


@pytest.mark.parametrize(
    "names", [set(), {"seeds", "h1"}], ids=lambda names: "+".join(sorted(names))
)
def test_results_too_large_for_the_caches(names):
    # From 24 MiB on the result is stored around the caches; in place it never is.
    given = operands((3, 2_200_003), names)
    expected = ops.step(**given)
    last = sample_of(given, slice(2, 3))
    assert same_bits(ops.step(**last), expected[2:])
    assert same_bits(ops.step(**given, target=given["x"]), expected)


def test_generated_noise_is_explicit_noise(device):
    for channels_last in (False, True):
        given = operands((3, 5, 13, 11), {"seeds"}, device=device, row=2)
        if channels_last:
            given = laid_out(given, "channels_last")
        noise = ops.noise(given["seeds"], given["index"], (5, 13, 11), draw=2)
        explicit = {n: t for n, t in given.items() if n not in ("seeds", "index")}
        assert same_bits(ops.step(**explicit, noise=noise), ops.step(**given))
