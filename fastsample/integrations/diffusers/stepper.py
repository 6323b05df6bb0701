"""Executes the steps of a pipeline's run one by one, and keeps what later steps look back at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsample import ops
from fastsample.integrations.diffusers.buffers import Buffers
from fastsample.integrations.diffusers.run import DeviceRows, Run
from fastsample.ops.dtypes import history_dtype
from fastsample.plans.rows import HISTORY
from fastsample.sampling.guidance import dynamic_threshold
from fastsample.sampling.noise import Identity

MakeNoise = Callable[[], Tensor]


class Stepper:
    """The steps of one run at a time; every thread of a scheduler has its own.

    A run begins with the first step, and whenever a step is not the one that follows. Multistep
    samplers then do not look back.

    Attributes:
        run: the run of the last step; None before the first.
        next: the number of the timestep that follows; None before the first step.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self.next: int | None = None
        self._begin = 0
        self._rows: DeviceRows | None = None
        self._steps: ops.DirectSteps | None = None
        self._layout: Any = None
        self._identity: Identity | None = None
        self._spare: list[Tensor] = []
        self._x0s: dict[int, Tensor] = {}  # by buffer, in steps that autograd follows
        self._buffers = Buffers()

    def step(
        self,
        run: Run,
        k: int,
        output: Tensor,
        x: Tensor,
        *,
        eta: float | None = None,
        rederive: bool | None = None,
        identity: Identity | None = None,
        make_noise: MakeNoise | None = None,
    ) -> Tensor:
        """Return the samples after a timestep's rows.

        Args:
            run: the run.
            k: the number of the timestep.
            output: the network's output in the dtype of `x`, of its shape or with twice its
                channels, of which the second half is a learned variance.
            x: the samples `(B, *shape)`.
            eta: DDIM's eta; None is the run's.
            rederive: whether DDIM takes epsilon from the clipped x0; None is the run's.
            identity: seeds and sample indices, for the package's own noise.
            make_noise: returns the noise of a row otherwise.
        """
        if run is not self.run or k != self.next:
            self.run, self._begin = run, k if run.looks_back else 0
            self._layout, self._x0s = None, {}
        rows = run.rows(self._begin, eta, rederive, x.device)
        network_output, threshold = output, run.threshold
        if threshold is not None:
            output = _thresholded(output, x, rows.terms[rows.groups[k][0]], threshold)
        direct = not _needs_gradient(x, output) and ops.is_plain(x, output)
        if direct and ops.DirectSteps.can_run(x, plain=True):
            x = self._directly(rows, k, output, x, identity, make_noise)
        else:
            x = self._functionally(rows, k, output, x, identity, make_noise)
        if threshold is not None:
            weight = rows.output_weights[rows.groups[k][0]]
            if weight:
                x = x + weight * network_output[:, : x.shape[1]]
        self.next = k + 1
        return x

    def _directly(
        self,
        rows: DeviceRows,
        k: int,
        output: Tensor,
        x: Tensor,
        identity: Identity | None,
        make_noise: MakeNoise | None,
    ) -> Tensor:
        """Call the kernels without torch's dispatcher."""
        layout = (x.shape, x.dtype, x.device, x.stride())
        steps = self._steps
        same = rows is self._rows and layout == self._layout and identity is self._identity
        if steps is None or not same:
            steps = self._new_steps(rows, x, identity)
        for row in rows.groups[k]:
            noise = None
            if identity is None and make_noise is not None and rows.deviations[row] > 0.0:
                noise = make_noise()
            target = self._buffers.empty_like(x)
            steps.move(x, target)
            steps.step(row, output, noise=noise)
            x = target
        steps.release()
        self._layout = layout
        return x

    def _new_steps(self, rows: DeviceRows, x: Tensor, identity: Identity | None) -> ops.DirectSteps:
        """Return the kernel's arguments for samples like `x`, with the x0 estimates so far."""
        earlier = self._estimates()
        seeds, index = identity or (None, None)
        tables = (rows.table, rows.numbers_flat, rows.slots)
        steps = ops.DirectSteps(x, *tables, seeds, index, spare=self._spare)
        for slot, x0 in earlier.items():
            if x0 is not steps.history[slot] and x0.shape == x.shape:
                steps.history[slot].copy_(x0)
        self._steps, self._rows, self._identity, self._x0s = steps, rows, identity, {}
        return steps

    def _estimates(self) -> dict[int, Tensor]:
        """Return the x0 estimates that later rows read, by buffer."""
        if self._x0s or self._layout is None or self._steps is None:
            return self._x0s
        return dict(enumerate(self._steps.history))

    def _functionally(
        self,
        rows: DeviceRows,
        k: int,
        output: Tensor,
        x: Tensor,
        identity: Identity | None,
        make_noise: MakeNoise | None,
    ) -> Tensor:
        """Call the operators, which autograd and torch.compile can follow."""
        x0s = dict(self._estimates())
        seeds, index = identity or (None, None)
        for row in rows.groups[k]:
            noise = None
            if identity is None and make_noise is not None and rows.deviations[row] > 0.0:
                noise = make_noise()
            operands: dict[str, Tensor | None] = {
                name: x0s.get(slot)
                for name, slot in zip(_NAMES, rows.slots.reads[row], strict=True)
            }
            operands |= {"seeds": seeds, "index": index, "noise": noise}
            if rows.slots.writes[row] >= 0:
                x, x0s[rows.slots.writes[row]] = ops.step_x0(
                    x, output, rows.table, rows.numbers[row], **operands
                )
            else:
                x = ops.step(x, output, rows.table, rows.numbers[row], **operands)
        self._x0s, self._steps, self._layout = x0s, None, None
        return x


_NAMES = tuple(f"h{n + 1}" for n in range(len(HISTORY)))


def x0_of(
    output: Tensor,
    x: Tensor,
    terms: tuple[float, float, float, float],
    threshold: tuple[float, float] | None = None,
) -> Tensor:
    """Return the x0 estimate of a step, in float32 or float64.

    Args:
        output: the network's output, perhaps with a learned variance.
        x: the samples before the step.
        terms: (p, q, lo, hi) of the row.
        threshold: (quantile, largest bound) of dynamic thresholding, which replaces the clipping.
    """
    p, q, low, high = terms
    dtype = history_dtype(x)
    x0 = p * x.to(dtype) + q * output[:, : x.shape[1]].to(dtype)
    if threshold is not None:
        return dynamic_threshold(x0, 1.0, *threshold)
    return x0 if low == -high == float("-inf") else x0.clamp(low, high)


def _thresholded(
    output: Tensor,
    x: Tensor,
    terms: tuple[float, float, float, float],
    threshold: tuple[float, float],
) -> Tensor:
    """Return the thresholded x0 in place of the prediction, with the learned variance behind it."""
    x0 = x0_of(output, x, terms, threshold).to(output.dtype)
    channels = x.shape[1]
    return x0 if output.shape[1] == channels else torch.cat((x0, output[:, channels:]), dim=1)


def _needs_gradient(x: Tensor, output: Tensor) -> bool:
    """Return whether autograd is to follow the step."""
    return torch.is_grad_enabled() and (x.requires_grad or output.requires_grad)
