"""The registries of tests that run on tensors: dtypes, shapes, layouts, operands, rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastsample.plans.rows import COLUMNS

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

# The kernels cut at 4 (a Philox block), 8 (a 16-byte pack), 16 (a vector) and 1024 (a tile).
SHAPES: dict[str, tuple[int, ...]] = {
    "empty batch": (0, 3, 4, 4),
    "empty samples": (2, 0, 4, 4),
    "one element": (1, 1),
    "vectors": (3, 7),
    "one tile": (2, 1024),
    "past one tile": (2, 2051),
    "sequences": (2, 5, 13),
    "images": (3, 3, 8, 8),
    "odd images": (3, 5, 7, 3),
    "one odd image": (1, 6, 5, 5),
    "more channels than a tile": (2, 1030, 3, 1),
    "channels past two tiles": (1, 2052, 2, 3),
    "volumes": (2, 3, 4, 3, 5),
}


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=_FORMATS[t.dim()])


def sliced(t: Tensor) -> Tensor:
    """Every second element of a larger tensor, starting at its second."""
    wide = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1] + 1)
    wide[..., 1::2] = t
    return wide[..., 1::2]


def transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def offset(t: Tensor) -> Tensor:
    """Contiguous, but not at a 16-byte boundary."""
    moved = t.new_zeros(t.numel() + 1)[1:].view(t.shape)
    return moved.copy_(t)


_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": channels_last,
    "sliced": sliced,
    "transposed": transposed,
    "offset": offset,
}

CASES = [
    (shape, layout)
    for shape, size in SHAPES.items()
    for layout in LAYOUTS
    if layout != "channels_last" or len(size) in _FORMATS
]
"""(shape, layout) pairs that exist."""

OPERANDS: dict[str, set[str]] = {
    "plain": set(),
    "seeds": {"seeds"},
    "one seed per sample": {"seeds per sample"},
    "row per sample": {"seeds", "row per sample"},
    "noise": {"noise"},
    "guidance": {"uncond"},
    "history": {"h1"},
    "longer history": {"h1", "h2", "seeds"},
    "longest history": {"h1", "h2", "h3", "h4"},
    "draw": {"seeds", "draw"},
    "draw per sample": {"seeds per sample", "draw per sample"},
    "learned, noise": {"learned", "noise"},
    "learned, seeds": {"learned", "seeds"},
    "learned, guidance": {"learned", "uncond", "seeds", "row per sample"},
    "everything": {"learned", "uncond", "noise", "h1", "h2", "h3", "h4", "row per sample"},
    "everything, generated": {
        *("learned", "uncond", "h1", "h2", "h3", "h4"),
        *("seeds per sample", "row per sample", "draw per sample"),
    },
}
"""Combinations of optional operands."""


def table(**columns: float) -> Tensor:
    """One row `(1, 15)` in float64; columns not given do nothing."""
    neutral = {"lo": -torch.inf, "hi": torch.inf, "w": 1.0}
    values = [columns.get(name, neutral.get(name, 0.0)) for name in COLUMNS]
    return torch.tensor([values], dtype=torch.float64)


HISTORY = ("h1", "h2", "h3", "h4")
POSITIONAL = (
    *("x", "out", "rows", "row", "uncond", "seeds", "index", "draw", "noise"),
    *HISTORY,
)
"""The operands of a step in the order of the operators' arguments."""
WHOLE = {"rows", "row", "seeds", "index", "draw"}
"""The operands that are no samples: tables and numbers, whatever the layout of x."""

ROWS = torch.cat(
    [
        table(p=1.7, q=-0.9, lo=-1.0, hi=1.0, w=2.5, a=0.6, b=0.5, e=-0.3),
        table(p=1.1, q=-0.4, w=-0.5, a=0.8, b=0.3, d=0.7, lv_lo=-3.0, lv_hi=-1.0),
        table(p=-0.3, q=0.8, lo=0.0, hi=2.0, w=7.5, a=-1.3, b=2.1, e=0.9, d=1.9, lv_lo=-9.0),
        table(p=3.0, q=2.0, lo=-0.5, w=1.0, a=0.1, b=-0.7, d=1e-3, lv_hi=0.5),
    ]
)
ROWS[:, COLUMNS.index("c1") : COLUMNS.index("c4") + 1] = torch.tensor(
    [
        [-0.2, 0.1, 0.25, -0.15],
        [0.4, -0.1, -0.35, 0.05],
        [0.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, -2.0, 1.0],
    ],
    dtype=torch.float64,
)
"""Rows with and without clip, guidance, raw output, history and noise; row 0 draws none."""


def runnable(names: set[str]) -> tuple[int, ...]:
    """Rows that give numbers with these operands: all, or without noise the one that draws none."""
    return (1, 0, 2, 3) if names & {"noise", "seeds", "seeds per sample"} else (0,)


def operands(
    shape: tuple[int, ...],
    names: set[str],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    row: int | None = None,
) -> dict[str, Tensor]:
    """Arguments of `ops.step` by name, contiguous; the values do not depend on dtype or device.

    `row` is by default the first of `runnable`.
    """
    row = runnable(names)[0] if row is None else row
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    batch = shape[0]
    wide = (batch, 2 * shape[1], *shape[2:]) if "learned" in names else shape
    high = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(size, kind=dtype):
        return torch.randn(size, generator=generator).to(device, kind)

    rows = ROWS.clone()
    for n, operand in enumerate(HISTORY):
        if operand not in names:  # a row that looks back at nothing gives NaN
            rows[:, COLUMNS.index(f"c{n + 1}")] = 0.0
    given = {"x": normal(shape), "out": normal(wide), "rows": rows.to(device)}
    given["row"] = torch.tensor([row])
    if "row per sample" in names:
        given["row"] = (torch.arange(batch) + row) % len(ROWS)
    if "uncond" in names:
        given["uncond"] = normal(wide)
    if "noise" in names:
        given["noise"] = normal(shape)
    for name in HISTORY:
        if name in names:
            given[name] = normal(shape, high)
    if names & {"seeds", "seeds per sample"}:
        given["index"] = torch.arange(batch) * 3 + (1 << 33)
        many = "seeds per sample" in names
        given["seeds"] = torch.arange(batch) - 5 if many else torch.tensor([-(2**62) + 17])
    if "draw" in names:
        given["draw"] = torch.tensor([2**32 - 7])
    if "draw per sample" in names:
        given["draw"] = torch.arange(batch) * 1_000_003 + 2**31
    return {name: t.to(device) for name, t in given.items()}


def laid_out(given: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The same operands in another layout; row table, numbers and seeds stay as they are."""
    change = LAYOUTS[layout]
    return {name: t if name in WHOLE else change(t) for name, t in given.items()}


def positional(given: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
    """The operands in the order of the operators' arguments, None for those left out."""
    return tuple(given.get(name) for name in POSITIONAL)


def sample_of(given: dict[str, Tensor], which: slice | Tensor) -> dict[str, Tensor]:
    """The operands of some samples of the batch."""
    numbers = [name for name in ("row", "seeds", "draw") if name in given]
    shared = {"rows"} | {name for name in numbers if given[name].numel() == 1}
    return {name: t if name in shared else t[which] for name, t in given.items()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and every value; NaN equals NaN."""
    a, b = a.cpu(), b.cpu()
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def bits(t: Tensor) -> Tensor:
    """The integer behind each value, all NaNs alike and the two zeros apart."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return torch.where(t.isnan(), torch.full_like(t, torch.nan), t).contiguous().view(kind)
