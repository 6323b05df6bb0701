"""What tests of profiles share: data, times, and when two profiles are the same."""

from __future__ import annotations

import numpy as np
import torch

TIMES = [1.0, 40.0, 300.0, 700.0, 1000.0]


def levels(count, *shape, seed=0):
    """8-bit data."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator) / 127.5 - 1.0


def assert_same(found, expected, tolerance=1e-12):
    """Two profiles: the same settings, sums and trajectories."""
    assert (found.settings, found.shape) == (expected.settings, expected.shape)
    assert found.schedule == expected.schedule
    assert found.count == expected.count
    mine, theirs = found.arrays(), expected.arrays()
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        # These cancel: what they round at is the size of the vectors.
        cancels = name.startswith("trajectory")
        atol = tolerance * np.abs(theirs[name]).max(initial=0.0) if cancels else 0.0
        np.testing.assert_allclose(array, theirs[name], rtol=tolerance, atol=atol, err_msg=name)
