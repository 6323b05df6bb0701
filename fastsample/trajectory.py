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

from fastsample._checks import FloatArray


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Inner products along fine trajectories, summed over trajectories and elements.

    Attributes:
        count: trajectories.
        states: `(n + 1, n + 1)` of x with x; times ascending, 0 first.
        estimates: `(n, n + 1)` of d (without time 0) with x.
        squares: `(n,)` of d with itself.
    """

    count: int
    states: FloatArray
    estimates: FloatArray
    squares: FloatArray

    def __add__(self, other: Trajectories) -> Trajectories:
        return Trajectories(
            self.count + other.count,
            self.states + other.states,
            self.estimates + other.estimates,
            self.squares + other.squares,
        )

    @classmethod
    def empty(cls, num_times: int) -> Trajectories:
        """Sums over no trajectories."""
        n = num_times
        return cls(0, np.zeros((n + 1, n + 1)), np.zeros((n, n + 1)), np.zeros(n))

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
            "trajectory_squares": self.squares,
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
            arrays.pop("trajectory_squares"),
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
        scale[1:] = sigma[None, :] / sigma[1:, None]
        gain = alpha[None, :] - alpha[:, None] * scale
        estimates = np.zeros_like(self.states)
        estimates[1:] = self.estimates
        squares = np.append(0.0, self.squares)
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
