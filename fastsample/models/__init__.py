"""Models that come with the package, and the file format of their weights."""

from fastsample.models.checkpoint import load_checkpoint, save_checkpoint
from fastsample.models.swirl import SwirlNet, load_swirl_model
from fastsample.models.unet import DigitsUNet, load_digits_model

__all__ = [
    "DigitsUNet",
    "SwirlNet",
    "load_checkpoint",
    "load_digits_model",
    "load_swirl_model",
    "save_checkpoint",
]
