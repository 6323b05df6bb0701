"""Sets the trainer's optimiser: learning rate, weight decay, clipping, and its class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.optim import AdamW

from fastsample._support.checks import check_integer, check_real
from fastsample.training.trainer.scheduled_optimizer import LearningRate, ScheduledOptimizer

MakeOptimizer: TypeAlias = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Optimizer:
    """Holds the settings of the trainer's optimiser.

    A fidelity term with a learning rate of its own (`FidelityTerm.lr`) gets a second optimiser
    with the same `warmup`, `decay` and `make`, and without weight decay.

    Attributes:
        lr: full learning rate, positive.
        warmup: iterations over which the learning rate rises linearly from 0; 0 starts in full.
        decay: iterations over which it falls to 0 along a cosine, counted from iteration 0; None
            keeps it.
        weight_decay: decoupled weight decay of AdamW, at least 0 (Loshchilov and Hutter 2019,
            arXiv:1711.05101).
        clip: largest norm of the diffusion loss's gradient over all parameters, positive; a
            gradient above it is scaled down to it. None is no bound.
        make: ``(parameters, lr=...) -> torch.optim.Optimizer``, for another optimiser than AdamW.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range, or `weight_decay` together with `make`.
    """

    lr: float = 1e-4
    warmup: int = 0
    decay: int | None = None
    weight_decay: float = 0.0
    clip: float | None = 1.0
    make: MakeOptimizer | None = None

    def __post_init__(self) -> None:
        check_positive("Optimizer", "lr", self.lr)
        check_integer("Optimizer", "warmup", self.warmup, 0)
        if self.decay is not None:
            check_integer("Optimizer", "decay", self.decay, 1)
        check_real("Optimizer", "weight_decay", self.weight_decay, 0.0)
        if self.clip is not None:
            check_positive("Optimizer", "clip", self.clip)
        if self.make is not None and not callable(self.make):
            raise TypeError(f"Optimizer: make must be callable or None, got {self.make!r}")
        if self.make is not None and self.weight_decay:
            raise ValueError(
                f"Optimizer: weight_decay must be 0 with make, got {self.weight_decay:g}; "
                "make decides about it"
            )

    @property
    def max_norm(self) -> float:
        """Return the bound on the gradient's norm; infinity if there is none."""
        return math.inf if self.clip is None else float(self.clip)

    def create(
        self, parameters: list[torch.nn.Parameter], *, lr: float, weight_decay: float
    ) -> ScheduledOptimizer:
        """Make an optimiser of these parameters that follows the learning rate's schedule.

        Args:
            parameters: the parameters to optimise.
            lr: full learning rate.
            weight_decay: of AdamW; `make` ignores it.
        """
        lr = float(lr)
        if self.make is None:
            optimizer = AdamW(parameters, lr=lr, weight_decay=weight_decay)
        else:
            optimizer = self.make(parameters, lr=lr)
        return ScheduledOptimizer(optimizer, LearningRate(lr, self.warmup, self.decay))


def check_positive(function: str, name: str, value: object) -> float:
    """Return the value as a finite float, after a check that it is above 0."""
    number = check_real(function, name, value)
    if number <= 0.0:
        raise ValueError(f"{function}: {name} must be positive, got {number:g}")
    return number
