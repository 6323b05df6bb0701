"""The times that a loss trains at: drawn, checked, and told to the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray, check_array
from fastsample.denoiser.denoiser import Denoiser, TimeInput
from fastsample.schedules.schedule import NoiseSchedule

__all__ = ["TrainingTimes", "unit_numbers"]


def unit_numbers(function: str, u: npt.ArrayLike) -> FloatArray:
    """The numbers as float64, all of them in [0, 1)."""
    numbers = check_array(function, "u", u)
    bad = (numbers < 0.0) | (numbers >= 1.0)
    if np.any(bad):
        raise ValueError(f"{function}: u must be in [0, 1), got {numbers[bad][0]:g}")
    return numbers


class TrainingTimes:
    """Whole steps 1..T of a discrete schedule, real times in (0, T] of a continuous one.

    Args:
        schedule: noise levels; only their times are read.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self.num_steps = schedule.num_steps
        self._steps_told: tuple[TimeInput, torch.device, Tensor] | None = None

    def of(self, function: str, u: npt.ArrayLike) -> npt.NDArray[Any]:
        """Times of uniform numbers u in [0, 1): int64 ``floor(u T) + 1``, or real ``(1 - u) T``."""
        numbers = unit_numbers(function, u)
        if self.num_steps is None:
            return (1.0 - numbers) * self.schedule.T
        # u T may round up to T.
        return np.minimum(np.floor(numbers * self.num_steps).astype(np.int64) + 1, self.num_steps)

    def draw(self, batch: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Uniform times `(B,)`: integers on the device, or float64 on the host."""
        if self.num_steps is not None:
            shape = (batch,)
            return torch.randint(1, self.num_steps + 1, shape, device=device, generator=generator)
        u = torch.rand(batch, device=device, generator=generator)
        return torch.from_numpy(self.of("draw", u.double().cpu().numpy()))

    def check(self, function: str, t: Tensor, batch: int) -> None:
        """Shape and kind always; steps' range on the CPU only, where looking costs no wait."""
        if self.num_steps is not None and t.is_floating_point():
            raise TypeError(f"{function}: t must be integer times, got {t.dtype}")
        if t.shape != (batch,):
            raise ValueError(f"{function}: t must have the shape ({batch},), got {tuple(t.shape)}")
        if not batch or (self.num_steps is not None and t.device.type != "cpu"):
            return
        low, high = t.min().item(), t.max().item()
        if self.num_steps is None:
            if not 0.0 < low <= high <= self.schedule.T:
                raise ValueError(
                    f"{function}: t must be in (0, {self.schedule.T:g}], got {low:g}..{high:g}"
                )
        elif not 1 <= low <= high <= self.num_steps:
            raise ValueError(f"{function}: t must be in 1..{self.num_steps}, got {low}..{high}")

    def told(self, model: Denoiser | Callable[..., Any], t: Tensor, device: torch.device) -> Tensor:
        """What the network is told at times `(B,)`, on the device.

        By a `Denoiser`'s convention; a callable gets t - 1, or t in float32 if it is real.
        """
        if not isinstance(model, Denoiser):
            return t.to(device, torch.float32) if self.num_steps is None else t.to(device) - 1
        if self.num_steps is None:
            return model.network_times(t.detach().cpu().double().numpy(), device)
        # All steps at once and once only: to look up a drawn step needs no copy to the host.
        if self._steps_told is None or self._steps_told[:2] != (model.time, device):
            steps = np.arange(1.0, self.num_steps + 1)
            self._steps_told = (model.time, device, model.network_times(steps, device))
        return self._steps_told[2][t.to(device) - 1]
