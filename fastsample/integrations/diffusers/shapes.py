"""Reads the shape of a sample and the kind of output from the config of a network of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Classes of networks by the axes that `sample_size` stands for.
_AXES = {"UNet1DModel": 1, "StableAudioDiTModel": 1}
_FRAMES_FIRST = "CogVideoXTransformer3DModel"


def sample_shape(network: Any) -> tuple[int, ...] | None:
    """Return the shape of a sample that the network's config tells, or None.

    Args:
        network: the network, with a config.
    """
    config: Mapping[str, Any] = getattr(network, "config", {})
    names = [base.__name__ for base in type(network).__mro__]
    channels = config.get("in_channels")
    if channels is None:
        return None
    if _FRAMES_FIRST in names:
        # The VAE of CogVideoX keeps the first frame and joins the others by the compression ratio.
        frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
        frames += -frames % (config.get("patch_size_t") or 1)  # as the pipeline of version 1.5 does
        return (frames, channels, config["sample_height"], config["sample_width"])
    size: Any = config.get("sample_size")
    axes = next((_AXES[name] for name in names if name in _AXES), 2 if "2D" in names[0] else None)
    if size is None or axes is None:
        return None
    sizes: tuple[int, ...] = tuple(size) if hasattr(size, "__len__") else (size,) * axes
    return (channels, *sizes) if len(sizes) == axes else None


def learns_variance(network: Any) -> bool:
    """Return whether the output has twice the channels of a sample.

    Raises:
        ValueError: another number of channels, as of networks that take an image beside x.
    """
    config: Mapping[str, Any] = getattr(network, "config", {})
    taken, given = config.get("in_channels"), config.get("out_channels")
    if config.get("learn_sigma"):
        return True
    if taken is None or given is None or given == taken:
        return False
    if given == 2 * taken:
        return True
    raise ValueError(
        "denoiser: model must take as many channels as a sample has, got "
        f"{type(network).__name__} with {taken} in and {given} out; wrap it in a module that joins "
        "the other channels to x, and pass that to fs.Denoiser"
    )
