"""Back along fine trajectories: what an error anywhere does to their ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import FloatArray
from fastsample.profiling.adjoint import Adjoints, step_terms
from fastsample.sampling.noise import Identity
from fastsample.schedules.transition import ddim_terms

Estimate: TypeAlias = Callable[[Tensor, int], Tensor]

_PROBE_DRAW = 0xFFFFFFFE  # next to that of the starting noise: no row ever has this number
_WIDENED = 2**24  # elements of the projections' factors that are in float64 at once


class NotDifferentiableError(ValueError):
    """The network has no gradient with respect to its input."""


def adjoints_of(
    function: str,
    estimate: Estimate,
    times: FloatArray,
    levels: tuple[FloatArray, FloatArray],
    states: Tensor,
    identity: Identity,
) -> Adjoints:
    """End errors of all steps between the times of fine trajectories.

    One forward and one backward pass through the network per time, each with the activations of a
    single call in memory. The parameters' gradients are neither computed nor touched.

    Args:
        function: who asks, for messages.
        estimate: ``(x, k) -> x0`` at ``times[k]``, differentiable and clipped as in the steps; its
            derivative is that of `torch.clamp`, 0 outside the range.
        times: `(n,)` ascending.
        levels: alpha and sigma at the times.
        states: `(n + 1, N, *shape)` along the trajectories, the clean end first.
        identity: of the samples; their random signs belong to them like their noise.

    Raises:
        NotDifferentiableError: a network without a gradient.
        ValueError: a gradient that is not finite (the message names the time).
    """
    alpha, sigma = (np.append(end, v) for end, v in zip((1.0, 0.0), levels, strict=True))
    z = ops.noise(*identity, tuple(states.shape[2:]), draw=_PROBE_DRAW, dtype=states.dtype)
    adjoints, estimates = torch.empty_like(states), torch.zeros_like(states)
    # Signs, not normals: the squares then vary less.
    adjoints[0] = torch.where(z >= 0.0, 1.0, -1.0)
    for k in range(len(times)):
        a, b = ddim_terms(alpha[k + 1], sigma[k + 1], alpha[k], sigma[k])
        estimates[k + 1], adjoints[k + 1] = _pulled_back(
            function, lambda x, k=k: estimate(x, k), states[k + 1], float(a), float(b), adjoints[k]
        )
        if not torch.isfinite(adjoints[k + 1]).all():
            raise ValueError(
                f"{function}: the model's gradient must be finite, got NaN or infinity at "
                f"t = {times[k]:g}"
            )
    flat = (t.flatten(2).unbind(1) for t in (states, estimates, adjoints))
    return _summed(step_terms(alpha, sigma), zip(*flat, strict=True), states.device)


def check_differentiable(function: str, x: Tensor, output: Tensor) -> None:
    """Refuse an output that is cut off from an input which wants its gradient."""
    if x.requires_grad and not output.requires_grad:
        raise NotDifferentiableError(
            f"{function}: model must be differentiable with adjoint=True, got an output without a "
            "gradient; pass adjoint=False"
        )


def _pulled_back(
    function: str,
    estimate: Callable[[Tensor], Tensor],
    state: Tensor,
    a: float,
    b: float,
    adjoint: Tensor,
) -> tuple[Tensor, Tensor]:
    """(x0, J^T g) of one step ``a x + b x0(x)``; the caller may be in inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        x = state.clone().requires_grad_()  # tensors of inference mode cannot be differentiated
        try:
            x0 = estimate(x)
            (pulled,) = torch.autograd.grad(a * x + b * x0, x, adjoint.clone())
        except (NotDifferentiableError, torch.cuda.OutOfMemoryError):
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise NotDifferentiableError(
                f"{function}: model must be differentiable with adjoint=True, "
                f"got {type(error).__name__}: {error}; pass adjoint=False"
            ) from error
    return x0.detach(), pulled


def _summed(terms, samples, device: torch.device) -> Adjoints:
    """Squares of the projections, sample by sample ``(x, d, g)``, each `(n + 1, elements)`."""
    scale, gain = (torch.from_numpy(term).to(device) for term in terms)
    steps, starts, count = torch.zeros_like(scale), torch.zeros_like(scale[0]), 0
    columns = max(1, _WIDENED // len(scale))
    for sample in samples:
        onto_x, onto_d = torch.zeros_like(scale), torch.zeros_like(scale)
        for part in zip(*(t.split(columns, dim=1) for t in sample), strict=True):
            x, d, g = (t.double() for t in part)
            onto_x += g @ x.T
            onto_d += g @ d.T
        own = onto_x.diagonal()
        # Above the diagonal: from t (column) to s (row).
        steps += (scale * onto_x + gain * onto_d - own[:, None]).triu(1).square()
        starts += (onto_x[:, -1] - own).square()
        count += 1
    starts[0] = 0.0  # nothing starts at the end
    return Adjoints(count, steps.T.cpu().numpy().copy(), starts.cpu().numpy())
