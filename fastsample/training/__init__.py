"""Losses and trainers for diffusion models."""

from fastsample.training.collapse import CollapseDetector, CollapseWarning
from fastsample.training.fidelity import Fidelity, FidelityLoss
from fastsample.training.losses import DiffusionLoss
from fastsample.training.trainer import Trainer
from fastsample.training.vdm import VDMLoss

__all__ = [
    "CollapseDetector",
    "CollapseWarning",
    "DiffusionLoss",
    "Fidelity",
    "FidelityLoss",
    "Trainer",
    "VDMLoss",
]
