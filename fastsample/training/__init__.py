"""Losses and trainers for diffusion models."""

from fastsample.training.losses import DiffusionLoss

__all__ = ["DiffusionLoss"]
