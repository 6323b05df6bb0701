"""The known deterministic samplers as starting points of a tuned plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.grids.registry import GRIDS
from fastsample.planning.multistep_path import MOST_TIMES
from fastsample.plans.plan import Plan
from fastsample.samplers.registry import METHODS

_SPACINGS = ("uniform", "quadratic", "log_snr", "karras", "leading")


def starting_grids(denoiser: Denoiser, steps: int) -> dict[str, Grid]:
    """Known ways of spreading `steps` times, and the planner's, without repeats."""
    found: dict[str, Grid] = {}
    profile = denoiser.profile
    if profile is not None:
        best = profile.best_grid(steps)
        if best is not None:
            found["auto"] = best
        if profile.trajectories and len(profile.times) <= MOST_TIMES:
            second = profile.best_grid(steps, "trajectory", method="dpm++")
            if second is not None and second not in found.values():
                found["auto, second order"] = second
    for name in _SPACINGS:
        try:
            grid = GRIDS[name](denoiser.schedule, steps)
        except ValueError:  # lists of diffusers need whole steps, and enough of them
            continue
        if len(grid) == steps and grid not in found.values():
            found[name] = grid
    return found


def check_methods(methods: Sequence[str] | None) -> tuple[str, ...]:
    """The deterministic methods asked for; all of them by default."""
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
    """Every variant of the methods on a grid that its length allows."""
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
    """The function that makes a plan's sampler on other times."""

    def make(grid: Grid) -> Plan:
        plans = solver_plans(denoiser, grid, methods, clip)
        return next(other for other in plans if other.method == plan.method)

    return make
