"""Makes the sampler plan that an iteration of the fidelity loss runs, fixed or drawn anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.sampling.resolve import PlanRequest, Steps, resolve
from fastsample.training.fidelity.names import Start
from fastsample.training.randomness import RandomStreams

# What "auto" means for a model without tuned plans. Gradients that end at a row need rows that read
# no earlier x0, and a chain may have a single row.
_DEFAULT_METHOD = "ddim"


@dataclass(frozen=True, eq=False)
class ChainPlans:
    """Makes the sampler plan of every iteration.

    Attributes:
        steps: number of steps K, several numbers to draw from, times, or a plan.
        method: the sampler, as for `fastsample.sample`.
        grid: how times are spread, as for `fastsample.sample`; "random" draws them anew in every
            iteration.
        clip: range of x0; "auto" is the model's.
        knobs: options of the method.
        start: with "noised", a chain begins at one of its plan's later times, drawn anew in every
            iteration.
        min_rows: rows that a "noised" chain has at least. Chains that must differ need two, since
            the last row adds no noise.
    """

    steps: Steps
    method: str
    grid: str
    clip: Any
    knobs: Mapping[str, Any]
    start: Start
    min_rows: int = 1

    def plan_for(self, denoiser: Denoiser, streams: RandomStreams) -> Plan:
        """Return the plan of one iteration."""
        choices = self._step_choices()
        steps = choices[int(streams.generator("chain length").integers(len(choices)))]
        plan = self._resolve(denoiser, steps, self.grid, streams)
        if self.start != "noised":
            return plan
        self._check_length(plan)
        first = int(streams.generator("chain start").integers(1, len(plan) - self.min_rows + 1))
        rest = Grid(plan.nodes[first:])
        order: Any = self.knobs.get("order")
        # A multistep method has no earlier steps where the chain begins: few rows limit its order.
        fitting = {} if order is None else {"order": min(order, len(rest))}
        return self._resolve(denoiser, rest, "auto", streams, **fitting)

    def fixed_plans(self, denoiser: Denoiser) -> list[Plan]:
        """Return the deterministic plans that are the same in every iteration.

        A model that was trained for them should be sampled with them.
        """
        if self.grid == "random" or self.start == "noised":
            return []
        return [plan for plan in self.check(denoiser) if not plan.is_stochastic]

    def check(self, denoiser: Denoiser) -> list[Plan]:
        """Make one plan for each number of steps (random times are drawn once), as a check.

        Raises:
            ValueError: the model cannot run one of the plans.
        """
        streams = RandomStreams(0, 0)
        plans = [self._resolve(denoiser, k, self.grid, streams) for k in self._step_choices()]
        if self.start == "noised":
            self._check_length(min(plans, key=len))
        return plans

    def _step_choices(self) -> Sequence[Any]:
        """Return the numbers of steps to draw from; times or a plan are a single choice."""
        steps: Any = self.steps
        if isinstance(steps, (Plan, Grid)) or np.ndim(steps) == 0 or len(steps) == 0:
            return [steps]
        values = np.asarray(steps)
        # A list of rising positive integers holds numbers of steps; times fall.
        numbers = values.dtype.kind in "iu" and values.ndim == 1 and values[0] > 0
        return values.tolist() if numbers and np.all(values[1:] > values[:-1]) else [steps]

    def _check_length(self, plan: Plan) -> None:
        """Raise ValueError for a plan with too few rows to begin at a later time."""
        if len(plan) <= self.min_rows:
            several = " and several chains" if self.min_rows > 1 else ""
            raise ValueError(
                f'FidelityLoss: steps must be at least {self.min_rows + 1} with start="noised"'
                f"{several}, got {len(plan)}"
            )

    def _resolve(
        self, denoiser: Denoiser, steps: Any, grid: str, streams: RandomStreams, **knobs: Any
    ) -> Plan:
        request = PlanRequest(
            steps,
            self.method,
            grid,
            self.clip,
            {**self.knobs, **knobs},
            streams.key("chain times") if grid == "random" else None,
            default=_DEFAULT_METHOD,
        )
        return resolve("FidelityLoss", denoiser, request).plan
