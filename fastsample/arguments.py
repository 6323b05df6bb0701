"""From the arguments of `sample` and `invert` to a plan, and to samples with an identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from fastsample import grids
from fastsample._checks import check_array, check_integer
from fastsample.conditioning import batch_of
from fastsample.denoiser import Denoiser
from fastsample.grid import Grid
from fastsample.loop import Identity
from fastsample.ops.checks import DTYPE_CODES
from fastsample.plan import Plan
from fastsample.rows import Clip
from fastsample.samplers import ancestral, ddim
from fastsample.schedule import NoiseSchedule

Steps: TypeAlias = int | Grid | Plan | Sequence[float]

GRIDS: dict[str, Callable[[NoiseSchedule, int], Grid]] = {
    "uniform": lambda schedule, steps: grids.uniform(_end(schedule), steps),
    "quadratic": lambda schedule, steps: grids.quadratic(_end(schedule), steps),
    "log_snr": grids.log_snr,
    "karras": grids.karras,
    "leading": lambda schedule, steps: _diffusers(schedule, steps, "leading"),
    "trailing": lambda schedule, steps: _diffusers(schedule, steps, "trailing"),
    "linspace": lambda schedule, steps: _diffusers(schedule, steps, "linspace"),
}
"""Names for the `grid` argument; the last three are diffusers' timestep spacings."""


def make_dtype(dtype: torch.dtype | None, start: Any, denoiser: Denoiser) -> torch.dtype:
    """The samples' dtype: as asked for, else that of `start`, else the model's."""
    kind = dtype or (start.dtype if isinstance(start, Tensor) else denoiser.dtype)
    if kind not in DTYPE_CODES:
        raise TypeError(
            f"sample: dtype must be one of {[str(known) for known in DTYPE_CODES]}, got {kind}"
        )
    return kind


def _end(schedule: NoiseSchedule) -> float:
    return schedule.T if schedule.num_steps is None else schedule.num_steps


def _diffusers(
    schedule: NoiseSchedule, steps: int, spacing: Literal["leading", "trailing", "linspace"]
) -> Grid:
    if schedule.num_steps is None:
        raise ValueError(
            f"grids.diffusers: schedule must have whole steps, got {schedule!r}; try uniform"
        )
    return grids.diffusers(schedule.num_steps, steps, spacing)


def make_grid(denoiser: Denoiser, steps: Any, grid: str, function: str) -> Grid:
    """The times: given as they are, or K of them spread as `grid` says."""
    if not isinstance(grid, str) or grid not in GRIDS:
        raise ValueError(f"{function}: grid must be one of {sorted(GRIDS)}, got {grid!r}")
    if isinstance(steps, Grid):
        return steps
    if isinstance(steps, Tensor) and steps.dim() > 0:
        steps = steps.tolist()
    if isinstance(steps, (Sequence, np.ndarray)) and not isinstance(steps, str):
        return Grid(steps)
    limit = denoiser.schedule.num_steps
    return GRIDS[grid](denoiser.schedule, check_integer(function, "steps", steps, 1, limit))


def make_plan(
    denoiser: Denoiser, steps: Steps, method: str, grid: str, eta: float, clip: Any, variance: Any
) -> Plan:
    """The plan of the run; a given one is checked against the model."""
    if isinstance(steps, Plan):
        knobs = {"method": (method, "ddim"), "grid": (grid, "uniform"), "eta": (eta, 0.0)}
        knobs |= {"variance": (variance, None), "clip": (clip, "auto")}
        for name, (value, default) in knobs.items():
            if value is not default and not (np.ndim(value) == 0 and value == default):
                raise ValueError(
                    f"sample: {name} must be left out with a Plan, which decides it, got {value!r}"
                )
        return _checked_plan(denoiser, steps)
    times = make_grid(denoiser, steps, grid, "sample")
    bound = denoiser.clip if isinstance(clip, str) and clip == "auto" else cast("Clip", clip)
    common = {"clip": bound, "prediction": denoiser.prediction}
    if method == "ddim":
        if variance is not None:
            raise ValueError(
                f'sample: variance must be None with method="ddim", got {variance!r}; '
                "eta sets its noise"
            )
        return ddim(denoiser.schedule, times, eta=eta, **common)
    if method == "ancestral":
        if eta:
            raise ValueError(f'sample: eta must be 0 with method="ancestral", got {eta}')
        used = denoiser.variance if variance is None else variance
        if isinstance(used, str) and used == "learned_range" and denoiser.variance != used:
            raise ValueError(
                'sample: variance must not be "learned_range" for a model without one; make the '
                'Denoiser with variance="learned_range" if its output has 2C channels'
            )
        return ancestral(denoiser.schedule, times, variance=used, **common)
    raise ValueError(f'sample: method must be "ddim" or "ancestral", got {method!r}')


