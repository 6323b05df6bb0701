"""Azula's denoisers: ``denoiser(x_t, t).mean`` under any schedule alpha(t), sigma(t)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastsample._support.checks import FloatArray
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.rows import Clip
from fastsample.schedules.schedule import NoiseSchedule


def denoiser(
    model: Callable[..., Any],
    shape: Sequence[int],
    *,
    clip: Clip = None,
    uncond: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> Denoiser:
    """Wrap a denoiser of azula, such as its `SimpleDenoiser` and `KarrasDenoiser`.

    The schedule is ``model.schedule`` with T = 1, read in double precision; the network is told t
    and predicts x0. ``grid="uniform"`` visits the times of azula's samplers, and ``method="ddim"``
    takes its DDIM steps (azula's eta multiplies the variance, so that it is the square of eta
    here). They differ in the end: a run here lands on x0 itself, while azula's ends at the level
    ``sigma(0)`` of its schedule, which is 0.001 by default.

    Args:
        model: callable ``(x_t, t, **cond)`` whose result has the x0 as `mean`, with an attribute
            `schedule`: a callable from times to (alpha, sigma).
        shape: shape of one sample, without the batch axis.
        clip: range of the data: a bound on |x0|, a pair (lo, hi), or None.
        uncond: keyword arguments that mean "no condition", for guidance.
        device: where to run; a module is moved there.

    Raises:
        TypeError: a model that cannot be called, or that has no schedule.
        ValueError: a schedule that does not fall from clean data at t = 0.
    """
    name = "azula.denoiser"
    if not callable(model):
        raise TypeError(f"{name}: model must be callable, got {type(model).__name__}")
    levels: Any = getattr(model, "schedule", None)
    if not callable(levels):
        raise TypeError(
            f"{name}: model must have a schedule, a callable from times to (alpha, sigma), got "
            f"{type(model).__name__} with schedule={levels!r:.60}"
        )
    functions: Any = levels
    schedule = NoiseSchedule.from_functions(alpha=_Level(functions, 0), sigma=_Level(functions, 1))
    return Denoiser(
        _Mean(model) if isinstance(model, nn.Module) else _mean_of(model),
        schedule,
        shape,
        prediction="x0",
        clip=clip,
        time="fraction",  # t / T, which is t
        uncond=uncond,
        device=device,
    )


@dataclass(frozen=True)
class _Level:
    """One of the two functions of an azula schedule, from NumPy to NumPy.

    Attributes:
        schedule: azula's schedule.
        which: 0 for alpha, 1 for sigma.
    """

    schedule: Callable[[Tensor], tuple[Tensor, Tensor]]
    which: int

    def __call__(self, times: FloatArray) -> FloatArray:
        """Return the levels at times `(n,)`."""
        with torch.no_grad():
            level = self.schedule(torch.as_tensor(times, dtype=torch.float64, device="cpu"))
        return level[self.which].detach().cpu().double().numpy()


class _Mean(nn.Module):
    """An azula module whose result is the mean of its posterior."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False  # The model's own mode is what counts, see `warn_of_training_mode`.

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Return x0 `(B, *shape)`."""
        return self.model(x, t, **cond).mean


def _mean_of(model: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return a callable whose result is the mean of a denoiser's posterior."""

    def mean(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return model(x, t, **cond).mean

    return mean
