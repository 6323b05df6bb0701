"""The building blocks of the bundled U-Nets, and what their networks check."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Computes x + conv(silu(film(norm(conv(silu(norm(x))))))) from x and the embedding."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * outputs)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.dropout = nn.Dropout(dropout)
        # Weights of zero make every block the identity at the start, which trains faster.
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return `(B, outputs, H, W)` for x `(B, inputs, H, W)` and emb `(B, embedding)`."""
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        return self.skip(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """Applies self-attention over the pixels, with a residual connection."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return x `(B, channels, H, W)` plus what its pixels take from each other."""
        batch, channels, height, width = x.shape
        head = channels // self.heads
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, head, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        h = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(batch, channels, height, width))


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Set the weights and bias of a layer to zero, and return the layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Return sines and cosines `(B, width)` of real `t`, of periods 2 pi to 2 pi 10^4 steps."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t[:, None] * torch.exp(steps * (-math.log(1e4) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def labels_of(network: str, y: Tensor | None, null_class: int, x: Tensor) -> Tensor:
    """Return labels `(B,)` on the device of x: the null class for None, one label repeated.

    Raises:
        TypeError: labels that are not integers.
        ValueError: another shape, or labels outside [0, null_class]. They are looked at on a CPU
            only, since on a GPU the check would wait for the device; torch refuses them there.
    """
    batch = x.shape[0]
    if y is None:
        return torch.full((batch,), null_class, device=x.device)
    y = per_sample(network, "y", torch.as_tensor(y, device=x.device), batch)
    if y.is_floating_point() or y.is_complex():
        raise TypeError(f"{network}: y must be integer labels, got {y.dtype}")
    if y.device.type == "cpu" and not torch.compiler.is_compiling() and y.numel():
        low, high = int(y.min()), int(y.max())
        if low < 0 or high > null_class:
            raise ValueError(
                f"{network}: y must be in [0, {null_class}], got "
                f"{low if low < 0 else high}; {null_class} means no label"
            )
    return y.long()


def per_sample(network: str, name: str, value: Tensor, batch: int) -> Tensor:
    """Return the value as `(batch,)`, a scalar repeated; ValueError for another shape."""
    if value.ndim == 0:
        return value.expand(batch)
    if value.shape != (batch,):
        raise ValueError(
            f"{network}: {name} must have the shape ({batch},) or (), got {tuple(value.shape)}"
        )
    return value
