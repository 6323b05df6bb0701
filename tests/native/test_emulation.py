"""The code of a CUDA thread, run on the host, gives the CPU kernel's bits.

Same formulas, another way through memory: packs, 16-byte accesses, ragged ends, channels_last, the
choice of kernel. Bit equality is the claim, since every multiply-add is explicit on both sides.
"""

import pytest
import torch

from fastsample import ops
from fastsample.ops import launch
from fastsample.plans.rows import COLUMNS
from tests.helpers.tensors import HISTORY, positional

EMULATED = (-2, 0, 0)
INF = float("inf")
ROWS = torch.tensor(
    [
        [1.2, -0.7, -1, 1, 1.5, 0.3, 0.8, 0.1, 0.2, -0.3, 0.15, -0.05, 0.4, -3, -1],
        [1.1, -0.6, -INF, INF, 1, 0.5, 0.6, 0, 0, 0, 0, 0, 0, 0, 0],
        [0.9, -0.4, -0.5, 2, 0, -0.3, 0.7, 0.2, 0, 0, 0, -0.6, 1, -2, 0.5],
    ],
    dtype=torch.float64,
)
SHAPES = [
    (1, 1),
    (3, 7),
    (5, 64),
    (3, 24),
    (2, 3, 8, 8),
    (3, 2, 5, 7),
    (2, 5, 3, 3),
    (2, 4, 2, 3, 4),
    (0, 4),
]
SAMPLE_SHAPES = [(7,), (64,), (3, 8, 8), (5, 3, 3), (3, 2, 4, 4)]


def with_layouts(shapes, least):
    """Each shape contiguous, and in channels_last where it has that many dimensions."""
    return [
        (shape, last) for shape in shapes for last in (False, True) if len(shape) >= least * last
    ]


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def tensors(shape, dtype, learned, channels_last):
    generator = torch.Generator().manual_seed(hash((shape, learned)) % 2**31)
    wide = (shape[0], shape[1] * (2 if learned else 1), *shape[2:])
    exact = torch.float64 if dtype == torch.float64 else torch.float32

    def new(size, kind=dtype):
        tensor = torch.randn(size, generator=generator, dtype=torch.float64).to(kind)
        if channels_last:
            fmt = torch.channels_last if len(size) == 4 else torch.channels_last_3d
            tensor = tensor.contiguous(memory_format=fmt)
        return tensor

    return {
        "x": new(shape),
        "out": new(wide),
        "uncond": new(wide),
        "noise": new(shape),
        **{name: new(shape, exact) for name in HISTORY},
        "grad": new(shape),
        "grad_x0": new(shape, exact),
    }


def operands(given, row, wanted):
    batch = given["x"].shape[0]
    found = {name: given[name] for name in wanted if name in given}
    if "seeds" in wanted:
        found["seeds"] = torch.tensor([2**63 - 5])
        found["index"] = torch.arange(batch) + 2**33
    if "own seeds" in wanted:
        found["seeds"], found["index"] = torch.arange(batch) * 977, torch.arange(batch)
    rows = ROWS.clone()
    for n, name in enumerate(HISTORY):
        if name not in wanted:  # a row that looks back at nothing gives NaN
            rows[:, COLUMNS.index("c1") + n] = 0.0
    if "draw" in wanted:
        found["draw"] = torch.tensor(2**31 + 9)
    if "own draws" in wanted:
        found["draw"] = torch.arange(batch) * 5 + 3
    if "own rows" in wanted:
        row = torch.arange(batch) % len(ROWS)
    return positional({**found, "x": given["x"], "out": given["out"], "rows": rows, "row": row})


def both(monkeypatch, function):
    """(CPU kernel's result, emulated threads' result)."""
    plain = function()
    with monkeypatch.context() as patch:
        patch.setattr(launch, "device_arguments", lambda tensor: EMULATED)
        return plain, function()


COMBINATIONS = [
    (),
    ("seeds",),
    ("own seeds",),
    ("noise",),
    ("uncond",),
    ("seeds", "uncond", "h1"),
    ("own seeds", "own rows", "h1", "h2"),
    ("noise", "uncond", "h1", "h2", "h3", "h4", "own rows"),
    ("seeds", "draw"),
    ("seeds", "own draws", "h3"),
    ("own seeds", "own draws", "own rows", "uncond", *HISTORY),
]


@pytest.mark.parametrize("wanted", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "channels_last"), with_layouts(SHAPES, 4), ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_threads_give_the_cpu_kernels_bits(
    shape, dtype, learned, channels_last, wanted, monkeypatch
):
    given = tensors(shape, dtype, learned, channels_last)
    for number in range(len(ROWS)):
        values = operands(given, torch.tensor(number), wanted)
        for function in (
            lambda v=values: [ops.library.step_op(*v)],
            lambda v=values: ops.library.step_x0_op(*v),
            lambda v=values: ops.library.step_backward_op(given["grad"], None, *v),
            lambda v=values: ops.library.step_backward_op(given["grad"], given["grad_x0"], *v),
        ):
            expected, found = both(monkeypatch, function)
            for a, b in zip(expected, found, strict=True):
                assert a.stride() == b.stride()
                assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
                assert torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_threads_accept_unaligned_tensors(dtype, offset, monkeypatch):
    def shifted(shape):
        size = torch.Size(shape).numel()
        return torch.randn(size + offset).to(dtype)[offset:].view(shape)

    values = operands({"x": shifted((4, 32)), "out": shifted((4, 32))}, torch.tensor(0), ("seeds",))
    expected, found = both(monkeypatch, lambda: ops.library.step_op(*values))
    assert torch.equal(expected, found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "channels_last"), with_layouts(SAMPLE_SHAPES, 3), ids=str)
def test_threads_give_the_cpu_kernels_noise(shape, dtype, channels_last, monkeypatch):
    index = torch.arange(5) + 3

    def draw():
        return ops.noise(
            torch.tensor([9]), index, shape, draw=2, dtype=dtype, channels_last=channels_last
        )

    expected, found = both(monkeypatch, draw)
    assert torch.equal(expected, found)
