"""Computes the costs of steps whose variance the network predicts.

With ``v`` in [0, 1] a learned variance lies between the posterior's (v = 0) and the forward step's
(v = 1), which are ``a = log(beta_{t|s} / beta-tilde)`` apart in the logarithm (Nichol and Dhariwal
2021, arXiv:2102.09672, eq. 15). The step from t to s then costs (in nats of the bound)

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

_MIN_RANGE = 1e-3  # keeps the nodes of the first time distinct; no step is interpolated there


def log_ratios(variance: FloatArray) -> FloatArray:
    """Return `(n, n)` ``a = log(sigma_t^2 / sigma_s^2)`` of every pair of times: row t, column s.

    Args:
        variance: `(n,)` sigma^2 of the schedule at the times, rising; not of the
            variance-preserving process of equal SNR, because the range of the network's variance
            depends on the scale of the process.
    """
    return np.log1p((variance[:, None] - variance[None, :]) / variance[None, :])


def chebyshev_nodes(variance: FloatArray, count: int) -> FloatArray:
    """Return `(n, count)` Chebyshev nodes in the range that a takes over the steps from each time.

    Args:
        variance: `(n,)` sigma^2 of the schedule at the times, rising.
        count: number of nodes; 0 without a learned variance. 16 nodes give costs to 1e-6 or better
            for v in [0, 1], 24 to 1e-12; v in [-1, 2] needs 32.
    """
    largest = np.maximum(np.log(variance / variance[0]), _MIN_RANGE)
    return largest[:, None] * (0.5 * (1.0 - np.cos(_angles(count))))


def learned_range_costs(
    levels: tuple[FloatArray, FloatArray],
    variance: FloatArray,
    nodes: FloatArray,
    excess: FloatArray,
    weighted: FloatArray,
) -> FloatArray:
    """Return `(n, n)` costs of the steps in nats: row t, column s < t, +inf elsewhere.

    Args:
        levels: (alpha_bar, 1 - alpha_bar) `(n,)` of the variance-preserving process.
        variance: `(n,)` sigma^2 of the schedule.
        nodes: `(n, k)` `chebyshev_nodes` of that variance.
        excess: `(n, k)` H at the nodes.
        weighted: `(n, k)` S at the nodes.
    """
    size, count = nodes.shape
    table = np.full((size, size), np.inf)
    alpha_bar, noise = levels
    a = log_ratios(variance)
    # These are the barycentric weights of Chebyshev nodes of the first kind.
    node_weights = np.sin(_angles(count)) * np.power(-1.0, np.arange(count, dtype=np.float64))
    for t in range(1, size):
        ratios = a[t, :t]
        with np.errstate(divide="ignore", invalid="ignore"):
            weights: FloatArray = node_weights / (ratios[:, None] - nodes[t])
        # A point on a node has a division by 0 and takes the node's value instead.
        on_node = np.isinf(weights)
        weights[on_node.any(1)] = on_node[on_node.any(1)]
        weights /= weights.sum(1, keepdims=True)
        drop = snr_drop(alpha_bar[t], noise[t], alpha_bar[:t], noise[:t])
        scaled_excess = weights @ (excess[t] / nodes[t] ** 2)
        table[t, :t] = 0.5 * (ratios**2 * scaled_excess + drop * (weights @ weighted[t]))
    return table


def _angles(count: int) -> FloatArray:
    """Return `(count,)` angles, whose cosines are the Chebyshev points of the first kind."""
    return (np.arange(count, dtype=np.float64) + 0.5) * (np.pi / max(count, 1))
