"""Runs a plan as a CUDA graph: network and kernel are captured once and replayed for every row.

A captured row depends on no number of the host: the coefficients, the row number, the timestep,
seeds and indices lie on the device, and the graph itself advances the row number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.ops.dtypes import history_dtype
from fastsample.plans.rows import HISTORY
from fastsample.sampling.batch import Batch
from fastsample.sampling.noise import Identity
from fastsample.sampling.program import Program

_WARMUP_CALLS = 2  # Libraries choose algorithms and allocate memory in these calls.


class Graphs:
    """The graphs of one sampler, by the shapes and dtypes that they were captured for.

    Args:
        function: the name that messages speak of.
    """

    def __init__(self, function: str) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._captured: dict[Any, _CapturedRow] = {}

    def run(
        self,
        program: Program,
        batch: Batch,
        x: Tensor,
        count_call: Callable[[], object] | None = None,
    ) -> Tensor:
        """Run every row of a plan on ``x (B, *shape)`` and return the result.

        As `fastsample.sampling.loop.run` without gradients, explicit noise or callbacks. The
        network must be capturable: fixed shapes and no synchronisation with the host. Under
        guidance every row that calls it takes 2 B samples. A graph holds the addresses of the
        weights: they may be changed in place, but not be replaced.

        Args:
            program: the plan on the device.
            batch: the model, the identity and the conditions.
            x: starting samples `(B, *shape)`.
            count_call: called after each network call is launched.

        Raises:
            ValueError: `x` is not on a CUDA device.
        """
        # The memory of a graph must not be inference tensors, which later calls could not write to.
        with torch.inference_mode(False), torch.no_grad():
            signature = batch.conditions.signature()
            seeds = None  # one seed for all samples, or one for each, where noise is drawn
            if batch.identity is not None and program.is_stochastic:
                seeds = batch.identity.seeds.shape[0]
            key = (id(program), tuple(x.shape), x.stride(), x.dtype, x.device, seeds, signature)
            with self._lock:  # captures of several threads would disturb one another
                captured = self._captured.get(key)
                if captured is None:
                    captured = _CapturedRow(self._function, program, batch, x)
                    self._captured[key] = captured
            return captured.run(x, batch.identity, batch.conditions, count_call)


class _CapturedRow:
    """A row of a plan, captured with memory of its own for everything that changes between runs."""

    def __init__(self, function: str, program: Program, batch: Batch, x: Tensor) -> None:
        self._program, self._lock = program, threading.Lock()
        self._x = x.clone()
        self._identity = None
        if batch.identity is not None and program.is_stochastic:
            self._identity = Identity(*(t.clone() for t in batch.identity))
        self._row = torch.zeros(1, dtype=torch.int64, device=x.device)
        self._history = [
            torch.zeros_like(x, dtype=history_dtype(x)) for _ in range(program.plan.needs_history)
        ]
        conditions = self._conditions = batch.conditions.cloned()
        pairs = x.shape[0] * (2 if conditions.guided else 1)
        denoiser = batch.denoiser
        seeds, index = self._identity or (None, None)
        h1, h2, h3, h4 = (*self._history, *[None] * (len(HISTORY) - len(self._history)))
        history = {"h1": h1, "h2": h2, "h3": h3, "h4": h4}
        self._operands = operands = {"seeds": seeds, "index": index, **history}

        def one_row() -> None:
            timestep = program.timesteps.index_select(0, self._row).expand(pairs)
            output = denoiser.at_timestep(
                conditions.doubled(self._x), timestep, conditions.arguments
            )
            conditional, unconditional = conditions.split(output)
            step = (self._x, conditional, program.rows, self._row)
            if self._history:
                x_next, x0 = ops.step_x0(*step, uncond=unconditional, **operands)
                self._x.copy_(x_next)
                for newer, older in zip(self._history[-2::-1], self._history[:0:-1], strict=True):
                    older.copy_(newer)
                self._history[0].copy_(x0)
            else:
                ops.step(*step, uncond=unconditional, target=self._x, **operands)
            self._row.add_(1)

        self._done = torch.cuda.Event() if x.is_cuda else None  # of the last run, on its stream
        self._replay = capture(function, one_row, self._row)

    def run(
        self,
        x: Tensor,
        identity: Identity | None,
        conditions: Conditions,
        count_call: Callable[[], object] | None,
    ) -> Tensor:
        """Run the plan from new samples, identities and conditions of the captured shapes."""
        program = self._program
        with self._lock:
            if self._done is not None:  # the last run may be on another stream
                torch.cuda.current_stream(x.device).wait_event(self._done)
            self._x.copy_(x)
            if self._identity is not None and identity is not None:
                self._identity.seeds.copy_(identity.seeds)
                self._identity.index.copy_(identity.index)
            self._conditions.copy_from(conditions)
            self._row.zero_()
            for earlier_x0 in self._history:
                earlier_x0.zero_()  # 0 times a NaN that a run before left would be NaN
            for calls in program.calls:
                if calls:
                    self._replay()
                    if count_call:
                        count_call()
                else:
                    step = (self._x, self._x, program.rows, self._row)
                    ops.step(*step, target=self._x, **self._operands)
                    self._row.add_(1)
            result = self._x.clone()
            if self._done is not None:
                self._done.record(torch.cuda.current_stream(x.device))
            return result


def capture(function: str, one_row: Callable[[], None], row: Tensor) -> Callable[[], object]:
    """Capture a function of the current device's memory as a CUDA graph; return its replay.

    Args:
        function: the caller's name, for messages.
        one_row: runs one row; called `_WARMUP_CALLS` times before the capture and once during it.
        row: the row number, set to 0 before every call.

    Raises:
        ValueError: the row number is not on a CUDA device.
    """
    if row.device.type != "cuda":
        raise ValueError(
            f"{function}: graph must be False on {row.device.type}, got True; CUDA graphs need a "
            "GPU"
        )
    with torch.cuda.device(row.device):
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(_WARMUP_CALLS):
                row.zero_()
                one_row()
        torch.cuda.current_stream().wait_stream(side_stream)
        row.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one_row()
    return graph.replay
