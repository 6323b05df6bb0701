"""Costs of steps whose variance the network predicts, from sums at a few nodes per time.

With ``v`` in [0, 1] a learned variance lies between the posterior's (v = 0) and the forward step's
(v = 1), which are ``a = log(beta_{t|s} / beta-tilde)`` apart in the logarithm (Nichol and Dhariwal
2021, arXiv:2102.09672, eq. 15). The step from t to s then costs

    1/2 [H(a) + (SNR_s - SNR_t) S(a)],
    H = E sum exp(-a v) - 1 + a v,    S = E sum error exp(-a v)

where a alone depends on s, so that both are smooth functions of one number per time: ``H / a^2``
and S are interpolated from Chebyshev nodes. (H / a^2, because H itself falls like a^2 to 1e-12
between neighbouring times.)
"""

from __future__ import annotations

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.schedules.transition import snr_drop

_LEAST_RANGE = 1e-3  # the first time has no step to interpolate for; its nodes must still differ


def log_ratios(variance: FloatArray) -> FloatArray:
    """``a = log(sigma_t^2 / sigma_s^2)`` of every pair, `(n, n)`, row t, column s.

    Args:
        variance: `(n,)` sigma^2 of the schedule itself at the times, rising: what the network's
            range lies between depends on the scale that its process lives in.
    """
    return np.log1p((variance[:, None] - variance[None, :]) / variance[None, :])


def chebyshev_nodes(variance: FloatArray, count: int) -> FloatArray:
    """Nodes `(n, count)` in the range of a that each time's steps can have.

    Args:
        variance: `(n,)` sigma^2 of the schedule at the times, rising.
        count: 16 gives costs to 1e-6 or better for v in [0, 1], 24 to 1e-12, 32 for v in [-1, 2];
            0 without a learned variance.
    """
    largest = np.maximum(np.log(variance / variance[0]), _LEAST_RANGE)
    return largest[:, None] * (0.5 * (1.0 - np.cos(_angles(count))))


def learned_range_costs(
    levels: tuple[FloatArray, FloatArray],
    variance: FloatArray,
    nodes: FloatArray,
    excess: FloatArray,
    weighted: FloatArray,
) -> FloatArray:
    """Costs of the steps between times, nats, `(n, n)`, row t, column s < t; the rest is +inf.

    Args:
        levels: (alpha_bar, 1 - alpha_bar) `(n,)` of the variance-preserving process.
        variance: `(n,)` sigma^2 of the schedule itself.
        nodes: `(n, k)` of `chebyshev_nodes`.
        excess: `(n, k)` H at the nodes.
        weighted: `(n, k)` S at the nodes.
    """
    size, count = nodes.shape
    table = np.full((size, size), np.inf)
    alpha_bar, noise = levels
    a = log_ratios(variance)
    weights = np.sin(_angles(count)) * (-1.0) ** np.arange(
        count
    )  # barycentric, of first-kind nodes
    for t in range(1, size):
        at = a[t, :t]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = weights / (at[:, None] - nodes[t])
        hit = np.isinf(share)
        share[hit.any(1)] = hit[hit.any(1)]
        share /= share.sum(1, keepdims=True)
        drop = snr_drop(alpha_bar[t], noise[t], alpha_bar[:t], noise[:t])
        ratio = excess[t] / nodes[t] ** 2
        table[t, :t] = 0.5 * (at**2 * (share @ ratio) + drop * (share @ weighted[t]))
    return table


def _angles(count: int) -> FloatArray:
    """Of the Chebyshev points of the first kind."""
    return (np.arange(count, dtype=np.float64) + 0.5) * (np.pi / max(count, 1))