def _checked_plan(denoiser: Denoiser, plan: Plan) -> Plan:
    if plan.inverts:
        raise ValueError("sample: steps must be a plan that ends at 0, got an inverting one")
    if plan.prediction != denoiser.prediction:
        raise ValueError(
            f"sample: steps must be a plan for {denoiser.prediction!r} prediction, "
            f"got one for {plan.prediction!r}"
        )
    if plan.schedule is not None and plan.schedule != denoiser.schedule:
        raise ValueError(
            f"sample: steps must be a plan for {denoiser.schedule!r}, got one for {plan.schedule!r}"
        )
    if plan.nodes[0] > denoiser.schedule.T:
        raise ValueError(
            f"sample: steps must start at or below T = {denoiser.schedule.T:g}, "
            f"got {plan.nodes[0]:g}"
        )
    if plan.learns_variance and denoiser.variance != "learned_range":
        raise ValueError(
            "sample: steps must not be a plan with learned variance for a model without one"
        )
    return plan


def make_guidance(
    denoiser: Denoiser,
    plan: Plan,
    guidance: Any,
    uncond: Mapping[str, Any] | None,
) -> tuple[Plan, Mapping[str, Any] | None]:
    """The plan with its scales, and the arguments that mean "no condition" (None: no guidance)."""
    if guidance is None and not plan.is_guided:
        if uncond is not None:
            raise ValueError("sample: guidance must be given with uncond, got None")
        return plan, None
    if guidance is not None:
        scale = check_array("sample", "guidance", guidance)
        if scale.shape not in ((), (len(plan),)):
            raise ValueError(
                f"sample: guidance must be one number or one per row ({len(plan)},), "
                f"got shape {scale.shape}"
            )
        plan = plan.with_guidance(scale)
    absent = denoiser.uncond if uncond is None else uncond
    if absent is None:
        raise ValueError(
            "sample: uncond must be given with guidance, got None; it holds the keyword arguments "
            "that mean no condition"
        )
    return plan, absent


# ---- from arguments to samples with an identity ----


def agreed_batch(num_samples, start, noise, cond, sample_index, seed) -> int:
    """The number of samples that the arguments agree on."""
    sizes = {"num_samples": num_samples, "cond": batch_of(cond)}
    if num_samples is not None:
        sizes["num_samples"] = check_integer("sample", "num_samples", num_samples, 0)
    for name, tensor, axis in (("start", start, 0), ("noise", noise, 1)):
        if tensor is not None:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"sample: {name} must be a tensor, got {type(tensor).__name__}")
            if tensor.dim() > axis:
                sizes[name] = tensor.shape[axis]
    for name, value in (("sample_index", sample_index), ("seed", seed)):
        if isinstance(value, (Sequence, Tensor, np.ndarray)) and np.ndim(value) == 1:
            sizes[name] = len(value)
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        raise ValueError(f"sample: num_samples must be one number, got {known}")
    return next(iter(known.values()), 1)


def make_identity(seed: Any, sample_index: Any, batch: int, device: torch.device) -> Identity:
    """Seeds and global indices of the samples, on the device."""
    if isinstance(seed, (Sequence, Tensor, np.ndarray)) and np.ndim(seed) > 1:
        raise ValueError(f"sample: seed must be a number or a vector, got {np.ndim(seed)} dims")
    many = np.ndim(seed) == 1
    words = [_signed(value) for value in (seed if many else [seed])]
    if sample_index is None:
        index = torch.zeros(batch, dtype=torch.int64) if many else torch.arange(batch)
    elif np.ndim(sample_index) == 0:
        first = check_integer("sample", "sample_index", _item(sample_index), 0, 2**63 - 1 - batch)
        index = torch.arange(first, first + batch)
    else:
        if np.ndim(sample_index) != 1:
            raise ValueError(
                "sample: sample_index must be a number or a vector, "
                f"got {np.ndim(sample_index)} dims"
            )
        numbers = [
            check_integer("sample", "sample_index", _item(value), 0, 2**63 - 1)
            for value in sample_index
        ]
        index = torch.tensor(numbers, dtype=torch.int64)
    seeds = torch.tensor(words, dtype=torch.int64, device=device)  # int64 even if there are none
    return Identity(seeds, index.to(device, torch.int64))


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, (Tensor, np.generic)) else value


def _signed(seed: Any) -> int:
    """A 64-bit seed as the int64 of the same bits."""
    value = check_integer("sample", "seed", _item(seed), 0, 2**64 - 1)
    return value - 2**64 if value >= 2**63 else value


def check_tensor(name, tensor, shape, dtype, device, function="sample") -> None:
    """Refuse a tensor of another shape, dtype or device; None passes."""
    if tensor is None:
        return
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{function}: {name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{function}: {name} must be {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{function}: {name} must be on {device}, got {tensor.device}")
