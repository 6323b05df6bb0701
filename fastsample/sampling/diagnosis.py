"""What a run shows: a progress bar, and the name of the row that went wrong."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from fastsample.plans.plan import Plan
from fastsample.sampling.loop import run


def progress_bar(progress: bool, plan: Plan | None) -> tqdm:
    """A bar of network calls; without a plan their number is not known beforehand."""
    total = None if plan is None else len(plan)
    return tqdm(total=total, disable=not progress, desc="sampling", unit="call")


def name_bad_row(
    denoiser, plan, starting, identity, noise, conditions, correct=None, function="sample"
) -> None:
    """Run again, looking after every row, and raise the error that names the first bad one."""

    def watch(k: int, output: Tensor, x: Tensor) -> None:
        for label, tensor in (("the model's output", output), ("x", x)):
            if not torch.isfinite(tensor).all():
                found = "NaN" if torch.isnan(tensor).any() else "infinity"
                raise ValueError(
                    f"{function}: {label} must be finite, got {found} in row {k} of {len(plan)} "
                    f"(t = {plan.times[k]:g})"
                )

    first = starting().detach().clone()
    if not torch.isfinite(first).all():
        given = "start" if function == "sample" else "x0"
        found = "NaN" if torch.isnan(first).any() else "infinity"
        raise ValueError(f"{function}: {given} must be finite, got {found}")
    with torch.no_grad():
        run(
            denoiser,
            plan,
            first,
            identity=identity,
            noise=noise,
            conditions=conditions,
            watch=watch,
            correct=correct,
        )
    raise ValueError(
        f"{function}: samples must be finite, got NaN or infinity that a second run did not show; "
        "the model is not deterministic"
    )
