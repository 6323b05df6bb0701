"""Implements `profile`, which measures a model's errors at every time in one pass over data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastsample._support.checks import FloatArray, check_integer, check_vector
from fastsample._support.distributed import check_agreement
from fastsample.denoiser.batches import batches_of, check_bin_width
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.wrap import check_denoiser
from fastsample.grids.grid import Grid
from fastsample.grids.scheduled import explodes, log_snr
from fastsample.plans.rows import Clip, clip_bounds
from fastsample.profiling.batch import AUTO_BIN_WIDTH, BatchMeasurement
from fastsample.profiling.distributed import all_reduced, batch_selection
from fastsample.profiling.profile import Profile
from fastsample.profiling.resume import load_or_create, run_origin, save_profile
from fastsample.profiling.statistics import Settings
from fastsample.schedules.schedule import NoiseSchedule

_CONTINUOUS_TIMES = 256
_MAX_TRAJECTORY_TIMES = 4096  # with this many the trajectories' Gram matrices take 0.4 GB


def profile(
    denoiser: Denoiser,
    data: Tensor | Iterable[Tensor],
    *,
    times: Sequence[float] | FloatArray | Grid | None = None,
    batch_size: int = 256,
    bin_width: float | Literal["auto"] | None = "auto",
    trajectories: int = 64,
    nodes: int = 16,
    clip: Clip | Literal["auto"] = "auto",
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
    sample_index: int = 0,
    save: str | Path | None = None,
    progress: bool = False,
) -> Profile:
    """Measure a model's errors at every time: one network call per batch and time.

    The profile gives the cost of every step between two times, so that the best grid of K steps
    is found without another call (Watson et al. 2021, arXiv:2106.03802). The memory does not grow
    with the data; sums are float64. All times use the same noise of a sample (common random
    numbers), which reduces the variance of differences between times. The noise is a function of
    (seed, sample index): the result does not depend on the batches, and profiles of two parts of
    the data (the second one with its `sample_index`) merge into the profile of the whole.

    Under `torch.distributed` every process passes the same data and measures its part of the
    batches; each returns the sums of all processes, and the first one saves.

    Args:
        denoiser: the model, in eval mode.
        data: samples ``(N, *shape)``, or an iterable of such batches, which is read once.
        times: ascending times in (0, T] ``(n,)``, or a `Grid`; integers for a schedule with integer
            steps. None is every step, or 256 times in continuous time, which are even, or those of
            `grids.log_snr` for a variance-exploding schedule.
        batch_size: samples per network call, for a `data` tensor.
        bin_width: distance of neighbouring data levels in [-1, 1], 2/255 for 8-bit images; None
            for data without bins, such as latents, of any range. Only ``costs("elbo")`` reads it:
            with bins the last step is a probability, without them a Gaussian density. "auto" is
            2/255 if all data are on the 256 levels of 8-bit data, up to the rounding of their
            dtype, in whatever order they come, and None if any value is not: latents, or images
            that were resized or cropped with interpolation. bfloat16, which cannot tell, counts as
            8-bit data within [-1, 1].
        trajectories: number of samples, from the first one on, for which a DDIM trajectory over all
            `times` is run from noise, for ``costs("trajectory")``; this takes one more network call
            per time. Fewer than 100 times make coarse trajectories. Holds up to 1 GB.
        nodes: number of Chebyshev nodes for a learned variance, in [2, 64]; see
            `fastsample.profiling.learned_range.chebyshev_nodes`.
        clip: range that x0hat is clamped to, in data units; "auto" is the model's.
        cond: keyword arguments for the network, one entry per sample of the data.
        seed: 64-bit seed of the noise.
        sample_index: global index of the first sample.
        save: file that is written after every batch; if it exists, its samples are skipped in
            the data and the rest is added. An interruption costs one batch (one per process). A
            file of another model, other settings or other first data is refused, which takes one
            more call with one sample; the order of the data must be the same.
        progress: show a progress bar.

    Returns:
        A `Profile`.

    Raises:
        TypeError: data that are no floating tensors.
        ValueError: no data, values outside [-1, 1] with a number as `bin_width`, bytes that nobody
            scaled, a network that returns NaN (the message names the time), times that the model
            was not trained on, or a file of another run.
    """
    check_denoiser("profile", denoiser)
    time_list = _checked_times(denoiser.schedule, times)
    auto_bins = isinstance(bin_width, str) and bin_width == "auto"
    width = AUTO_BIN_WIDTH if auto_bins else bin_width
    learned = denoiser.variance == "learned_range"
    settings = Settings(
        prediction=denoiser.prediction,
        variance=denoiser.variance,
        clip=clip_bounds("profile", denoiser.clip_for(clip)),
        bin_width=None if width is None else check_bin_width("profile", width),
        nodes=check_integer("profile", "nodes", nodes, 2, 64) if learned else 0,
        seed=check_integer("profile", "seed", seed, 0, 2**64 - 1),
    )
    first = check_integer("profile", "sample_index", sample_index, 0)
    num_trajectories = check_integer("profile", "trajectories", trajectories, 0)
    size = check_integer("profile", "batch_size", batch_size, 1)
    num_samples = len(data) if isinstance(data, Tensor) and data.dim() else None
    conditions = Conditions("profile", cond, batch=num_samples)
    if num_trajectories > first and len(time_list) > _MAX_TRAJECTORY_TIMES:
        raise ValueError(
            f"profile: trajectories must be 0 with more than {_MAX_TRAJECTORY_TIMES} times, "
            f"got {num_trajectories}"
        )
    path = None if save is None else Path(save)
    empty = Profile.empty(
        denoiser.schedule, denoiser.shape, time_list, settings, num_trajectories > first
    )

    rank, select = batch_selection()
    calls = len(time_list) * -(-len(data) // size) if isinstance(data, Tensor) else None
    no_bar = not progress or rank > 0
    with (
        torch.inference_mode(),
        tqdm(desc="profile", total=calls, disable=no_bar, unit="call") as bar,
    ):
        batches = batches_of("profile", denoiser, data, size)
        first_batch = next(batches, None)
        if first_batch is None:
            raise ValueError("profile: data must hold at least one sample, got none")
        measurement = BatchMeasurement(
            denoiser,
            empty,
            conditions,
            trajectories=num_trajectories,
            first_index=first,
            auto=auto_bins,
            on_call=bar.update,
        )
        total = empty
        if path is not None:
            origin = run_origin(denoiser, first_batch, conditions, first)
            total = replace(empty, origin=origin)
            total = load_or_create(total, path, num_trajectories, auto_bins=auto_bins)
            measurement.follow(total)
        check_agreement("profile", "save", total.count, denoiser.device)
        check_agreement("profile", "data", float(first_batch.double().sum()), denoiser.device)
        numbered = _NumberedBatches(itertools.chain([first_batch], batches), total.count)
        for batch in select(numbered):
            part = all_reduced(partial(measurement.part, *batch), denoiser.device)
            total = measurement.added(total, part)
            if path is not None and rank == 0:
                save_profile(total, path)
    conditions.check_count(numbered.position)
    return total


class _NumberedBatches:
    """Skips the first `done` samples and yields the other batches with their positions.

    Attributes:
        position: number of samples that have been read.
    """

    def __init__(self, batches: Iterable[Tensor], done: int) -> None:
        self.batches, self.done, self.position = batches, done, 0

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for x0 in self.batches:
            begin, self.position = self.position, self.position + x0.shape[0]
            if self.position > self.done:
                skipped = max(self.done - begin, 0)
                yield begin + skipped, x0[skipped:]
        if self.position < self.done:
            raise ValueError(
                f"profile: data must hold the {self.done} samples that the file already counts, "
                f"got {self.position}"
            )


def _checked_times(schedule: NoiseSchedule, times: Any) -> FloatArray:
    """Return the argument `times` of `profile` as an ascending `(n,)` array, after checks."""
    num_steps = schedule.num_steps
    if times is None:
        if num_steps is not None:
            return np.arange(1.0, num_steps + 1.0)
        if explodes(schedule):  # of even times, hardly any would be as clean as the data
            return log_snr(schedule, _CONTINUOUS_TIMES).times[-2::-1]
        return np.linspace(0.0, schedule.T, _CONTINUOUS_TIMES + 1)[1:]
    if isinstance(times, Grid):
        times = times.times[-2::-1]
    checked = check_vector("profile", "times", times)
    if np.any(np.diff(checked) <= 0.0):
        raise ValueError(f"profile: times must rise strictly, got {checked}")
    if checked[0] <= 0.0 or checked[-1] > schedule.T:
        raise ValueError(
            f"profile: times must be in (0, {schedule.T:g}], got {checked[0]:g} to {checked[-1]:g}"
        )
    if num_steps is not None and np.any(checked != np.rint(checked)):
        wrong = checked[checked != np.rint(checked)][0]
        raise ValueError(
            f"profile: times must be whole steps, which the model was trained on, got {wrong:g}"
        )
    return checked
