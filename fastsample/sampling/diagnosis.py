"""Makes the progress bar of a run, and finds the step at which a run became NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.plan import Plan
from fastsample.sampling.loop import Correct, run
from fastsample.sampling.noise import Identity


@contextmanager
def call_counter(
    total: int | None, name: str = "sampling", *, show: bool = True
) -> Generator[Callable[..., object] | None]:
    """Show a progress bar of network calls inside the ``with`` block.

    Yields:
        A function that adds a number of calls, by default one; None if `show` is false.
    """
    if not show:
        yield None
        return
    with tqdm(total=total, desc=name, unit="call") as bar:
        yield bar.update


def raise_first_bad_row(
    denoiser: Denoiser,
    plan: Plan,
    make_start: Callable[[], Tensor],
    identity: Identity | None,
    noise: Tensor | None,
    conditions: Conditions,
    correct: Correct | None = None,
    function: str = "sample",
) -> NoReturn:
    """Run a plan again, checking every row, and raise the error that names the first bad one.

    The first run does not check every row, because each check waits for the device.

    Args:
        denoiser: the model.
        plan: the plan whose result was not finite.
        make_start: makes the starting samples of the run again.
        identity: as for `run`.
        noise: as for `run`.
        conditions: as for `run`.
        correct: as for `run`.
        function: the caller's name, for messages.

    Raises:
        ValueError: always.
    """

    def watch(k: int, output: Tensor, x: Tensor) -> None:
        for label, tensor in (("the model's output", output), ("x", x)):
            if not torch.isfinite(tensor).all():
                raise ValueError(
                    f"{function}: {label} must be finite, got {_bad_value(tensor)} in row {k} of "
                    f"{len(plan)} (t = {plan.times[k]:g})"
                )

    start = make_start().detach().clone()
    if not torch.isfinite(start).all():
        argument = "x0" if function == "invert" else "start"
        raise ValueError(f"{function}: {argument} must be finite, got {_bad_value(start)}")
    with torch.no_grad():
        run(
            denoiser,
            plan,
            start,
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


def _bad_value(tensor: Tensor) -> str:
    """Return "NaN" if the tensor holds one, else "infinity"."""
    return "NaN" if torch.isnan(tensor).any() else "infinity"
