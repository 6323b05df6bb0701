"""Computes the decoder of variational diffusion models: a softmax over the data's levels."""

# Arguments of users are checked at runtime, whatever their annotations say.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["checked_levels", "level_nats"]

_CHUNK = 1 << 16
"""Number of logits that the CPU computes at once: 256 kB in float32 fit in a core's cache."""
_IMPOSSIBLE = -0.1
"""Fewer nats than this mean that x0 is none of the levels: a probability is at most 1."""


def checked_levels(function: str, levels: Tensor | str | None) -> Tensor | None:
    """Check the values that data can take, `(V,)` or `(D, V)` per dimension; return a copy."""
    if levels is None:
        return None
    if isinstance(levels, str):
        raise ValueError(f'{function}: levels must be a tensor, "density" or None, got {levels!r}')
    if not isinstance(levels, Tensor) or not levels.is_floating_point():
        got = levels.dtype if isinstance(levels, Tensor) else type(levels).__name__
        raise TypeError(f"{function}: levels must be a floating tensor, got {got}")
    if levels.dim() not in (1, 2) or levels.shape[-1] < 1:
        raise ValueError(
            f"{function}: levels must have the shape (V,) or (D, V), got {tuple(levels.shape)}"
        )
    return levels.detach().clone()


def level_nats(x0: Tensor, eps: Tensor, levels: Tensor, gamma_0: Tensor) -> Tensor:
    """Return `(B,)` ``-log p(x0 | z_0)`` in nats, where p is a softmax over the levels.

    Kingma et al. 2021, "Variational Diffusion Models" (arXiv:2107.00630), as in their code: the
    logits are ``-(z_0 / alpha_0 - level)^2 / (2 e^gamma_0)``, and ``z_0 / alpha_0 = x0 +
    e^(gamma_0 / 2) eps``. With ``n = (level - x0) e^(-gamma_0 / 2)`` that is, per element,
    ``log sum exp(n eps - n^2 / 2)``, where the level equal to x0 contributes exactly 1.

    Args:
        x0: data `(B, *shape)`, every element one of its levels.
        eps: standard normal noise in the shape of `x0`.
        levels: `(V,)`, or `(D, V)` with a row for each of the D elements of a sample in C order.
        gamma_0: negative log-SNR at the data, a scalar tensor; only it gets a gradient.

    Returns:
        Nats `(B,)`, summed over elements.

    Raises:
        ValueError: levels for another number of elements; on the CPU, data between the levels.
    """
    dims = x0[0].numel() if len(x0) else len(levels)
    if levels.dim() == 2 and len(levels) != dims:
        raise ValueError(
            f"VDMLoss: levels must have a row for each of the {dims} elements of a sample, "
            f"got {len(levels)}"
        )
    function: Any = _LevelNats  # because torch gives `apply` no types
    nats = cast(Tensor, function.apply(x0.flatten(1), eps.flatten(1), levels.to(x0), gamma_0))
    if nats.device.type == "cpu" and nats.numel() and nats.min() < _IMPOSSIBLE:
        value = x0.flatten()[nats.argmin()].item()
        raise ValueError(f"VDMLoss: x0 must hold values of levels, got {value:.6g}")
    return nats.sum(1)


class _LevelNats(torch.autograd.Function):
    """Computes nats and their derivative in one pass, because autograd would keep every logit."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor, eps: Tensor, levels: Tensor, gamma_0: Tensor) -> Tensor:
        scale = torch.exp(-0.5 * gamma_0).to(x0.dtype)
        nats, derivatives = torch.empty_like(x0), torch.empty_like(x0)
        chunk = _CHUNK if x0.device.type == "cpu" else 256 * _CHUNK
        rows = max(chunk // max(x0.shape[1] * levels.shape[-1], 1), 1)
        parts = (torch.split(tensor, rows) for tensor in (x0, eps, nats, derivatives))
        for x, e, value, derivative in zip(*parts, strict=True):
            e = e.unsqueeze(-1)
            n = (levels - x.unsqueeze(-1)).mul_(scale)
            # The sum needs no subtraction of a maximum: the exponent is at most eps^2 / 2.
            terms = torch.sub(e, n, alpha=0.5).mul_(n).exp_()
            total = terms.sum(-1)
            torch.log(total, out=value)
            if ctx.needs_input_grad[3]:  # d n / d gamma_0 = -n / 2
                torch.div(terms.mul_(n).mul_(n.sub_(e)).sum(-1), 2.0 * total, out=derivative)
        ctx.save_for_backward(derivatives)
        return nats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (derivatives,) = ctx.saved_tensors
        return None, None, None, (grad * derivatives).sum()
