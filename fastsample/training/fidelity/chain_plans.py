"""Which chain an iteration of the fidelity loss runs: fixed, or drawn anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.sampling.resolve import Steps, Wanted, resolve
from fastsample.training.randomness import Draws


@dataclass(frozen=True, eq=False)
class ChainPlans:
    """The plans of a run of iterations.

    Attributes:
        steps: K, several to draw from, times, or a plan.
        method: as for `fastsample.sample`, as are the others.
        grid: "random" draws times anew.
        clip: range of x0.
        knobs: of the method.
        late: chains begin at one of the later times, drawn anew; "auto" is then DDIM.
        fewest: rows that a late chain has at least; noise needs two, since the last row adds none.
    """

    steps: Steps
    method: str
    grid: str
    clip: Any
    knobs: Mapping[str, Any]
    late: bool
    fewest: int = 1

    def of(self, denoiser: Denoiser, draws: Draws) -> Plan:
        """The plan of one iteration."""
        choice = self._choices()
        steps = choice[int(draws.generator("chain length").integers(len(choice)))]
        plan = self._made(denoiser, steps, self.grid, draws)
        if not self.late:
            return plan
        self._check_length(plan)
        first = int(draws.generator("chain start").integers(1, len(plan) - self.fewest + 1))
        rest = Grid(plan.nodes[first:])
        order: Any = self.knobs.get("order")
        # A multistep method begins anew there: few rows cannot be of high order.
        fitting = {} if order is None else {"order": min(order, len(rest))}
        return self._made(denoiser, rest, "auto", draws, **fitting)

    def fixed(self, denoiser: Denoiser) -> list[Plan]:
        """Deterministic plans that no iteration changes: what to sample with after training."""
        if self.grid == "random" or self.late:
            return []
        return [plan for plan in self.check(denoiser) if not plan.is_stochastic]

    def _choices(self) -> Sequence[Any]:
        """Numbers of steps to draw from, or whatever else was given."""
        steps: Any = self.steps
        if isinstance(steps, (Plan, Grid)) or np.ndim(steps) == 0 or len(steps) == 0:
            return [steps]
        values = np.asarray(steps)
        # Numbers of steps are whole and rise; times fall.
        numbers = values.dtype.kind in "iu" and values.ndim == 1 and values[0] > 0
        return values.tolist() if numbers and np.all(values[1:] > values[:-1]) else [steps]

    def check(self, denoiser: Denoiser) -> list[Plan]:
        """All plans but those that are drawn; ValueError for what the model cannot have."""
        plans = [self._made(denoiser, k, self.grid, Draws(0, 0)) for k in self._choices()]
        if self.late:
            self._check_length(min(plans, key=len))
        return plans

    def _check_length(self, plan: Plan) -> None:
        """Refuse a plan with too few rows for a late chain."""
        if len(plan) <= self.fewest:
            several = " and several chains" if self.fewest > 1 else ""
            raise ValueError(
                f'FidelityLoss: steps must be at least {self.fewest + 1} with start="noised"'
                f"{several}, got {len(plan)}"
            )

    def _made(self, denoiser: Denoiser, steps: Any, grid: str, draws: Draws, **knobs: Any) -> Plan:
        wanted = Wanted(
            steps,
            self.method,
            grid,
            self.clip,
            {**self.knobs, **knobs},
            draws.key("chain times"),
        )
        return resolve("FidelityLoss", denoiser, wanted).plan
