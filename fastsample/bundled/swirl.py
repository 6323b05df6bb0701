"""Defines the network of the swirl experiment: three dense layers on Fourier features."""

from __future__ import annotations

import math
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from fastsample.bundled.checkpoint import load_network

__all__ = ["SwirlNet", "load_swirl_model"]

_GAMMA_MIN, _GAMMA_MAX = -13.3, 5.0
_OCTAVES = 8
# A standard normal variable truncated to [-2, 2] has this standard deviation.
_TRUNCATED_STD = 0.87962566103423978


class SwirlNet(nn.Module):
    """Predicts the noise in points of the plane at a log-SNR.

    It is the network of the two-dimensional example that was published with Kingma et al. 2021,
    "Variational Diffusion Models" (arXiv:2107.00630). Its inputs are the point and
    ``2 (gamma + 13.3) / 18.3 - 1``, where gamma is the negative log-SNR, and the sines and cosines
    of 2^k 2 pi times each of these (k = 0..7). Two hidden layers with SiLU follow. As in Flax, the
    initial weights are normal, truncated at two standard deviations, of variance 1 / fan-in;
    biases are 0.

    Its `Denoiser` has ``shape=(2,)`` and ``time="log_snr"``.

    Args:
        width: width of both hidden layers, at least 1; 512 gives 290,306 parameters.
    """

    frequencies: Tensor

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.config = {"width": width}
        features = 3 * (1 + 2 * _OCTAVES)
        self.dense1 = nn.Linear(features, width)
        self.dense2 = nn.Linear(width, width)
        self.dense3 = nn.Linear(width, 2)
        self.register_buffer("frequencies", 2.0 ** torch.arange(_OCTAVES), persistent=False)
        for layer in (self.dense1, self.dense2, self.dense3):
            std = 1.0 / math.sqrt(layer.in_features) / _TRUNCATED_STD
            nn.init.trunc_normal_(layer.weight, std=std, a=-2.0 * std, b=2.0 * std)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """Predict the noise `(B, 2)` in points z `(B, 2)` at log-SNRs `(B,)`."""
        scale = 2.0 / (_GAMMA_MAX - _GAMMA_MIN)
        level = (-log_snr.to(z.dtype) - _GAMMA_MIN) * scale - 1.0
        h = torch.cat([z, level.unsqueeze(1)], dim=1)
        turns = (h.unsqueeze(2) * self.frequencies).flatten(1)
        # Whole turns are subtracted, which is exact. Otherwise float32 would keep only 4 digits
        # of the phase of 128 * 2 pi h.
        phase = (turns - turns.round()) * (2.0 * math.pi)
        h = torch.cat([h, phase.sin(), phase.cos()], dim=1)
        return self.dense3(silu(self.dense2(silu(self.dense1(h)))))


def load_swirl_model(path: str | PathLike[str]) -> tuple[SwirlNet, dict[str, Any]]:
    """Load a trained swirl network and its metadata.

    Args:
        path: a model file that ``fastsample train`` wrote for the swirl.

    Returns:
        The network, in evaluation mode on the CPU, and its metadata.

    Raises:
        ValueError: the file is damaged, is no checkpoint, or holds another model.
    """
    return load_network("load_swirl_model", path, SwirlNet)
