"""Rows by gradients: the end error itself, through the whole run and the network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample.plans.plan import Plan
from fastsample.plans.rows import COLUMNS
from fastsample.tuning.teacher import Teacher

_FREE = [COLUMNS.index(name) for name in ("a", "b", "c1", "c2")]
_BATCH = 64  # samples of one gradient
_RATE = 2e-3  # of Adam, in shares of a coefficient
_LEAST = 0.05  # a coefficient near zero moves as one of this size


def polished(teacher: Teacher, plan: Plan, samples: slice, iterations: int) -> Plan:
    """The plan after some iterations of Adam on the mean square difference of the results.

    The step and its gradient with respect to the rows are the fused kernels'; the network's
    activations of a whole run are held for a batch of 64 samples.

    Args:
        teacher: where the results should be.
        plan: where to start, on the teacher's times.
        samples: which of them, cycled through.
        iterations: of Adam, with a falling rate.
    """
    positions = [int(np.searchsorted(teacher.times, t)) for t in plan.times]
    mask = _free(plan, teacher.network.clips)
    with torch.inference_mode(False), torch.enable_grad():
        base = torch.tensor(plan.rows)
        scale = base[:, _FREE].abs().clamp(min=_LEAST) * mask
        shift = torch.zeros_like(scale, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=_RATE, betas=(0.9, 0.99))
        count = samples.stop - samples.start
        for iteration in range(iterations):
            optimizer.param_groups[0]["lr"] = _RATE * (1.0 - iteration / iterations)
            first = samples.start + iteration * _BATCH % max(count - _BATCH + 1, 1)
            part = slice(first, min(first + _BATCH, samples.stop))
            rows = base.clone()
            rows[:, _FREE] = base[:, _FREE] + scale * shift
            result = _run(teacher, positions, rows, part)
            difference = result - teacher.result[part].clone()
            (gradient,) = torch.autograd.grad(difference.square().mean(), shift)
            shift.grad = teacher.shares.sum(gradient).to(shift)
            optimizer.step()
        rows = base.clone()
        rows[:, _FREE] = base[:, _FREE] + scale * shift.detach()
    return Plan(
        plan.nodes,
        rows.numpy(),
        plan.alphas,
        plan.sigmas,
        plan.prediction,
        plan.method,
        "none",
        plan.schedule,
    )


def _free(plan: Plan, clips: bool) -> Tensor:
    """1 for coefficients that may move: no history before the start, none that leaves the range."""
    mask = torch.ones(len(plan), len(_FREE), dtype=torch.float64)
    mask[0, 2:] = 0.0
    mask[1:2, 3] = 0.0
    if clips:
        mask[-1] = 0.0
    return mask


def _run(teacher: Teacher, positions: list[int], rows: Tensor, part: slice) -> Tensor:
    network = teacher.network
    table = rows.to(network.denoiser.device)
    x = teacher.start[part].clone()
    h1 = h2 = torch.zeros_like(x)
    for number, k in enumerate(positions):
        m, u = network.output(x, k, part.start)
        m, u = (None if t is None else t.to(x.dtype) for t in (m, u))
        assert m is not None
        row = torch.tensor([number], device=x.device)
        x, x0 = ops.step_x0(x, m, table, row, uncond=u, h1=h1, h2=h2)
        h1, h2 = x0, h1
    return x
