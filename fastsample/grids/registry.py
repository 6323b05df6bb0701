"""The registry of grids: the names that `sample(grid=...)` and the command line accept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias, get_args

from fastsample.grids import makers, scheduled
from fastsample.grids.grid import Grid
from fastsample.schedules.schedule import NoiseSchedule

Spacing: TypeAlias = Literal["leading", "trailing", "linspace"]
Family: TypeAlias = Literal["ddim", "multistep"]


def _diffusers(
    schedule: NoiseSchedule, steps: int, spacing: Spacing, family: Family = "ddim"
) -> Grid:
    """Make the grid of one of diffusers' timestep spacings, for a discrete schedule."""
    return makers.diffusers(_whole("diffusers", schedule), steps, spacing, family=family)


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
    **{
        f"{family}:{spacing}": partial(_diffusers, spacing=spacing, family=family)
        for family in get_args(Family)
        for spacing in get_args(Spacing)
    },
    "respaced": lambda schedule, steps: makers.respaced(_whole("respaced", schedule), steps),
    "ddim": lambda schedule, steps: makers.ddim(_whole("ddim", schedule), steps),
    "ddim_quadratic": lambda schedule, steps: makers.ddim(
        _whole("ddim", schedule), steps, "quadratic"
    ),
}
"""The functions that make a grid from a schedule and a number of steps, by name.

"leading", "trailing" and "linspace" are diffusers' timestep spacings, here those of its DDIM; see
`maker_for` for other methods. "ddim:leading", "multistep:leading" and their like say whose.
"respaced" is improved-diffusion's list; "ddim" and "ddim_quadratic" are the DDIM repository's two
lists, which may hold another number of times than asked for."""


def maker_for(name: str, family: Family) -> Callable[[NoiseSchedule, int], Grid]:
    """Return the function that makes a grid by name, for a sampler.

    Args:
        name: a key of `GRIDS`.
        family: the schedulers of diffusers to which the sampler belongs, whose lists "leading",
            "trailing" and "linspace" mean.
    """
    return GRIDS[f"{family}:{name}" if name in get_args(Spacing) else name]


def auto_name(schedule: NoiseSchedule, own: str) -> str:
    """Return the name of the grid that "auto" means for a sampler on a schedule.

    For a variance-exploding schedule it is "log_snr", by measured errors of all samplers: even
    times would spend all steps but one on pure noise (docs/choosing.md).

    Args:
        schedule: noise levels.
        own: the sampler's own default, for all other schedules.
    """
    return "log_snr" if scheduled.explodes(schedule) else own


def grid_names() -> list[str]:
    """Return all names that a `grid` argument accepts: those of `GRIDS`, "auto" and "random"."""
    return sorted([*GRIDS, "auto", "random"])


def check_grid_name(function: str, name: object) -> str:
    """Return the name; raise ValueError unless `grid_names` holds it."""
    if not isinstance(name, str) or name not in grid_names():
        given = "" if isinstance(name, str) else "; pass times as steps= instead"
        if isinstance(name, str) and name == "flow":  # a name would hide the model's shift
            given = "; pass steps=fs.grids.flow(K, shift=...) instead"
        raise ValueError(f"{function}: grid must be one of {grid_names()}, got {name!r:.80}{given}")
    return name


def noisiest(schedule: NoiseSchedule) -> float:
    """Return T as an int for a discrete schedule, and as a float for a continuous one."""
    return schedule.T if schedule.num_steps is None else schedule.num_steps


def _whole(name: str, schedule: NoiseSchedule) -> int:
    """Return T as an int; raise ValueError for a continuous schedule."""
    if schedule.num_steps is None:
        remedy = (
            "pass fs.grids.flow(K, shift=...), the list of the model's program, as steps"
            if schedule.kind == "flow"
            else 'try grid="uniform"'
        )
        raise ValueError(
            f"grids.{name}: schedule must have whole steps, got {schedule!r}; the list holds their "
            f"indices: {remedy}"
        )
    return schedule.num_steps
