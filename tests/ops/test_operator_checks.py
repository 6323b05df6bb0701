"""Operators called directly, as `torch.ops.fastsample.*`, refuse what does not fit.

No operand may make a kernel read or write outside of its tensors: `make sanitize` runs these tests
under the address sanitizer.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import fastsample.ops  # noqa: F401  (defines the operators)

OPERATORS = torch.ops.fastsample
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
WRONG_DTYPES = [*DTYPES, torch.int64, torch.int16, torch.bool]
SHAPE = (3, 4, 2, 2)
WRONG_SHAPES = [
    *(SHAPE, (3, 8, 2, 2), (3, 4), (3,), (1,), (), (0, 4), (3, 0, 2), (1, 4, 2, 2)),
    *((3, 15), (5, 15), (0, 15), (5, 13), (2,), (64,), (3, 4, 2, 2, 2)),
]


def step_operands(dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    """Operands of a step that fit each other: x to h4."""
    generator = torch.Generator().manual_seed(0)
    x, out = (torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(2))
    rows = torch.rand(5, 15, generator=generator, dtype=torch.float64)
    identity = (torch.tensor([1]), torch.arange(3))
    return [x, out, rows, torch.tensor([2]), None, *identity, *[None] * 6]


def operands(name: str, dtype: torch.dtype = torch.float32) -> list:
    """Operands of an operator that fit each other."""
    step = step_operands(dtype)
    if name == "step_into":
        return [step[0].clone(), *step]
    if name in ("step_backward", "row_gradients"):
        return [step[0].clone(), None, *step]
    if name == "noise":
        return [torch.tensor([1]), torch.arange(3), list(SHAPE), 4, dtype, False]
    if name == "elbo_sums":
        empty = torch.zeros(0, dtype=torch.float64)
        return [step[0], step[0], step[1], [1.0, 0.0, 0.0, 1.0, -1.0, 1.0], empty, empty, 0.1]
    return step


NAMES = ("step", "step_x0", "step_into", "step_backward", "row_gradients", "noise", "elbo_sums")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_operands_that_fit_are_taken(name, dtype):
    getattr(OPERATORS, name)(*operands(name, dtype))


def replaced(name: str, position: int, value: object) -> list:
    given = operands(name)
    given[position] = value
    return given


REFUSED = {
    "a small target": ("step_into", 0, torch.zeros(2, 2), ValueError, "target must have shape"),
    "an expanded target": (
        *("step_into", 0, torch.zeros(1, 4, 2, 2).expand(SHAPE)),
        *(ValueError, "target must have one place in memory for each element"),
    ),
    "a table of 6 columns": ("step", 2, torch.zeros(5, 6).double(), ValueError, "rows must be"),
    "a table of 13 columns": ("step", 2, torch.zeros(5, 13).double(), ValueError, "rows must be"),
    "no rows": ("step", 2, torch.zeros(0, 15).double(), ValueError, "of at least one row"),
    "int16 row numbers": (
        *("step", 3, torch.zeros(1, dtype=torch.int16)),
        *(TypeError, r"row must be torch\.int64"),
    ),
    "two row numbers": ("step", 3, torch.zeros(2).long(), ValueError, "row must have one element"),
    "2 seeds for 3 indices": ("step", 5, torch.zeros(2).long(), ValueError, "seeds must have one"),
    "few indices": ("step", 6, torch.zeros(1).long(), ValueError, "index must have shape"),
    "float draws": ("step", 7, torch.zeros(3), TypeError, r"draw must be torch\.int64"),
    "noise of another shape": ("step_x0", 8, torch.zeros(3, 4), ValueError, "noise must have"),
    "a short history": ("step", 12, torch.zeros(2, 4), ValueError, "h4 must have shape"),
    "no output": ("step", 1, None, TypeError, "operand 1 must be a tensor, got None"),
    "a short gradient": ("step_backward", 0, torch.zeros(3), ValueError, "grad must have shape"),
    "a gradient of x0 in half": (
        *("row_gradients", 1, torch.zeros(SHAPE).half()),
        *(TypeError, r"grad_x0 must be torch\.float32"),
    ),
    "a size for 64": ("noise", 2, [64, 4], ValueError, r"size must be \(3, \*shape\)"),
    "a negative size": ("noise", 2, [3, -4], ValueError, "size must be"),
    "a draw of 33 bits": ("noise", 3, 2**32, ValueError, r"draw must be in \[0, 2\*\*32\)"),
    "integer noise": ("noise", 4, torch.int64, TypeError, "dtype must be float32"),
    "five coefficients": ("elbo_sums", 3, [1.0] * 5, ValueError, "coefficients must be the 6"),
    "float32 scales": ("elbo_sums", 5, torch.zeros(2), ValueError, "log_scales must be a float64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_operands_that_do_not_fit_are_refused(case):
    name, position, value, error, message = REFUSED[case]
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        getattr(OPERATORS, name)(*replaced(name, position, value))


def test_random_wrong_operands_never_crash():
    """Ten thousand calls with one to three operands replaced: a result or one of torch's errors."""
    source, generator = random.Random(0), torch.Generator().manual_seed(0)

    def wrong() -> Tensor | None:
        if source.random() < 0.25:
            return None
        shape, chance = source.choice(WRONG_SHAPES), source.random()
        values = torch.randint(-3, 70, shape, generator=generator)
        values = values.to(source.choice(WRONG_DTYPES))
        if chance < 0.1 and values.numel() and values.dim():
            return values[..., :1].expand(shape)
        if chance < 0.2 and values.dim() > 1:
            return values.transpose(0, -1)
        if chance < 0.25 and values.dim() and values.is_floating_point():
            return values.to_sparse()
        return values

    numbers = {
        ("noise", 2): [[3, 4], [64, 4], [0], [], [-1, 4], [3, -4], [3, 2, 2, 2, 2]],
        ("noise", 3): [-1, 2**32, 5],
        ("noise", 4): WRONG_DTYPES,
        ("noise", 5): [True, False],
        ("elbo_sums", 3): [[1.0] * n for n in range(9)],
        ("elbo_sums", 6): [0.0, -1.0, float("nan")],
    }
    taken = refused = 0
    for _ in range(10_000):
        name = source.choice(NAMES)
        given = operands(name, source.choice(DTYPES))
        for _ in range(source.randrange(1, 4)):
            position = source.randrange(len(given))
            values = numbers.get((name, position))
            given[position] = source.choice(values) if values else wrong()
        try:
            getattr(OPERATORS, name)(*given)
            taken += 1
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            refused += 1
    assert taken > 100
    assert refused > 1000
