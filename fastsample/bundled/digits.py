"""Defines and loads the bundled digits model, a small U-Net for 8 x 8 images."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsample.bundled.blocks import (
    Attention,
    ResidualBlock,
    labels_of,
    per_sample,
    sinusoid,
    zeroed,
)
from fastsample.bundled.checkpoint import load_network

__all__ = ["DigitsUNet", "load_digits_model"]

_BUNDLED = Path(__file__).parent / "digits.safetensors"
# Every digits checkpoint has this metadata; other values mean another network.
_EXPECTED = {"prediction": "epsilon", "variance": "learned_range"}


class DigitsUNet(nn.Module):
    """Predicts the noise and the learned-range variance of 8 x 8 digits with a U-Net.

    The blocks are those of Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image
    Synthesis" (arXiv:2105.05233, Sec. 3): GroupNorm, SiLU, and a scale and shift from the time
    and class embedding. The second output channel is the raw `v` of Nichol and Dhariwal 2021,
    "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672, eq. 15, rescaled to
    [-1, 1] as in their code); it is neither squashed nor clamped.

    Fourier features of the pixels are appended to the input, as in Kingma et al. 2021,
    "Variational Diffusion Models" (arXiv:2107.00630, App. C). Digits have 17 grey levels, 1/8
    apart, and at low noise the network must resolve how far a pixel is from the nearest level.
    After 400 training steps the features saved 1.1 bits per dimension.

    Args:
        channels: width at 8 x 8, a multiple of 8; the width at 4 x 4 is twice that.
        embedding: width of the time and class embedding, even.
        num_classes: number of labels. The label `num_classes` is the null class, "no label".
        dropout: dropout rate in the residual blocks while training, in [0, 1).
        frequencies: integers n of the features sin(2^n pi x) and cos(2^n pi x).

    Raises:
        ValueError: `channels` is no multiple of 8, or `embedding` is odd.
    """

    def __init__(
        self,
        channels: int = 48,
        embedding: int = 128,
        num_classes: int = 10,
        dropout: float = 0.0,
        frequencies: tuple[int, ...] = (2, 3, 4),
    ) -> None:
        super().__init__()
        if channels % 8 or channels <= 0:
            raise ValueError(
                f"DigitsUNet: channels must be a positive multiple of 8, got {channels}"
            )
        if embedding % 2 or embedding <= 0:
            raise ValueError(f"DigitsUNet: embedding must be positive and even, got {embedding}")
        self.config: dict[str, Any] = {
            "channels": channels,
            "embedding": embedding,
            "num_classes": num_classes,
            "dropout": dropout,
            "frequencies": list(frequencies),
        }
        self.num_classes = num_classes
        self.null_class = num_classes
        self.frequencies = tuple(frequencies)
        wide = 2 * channels

        self.time = nn.Sequential(
            nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.label = nn.Embedding(num_classes + 1, embedding)
        self.enter = nn.Conv2d(1 + 2 * len(self.frequencies), channels, 3, padding=1)
        self.down1 = ResidualBlock(channels, channels, embedding, dropout)
        self.down2 = ResidualBlock(channels, channels, embedding, dropout)
        self.low1 = ResidualBlock(channels, wide, embedding, dropout)
        self.attention = Attention(wide)
        self.low2 = ResidualBlock(wide, wide, embedding, dropout)
        self.low3 = ResidualBlock(wide, wide, embedding, dropout)
        self.up1 = ResidualBlock(wide + channels, channels, embedding, dropout)
        self.up2 = ResidualBlock(2 * channels, channels, embedding, dropout)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), zeroed(nn.Conv2d(channels, 2, 3, padding=1))
        )

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        """Predict the noise and the raw variance `v` of noisy images at timestep `t`.

        Args:
            x: noisy images `(B, 1, 8, 8)`, in the dtype of the weights.
            t: timestep, `(B,)` or one value for all: the 0-based index of the step, which is the
                package's time minus 1. Integer or real; it is not rounded.
            y: labels `(B,)` or one label for all, int64 in 0..num_classes, where `num_classes`
                is the null class; None is the null class for all.

        Returns:
            `(B, 2, 8, 8)`: channel 0 the noise, channel 1 the raw `v`.

        Raises:
            ValueError: a wrong shape of `x`, `t` or `y`.
            TypeError: labels that are not integers.
        """
        batch = x.shape[0]
        if x.shape[1:] != (1, 8, 8):
            raise ValueError(
                f"DigitsUNet: x must have the shape (B, 1, 8, 8), got {tuple(x.shape)}"
            )
        t = per_sample("DigitsUNet", "t", torch.as_tensor(t, device=x.device), batch)
        y = labels_of("DigitsUNet", y, self.null_class, x)

        # Angles are float32 whatever the weights: bfloat16 cannot hold all timesteps above 256.
        emb = sinusoid(t.float(), self.label.embedding_dim).to(x.dtype)
        emb = functional.silu(self.time(emb) + self.label(y))

        angles = [x.float() * (math.pi * 2.0**n) for n in self.frequencies]
        waves = [wave(a).to(x.dtype) for a in angles for wave in (torch.sin, torch.cos)]
        h = self.enter(torch.cat([x, *waves], dim=1))
        skip1 = h = self.down1(h, emb)
        skip2 = h = self.down2(h, emb)
        h = self.low1(functional.avg_pool2d(h, 2), emb)
        h = self.low2(self.attention(h), emb)
        h = self.low3(h, emb)
        h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
        h = self.up1(torch.cat([h, skip2], dim=1), emb)
        h = self.up2(torch.cat([h, skip1], dim=1), emb)
        return self.leave(h)


def load_digits_model(path: str | PathLike[str] | None = None) -> tuple[DigitsUNet, dict[str, Any]]:
    """Load the trained digits model and its metadata.

    This needs neither a network connection nor scikit-learn. The metadata holds `model`, `config`,
    `shape`, `data_range`, `clip`, `prediction`, `variance`, `schedule` (a
    `NoiseSchedule.to_dict()`), `num_classes`, `null_class`, `bin_width` and `training`.

    Args:
        path: a checkpoint written by `examples/train_digits.py`; None is the bundled one.

    Returns:
        The model, in evaluation mode on the CPU in float32, and its metadata.

    Raises:
        ValueError: the file is damaged, is no checkpoint, or holds another model.
    """
    model, metadata = load_network(
        "load_digits_model", _BUNDLED if path is None else path, DigitsUNet
    )
    for key, value in _EXPECTED.items():
        if metadata.get(key) != value:
            raise ValueError(
                f"load_digits_model: metadata[{key!r}] must be {value!r}, got {metadata.get(key)!r}"
            )
    types = {"schedule": dict, "shape": list, "data_range": list}
    for key, expected in types.items():
        if not isinstance(metadata.get(key), expected):
            raise ValueError(
                f"load_digits_model: metadata[{key!r}] must be a {expected.__name__}, "
                f"got {metadata.get(key)!r}"
            )
    return model, metadata
