"""Computes distances of single DDIM steps from a fine trajectory, for all pairs of times.

A deterministic sampler with many steps leaves x_t and the estimate d_t of x0 at every time. One
DDIM step from t straight to s (Song et al. 2021, arXiv:2010.02502, eq. 12) would give

    A x_t + B d_t,    A = sigma_s / sigma_t,    B = alpha_s - alpha_t A

and its squared distance from the trajectory's x_s is a quadratic form in inner products of these
vectors. Three Gram matrices give the distances for all pairs, without any further network call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.schedules.transition import ddim_terms


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Holds inner products along fine trajectories, summed over trajectories and elements.

    Attributes:
        count: number of trajectories.
        states: `(n + 1, n + 1)` products of x with x; times ascending, 0 first.
        estimates: `(n, n + 1)` products of d (without time 0) with x.
        products: `(n, n)` products of d with d.
    """

    count: int
    states: FloatArray
    estimates: FloatArray
    products: FloatArray

    def __add__(self, other: Trajectories) -> Trajectories:
        return Trajectories(
            self.count + other.count,
            self.states + other.states,
            self.estimates + other.estimates,
            self.products + other.products,
        )

    @classmethod
    def empty(cls, num_times: int) -> Trajectories:
        """Make the sums over zero trajectories."""
        n = num_times
        return cls(0, np.zeros((n + 1, n + 1)), np.zeros((n, n + 1)), np.zeros((n, n)))

    def check_shapes(self, num_times: int) -> None:
        """Raise ValueError unless the sums are over this number of times."""
        for name, array in vars(Trajectories.empty(num_times)).items():
            actual = getattr(self, name)
            if name != "count" and actual.shape != array.shape:
                raise ValueError(f"{name} of shape {actual.shape}, not {array.shape}")

    def to_arrays(self) -> dict[str, FloatArray]:
        """Return the sums as arrays by name, for a file."""
        return {
            "trajectory_count": np.array(float(self.count)),
            "trajectory_states": self.states,
            "trajectory_estimates": self.estimates,
            "trajectory_products": self.products,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, FloatArray]) -> Trajectories | None:
        """Pop the arrays of `to_arrays` from a dictionary; return None if it has none of them."""
        if "trajectory_count" not in arrays:
            return None
        return cls(
            int(arrays.pop("trajectory_count")),
            arrays.pop("trajectory_states"),
            arrays.pop("trajectory_estimates"),
            arrays.pop("trajectory_products"),
        )

    def start_errors(self) -> FloatArray:
        """Return `(n + 1,)` mean squared distances of the starting noise from x_t; inf at time 0.

        A sampler that starts at t < T uses its noise as x_t. That is nearly right where x_t is
        still nearly noise, and saves a network call.
        """
        norms = np.diagonal(self.states)
        squares = norms + norms[-1] - 2.0 * self.states[:, -1]
        return np.append(np.inf, np.maximum(squares[1:], 0.0) / self.count)

    def squared_errors(self, alpha: FloatArray, sigma: FloatArray) -> FloatArray:
        """Return the mean squared distances of single DDIM steps (t to s) from the trajectory.

        Args:
            alpha: `(n + 1,)` signal levels at the times, time 0 first.
            sigma: `(n + 1,)` noise levels; 0 at time 0.

        Returns:
            `(n + 1, n + 1)`: row t, column s < t; +inf elsewhere.
        """
        norms = np.diagonal(self.states)
        scale = np.zeros((len(alpha), len(alpha)))
        gain = np.zeros_like(scale)
        scale[1:], gain[1:] = ddim_terms(alpha[1:, None], sigma[1:, None], alpha, sigma)
        estimates = np.zeros_like(self.states)
        estimates[1:] = self.estimates
        squares = np.append(0.0, np.diagonal(self.products))
        along = np.diagonal(estimates)
        total = (
            scale**2 * norms[:, None]
            + gain**2 * squares[:, None]
            + norms[None, :]
            + 2.0 * scale * gain * along[:, None]
            - 2.0 * scale * self.states
            - 2.0 * gain * estimates
        )
        lower = np.tri(len(alpha), k=-1, dtype=bool)
        # Clamp at 0, because rounding errors of about 1e-16 of the norms may make it negative.
        return np.where(lower, np.maximum(total, 0.0) / self.count, np.inf)

    def second_order_errors(self, alpha: FloatArray, sigma: FloatArray) -> FloatArray:
        """Return mean squared distances as `squared_errors`, but for steps of DPM-Solver++ 2M.

        A step from t to s after one from r to t (Lu et al. 2022, arXiv:2211.01095) gives
        ``A x_t + B d_t + C d_r`` with ``C = -alpha_s (1 - e^-h) h / 2 h'``; h and h' are the
        differences of log(alpha / sigma) over the step and over the one before. The step to time 0
        is first order, as in `fastsample.dpm_solver`.

        Args:
            alpha: `(n + 1,)` signal levels at the times, time 0 first.
            sigma: `(n + 1,)` noise levels; 0 at time 0.

        Returns:
            `(n + 1, n + 1, n + 1)`: t, s, r with r > t > s; +inf elsewhere.
        """
        n = len(alpha)
        first = self.squared_errors(alpha, sigma)
        x, dx = self.states, np.zeros_like(self.states)
        dx[1:] = self.estimates
        dd = np.zeros_like(x)
        dd[1:, 1:] = self.products
        with np.errstate(divide="ignore"):
            half_log_snr = np.log(alpha) - np.log(sigma)  # inf at time 0
        errors = np.full((n, n, n), np.inf)
        for t in range(1, n - 1):
            errors[t, 0, t + 1 :] = first[t, 0]
            s, r = np.arange(1, t)[:, None], np.arange(t + 1, n)[None, :]
            h, h_before = half_log_snr[s] - half_log_snr[t], half_log_snr[t] - half_log_snr[r]
            gain = -alpha[s] * np.expm1(-h)
            a, c = (
                sigma[s] / sigma[t],
                -0.5 * gain * h / h_before,
            )  # h_before is inf where alpha is 0 at r
            b = gain - c
            total = (
                a**2 * x[t, t]
                + b**2 * dd[t, t]
                + c**2 * dd[r, r]
                + x[s, s]
                + 2.0 * (a * b * dx[t, t] + a * c * dx[r, t] + b * c * dd[r, t])
                - 2.0 * (a * x[t, s] + b * dx[t, s] + c * dx[r, s])
            )
            errors[t, 1:t, t + 1 :] = np.maximum(total, 0.0) / self.count
        return errors


def sum_of_trajectories(
    one: Trajectories | None, other: Trajectories | None
) -> Trajectories | None:
    """Return the sum of the trajectories of two profiles; None if neither has any."""
    if one is None or other is None:
        return one or other
    return one + other
