"""The registry of samplers: their names, functions and keyword arguments.

`sample(method=...)`, `fs.<name>`, the command line, the README's table, the starting points of
`tune`, the methods of comparisons and the tests all read it. To add a sampler, add a file beside
this one and an entry here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastsample.grids.registry import Family
from fastsample.plans.plan import Plan
from fastsample.samplers.ancestral import ancestral
from fastsample.samplers.ddim import ddim
from fastsample.samplers.dpm_solver import dpm_solver
from fastsample.samplers.fastdpm import fastdpm
from fastsample.samplers.restart import restart
from fastsample.samplers.shortcut import shortcut
from fastsample.samplers.unipc import unipc


@dataclass(frozen=True)
class Setting:
    """Values for the keyword arguments (knobs) of a sampler.

    Attributes:
        family: its name in comparisons; several settings may share one name.
        knobs: the values of the knobs that are not at their defaults.
    """

    family: str
    knobs: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Method:
    """A sampler and its keyword arguments, which are called knobs.

    Attributes:
        make: the sampler: ``(schedule, grid, **knobs) -> Plan``.
        summary: a description in a few words.
        source: its publication.
        order: the number of network outputs that its best settings combine in a step.
        deterministic: settings without noise that are worth trying for a model: `tune` starts from
            them and comparisons run them. Empty for a stochastic sampler.
        chooses_times: whether it takes a number of steps instead of a grid.
        grid: the name of the grid that ``grid="auto"`` means for a model without a profile, by
            measured errors; but see `grids.registry.auto_name`.
        family: whose lists of diffusers the grids "leading", "trailing" and "linspace" are.
    """

    make: Callable[..., Plan]
    summary: str
    source: str
    order: int = 1
    deterministic: tuple[Setting, ...] = ()
    chooses_times: bool = False
    grid: str = "uniform"
    family: Family = "ddim"

    @property
    def knobs(self) -> dict[str, Any]:
        """The sampler's keyword arguments and their defaults, without `clip` and `prediction`."""
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
        deterministic=(Setting("DDIM"),),
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
        order=3,
        deterministic=(
            Setting("DPM-Solver++ 2M", {"order": 2}),
            Setting("DPM-Solver++ 3M", {"order": 3}),
            Setting("DPM-Solver++ 3M", {"order": 3, "corrected": True}),
        ),
        grid="blended",
        family="multistep",
    ),
    "unipc": Method(
        unipc,
        "DPM-Solver++ with a corrector at no extra network call",
        "Zhao et al. 2023, arXiv:2302.04867",
        order=2,
        deterministic=(Setting("UniPC", {"order": 2}),),
        grid="blended",
        family="multistep",
    ),
    "restart": Method(
        restart,
        "noise added between deterministic rows, at `intervals` (t_min, t_max, repeats[, steps])",
        "Xu et al. 2023, arXiv:2306.14878",
    ),
}

DEFAULT_METHOD = "unipc"
"""The method that ``method="auto"`` means for a model without tuned plans, by measured errors.

Knobs that it does not take, and one other method does, select that method instead."""


def method_names() -> list[str]:
    """Return all names that a `method` argument accepts: "auto" and those of `METHODS`."""
    return ["auto", *METHODS]


def methods_with(knob: str) -> list[str]:
    """Return the names of the methods that take this keyword argument."""
    return [name for name, method in METHODS.items() if knob in method.knobs]


def method_for(function: str, knobs: Mapping[str, Any], default: str = DEFAULT_METHOD) -> str:
    """Return the name of the default method if it takes the knobs, else of the one that does.

    Raises:
        ValueError: knobs that several other methods take.
    """
    candidates = [name for name, method in METHODS.items() if knobs.keys() <= method.knobs.keys()]
    if default in candidates or not candidates:
        return default  # if no method takes them, `check_method` raises later
    if len(candidates) > 1:
        raise ValueError(
            f"{function}: method must be given with {sorted(knobs)}, which several methods take, "
            f'got "auto"; it may be one of {candidates}'
        )
    return candidates[0]


def check_method(function: str, name: object, knobs: Mapping[str, Any]) -> Method:
    """Return the method of this name; raise unless it takes all the keyword arguments `knobs`.

    Raises:
        TypeError: a knob that no method takes.
        ValueError: an unknown method, or a knob of another one.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"{function}: method must be one of {method_names()}, got {name!r}")
    for knob, value in knobs.items():
        takers = methods_with(knob)
        if not takers:
            known = sorted({k for method in METHODS.values() for k in method.knobs})
            raise TypeError(
                f"{function}: keyword arguments must be those of {function} or knobs of a method, "
                f"got {knob}={value!r:.80}; the knobs are {known}"
            )
        if name not in takers:
            accepted = list(METHODS[name].knobs)
            raise ValueError(
                f'{function}: {knob} must be left out with method="{name}", got {value!r}; '
                f"its knobs are {accepted or 'none'}"
            )
    return METHODS[name]


def table() -> str:
    """Return a Markdown table of the methods and their keyword arguments."""
    lines = ["| method | what it is | knobs and their defaults | source |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        knobs = ", ".join(f"`{knob}={_quoted(value)}`" for knob, value in method.knobs.items())
        lines.append(
            f'| `"{name}"`, `fs.{method.make.__name__}` | {method.summary} | {knobs or "none"} '
            f"| {method.source} |"
        )
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    """Return a default value as it is written in Python code."""
    return f'"{value}"' if isinstance(value, str) else str(value)
