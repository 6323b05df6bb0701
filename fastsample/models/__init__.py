"""Models that come with the package, and the file format of their weights."""

from fastsample.models.checkpoint import load_checkpoint, save_checkpoint
from fastsample.models.unet import DigitsUNet, load_digits_model

__all__ = ["DigitsUNet", "load_checkpoint", "load_digits_model", "save_checkpoint"]
