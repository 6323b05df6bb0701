"""The data of the bundled model, and a two-dimensional swirl to experiment on."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsample._support.checks import check_integer

TRAIN_SIZE = 1500
SPLIT_SEED = 0
DIGITS_BIN_WIDTH = 1 / 8
"""Distance of neighbouring grey levels: 17 of them on [-1, 1]."""


def digits_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scikit-learn's 1797 handwritten digits, as the bundled model was trained and tested.

    Returns:
        Images `(1500, 1, 8, 8)` in [-1, 1] and labels to train with, 297 and labels to test with.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits_data: scikit-learn must be installed; pip install 'fastsample[train]'"
        ) from error
    digits: Any = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    x = torch.from_numpy(digits.images[order] / 8.0 - 1.0).float().unsqueeze(1)
    y = torch.from_numpy(digits.target[order]).long()
    return x[:TRAIN_SIZE], y[:TRAIN_SIZE], x[TRAIN_SIZE:], y[TRAIN_SIZE:]


SWIRL_SIZE = 1024
SWIRL_SEED = 0
"""The training set of the swirl, whose mean and deviation encode every other set."""


@dataclass(frozen=True, eq=False)
class SwirlData:
    """Points of the swirl, encoded as ``(value - mean) / std``.

    Attributes:
        x0: `(N, 2)` float32, each element exactly one of its row of `levels`.
        levels: `(2, 256)` float32, the codes of the values 0 ... 255.
        mean: `(2,)` float64, of the training set's values.
        std: `(2,)` float64, of the training set's values.
    """

    x0: Tensor
    levels: Tensor
    mean: Tensor
    std: Tensor


def swirl_data(count: int = SWIRL_SIZE, seed: int = SWIRL_SEED) -> SwirlData:
    """A spiral of one and a half turns with noise, in 8-bit values.

    The toy of the code that Kingma et al. 2021 published with "Variational Diffusion Models"
    (arXiv:2107.00630), on which Chen 2023 (arXiv:2301.01206) trains too. The default is their
    training set; other seeds give fresh points under the training set's encoding.

    Args:
        count: N, at least 1.
        seed: of NumPy's legacy generator, in 0 ... 2^32 - 1.
    """
    values = _swirl_values(
        check_integer("swirl_data", "count", count, 1),
        check_integer("swirl_data", "seed", seed, 0, 2**32 - 1),
    )
    mean, std = _swirl_encoding()
    levels = torch.from_numpy((np.arange(256.0) - mean[:, None]) / std[:, None]).float()
    # Looked up, not computed: a decoder wants to find each element among the levels.
    x0 = levels.gather(1, torch.from_numpy(values.T.astype(np.int64))).T.contiguous()
    return SwirlData(x0, levels, torch.from_numpy(mean.copy()), torch.from_numpy(std.copy()))


def _swirl_values(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Points `(count, 2)`: truncated, not rounded, as published."""
    # The legacy generator, since the published set is what `np.random.seed(0)` gives.
    random = np.random.RandomState(seed)
    theta = 3.0 * math.pi * np.sqrt(random.rand(count))
    radius = 2.0 * theta + math.pi
    points = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1)
    return (4.0 * (points + 0.25 * random.randn(count, 2) + 30.0)).astype(np.uint8)


@functools.cache
def _swirl_encoding() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and deviation of the training set."""
    values = _swirl_values(SWIRL_SIZE, SWIRL_SEED).astype(np.float64)
    return values.mean(axis=0), values.std(axis=0)
