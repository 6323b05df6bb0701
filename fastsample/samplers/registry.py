"""Samplers by name, as `sample(method=...)` and the command line say them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastsample.plans.plan import Plan
from fastsample.samplers.ancestral import ancestral
from fastsample.samplers.ddim import ddim
from fastsample.samplers.dpm_solver import dpm_solver
from fastsample.samplers.fastdpm import fastdpm
from fastsample.samplers.shortcut import shortcut
from fastsample.samplers.unipc import unipc


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
