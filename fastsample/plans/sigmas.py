"""Lists of a plan's noise levels or timesteps, for programs that take only those."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray
from fastsample.grids.sigmas import Convention, checked_convention, sigmas_of
from fastsample.plans.rows import calls_network
from fastsample.schedules.schedule import NoiseSchedule

_WHOLE = 1e-6  # times this near to a whole number are whole


def sigma_list(
    nodes: FloatArray,
    rows: FloatArray,
    alphas: FloatArray,
    sigmas: FloatArray,
    schedule: NoiseSchedule | None,
    convention: Convention | None,
) -> FloatArray:
    """Return the sigmas `(K + 1,)` at the nodes of a plan; see `Plan.to_sigmas`."""
    name = "Plan.to_sigmas"
    kind = checked_convention(name, convention, schedule)
    _check_rows(name, nodes, rows)
    values = sigmas_of(alphas, sigmas, kind)
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f'{name}: convention must be "flow" for a plan that starts without any signal, where '
            'sigma / alpha is infinite, got "ratio"; or start below T'
        )
    return values


def timestep_list(
    nodes: FloatArray, rows: FloatArray, times: FloatArray, schedule: NoiseSchedule | None
) -> npt.NDArray[np.int64]:
    """Return the 0-based timesteps `(K,)` of the rows of a plan; see `Plan.to_timesteps`."""
    name = "Plan.to_timesteps"
    if schedule is not None and schedule.num_steps is None:
        raise ValueError(f"{name}: schedule must have whole steps, got {schedule!r}; use to_sigmas")
    _check_rows(name, nodes, rows)
    whole = np.rint(times)
    no_step = (np.abs(times - whole) > _WHOLE) | (whole < 1.0)
    if np.any(no_step):
        i = int(np.argmax(no_step))
        raise ValueError(
            f"{name}: times must be whole steps from 1 on, got {times[i]:g} in row {i}; "
            "plan.with_times(np.maximum(np.rint(plan.times), 1)) rounds them"
        )
    if np.any(np.diff(whole) >= 0.0):
        i = int(np.argmax(np.diff(whole) >= 0.0))
        raise ValueError(
            f"{name}: times must fall from row to row, got {whole[i]:g} then {whole[i + 1]:g} in "
            f"row {i}"
        )
    return whole.astype(np.int64) - 1


def _check_rows(name: str, nodes: FloatArray, rows: FloatArray) -> None:
    """Raise ValueError for a plan that no list of levels describes, with one call at each."""
    if nodes[0] < nodes[-1]:
        raise ValueError(
            f"{name}: nodes must fall, got a plan from {nodes[0]:g} to {nodes[-1]:g}, which inverts"
        )
    silent = np.flatnonzero(~calls_network(rows))
    if len(silent):
        raise ValueError(
            f"{name}: rows must all call the network, as they will in a program that takes a list, "
            f"got none in row {silent[0]}"
        )
