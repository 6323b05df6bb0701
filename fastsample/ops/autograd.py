"""The autograd functions that compute the gradients of a step."""
# torch.autograd.Function has no type annotations, and its methods take any arguments.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsample.ops import library


class StepFunction(torch.autograd.Function):
    """Makes the step differentiable: ``apply(*operands)`` returns (x_next, x0).

    It stands outside the operator: that is cheaper than `torch.library.register_autograd`, and the
    operator stays functional.
    """

    @staticmethod
    def forward(*operands: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the kernel."""
        return library.step_x0_op(*operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Any) -> None:
        """Save the operands for the backward pass."""
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_x0: Tensor | None) -> tuple[Any, ...]:
        """Return the gradients of the operands, None for seeds, indices, draws and row numbers."""
        operands = ctx.saved_tensors
        x, out, rows, row, uncond, _, _, _, noise, *history = operands
        if grad is None:  # only x0 was used
            grad = torch.zeros_like(x)
        if torch.compiler.is_compiling():  # dynamo cannot trace a Function here
            grads = library.step_backward_op(grad, grad_x0, *operands)
        else:
            grads = StepBackwardFunction.apply(grad, grad_x0, *operands)
        grad_x, grad_out, grad_uncond, grad_noise, *grad_history = (
            None if operand is None else gradient
            for operand, gradient in zip((x, out, uncond, noise, *history), grads, strict=True)
        )
        grad_rows = None
        if ctx.needs_input_grad[2]:
            sums = library.row_gradients_op(grad, grad_x0, *operands).to(rows.dtype)
            # A row number outside the table has NaN gradients; they are added to the nearest row.
            number = row.reshape(-1).expand(sums.shape[0]).clamp(0, rows.shape[0] - 1)
            grad_rows = torch.zeros_like(rows).index_add_(0, number, sums)
        return (
            *(grad_x, grad_out, grad_rows, None, grad_uncond),
            *(None, None, None, grad_noise, *grad_history),
        )


class StepBackwardFunction(torch.autograd.Function):
    """Runs the backward kernel, and raises for second derivatives instead of returning 0."""

    @staticmethod
    def forward(*operands: Tensor | None) -> tuple[Tensor, ...]:
        """Run the kernel."""
        return library.step_backward_op(*operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Any) -> None:
        """Save nothing, since there is no second backward pass."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Raise RuntimeError, since the kernel has no second derivative."""
        raise RuntimeError(
            "step: derivatives must be of first order, got a second; the reference in plain torch, "
            "fastsample.ops.reference.step, has them all"
        )
