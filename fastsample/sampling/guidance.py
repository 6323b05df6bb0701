"""Implements guidance intervals, guidance rescaling and dynamic thresholding.

The guidance scale is the column `w` of a plan, so that an interval changes rows only. Rescaling and
thresholding need a statistic of the whole sample (a standard deviation, a quantile), which a row
cannot express: they change the network's output before the kernel of the row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray, check_array, check_real
from fastsample.denoiser.threshold import Threshold, threshold_pair
from fastsample.ops.dtypes import history_dtype
from fastsample.plans.plan import Plan
from fastsample.plans.rows import COLUMNS


def interval_scales(
    function: str, plan: Plan, guidance: float | Sequence[float], interval: Sequence[float] | None
) -> FloatArray:
    """Return the guidance scale of each row ``(K,)``, which is 1 outside an interval of times.

    Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval" (arXiv:2404.07724).

    Args:
        function: the caller's name, for messages.
        plan: the rows.
        guidance: one scale, or one per row.
        interval: times (low, high); rows that call the network at ``low < t <= high`` are guided.
            None guides every row.

    Raises:
        ValueError: another number of scales, or an interval that holds no time of the plan.
    """
    scale = check_array(function, "guidance", guidance)
    if scale.shape not in ((), (len(plan),)):
        raise ValueError(
            f"{function}: guidance must be one number or one per row ({len(plan)},), "
            f"got shape {scale.shape}"
        )
    scales = np.array(np.broadcast_to(scale, (len(plan),)))
    if interval is not None:
        ends = check_array(function, "guidance_interval", interval)
        if ends.shape != (2,) or not 0.0 <= ends[0] < ends[1]:
            raise ValueError(
                f"{function}: guidance_interval must be two times (low, high) with 0 <= low < "
                f"high, got {interval!r}"
            )
        nodes = plan.nodes[:-1]
        inside = (nodes > ends[0]) & (nodes <= ends[1]) & plan.calls_network
        if not inside.any():
            raise ValueError(
                f"{function}: guidance_interval must hold a time of the run, "
                f"{nodes[0]:g} to {nodes[-1]:g}, got {interval!r}"
            )
        scales[~inside] = 1.0
    return scales


class Correction:
    """Applies guidance rescaling and dynamic thresholding to the network's output, before a step.

    Args:
        function: the caller's name, for messages.
        plan: the run's plan, with guidance and clip.
        rescale: weight phi in [0, 1] of guidance rescaling (Lin et al. 2023, arXiv:2305.08891,
            eqs. 15 and 16), which scales the guided output to the standard deviation of the
            conditional one.
        threshold: quantile in (0, 1] of dynamic thresholding (Saharia et al. 2022,
            arXiv:2205.11487, section 2.3), or (quantile, largest bound): x0 is clamped at that
            quantile of |x0|, if above the clip bound and at most at the largest bound, and scaled
            back to the clip bound. None is off.

    Attributes:
        threshold: (quantile, largest bound or None), or None.
        plan: the plan for corrected outputs. With thresholding it is a plan for x0 prediction:
            p = 0, q = 1. In half precision the corrected output, and so the x0 that multistep rows
            read again later, is rounded to the samples' dtype.

    Raises:
        ValueError: values out of range, or thresholding of a plan without a clip bound or with
            rows that read the output directly.
    """

    def __init__(
        self, function: str, plan: Plan, rescale: float = 0.0, threshold: Threshold | None = None
    ) -> None:
        self._rescale = check_real(function, "guidance_rescale", rescale, 0.0, 1.0)
        self._rows = [dict(zip(COLUMNS, row, strict=True)) for row in plan.rows.tolist()]
        self.threshold = None if threshold is None else threshold_pair(function, threshold)
        self.plan = plan
        if self.threshold is None:
            return
        if np.any(plan.column("e")):
            raise ValueError(
                f"{function}: threshold must go with rows that read the output through x0 alone "
                f"(e = 0), got {plan.method}; pass rederive=True, or threshold=None"
            )
        low, high = plan.column("lo"), plan.column("hi")
        bad = ~np.isfinite(high) | (low != -high)
        if np.any(bad):
            k = int(np.argmax(bad))
            raise ValueError(
                f"{function}: threshold must go with a clip bound on |x0|, the data's range, got "
                f"({low[k]:g}, {high[k]:g}); pass clip=1.0"
            )
        largest = self.threshold[1]
        if largest is not None and largest < high.max():
            raise ValueError(
                f"{function}: threshold must have a largest bound of at least the clip bound "
                f"{high.max():g}, got {largest:g}"
            )
        rows = np.array(plan.rows)
        rows[:, COLUMNS.index("p")], rows[:, COLUMNS.index("q")] = 0.0, 1.0
        self.plan = replace(plan, rows=rows, prediction="x0")

    def __call__(
        self, k: int, x: Tensor, conditional: Tensor, unconditional: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the corrected (output, None) for the step of row k, with guidance applied."""
        row, dtype = self._rows[k], history_dtype(x)
        channels = x.shape[1]
        c, variance = conditional[:, :channels].to(dtype), conditional[:, channels:]
        m = c
        if unconditional is not None:
            u = unconditional[:, :channels].to(dtype)
            m = u + row["w"] * (c - u)
            if self._rescale:
                ratio = _deviation(c) / _deviation(m)
                # A constant output has deviation 0, which makes the ratio infinite or NaN.
                ratio = torch.where(torch.isfinite(ratio), ratio, 1.0)
                m = m * (self._rescale * ratio + (1.0 - self._rescale))
        if self.threshold is not None:
            x0 = row["p"] * x.to(dtype) + row["q"] * m
            m = dynamic_threshold(x0, row["hi"], *self.threshold)
        m = m.to(conditional.dtype)
        return (torch.cat((m, variance), dim=1) if variance.shape[1] else m), None


def dynamic_threshold(
    x0: Tensor, bound: float, quantile: float, maximum: float | None = None
) -> Tensor:
    """Return x0 after the dynamic thresholding of Imagen (Saharia et al. 2022, section 2.3).

    Args:
        x0: clean estimates ``(B, *shape)``.
        bound: the data lie in [-bound, bound].
        quantile: in (0, 1], 0.995 in the paper; interpolated linearly between order statistics.
        maximum: the largest s, in data units, which wins over `bound`; at `bound` this is plain
            clipping. It is `sample_max_value` of diffusers. None is no limit.

    Returns:
        ``clamp(x0, -s, s) bound / s`` in the shape of `x0`, with s the quantile of |x0| of each
        sample, but at least `bound` and at most `maximum`.
    """
    if x0.numel() == 0:
        return x0
    sizes = x0.abs().flatten(1)
    position = quantile * (sizes.shape[1] - 1)
    below = math.floor(position)
    # topk is enough; torch.quantile would sort all values, and refuses 16 M elements.
    top = torch.topk(sizes, sizes.shape[1] - below, dim=1).values
    s = torch.lerp(top[:, -1], top[:, max(top.shape[1] - 2, 0)], position - below)
    s = s.clamp(min=bound, max=maximum).reshape(-1, *[1] * (x0.dim() - 1))
    return torch.minimum(torch.maximum(x0, -s), s) * (bound / s)


def _deviation(output: Tensor) -> Tensor:
    """Return each sample's standard deviation, shape ``(B, 1, ..)``, as diffusers computes it."""
    wide = output.flatten(1)
    mean = wide.mean(1, keepdim=True)
    square = (wide - mean).square().sum(1) / max(wide.shape[1] - 1, 1)
    return square.sqrt().reshape(-1, *[1] * (output.dim() - 1))
