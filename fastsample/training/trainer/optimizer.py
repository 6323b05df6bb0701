"""An optimiser at a learning rate that the trainer decides, and its state for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

MakeOptimizer: TypeAlias = Callable[..., Optimizer]


class Stepper:
    """An optimiser.

    Args:
        optimizer: any; groups may have rates of their own.
        rate: that it was made with: a group's rate stays in this proportion.
    """

    def __init__(self, optimizer: Optimizer, rate: float) -> None:
        self.optimizer = optimizer
        self._shares = [group["lr"] / rate for group in optimizer.param_groups]
        self._first = self._entries()

    def step_at(self, rate: float) -> None:
        """One step."""
        for group, share in zip(self.optimizer.param_groups, self._shares, strict=True):
            group["lr"] = rate * share
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Moments and the like, by number of the parameter and name."""
        return {
            f"{number}.{name}": torch.as_tensor(value)
            for number, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }

    def changes(self) -> list[dict[str, Any]]:
        """What the optimiser has changed in its groups: counters of some are kept there."""
        return [
            {name: value for name, value in now.items() if first.get(name, ...) != value}
            for now, first in zip(self._entries(), self._first, strict=True)
        ]

    def load(self, tensors: Mapping[str, Tensor], changes: Sequence[Mapping[str, Any]]) -> None:
        """What `tensors` and `changes` gave."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            states.setdefault(int(number), {})[name] = value
        known = self.optimizer.state_dict()
        groups = [
            {**group, **own} for group, own in zip(known["param_groups"], changes, strict=True)
        ]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})

    def _entries(self) -> list[dict[str, Any]]:
        """Numbers in the groups but for the learning rate, which is the trainer's."""
        return [
            {
                name: value
                for name, value in group.items()
                if name != "lr" and isinstance(value, bool | int | float | str)
            }
            for group in self.optimizer.param_groups
        ]
