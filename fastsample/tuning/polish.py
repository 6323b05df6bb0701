"""Rows by gradients: the end error itself, through the whole run and the network."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastsample.plans.plan import Plan
from fastsample.plans.rows import COLUMNS
from fastsample.tuning.regression import HISTORY
from fastsample.tuning.teacher import Teacher

_FREE = [COLUMNS.index(name) for name in ("a", "b", "c1", "c2")]
_BATCH = 64  # samples of one gradient
_RATE = 2e-3  # of Adam, in shares of a coefficient
_LEAST = 0.05  # a coefficient near zero moves as one of this size


def polished(teacher: Teacher, plan: Plan, samples: slice, iterations: int) -> Plan:
    """The plan after some iterations of Adam on the mean square difference of the results.

    The loop is the sampler's own. The network's activations of a whole run are held for a batch of
    64 samples.

    Args:
        teacher: where the results should be.
        plan: where to start, on the teacher's times.
        samples: which of them, cycled through.
        iterations: of Adam, with a falling rate.
    """
    plan = teacher.runner.guided(plan)
    mask = _free(plan, teacher.clips)
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
            table = rows.to(teacher.start.device)
            start = teacher.start[part].clone()
            result = teacher.runner.run(plan, start, first, rows=table, history=HISTORY)
            difference = result - teacher.result[part].clone()
            (gradient,) = torch.autograd.grad(difference.square().mean(), shift)
            shift.grad = teacher.shares.sum(gradient).to(shift)
            optimizer.step()
        rows = base.clone()
        rows[:, _FREE] = base[:, _FREE] + scale * shift.detach()
    return replace(plan, rows=rows.numpy(), check="none", provenance=None)


def _free(plan: Plan, clips: bool) -> Tensor:
    """1 for coefficients that may move: no history before the start, none that leaves the range."""
    mask = torch.ones(len(plan), len(_FREE), dtype=torch.float64)
    mask[0, 2:] = 0.0
    mask[1:2, 3] = 0.0
    if clips:
        mask[-1] = 0.0
    return mask
