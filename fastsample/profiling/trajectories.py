"""How far one DDIM step strays from a fine trajectory, for every pair of times at once.

A deterministic sampler with many steps leaves x_t and the estimate d_t of x0 at every time. One
DDIM step from t straight to s (Song et al. 2021, arXiv:2010.02502, eq. 12) would give

    A x_t + B d_t,    A = sigma_s / sigma_t,    B = alpha_s - alpha_t A

and its squared distance to the trajectory's x_s is a quadratic form in inner products of the
vectors: three Gram matrices hold all pairs, without any further network call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.schedules.transition import ddim_terms


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Inner products along fine trajectories, summed over trajectories and elements.

    Attributes:
        count: trajectories.
        states: `(n + 1, n + 1)` of x with x; times ascending, 0 first.
        estimates: `(n, n + 1)` of d (without time 0) with x.
        products: `(n, n)` of d with d.
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
        """Sums over no trajectories."""
        n = num_times
        return cls(0, np.zeros((n + 1, n + 1)), np.zeros((n, n + 1)), np.zeros((n, n)))

    def check_shapes(self, num_times: int) -> None:
        """ValueError unless the sums are over this many times."""
        for name, array in vars(Trajectories.empty(num_times)).items():
            found = getattr(self, name)
            if name != "count" and found.shape != array.shape:
                raise ValueError(f"{name} of shape {found.shape}, not {array.shape}")

    def to_arrays(self) -> dict[str, FloatArray]:
        """For a file."""
        return {
            "trajectory_count": np.array(float(self.count)),
            "trajectory_states": self.states,
            "trajectory_estimates": self.estimates,
            "trajectory_products": self.products,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, FloatArray]) -> Trajectories | None:
        """What `to_arrays` gave, taken out of the dictionary; None if it is not there."""
        if "trajectory_count" not in arrays:
            return None
        return cls(
            int(arrays.pop("trajectory_count")),
            arrays.pop("trajectory_states"),
            arrays.pop("trajectory_estimates"),
            arrays.pop("trajectory_products"),
        )

    def start_errors(self) -> FloatArray:
        """Mean squared distance `(n + 1,)` of the starting noise from x at each time, inf at 0.

        A sampler that starts at t < T takes its noise for x_t; where little signal has come in yet
        that is nearly right, and saves a network call.
        """
        norms = np.diag(self.states)
        squares = norms + norms[-1] - 2.0 * self.states[:, -1]
        return np.append(np.inf, np.maximum(squares[1:], 0.0) / self.count)

    def squared_errors(self, alpha: FloatArray, sigma: FloatArray) -> FloatArray:
        """Mean squared distance of a step from t to s, `(n + 1, n + 1)`, row t, column s < t.

        Args:
            alpha: `(n + 1,)` at the times, time 0 first.
            sigma: the same; 0 at time 0.
        """
        norms = np.diag(self.states)
        scale = np.zeros((len(alpha), len(alpha)))
        gain = np.zeros_like(scale)
        scale[1:], gain[1:] = ddim_terms(alpha[1:, None], sigma[1:, None], alpha, sigma)
        estimates = np.zeros_like(self.states)
        estimates[1:] = self.estimates
        squares = np.append(0.0, np.diag(self.products))
        along = np.diag(estimates)
        total = (
            scale**2 * norms[:, None]
            + gain**2 * squares[:, None]
            + norms[None, :]
            + 2.0 * scale * gain * along[:, None]
            - 2.0 * scale * self.states
            - 2.0 * gain * estimates
        )
        lower = np.tri(len(alpha), k=-1, dtype=bool)
        # The sum cancels to about 1e-16 of the norms: nothing below is known.
        return np.where(lower, np.maximum(total, 0.0) / self.count, np.inf)

    def second_order_errors(self, alpha: FloatArray, sigma: FloatArray) -> FloatArray:
        """The same for a step of DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095).

        ``A x_t + B d_t + C d_r`` with ``C = -alpha_s (1 - e^-h) h / 2 h'``; the step to time 0 is
        first order, as in `fastsample.dpm_solver`.

        Args:
            alpha: `(n + 1,)` at the times, time 0 first.
            sigma: the same.

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
            level = np.log(alpha) - np.log(sigma)  # half log-SNR, inf at 0
        found = np.full((n, n, n), np.inf)
        for t in range(1, n - 1):
            found[t, 0, t + 1 :] = first[t, 0]
            s, r = np.arange(1, t)[:, None], np.arange(t + 1, n)[None, :]
            h, before = level[s] - level[t], level[t] - level[r]
            gain = -alpha[s] * np.expm1(-h)
            a, c = sigma[s] / sigma[t], -0.5 * gain * h / before  # before is inf after alpha = 0
            b = gain - c
            total = (
                a**2 * x[t, t]
                + b**2 * dd[t, t]
                + c**2 * dd[r, r]
                + x[s, s]
                + 2.0 * (a * b * dx[t, t] + a * c * dx[r, t] + b * c * dd[r, t])
                - 2.0 * (a * x[t, s] + b * dx[t, s] + c * dx[r, s])
            )
            found[t, 1:t, t + 1 :] = np.maximum(total, 0.0) / self.count
        return found
