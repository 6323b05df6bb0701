"""Makes the rows for a list of noise levels, from a method or a plan, and the model they call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.grids.sigmas import Convention
from fastsample.integrations.k_diffusion.convert import Rewritten, falling_levels, for_x0_models
from fastsample.integrations.k_diffusion.levels import itself, schedule_up_to
from fastsample.plans.plan import COLUMNS, Plan
from fastsample.plans.rows import Clip
from fastsample.samplers.registry import METHODS, method_for
from fastsample.sampling.program import Program
from fastsample.sampling.resolve import PlanRequest, resolve
from fastsample.schedules.schedule import NoiseSchedule

_SAME_LEVEL = 1e-5  # relative: lists are float32, and some programs compute them anew
_FLOW = NoiseSchedule.flow()  # for denoisers whose levels nobody reads


@dataclass(frozen=True)
class Choice:
    """The arguments of `sampler` that determine the rows.

    Attributes:
        function: the caller's name, for messages.
        source: a plan, or a method's name.
        clip: range that x0 is clamped to.
        knobs: keyword arguments of the method.
    """

    function: str
    source: Plan | str
    clip: Clip
    knobs: Mapping[str, Any]

    def rows(self, levels: FloatArray, convention: Convention, noise_scale: float) -> Rewritten:
        """Return the rows for a falling list of noise levels."""
        if isinstance(self.source, Plan):
            plan, scales = self._given(self.source, levels, convention)
        else:
            plan = self._made(self.source, levels, convention)
            scales = (1.0,) * len(plan)
        if noise_scale != 1.0 and plan.is_stochastic:
            rows: FloatArray = np.array(plan.rows)
            rows[:, COLUMNS.index("d")] *= noise_scale
            plan = replace(plan, rows=rows, check="none" if plan.check == "none" else "mean")
        return Rewritten(plan, scales)

    def _given(self, source: Plan, levels: FloatArray, convention: Convention) -> Rewritten:
        """Return the caller's plan for the other program, if the list is its own."""
        if self.knobs:
            raise ValueError(
                f"{self.function}: knobs must be left out with a Plan, which decides them, got "
                f"{dict(self.knobs)}"
            )
        rewritten = for_x0_models(self.function, source, convention)
        own = falling_levels(rewritten.plan.nodes)
        if len(own) != len(levels) or not np.allclose(levels, own, rtol=_SAME_LEVEL, atol=0.0):
            raise ValueError(
                f"{self.function}: sigmas must be the plan's levels {_short(own)}, got "
                f"{_short(levels)}; fastsample.integrations.k_diffusion.sigmas(plan) returns them"
            )
        return rewritten

    def _made(self, method: str, levels: FloatArray, convention: Convention) -> Plan:
        """Return the method's plan on the list."""
        schedule = schedule_up_to(float(levels[0]), convention)
        knobs, rows = dict(self.knobs), len(levels) - 1
        if "last" in knobs:
            raise ValueError(
                f"{self.function}: last must be left out, since the list says where it ends, got "
                f"{knobs['last']!r}"
            )
        order = knobs.get("order")
        name = method_for(self.function, knobs) if method == "auto" else method
        # A higher order than the method has is left as it is, for the method to refuse.
        if isinstance(order, int) and rows < order <= METHODS[name].order:
            knobs["order"] = rows
            knobs.pop("corrected", None)  # which is for order 3 alone
        if levels[-1] > 0.0:
            knobs["last"] = float(levels[-1])
        model = Denoiser(_halt, schedule, (1,), prediction="x0", time=itself)
        grid = Grid(np.append(levels[levels > 0.0], 0.0))
        request = PlanRequest(grid, method, clip=self.clip, knobs=knobs)
        resolved = resolve(self.function, model, request)
        if levels[-1] > 0.0 and resolved.method == "dpm++" and "lower_order_final" not in knobs:
            # The list ends part way, so that its last row is as good as the one before.
            knobs["lower_order_final"] = False
            resolved = resolve(self.function, model, replace(request, method="dpm++", knobs=knobs))
        return resolved.plan


@dataclass(frozen=True)
class Made:
    """The rows of a list on a device.

    Attributes:
        program: the rows.
        input_scales: see `Rewritten`, for the rows that call the network.
    """

    program: Program
    input_scales: tuple[float, ...]

    @classmethod
    def of(cls, rewritten: Rewritten, device: torch.device) -> Made:
        """Copy rows to a device."""
        plan, scales = rewritten
        timing = Denoiser(_halt, _FLOW, (1,), prediction="x0", time=itself)
        used = [s for s, calls in zip(scales, plan.calls_network, strict=True) if calls]
        return cls(Program.of(timing, plan, device), tuple(used))


def network_of(
    model: Callable[..., Any],
    x: Tensor,
    arguments: Mapping[str, Any],
    input_scales: tuple[float, ...],
) -> Denoiser:
    """Return the other program's model for one run, with its further arguments as they are."""
    scales = chain(input_scales, repeat(1.0))

    def network(x: Tensor, sigma: Tensor) -> Any:
        scale = next(scales)
        return model(x if scale == 1.0 else x * scale, sigma.to(x.dtype), **arguments)

    return Denoiser(network, _FLOW, x.shape[1:], prediction="x0", time=itself)


def _halt(x: Tensor, sigma: Tensor) -> Tensor:
    """Stand for the model while rows are made, which do not depend on it."""
    raise AssertionError


def _short(levels: FloatArray) -> str:
    """Return the first and last levels as text, for error messages."""
    return np.array2string(levels, precision=5, threshold=6, edgeitems=3)
