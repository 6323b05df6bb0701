"""How far generated samples are from data: losses, differentiable in the samples.

Paired ones compare sample i with the x0 that it was started from; their least value is the
posterior mean, not a sample, wherever x0 is not a function of the start. The energy score compares
several samples with their x0, and the others two sets in no order: these are least where the
distributions agree, sliced Wasserstein in the limit of many samples.

Every loss computes in float32, or in float64 if an argument is float64, also under autocast.
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
    """Mean squared error per element between samples and the data that they belong to.

    The fidelity loss of eq. (9) of Chen 2023 (arXiv:2301.01206), as a mean over elements. Least
    at E[x0 | start]: it ranks a point mass above a perfect sampler.

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
    """Mean Huber loss per element: ``e^2/2`` for ``|e| <= delta``, else ``delta (|e| - delta/2)``.

    Huber 1964, "Robust estimation of a location parameter" (Ann. Math. Stat. 35). Collapses as
    `paired_mse` does, towards the median of each element as `delta` falls.

    Args:
        samples: `(B, *shape)`, floating.
        x0: data of the same shape and units.
        delta: where the square turns into a line, in data units, positive.

    Returns:
        A scalar in squared data units; half of `paired_mse` where all errors are small.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes or devices that differ, an empty batch, or a delta that is not positive.
    """
    delta = _positive("paired_huber", "delta", delta)
    return torch.nn.functional.huber_loss(*check_pairs("paired_huber", samples, x0), delta=delta)


def energy_distance(samples: Tensor, data: Tensor) -> Tensor:
    """Energy distance ``2 E|x - y| - E|x - x'| - E|y - y'|`` of two sets, by U-statistics.

    Szekely and Rizzo 2013, "Energy statistics: a class of statistics based on distances" (J. Stat.
    Plan. Inference 143), with pairs of a point with itself left out: unbiased, so values near 0
    may be negative. Not its square root.

    Args:
        samples: `(n, *shape)`, floating, n >= 2.
        data: `(m, *shape)`, m >= 2; no order, no pairing.

    Returns:
        A scalar in data units (Euclidean norm over all elements). Coinciding points add nothing to
        the gradient.

    Raises:
        TypeError: an argument that is not a floating tensor.
        ValueError: sample shapes or devices that differ, or a set of fewer than 2.
    """
    x, y = check_sets("energy_distance", samples, data, least=2)
    return (
        2 * pairwise_distances(x, y).mean() - mean_pairwise_distance(x) - mean_pairwise_distance(y)
    )


def energy_score(samples: Tensor, x0: Tensor) -> Tensor:
    """Energy score: ``2/m sum_j |x_j - x0| - 1/(m(m-1)) sum_{j!=k} |x_j - x_k|``, m chains.

    Eq. (22) of Gneiting and Raftery 2007, "Strictly proper scoring rules" (JASA 102), times -2:
    lower is better here, and the factor is that of `energy_distance`, which it equals in
    expectation but for the E|y - y'| of the data given the start. Strictly proper: least where the
    chains sample the posterior. Without self-pairs, hence unbiased for every m; used on diffusion
    models by De Bortoli et al. 2025 (arXiv:2502.02483).

    Args:
        samples: `(m, B, *shape)`, floating, m >= 2 chains for each of B data.
        x0: `(B, *shape)`.

    Returns:
        The mean over B, a scalar in data units. Memory grows with m^2 B.

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
    norm = torch.linalg.vector_norm
    to_data = norm(x - target.reshape(len(x0), -1), dim=-1).mean()
    return 2 * to_data - norm(x[later] - x[earlier], dim=-1).mean()


def mmd(samples: Tensor, data: Tensor, *, bandwidths: Sequence[float] = (0.5, 1.0, 2.0)) -> Tensor:
    """Unbiased squared maximum mean discrepancy of two sets, with Gaussian kernels.

    Eq. (3) of Gretton et al. 2012, "A kernel two-sample test" (JMLR 13; arXiv:0805.2368), with the
    mean over bandwidths b of ``exp(-|x - y|^2 / (2 (b h)^2))`` as kernel, where h is the median
    distance between two of the data: a constant, through which no gradient flows. Unbiased at a
    given h; that h is estimated from the same data matters less the more there are.

    Args:
        samples: `(n, *shape)`, floating, n >= 2.
        data: `(m, *shape)`, m >= 2; no order, no pairing.
        bandwidths: multiples b of the median distance, dimensionless, positive, at least one.

    Returns:
        A scalar without unit, at most 2; values near 0 may be negative. Not its square root.

    Raises:
        TypeError: an argument of the wrong kind.
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
    """Mean over directions of the squared Wasserstein-2 distance between the projected sets.

    Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures" (J. Math. Imaging
    Vis. 51); a loss in Deshpande et al. 2018 (arXiv:1803.11188). Squared, since the square is
    smooth where the sets meet and the root is not. Exact for the two empirical distributions, any
    two counts; as an estimate of the distributions' own distance it is biased upwards.

    Args:
        samples: `(n, *shape)`, floating, n >= 1.
        data: `(m, *shape)`, m >= 1; no order, no pairing.
        directions: unit vectors `(P, D)` over the D elements of a sample (`random_directions`), P
            >= 1; their length is not checked, and they are brought to the samples' device.

    Returns:
        A scalar in squared data units, of the projections: about 1/D of a distance in full.

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
    # In units of 1/(n m): the k-th smallest of n points holds the quantiles k m to (k + 1) m.
    # Between neighbouring cuts both inverse distribution functions are constant.
    n, m = len(x), len(y)
    low = torch.cat([torch.arange(n, device=x.device) * m, torch.arange(m, device=x.device) * n])
    low = low.sort().values
    share = torch.diff(low, append=low.new_full((1,), n * m)).to(x.dtype) / (n * m)
    gap = x[low // m] - y[low // n]
    return (share * gap.square().mean(1)).sum()


def random_directions(count: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Directions for `sliced_wasserstein`, uniform on the unit sphere.

    Args:
        count: how many, at least 1.
        size: elements of a sample, at least 1.
        generator: random numbers, and the device; None is torch's own on the CPU.

    Returns:
        float32 `(count, size)`, rows of length 1.

    Raises:
        TypeError: a count or size that is not an integer.
        ValueError: a count or size below 1.
    """
    count = check_integer("random_directions", "count", count, 1)
    size = check_integer("random_directions", "size", size, 1)
    device = None if generator is None else generator.device
    normal = torch.randn(count, size, generator=generator, device=device, dtype=torch.float32)
    return torch.nn.functional.normalize(normal, dim=1)


def _positive(function: str, name: str, value: float) -> float:
    """A finite float above 0."""
    number = check_real(function, name, value)
    if number <= 0:
        raise ValueError(f"{function}: {name} must be positive, got {number:g}")
    return number
