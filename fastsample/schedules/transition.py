"""Quantities of a pair of noise levels (s, t), such as the posterior variance of DDPM."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray


class Transition(NamedTuple):
    """Quantities of a pair of times s < t; every field has the shape of the levels."""

    alpha: FloatArray  # alpha_{t|s}, the factor of x_s in x_t
    variance: FloatArray  # sigma^2_{t|s}, the variance of q(x_t | x_s)
    posterior_variance: FloatArray  # the variance of q(x_s | x_t, x0)
    snr_ratio: FloatArray  # SNR_t / SNR_s, in [0, 1]


def transition(
    alpha_s: npt.ArrayLike, sigma_s: npt.ArrayLike, alpha_t: npt.ArrayLike, sigma_t: npt.ArrayLike
) -> Transition:
    r"""Return the `Transition` of the levels at two times s < t, for any alpha and sigma.

    ``alpha_{t|s} = alpha_t / alpha_s``, ``sigma^2_{t|s} = sigma_t^2 - alpha_{t|s}^2 sigma_s^2`` and
    the posterior variance ``sigma^2_{t|s} sigma_s^2 / sigma_t^2``: Kingma et al. 2021, "Variational
    Diffusion Models" (arXiv:2107.00630), appendix A. When alpha^2 + sigma^2 = 1 the last two are
    beta_{t|s} and beta-tilde of Ho et al. 2020 (arXiv:2006.11239), eq. (7).

    Args:
        alpha_s: signal level at s, in (0, 1].
        sigma_s: noise level at s, >= 0.
        alpha_t: signal level at t, in [0, 1).
        sigma_t: noise level at t, > 0.

    Returns:
        A `Transition`. Variances are never negative.
    """
    a_s, s_s, a_t, s_t = (np.asarray(v, np.float64) for v in (alpha_s, sigma_s, alpha_t, sigma_t))
    alpha = a_t / a_s
    with np.errstate(divide="ignore"):  # log 0 where SNR_t / SNR_s = 0
        log_ratio = np.minimum(2.0 * (np.log(alpha) + np.log(s_s / s_t)), 0.0)
    # This is sigma_t^2 (1 - SNR_t / SNR_s); the usual difference cancels when s is close to t.
    variance = -np.expm1(log_ratio) * s_t**2
    return Transition(alpha, variance, variance * (s_s / s_t) ** 2, np.exp(log_ratio))


def ddim_terms(
    alpha_t: npt.ArrayLike, sigma_t: npt.ArrayLike, alpha_s: npt.ArrayLike, sigma_s: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Return (a, b) of the deterministic DDIM step ``x_s = a x_t + b x0`` from time t to time s.

    Song et al. 2021 (arXiv:2010.02502), eq. 12 with eta = 0; for any alpha and sigma, in their
    common shape.
    """
    a = np.asarray(sigma_s, np.float64) / np.asarray(sigma_t, np.float64)
    return a, np.asarray(alpha_s, np.float64) - np.asarray(alpha_t, np.float64) * a


def snr_drop(
    alpha_bar_t: FloatArray, noise_t: FloatArray, alpha_bar_s: FloatArray, noise_s: FloatArray
) -> FloatArray:
    """Return ``SNR_s - SNR_t`` of a variance-preserving process, accurate also for s close to t.

    Args:
        alpha_bar_t: alpha_bar at the noisier time t.
        noise_t: 1 - alpha_bar at t, exact near 0.
        alpha_bar_s: alpha_bar at the cleaner time s.
        noise_s: 1 - alpha_bar at s, exact near 0.
    """
    drop = np.where(noise_t < 0.5, noise_t - noise_s, alpha_bar_s - alpha_bar_t)
    return drop / (noise_t * noise_s)
