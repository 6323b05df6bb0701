"""The thirteen coefficients of a sampler step, and the equations that they must fulfil.

A row carries the sample x from level t to level s:

    m      = u + w (c - u)
    x0     = clamp(p x + q m, lo, hi)
    sd     = d exp((lv_lo + (v + 1)/2 (lv_hi - lv_lo)) / 2)
    x_next = a x + b x0 + e m + c1 h1 + c2 h2 + sd z

c and u are the network's conditional and unconditional outputs, v is the half of the output that
predicts the variance, h1 and h2 are the x0's of the two steps before, and z is standard normal
noise. Without guidance m = c; without a learned variance sd = d.

The laws follow when ``x = alpha_t x0 + sigma_t eps`` and a perfect network's output ``m = mx x0 +
me eps`` are put into the formula:

    x0 law          p alpha_t + q mx = 1             and  p sigma_t + q me = 0
    mean law        a alpha_t + b + e mx + c1 + c2 = alpha_s
    variance law    (a sigma_t + e me)^2 + sd^2 = sigma_s^2      with v = -1, so that lv_lo counts
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_real

COLUMNS: tuple[str, ...] = (
    "p",
    "q",
    "lo",
    "hi",
    "w",
    "a",
    "b",
    "e",
    "c1",
    "c2",
    "d",
    "lv_lo",
    "lv_hi",
)
"""The columns of a plan's rows, in the order that the kernels read (csrc/core/step.h)."""

NEUTRAL: dict[str, float] = {
    **dict.fromkeys(COLUMNS, 0.0),
    "lo": -math.inf,
    "hi": math.inf,
    "w": 1.0,
}
"""The value of a column in samplers that do not use it."""

TOLERANCE = 1e-12
"""The largest allowed error of a law, relative to the summed magnitudes of its terms."""

Prediction: TypeAlias = Literal["epsilon", "x0", "v", "flow"]
Check: TypeAlias = Literal["all", "mean", "none"]
Variance: TypeAlias = Literal["small", "large", "learned_range"]
Clip: TypeAlias = float | tuple[float, float] | None


