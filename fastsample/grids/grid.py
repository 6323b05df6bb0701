"""The class `Grid`: the times that a sampler visits, noisiest first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_vector, frozen, on_host


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Grid:
    """The times that a sampler visits, noisiest first and 0 (data) last.

    ``len(grid)`` is K, the number of network calls.

    Args:
        times: `(K + 1,)`, strictly decreasing, the last one 0. Kept as a read-only float64 copy.

    Raises:
        TypeError: if `times` does not hold real numbers.
        ValueError: if it is not a finite, strictly decreasing vector that ends at 0.
    """

    times: FloatArray

    def __init__(self, times: npt.ArrayLike) -> None:
        times = check_vector("Grid", "times", times)
        if times.size < 2:
            raise ValueError(f"Grid: times must hold at least 2 times, got {times.size}")
        steps = np.diff(times)
        if not np.all(steps < 0):
            i = int(np.argmax(steps >= 0))
            raise ValueError(
                "Grid: times must be strictly decreasing (noisiest first), "
                f"got {times[i]:g} then {times[i + 1]:g} at position {i}"
            )
        if times[-1] != 0.0:
            raise ValueError(
                f"Grid: times must end at 0 (data), got {times[-1]:g}; append 0.0 as the last "
                "time (stop= ends a run there), or pass a network's timesteps, which count from 0, "
                "to Grid.from_indices"
            )
        times[-1] = 0.0  # -0.0 would compare equal but print and hash differently
        object.__setattr__(self, "times", frozen(times))

    @classmethod
    def from_indices(cls, indices: Iterable[int]) -> Grid:
        """Make a grid from a network's 0-based timesteps, in any order; repeats are dropped.

        Args:
            indices: integers >= 0; timestep i is time i + 1. The final 0 (data) is added.

        Raises:
            TypeError: values that are not integers.
            ValueError: no indices, or negative ones.
        """
        array = np.asarray(on_host(indices if hasattr(indices, "__array__") else list(indices)))
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(
                f"Grid.from_indices: indices must be integers, got {array.dtype} data; "
                "pass fractional times to Grid"
            )
        if array.ndim != 1 or array.size == 0:
            raise ValueError(
                "Grid.from_indices: indices must be a vector with at least one entry, "
                f"got shape {array.shape}"
            )
        if array.min() < 0:
            raise ValueError(f"Grid.from_indices: indices must not be negative, got {array.min()}")
        return cls(np.append(np.unique(array)[::-1] + 1.0, 0.0))

    def rounded(self) -> Grid:
        """Return the grid with its times rounded to whole ones; repeats are dropped.

        A network with a table of times takes only whole ones. Times below 1/2 become 1, the time
        of a network's timestep 0. The grid may have fewer times than before.
        """
        whole = np.maximum(np.rint(self.times[:-1]), 1.0)
        return Grid(np.append(np.unique(whole)[::-1], 0.0))

    @property
    def integer(self) -> bool:
        """Whether every time is a whole number."""
        return bool(np.all(self.times == np.rint(self.times)))

    def __len__(self) -> int:
        return len(self.times) - 1

    def __iter__(self) -> Iterator[float]:
        return iter(self.times.tolist())

    def __reduce__(self) -> tuple[type[Grid], tuple[FloatArray]]:
        return Grid, (self.times,)  # copy through the constructor: it makes the times read-only

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and np.array_equal(self.times, other.times)

    def __hash__(self) -> int:
        return hash(self.times.tobytes())

    def __repr__(self) -> str:
        texts = [f"{t:.6g}" for t in self.times]
        if len(texts) > 12:
            texts = [*texts[:5], "...", *texts[-5:]]
        return f"Grid([{', '.join(texts)}], {len(self)} steps)"


def positions_in(function: str, grid: Grid, times: FloatArray, owner: str) -> npt.NDArray[np.int64]:
    """Return the positions `(K + 1,)` at which a grid's times occur in an ascending list of times.

    Args:
        function: name of the calling function, for messages.
        grid: K times and the final 0.
        times: `(n + 1,)`, ascending, 0 first.
        owner: what the times belong to, for messages: "table" or "profile".

    Raises:
        TypeError: `grid` is no grid.
        ValueError: a time of the grid is not among the times.
    """
    if not isinstance(grid, Grid):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{function}: grid must be a Grid, got {type(grid).__name__}")
    positions = np.searchsorted(times, grid.times)
    matches = times[np.minimum(positions, len(times) - 1)] == grid.times
    if not np.all(matches):
        raise ValueError(
            f"{function}: grid must lie on the {len(times) - 1} times of the {owner}, "
            f"got {grid.times[~matches][0]:g}"
        )
    return positions
