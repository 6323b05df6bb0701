"""Checks the settings of a model that samplers take as their defaults: thresholding, last level."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast

from fastsample._support.checks import check_real
from fastsample.plans.rows import Clip, clip_bounds
from fastsample.schedules.schedule import NoiseSchedule

Threshold: TypeAlias = float | tuple[float, float | None]
"""The quantile of dynamic thresholding, or (quantile, largest bound or None for no limit)."""

ModelsLast: TypeAlias = Literal["data", "first"]
"""Where a model's samplers land: on data (t = 0), or at the first trained step (t = 1)."""


def threshold_pair(function: str, threshold: Any) -> tuple[float, float | None]:
    """Return (quantile, largest bound or None) of a threshold.

    Args:
        function: the caller's name, for messages.
        threshold: a quantile, or a pair of the quantile and the largest bound.

    Raises:
        TypeError: anything but numbers.
        ValueError: a quantile outside (0, 1], or a bound that is not positive.
    """
    quantile, largest = threshold, None
    if isinstance(threshold, (tuple, list)):
        pair = cast("list[Any]", threshold)
        if len(pair) != 2:
            raise ValueError(
                f"{function}: threshold must be a quantile or a pair (quantile, largest bound), "
                f"got {pair!r}"
            )
        quantile, largest = pair
    share = check_real(function, "threshold", quantile, 0.0, 1.0)
    if share == 0.0:
        raise ValueError(f"{function}: threshold must be above 0, got 0")
    if largest is None:
        return share, None
    bound = check_real(function, "threshold[1]", largest)
    if bound <= 0.0:
        raise ValueError(f"{function}: threshold[1] must be positive, got {bound:g}")
    return share, bound


def models_threshold(
    function: str, threshold: Threshold | None, clip: Clip
) -> tuple[float, float | None] | None:
    """Return the threshold of a model as a pair, or None.

    Raises:
        ValueError: a threshold without a bound on |x0|, or with a larger one than its largest.
    """
    if threshold is None:
        return None
    pair = threshold_pair(function, threshold)
    low, high = clip_bounds(function, clip)
    if clip is None or low != -high:
        raise ValueError(
            f"{function}: clip must be a bound on |x0|, the data's range, with threshold, got "
            f"{clip!r}; pass clip=1.0"
        )
    if pair[1] is not None and pair[1] < high:
        raise ValueError(
            f"{function}: threshold[1] must be at least the clip bound {high:g}, got {pair[1]:g}"
        )
    return pair


def models_last(function: str, schedule: NoiseSchedule, last: Any) -> ModelsLast:
    """Return where a model's samplers land.

    Raises:
        ValueError: an unknown name, or "first" with a schedule that has no steps.
    """
    if last not in ("data", "first"):
        raise ValueError(f'{function}: last must be "data" or "first", got {last!r}')
    if last == "first" and schedule.num_steps is None:
        raise ValueError(
            f'{function}: last must be "data" for a schedule without whole steps, got "first" '
            f"with {schedule!r}"
        )
    return last
