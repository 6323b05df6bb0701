"""Improves a plan's coefficients by gradients of its error, through the whole sampler run."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastsample._support.distributed import process
from fastsample.plans.plan import Plan
from fastsample.plans.rows import COLUMNS
from fastsample.tuning.regression import HISTORY
from fastsample.tuning.teacher import Teacher

_TRAINED = [COLUMNS.index(name) for name in ("a", "b", "c1", "c2")]
_BATCH = 64  # samples per gradient
_LEARNING_RATE = 2e-3  # Adam's learning rate is relative to the size of a coefficient.
_MIN_SIZE = 0.05  # Smaller coefficients get the learning rate of one of this size.


def polish_rows(teacher: Teacher, plan: Plan, samples: slice, iterations: int) -> Plan:
    """Return the plan after Adam has reduced its mean square difference from the teacher.

    Runs the sampler's own loop. Holds the network's activations of a whole run for a batch of 64
    samples.

    Args:
        teacher: the run whose results are the target.
        plan: the plan to start from, on the teacher's times.
        samples: local positions of the samples, from which batches are taken in turn.
        iterations: number of iterations; the learning rate falls to 0 over them.
    """
    plan = teacher.runner.with_guidance(plan)
    mask = _trained_mask(plan, teacher.clips)
    with torch.inference_mode(False), torch.enable_grad():
        base = torch.tensor(plan.rows, device="cpu")
        scale = base[:, _TRAINED].abs().clamp(min=_MIN_SIZE) * mask
        shift = torch.zeros_like(scale, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=_LEARNING_RATE, betas=(0.9, 0.99))
        world = process()[1]
        # Each process takes its share of the 64 samples, so that all together make one batch.
        size = max(_BATCH // world, 1)
        batches = max((samples.stop - samples.start) // size, 1)
        for iteration in range(iterations):
            optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1.0 - iteration / iterations)
            first = samples.start + iteration % batches * size
            part = slice(first, min(first + size, samples.stop))
            rows = base.clone()
            rows[:, _TRAINED] = base[:, _TRAINED] + scale * shift
            table = rows.to(teacher.start.device)
            start = teacher.start[part].clone()
            result = teacher.runner.run(plan, start, first, rows=table, history=HISTORY)
            difference = result - teacher.result[part].clone()
            (gradient,) = torch.autograd.grad(difference.square().mean(), shift)
            shift.grad = teacher.split.sum(gradient / world).to(shift)
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        rows = base.clone()
        rows[:, _TRAINED] = base[:, _TRAINED] + scale * shift.detach()
    return replace(plan, rows=rows.numpy(), check="none", provenance=None)


def _trained_mask(plan: Plan, clips: bool) -> Tensor:
    """Return `(K, 4)` with 1 for coefficients that may change, else 0.

    The first rows have no earlier x0 to read; with a clip range the last row returns x0 itself.
    """
    mask = torch.ones(len(plan), len(_TRAINED), dtype=torch.float64, device="cpu")
    mask[0, 2:] = 0.0
    mask[1:2, 3] = 0.0
    if clips:
        mask[-1] = 0.0
    return mask
