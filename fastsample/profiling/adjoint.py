"""What one DDIM step does to the end of a fine trajectory, for every pair of times at once.

A step from t straight to s lands beside the trajectory by ``e = A x_t + B d_t - x_s`` (see
`fastsample.profiling.trajectories`). To first order the end then moves by ``J_s e``, J_s the
Jacobian of the end with respect to x_s. For random signs u, whose ``E u u^T`` is the identity,

    E ||J_s e||^2 = E (u . J_s e)^2 = E (A <g_s, x_t> + B <g_s, d_t> - <g_s, x_s>)^2,  g_s = J_s^T u

(Hutchinson 1989), and one pass back along the trajectory gives g_s at every s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.schedules.transition import ddim_terms


@dataclass(frozen=True, eq=False)
class Adjoints:
    """Squared first-order end errors of single steps, summed over trajectories.

    The squares themselves are summed, not the products of projections that they consist of: the
    error of a short step is a small difference of these, and a difference of their sums would hold
    nothing below 1e-16 of the squared norms. This way it is 1e-32 in float64. (Of float32
    trajectories 1e-14 is left.)

    Attributes:
        count: trajectories.
        steps: `(n + 1, n + 1)` of the step from t to s, row t; times ascending, 0 first; 0 where
            there is no step.
        starts: `(n + 1,)` of taking the starting noise for x_t; 0 at time 0.
    """

    count: int
    steps: FloatArray
    starts: FloatArray

    def __add__(self, other: Adjoints) -> Adjoints:
        return Adjoints(
            self.count + other.count, self.steps + other.steps, self.starts + other.starts
        )

    @classmethod
    def empty(cls, num_times: int) -> Adjoints:
        """Sums over no trajectories."""
        n = num_times
        return cls(0, np.zeros((n + 1, n + 1)), np.zeros(n + 1))

    def check_shapes(self, num_times: int) -> None:
        """ValueError unless the sums are over this many times."""
        for name, array in vars(Adjoints.empty(num_times)).items():
            found = getattr(self, name)
            if name != "count" and found.shape != array.shape:
                raise ValueError(f"adjoint {name} of shape {found.shape}, not {array.shape}")

    def to_arrays(self) -> dict[str, FloatArray]:
        """For a file."""
        return {
            "adjoint_count": np.array(float(self.count)),
            "adjoint_steps": self.steps,
            "adjoint_starts": self.starts,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, FloatArray]) -> Adjoints | None:
        """What `to_arrays` gave, taken out of the dictionary; None if it is not there."""
        if "adjoint_count" not in arrays:
            return None
        return cls(
            int(arrays.pop("adjoint_count")),
            arrays.pop("adjoint_steps"),
            arrays.pop("adjoint_starts"),
        )

    def squared_errors(self) -> FloatArray:
        """Mean squared end error of a step from t to s, `(n + 1, n + 1)`, row t, column s < t."""
        lower = np.tri(len(self.steps), k=-1, dtype=bool)
        return np.where(lower, self.steps / self.count, np.inf)

    def start_errors(self) -> FloatArray:
        """Mean squared end error `(n + 1,)` of the starting noise taken for x_t, inf at 0."""
        return np.append(np.inf, self.starts[1:] / self.count)


def step_terms(alpha: FloatArray, sigma: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(A, B) of the step from t to s, each `(n + 1, n + 1)`, row s, column t; 0 unless s < t.

    Args:
        alpha: `(n + 1,)` at the times, time 0 first.
        sigma: the same; 0 at time 0.
    """
    scale, gain = np.zeros((2, len(alpha), len(alpha)))
    scale[:, 1:], gain[:, 1:] = ddim_terms(alpha[1:], sigma[1:], alpha[:, None], sigma[:, None])
    return np.triu(scale, k=1), np.triu(gain, k=1)
