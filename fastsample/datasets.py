"""The data of the bundled model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

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
