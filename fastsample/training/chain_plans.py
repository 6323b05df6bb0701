"""Which chain an iteration of the fidelity loss runs: fixed, or drawn anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastsample.arguments import Steps, make_plan
from fastsample.denoiser import Denoiser
from fastsample.grid import Grid
from fastsample.plan import Plan
from fastsample.training.draws import Draws


@dataclass(frozen=True, eq=False)
class ChainPlans:
    """The plans of a run of iterations.

    Attributes:
        steps: K, several to draw from, times, or a plan.
        method: as for `fastsample.sample`, as are the others.
        grid: "random" draws times anew.
        clip: range of x0.
        knobs: of the method.
        late: chains begin at one of the later times, drawn anew.
    """

    steps: Steps
    method: str
    grid: str
    clip: Any
    knobs: Mapping[str, Any]
    late: bool

    def of(self, denoiser: Denoiser, draws: Draws) -> Plan:
        """The plan of one iteration."""
        choice = self._choices()
        steps = choice[int(draws.generator("chain length").integers(len(choice)))]
        plan = self._made(denoiser, steps, self.grid, draws)
        if not self.late:
            return plan
        if len(plan) < 2:
            raise ValueError('FidelityLoss: steps must be at least 2 with start="noised", got 1')
        first = int(draws.generator("chain start").integers(1, len(plan)))
        rest = Grid(plan.nodes[first:])
        order: Any = self.knobs.get("order")
        # A multistep method begins anew there: few rows cannot be of high order.
        fitting = {} if order is None else {"order": min(order, len(rest))}
        return self._made(denoiser, rest, "auto", draws, **fitting)

    def fixed(self, denoiser: Denoiser) -> list[Plan]:
        """Deterministic plans that no iteration changes: what to sample with after training."""
        if self.grid == "random" or self.late:
            return []
        none = Draws(0, 0)
        plans = [self._made(denoiser, steps, self.grid, none) for steps in self._choices()]
        return [plan for plan in plans if not plan.is_stochastic]

    def _choices(self) -> Sequence[Any]:
        """Numbers of steps to draw from, or whatever else was given."""
        steps: Any = self.steps
        # Times end at 0, numbers of steps do not.
        numbers = isinstance(steps, Sequence) and all(isinstance(k, int) and k > 0 for k in steps)
        return list(dict.fromkeys(steps)) if numbers and len(steps) else [steps]

    def _made(self, denoiser: Denoiser, steps: Any, grid: str, draws: Draws, **knobs: Any) -> Plan:
        return make_plan(
            denoiser,
            steps,
            method=self.method,
            grid=grid,
            clip=self.clip,
            knobs={**self.knobs, **knobs},
            seed=draws.key("chain times"),
            function="FidelityLoss",
        )
