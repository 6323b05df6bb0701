"""Samplers and grids by name, as `sample(method=..., grid=...)` and the command line say them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fastsample import grids
from fastsample.grid import Grid
from fastsample.plan import Plan
from fastsample.samplers import ancestral, ddim, dpm_solver, fastdpm, shortcut, unipc
from fastsample.schedule import NoiseSchedule


@dataclass(frozen=True)
class Method:
    """A sampler and what it takes.

    Attributes:
        make: the sampler: ``(schedule, grid, **knobs) -> Plan``.
        summary: what it is, in a few words.
        source: where it was published.
        chooses_times: it takes a number of steps instead of a grid.
    """

    make: Callable[..., Plan]
    summary: str
    source: str
    chooses_times: bool = False

    @property
    def knobs(self) -> dict[str, Any]:
        """Its keyword arguments and their defaults, but for what the model decides."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.make).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in ("clip", "prediction")
        }


METHODS: dict[str, Method] = {
    "ddim": Method(
        ddim,
        "first order, deterministic; `eta=1` is DDPM-like",
        "Song et al. 2021, arXiv:2010.02502",
    ),
    "ancestral": Method(
        ancestral,
        "DDPM on any subset of the steps, with learned variances",
        "Ho et al. 2020, arXiv:2006.11239; Nichol & Dhariwal 2021, arXiv:2102.09672",
    ),
    "fastdpm": Method(
        fastdpm,
        "short chains of steps or of variances (fractional times)",
        "Kong & Ping 2021, arXiv:2106.00132",
        chooses_times=True,
    ),
    "shortcut": Method(
        shortcut,
        'jump to x0 and noise it afresh; `grid="random"` is the paper\'s',
        "Chen 2023, arXiv:2301.01206",
    ),
    "dpm++": Method(
        dpm_solver,
        "DPM-Solver++ multistep, and SDE 2M with `stochastic=True`",
        "Lu et al. 2022, arXiv:2211.01095",
    ),
    "unipc": Method(
        unipc,
        "DPM-Solver++ with a corrector at no extra network call",
        "Zhao et al. 2023, arXiv:2302.04867",
    ),
}


def table() -> str:
    """The methods and their knobs as a Markdown table."""
    lines = ["| method | what it is | knobs and their defaults | source |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        knobs = ", ".join(f"`{knob}={_quoted(value)}`" for knob, value in method.knobs.items())
        lines.append(
            f'| `"{name}"`, `fs.{method.make.__name__}` | {method.summary} | {knobs or "none"} '
            f"| {method.source} |"
        )
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


GRIDS: dict[str, Callable[[NoiseSchedule, int], Grid]] = {
    "uniform": lambda schedule, steps: grids.uniform(noisiest(schedule), steps),
    "quadratic": lambda schedule, steps: grids.quadratic(noisiest(schedule), steps),
    "log_snr": grids.log_snr,
    "karras": grids.karras,
    "leading": lambda schedule, steps: _diffusers(schedule, steps, "leading"),
    "trailing": lambda schedule, steps: _diffusers(schedule, steps, "trailing"),
    "linspace": lambda schedule, steps: _diffusers(schedule, steps, "linspace"),
    "respaced": lambda schedule, steps: grids.respaced(_whole("respaced", schedule), steps),
    "ddim": lambda schedule, steps: grids.ddim(_whole("ddim", schedule), steps),
    "ddim_quadratic": lambda schedule, steps: grids.ddim(
        _whole("ddim", schedule), steps, "quadratic"
    ),
}
"""Names for the `grid` argument, besides "random" (times drawn from the seed): our own; diffusers'
three timestep spacings; improved-diffusion's list and the DDIM repository's two, which may hold
another number of times than asked for."""


def noisiest(schedule: NoiseSchedule) -> float:
    """T as the grid makers want it: an int for integer times."""
    return schedule.T if schedule.num_steps is None else schedule.num_steps


def _diffusers(
    schedule: NoiseSchedule, steps: int, spacing: Literal["leading", "trailing", "linspace"]
) -> Grid:
    return grids.diffusers(_whole("diffusers", schedule), steps, spacing)


def _whole(name: str, schedule: NoiseSchedule) -> int:
    """T of a schedule, for a list of its indices."""
    if schedule.num_steps is None:
        raise ValueError(
            f'grids.{name}: schedule must have whole steps, got {schedule!r}; try grid="uniform"'
        )
    return schedule.num_steps