def output_terms(
    prediction: Prediction, alpha: FloatArray, sigma: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return (mx, me) of the network's output ``m = mx x0 + me eps`` at levels alpha, sigma.

    "v" is ``alpha eps - sigma x0`` (Salimans and Ho 2022, arXiv:2202.00512), "flow" is ``eps -
    x0``.
    """
    one, zero = np.ones_like(alpha), np.zeros_like(alpha)
    return {
        "epsilon": (zero, one),
        "x0": (one, zero),
        "v": (-sigma, alpha),
        "flow": (-one, one),
    }[prediction]


def x0_terms(
    function: str, prediction: Prediction, alpha: FloatArray, sigma: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return (p, q) with ``x0 = p x + q m``; ValueError where m does not determine x0."""
    _, me = output_terms(prediction, alpha, sigma)
    determinant = _determinant(function, prediction, alpha, sigma)
    return me / determinant + 0.0, -sigma / determinant + 0.0  # + 0.0 turns -0.0 into 0.0


def eps_terms(
    function: str, prediction: Prediction, alpha: FloatArray, sigma: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return (r, g) with ``eps = r x + g m``; ValueError where m does not determine eps."""
    mx, _ = output_terms(prediction, alpha, sigma)
    determinant = _determinant(function, prediction, alpha, sigma)
    return -mx / determinant + 0.0, alpha / determinant + 0.0


def _determinant(
    function: str, prediction: Prediction, alpha: FloatArray, sigma: FloatArray
) -> FloatArray:
    """Return the determinant of the equations that give x and m in terms of x0 and eps."""
    mx, me = output_terms(prediction, alpha, sigma)
    determinant = alpha * me - sigma * mx
    if not np.all(determinant):
        level = int(np.argmin(np.abs(determinant)))
        raise ValueError(
            f"{function}: prediction must determine x0 at every level, got {prediction!r} where "
            f"alpha = {alpha[level]:g} (row {level}); a start without any signal needs "
            'prediction="v", "x0" or "flow", or a grid that starts below T'
        )
    return determinant


def check_prediction(function: str, prediction: str) -> None:
    """Raise ValueError unless the name is "epsilon", "x0", "v" or "flow"."""
    if prediction not in get_args(Prediction):
        raise ValueError(
            f"{function}: prediction must be one of {list(get_args(Prediction))}, "
            f"got {prediction!r}"
        )


def clip_bounds(function: str, clip: Clip) -> tuple[float, float]:
    """Return the range (lo, hi) of x0 that `clip` means: a bound on |x0|, a pair, or None."""
    if clip is None:
        return -math.inf, math.inf
    if isinstance(clip, tuple | list):
        if len(clip) != 2:
            raise ValueError(f"{function}: clip must be a bound or a pair (lo, hi), got {clip!r}")
        low = check_real(function, "clip[0]", clip[0])
        high = check_real(function, "clip[1]", clip[1])
        if not low < high:
            raise ValueError(f"{function}: clip must have lo < hi, got ({low:g}, {high:g})")
        return low, high
    bound = check_real(function, "clip", clip)
    if bound <= 0.0:
        raise ValueError(f"{function}: clip must be positive, got {bound:g}")
    return -bound, bound


def row_table(num_rows: int, **columns: npt.ArrayLike) -> FloatArray:
    """Return step coefficients `(num_rows, 13)`: named columns as given, others without effect."""
    values = {**NEUTRAL, **columns}
    return np.stack([np.broadcast_to(values[name], num_rows) for name in COLUMNS], axis=1).astype(
        np.float64
    )


def check_columns(rows: FloatArray) -> None:
    """Raise ValueError unless all values of `(K, 13)` rows are finite and in range."""
    c = _columns(rows)
    for name, values in c.items():
        bad = ~np.isfinite(values) & ~((name in ("lo", "hi")) & (values == NEUTRAL[name]))
        if np.any(bad):
            i = int(np.argmax(bad))
            raise ValueError(
                f"Plan: rows must be finite in column {name}, got {values[i]} in row {i}"
            )
    for low, high in (("lo", "hi"), ("lv_lo", "lv_hi")):
        bad = c[low] > c[high]
        if np.any(bad):
            i = int(np.argmax(bad))
            raise ValueError(
                f"Plan: rows must have {low} <= {high}, got {c[low][i]:g} > {c[high][i]:g} "
                f"in row {i}"
            )
    if np.any(c["d"] < 0):
        i = int(np.argmin(c["d"]))
        raise ValueError(f"Plan: rows must have d >= 0, got {c['d'][i]:g} in row {i}")
    if c["c1"][0] or np.any(c["c2"][:2]):
        raise ValueError(
            "Plan: rows must not use an x0 from before the start, "
            "got c1 in row 0 or c2 in rows 0 and 1"
        )


def _columns(rows: FloatArray) -> dict[str, FloatArray]:
    """Return the columns of `(K, 13)` rows by name, each `(K,)`."""
    return {name: rows[:, i] for i, name in enumerate(COLUMNS)}


def broken_law(
    rows: FloatArray, prediction: Prediction, alphas: FloatArray, sigmas: FloatArray, check: Check
) -> tuple[int, str, float] | None:
    """Return (row, law, error) of the first broken law among those that `check` names, or None.

    Args:
        rows: `(K, 13)`.
        prediction: the quantity that the network predicts.
        alphas: `(K + 1,)` signal levels, before the first row and after each.
        sigmas: `(K + 1,)` noise levels, before the first row and after each.
        check: "all" laws, "mean" (all but the variance law), or "none".
    """
    if check == "none":
        return None
    c = _columns(rows)
    alpha, sigma = alphas[:-1], sigmas[:-1]
    mx, me = output_terms(prediction, alpha, sigma)
    laws: list[tuple[str, list[FloatArray]]] = [
        ("x0", [c["p"] * alpha, c["q"] * mx, -np.ones_like(alpha)]),
        ("x0", [c["p"] * sigma, c["q"] * me]),
        ("mean", [c["a"] * alpha, c["b"], c["e"] * mx, c["c1"], c["c2"], -alphas[1:]]),
    ]
    if check == "all":
        from_x, from_output = c["a"] * sigma, c["e"] * me
        drawn = c["d"] ** 2 * np.exp(c["lv_lo"])
        cross = 2 * from_x * from_output
        laws.append(("variance", [from_x**2, cross, from_output**2, drawn, -(sigmas[1:] ** 2)]))
    for law, terms in laws:
        error = np.abs(sum(terms))
        broken = error > TOLERANCE * sum(np.abs(term) for term in terms)
        if np.any(broken):
            i = int(np.argmax(np.where(broken, error, 0.0)))
            return i, law, float(error[i])
    return None
