"""Gradients of a step: by finite differences, and against autograd through the reference."""

from __future__ import annotations

import pytest
import torch

from fastsample import ops
from fastsample.ops import reference
from tests.helpers.step_oracle import assert_within, coefficients, sizes, widened
from tests.helpers.tensors import (
    DTYPES,
    HISTORY,
    OPERANDS,
    SHAPES,
    laid_out,
    operands,
    positional,
    runnable,
)

DIFFERENTIABLE = ("x", "out", "uncond", "noise", *HISTORY)
EVERY_COMBINATION = pytest.mark.parametrize("combination", OPERANDS)


def raw_x0(given):
    """x0 before its clamp, with the bounds."""
    wide = widened(given)
    free = wide["rows"].clone()
    free[:, 2], free[:, 3] = -torch.inf, torch.inf
    c = coefficients(wide)
    return reference.step_x0(**{**wide, "rows": free})[1], c["lo"], c["hi"]


def with_leaves(given):
    """The operands with fresh leaves, and the leaves by name."""
    leaves = {n: given[n].detach().clone().requires_grad_() for n in DIFFERENTIABLE if n in given}
    return {**given, **leaves}, leaves


@EVERY_COMBINATION
def test_gradcheck(device, combination):
    for row in runnable(OPERANDS[combination]):
        given = operands((2, 3, 5), OPERANDS[combination], torch.float64, device, row)
        raw, lo, hi = raw_x0(given)
        # Finite differences step over the clamp's kinks if they are near.
        assert ((raw - lo).abs() > 1e-3).all()
        assert ((raw - hi).abs() > 1e-3).all()
        names = [name for name in DIFFERENTIABLE if name in given]

        def function(*leaves, given=given, names=names):
            return ops.step_x0(**{**given, **dict(zip(names, leaves, strict=True))})

        leaves = [given[name].requires_grad_() for name in names]
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradcheck(lambda *leaves: function(*leaves)[0], leaves)


def reference_gradients(wide, grad, grad_x0):
    operands, leaves = with_leaves(wide)
    found = torch.autograd.grad(
        reference.step_x0(**operands), list(leaves.values()), (grad, grad_x0), allow_unused=True
    )
    return {
        name: torch.zeros_like(wide[name]) if g is None else g
        for name, g in zip(leaves, found, strict=True)
    }


def gradient_sizes(wide, grad, grad_x0):
    """Summed magnitudes of each gradient's terms, float64: the chain rule without signs."""
    c = {name: value.abs() for name, value in coefficients(wide).items()}
    size = sizes(wide, reference.step_x0(**wide)[1])
    through = c["b"] * grad.abs() + grad_x0.abs()
    m = c["q"] * through + c["e"] * grad.abs()
    share = c["w"] if "uncond" in wide else 1.0
    found = {"x": c["p"] * through + c["a"] * grad.abs(), "out": share * m}
    found["uncond"] = (1 + c["w"]) * m
    found |= {name: c[f"c{n}"] * grad.abs() for n, name in enumerate(HISTORY, 1)}
    found["noise"] = size["deviation"] * grad.abs()
    if wide["out"].shape != wide["x"].shape:
        # d sd / dv = sd (lv_hi - lv_lo) / 4; generated noise adds its own 2e-6.
        slope = (c["lv_lo"] + c["lv_hi"]) / 4
        v = slope * (size["noise"] + size["deviation"]) * grad.abs()
        found["out"] = torch.cat((found["out"], v), 1)
        found["uncond"] = torch.cat((found["uncond"], torch.zeros_like(v)), 1)
    return found


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@EVERY_COMBINATION
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ("vectors", "contiguous"),
        ("past one tile", "sliced"),
        ("odd images", "channels_last"),
        ("odd images", "offset"),
        ("more channels than a tile", "channels_last"),
        ("volumes", "channels_last"),
        ("volumes", "transposed"),
        ("empty batch", "contiguous"),
    ],
)
def test_equals_autograd_through_the_reference(device, shape, layout, combination, dtype):
    given = laid_out(operands(SHAPES[shape], OPERANDS[combination], dtype, device), layout)
    given, leaves = with_leaves(given)
    x_next, x0 = ops.step_x0(**given)
    grad, grad_x0 = torch.randn_like(x_next), torch.randn_like(x0)
    found = torch.autograd.grad((x_next, x0), list(leaves.values()), (grad, grad_x0))

    wide = widened({n: t.detach() for n, t in given.items()})
    grad, grad_x0 = grad.cpu().double(), grad_x0.cpu().double()
    expected = reference_gradients(wide, grad, grad_x0)
    size = gradient_sizes(wide, grad, grad_x0)
    raw, lo, hi = raw_x0(wide)
    for name, ours in zip(leaves, found, strict=True):
        assert ours.dtype == given[name].dtype
        wider = ours.dtype if ours.dtype == torch.float64 else torch.float32
        bound = 6 * torch.finfo(wider).eps * size[name]
        if name == "out" and "seeds" in given and "noise" not in given:
            bound = bound + 2e-6 * size[name]
        if ours.dtype in (torch.bfloat16, torch.float16):
            info = torch.finfo(ours.dtype)
            bound = bound + info.eps * (expected[name].abs() + info.smallest_normal)
        # At the clamp's edge float32 and float64 may disagree on which side x0 is.
        edge = torch.minimum((raw - lo).abs(), (raw - hi).abs()) < 1e-4 * (1 + raw.abs())
        edge = torch.cat((edge, edge), 1) if expected[name].shape != edge.shape else edge
        assert edge.double().mean() < 0.01 or edge.numel() < 1000
        assert_within(
            torch.where(edge, 0.0, ours.detach().cpu().double()),
            torch.where(edge, 0.0, expected[name]),
            bound,
            name,
        )


def test_reference_backward_is_the_kernel_backward(device):
    given = operands((2, 3, 7), OPERANDS["everything"], torch.float64, device)
    arguments = positional(given)
    grad = torch.randn_like(given["x"])
    for grad_x0 in (None, torch.randn_like(grad)):
        ours = torch.ops.fastsample.step_backward(grad, grad_x0, *arguments)
        theirs = reference.step_backward(grad, grad_x0, *arguments)
        assert len(ours) == len(theirs) == len(DIFFERENTIABLE)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_absent_operands_have_no_gradient(device):
    given, leaves = with_leaves(operands((2, 3), set(), device=device))
    ops.step(**given).sum().backward()
    assert all(leaf.grad is not None for leaf in leaves.values())
    x = given["x"].detach().requires_grad_()
    out = given["out"].detach()
    ops.step(x, out, given["rows"], given["row"]).sum().backward()
    assert x.grad is not None
    assert out.grad is None


def test_a_row_outside_the_table_has_nan_gradients(device):
    given, leaves = with_leaves(operands((2, 3), {"seeds"}, device=device, row=99))
    ops.step(**given).sum().backward()
    assert leaves["x"].grad.isnan().all()
    assert leaves["out"].grad.isnan().all()


def test_no_graph_is_kept_without_grad_mode(device):
    given, _ = with_leaves(operands((2, 3), {"seeds"}, device=device))
    assert ops.step(**given).requires_grad
    with torch.no_grad():
        assert not ops.step(**given).requires_grad
    with torch.inference_mode():
        assert not ops.step(**given).requires_grad


def test_differentiable_once(device):
    given, leaves = with_leaves(operands((2, 3), {"seeds"}, device=device))
    loss = ops.step(**given).square().sum()
    (grad,) = torch.autograd.grad(loss, leaves["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="step: derivatives must be of first order"):
        grad.sum().backward()
