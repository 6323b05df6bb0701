"""Detects that a model's samples lose the spread of the data while it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fastsample._support.checks import check_integer, check_real, warn_user
from fastsample.distances.pairwise import check_sets, mean_pairwise_distance

__all__ = ["CollapseDetector", "CollapseWarning"]

_STATISTICS = {"sd": "standard deviation", "diversity": "mean pairwise distance"}
_REMEDY = 'distance="energy", start="prior" or a lower learning rate'
# The data's average covers this many times more batches than the samples': the data's statistics
# do not change in training, so that a longer average only has less noise.
_DATA_MEMORY_FACTOR = 10
# A fall must also exceed this many standard errors, since with small batches 5% is noise.
_STANDARD_ERRORS = 3.0
# The standard errors are capped at this relative fall, or one wild batch among the first could
# keep the detector from ever warning.
_LARGEST_NOISE = 0.5


class CollapseWarning(UserWarning):
    """Warns that samples have lost spread, relative to the data, since training began."""


@dataclass
class _Track:
    """Keeps exponential averages of one statistic over the batches so far.

    Attributes:
        level: average of the samples' statistic.
        square: average of its square.
        data: average of the data's statistic.
        start: `level` after the first `memory` batches, where training began.
        margin: relative standard error of a fall from `start` to `level`.
    """

    level: float = 0.0
    square: float = 0.0
    data: float = 0.0
    start: float = 0.0
    margin: float = 0.0

    def add(self, level: float, data: float, count: int, memory: int) -> None:
        """Add the statistic of a batch.

        Args:
            level: the samples' statistic.
            data: the data's statistic.
            count: number of the batch, 1 for the first.
            memory: batches that the average covers.
        """
        rate = _rate(count, memory)
        self.level += rate * (level - self.level)
        self.square += rate * (level**2 - self.square)
        self.data += _rate(count, _DATA_MEMORY_FACTOR * memory) * (data - self.data)
        if count == memory:
            self.start = self.level
            self.margin = self._relative_error(memory)

    def _relative_error(self, memory: int) -> float:
        """Return the standard error of ``level - start`` divided by `level`."""
        if self.level == 0.0:
            return 0.0
        scatter = math.sqrt(max(self.square - self.level**2, 0.0)) / self.level
        # `level` averages all batches and `start` the first `memory`, both with weights that fall
        # by a factor of 1 - 1/memory per batch. The variance of each is that of a batch times the
        # sum of the squared weights.
        decay = 1.0 - 1.0 / memory
        share = (1.0 - decay) / (1.0 + decay)
        kept = decay**memory
        return scatter * math.sqrt(share + share * (1.0 + kept) / (1.0 - kept))

    @property
    def ratio(self) -> float:
        """Return the samples' average divided by the data's."""
        return self.level / self.data

    def has_fallen(self, tolerance: float, standard_errors: float) -> bool:
        """Return whether the level is below the data's and has fallen since the start.

        Both must be by more than `tolerance`, and the fall by more than its standard errors too.
        """
        fall = max(tolerance, min(standard_errors * self.margin, _LARGEST_NOISE))
        return self.ratio < 1.0 - tolerance and self.level < self.start * (1.0 - fall)


class CollapseDetector:
    """Warns when a model's samples lose the spread of the data while it is trained.

    A paired loss such as "mse" causes that: it is least where every sample is a mean.

    The detector follows two statistics as ratios of the samples' to the data's, averaged
    exponentially over about `memory` updates: the standard deviation (root of the variance over
    the batch, averaged over elements) and the mean distance between two samples. It gives a
    `CollapseWarning` when one of the ratios is below ``1 - tolerance`` and the samples' statistic
    has fallen by more than `tolerance` since the first `memory` updates. As small batches are
    noisy, the fall must also exceed three standard errors, estimated from those first updates. A
    second warning needs a recovery in between, to within half of that fall.

    A chain with too little spread from the start (few steps, a stochastic sampler) gives no
    warning while it keeps that spread. A model that drops modes but keeps the spread is not
    noticed.

    Args:
        tolerance: relative loss of spread without a warning, in [0, 1].
        memory: updates that an average covers, at least 2.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
    """

    def __init__(self, *, tolerance: float = 0.05, memory: int = 20) -> None:
        self.tolerance = check_real("CollapseDetector", "tolerance", tolerance, 0.0, 1.0)
        self.memory = check_integer("CollapseDetector", "memory", memory, 2)
        self._tracks = {name: _Track() for name in _STATISTICS}
        self._updates = 0
        self._ignored = 0
        self._collapsed = False

    def update(self, samples: Tensor, data: Tensor) -> dict[str, float]:
        """Add the samples of one iteration.

        Args:
            samples: generated samples `(n, *shape)`, n >= 2; those that are not finite are ignored.
            data: data `(m, *shape)` of the same iteration, m >= 2.

        Returns:
            `sd_ratio` and `diversity_ratio`, the averaged ratios: 1 for samples like the data, NaN
            before any finite samples; `collapsed`, 1 from a warning to the recovery, else 0;
            `ignored`, the number of samples ignored so far.

        Raises:
            TypeError: an argument that is not a floating tensor.
            ValueError: sample shapes that differ, a set of fewer than 2 samples, or first data
                without spread.

        Warns:
            CollapseWarning: the samples have lost spread.
        """
        with torch.no_grad():
            x, y = check_sets("CollapseDetector.update", samples, data, least=2)
            if self._updates == 0 and bool((y == y[0]).all()):
                raise ValueError(
                    "CollapseDetector.update: data must vary over the batch, got the same sample "
                    f"{len(y)} times"
                )
            x = x[x.isfinite().all(1)]
            self._ignored += len(samples) - len(x)
            if len(x) >= 2:
                self._measure(_spread(x), _spread(y), len(x))
        ratios = {
            f"{name}_ratio": track.ratio if self._updates else math.nan
            for name, track in self._tracks.items()
        }
        return {
            **ratios,
            "collapsed": float(self._collapsed),
            "ignored": float(self._ignored),
        }

    def state(self) -> dict[str, Any]:
        """Return the detector's state for `load_state`, ready for JSON."""
        return {
            "updates": self._updates,
            "ignored": self._ignored,
            "collapsed": self._collapsed,
            **{name: asdict(track) for name, track in self._tracks.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of a detector with the same `tolerance` and `memory`.

        Args:
            state: from `state`.

        Raises:
            ValueError: a state that lacks an entry, or has others.
        """
        try:
            if set(state) != set(self.state()):
                raise TypeError
            tracks = {name: _Track(**state[name]) for name in _STATISTICS}
        except TypeError:
            raise ValueError(
                "CollapseDetector.load_state: state must have the entries of state(), "
                f"got {state!r:.200}"
            ) from None
        self._updates, self._ignored = state["updates"], state["ignored"]
        self._collapsed, self._tracks = state["collapsed"], tracks

    def _measure(self, samples: list[float], data: list[float], count: int) -> None:
        """Add the statistics of a batch of `count` samples, and warn if one has fallen."""
        if not all(map(math.isfinite, samples + data)):
            self._ignored += count  # Squares overflow in float32, or data are not finite.
            return
        self._updates += 1
        for track, level, data_level in zip(self._tracks.values(), samples, data, strict=True):
            track.add(level, data_level, self._updates, self.memory)
        if self._collapsed:
            # Samples have recovered only when less than half the fall is left, or noise around the
            # limit would count as a second collapse.
            self._collapsed = any(
                track.has_fallen(self.tolerance / 2, _STANDARD_ERRORS / 2)
                for track in self._tracks.values()
            )
            return
        for name, track in self._tracks.items():
            if track.has_fallen(self.tolerance, _STANDARD_ERRORS):
                self._collapsed = True
                self._warn(name, track)
                return

    def _warn(self, name: str, track: _Track) -> None:
        warn_user(
            f"CollapseDetector: samples must keep the spread of the data, got a "
            f"{_STATISTICS[name]} that fell from {track.start / track.data:.2f} to "
            f"{track.ratio:.2f} of the data's in {self._updates} updates; use {_REMEDY}",
            CollapseWarning,
        )


def _rate(count: int, memory: int) -> float:
    """Return the weight of the newest of `count` values in a bias-corrected exponential average."""
    return (1.0 / memory) / (1.0 - (1.0 - 1.0 / memory) ** count)


def _spread(x: Tensor) -> list[float]:
    """Return the statistics of a set `(n, D)`, in the order of `_STATISTICS`."""
    statistics = torch.stack([x.var(dim=0).mean().sqrt(), mean_pairwise_distance(x)])
    return cast("list[float]", statistics.tolist())  # pyright: ignore[reportUnknownMemberType]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
