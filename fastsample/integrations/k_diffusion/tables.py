"""Noise levels out: the list of a plan or a grid, and the schedule of a model's table of levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray, check_vector
from fastsample.grids.grid import Grid
from fastsample.grids.sigmas import Convention, checked_convention
from fastsample.integrations.k_diffusion.comfyui import is_const
from fastsample.integrations.k_diffusion.convert import falling_levels, levels_of
from fastsample.integrations.k_diffusion.levels import parts_of
from fastsample.plans.plan import Plan
from fastsample.schedules.schedule import NoiseSchedule


def sigmas(
    source: Plan | Grid,
    schedule: NoiseSchedule | None = None,
    *,
    convention: Convention | None = None,
) -> Tensor:
    """Return the noise levels of a plan or a grid, for k-diffusion's samplers and ComfyUI.

    For a plan it is `Plan.to_sigmas` as a tensor; besides it takes plans with rows that call no
    network, which `sampler` runs.

    Args:
        source: a plan, or a grid with its `schedule`. Of a plan that returns to noisier nodes, the
            levels on its way down.
        schedule: the schedule of a grid; a plan has its own levels.
        convention: "ratio" for samples ``x0 + sigma eps``, "flow" for ``(1 - sigma) x0 + sigma
            eps``, as ComfyUI's flow models have them. None is "flow" for schedules with ``alpha +
            sigma = 1``: `NoiseSchedule.flow` and the `schedule` of a flow model.

    Returns:
        The falling levels `(K + 1,)`, float32 on the CPU; the last is 0 for a whole run.

    Raises:
        TypeError: a source that is neither.
        ValueError: a grid without a schedule, or a level without a signal, whose sigma is infinite.
    """
    name = "k_diffusion.sigmas"
    if isinstance(source, Plan):
        if schedule is not None:
            raise ValueError(
                f"{name}: schedule must be left out with a Plan, which has its own levels, "
                f"got {schedule!r}"
            )
        if source.inverts:
            raise ValueError(f"{name}: source must run from noise to data, got {source.method}")
        if source.calls == len(source):
            return _as_list(source.to_sigmas(convention))
        schedule, alpha, sigma = source.schedule, source.alphas, source.sigmas
    elif isinstance(source, Grid):  # pyright: ignore[reportUnnecessaryIsInstance]
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(f"{name}: schedule must be a NoiseSchedule, got {schedule!r}")
        alpha, sigma = schedule.levels(source.times)
    else:
        raise TypeError(f"{name}: source must be a Plan or a Grid, got {type(source).__name__}")
    levels, _ = levels_of(name, alpha, sigma, checked_convention(name, convention, schedule))
    return _as_list(falling_levels(levels))


def _as_list(levels: FloatArray) -> Tensor:
    """Return noise levels in the dtype of the other programs' lists."""
    return torch.as_tensor(levels, dtype=torch.float32, device="cpu")


def schedule(model: Any) -> NoiseSchedule:
    """Return the noise schedule of a model's table of noise levels, one per training step.

    The discrete denoisers of k-diffusion and the `model_sampling` of ComfyUI's models hold such a
    table as `sigmas`. With it, every grid of this package makes a list for them:
    ``sigmas(fs.grids.blended(schedule(model), 10), schedule(model))``.

    Args:
        model: an object with `sigmas` (or one whose `inner_model` has them): the levels `(T,)`,
            rising; of `CONST`, those of flow.

    Returns:
        The variance-preserving schedule with those levels at its times 1 to T; for `CONST` one
        with T = 1, whose ``sigma(t)`` is the table read at ``t``, linear in between.

    Raises:
        TypeError: no table.
        ValueError: a table that does not rise, or is out of range.
    """
    name = "k_diffusion.schedule"
    held = [part for part in parts_of(model) if getattr(part, "sigmas", None) is not None]
    if not held:
        raise TypeError(
            f"{name}: model must have a table of sigmas, got {type(model).__name__}, which has none"
        )
    table: Any = held[0].sigmas
    values = table.detach().cpu().double().numpy() if isinstance(table, Tensor) else table
    levels = check_vector(name, "sigmas", values)
    if levels[0] <= 0.0 or np.any(np.diff(levels) <= 0.0):
        raise ValueError(
            f"{name}: sigmas must be positive and rise from step to step, got {levels[0]:g} to "
            f"{levels[-1]:g}"
        )
    if not is_const(held[0]):
        return NoiseSchedule.from_alpha_bar(1.0 / (1.0 + levels**2))
    if levels[-1] > 1.0 + 1e-6:
        raise ValueError(f"{name}: sigmas must be at most 1 for CONST, got {levels[-1]:g}")
    table = (0.0, *np.minimum(levels, 1.0).tolist())
    return NoiseSchedule.from_functions(alpha=_Table(table, True), sigma=_Table(table, False))


@dataclass(frozen=True)
class _Table:
    """A function of time in [0, 1] that reads a table of flow levels.

    Attributes:
        values: sigma at even times from 0 to 1.
        signal: whether the function is alpha, ``1 - sigma``.
    """

    values: tuple[float, ...]
    signal: bool

    def __call__(self, times: FloatArray) -> FloatArray:
        """Return the levels at times `(n,)`."""
        knots = np.linspace(0.0, 1.0, len(self.values))
        sigma = np.interp(times, knots, self.values)
        return 1.0 - sigma if self.signal else sigma

    def __repr__(self) -> str:
        return f"<{'alpha' if self.signal else 'sigma'} of {len(self.values) - 1} flow levels>"
