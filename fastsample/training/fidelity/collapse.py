"""Watches whether a model's few-step samples lose the spread of the data while it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastsample._support.checks import check_integer, check_real, warn_user
from fastsample.distances.pairwise import check_sets, mean_pairwise_distance

__all__ = ["CollapseDetector", "CollapseWarning"]

_STATISTICS = {"sd": "standard deviation", "diversity": "mean pairwise distance"}
_REMEDY = 'distance="energy", start="prior" or a lower learning rate'
# Data do not change while the model does: averaged for longer, they add little noise of their own.
_DATA_MEMORY = 10
# A fall must also be this many standard errors: 5% is noise when batches are small.
_ERRORS = 3.0
# ... but a single wild batch at the start must not blind the detector.
_LARGEST_MARGIN = 0.5


class CollapseWarning(UserWarning):
    """Generated samples have lost spread against the data since training began."""


@dataclass
class _Track:
    """One statistic of the batches so far; plain numbers, for `state`."""

    level: float = 0.0
    square: float = 0.0
    data: float = 0.0
    start: float = 0.0
    margin: float = 0.0

    def add(self, level: float, data: float, count: int, memory: int) -> None:
        """The values of batch number `count` (1 for the first), and the start once it is known."""
        rate = _rate(count, memory)
        self.level += rate * (level - self.level)
        self.square += rate * (level**2 - self.square)
        self.data += _rate(count, _DATA_MEMORY * memory) * (data - self.data)
        if count == memory:
            self.start = self.level
            self.margin = self._noise(memory)

    def _noise(self, memory: int) -> float:
        """Standard error of `level` against `start`, relative, from the batches so far."""
        if self.level == 0.0:
            return 0.0
        scatter = math.sqrt(max(self.square - self.level**2, 0.0)) / self.level
        # Both are averages whose weights fall by 1 - 1/memory a batch: of all batches so far, and
        # of the first `memory`; the sum of their squared weights is their share of the variance.
        decay = 1.0 - 1.0 / memory
        share = (1.0 - decay) / (1.0 + decay)
        kept = decay**memory
        return scatter * math.sqrt(share + share * (1.0 + kept) / (1.0 - kept))

    @property
    def ratio(self) -> float:
        """Smoothed level against the data."""
        return self.level / self.data

    def is_below(self, tolerance: float, noise: float) -> bool:
        """Whether the level is below the data's and below its own start."""
        fall = max(tolerance, min(noise * self.margin, _LARGEST_MARGIN))
        return self.ratio < 1.0 - tolerance and self.level < self.start * (1.0 - fall)


class CollapseDetector:
    """Warns when samples lose spread: what a paired loss does, whose best chain gives a mean.

    Follows two ratios to the data, averaged exponentially over about `memory` updates: of the
    standard deviation (root of the variance over the batch, averaged over elements) and of the mean
    distance between two samples. A `CollapseWarning` is given once per collapse, when one of the
    ratios is below 1 - tolerance and has fallen by more than `tolerance` of its level in the first
    `memory` updates. Small batches are noisy: the fall must also exceed three standard errors,
    judged by the scatter of those first updates. Another warning needs a recovery in between, to
    within half of that fall.

    A chain that has too little spread from the start (few steps, a stochastic sampler) gives no
    warning while it keeps it. A model that drops modes but keeps spread is not seen.

    Args:
        tolerance: relative loss of spread that is borne, in [0, 1].
        memory: updates that an average covers, at least 2.

    Raises:
        TypeError: an argument of the wrong kind.
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
        """Takes the samples of one iteration in, and warns if they show a collapse.

        Args:
            samples: generated `(n, *shape)`, n >= 2; those that are not finite are left out.
            data: `(m, *shape)`, m >= 2, of the same iteration.

        Returns:
            `sd_ratio` and `diversity_ratio`, smoothed, 1 for samples like the data and NaN before
            any could be measured; `collapsed`, 1 from the warning to the recovery, else 0;
            `ignored`, samples left out so far.

        Raises:
            TypeError: an argument that is not a floating tensor.
            ValueError: sets that do not fit or have fewer than 2 samples, or data without spread.
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
        found = {
            f"{name}_ratio": track.ratio if self._updates else math.nan
            for name, track in self._tracks.items()
        }
        return {
            **found,
            "collapsed": float(self._collapsed),
            "ignored": float(self._ignored),
        }

    def state(self) -> dict[str, Any]:
        """All that the next updates depend on: numbers and names, ready for JSON."""
        return {
            "updates": self._updates,
            "ignored": self._ignored,
            "collapsed": self._collapsed,
            **{name: asdict(track) for name, track in self._tracks.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where the detector of this state was; same `tolerance` and `memory` assumed.

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
        """Averages the spreads of one batch; warns on the first that has fallen."""
        if not all(map(math.isfinite, samples + data)):
            self._ignored += count  # squares too large for float32, or data that are not finite
            return
        self._updates += 1
        for track, level, known in zip(self._tracks.values(), samples, data, strict=True):
            track.add(level, known, self._updates, self.memory)
        if self._collapsed:
            # Half the fall as the bar of recovery: noise at the bar is not a second collapse.
            self._collapsed = any(
                t.is_below(self.tolerance / 2, _ERRORS / 2) for t in self._tracks.values()
            )
            return
        for name, track in self._tracks.items():
            if track.is_below(self.tolerance, _ERRORS):
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
    """Weight of the newest of `count` values in their exponential average without bias."""
    return (1.0 / memory) / (1.0 - (1.0 - 1.0 / memory) ** count)


def _spread(x: Tensor) -> list[float]:
    """The statistics of one set `(n, D)`, in the order of `_STATISTICS`."""
    return torch.stack([x.var(dim=0).mean().sqrt(), mean_pairwise_distance(x)]).tolist()
