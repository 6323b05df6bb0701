"""Numbers and arrays as users of torch have them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample._support.checks import check_array, check_integer, check_real, check_vector

VALUES = [3.0, 0.75, -0.0]
TENSORS = {
    str(dtype): torch.tensor(VALUES, dtype=dtype)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2)
}
TENSORS["requires grad"] = torch.tensor(VALUES, requires_grad=True)
TENSORS["inference"] = torch.inference_mode()(lambda: torch.tensor(VALUES))()
TENSORS["strided"] = torch.tensor(VALUES).repeat_interleave(2)[::2]
TENSORS["a list of tensors"] = [torch.tensor(v, requires_grad=True).bfloat16() for v in VALUES]
TENSORS["a tuple of tensors and numbers"] = (torch.tensor(3.0).bfloat16(), 0.75, np.float32(0))


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_are_vectors(kind):
    found = check_vector("f", "x", TENSORS[kind])
    assert found.dtype == np.float64
    assert found.tolist() == VALUES


def test_integers_of_tensors_stay_whole_and_the_copy_is_new():
    assert check_array("f", "x", torch.tensor([[2**53 - 1]])).tolist() == [[2.0**53 - 1]]
    given = torch.ones(2, dtype=torch.float64)
    check_array("f", "x", given)[0] = 5.0
    assert given.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.tensor([True]), "bool data"),
        (torch.tensor([1j]), "complex64 data"),
        (torch.zeros(2, device="meta"), r"tensor\(\.\.\., device='meta', size=\(2,\)\)"),
        (torch.zeros(2).to_sparse(), r"tensor\(indices=tensor.*"),
        (
            [torch.zeros(2), torch.zeros(3)],
            r"\[tensor\(\[0\., 0\.\]\), tensor\(\[0\., 0\., 0\.\]\)\]",
        ),
        ([[1.0], [1.0, 2.0]], r"\[\[1\.0\], \[1\.0, 2\.0\]\]"),
    ],
    ids=["bool", "complex", "meta", "sparse", "lengths", "lists"],
)
def test_what_is_no_array_is_told_in_one_line(value, got):
    with pytest.raises(TypeError, match=f"^f: x must hold real numbers, got {got}$"):
        check_array("f", "x", value)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(0.5),
        torch.tensor(0.5, requires_grad=True),
        torch.tensor(0.5, dtype=torch.bfloat16),
        np.array(0.5),
        np.float32(0.5),
    ],
    ids=["tensor", "grad", "bfloat16", "array", "NumPy"],
)
def test_values_without_axes_are_numbers(value):
    found = check_real("f", "x", value, 0.0, 1.0)
    assert type(found) is float
    assert found == 0.5


def test_whole_values_without_axes():
    assert check_real("f", "x", torch.tensor(3)) == 3.0
    assert check_integer("f", "x", torch.tensor(3), 1) == 3
    with pytest.raises(ValueError, match=r"^f: x must be finite, got inf$"):
        check_real("f", "x", torch.tensor(math.inf))


@pytest.mark.parametrize(
    "value",
    [torch.tensor(True), torch.tensor([0.5]), torch.tensor(1j), np.array(True), np.str_("1")],
    ids=["bool", "axis", "complex", "NumPy bool", "text"],
)
def test_others_are_no_numbers(value):
    with pytest.raises(TypeError, match=r"^f: x must be a real number, got "):
        check_real("f", "x", value)


def test_where_users_meet_them():
    assert fs.grids.flow(4, shift=torch.tensor(3.0)) == fs.grids.flow(4, shift=3.0)
    assert fs.Grid(torch.tensor([3, 1, 0.0]).bfloat16()) == fs.Grid([3, 1, 0])
    indices = torch.tensor([999, 499])
    assert (
        fs.Grid.from_indices(indices)
        == fs.Grid.from_indices(list(indices))
        == fs.Grid([1e3, 500, 0])
    )
    schedule = fs.NoiseSchedule.linear()
    sigmas = torch.tensor([8.0, 1.0, 0.0], requires_grad=True)
    assert fs.grids.from_sigmas(schedule, sigmas) == fs.grids.from_sigmas(schedule, [8, 1, 0])
    x0, eps = torch.ones(2, 3), torch.zeros(2, 3)
    t = torch.tensor([100.0, 500.0])
    wanted = fs.diffuse(x0, schedule, [100.0, 500.0], noise=eps)
    assert torch.equal(fs.diffuse(x0, schedule, t.bfloat16(), noise=eps), wanted)
