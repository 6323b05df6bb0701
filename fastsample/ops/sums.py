"""The function `elbo_sums`: per-sample sums that give the terms of the ELBO at one time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastsample.ops import library
from fastsample.ops.operator_checks import check_sums


class ElboSums(NamedTuple):
    """Holds sums over the elements of each sample, in float64."""

    error: Tensor
    """`(B,)` sum of the squared errors ``(x0 - x0hat)^2`` of the network's x0 estimate."""
    eps_square: Tensor
    """`(B,)` sum of the squared eps that the network predicts, before x0 is clipped."""
    v: Tensor
    """`(B,)` sum of the network's v, scaled to [0, 1]; 0 without a learned variance."""
    excess: Tensor
    """`(B, n)` sums of ``exp(-a v) - 1 + a v`` at the nodes a."""
    weighted: Tensor
    """`(B, n)` sums of the squared error times ``exp(-a v)`` at the nodes a."""
    nll: Tensor
    """`(B, m)` ``-log p(x0 | x)`` of the last step in nats, at each log standard deviation."""
    table: Tensor
    """`(B, 3 + 2 n + m)` the fields above, joined as columns in this order."""


def elbo_sums(
    x0: Tensor,
    x: Tensor,
    out: Tensor,
    *,
    x0_terms: Sequence[float],
    eps_terms: Sequence[float],
    clip: Sequence[float] = (-math.inf, math.inf),
    nodes: Tensor | None = None,
    log_scales: Tensor | None = None,
    bin_width: float = 2 / 255,
) -> ElboSums:
    """Return per-sample sums from which all terms of the ELBO at one time can be computed.

    The network's output gives ``x0hat = clamp(p x + q m, lo, hi)`` and, with a learned variance
    (Nichol and Dhariwal 2021, arXiv:2102.09672), ``v = (raw + 1) / 2``. A step from t to s then
    costs ``(excess + (SNR_s - SNR_t) weighted) / 2`` nats at the node ``a = log(beta /
    beta-tilde)`` of the pair. The nodes can be those of every s, which gives exact costs, or a few
    between which the caller interpolates. The decoder is the discretized Gaussian of
    `fastsample.likelihood.bound`, with its conventions.

    Args:
        x0: data ``(B, *shape)``, in [-1, 1] where `log_scales` are given.
        x: noisy data, shape, dtype and device of `x0`.
        out: model output, shape of `x0`, or twice its channels [prediction | raw v].
        x0_terms: (p, q) as above.
        eps_terms: (r, g) that give the network's epsilon ``r x + g m``.
        clip: (lo, hi) as above.
        nodes: ``(n,)`` float64 on the same device, values a >= 0; they need a learned variance.
        log_scales: ``(m,)`` float64 on the same device, log standard deviations of the decoder.
        bin_width: distance of neighbouring data levels.

    Returns:
        Float64 sums. On a GPU each term is computed in float32 for inputs of 32 bits or less, on a
        CPU always in float64.

    Raises:
        TypeError: dtypes that differ or are not floating point.
        ValueError: shapes or devices that do not fit.
    """
    check_sums("elbo_sums", x0, x, out, nodes, log_scales)
    empty = x0.new_empty(0, dtype=torch.float64)
    nodes = empty if nodes is None else nodes
    log_scales = empty if log_scales is None else log_scales
    coefficients = [*x0_terms, *eps_terms, *clip]
    sums = library.elbo_sums_op(x0, x, out, coefficients, nodes, log_scales, bin_width)
    n = nodes.shape[0]
    fixed, excess, weighted, nll = sums.split([3, n, n, log_scales.shape[0]], dim=1)
    error, eps_square, v = fixed.unbind(1)
    return ElboSums(error, eps_square, v, excess, weighted, nll, sums)
