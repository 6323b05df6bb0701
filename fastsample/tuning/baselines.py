"""Lists the known deterministic samplers and time grids that tuning starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.grids.registry import GRIDS
from fastsample.planning.multistep_path import MOST_TIMES
from fastsample.plans.plan import Plan
from fastsample.samplers.registry import METHODS

_SPACINGS = ("uniform", "blended", "quadratic", "log_snr", "karras", "leading")


def starting_grids(denoiser: Denoiser, steps: int) -> dict[str, Grid]:
    """Return distinct grids of `steps` times by name, from the profile and from known spacings."""
    grids: dict[str, Grid] = {}
    profile = denoiser.profile
    if profile is not None:
        best = profile.best_grid(steps)
        if best is not None:
            grids["auto"] = best
        if profile.trajectories and len(profile.times) <= MOST_TIMES:
            second_order = profile.best_grid(steps, "trajectory", method="dpm++")
            if second_order is not None and second_order not in grids.values():
                grids["auto, second order"] = second_order
    for name in _SPACINGS:
        try:
            grid = GRIDS[name](denoiser.schedule, steps)
        except ValueError:  # diffusers' spacings need enough integer steps
            continue
        if len(grid) == steps and grid not in grids.values():
            grids[name] = grid
    return grids


def check_methods(methods: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of methods after a check that they are deterministic; None is all."""
    known = [name for name, method in METHODS.items() if method.deterministic]
    if methods is None:
        return tuple(known)
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    for name in names:
        if name not in known:
            rule = "deterministic ones" if name in METHODS else "names"
            raise ValueError(f"tune: methods must be {rule} of {known}, got {name!r}")
    if not names:
        raise ValueError(f"tune: methods must be some of {known}, got none")
    return names


def solver_plans(
    denoiser: Denoiser, grid: Grid, methods: Sequence[str], clip: Any
) -> Iterator[Plan]:
    """Make the plans of the methods on a grid, in every order that its length allows.

    Args:
        denoiser: the model.
        grid: the times.
        methods: names of deterministic methods.
        clip: range that x0 is clamped to.
    """
    for name in methods:
        for setting in METHODS[name].deterministic:
            if setting.knobs.get("order", 1) <= len(grid):
                yield METHODS[name].make(
                    denoiser.schedule,
                    grid,
                    clip=clip,
                    prediction=denoiser.prediction,
                    **setting.knobs,
                )


def maker_of(
    denoiser: Denoiser, plan: Plan, methods: Sequence[str], clip: Any
) -> Callable[[Grid], Plan]:
    """Return a function that makes a plan of the given plan's sampler on any grid of times.

    Args:
        denoiser: the model.
        plan: a plan that `solver_plans` made.
        methods: the names of methods that `solver_plans` had.
        clip: range that x0 is clamped to.
    """

    def make(grid: Grid) -> Plan:
        plans = solver_plans(denoiser, grid, methods, clip)
        return next(other for other in plans if other.method == plan.method)

    return make
