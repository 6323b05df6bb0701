"""Weights of the x0 error over noise levels, turned into weights of the network's own error."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.plans.rows import Prediction, x0_terms

__all__ = ["Weighting", "output_weights"]

Weighting: TypeAlias = Literal["snr", "snr+1", "truncated_snr", "min_snr"]

_ALMOST_ZERO = 1e-100  # its square, and the square's inverse, are finite in float64


def output_weights(
    function: str,
    weighting: Weighting,
    prediction: Prediction,
    alpha: FloatArray,
    sigma: FloatArray,
    *,
    gamma: float = 5.0,
) -> FloatArray:
    """Weights of ``|m - m_hat|^2`` that weigh ``|x0 - x0_hat|^2`` by a function of the SNR.

    With ``SNR = alpha^2 / sigma^2`` the weight of the x0 error is SNR ("snr": that of the noise
    itself), SNR + 1 or max(SNR, 1) ("truncated_snr"; both Salimans and Ho 2022, "Progressive
    Distillation for Fast Sampling of Diffusion Models", arXiv:2202.00512, Sec. 4) or min(SNR,
    gamma) ("min_snr"; Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting
    Strategy", arXiv:2303.09556, Sec. 3.4). Since ``x0 = p x + q m``, that of the output's error is
    q^2 times as large.

    Args:
        function: who asks, for messages.
        weighting: name of the weight.
        prediction: what the output m is.
        alpha: signal levels, any shape, in [0, 1].
        sigma: noise levels, the same shape, positive.
        gamma: bound on the SNR, positive; read by "min_snr" only.

    Returns:
        Weights in the shape of `alpha`; where alpha is 0, their limits.

    Raises:
        ValueError: alpha is 0 where the weight grows without bound.
    """
    if prediction == "epsilon" and weighting in ("snr+1", "truncated_snr") and not np.all(alpha):
        raise ValueError(
            f"{function}: weighting must have a limit where alpha = 0 with prediction 'epsilon', "
            f"got {weighting!r}; use 'snr', 'min_snr' or another prediction"
        )
    alpha = np.maximum(alpha, _ALMOST_ZERO)
    _, q = x0_terms(function, prediction, alpha, sigma)
    signal, noise = alpha**2, sigma**2
    # sigma^2 times the weight, over (sigma / q)^2: no infinite SNR meets a q of zero.
    scaled = {
        "snr": signal,
        "snr+1": signal + noise,
        "truncated_snr": np.maximum(signal, noise),
        "min_snr": np.minimum(signal, gamma * noise),
    }[weighting]
    return scaled * (q / sigma) ** 2
