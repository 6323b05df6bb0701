"""The equations that tie a row's coefficients to the noise levels on both sides of it.

They follow when ``x = alpha_t x0 + sigma_t eps`` and a perfect network's output ``m = mx x0 + me
eps`` are put into the formula of a row (`fastsample.plans.rows`):

    x0 law          p alpha_t + q mx = 1             and  p sigma_t + q me = 0
    mean law        a alpha_t + b + e mx + c1 + c2 + c3 + c4 = alpha_s
    variance law    (a sigma_t + e me)^2 + sd^2 = sigma_s^2      with v = -1, so that lv_lo counts

A row that makes no network call has no x0 law: its x0 is p x, which puts b p in the place of b in
the mean law, and adds b p sigma_t to a sigma_t in the variance law.
"""

from __future__ import annotations

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.plans.rows import (
    HISTORY,
    Check,
    Prediction,
    calls_network,
    columns_of,
    output_terms,
)

TOLERANCE = 1e-12
"""The largest allowed error of a law, relative to the summed magnitudes of its terms."""


def broken_law(
    rows: FloatArray, prediction: Prediction, alphas: FloatArray, sigmas: FloatArray, check: Check
) -> tuple[int, str, float] | None:
    """Return (row, law, error) of the first broken law among those that `check` names, or None.

    Args:
        rows: `(K', 15)`.
        prediction: the quantity that the network predicts.
        alphas: `(K' + 1,)` signal levels, before the first row and after each.
        sigmas: `(K' + 1,)` noise levels, before the first row and after each.
        check: "all" laws, "mean" (all but the variance law), or "none".
    """
    if check == "none":
        return None
    c, calls = columns_of(rows), calls_network(rows)
    alpha, sigma = alphas[:-1], sigmas[:-1]
    mx, me = output_terms(prediction, alpha, sigma)
    history = [c[name] for name in HISTORY]
    # The weights of x0 and of eps in a row's x0 estimate are 1 and 0 by the x0 law.
    kept = np.where(calls, c["b"], c["b"] * c["p"] * alpha)
    leaked = np.where(calls, 0.0, c["b"] * c["p"] * sigma)
    laws: list[tuple[str, list[FloatArray]]] = [
        (
            "x0",
            [
                np.where(calls, term, 0.0)
                for term in (c["p"] * alpha, c["q"] * mx, -np.ones_like(alpha))
            ],
        ),
        ("x0", [np.where(calls, term, 0.0) for term in (c["p"] * sigma, c["q"] * me)]),
        ("mean", [c["a"] * alpha, kept, c["e"] * mx, *history, -alphas[1:]]),
    ]
    if check == "all":
        from_x, from_output = c["a"] * sigma + leaked, c["e"] * me
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
