"""Published lists of sampling times for well-known models, compiled to plans.

It is public as `fs.plans.load` and `fs.plans.published`, and lies here because a plan needs a
sampler. The lists are in published.json, each with its source and licence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from fastsample._support.checks import FloatArray, check_integer
from fastsample.grids.grid import Grid
from fastsample.grids.sigmas import from_sigmas, sigmas_of
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip, Prediction
from fastsample.samplers.registry import METHODS, check_method
from fastsample.schedules.schedule import NoiseSchedule

_DATA = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class _List:
    """A published list of K times and the level below them, which only interpolation uses.

    Attributes:
        model: the model that it was made for.
        indices: `(K + 1,)` 0-based timesteps, or None.
        sigmas: `(K + 1,)` sigmas in the convention of the schedule, where there are no indices.
        schedule: the noise schedule of the model.
        prediction: what the model predicts.
        method: the name of the sampler that the authors made the list for, or the nearest one.
        source: publication and address.
        licence: what is known of the licence of the numbers.
    """

    model: str
    schedule: NoiseSchedule
    prediction: Prediction
    method: str
    source: str
    licence: str
    indices: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None

    @property
    def steps(self) -> int:
        """The number K of network calls as published."""
        return len(self.indices or self.sigmas or ()) - 1

    def grid(self, schedule: NoiseSchedule, steps: int) -> Grid:
        """Return the times on a schedule, interpolated unless `steps` is the published number.

        The logarithm of sigma is interpolated linearly over the position in the list, as the
        authors of Align Your Steps do.
        """
        if self.indices is not None and steps == self.steps:
            return Grid.from_indices(self.indices[:-1])
        sigmas = self._sigmas(schedule)
        if steps != self.steps:
            position = np.linspace(0.0, 1.0, len(sigmas))
            sigmas = np.exp(np.interp(np.linspace(0.0, 1.0, steps + 1), position, np.log(sigmas)))
        return from_sigmas(schedule, np.append(sigmas[:-1], 0.0))

    def _sigmas(self, schedule: NoiseSchedule) -> FloatArray:
        """Return the sigmas `(K + 1,)`, those of the indices on the schedule if there are any."""
        if self.indices is None:
            return np.asarray(self.sigmas)
        return sigmas_of(*schedule.levels(np.asarray(self.indices) + 1.0), "ratio")


def published() -> dict[str, str]:
    """Return the names of the published lists, each with a line on what it is and where from."""
    return {
        name: f"{entry.model}, {entry.steps} steps, {entry.prediction}: {entry.source}"
        for name, entry in _lists().items()
    }


def load(
    name: str,
    steps: int | None = None,
    *,
    method: str = "auto",
    schedule: NoiseSchedule | None = None,
    prediction: Prediction | None = None,
    clip: Clip = None,
    **knobs: Any,
) -> Plan:
    """Compile the plan of a published list of times, for the model that it was made for.

    Only the times are published: the rows are those of `method` on them. The plan ends at data, as
    in diffusers; the published last level is where ``last=`` would end. Source and licence of the
    numbers are in the plan's `provenance`, which ``plan.describe()`` shows.

    Args:
        name: a key of `published`, such as "ays-sd15".
        steps: K, at least 1; None is the published number. Any other is interpolated, linearly in
            log sigma over the position in the list, and has times between the whole steps.
        method: a name of a sampler that takes times, such as "ddim" or "unipc"; "auto" is the one
            that the list was made for, or the nearest to it.
        schedule: the noise levels of your model if they are not those of the model named by the
            list, to the bit: a plan fits a `Denoiser` of the same schedule only. Lists of indices
            keep the indices, lists of sigmas the sigmas.
        prediction: the quantity that your network predicts; None is that of the model named.
        clip: bound on |x0| in data units, a pair (lo, hi), or None.
        **knobs: further keyword arguments of the method.

    Raises:
        TypeError: an argument of the wrong type, or a knob that no method takes.
        ValueError: an unknown name or method, a method that chooses its times, or a schedule that
            does not have the levels of the list.
    """
    function = "plans.load"
    lists = _lists()
    if not isinstance(name, str) or name not in lists:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{function}: name must be one of {list(lists)}, got {name!r}")
    entry = lists[name]
    count = entry.steps if steps is None else check_integer(function, "steps", steps, 1)
    sampler = check_method(function, entry.method if method == "auto" else method, knobs)
    if sampler.chooses_times:
        able = [key for key, value in METHODS.items() if not value.chooses_times]
        raise ValueError(
            f"{function}: method must be one of {able}, which take times, got {method!r}"
        )
    levels = entry.schedule if schedule is None else schedule
    if not isinstance(levels, NoiseSchedule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{function}: schedule must be a NoiseSchedule, got {schedule!r}")
    if entry.indices is not None and levels.num_steps != entry.schedule.num_steps:
        raise ValueError(
            f"{function}: schedule must have {entry.schedule.num_steps} whole steps for the "
            f'indices of "{name}", got {levels!r}'
        )
    if levels.kind != entry.schedule.kind and "flow" in (levels.kind, entry.schedule.kind):
        raise ValueError(
            f'{function}: schedule must be one like {entry.schedule!r} for the sigmas of "{name}", '
            f"got {levels!r}"
        )
    plan = sampler.make(
        levels,
        entry.grid(levels, count),
        prediction=entry.prediction if prediction is None else prediction,
        clip=clip,
        **knobs,
    )
    origin = {
        "published": name,
        "model": entry.model,
        "source": entry.source,
        "licence": entry.licence,
        "interpolated from steps": None if count == entry.steps else entry.steps,
    }
    return replace(plan, method=f"{plan.method} on {name}", provenance=origin)


@cache
def _lists() -> dict[str, _List]:
    """Return the lists of the data file by name."""
    data = cast("dict[str, dict[str, Any]]", json.loads(_DATA.read_text(encoding="utf-8")))
    return {
        name: _List(schedule=NoiseSchedule.from_dict(fields.pop("schedule")), **fields)
        for name, fields in data.items()
    }
