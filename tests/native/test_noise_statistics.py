"""Generated noise is standard normal, and independent wherever it should be.

Every bound is 5 standard errors of the statistic, computed from the sample size. The seeds are
fixed, so a test passes always or never; of a sound generator one comparison in 10^6 would fail.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastsample import ops

SIGMAS = 5.0
N = 1 << 21


@pytest.fixture(scope="module")
def normals() -> Tensor:
    """Float64 copies of 4 samples' noise, one after another."""
    return draw([2024], range(4), N // 4).reshape(-1)


def draw(seeds, index, size: int, number: int = ops.START_DRAW) -> Tensor:
    words = [torch.tensor(list(values), dtype=torch.int64) for values in (seeds, index)]
    return ops.noise(*words, (size,), draw=number).double()


def assert_uncorrelated(rows: Tensor) -> None:
    """No two rows, nor their squares, correlate: for normals r has standard error n^-1/2."""
    for values in (rows, rows**2):
        found = torch.corrcoef(values)
        found.fill_diagonal_(0)
        assert found.abs().max() < SIGMAS / math.sqrt(rows.shape[1])


def assert_uniform(u: Tensor) -> None:
    """Kolmogorov-Smirnov: P(sqrt(n) D > 2.75) = 5.6e-7, the two-sided 5 sigma."""
    u, n = u.sort().values, u.numel()
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum(steps[1:] - u, u - steps[:-1]).max()
    assert math.sqrt(n) * distance < 2.75


def test_moments(normals):
    # Standard errors of the moments of n standard normals, with E z^8 - (E z^4)^2 = 96.
    assert abs(normals.mean()) < SIGMAS * math.sqrt(1 / N)
    assert abs((normals**2).mean() - 1) < SIGMAS * math.sqrt(2 / N)
    assert abs((normals**3).mean()) < SIGMAS * math.sqrt(15 / N)
    assert abs((normals**4).mean() - 3) < SIGMAS * math.sqrt(96 / N)


def test_skewness_and_kurtosis(normals):
    z = (normals - normals.mean()) / normals.std()
    assert abs((z**3).mean()) < SIGMAS * math.sqrt(6 / N)
    assert abs((z**4).mean() - 3) < SIGMAS * math.sqrt(24 / N)


@pytest.mark.parametrize("beyond", [1.0, 2.0, 3.0, 4.0])
def test_tails(normals, beyond):
    tail = math.erfc(beyond / math.sqrt(2)) / 2
    error = SIGMAS * math.sqrt(N * tail * (1 - tail))
    assert abs(int((normals > beyond).sum()) - N * tail) < error
    assert abs(int((normals < -beyond).sum()) - N * tail) < error


def test_tail_beyond_five_sigma():
    # 2^24 normals have 9.6 beyond +-5 on average; in pieces, to stay small.
    pieces = 16
    expected = pieces * 2**20 * math.erfc(5 / math.sqrt(2))
    found = sum(int((draw([9], [i], 2**20).abs() > 5).sum()) for i in range(pieces))
    assert found > 0
    assert abs(found - expected) < SIGMAS * math.sqrt(expected)


def test_distribution(normals):
    assert_uniform(torch.special.ndtr(normals))


@pytest.mark.parametrize("pair", [0, 2])
def test_radius_and_angle_of_each_pair(normals, pair):
    x, y = normals.view(-1, 4)[:, pair : pair + 2].unbind(1)
    assert_uniform(torch.exp(-(x**2 + y**2) / 2))
    assert_uniform(torch.atan2(y, x) / (2 * math.pi) + 0.5)


def test_no_correlation_of_elements_of_a_block(normals):
    assert_uncorrelated(normals.view(-1, 4).T.contiguous())


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 32, 64, 1024])
def test_no_correlation_of_neighbouring_elements(normals, lag):
    assert_uncorrelated(torch.stack((normals[:-lag], normals[lag:])))


def test_no_correlation_of_samples():
    assert_uncorrelated(draw([7], range(40), 1 << 15))
    assert_uncorrelated(draw([7], [n << 32 for n in range(20)], 1 << 15))


def test_no_correlation_of_seeds():
    assert_uncorrelated(draw(range(40), [0] * 40, 1 << 15))
    assert_uncorrelated(draw([n << 32 for n in range(20)], [0] * 20, 1 << 15))


def test_no_correlation_of_draws():
    numbers = [*range(38), ops.START_DRAW - 1, ops.START_DRAW]
    assert_uncorrelated(torch.cat([draw([7], [3], 1 << 15, number) for number in numbers]))


def test_no_correlation_along_samples():
    # The first elements of many samples, as a batch of tiny images sees them.
    assert_uncorrelated(draw([7], range(1 << 15), 8).T.contiguous())
    assert_uncorrelated(draw(range(1 << 15), [0] * (1 << 15), 8).T.contiguous())
