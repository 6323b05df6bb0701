"""Grids that come with a model: the best ones for the profile it carries."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from fastsample.costs import CostTable, Objective
from fastsample.denoiser import Denoiser
from fastsample.grid import Grid
from fastsample.profiles import Profile

_TABLES: WeakKeyDictionary[Profile, dict[Any, CostTable]] = WeakKeyDictionary()


def stored_grid(
    denoiser: Denoiser, steps: int, objective: Objective | None = None, **options: Any
) -> Grid | None:
    """The best grid of `steps` network calls for the model's profile; None if there is none.

    Args:
        denoiser: the model.
        steps: K.
        objective: as for `Profile.costs`; None is "trajectory", or "mse" without trajectories: the
            objectives that are about samples. ("elbo" is about likelihood, and its grids make
            worse samples than uniform ones.)
        **options: further arguments of `Profile.costs`, hashable.
    """
    profile = denoiser.profile
    if profile is None or steps > len(profile.times):
        return None
    if objective is None:
        objective = "trajectory" if profile.trajectories else "mse"
    if options.get("decoder") == "respaced" and steps < 2:
        return None
    return _table(profile, objective, **options).best_grid(steps)


def _table(profile: Profile, objective: Objective, **options: Any) -> CostTable:
    """The profile's table, made once for as long as it lives."""
    tables = _TABLES.setdefault(profile, {})
    key = (objective, *sorted(options.items()))
    if key not in tables:
        tables[key] = profile.costs(objective, **options)
    return tables[key]
