"""Torch networks for tests of the loop: toys with known answers, and spies on any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsample.denoiser.denoiser import Denoiser
from fastsample.schedules.schedule import NoiseSchedule

LINEAR = NoiseSchedule.linear()


class Spy:
    """Passes calls on and keeps what it was given: batch sizes, times, conditions, grad modes."""

    def __init__(self, network: Callable[..., Any]) -> None:
        self.network = network
        self.told: list[Tensor] = []
        self.batches: list[int] = []
        self.conditions: list[dict[str, Any]] = []
        self.modes: list[tuple[bool, bool]] = []
        self.inputs: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        assert t.shape == x.shape[:1]
        self.told.append(t.clone())
        self.batches.append(len(x))
        self.conditions.append(cond)
        self.modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        self.inputs.append(x.detach().clone())
        return self.network(x, t, **cond)

    def __len__(self) -> int:
        return len(self.told)


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """`(B,)` values shaped to broadcast over x."""
    return values.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))


def halve(x: Tensor, t: Tensor, **_: Any) -> Tensor:
    """Rounds alike for every element, wherever it lies in a batch; depends on x and t."""
    return 0.5 * x + per_sample(t, x) * 2.0**-10


def halve_wide(x: Tensor, t: Tensor, **_: Any) -> Tensor:
    """The same with a learned variance that differs between elements."""
    return torch.cat((halve(x, t), 0.25 * x), dim=1)


def model_b(T: int = 1000) -> Callable[..., Tensor]:
    """The golden files' model B."""
    return lambda x, t: torch.tanh(x) * per_sample(0.3 + t.double() / T, x)


def model_a2(T: int = 1000) -> Callable[..., Tensor]:
    """Model B with a learned variance."""
    return lambda x, t: torch.cat((model_b(T)(x, t), torch.tanh(0.5 * x)), dim=1)


def model_a(schedule: NoiseSchedule) -> Callable[..., Tensor]:
    """The golden files' model A: exact for data from N(0, I)."""
    return lambda x, t: per_sample(torch.from_numpy(schedule.sigma(t.double().numpy() + 1)), x) * x


class Gaussian:
    """The exact denoiser for data from N(mean, deviation^2), in any prediction."""

    def __init__(
        self, schedule: NoiseSchedule, mean: float, deviation: float, prediction: str = "epsilon"
    ) -> None:
        self.schedule, self.mean, self.deviation = schedule, mean, deviation
        self.prediction = prediction

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (
            per_sample(torch.from_numpy(level), x)
            for level in self.schedule.levels(t.double().numpy())
        )
        variance = alpha**2 * self.deviation**2 + sigma**2
        residual = (x - alpha * self.mean) / variance
        x0 = self.mean + alpha * self.deviation**2 * residual
        eps = sigma * residual
        return {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[
            self.prediction
        ]

    def denoiser(self, *shape: int) -> Denoiser:
        """With project time passed through, so that any schedule and any time will do."""
        return Denoiser(
            self,
            self.schedule,
            shape,
            prediction=self.prediction,
            time=lambda times: torch.from_numpy(times.copy()),
        )


def denoiser(network: Callable[..., Any], *shape: int, **options: Any) -> Denoiser:
    """A `Denoiser` on the linear schedule."""
    return Denoiser(network, options.pop("schedule", LINEAR), shape, **options)
