"""Sets how the trainer uses a fidelity loss: weight, learning rate, interval and clipping."""

from __future__ import annotations

from dataclasses import dataclass

from fastsample._support.checks import check_integer, check_real
from fastsample.training.fidelity.loss import FidelityLoss
from fastsample.training.trainer.optimizer import check_positive


@dataclass(frozen=True)
class FidelityTerm:
    """Holds a fidelity loss with the settings that the trainer uses it with.

    Attributes:
        loss: the fidelity loss.
        weight: factor of its gradient in the sum with the diffusion loss's, at least 0. It does
            not matter where `lr` is set.
        lr: learning rate of an optimiser of its own, which then takes a second step in each
            iteration; None adds the two gradients, and one optimiser takes one step.
        every: iterations from one use of the term to the next, at least 1.
        clip: largest norm of its gradient over all parameters, positive; a gradient above it is
            scaled down to it, before the weight.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
    """

    loss: FidelityLoss
    weight: float = 1.0
    lr: float | None = None
    every: int = 1
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.loss, FidelityLoss):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"FidelityTerm: loss must be a FidelityLoss, got {self.loss!r}")
        check_real("FidelityTerm", "weight", self.weight, 0.0)
        if self.lr is not None:
            check_positive("FidelityTerm", "lr", self.lr)
        check_integer("FidelityTerm", "every", self.every, 1)
        check_positive("FidelityTerm", "clip", self.clip)


def as_term(fidelity: FidelityLoss | FidelityTerm | None) -> FidelityTerm | None:
    """Return a `FidelityTerm`; a bare `FidelityLoss` gets the default settings.

    Raises:
        TypeError: a value that is neither.
    """
    if fidelity is None or isinstance(fidelity, FidelityTerm):
        return fidelity
    if not isinstance(fidelity, FidelityLoss):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"Trainer: fidelity must be a FidelityLoss or a FidelityTerm, got {fidelity!r}"
        )
    return FidelityTerm(fidelity)
