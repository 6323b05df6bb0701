"""The stages of tuning: known samplers, fitted rows, chosen times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.samplers.compile import compile_plan
from fastsample.tuning.baselines import solver_plans
from fastsample.tuning.polish import polished
from fastsample.tuning.regression import (
    Fitted,
    Objective,
    distance,
    fit_rows,
)
from fastsample.tuning.report import Stage
from fastsample.tuning.search import nearest_positions, search_times
from fastsample.tuning.teacher import Teacher

Entry: TypeAlias = tuple[Stage, Plan]

Start: TypeAlias = tuple[float, str, tuple[int, ...]]  # error, name, positions

_FINALISTS = 3
_SHARES = (0.7, 0.3)  # of the candidates, for the best two starts
_HUBER = 3.0  # robust: in medians of a known sampler's errors


class Stages:
    """Tuning of one number of steps against one teacher.

    Args:
        teacher: the fine run.
        grids: where to start, by name.
        objective: how samples count.
        features: what results are compared by; None is themselves.
        tick: called after every run.
    """

    def __init__(
        self,
        teacher: Teacher,
        grids: Mapping[str, Grid],
        *,
        objective: Objective,
        features: Callable[[Tensor], Tensor] | None = None,
        tick: Callable[[], object],
    ) -> None:
        self.teacher, self.runner, self.grids = teacher, teacher.runner, grids
        self.clip, self.tick, self.features = teacher.runner.clip, tick, features
        self.objective: Objective = objective
        shares = self.shares = teacher.shares
        self.calibration, self.held_out = shares.calibration, shares.held_out
        self.searched = shares.searched
        self.scale: float | None = None
        self.runs = 0

    @property
    def calls(self) -> int:
        """Samples that the networks of all processes have seen."""
        return int(self.shares.sum(torch.tensor([float(self.runner.calls)]))[0])

    # ---- known samplers ----

    def known(self, methods: Sequence[str]) -> list[Entry]:
        """The best of the known samplers on the starting grids, best first."""
        denoiser = self.runner.denoiser
        plans = [
            (f"{plan.method} on {name}", plan)
            for name, grid in self.grids.items()
            for plan in solver_plans(denoiser, grid, methods, self.clip)
        ]
        few = self.shares.ranking
        if self.objective == "robust":
            self._set_scale(plans[0][1])
        plans.sort(key=lambda entry: self._error(self._run_plan(entry[1], few), few))
        found = [
            (Stage(label, None, self._error(self._run_plan(plan, self.held_out))), plan)
            for label, plan in plans[:_FINALISTS]
        ]
        found = [entry for entry in found if math.isfinite(entry[0].validation)]
        if not found:
            raise ValueError(
                "tune: the model's output must be finite, got NaN or infinity in every known "
                "sampler, but not in the fine run"
            )
        return sorted(found, key=lambda entry: entry[0].validation)

    # ---- rows and times ----

    def fitted(self, max_runs: int) -> list[Entry]:
        """Rows fitted on the best two starting grids, and on the times found from there."""
        starts: list[Start] = []
        for name, grid in self.grids.items():
            chosen = nearest_positions(self.teacher.times, grid.times[:-1])
            error = math.inf if chosen is None else self._fit(chosen, None)[1]
            if chosen is not None and math.isfinite(error):
                starts.append((error, name, chosen))
        starts.sort()
        entries: list[Entry] = []
        for share, (_, name, chosen) in zip(_SHARES, starts, strict=False):
            if not entries:
                entries.append(self._finished(chosen, f"fitted rows on {name}"))
            last = self.runs + max(1, int(share * max_runs))
            found = search_times(
                self._fit,
                chosen,
                len(self.teacher.times),
                more=lambda last=last: self.runs < last,
            )
            label = f"fitted rows, times searched from {name}"
            entries.append(self._finished(found.fitted.chosen, label))
        return entries

    def moved(self, plan: Plan, make: Callable[[Grid], Plan], max_runs: int) -> list[Entry]:
        """Times searched for a known sampler, with its own rows."""
        chosen = nearest_positions(self.teacher.times, plan.times)
        if chosen is None:
            return []

        def run(chosen: tuple[int, ...], _known: Fitted | None) -> tuple[Fitted, float]:
            result = self._run_plan(make(self._grid(chosen)), self.searched)
            self.runs += 1
            self.tick()
            return Fitted(chosen, [result], [], []), self._error(result, self.searched)

        last = self.runs + max_runs
        found = search_times(run, chosen, len(self.teacher.times), more=lambda: self.runs < last)
        best = make(self._grid(found.fitted.chosen))
        stage = Stage(
            f"{plan.method}, times searched",
            found.error,
            self._error(self._run_plan(best, self.held_out)),
        )
        return [(stage, best)]

    def polished(self, entry: Entry, iterations: int) -> Entry:
        """An entry after gradient steps on its rows."""
        stage, plan = entry
        better = polished(self.teacher, plan, self.calibration, iterations)
        result = self._run_plan(better, self.held_out)
        again = self._run_plan(better, self.calibration)
        name = f"{stage.name}, gradients"
        found = Stage(name, self._error(again, self.calibration), self._error(result))
        return found, better

    def _fit(self, chosen: tuple[int, ...], known: Fitted | None) -> tuple[Fitted, float]:
        robust = self.objective == "robust"
        fitted = fit_rows(self.teacher, chosen, self.searched, known=known, robust=robust)
        self.runs += 1
        self.tick()
        return fitted, self._error(fitted.result, self.searched)

    def _finished(self, chosen: tuple[int, ...], label: str) -> Entry:
        """Rows fitted to all calibration samples, judged on the others."""
        robust = self.objective == "robust"
        fitted = fit_rows(self.teacher, chosen, self.calibration, robust=robust)
        plan = self._plan(chosen, fitted.coefficients)
        error = self._error(self._run_plan(plan, self.held_out))
        return Stage(label, self._error(fitted.result, self.calibration), error), plan

    def _plan(self, chosen: tuple[int, ...], coefficients: Sequence[Tensor]) -> Plan:
        denoiser = self.runner.denoiser
        table = np.zeros((len(chosen), 4))
        for row, values in zip(table, coefficients, strict=True):
            row[: len(values)] = values.numpy()
        a, b, c1, c2 = table.T
        return compile_plan(
            "tune",
            denoiser.schedule,
            self._grid(chosen).times,
            prediction=denoiser.prediction,
            clip=self.clip,
            method="tuned",
            check="none",
            a=a,
            b=b,
            c1=c1,
            c2=c2,
        )

    def _grid(self, chosen: tuple[int, ...]) -> Grid:
        return Grid(np.append(self.teacher.times[list(chosen)], 0.0))

    # ---- errors ----

    def _run_plan(self, plan: Plan, samples: slice) -> Tensor:
        """Result of any deterministic plan."""
        return self.runner.run(plan, self.teacher.start[samples], samples.start)

    def _error(self, result: Tensor, samples: slice | None = None) -> float:
        wanted = self.teacher.result[self.held_out if samples is None else samples]
        return distance(*self._seen(result, wanted), self.objective, self.shares, self.scale)

    def _seen(self, result: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Both as they are compared."""
        if self.features is None:
            return result, wanted
        both = self.features(result), self.features(wanted)
        for found in both:
            if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != len(result):
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"tune: features must give a tensor ({len(result)}, ...), got {got}"
                )
        return both

    def _set_scale(self, plan: Plan) -> None:
        few = self.shares.searched
        result, wanted = self._seen(self._run_plan(plan, few), self.teacher.result[few])
        difference = result - wanted
        each = difference.double().flatten(1).square().mean(1).sqrt()
        self.scale = _HUBER * self.shares.median(each, few) or None
