"""Helpers of DPM-Solver++ and UniPC: step sizes in half the log SNR, and phi functions."""

from __future__ import annotations

import math

import numpy as np

from fastsample._support.checks import FloatArray, check_integer
from fastsample.schedules.transition import Transition


def half_log_snr_steps(pair: Transition) -> FloatArray:
    """Return each row's step ``h = lambda_s - lambda_t``, `(K,)`, with lambda = log(alpha / sigma).

    A step to clean data, or from a start without signal, has h = +inf.
    """
    with np.errstate(divide="ignore"):
        return -0.5 * np.log(pair.snr_ratio)


def step_ratios(h: FloatArray) -> FloatArray:
    """Return each row's step size divided by that of the row before, ``h_i / h_{i-1}``, `(K,)`.

    It is 0 in row 0, and where either step is infinite or the earlier one is 0.
    """
    ratios = np.zeros_like(h)
    usable = np.isfinite(h[1:]) & np.isfinite(h[:-1]) & (h[:-1] > 0.0)
    np.divide(h[1:], h[:-1], out=ratios[1:], where=usable)
    return ratios


def phi(k: int, h: FloatArray) -> FloatArray:
    """Return the phi function ``phi_k(-h)`` of exponential integrators, in the shape of h.

    They are defined by phi_0 = exp and ``phi_k(z) = (phi_{k-1}(z) - 1 / (k-1)!) / z``.

    Args:
        k: order, at least 1.
        h: `(K,)` finite steps >= 0.
    """
    small = h < 0.5
    z = np.where(small, -h, 0.0)
    series = np.zeros_like(h)  # used for small h, where the recursion would lose digits
    for n in range(14, -1, -1):
        series = series * z + 1.0 / math.factorial(n + k)
    large = np.where(small, 1.0, h)
    recursion = np.exp(-large)
    for j in range(1, k + 1):
        recursion = (1.0 / math.factorial(j - 1) - recursion) / large
    return np.where(small, series, recursion)


def check_order(function: str, order: int | None, highest: int, num_steps: int) -> int:
    """Return the order, after checking that it is in 1..highest and at most the number of steps.

    None stands for order 2, or 1 if there is a single step.
    """
    if order is None:
        return min(2, num_steps)
    value = check_integer(function, "order", order, 1, highest)
    if value > num_steps:
        raise ValueError(
            f"{function}: order must be at most the number of steps {num_steps}, got {value}"
        )
    return value
