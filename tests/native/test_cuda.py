"""The CUDA kernels against the CPU kernels.

Both run the same formulas with explicit fused multiply-adds, so a float32 step agrees bit for bit.
`test_step_and_gradients` asks for 2 eps of the terms' size, `test_bits` for equality.
"""

from __future__ import annotations

import pytest
import torch

from fastsample import ops
from fastsample.ops import reference
from tests.helpers.step_oracle import assert_within, forward_and_backward, truth
from tests.helpers.tensors import (
    CASES,
    DTYPES,
    HISTORY,
    LAYOUTS,
    OPERANDS,
    SHAPES,
    WHOLE,
    laid_out,
    offset,
    operands,
    runnable,
    table,
)

pytestmark = pytest.mark.cuda

CUDA = torch.device("cuda", 0)
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)

# One wave of an H200 is at most 132 * 8 blocks of 256 threads, 4 to 16 elements each: 4.3 million.
BIG = {
    "vectors": (5, 1 << 20),
    "no multiple of 16": (5, (1 << 20) + 8),
    "no multiple of 8": (5, (1 << 20) + 3),
    "images": (5, 4, 512, 512),
    "odd images": (3, 7, 411, 509),
}


def moved(given, device=CUDA):
    return {name: t.to(device) for name, t in given.items()}


def equal(a, b):
    """Same values; NaN equals NaN, and 0 equals -0: GPUs clamp -0 to 0."""
    assert a.dtype == b.dtype
    torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0, atol=0, equal_nan=True)


# ---- noise ----


@ALL_DTYPES
@pytest.mark.parametrize(
    "shape", [s for s in SHAPES.values() if s[0]] + list(BIG.values()), ids=str
)
def test_noise(shape, dtype):
    index = torch.arange(shape[0]) + (1 << 40)
    for seeds in (torch.tensor([-3]), torch.arange(shape[0]) << 33):
        for last in (False, True) if len(shape) in (4, 5) else (False,):
            options = {"draw": 5, "dtype": dtype, "channels_last": last}
            on_gpu = ops.noise(seeds.to(CUDA), index.to(CUDA), shape[1:], **options)
            on_cpu = ops.noise(seeds, index, shape[1:], **options)
            assert on_gpu.device == CUDA
            assert on_gpu.stride() == on_cpu.stride()
            assert torch.equal(on_gpu.cpu(), on_cpu)


# ---- step ----


@ALL_DTYPES
@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_step_and_gradients(shape, layout, dtype):
    for combination, names in OPERANDS.items():
        given = operands(SHAPES[shape], names, dtype)
        on_cpu = forward_and_backward(laid_out(given, layout))
        on_gpu = forward_and_backward(laid_out(moved(given), layout))
        expected = truth(given, k=2.0, noise_tolerance=0.0)
        for i, bound in enumerate((expected.next_bound, expected.x0_bound)):
            # Each side may round to another 16-bit neighbour.
            assert_within(on_gpu[i], on_cpu[i].double(), 2 * bound, combination)
        for a, b in zip(on_gpu[2:], on_cpu[2:], strict=True):
            assert a.device == CUDA
            # Gradients are sums of two products; cancellation is measured by the largest of them.
            finite = b.isfinite()  # float16 overflows
            assert torch.equal(a.isfinite().cpu(), finite), combination
            a, b = (torch.where(finite, t.cpu().double(), 0.0) for t in (a, b))
            scale = b.abs().max() if b.numel() else 0.0
            bound = torch.full(b.shape, 8 * torch.finfo(dtype).eps * scale, dtype=torch.float64)
            assert_within(a, b, bound, combination)


@pytest.mark.parametrize(
    ("combination", "dtype"),
    [
        (combination, dtype)
        for combination, names in OPERANDS.items()
        for dtype in DTYPES.values()
        # float64's exp, of a learned variance, is each platform's own.
        if dtype != torch.float64 or "learned" not in names
    ],
    ids=str,
)
def test_bits(combination, dtype):
    for shape in ("vectors", "past one tile", "odd images", "more channels than a tile", "volumes"):
        for layout in LAYOUTS:
            if layout == "channels_last" and len(SHAPES[shape]) < 4:
                continue
            for row in runnable(OPERANDS[combination]):
                given = operands(SHAPES[shape], OPERANDS[combination], dtype, row=row)
                on_cpu = forward_and_backward(laid_out(given, layout))
                on_gpu = forward_and_backward(laid_out(moved(given), layout))
                for a, b in zip(on_gpu, on_cpu, strict=True):
                    equal(a, b)


