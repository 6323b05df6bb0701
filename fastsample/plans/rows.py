"""The fifteen coefficients of a sampler step, and what they are named.

A row carries the sample x from level t to level s:

    m      = u + w (c - u)
    x0     = clamp(p x + q m, lo, hi)
    sd     = d exp((lv_lo + (v + 1)/2 (lv_hi - lv_lo)) / 2)
    x_next = a x + b x0 + e m + c1 h1 + c2 h2 + c3 h3 + c4 h4 + sd z

c and u are the network's conditional and unconditional outputs, v is the half of the output that
predicts the variance, h1 to h4 are the x0's of earlier rows, newest first, and z is standard normal
noise. Without guidance m = c; without a learned variance sd = d. `fastsample.plans.laws` has the
equations that the coefficients must fulfil.
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
    "c3",
    "c4",
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

HISTORY: tuple[str, ...] = ("c1", "c2", "c3", "c4")
"""The columns that weight the x0's of earlier rows, newest first."""

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
    """Return step coefficients `(num_rows, 15)`: named columns as given, others without effect."""
    values = {**NEUTRAL, **columns}
    return np.stack([np.broadcast_to(values[name], num_rows) for name in COLUMNS], axis=1).astype(
        np.float64
    )


_MOST = float(np.finfo(np.float32).max)


def check_columns(rows: FloatArray) -> None:
    """Raise ValueError unless all values of `(K, 15)` rows are finite and in range."""
    c = columns_of(rows)
    for name, values in c.items():
        bad = ~np.isfinite(values) & ~((name in ("lo", "hi")) & (values == NEUTRAL[name]))
        if np.any(bad):
            i = int(np.argmax(bad))
            raise ValueError(
                f"Plan: rows must be finite in column {name}, got {values[i]} in row {i}"
            )
        big = np.isfinite(values) & (np.abs(values) > _MOST) & (name not in ("lo", "hi"))
        if np.any(big):
            i = int(np.argmax(big))
            raise ValueError(
                f"Plan: rows must fit into float32, got {name} = {values[i]:.3g} in row {i}; where "
                "p is 1 / alpha, the schedule leaves too little signal at that time: start at a "
                "smaller one, or use fewer or smaller betas"
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


def calls_network(rows: FloatArray) -> npt.NDArray[np.bool_]:
    """Return the mask `(K',)` of the rows that read the network's output.

    A row reads it as the prediction (q or e is not 0) or as the variance of the noise it draws.
    """
    c = columns_of(rows)
    learned = (c["d"] != 0) & ((c["lv_lo"] != 0) | (c["lv_hi"] != 0))
    return (c["q"] != 0) | (c["e"] != 0) | learned


def history_length(row: npt.ArrayLike) -> int:
    """Return the number of earlier x0's that one row `(15,)`, or any of `(K', 15)`, reads back."""
    first = COLUMNS.index(HISTORY[0])
    used = np.atleast_2d(np.asarray(row))[:, first : first + len(HISTORY)].any(0)
    return int(np.max(np.flatnonzero(used), initial=-1)) + 1


def history_sources(nodes: FloatArray, calls: npt.NDArray[np.bool_]) -> tuple[tuple[int, ...], ...]:
    """Return for each row the earlier rows whose x0 it may read, newest first, at most 4.

    Only rows with a network call have an x0 to read. In a plan from noise to data none may be read
    after a row that returns to a noisier node.

    Args:
        nodes: `(K' + 1,)`.
        calls: `(K',)` whether a row calls the network.
    """
    moves = np.diff(nodes)
    returns = (moves > 0) & ~np.all(moves > 0)
    sources: list[tuple[int, ...]] = []
    earlier: tuple[int, ...] = ()
    for k in range(len(calls)):
        sources.append(earlier)
        if returns[k]:
            earlier = ()
        elif calls[k]:
            earlier = (k, *earlier)[: len(HISTORY)]
    return tuple(sources)


def columns_of(rows: FloatArray) -> dict[str, FloatArray]:
    """Return the columns of `(K, 15)` rows by name, each `(K,)`."""
    return {name: rows[:, i] for i, name in enumerate(COLUMNS)}
