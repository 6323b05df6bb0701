"""Computes loss weights as functions of the SNR, for a network with any prediction."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.plans.rows import Prediction, x0_terms

__all__ = ["Weighting", "output_weights"]

Weighting: TypeAlias = Literal["snr", "snr+1", "truncated_snr", "min_snr"]

_SMALLEST_ALPHA = 1e-100  # The inverse of its square is finite in float64.


def output_weights(
    function: str,
    weighting: Weighting,
    prediction: Prediction,
    alpha: FloatArray,
    sigma: FloatArray,
    *,
    gamma: float = 5.0,
) -> FloatArray:
    """Return weights for the output's squared error that weigh the error of x0 by the SNR.

    With ``SNR = alpha^2 / sigma^2`` the weight of ``|x0 - x0_hat|^2`` is

    - "snr": SNR, the same as weight 1 for the error of the noise;
    - "snr+1": SNR + 1, and "truncated_snr": max(SNR, 1) (Salimans and Ho 2022, "Progressive
      Distillation for Fast Sampling of Diffusion Models", arXiv:2202.00512, Sec. 4);
    - "min_snr": min(SNR, gamma) (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR
      Weighting Strategy", arXiv:2303.09556, Sec. 3.4).

    Since ``x0 = p x + q m``, the weight of ``|m - m_hat|^2`` is q^2 times as large.

    Args:
        function: name of the caller, for error messages.
        weighting: name of the weight.
        prediction: what the output m is.
        alpha: signal levels, any shape, in [0, 1].
        sigma: noise levels, the same shape, positive.
        gamma: bound on the SNR, positive; used by "min_snr" only.

    Returns:
        Weights in the shape of `alpha`; where alpha is 0, their limits for alpha to 0.

    Raises:
        ValueError: alpha is 0 and the weight has no finite limit there.
    """
    if prediction == "epsilon" and weighting in ("snr+1", "truncated_snr") and not np.all(alpha):
        raise ValueError(
            f"{function}: weighting must have a limit where alpha = 0 with prediction 'epsilon', "
            f"got {weighting!r}; use 'snr', 'min_snr' or another prediction"
        )
    alpha = np.maximum(alpha, _SMALLEST_ALPHA)
    _, q = x0_terms(function, prediction, alpha, sigma)
    signal, noise = alpha**2, sigma**2
    # The weight times sigma^2 is finite, and so is q / sigma: their product never multiplies an
    # infinite SNR by a q of 0.
    scaled = {
        "snr": signal,
        "snr+1": signal + noise,
        "truncated_snr": np.maximum(signal, noise),
        "min_snr": np.minimum(signal, gamma * noise),
    }[weighting]
    return scaled * (q / sigma) ** 2
