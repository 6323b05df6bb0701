"""Grids by name, as `sample(grid=...)` and the command line say them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fastsample.grids import makers
from fastsample.grids.grid import Grid
from fastsample.schedules.schedule import NoiseSchedule

GRIDS: dict[str, Callable[[NoiseSchedule, int], Grid]] = {
    "uniform": lambda schedule, steps: makers.uniform(noisiest(schedule), steps),
    "quadratic": lambda schedule, steps: makers.quadratic(noisiest(schedule), steps),
    "log_snr": makers.log_snr,
    "karras": makers.karras,
    "leading": lambda schedule, steps: _diffusers(schedule, steps, "leading"),
    "trailing": lambda schedule, steps: _diffusers(schedule, steps, "trailing"),
    "linspace": lambda schedule, steps: _diffusers(schedule, steps, "linspace"),
    "respaced": lambda schedule, steps: makers.respaced(_whole("respaced", schedule), steps),
    "ddim": lambda schedule, steps: makers.ddim(_whole("ddim", schedule), steps),
    "ddim_quadratic": lambda schedule, steps: makers.ddim(
        _whole("ddim", schedule), steps, "quadratic"
    ),
}
"""Our own grids; diffusers' three timestep spacings; improved-diffusion's list and the DDIM
repository's two, which may hold another number of times than asked for."""

DEFAULT_GRID = "uniform"
"""What "auto" is for a model without a profile."""


def grid_names() -> list[str]:
    """The names that `grid` arguments take: those of `GRIDS`, "auto" and "random"."""
    return sorted([*GRIDS, "auto", "random"])


def check_grid_name(function: str, name: object) -> str:
    """The name; ValueError unless it is one of `grid_names`."""
    if not isinstance(name, str) or name not in grid_names():
        raise ValueError(f"{function}: grid must be one of {grid_names()}, got {name!r}")
    return name


def noisiest(schedule: NoiseSchedule) -> float:
    """T as the grid makers want it: an int for integer times."""
    return schedule.T if schedule.num_steps is None else schedule.num_steps


def _diffusers(
    schedule: NoiseSchedule, steps: int, spacing: Literal["leading", "trailing", "linspace"]
) -> Grid:
    return makers.diffusers(_whole("diffusers", schedule), steps, spacing)


def _whole(name: str, schedule: NoiseSchedule) -> int:
    """T of a schedule, for a list of its indices."""
    if schedule.num_steps is None:
        raise ValueError(
            f'grids.{name}: schedule must have whole steps, got {schedule!r}; try grid="uniform"'
        )
    return schedule.num_steps
