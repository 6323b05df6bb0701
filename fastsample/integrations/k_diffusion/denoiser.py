"""Wraps the denoisers of k-diffusion, which return x0 for ``x = x0 + sigma eps``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsample._support.checks import check_real
from fastsample.denoiser.denoiser import Denoiser
from fastsample.integrations.k_diffusion.levels import (
    as_number,
    stated,
)
from fastsample.plans.rows import Clip
from fastsample.schedules.functions import MOST_SIGMA
from fastsample.schedules.schedule import NoiseSchedule


def denoiser(
    model: Callable[..., Any],
    shape: Sequence[int],
    *,
    sigma_max: float | None = None,
    clip: Clip = None,
    uncond: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> Denoiser:
    """Wrap a denoiser of k-diffusion, or any callable ``(x, sigma, **cond) -> x0``.

    `K.external.CompVisDenoiser`, `DiscreteEpsDDPMDenoiser`, `DiscreteVDDPMDenoiser`,
    `OpenAIDenoiser`, `VDenoiser` and `K.layers.Denoiser` are such callables. The time of the result
    is their noise level: the schedule is ``x_t = x0 + t eps`` with T = `sigma_max`, exactly, and
    the network is told t. A discrete wrapper finds its fractional index from that itself, or
    rounds it with ``quantize=True``.

    `fastsample.sample` starts from noise of deviation ``sqrt(1 + sigma_max^2)``, as ComfyUI does;
    k-diffusion's scripts start from `sigma_max`, which is ``start=torch.randn(...) * sigma_max``.

    Args:
        model: callable ``(x, sigma, **cond) -> x0``; x is `(B, *shape)` and sigma `(B,)`.
        shape: shape of one sample, without the batch axis.
        sigma_max: the largest noise level; None is the `sigma_max` that the model states.
        clip: range of the data: a bound on |x0|, a pair (lo, hi), or None.
        uncond: keyword arguments that mean "no condition", for guidance.
        device: where to run; a module is moved there.

    Raises:
        TypeError: a model that cannot be called, or an argument of the wrong type.
        ValueError: no `sigma_max` where the model states none, or one out of range.
    """
    return wrap("k_diffusion.denoiser", model, shape, sigma_max, clip, uncond, device)


def wrap(
    name: str,
    model: Any,
    shape: Sequence[int],
    sigma_max: float | None,
    clip: Clip,
    uncond: Mapping[str, Any] | None,
    device: torch.device | str | None,
) -> Denoiser:
    """Return what `denoiser` does, for any caller's name in messages."""
    if not callable(model):
        raise TypeError(f"{name}: model must be callable, got {type(model).__name__}")
    known = stated(model, "sigma_max")
    top = known if sigma_max is None else as_number(sigma_max)
    if top is None or (sigma_max is None and not math.isfinite(top)):
        raise ValueError(
            f"{name}: sigma_max must be given for {type(model).__name__}, which has no finite one "
            f"of its own, got {sigma_max}"
        )
    top = check_real(name, "sigma_max", top)
    if not 0.0 < top <= MOST_SIGMA:
        raise ValueError(
            f"{name}: sigma_max must be positive and at most {MOST_SIGMA:g}, got {top:g}"
        )
    if known is not None and top > known * (1.0 + 1e-4):
        raise ValueError(
            f"{name}: sigma_max must be at most the model's own {known:g}, got {top:g}"
        )
    schedule = NoiseSchedule.exploding(top)
    return Denoiser(
        _with_levels_in_its_dtype(model),
        schedule,
        shape,
        prediction="x0",
        clip=clip,
        time=schedule.sigma,
        uncond=uncond,
        device=device,
    )


def _with_levels_in_its_dtype(model: Any) -> Callable[..., Any]:
    """Return a model that is given sigma in the dtype of x, as k-diffusion's samplers do.

    A wrapper multiplies x by functions of sigma, so that a float32 sigma would turn a half
    precision input into float32, which the network inside would refuse. A module in float32 is
    returned as it is.
    """
    if isinstance(model, nn.Module):
        first = next((p for p in model.parameters() if p.is_floating_point()), None)
        return model if first is None or first.dtype == torch.float32 else _SameDtype(model)

    def same_dtype(x: Tensor, sigma: Tensor, **cond: Any) -> Any:
        return model(x, sigma.to(x.dtype), **cond)

    return same_dtype


class _SameDtype(nn.Module):
    """A module that is given sigma in the dtype of x."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False  # The model's own mode is what counts, see `warn_of_training_mode`.

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Any:
        """Return the model's x0."""
        return self.model(x, sigma.to(x.dtype), **cond)
