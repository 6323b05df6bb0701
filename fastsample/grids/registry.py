"""The registry of grids: the names that `sample(grid=...)` and the command line accept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fastsample.grids import makers, scheduled
from fastsample.grids.grid import Grid
from fastsample.schedules.schedule import NoiseSchedule

GRIDS: dict[str, Callable[[NoiseSchedule, int], Grid]] = {
    "uniform": lambda schedule, steps: makers.uniform(noisiest(schedule), steps),
    "quadratic": lambda schedule, steps: makers.quadratic(noisiest(schedule), steps),
    "power": lambda schedule, steps: makers.power(noisiest(schedule), steps),
    "blended": scheduled.blended,
    "log_snr": scheduled.log_snr,
    "karras": scheduled.karras,
    "leading": lambda schedule, steps: _diffusers(schedule, steps, "leading"),
    "trailing": lambda schedule, steps: _diffusers(schedule, steps, "trailing"),
    "linspace": lambda schedule, steps: _diffusers(schedule, steps, "linspace"),
    "respaced": lambda schedule, steps: makers.respaced(_whole("respaced", schedule), steps),
    "ddim": lambda schedule, steps: makers.ddim(_whole("ddim", schedule), steps),
    "ddim_quadratic": lambda schedule, steps: makers.ddim(
        _whole("ddim", schedule), steps, "quadratic"
    ),
}
"""The functions that make a grid from a schedule and a number of steps, by name.

"leading", "trailing" and "linspace" are diffusers' timestep spacings, "respaced" is
improved-diffusion's list; "ddim" and "ddim_quadratic" are the DDIM repository's two lists, which
may hold another number of times than asked for."""


def grid_names() -> list[str]:
    """Return all names that a `grid` argument accepts: those of `GRIDS`, "auto" and "random"."""
    return sorted([*GRIDS, "auto", "random"])


def check_grid_name(function: str, name: object) -> str:
    """Return the name; raise ValueError unless `grid_names` holds it."""
    if not isinstance(name, str) or name not in grid_names():
        raise ValueError(f"{function}: grid must be one of {grid_names()}, got {name!r}")
    return name


def noisiest(schedule: NoiseSchedule) -> float:
    """Return T as an int for a discrete schedule, and as a float for a continuous one."""
    return schedule.T if schedule.num_steps is None else schedule.num_steps


def _diffusers(
    schedule: NoiseSchedule, steps: int, spacing: Literal["leading", "trailing", "linspace"]
) -> Grid:
    """Make the grid of one of diffusers' timestep spacings, for a discrete schedule."""
    return makers.diffusers(_whole("diffusers", schedule), steps, spacing)


def _whole(name: str, schedule: NoiseSchedule) -> int:
    """Return T as an int; raise ValueError for a continuous schedule."""
    if schedule.num_steps is None:
        raise ValueError(
            f'grids.{name}: schedule must have whole steps, got {schedule!r}; try grid="uniform"'
        )
    return schedule.num_steps
