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


def assert_equally_frequent(counts: Tensor) -> None:
    """Pearson's chi-squared test with the probability of 5 sigma, 5.7e-7."""
    counts = counts.double()
    statistic = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    freedom = torch.tensor((counts.numel() - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(freedom, statistic / 2) > 5.7e-7


def assert_poisson(found: int, expected: float) -> None:
    """A count of rare events lies inside both tails of 2.87e-7, those of 5 sigma."""
    mean = torch.tensor(expected, dtype=torch.float64)
    at_most = torch.special.gammaincc(torch.tensor(found + 1.0, dtype=torch.float64), mean)
    assert at_most > 2.87e-7
    if found:
        at_least = torch.special.gammainc(torch.tensor(float(found), dtype=torch.float64), mean)
        assert at_least > 2.87e-7


def tail(beyond: float) -> float:
    """P(z > beyond)."""
    return math.erfc(beyond / math.sqrt(2)) / 2


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
    share = tail(beyond)
    error = SIGMAS * math.sqrt(N * share * (1 - share))
    assert abs(int((normals > beyond).sum()) - N * share) < error
    assert abs(int((normals < -beyond).sum()) - N * share) < error


def test_tail_beyond_five_sigma():
    # 2^24 normals have 9.6 beyond +-5 on average; in pieces, to stay small.
    pieces = 16
    found = sum(int((draw([9], [i], 2**20).abs() > 5).sum()) for i in range(pieces))
    assert found > 0
    assert_poisson(found, 2 * pieces * 2**20 * tail(5.0))


def test_distribution(normals):
    assert_uniform(torch.special.ndtr(normals))


@pytest.mark.parametrize("pair", [0, 2])
def test_radius_and_angle_of_each_pair(normals, pair):
    x, y = normals.view(-1, 4)[:, pair : pair + 2].unbind(1)
    assert_uniform(torch.exp(-(x**2 + y**2) / 2))
    assert_uniform(torch.atan2(y, x) / (2 * math.pi) + 0.5)


def octants(x: Tensor, y: Tensor) -> Tensor:
    """0 to 7: the signs of two numbers and which of them is larger."""
    return (x > 0).long() + 2 * (y > 0).long() + 4 * (x.abs() > y.abs()).long()


@pytest.mark.parametrize("pair", [0, 2])
def test_octants_of_each_pair(normals, pair):
    # Two bits of the angle's word choose the quarter, the others the place within it: every octant
    # is as frequent at every radius, and holds every angle.
    x, y = normals.view(-1, 4)[:, pair : pair + 2].unbind(1)
    octant = octants(x, y)
    radius = torch.exp(-(x**2 + y**2) / 2).mul(16).long().clamp(max=15)
    assert_equally_frequent(torch.bincount(16 * octant + radius, minlength=128))
    within = torch.minimum(x.abs(), y.abs()) / torch.maximum(x.abs(), y.abs())
    for number in range(8):
        assert_uniform(torch.atan(within[octant == number]) / (math.pi / 4))


def test_octants_of_neighbouring_pairs(normals):
    blocks = normals.view(-1, 4)
    first, second = (octants(blocks[:, i], blocks[:, i + 1]) for i in (0, 2))
    assert_equally_frequent(torch.bincount(8 * first + second, minlength=64))
    assert_equally_frequent(torch.bincount(8 * second[:-1] + first[1:], minlength=64))


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


# ---- many normals ----

PIECE, PIECES = 1 << 22, 128
MANY = PIECE * PIECES
TAILS = (4.5, 5.0, 5.5, 6.0)
BINS = 512
NEAR = 1e-6


@pytest.fixture(scope="module")
def many() -> dict[str, Tensor]:
    """What is counted in 2^29 normals: moments, tails, bins of equal probability, those near 0."""
    sums = torch.zeros(4, dtype=torch.float64)
    tails, bins = torch.zeros(2, len(TAILS), dtype=torch.int64), torch.zeros(BINS)
    near: list[Tensor] = []
    share = torch.arange(1, BINS, dtype=torch.float64) / BINS
    edges = torch.special.ndtri(share).float()
    for piece in range(PIECES):
        z = ops.noise(torch.tensor([31]), torch.tensor([piece]), (PIECE,))[0]
        wide = z.double()
        sums += torch.stack([wide.sum(), (wide**2).sum(), (wide**3).sum(), (wide**4).sum()])
        large = z[z.abs() > TAILS[0]]
        for i, beyond in enumerate(TAILS):
            tails[0, i] += int((large > beyond).sum())
            tails[1, i] += int((large < -beyond).sum())
        bins += torch.bincount(torch.bucketize(z, edges), minlength=BINS)
        places = (z.abs() < NEAR).nonzero()[:, 0]
        near.append(torch.stack([z[places].double(), (places % 4).double()]))
    return {"moments": sums / MANY, "tails": tails, "bins": bins, "near": torch.cat(near, dim=1)}


@pytest.mark.slow
def test_moments_of_many(many):
    for power, (expected, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)]):
        assert abs(many["moments"][power] - expected) < SIGMAS * math.sqrt(variance / MANY)


@pytest.mark.slow
@pytest.mark.parametrize("side", [0, 1])
def test_tails_of_many(many, side):
    # 2^29 normals have 1824, 154, 10.2 and 0.53 beyond each bound, on each side.
    for i, beyond in enumerate(TAILS):
        assert_poisson(int(many["tails"][side, i]), MANY * tail(beyond))


@pytest.mark.slow
def test_distribution_of_many(many):
    assert_equally_frequent(many["bins"])


@pytest.mark.slow
def test_many_near_zero(many):
    # The density is flat there: 428 normals are expected below 1e-6. Were the small angles coarse,
    # the values would lie on a grid or at 0.
    values, places = many["near"]
    assert_poisson(len(values), MANY * math.sqrt(2 / math.pi) * NEAR)
    assert (values != 0).all()
    assert len(values.unique()) > 0.999 * len(values)
    assert_uniform((values / NEAR + 1) / 2)
    assert_equally_frequent(torch.bincount(places.long(), minlength=4))
    bins = ((values / NEAR + 1) * 10).long().clamp(max=19)
    assert_equally_frequent(torch.bincount(bins, minlength=20))
