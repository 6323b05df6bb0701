"""Provides losses and a trainer for diffusion models; imports names on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsample.training.fidelity.collapse import CollapseDetector, CollapseWarning
    from fastsample.training.fidelity.loss import FidelityLoss, FidelityResult
    from fastsample.training.losses.diffusion import DiffusionLoss
    from fastsample.training.losses.vdm import VDMLoss
    from fastsample.training.trainer.fidelity_term import FidelityTerm
    from fastsample.training.trainer.optimizer import Optimizer
    from fastsample.training.trainer.trainer import Trainer

_MODULES = {
    "CollapseDetector": "fidelity.collapse",
    "CollapseWarning": "fidelity.collapse",
    "DiffusionLoss": "losses.diffusion",
    "FidelityLoss": "fidelity.loss",
    "FidelityResult": "fidelity.loss",
    "FidelityTerm": "trainer.fidelity_term",
    "Optimizer": "trainer.optimizer",
    "Trainer": "trainer.trainer",
    "VDMLoss": "losses.vdm",
}

__all__ = [
    "CollapseDetector",
    "CollapseWarning",
    "DiffusionLoss",
    "FidelityLoss",
    "FidelityResult",
    "FidelityTerm",
    "Optimizer",
    "Trainer",
    "VDMLoss",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fastsample.training' has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"fastsample.training.{_MODULES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
