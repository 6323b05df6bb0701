"""Measures the part of a profile that one batch adds, and decides whether data lie on bins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastsample.denoiser.batches import (
    check_data_range,
    check_finite,
    in_data_range,
    share_off_bins,
    warn_off_bins,
)
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.profiling.measurement import Measurement
from fastsample.profiling.profile import Profile
from fastsample.sampling.noise import make_identity

AUTO_BIN_WIDTH = 2 / 255
"""The bins of ``bin_width="auto"``, those of 8-bit images."""


class BatchMeasurement:
    """Measures one batch after another, with or without the discretised decoder.

    With `auto` the bins are dropped as soon as one value of the data is on none of them, also from
    the batches before it: whether a profile has bins depends on the set of its data alone, not
    on their order, on the batches, or on the processes that share them.

    Args:
        denoiser: the model.
        empty: the profile of no samples, to which the batches are added.
        conditions: extra arguments of the network.
        trajectories: number of samples with a trajectory, from the first one on.
        first_index: global index of the first sample.
        auto: whether data outside of [-1, 1] or between the bins drop the bins, instead of being
            refused or taken as they are.
        on_call: called after every network call.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        empty: Profile,
        conditions: Conditions,
        *,
        trajectories: int,
        first_index: int,
        auto: bool,
        on_call: Callable[[], object],
    ) -> None:
        self._denoiser, self._conditions, self._on_call = denoiser, conditions, on_call
        self._trajectories, self._first_index, self._auto = trajectories, first_index, auto
        self._empty = empty
        self._measurement = self._measure_as(empty)

    def part(self, index: int, x0: Tensor | None) -> Profile:
        """Return the profile of a batch alone; of no samples for None.

        If the batch drops the bins, its sums of the decoder are NaN, so that they still have the
        shape of those of other processes, and so that every sum with them is NaN.

        Args:
            index: position of the batch's first sample in the data.
            x0: the batch `(B, *shape)`, or None.
        """
        if x0 is None:  # In the last round some processes may have no batch.
            return self._empty
        has_bins = self._empty.has_bins
        on_bins = has_bins and self._are_on_bins(x0, first=index == 0)
        measurement = self._measurement
        if has_bins and not on_bins:
            measurement = self._measure_as(self._empty.without_bins())
        if not on_bins:
            check_finite("profile", x0)
        count, first = x0.shape[0], self._first_index + index
        identity = make_identity("profile", self._empty.settings.seed, first, count, x0.device)
        cond = self._conditions.part(index, x0)
        sums = measurement.errors(x0, identity, cond)
        if has_bins and not on_bins:
            sums["nll"] = np.full_like(self._empty.sums["nll"], np.nan)
        part = replace(self._empty, count=count, sums=sums)
        remaining = min(self._trajectories - first, count)
        if remaining <= 0:
            return part
        return replace(part, trajectories=measurement.trajectories(identity, remaining, cond))

    def added(self, total: Profile, part: Profile) -> Profile:
        """Return the sum of both; without bins, here and from now on, if `part` dropped them."""
        total = total.merge(part)
        if np.isnan(total.sums["nll"]).any():
            total = total.without_bins()
        self.follow(total)
        return total

    def follow(self, total: Profile) -> None:
        """Measure later batches without bins if `total` has none."""
        if self._empty.has_bins and not total.has_bins:
            self._empty = self._empty.without_bins()
            self._measurement = self._measure_as(self._empty)

    def _measure_as(self, profile: Profile) -> Measurement:
        """Return a measurement with the settings of a profile."""
        return Measurement(self._denoiser, profile.times, profile.settings, self._on_call)

    def _are_on_bins(self, x0: Tensor, *, first: bool) -> bool:
        """Return whether a batch may have bins; raise where it must, or looks like bytes.

        Warns of data in the first batch that look quantised, but not to the decoder's bins.
        """
        width = self._empty.settings.bin_width
        assert width is not None
        if not self._auto:
            check_data_range("profile", x0, "; latents and other real numbers need bin_width=None")
        elif not in_data_range(x0):
            _refuse_bytes(x0)
            return False
        if first:
            warn_off_bins("profile", x0, width, only_mistakes=True)
        return not self._auto or share_off_bins(x0, width) == 0.0


def _refuse_bytes(x0: Tensor) -> None:
    """Raise ValueError for whole numbers in 0..255: images that nobody scaled to [-1, 1]."""
    low, high = float(x0.min()), float(x0.max())
    if 0.0 <= low <= high <= 255.0 and torch.equal(x0, x0.round()):
        raise ValueError(
            "profile: data must be scaled as the model's, got whole numbers from "
            f"{low:g} to {high:g}; 8-bit images are x / 127.5 - 1, and bin_width=None takes any "
            "numbers as they are"
        )
