"""What one time tells about the evidence lower bound: sums per sample, in one read of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastsample.ops import library
from fastsample.ops.dtypes import DTYPE_CODES


class ElboSums(NamedTuple):
    """Sums over the elements of each sample, float64."""

    error: Tensor
    """`(B,)` squared error of x0."""
    eps_square: Tensor
    """`(B,)` squared epsilon of the network, before clipping."""
    v: Tensor
    """`(B,)` v in [0, 1] of a learned variance; 0 without one."""
    excess: Tensor
    """`(B, n)` ``exp(-a v) - 1 + a v`` at the nodes a."""
    weighted: Tensor
    """`(B, n)` squared error times ``exp(-a v)`` at the nodes a."""
    nll: Tensor
    """`(B, m)` decoder's negative log-likelihood in nats, for each log standard deviation."""
    table: Tensor
    """`(B, 3 + 2 n + m)`: all of the others side by side."""


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
    """Sums that give every step's term of the bound from one time, per sample.

    With ``x0hat = clamp(p x + q m, lo, hi)`` and, for a learned variance (Nichol and Dhariwal 2021,
    arXiv:2102.09672), ``v = (raw + 1) / 2``: a step from t to s costs ``(excess + (SNR_s - SNR_t)
    weighted) / 2`` nats at ``a = log(beta / beta-tilde)`` of the pair. Nodes may therefore be the
    a of every s, which fills a column of the exact table, or few, to be interpolated. The decoder
    is the discretized Gaussian of `fastsample.likelihood.bound`, with its conventions.

    Args:
        x0: data ``(B, *shape)``, in [-1, 1] where `log_scales` are given.
        x: noisy data, shape, dtype and device of `x0`.
        out: model output, shape of `x0`, or twice its channels [prediction | raw v].
        x0_terms: (p, q).
        eps_terms: (r, g) of the network's epsilon ``r x + g m``.
        clip: (lo, hi) of x0hat.
        nodes: ``(n,)`` float64 on the same device, values a >= 0; needs a learned variance.
        log_scales: ``(m,)`` float64 on the same device, log standard deviations of the decoder.
        bin_width: distance of neighbouring data levels.

    Returns:
        Float64 sums. On a GPU the terms are float32 for inputs of 32 bits or less, on a CPU
        float64 always.

    Raises:
        TypeError: dtypes that differ or are not floating.
        ValueError: shapes or devices that do not fit.
    """
    _check(x0, x, out, nodes, log_scales)
    none = x0.new_empty(0, dtype=torch.float64)
    nodes = none if nodes is None else nodes
    log_scales = none if log_scales is None else log_scales
    coefficients = [*x0_terms, *eps_terms, *clip]
    sums = library.elbo_sums_op(x0, x, out, coefficients, nodes, log_scales, bin_width)
    n = nodes.shape[0]
    fixed, excess, weighted, nll = sums.split([3, n, n, log_scales.shape[0]], dim=1)
    error, eps_square, v = fixed.unbind(1)
    return ElboSums(error, eps_square, v, excess, weighted, nll, sums)


def _check(x0, x, out, nodes, log_scales) -> None:
    if x0.dtype not in DTYPE_CODES or not x0.dtype == x.dtype == out.dtype:
        raise TypeError(
            "elbo_sums: x0, x and out must have one floating dtype, "
            f"got {x0.dtype}, {x.dtype} and {out.dtype}"
        )
    if x0.dim() < 2 or x.shape != x0.shape:
        raise ValueError(
            f"elbo_sums: x must have the shape (B, *shape) of x0 {tuple(x0.shape)}, "
            f"got {tuple(x.shape)}"
        )
    wide = (x0.shape[0], 2 * x0.shape[1], *x0.shape[2:])
    if tuple(out.shape) not in (tuple(x0.shape), wide):
        raise ValueError(
            f"elbo_sums: out must have the shape of x0 {tuple(x0.shape)} or twice its channels, "
            f"got {tuple(out.shape)}"
        )
    for name, tensor in (("nodes", nodes), ("log_scales", log_scales)):
        if tensor is None:
            continue
        if tensor.dim() != 1 or tensor.dtype != torch.float64:
            raise ValueError(
                f"elbo_sums: {name} must be a float64 vector, "
                f"got {tensor.dtype} {tuple(tensor.shape)}"
            )
    if nodes is not None and len(nodes) and out.shape == x0.shape:
        raise ValueError(
            f"elbo_sums: nodes must be left out without a learned variance in out, got {len(nodes)}"
        )
    for name, tensor in (("x", x), ("out", out), ("nodes", nodes), ("log_scales", log_scales)):
        if tensor is not None and tensor.device != x0.device:
            raise ValueError(f"elbo_sums: {name} must be on {x0.device}, got {tensor.device}")
