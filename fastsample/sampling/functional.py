"""Runs the rows of a plan as functions that autograd can follow and callbacks can keep."""

from __future__ import annotations

from torch import Tensor

from fastsample import ops
from fastsample.plans.rows import HISTORY
from fastsample.sampling.noise import Identity
from fastsample.sampling.program import Program


class FunctionalSteps:
    """Runs rows as differentiable functions that return new tensors, as `ops.DirectSteps` does not.

    Args:
        program: the plan.
        x: samples `(B, *shape)`.
        identity: seeds and indices for generated noise, or None.
        noise: explicit noise `(K', B, *shape)`, or None.
        rows: coefficients `(K', 15)` instead of the program's, or None.
        history: number of earlier x0 that are kept; None is what the plan needs.
        returns_x0: whether to compute `x0` in every row.
        in_place: whether rows that keep no x0 may overwrite `x`.

    Attributes:
        x: the samples after the last row.
        x0: the x0 estimate of the last row that called the network, if it was computed.
    """

    def __init__(
        self,
        program: Program,
        x: Tensor,
        identity: Identity | None,
        noise: Tensor | None,
        rows: Tensor | None,
        history: int | None,
        returns_x0: bool,
        in_place: bool,
    ) -> None:
        self.x = self.x0 = x
        self._program, self._noise = program, noise
        self._table = program.rows if rows is None else rows
        self._numbers = program.numbers.unbind()
        self._seeds, self._index = (None, None) if identity is None else identity
        self._length = program.plan.needs_history if history is None else history
        self._returns_x0, self._in_place = returns_x0, in_place
        self._x0s: dict[int, Tensor] = {}  # by the row that estimated them

    def step(self, k: int, output: Tensor, uncond: Tensor | None, guided: bool) -> None:
        """Run row k; `guided` says that `output` holds both halves, unconditional first."""
        if guided:
            uncond, output = output.chunk(2)
        earlier = [self._x0s[row] for row in self._program.sources[k][: self._length]]
        h1, h2, h3, h4 = (*earlier, *[None] * (len(HISTORY) - len(earlier)))
        operands = {
            "uncond": uncond,
            "seeds": self._seeds,
            "index": self._index,
            "noise": None if self._noise is None else self._noise[k],
            **{"h1": h1, "h2": h2, "h3": h3, "h4": h4},
        }
        calls = self._program.calls[k]
        x, number = self.x, self._numbers[k]
        if self._returns_x0 or (calls and self._length):
            self.x, x0 = ops.step_x0(x, output, self._table, number, **operands)
            if calls or k == 0:
                self.x0 = x0
            if calls:
                self._x0s[k] = x0
                self._x0s.pop(k - len(HISTORY), None)
        else:
            target = x if self._in_place else None
            self.x = ops.step(x, output, self._table, number, target=target, **operands)
