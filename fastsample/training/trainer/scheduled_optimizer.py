"""Wraps a torch optimiser with a learning-rate schedule, and its state for checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class LearningRate(NamedTuple):
    """Computes a learning rate that rises linearly from 0 and falls to 0 along a cosine."""

    full: float
    """Full learning rate, without warm-up and decay."""
    warmup: int
    """Iterations until the full rate is reached; 0 starts with it."""
    decay: int | None
    """Iterations until the rate is 0; None never lets it fall."""

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        risen = min(1.0, (iteration + 1) / self.warmup) if self.warmup else 1.0
        if self.decay is None:
            return self.full * risen
        progress = min(iteration / self.decay, 1.0)
        return self.full * risen * 0.5 * (1.0 + math.cos(math.pi * progress))


class ScheduledOptimizer:
    """Holds an optimiser together with the schedule of its learning rate.

    Args:
        optimizer: any torch optimiser, made at the schedule's full rate. Parameter groups may have
            learning rates of their own, which keep their ratio to the full rate.
        learning_rate: the schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, learning_rate: LearningRate) -> None:
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self._ratios = [group["lr"] / learning_rate.full for group in optimizer.param_groups]
        self._initial_settings = self._settings()

    def step(self, iteration: int) -> None:
        """Take one step at the learning rate of this iteration."""
        rate = self.learning_rate(iteration)
        for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = rate * ratio
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimiser's state, such as moments, keyed "<parameter's number>.<name>"."""
        return {
            f"{number}.{name}": torch.as_tensor(value)
            for number, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }

    def changed_settings(self) -> list[dict[str, Any]]:
        """Return the settings of each parameter group that the optimiser has changed.

        Some optimisers keep counters there; a checkpoint needs them besides the tensors.
        """
        return [
            {name: value for name, value in now.items() if initial.get(name, ...) != value}
            for now, initial in zip(self._settings(), self._initial_settings, strict=True)
        ]

    def load(self, tensors: Mapping[str, Tensor], changes: Sequence[Mapping[str, Any]]) -> None:
        """Restore what `tensors` and `changed_settings` returned."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            states.setdefault(int(number), {})[name] = value
        groups = [
            {**group, **changed}
            for group, changed in zip(
                self.optimizer.state_dict()["param_groups"], changes, strict=True
            )
        ]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})

    def _settings(self) -> list[dict[str, Any]]:
        """Return each parameter group's plain values, without the learning rate of `step`."""
        return [
            {
                name: value
                for name, value in group.items()
                if name != "lr" and isinstance(value, bool | int | float | str)
            }
            for group in self.optimizer.param_groups
        ]
