"""What the operators refuse, and in which words."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample import _native, ops
from tests.helpers.tensors import HISTORY, operands

SHAPE = (2, 3, 4, 5)


def good(**changes):
    given = operands(SHAPE, {"uncond", "noise", *HISTORY, "seeds", "draw"})
    return {**given, **changes}


def zeros(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


BAD_STEPS = {
    "integer x": (
        {"x": zeros(*SHAPE, dtype=torch.int64)},
        TypeError,
        r"x must be float32, bfloat16, float16 or float64, got torch\.int64$",
    ),
    "complex x": ({"x": zeros(*SHAPE, dtype=torch.complex64)}, TypeError, "x must be float32"),
    "no sample dimension": (
        {"x": zeros(2)},
        ValueError,
        r"x must have a batch and a sample dimension, got shape \(2,\)$",
    ),
    "a number for x": ({"x": zeros()}, ValueError, r"x must have a batch .*, got shape \(\)$"),
    "out of another shape": (
        {"out": zeros(2, 3, 4, 4)},
        ValueError,
        r"out must have the shape of x \(2, 3, 4, 5\), or twice its channels when the variance is "
        r"learned, got \(2, 3, 4, 4\)$",
    ),
    "out with thrice the channels": (
        {"out": zeros(2, 9, 4, 5)},
        ValueError,
        r"out must have .* twice its channels .*, got \(2, 9, 4, 5\)$",
    ),
    "out of another dtype": (
        {"out": zeros(*SHAPE, dtype=torch.bfloat16)},
        TypeError,
        r"out must be torch\.float32, got torch\.bfloat16$",
    ),
    "out elsewhere": ({"out": zeros(*SHAPE, device="meta")}, ValueError, "out must be on cpu, got"),
    "rows of another width": (
        {"rows": zeros(5, 12, dtype=torch.float64)},
        ValueError,
        r"rows must be a table \(K, 15\) of at least one row, got \(5, 12\)$",
    ),
    "one row as a vector": (
        {"rows": zeros(15, dtype=torch.float64)},
        ValueError,
        r"rows must be a table \(K, 15\) of at least one row, got \(15,\)$",
    ),
    "float32 rows": (
        {"rows": zeros(5, 15)},
        TypeError,
        r"rows must be torch\.float64, got torch\.float32$",
    ),
    "rows elsewhere": (
        {"rows": zeros(5, 15, dtype=torch.float64, device="meta")},
        ValueError,
        "rows must be on cpu, got meta$",
    ),
    "too many row numbers": (
        {"row": zeros(3, dtype=torch.int64)},
        ValueError,
        r"row must have one element or one per sample \(2,\), got \(3,\)$",
    ),
    "a floating row number": (
        {"row": zeros(1)},
        TypeError,
        r"row must be torch\.int64, got torch\.float32$",
    ),
    "row elsewhere": (
        {"row": zeros(1, dtype=torch.int64, device="meta")},
        ValueError,
        "row must be on cpu, got meta$",
    ),
    "a number for draw": ({"draw": 5}, TypeError, r"draw must be an int64 tensor, got 5$"),
    "too many draws": (
        {"draw": zeros(3, dtype=torch.int64)},
        ValueError,
        r"draw must have one element or one per sample \(2,\), got \(3,\)$",
    ),
    "a table of draws": (
        {"draw": zeros(2, 1, dtype=torch.int64)},
        ValueError,
        r"draw must have one element or one per sample \(2,\), got \(2, 1\)$",
    ),
    "a floating draw": (
        {"draw": zeros(1)},
        TypeError,
        r"draw must be torch\.int64, got torch\.float32$",
    ),
    "draw elsewhere": (
        {"draw": zeros(1, dtype=torch.int64, device="meta")},
        ValueError,
        "draw must be on cpu, got meta$",
    ),
    "index without seeds' batch": (
        {"index": torch.arange(3)},
        ValueError,
        r"index must have shape \(2,\), got \(3,\)$",
    ),
    "seeds without index": ({"index": None}, TypeError, "index must be an int64 tensor, got None$"),
    "floating seeds": (
        {"seeds": zeros(1)},
        TypeError,
        r"seeds must be an int64 tensor, got tensor",
    ),
    "a number for seeds": ({"seeds": 3}, TypeError, "seeds must be an int64 tensor, got 3$"),
    "too many seeds": (
        {"seeds": torch.arange(5)},
        ValueError,
        r"seeds must have one element or shape \(2,\), got \(5,\)$",
    ),
    "seeds elsewhere": (
        {"seeds": zeros(1, dtype=torch.int64, device="meta")},
        ValueError,
        "seeds must be on cpu, got meta$",
    ),
    "index elsewhere": (
        {"index": zeros(2, dtype=torch.int64, device="meta")},
        ValueError,
        "index must be on cpu, got meta$",
    ),
}

for _name in ("uncond", "noise", *HISTORY):
    BAD_STEPS |= {
        f"{_name} of another dtype": (
            {_name: zeros(*SHAPE, dtype=torch.float64)},
            TypeError,
            rf"{_name} must be torch\.float32, got torch\.float64$",
        ),
        f"{_name} of another shape": (
            {_name: zeros(2, 3, 5, 4)},
            ValueError,
            rf"{_name} must have shape \(2, 3, 4, 5\), got \(2, 3, 5, 4\)$",
        ),
        f"{_name} elsewhere": (
            {_name: zeros(*SHAPE, device="meta")},
            ValueError,
            f"{_name} must be on cpu, got meta$",
        ),
    }


@pytest.mark.parametrize("name", BAD_STEPS)
@pytest.mark.parametrize("function", [ops.step, ops.step_x0])
def test_step(function, name):
    changes, error, message = BAD_STEPS[name]
    function(**good())
    with pytest.raises(error, match=f"^{function.__name__}: {message}"):
        function(**good(**changes))


def test_history_has_the_dtype_of_the_arithmetic():
    given = operands(SHAPE, {"h1"}, torch.bfloat16)
    assert given["h1"].dtype == torch.float32
    with pytest.raises(TypeError, match=r"^step: h1 must be torch\.float32, got torch\.bfloat16$"):
        ops.step(**{**given, "h1": given["x"]})


def test_uncond_has_the_shape_of_a_learned_output():
    given = operands(SHAPE, {"learned", "uncond"})
    with pytest.raises(ValueError, match=r"uncond must have shape \(2, 6, 4, 5\), got \(2, 3, 4"):
        ops.step(**{**given, "uncond": given["x"]})


@pytest.mark.parametrize(
    "target",
    [zeros(2, 3, 4, 4), zeros(*SHAPE, dtype=torch.float64), zeros(2, 3, 5, 4).transpose(2, 3)],
    ids=["shape", "dtype", "strides"],
)
def test_target(target):
    message = r"^step: target must have the shape, dtype and strides of x \(2, 3, 4, 5\), got \(2"
    with pytest.raises(ValueError, match=message):
        ops.step(**good(target=target))


def test_target_elsewhere():
    with pytest.raises(ValueError, match=r"^step: target must be on cpu, got meta$"):
        ops.step(**good(target=zeros(*SHAPE, device="meta")))


def test_target_with_gradients():
    given = good(target=zeros(*SHAPE))
    given["out"].requires_grad_()
    with pytest.raises(ValueError, match=r"^step: target must be None when a gradient is asked"):
        ops.step(**given)
    with torch.no_grad():
        ops.step(**given)


BAD_NOISES = {
    "integer": ({"dtype": torch.int64}, TypeError, r"dtype must be float32, .*torch\.int64"),
    "complex": ({"dtype": torch.complex64}, TypeError, "dtype must be float32"),
    "draw below 0": ({"draw": -1}, ValueError, r"draw must be in \[0, 2\*\*32\), got -1$"),
    "draw too large": ({"draw": 2**32}, ValueError, r"draw must be in .*, got 4294967296$"),
    "no channels": (
        {"shape": (7,), "channels_last": True},
        ValueError,
        r"shape must have 3 or 4 dimensions for channels_last, got \(7,\)$",
    ),
    "a list of indices": ({"index": [0, 1]}, TypeError, r"index must be an int64 tensor, got \[0"),
    "a table of indices": (
        {"index": torch.zeros(2, 2, dtype=torch.int64)},
        ValueError,
        r"index must have shape \(B,\), got \(2, 2\)$",
    ),
    "an index without dimension": (
        {"index": torch.tensor(3)},
        ValueError,
        r"index must have shape \(B,\), got \(\)$",
    ),
    "seeds of another batch": (
        {"seeds": torch.arange(3)},
        ValueError,
        r"seeds must have one element or shape \(2,\), got \(3,\)$",
    ),
    "seeds elsewhere": (
        {"seeds": zeros(1, dtype=torch.int64, device="meta")},
        ValueError,
        "seeds must be on cpu, got meta$",
    ),
}


@pytest.mark.parametrize("name", BAD_NOISES)
def test_noise(name):
    changes, error, message = BAD_NOISES[name]
    arguments = {"seeds": torch.tensor([0]), "index": torch.arange(2), "shape": (3, 4, 5)}
    with pytest.raises(error, match=f"^noise: {message}"):
        ops.noise(**{**arguments, **changes})


def test_unknown_instruction_set():
    with pytest.raises(ValueError, match=r"instruction set of this machine, got sse9$"):
        _native.use_isa("sse9")
    assert fs.build_info()["cpu"] in fs.build_info()["cpu_available"]


def test_unknown_dtype_code():
    x = torch.zeros(4)
    pointer = x.data_ptr()
    rows, row = torch.zeros(1, 15, dtype=torch.float64), torch.tensor([0])
    arguments = (-1, 0, 1, 99, 1, 4, 1, 4, False, False, pointer, pointer, *[0] * 6)
    table = (rows.data_ptr(), 1, row.data_ptr(), False, 0, False, 0, 0, False, pointer, 0)
    with pytest.raises(ValueError, match="unknown dtype code"):
        _native.step(*arguments, *table)
