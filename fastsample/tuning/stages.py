"""Runs the stages of tuning: known samplers, fitted rows, searched times, gradient steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.samplers.compile import compile_plan, grid_levels
from fastsample.tuning.baselines import solver_plans
from fastsample.tuning.polish import polish_rows
from fastsample.tuning.regression import FittedRun, Objective, distance, fit_rows
from fastsample.tuning.report import Stage
from fastsample.tuning.search import nearest_positions, search_times
from fastsample.tuning.teacher import Teacher

Entry: TypeAlias = tuple[Stage, Plan]
"""Pairs a plan with the errors of the stage that made it."""

_Start: TypeAlias = tuple[float, str, tuple[int, ...]]  # error, name of the grid, positions

_NUM_FINALISTS = 3
_RUN_FRACTIONS = (0.7, 0.3)  # shares of the candidates for the searches from the best two grids
_HUBER = 3.0  # The scale of "robust" is this times the median error of a known sampler.


class Stages:
    """Runs the stages of tuning for one number of steps against one teacher.

    Args:
        teacher: the fine run.
        grids: the starting grids by name.
        objective: how the errors of samples are summed.
        features: computes what results are compared by; None compares the samples themselves.
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
        split = self.split = teacher.split
        self.calibration, self.held_out = split.calibration, split.held_out
        self.searched = split.searched
        self.scale: float | None = None
        self.runs = 0

    @property
    def calls(self) -> int:
        """Return the number of samples in all network calls of all processes."""
        return int(self.split.sum(torch.tensor([float(self.runner.calls)], device="cpu"))[0])

    # ---- known samplers ----

    def known_samplers(self, methods: Sequence[str]) -> list[Entry]:
        """Return the best known samplers on the starting grids, best first."""
        denoiser = self.runner.denoiser
        plans = [
            (f"{plan.method} on {name}", plan)
            for name, grid in self.grids.items()
            for plan in solver_plans(denoiser, grid, methods, self.clip)
        ]
        ranking = self.split.ranking
        if self.objective == "robust":
            self._set_scale(plans[0][1])
        plans.sort(key=lambda entry: self._error(self._run_plan(entry[1], ranking), ranking))
        entries = [
            (Stage(label, None, self._error(self._run_plan(plan, self.held_out))), plan)
            for label, plan in plans[:_NUM_FINALISTS]
        ]
        entries = [entry for entry in entries if math.isfinite(entry[0].validation)]
        if not entries:
            raise ValueError(
                "tune: the model's output must be finite, got NaN or infinity in every known "
                "sampler, but not in the fine run"
            )
        return sorted(entries, key=lambda entry: entry[0].validation)

    # ---- rows and times ----

    def fitted_rows(self, max_runs: int) -> list[Entry]:
        """Fit coefficients on the best starting grid, and on times searched from the best two."""
        starts: list[_Start] = []
        for name, grid in self.grids.items():
            positions = nearest_positions(self.teacher.times, grid.times[:-1])
            error = math.inf if positions is None else self._fit(positions, None)[1]
            if positions is not None and math.isfinite(error):
                starts.append((error, name, positions))
        starts.sort()
        entries: list[Entry] = []
        for fraction, (_, name, positions) in zip(_RUN_FRACTIONS, starts, strict=False):
            if not entries:
                entries.append(self._final_fit(positions, f"fitted rows on {name}"))
            last = self.runs + max(1, int(fraction * max_runs))

            def has_budget(last: int = last) -> bool:
                return self.runs < last

            result = search_times(
                self._fit, positions, len(self.teacher.times), has_budget=has_budget
            )
            label = f"fitted rows, times searched from {name}"
            entries.append(self._final_fit(result.best.positions, label))
        return entries

    def searched_sampler(
        self, plan: Plan, make: Callable[[Grid], Plan], max_runs: int
    ) -> list[Entry]:
        """Search times for a known sampler with its own coefficients; empty with too few times.

        Args:
            plan: the sampler on its starting grid.
            make: makes the sampler's plan on another grid.
            max_runs: number of candidates.
        """
        start = nearest_positions(self.teacher.times, plan.times)
        if start is None:
            return []

        def run(positions: tuple[int, ...], _: FittedRun | None) -> tuple[FittedRun, float]:
            result = self._run_plan(make(self._grid(positions)), self.searched)
            self.runs += 1
            self.tick()
            return FittedRun(positions, [result], [], []), self._error(result, self.searched)

        last = self.runs + max_runs
        result = search_times(
            run, start, len(self.teacher.times), has_budget=lambda: self.runs < last
        )
        best = make(self._grid(result.best.positions))
        stage = Stage(
            f"{plan.method}, times searched",
            result.error,
            self._error(self._run_plan(best, self.held_out)),
        )
        return [(stage, best)]

    def polished(self, entry: Entry, iterations: int) -> Entry:
        """Improve an entry's step coefficients by gradients, and return the new entry."""
        stage, plan = entry
        better = polish_rows(self.teacher, plan, self.calibration, iterations)
        held_out = self._run_plan(better, self.held_out)
        calibration = self._run_plan(better, self.calibration)
        name = f"{stage.name}, gradients"
        errors = self._error(calibration, self.calibration), self._error(held_out)
        return Stage(name, *errors), better

    def _fit(
        self, positions: tuple[int, ...], previous: FittedRun | None
    ) -> tuple[FittedRun, float]:
        """Fit step coefficients on a candidate's times, and return the run and its error."""
        robust = self.objective == "robust"
        fitted = fit_rows(self.teacher, positions, self.searched, previous=previous, robust=robust)
        self.runs += 1
        self.tick()
        return fitted, self._error(fitted.result, self.searched)

    def _final_fit(self, positions: tuple[int, ...], label: str) -> Entry:
        """Fit step coefficients to all calibration samples, and judge them on held-out ones."""
        robust = self.objective == "robust"
        fitted = fit_rows(self.teacher, positions, self.calibration, robust=robust)
        plan = self._plan(positions, fitted.coefficients)
        error = self._error(self._run_plan(plan, self.held_out))
        return Stage(label, self._error(fitted.result, self.calibration), error), plan

    def _plan(self, positions: tuple[int, ...], coefficients: Sequence[Tensor]) -> Plan:
        """Make a plan of fitted step coefficients."""
        denoiser = self.runner.denoiser
        columns: FloatArray = np.zeros((4, len(positions)))
        for row, values in enumerate(coefficients):
            columns[: len(values), row] = values.numpy()
        return compile_plan(
            "tune",
            denoiser.schedule,
            grid_levels("tune", denoiser.schedule, self._grid(positions)),
            prediction=denoiser.prediction,
            clip=self.clip,
            method="tuned",
            check="none",
            a=columns[0],
            b=columns[1],
            c1=columns[2],
            c2=columns[3],
        )

    def _grid(self, positions: tuple[int, ...]) -> Grid:
        """Return the grid of the teacher's times at these positions."""
        return Grid(np.append(self.teacher.times[list(positions)], 0.0))

    # ---- errors ----

    def _run_plan(self, plan: Plan, samples: slice) -> Tensor:
        """Return the results of any deterministic plan on some samples."""
        return self.runner.run(plan, self.teacher.start[samples], samples.start)

    def _error(self, result: Tensor, samples: slice | None = None) -> float:
        """Return the error of a result on some samples, by default the held-out ones."""
        target = self.teacher.result[self.held_out if samples is None else samples]
        return distance(*self._features(result, target), self.objective, self.split, self.scale)

    def _features(self, result: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features `(n, ...)` by which two results are compared."""
        if self.features is None:
            return result, target
        both: tuple[Any, Any] = self.features(result), self.features(target)
        for output in both:
            if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != len(result):
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(
                    f"tune: features must give a tensor ({len(result)}, ...), got {got}"
                )
        return both

    def _set_scale(self, plan: Plan) -> None:
        """Set the scale of the pseudo-Huber loss by the errors of a known sampler."""
        searched = self.split.searched
        result = self._run_plan(plan, searched)
        result, target = self._features(result, self.teacher.result[searched])
        errors = (result - target).double().flatten(1).square().mean(1).sqrt()
        self.scale = _HUBER * self.split.median(errors, searched) or None