@ALL_DTYPES
@pytest.mark.parametrize("combination", ["plain", "seeds", "guidance", "noise", "everything"])
def test_special_values(combination, dtype):
    given = operands((3, 4099), OPERANDS[combination] - {"learned"}, dtype)
    info = torch.finfo(dtype)
    specials = [0.0, info.tiny, info.tiny * info.eps, info.max, torch.inf, torch.nan, 1.0]
    values = torch.tensor(specials, dtype=torch.float64)
    for name in given.keys() - WHOLE:
        t = given[name]
        chosen = values[torch.randint(len(values), t.shape)].to(t.dtype) * t.sign()
        spread = t * torch.exp2(torch.randint(-30, 30, t.shape).to(t.dtype))
        given[name] = torch.where(torch.rand(t.shape) < 0.2, chosen, spread)
    for a, b in zip(ops.step_x0(**moved(given)), ops.step_x0(**given), strict=True):
        equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "combination",
    [
        "plain",
        "seeds",
        "one seed per sample",
        "row per sample",
        "everything",
        "everything, generated",
    ],
)
@pytest.mark.parametrize("shape", BIG)
def test_more_than_one_wave(shape, combination, dtype):
    given = operands(BIG[shape], OPERANDS[combination], dtype)
    for layout in ("contiguous", "channels_last") if len(BIG[shape]) == 4 else ("contiguous",):
        on_cpu = forward_and_backward(laid_out(given, layout))
        on_gpu = forward_and_backward(laid_out(moved(given), layout))
        for a, b in zip(on_gpu, on_cpu, strict=True):
            equal(a, b)


@ALL_DTYPES
def test_one_operand_off_its_boundary(dtype):
    names = OPERANDS["everything"] | {"seeds", "draw"}
    given = moved(operands((3, 8, 32), names, dtype))
    expected = forward_and_backward(given)
    for name in given.keys() - {"rows", "row", "draw"}:
        shifted = {**given, name: offset(given[name])}
        assert shifted[name].data_ptr() % 16 != 0
        for a, b in zip(forward_and_backward(shifted), expected, strict=True):
            assert torch.equal(a, b)
    target = offset(given["x"])
    assert torch.equal(ops.step(**given, target=target), expected[0])
    x = offset(given["x"])
    assert torch.equal(ops.step(**{**given, "x": x}, target=x), expected[0])


@ALL_DTYPES
def test_reference_on_the_gpu(dtype):
    for combination, names in OPERANDS.items():
        given = moved(operands((4, 3, 11, 5), names, dtype))
        expected = truth(given)
        for i, theirs in enumerate(reference.step_x0(**given)):
            assert_within(theirs, expected[i], expected[i + 2], combination)


def test_channels_last_of_a_learned_output():
    given = moved(operands((2, 5, 7, 3), OPERANDS["everything"]))
    last = laid_out(given, "channels_last")
    for name in ("x", "h1"):
        mixed = {**last, name: given[name]}
        assert torch.equal(ops.step(**mixed), ops.step(**given))
    assert ops.step(**last).is_contiguous(memory_format=torch.channels_last)


def test_more_elements_than_32_bits_count():
    # A batch without noise runs as one long sample unless that is too long to count.
    batch, size = 1025, 1 << 22
    if torch.cuda.mem_get_info(CUDA)[0] < 14 << 30:
        pytest.skip("needs 14 GiB of free GPU memory")
    x = torch.ones(batch, size, dtype=torch.float16, device=CUDA)
    row = torch.zeros(1, dtype=torch.int64, device=CUDA)
    ops.step(x, x, table(a=2.0).to(CUDA), row, target=x)
    for part in x.split(64):
        assert (part == 2).all()


# ---- errors ----


@pytest.mark.parametrize(
    "name", ["out", "rows", "row", "uncond", "noise", *HISTORY, "seeds", "index", "draw"]
)
def test_an_operand_on_another_device(name):
    given = operands((2, 3, 5), {"uncond", "noise", *HISTORY, "seeds", "draw"})
    with pytest.raises(ValueError, match=f"^step: {name} must be on cuda:0, got cpu$"):
        ops.step(**{**moved(given), name: given[name]})
    with pytest.raises(ValueError, match=f"^step: {name} must be on cpu, got cuda:0$"):
        ops.step(**{**given, name: given[name].to(CUDA)})


def test_noise_on_two_devices():
    index = torch.arange(2)
    with pytest.raises(ValueError, match=r"^noise: seeds must be on cuda:0, got cpu$"):
        ops.noise(index, index.to(CUDA), (3,))


def test_target_on_another_device():
    given = moved(operands((2, 3, 5), set()))
    with pytest.raises(ValueError, match=r"^step: target must be on cuda:0, got cpu$"):
        ops.step(**given, target=torch.empty(2, 3, 5))
