"""Losses and trainers for diffusion models; names are imported when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsample.training.fidelity.collapse import CollapseDetector, CollapseWarning
    from fastsample.training.fidelity.loss import Fidelity, FidelityLoss
    from fastsample.training.losses.diffusion import DiffusionLoss
    from fastsample.training.losses.vdm import VDMLoss
    from fastsample.training.trainer.trainer import Trainer

_PLACES = {
    "CollapseDetector": "fidelity.collapse",
    "CollapseWarning": "fidelity.collapse",
    "DiffusionLoss": "losses.diffusion",
    "Fidelity": "fidelity.loss",
    "FidelityLoss": "fidelity.loss",
    "Trainer": "trainer.trainer",
    "VDMLoss": "losses.vdm",
}

__all__ = [
    "CollapseDetector",
    "CollapseWarning",
    "DiffusionLoss",
    "Fidelity",
    "FidelityLoss",
    "Trainer",
    "VDMLoss",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fastsample.training' has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"fastsample.training.{_PLACES[name]}"), name)
    return globals()[name]
