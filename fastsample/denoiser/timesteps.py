"""Converts times t in (0, T] to the timesteps that a network was trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample.schedules.schedule import NoiseSchedule

TimeInput: TypeAlias = (
    Literal[
        "index",
        "rescaled",
        "fraction",
        "thousandths",
        "whole_thousandths",
        "reversed",
        "log_snr",
    ]
    | Callable[[FloatArray], Any]
)


def _index(times: FloatArray, schedule: NoiseSchedule) -> FloatArray:
    """Return t - 1, and 0 for times below 1: a network's first index is that of time 1."""
    return np.maximum(times - 1.0, 0.0)


def _rescaled(times: FloatArray, schedule: NoiseSchedule) -> FloatArray:
    return _index(times, schedule) * (1000.0 / schedule.T)


def _thousandths(times: FloatArray, schedule: NoiseSchedule) -> FloatArray:
    return times / schedule.T * 1000.0


def _whole_thousandths(times: FloatArray, schedule: NoiseSchedule) -> npt.NDArray[np.int64]:
    """Return the thousandths without their fraction, as UniPC and DPM-Solver++ of diffusers do.

    Nothing is rounded up, however near: diffusers truncates the same double-precision numbers.
    """
    return _thousandths(times, schedule).astype(np.int64)


_TIME_INPUTS: dict[str, Callable[[FloatArray, NoiseSchedule], npt.NDArray[Any]]] = {
    "index": _index,
    "rescaled": _rescaled,
    "fraction": lambda times, schedule: times / schedule.T,
    "thousandths": _thousandths,
    "whole_thousandths": _whole_thousandths,
    "reversed": lambda times, schedule: 1.0 - times / schedule.T,
    "log_snr": lambda times, schedule: schedule.log_snr(times),
}


def check_time_input(schedule: NoiseSchedule, time: Any) -> None:
    """Raise ValueError for an unknown `time`, or step numbers with a continuous schedule."""
    if not callable(time) and time not in list(_TIME_INPUTS):
        raise ValueError(
            f"Denoiser: time must be one of {list(_TIME_INPUTS)} or a callable, got {time!r}"
        )
    if schedule.num_steps is None and time in ("index", "rescaled"):
        raise ValueError(
            f"Denoiser: time must not be {time!r} for {schedule!r}, which has no step numbers; "
            'pass time="fraction" (t / T), "thousandths" (1000 t / T), "whole_thousandths", '
            '"reversed" (1 - t / T), "log_snr" or a callable'
        )


def timesteps(schedule: NoiseSchedule, time: TimeInput, times: FloatArray) -> Tensor:
    """Return the network's timesteps `(K,)` at times `(K,)`: int64 for whole indices, else float32.

    Args:
        schedule: the noise schedule of the times.
        time: the convention, see `Denoiser`; the dtype of a callable's integers is kept.
        times: `(K,)`.

    Raises:
        ValueError: a callable that does not give one finite value per time.
    """
    times = np.asarray(times, dtype=np.float64)
    if time == "index" and np.all(times == np.rint(times)):
        return torch.as_tensor(_index(times, schedule).astype(np.int64), device="cpu")
    values = time(times) if callable(time) else _TIME_INPUTS[time](times, schedule)
    if not isinstance(values, Tensor):
        # A copy, since a callable may return the read-only times; on the CPU, whatever the default.
        values = torch.as_tensor(np.array(values), device="cpu")
    if values.shape != times.shape:
        raise ValueError(
            f"Denoiser: time must give one value per time {times.shape}, got {tuple(values.shape)}"
        )
    # Check before the upload to the device: a check there would have to wait for it.
    host = values.detach().cpu().numpy()
    if values.is_floating_point() and not np.all(np.isfinite(host)):
        raise ValueError(
            f"Denoiser: time must give finite values, got {host.tolist()} for times "
            f"{times.tolist()}"
        )
    return values.to(torch.float32) if values.is_floating_point() else values
