"""Draws and checks the times that a loss trains at, and makes the network's timesteps."""

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
    """Return the numbers as float64 after a check that they are in [0, 1)."""
    numbers = check_array(function, "u", u)
    bad = (numbers < 0.0) | (numbers >= 1.0)
    if np.any(bad):
        raise ValueError(f"{function}: u must be in [0, 1), got {numbers[bad][0]:g}")
    return numbers


class TrainingTimes:
    """Draws times to train at: steps 1..T of a discrete schedule, (0, T] of a continuous one.

    Args:
        schedule: noise levels, of which only the times are read.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self.num_steps = schedule.num_steps
        self._all_timesteps: tuple[TimeInput, torch.device, Tensor] | None = None

    def from_uniform(self, function: str, u: npt.ArrayLike) -> npt.NDArray[Any]:
        """Turn uniform numbers u into times: int64 ``floor(u T) + 1``, or real ``(1 - u) T``."""
        numbers = unit_numbers(function, u)
        if self.num_steps is None:
            return (1.0 - numbers) * self.schedule.T
        # The minimum is needed because u T may round up to T.
        return np.minimum(np.floor(numbers * self.num_steps).astype(np.int64) + 1, self.num_steps)

    def draw(self, batch: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Draw uniform times `(B,)`: integers on the device, or float64 on the CPU."""
        if self.num_steps is not None:
            shape = (batch,)
            return torch.randint(1, self.num_steps + 1, shape, device=device, generator=generator)
        u = torch.rand(batch, device=device, generator=generator)
        return torch.as_tensor(self.from_uniform("draw", u.double().cpu().numpy()))

    def check(self, function: str, t: Tensor, batch: int) -> None:
        """Raise for times of a wrong shape or dtype, or out of range.

        The range of steps is checked on the CPU only, because a check on a GPU would wait for it.
        """
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

    def timesteps(
        self, model: Denoiser | Callable[..., Any], t: Tensor, device: torch.device
    ) -> Tensor:
        """Return the network's timesteps at times `(B,)`, on the device.

        A `Denoiser` has its own convention; a plain callable gets t - 1, or on a continuous
        schedule t in float32.
        """
        if not isinstance(model, Denoiser):
            return t.to(device, torch.float32) if self.num_steps is None else t.to(device) - 1
        if self.num_steps is None:
            return model.network_times(t.detach().cpu().double().numpy(), device)
        # The timesteps of all steps are kept on the device, so that times drawn there are looked
        # up without a copy to the CPU.
        if self._all_timesteps is None or self._all_timesteps[:2] != (model.time, device):
            steps = np.arange(1.0, self.num_steps + 1)
            self._all_timesteps = (model.time, device, model.network_times(steps, device))
        return self._all_timesteps[2][t.to(device) - 1]
