"""Implements distances between generated samples and data, differentiable in the samples.

Paired distances compare sample i with the x0 that its chain started from. They are least where a
sample is the mean of all x0 that its start may have come from, which is no sample of the data. The
energy score compares several samples with their x0, and the other distances compare two sets
without an order. These are least where the two distributions are equal; sliced Wasserstein is so in
the limit of many samples.

All distances compute in float32, or in float64 if an argument is float64, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsample._support.checks import check_integer, check_real
from fastsample.distances.pairwise import (
    check_pairs,
    check_sets,
    check_tensors,
    mean_of_pairs,
    mean_pairwise_distance,
    pairwise_distances,
)

__all__ = [
    "energy_distance",
    "energy_score",
    "mmd",
    "paired_huber",
    "paired_mse",
    "random_directions",
    "sliced_wasserstein",
]


def paired_mse(samples: Tensor, x0: Tensor) -> Tensor:
    """Return the mean squared error per element between each sample and its x0.

    This is the fidelity loss of Chen 2023 (arXiv:2301.01206, eq. 9) per element. It is least
    at E[x0 | start], so that a single point is better than a perfect sampler.

    Args:
        samples: `(B, *shape)`, floating.
        x0: data of the same shape and units.

    Returns:
        A scalar in squared data units.

    Raises:
        TypeError: an argument that is not a floating tensor.
        ValueError: shapes or devices that differ, or an empty batch.
    """
    return torch.nn.functional.mse_loss(*check_pairs("paired_mse", samples, x0))


def paired_huber(samples: Tensor, x0: Tensor, delta: float = 1.0) -> Tensor:
    """Return the mean Huber loss per element between each sample and its x0.

    It is ``e^2/2`` for ``|e| <= delta``, else ``delta (|e| - delta/2)``. See Huber
    1964, "Robust estimation of a location parameter" (Ann. Math. Stat. 35). It makes samples
    collapse as `paired_mse` does; the smaller `delta`, the closer to the median of each element.

    Args:
        samples: `(B, *shape)`, floating.
        x0: data of the same shape and units.
        delta: where the square turns into a line, in data units, positive.

    Returns:
        A scalar in squared data units; half of `paired_mse` where all errors are small.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: shapes or devices that differ, an empty batch, or a delta that is not positive.
    """
    delta = _positive("paired_huber", "delta", delta)
    return torch.nn.functional.huber_loss(*check_pairs("paired_huber", samples, x0), delta=delta)


def energy_distance(samples: Tensor, data: Tensor) -> Tensor:
    """Return the energy distance ``2 E|x - y| - E|x - x'| - E|y - y'|`` of two sets.

    Szekely and Rizzo 2013, "Energy statistics: a class of statistics based on distances" (J. Stat.
    Plan. Inference 143). Pairs of a point with itself are left out, which makes the estimate
    unbiased; values near 0 may be negative. Some authors call the square root of this the energy
    distance.

    Args:
        samples: `(n, *shape)`, floating, n >= 2.
        data: `(m, *shape)`, m >= 2, in any order.

    Returns:
        A scalar in data units (Euclidean norm over all elements). Pairs of equal points add nothing
        to the gradient.

    Raises:
        TypeError: an argument that is not a floating tensor.
        ValueError: sample shapes or devices that differ, or a set of fewer than 2.
    """
    x, y = check_sets("energy_distance", samples, data, least=2)
    return (
        2 * pairwise_distances(x, y).mean() - mean_pairwise_distance(x) - mean_pairwise_distance(y)
    )


def energy_score(samples: Tensor, x0: Tensor) -> Tensor:
    """Return the energy score of m samples per x0.

    It is ``2/m sum_j |x_j - x0| - 1/(m(m-1)) sum_{j!=k} |x_j - x_k|``. See Gneiting
    and Raftery 2007, "Strictly proper scoring rules" (JASA 102), eq. 22 times -2. With this sign
    lower is better, and with this factor the expectation equals that of `energy_distance` except
    for E|y - y'| of the data given the start. The score is strictly proper: it is least only where
    the chains sample the posterior. Pairs of a point with itself are left out, which makes it
    unbiased for every m. De Bortoli et al. 2025 (arXiv:2502.02483) use it for diffusion models.

    Args:
        samples: `(m, B, *shape)`, floating: m >= 2 samples of each x0.
        x0: data `(B, *shape)`.

    Returns:
        The mean over B, a scalar in data units. Its memory grows with m^2 B.

    Raises:
        TypeError: an argument that is not a floating tensor.
        ValueError: shapes or devices that do not fit, fewer than 2 chains, or an empty batch.
    """
    function = "energy_score"
    check_tensors(function, {"samples": samples, "x0": x0})
    if samples.ndim < 2 or samples.shape[0] < 2:
        raise ValueError(
            f"{function}: samples must hold at least 2 chains (m, B, ...), "
            f"got shape {tuple(samples.shape)}"
        )
    first, target = check_pairs(function, samples[0], x0)
    x = samples.to(first.dtype).reshape(len(samples), len(x0), -1)
    later, earlier = torch.tril_indices(len(x), len(x), -1, device=x.device)
    to_data = _norms(x - target.reshape(len(x0), -1)).mean()
    return 2 * to_data - _norms(x[later] - x[earlier]).mean()


def mmd(samples: Tensor, data: Tensor, *, bandwidths: Sequence[float] = (0.5, 1.0, 2.0)) -> Tensor:
    """Return the unbiased squared maximum mean discrepancy of two sets, with Gaussian kernels.

    Gretton et al. 2012, "A kernel two-sample test" (JMLR 13; arXiv:0805.2368), eq. 3. The kernel is
    the mean over bandwidths b of ``exp(-|x - y|^2 / (2 (b h)^2))``, where h is the median distance
    between two of the data. h is a constant, through which no gradient flows. The estimate is
    unbiased for a fixed h; the more data h is computed from, the less its own error matters.

    Args:
        samples: `(n, *shape)`, floating, n >= 2.
        data: `(m, *shape)`, m >= 2, in any order.
        bandwidths: multiples b of the median distance, dimensionless, positive, at least one.

    Returns:
        The squared MMD, a scalar without unit, at most 2; values near 0 may be negative.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: sample shapes or devices that differ, a set of fewer than 2, bandwidths that are
            not positive, or data of which most pairs coincide.
    """
    widths = [_positive("mmd", f"bandwidths[{i}]", b) for i, b in enumerate(bandwidths)]
    if not widths:
        raise ValueError("mmd: bandwidths must hold at least one multiple, got none")
    x, y = check_sets("mmd", samples, data, least=2)
    within = pairwise_distances(y, y)
    later, earlier = torch.tril_indices(len(y), len(y), -1, device=y.device)
    median = within.detach()[later, earlier].median()
    if median == 0:
        raise ValueError(
            "mmd: data must have a positive median distance, got 0; most of its pairs coincide"
        )

    def kernel(distances: Tensor) -> Tensor:
        square = (distances / median).square()
        return torch.stack([torch.exp(square / (-2 * b**2)) for b in widths]).mean(0)

    return (
        mean_of_pairs(kernel(pairwise_distances(x, x)))
        + mean_of_pairs(kernel(within))
        - 2 * kernel(pairwise_distances(x, y)).mean()
    )


def sliced_wasserstein(samples: Tensor, data: Tensor, directions: Tensor) -> Tensor:
    """Return the squared Wasserstein-2 distance of projected sets, a mean over directions.

    Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures" (J. Math. Imaging
    Vis. 51); Deshpande et al. 2018 (arXiv:1803.11188) use it as a loss. The square is smooth where
    the sets meet, and its root is not. The result is exact for the two empirical distributions,
    whatever their counts; as an estimate for the distributions behind them it is biased upwards.

    Args:
        samples: `(n, *shape)`, floating, n >= 1.
        data: `(m, *shape)`, m >= 1, in any order.
        directions: unit vectors `(P, D)` for the D elements of a sample, P >= 1
            (`random_directions`). Their length is not checked. They are moved to the samples'
            device and dtype.

    Returns:
        A scalar in squared data units. Being of projections, it is about 1/D of the squared
        distance between the sets themselves.

    Raises:
        TypeError: an argument that is not a floating tensor.
        ValueError: shapes or devices that do not fit, or an empty set.
    """
    function = "sliced_wasserstein"
    x, y = check_sets(function, samples, data)
    check_tensors(function, {"directions": directions})
    if directions.ndim != 2 or directions.shape[1] != x.shape[1] or not len(directions):
        raise ValueError(
            f"{function}: directions must have the shape (P, {x.shape[1]}), P >= 1, "
            f"got {tuple(directions.shape)}"
        )
    with torch.autocast(x.device.type, enabled=False):
        axes = directions.to(x).T
        x, y = (points.matmul(axes).sort(dim=0).values for points in (x, y))
    # Count quantiles in units of 1/(n m): the k-th smallest of n points covers k m to (k + 1) m.
    # Between two neighbouring bounds both inverse distribution functions are constant.
    n, m = len(x), len(y)
    bounds = torch.cat([torch.arange(n, device=x.device) * m, torch.arange(m, device=x.device) * n])
    bounds = bounds.sort().values
    weights = torch.diff(bounds, append=bounds.new_full((1,), n * m)).to(x.dtype) / (n * m)
    gaps = x[bounds // m] - y[bounds // n]
    return (weights * gaps.square().mean(1)).sum()


def random_directions(count: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw directions for `sliced_wasserstein`, uniform on the unit sphere.

    Args:
        count: number of directions P, at least 1.
        size: number of elements of a sample D, at least 1.
        generator: source of the random numbers, which also decides the device; None is torch's
            global generator on the CPU.

    Returns:
        float32 `(P, D)`, rows of length 1.

    Raises:
        TypeError: a count or size that is not an integer.
        ValueError: a count or size below 1.
    """
    count = check_integer("random_directions", "count", count, 1)
    size = check_integer("random_directions", "size", size, 1)
    device = None if generator is None else generator.device
    normal = torch.randn(count, size, generator=generator, device=device, dtype=torch.float32)
    return torch.nn.functional.normalize(normal, dim=1)


def _norms(x: Tensor) -> Tensor:
    """Return Euclidean norms over the last axis."""
    # The ignored pyright errors arise because torch's linalg functions lack type annotations.
    return torch.linalg.vector_norm(x, dim=-1)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _positive(function: str, name: str, value: float) -> float:
    """Return the value as a finite float, after a check that it is above 0."""
    number = check_real(function, name, value)
    if number <= 0:
        raise ValueError(f"{function}: {name} must be positive, got {number:g}")
    return number
