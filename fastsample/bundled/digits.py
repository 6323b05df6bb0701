"""Defines and loads the bundled digits model, a small U-Net for 8 x 8 images."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsample.bundled.checkpoint import load_checkpoint

__all__ = ["DigitsUNet", "load_digits_model"]

_BUNDLED = Path(__file__).parent / "digits.safetensors"
# Every digits checkpoint has this metadata; other values mean another network.
_EXPECTED = {"model": "DigitsUNet", "prediction": "epsilon", "variance": "learned_range"}


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
        self.down1 = _ResidualBlock(channels, channels, embedding, dropout)
        self.down2 = _ResidualBlock(channels, channels, embedding, dropout)
        self.low1 = _ResidualBlock(channels, wide, embedding, dropout)
        self.attention = _Attention(wide)
        self.low2 = _ResidualBlock(wide, wide, embedding, dropout)
        self.low3 = _ResidualBlock(wide, wide, embedding, dropout)
        self.up1 = _ResidualBlock(wide + channels, channels, embedding, dropout)
        self.up2 = _ResidualBlock(2 * channels, channels, embedding, dropout)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), _zeroed(nn.Conv2d(channels, 2, 3, padding=1))
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
        t = _per_sample("t", torch.as_tensor(t, device=x.device), batch)
        if y is None:
            y = torch.full((batch,), self.null_class, device=x.device)
        else:
            y = _per_sample("y", torch.as_tensor(y, device=x.device), batch)
            if y.is_floating_point() or y.is_complex():
                raise TypeError(f"DigitsUNet: y must be integer labels, got {y.dtype}")
            # On a GPU this check would wait for the device, and torch itself refuses such labels.
            if y.device.type == "cpu" and not torch.compiler.is_compiling() and y.numel():
                low, high = int(y.min()), int(y.max())
                if low < 0 or high > self.null_class:
                    raise ValueError(
                        f"DigitsUNet: y must be in [0, {self.null_class}], got "
                        f"{low if low < 0 else high}; {self.null_class} means no label"
                    )

        # Angles are float32 whatever the weights: bfloat16 cannot hold all timesteps above 256.
        emb = _sinusoid(t.float(), self.label.embedding_dim).to(x.dtype)
        emb = functional.silu(self.time(emb) + self.label(y.long()))

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
    state, metadata = load_checkpoint(_BUNDLED if path is None else path)
    for key, value in _EXPECTED.items():
        if metadata.get(key) != value:
            raise ValueError(
                f"load_digits_model: metadata[{key!r}] must be {value!r}, got {metadata.get(key)!r}"
            )
    types = {"config": dict, "schedule": dict, "shape": list, "data_range": list}
    for key, expected in types.items():
        if not isinstance(metadata.get(key), expected):
            raise ValueError(
                f"load_digits_model: metadata[{key!r}] must be a {expected.__name__}, "
                f"got {metadata.get(key)!r}"
            )
    try:
        # A damaged config may ask for any size, so shapes are compared before memory is taken.
        with torch.device("meta"):
            DigitsUNet(**metadata["config"]).load_state_dict(state, assign=True)
        # Built in float32 on the CPU, so that other defaults of torch do not round the weights.
        with torch.device("cpu"):
            model = DigitsUNet(**metadata["config"]).float()
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"load_digits_model: path must hold weights that fit their config, got {reason}"
        ) from error
    return model.eval(), metadata


class _ResidualBlock(nn.Module):
    """Computes x + conv(silu(film(norm(conv(silu(norm(x))))))) from x and the embedding."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * outputs)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.dropout = nn.Dropout(dropout)
        # Weights of zero make every block the identity at the start, which trains faster.
        self.conv2 = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        return self.skip(x) + self.conv2(self.dropout(h))


class _Attention(nn.Module):
    """Applies self-attention over the pixels, with a residual connection."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        head = channels // self.heads
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, head, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        h = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(batch, channels, height, width))


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Set the weights and bias of a layer to zero, and return the layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _sinusoid(t: Tensor, width: int) -> Tensor:
    """Return sines and cosines `(B, width)` of real `t`, of periods 2 pi to 2 pi 10^4 steps."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t[:, None] * torch.exp(steps * (-math.log(1e4) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _per_sample(name: str, value: Tensor, batch: int) -> Tensor:
    """Return the value as `(batch,)`, a scalar repeated."""
    if value.ndim == 0:
        return value.expand(batch)
    if value.shape != (batch,):
        raise ValueError(
            f"DigitsUNet: {name} must have the shape ({batch},) or (), got {tuple(value.shape)}"
        )
    return value
