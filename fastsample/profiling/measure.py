"""One pass over data: what a model gets wrong at every time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastsample._support.checks import FloatArray, check_integer, check_vector
from fastsample._support.distributed import check_agreement
from fastsample.denoiser.batches import batches_of, check_bin_width, check_data_range
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.plans.rows import Clip, clip_bounds
from fastsample.profiling.distributed import all_reduced, share_of_batches
from fastsample.profiling.measurement import Measurement
from fastsample.profiling.profile import Profile
from fastsample.profiling.resume import origin_of, resumed, written
from fastsample.profiling.statistics import Settings
from fastsample.sampling.noise import make_identity
from fastsample.schedules.schedule import NoiseSchedule

_CONTINUOUS_TIMES = 256
_MOST_TIMES = 4096  # with trajectories, whose Gram matrices are its square: 0.4 GB


def profile(
    denoiser: Denoiser,
    data: Tensor | Iterable[Tensor],
    *,
    times: Sequence[float] | FloatArray | Grid | None = None,
    batch_size: int = 256,
    bin_width: float | None = 2 / 255,
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

    What comes back gives the cost of every step between two times, so that the best grid of K steps
    is found without another call (Watson et al. 2021, arXiv:2106.03802). The memory does not grow
    with the data; sums are float64. All times share each sample's noise (common random numbers),
    so that differences between times are not drowned in it; the noise belongs to the sample: the
    result does not depend on the batches, and profiles of two halves of the data (the second one
    with its `sample_index`) merge into the profile of the whole.

    Under `torch.distributed` every process passes the same data and works on its share of the
    batches; each returns the sums of all, and the first one saves.

    Args:
        denoiser: the model, in eval mode.
        data: samples ``(N, *shape)``, or an iterable of such batches, which is gone through once.
        times: ascending, in (0, T]; whole steps for a schedule that has them. None is every step,
            or 256 even times in continuous time. A `Grid` stands for its times.
        batch_size: samples per network call, for a `data` tensor.
        bin_width: distance of neighbouring data levels in [-1, 1], 2/255 for 8-bit images; None
            for continuous data, whose decoder is a density.
        trajectories: for how many of the first samples a fine DDIM trajectory is run from noise,
            for ``costs("trajectory")``: one more network call per time for them. It takes every one
            of the times and no other: fewer than 100 make a coarse one. Holds up to 1 GB.
        nodes: for a learned variance, see `fastsample.profiling.learned_range.chebyshev_nodes`.
        clip: range x0hat is held in; "auto" is the model's own.
        cond: keyword arguments for the network, one entry per sample of the data.
        seed: of the noise.
        sample_index: global index of the first sample.
        save: file that is written after every batch; if it exists, its samples are skipped in
            the data and the rest is added. An interruption costs one batch (one per process). A
            file of another model, other settings or other first data is refused (one more call
            with one sample finds out); the order of the data must be the same.
        progress: show a progress bar.

    Returns:
        A `Profile`.

    Raises:
        TypeError: data that are no floating tensors.
        ValueError: no data, values outside [-1, 1] with a `bin_width`, a network that returns NaN
            (the message names the time), times that the model was not trained on, or a file of
            another run.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"profile: denoiser must be a Denoiser, got {type(denoiser).__name__}")
    measured = _checked_times(denoiser.schedule, times)
    if bin_width is not None:
        bin_width = check_bin_width("profile", bin_width)
    learned = denoiser.variance == "learned_range"
    settings = Settings(
        prediction=denoiser.prediction,
        variance=denoiser.variance,
        clip=clip_bounds("profile", denoiser.clip_for(clip)),
        bin_width=bin_width,
        nodes=check_integer("profile", "nodes", nodes, 2, 64) if learned else 0,
        seed=check_integer("profile", "seed", seed, 0, 2**64 - 1),
    )
    first = check_integer("profile", "sample_index", sample_index, 0)
    wanted = check_integer("profile", "trajectories", trajectories, 0)
    size = check_integer("profile", "batch_size", batch_size, 1)
    given = len(data) if isinstance(data, Tensor) and data.dim() else None
    conditions = Conditions("profile", cond, batch=given)
    if wanted > first and len(measured) > _MOST_TIMES:
        raise ValueError(
            f"profile: trajectories must be 0 with more than {_MOST_TIMES} times, got {wanted}"
        )
    path = None if save is None else Path(save)
    empty = Profile.empty(denoiser.schedule, denoiser.shape, measured, settings, wanted > first)

    rank, share = share_of_batches()
    calls = len(measured) * -(-len(data) // size) if isinstance(data, Tensor) else None
    hidden = not progress or rank > 0
    with (
        torch.inference_mode(),
        tqdm(desc="profile", total=calls, disable=hidden, unit="call") as bar,
    ):
        measurement = Measurement(denoiser, measured, settings, bar.update)
        batches = batches_of("profile", denoiser, data, size)
        opening = next(batches, None)
        if opening is None:
            raise ValueError("profile: data must hold at least one sample, got none")
        total = empty
        if path is not None:
            origin = origin_of(denoiser, opening, conditions, first)
            total = resumed(replace(empty, origin=origin), path, wanted)
        check_agreement("profile", "save", total.count, denoiser.device)
        check_agreement("profile", "data", float(opening.double().sum()), denoiser.device)
        counted = _Counted(itertools.chain([opening], batches), total.count)
        for index, x0 in share(counted):

            def measure(index: int = index, x0: Tensor | None = x0) -> Profile:
                if x0 is None:  # a process may have no batch in the last round
                    return empty
                _check_data(x0, settings.bin_width)
                count = x0.shape[0]
                identity = make_identity("profile", seed, first + index, count, x0.device)
                cond = conditions.part(index, x0)
                part = replace(empty, count=count, sums=measurement.errors(x0, identity, cond))
                running = min(wanted - first - index, count)
                if running <= 0:
                    return part
                lines = measurement.trajectories(identity, running, cond)
                return replace(part, trajectories=lines)

            total = total.merge(all_reduced(measure, denoiser.device))
            if path is not None and rank == 0:
                written(total, path)
    conditions.check_count(counted.position)
    return total


class _Counted:
    """(position of the first sample, batch), from sample `done` on; counts what it has seen."""

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


def _check_data(x0: Tensor, bin_width: float | None) -> None:
    """Refuse what the decoder has no bins for, or no density."""
    if bin_width is not None:
        check_data_range("profile", x0)
    elif not torch.isfinite(x0).all():
        raise ValueError("profile: data must be finite, got NaN or infinity")


def _checked_times(schedule: NoiseSchedule, times: Any) -> FloatArray:
    """Ascending times in (0, T]."""
    whole = schedule.num_steps
    if times is None:
        if whole is not None:
            return np.arange(1.0, whole + 1.0)
        return np.linspace(0.0, schedule.T, _CONTINUOUS_TIMES + 1)[1:]
    if isinstance(times, Grid):
        times = times.times[-2::-1]
    found = check_vector("profile", "times", times)
    if np.any(np.diff(found) <= 0.0):
        raise ValueError(f"profile: times must rise strictly, got {found}")
    if found[0] <= 0.0 or found[-1] > schedule.T:
        raise ValueError(
            f"profile: times must be in (0, {schedule.T:g}], got {found[0]:g} to {found[-1]:g}"
        )
    if whole is not None and np.any(found != np.rint(found)):
        wrong = found[found != np.rint(found)][0]
        raise ValueError(
            f"profile: times must be whole steps, which the model was trained on, got {wrong:g}"
        )
    return found
