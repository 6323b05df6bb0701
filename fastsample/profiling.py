"""One pass over data: what a model gets wrong at every time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastsample._checks import FloatArray, check_integer, check_real, check_vector
from fastsample.batches import arguments_of, batches_of, check_range
from fastsample.collective import all_reduced, share_of_batches
from fastsample.denoiser import Denoiser
from fastsample.grid import Grid
from fastsample.identity import make_identity
from fastsample.measurement import Measurement
from fastsample.profiles import Profile
from fastsample.rows import Clip, clip_bounds
from fastsample.schedule import NoiseSchedule
from fastsample.statistics import Settings

_CONTINUOUS_TIMES = 256


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
        denoiser: the model.
        data: samples ``(N, *shape)``, or an iterable of such batches, which is gone through once.
        times: ascending, in (0, T]; whole steps for a schedule that has them. None is every step,
            or 256 even times in continuous time. A `Grid` stands for its times.
        batch_size: samples per network call, for a `data` tensor.
        bin_width: distance of neighbouring data levels in [-1, 1], 2/255 for 8-bit images; None
            for continuous data, whose decoder is a density.
        trajectories: for how many of the first samples a fine DDIM trajectory is run from noise,
            for ``costs("trajectory")``: one more network call per time for them. It takes every one
            of the times and no other: fewer than 100 make a coarse one. Holds up to 1 GB.
        nodes: for a learned variance, see `fastsample.learned_range.chebyshev_nodes`.
        clip: range x0hat is held in; "auto" is the model's own.
        cond: keyword arguments for the network, one entry per sample of the data.
        seed: of the noise.
        sample_index: global index of the first sample.
        save: file that is written after every batch; if it exists, its samples are skipped in
            the data and the rest is added. An interruption costs one batch (one per process).
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
        bin_width = check_real("profile", "bin_width", bin_width)
        if bin_width <= 0.0:
            raise ValueError(f"profile: bin_width must be positive, got {bin_width:g}")
    learned = denoiser.variance == "learned_range"
    settings = Settings(
        prediction=denoiser.prediction,
        variance=denoiser.variance,
        clip=clip_bounds(
            "profile", denoiser.clip if isinstance(clip, str) and clip == "auto" else clip
        ),
        bin_width=bin_width,
        nodes=check_integer("profile", "nodes", nodes, 2, 64) if learned else 0,
        seed=check_integer("profile", "seed", seed, 0, 2**64 - 1),
    )
    first = check_integer("profile", "sample_index", sample_index, 0)
    wanted = check_integer("profile", "trajectories", trajectories, 0)
    total = empty = Profile.empty(
        denoiser.schedule, denoiser.shape, measured, settings, wanted > first
    )
    path = None if save is None else Path(save)
    if path is not None and path.exists():
        total = _resumed(total, path, wanted, first)

    rank, share = share_of_batches()
    size = check_integer("profile", "batch_size", batch_size, 1)
    calls = len(measured) * -(-len(data) // size) if isinstance(data, Tensor) else None
    hidden = not progress or rank > 0
    with (
        torch.inference_mode(),
        tqdm(desc="profile", total=calls, disable=hidden, unit="call") as bar,
    ):
        measurement = Measurement(denoiser, measured, settings, bar.update)
        done = total.count
        for index, x0 in share(_remaining(denoiser, data, batch_size, done)):
            part = empty
            if x0 is not None:  # a process may have no batch in the last round
                if bin_width is not None:
                    check_range("profile", x0)
                elif not torch.isfinite(x0).all():
                    raise ValueError("profile: data must be finite, got NaN or infinity")
                count = x0.shape[0]
                identity = make_identity("profile", seed, first + index, count, x0.device)
                arguments = arguments_of("profile", cond, index, x0)
                part = replace(empty, count=count, sums=measurement.errors(x0, identity, arguments))
                running = min(wanted - first - index, count)
                if running > 0:
                    lines = measurement.trajectories(identity, running, arguments)
                    part = replace(part, trajectories=lines)
            total = total.merge(all_reduced(part, denoiser.device))
            if path is not None and rank == 0:
                total.save(path)
    if total.count == 0:
        raise ValueError("profile: data must hold at least one sample, got none")
    return total


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


def _resumed(empty: Profile, path: Path, wanted: int, first: int) -> Profile:
    """What an earlier run left; refused if it was another one."""
    earlier = Profile.load(path)
    try:
        total = empty.merge(earlier)
    except ValueError as error:
        raise ValueError(
            f"profile: save must be a file of the same run, got {path} ({error})"
        ) from None
    expected = min(max(wanted - first, 0), earlier.count)
    found = 0 if earlier.trajectories is None else earlier.trajectories.count
    if found != expected:
        raise ValueError(
            f"profile: trajectories must be as in {path}, which has {found} for its "
            f"{earlier.count} samples, got {wanted}"
        )
    return total


def _remaining(
    denoiser: Denoiser, data: Tensor | Iterable[Tensor], batch_size: int, done: int
) -> Iterable[tuple[int, Tensor]]:
    """(position of the first sample, batch), from sample `done` on."""
    position = 0
    for x0 in batches_of("profile", denoiser, data, batch_size):
        end = position + x0.shape[0]
        if end > done:
            start = max(done - position, 0)
            yield position + start, x0[start:]
        position = end
    if position < done:
        raise ValueError(
            f"profile: data must hold the {done} samples that the file already counts, "
            f"got {position}"
        )
