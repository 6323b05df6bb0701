"""FastDPM: short diffusion chains whose noise levels may lie between the trained steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from fastsample._support.checks import FloatArray, check_bool, check_integer, check_real, warn_user
from fastsample.grids import makers
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip, Prediction
from fastsample.samplers.compile import Last
from fastsample.samplers.ddim import ddim
from fastsample.samplers.variances import levels_grid
from fastsample.schedules.schedule import NoiseSchedule

Spacing: TypeAlias = Literal["linear", "quadratic"]


def fastdpm(
    schedule: NoiseSchedule,
    num_steps: int | None = None,
    *,
    approximation: Literal["steps", "var"] = "steps",
    spacing: Spacing = "linear",
    kappa: float = 0.0,
    extended: bool = False,
    variances: Sequence[float] | FloatArray | None = None,
    noise_levels: Sequence[float] | FloatArray | None = None,
    last: Last = "data",
    clip: Clip = None,
    prediction: Prediction = "epsilon",
) -> Plan:
    r"""Compile the plan of FastDPM: a short chain whose noise levels may lie between trained steps.

    Kong and Ping 2021, "On Fast Sampling of Diffusion Probabilistic Models" (arXiv:2106.00132).
    "steps" picks integer steps, "var" picks variances eta_s and calls the network at the fractional
    time ``T(r)`` that has the level ``r_s^2 = prod (1 - eta)``. `schedule.time_at` is that ``T``:
    the Gamma-function form for linear betas, monotone interpolation of log alpha_bar for every
    other schedule. The reverse process is DDIM's with ``eta = kappa`` (DDIM-rev); kappa = 1 is
    DDPM-rev. A list of `variances` or `noise_levels` replaces the choice of S and of a spacing:
    with ``kappa=1`` it is the fast sampling of DiffWave (arXiv:2009.09761) and WaveGrad
    (arXiv:2009.00713), whose published lists it takes as they are.

    Args:
        schedule: noise levels, with whole steps unless a list is given.
        num_steps: S >= 2, network calls. "steps" with quadratic spacing drops repeated indices and
            makes fewer. With a list it is the list's length, and may be left out.
        approximation: "steps" (STEP in the authors' code) or "var" (VAR).
        spacing: "linear" or "quadratic", of the steps or of the variances.
        kappa: share of the posterior noise, in [0, 1].
        extended: start at T where the authors' rule stops short of it: quadratic steps end at
            0.8 T, some linear ones at T - 1, and the variances of short chains (S < 9 linear, S <
            23 quadratic for the default schedule) are bounded before they reach alpha_bar(T).
        variances: eta_s `(S,)` in (0, 1), the step next to the data first, such as DiffWave's
            ``[0.0001, 0.001, 0.01, 0.05, 0.2, 0.5]``. The network's times are not below 1, its
            first step.
        noise_levels: r_s `(S,)` instead, the levels sqrt(alpha_bar) before each call, falling.
        last: where the last row lands: "data" (t = 0), "first" (t = 1, Stable Diffusion's
            `set_alpha_to_one=False`) or a time; steps at or below it are left out.
        clip: bound on |x0| in data units, a pair (lo, hi), or None (the authors never clip).
        prediction: the quantity that the network predicts: "epsilon", "x0", "v" or "flow".

    Returns:
        A plan of S rows (see `num_steps`).

    Raises:
        ValueError: for a value out of range, a schedule without whole steps, variances that cannot
            end at alpha_bar(T), or a list in reverse order, or with `spacing` or `extended`.

    Warns:
        UserWarning: "var" without `extended` stops short of alpha_bar(T), which the authors' code
            does in silence; or a list goes below it (`fastsample.samplers.variances`).
    """
    share = check_real("fastdpm", "kappa", kappa, 0.0, 1.0)
    if approximation not in ("steps", "var"):
        raise ValueError(f'fastdpm: approximation must be "steps" or "var", got {approximation!r}')
    if variances is not None or noise_levels is not None:
        _check_alone(schedule, spacing, extended)
        chosen = "variances" if noise_levels is None else "noise_levels"
        grid = levels_grid(schedule, num_steps, variances, noise_levels)
    elif num_steps is None:
        raise ValueError("fastdpm: num_steps must be given without a list of levels, got None")
    else:
        chosen = f"{approximation}, {spacing}"
        make_grid = steps_grid if approximation == "steps" else var_grid
        grid = make_grid(schedule, num_steps, spacing, extended=extended)
    plan = ddim(schedule, grid, eta=share, last=last, clip=clip, prediction=prediction)
    if schedule.num_steps is not None and plan.times[-1] < 1.0:
        plan = plan.with_times(np.maximum(plan.times, 1.0))  # a network's first step is time 1
    knobs = f"{chosen}, kappa={share}{', extended=True' if extended else ''}"
    return replace(plan, method=f"fastdpm({knobs})")


def steps_grid(
    schedule: NoiseSchedule, num_steps: int, spacing: Spacing = "linear", *, extended: bool = False
) -> Grid:
    """Return the times of the STEPS approximation: `get_STEP_step` of the authors' code, plus 1.

    Args:
        schedule: noise levels, with whole steps.
        num_steps: S, in [2, T].
        spacing: "linear", ``floor(i (T - 1) / (S - 1))`` in floating point, which ends one early
            for 136 values of S at T = 1000; or "quadratic", the DDIM repository's list.
        extended: end at T in any case.
    """
    T, steps = _checked(schedule, num_steps, spacing, extended)
    if spacing == "quadratic" and not extended:
        return makers.ddim(T, steps, "quadratic")
    if spacing == "quadratic":
        indices = np.square(np.linspace(0.0, math.sqrt(T - 1), steps)).astype(np.int64)
    else:
        indices = np.floor(np.arange(steps) * ((T - 1) / (steps - 1))).astype(np.int64)
    if extended:
        indices[-1] = T - 1
    return Grid.from_indices(indices.tolist())


def var_grid(
    schedule: NoiseSchedule, num_steps: int, spacing: Spacing = "linear", *, extended: bool = False
) -> Grid:
    """Return the times of the VAR approximation, whose levels are the products of `var_betas`.

    Args:
        schedule: noise levels, with whole steps.
        num_steps: S, in [2, T].
        spacing: "linear" or "quadratic".
        extended: end at T where the authors' search stops at its bound before.
    """
    T, _ = _checked(schedule, num_steps, spacing, extended)
    levels = np.cumprod(1.0 - var_betas(schedule, num_steps, spacing, extended=extended))
    lowest = float(schedule.alpha_bar(T))
    times = schedule.time_at(np.maximum(levels, lowest))
    times[0] = 1.0  # because the first variance is beta_1
    falls_short = lowest < levels[-1] * (1.0 - 2e-4)
    if levels[-1] <= lowest * (1.0 + 1e-9) or (falls_short and extended):
        times[-1] = T  # with `extended`, only rounding leaves a gap here
    elif falls_short:
        warn_user(
            f"fastdpm: num_steps should reach alpha_bar(T) = {lowest:.3g} but {num_steps} "
            f"{spacing} variances end at {levels[-1]:.3g} (t = {times[-1]:.6g}), as in the "
            "authors' code; pass extended=True to start at T",
        )
    return Grid(np.append(times[::-1], 0.0))


def var_betas(
    schedule: NoiseSchedule, num_steps: int, spacing: Spacing = "linear", *, extended: bool = False
) -> FloatArray:
    """Return the variances `(S,)` of the VAR approximation, cleanest first.

    They are those of `get_VAR_noise` in the authors' code. The first is beta_1; one free parameter
    is bisected until the product of ``1 - eta`` is within 1e-4 above alpha_bar(T), with the
    authors' midpoints and bounds, so that the variances agree to rounding. Where that search stops
    at its bound, `extended` continues it to alpha_bar(T) itself, up to a last variance of 1.

    Raises:
        ValueError: if no chain of this length and spacing ends at alpha_bar(T).
    """
    T, steps = _checked(schedule, num_steps, spacing, extended)
    target = float(schedule.alpha_bar(T))
    first = -math.expm1(math.log(float(schedule.alpha_bar(1.0))))
    if target <= 0.0:
        raise ValueError(
            "fastdpm: schedule must keep some signal at T for the variances to reach, "
            f"got alpha_bar(T) = {target:g}"
        )

    if spacing == "linear":
        lowest, bound, limit = first, 0.99, 1.0

        def variances(x: float) -> FloatArray:
            return np.linspace(first, x, steps)
    else:
        lowest, bound = 0.0, 0.95 / math.sqrt(first) / steps
        limit = (1.0 / math.sqrt(first) - 1.0) / (steps - 1)

        def variances(x: float) -> FloatArray:
            return first * np.square(1.0 + np.arange(steps) * x)

    def level(x: float) -> float:
        # Clamp to 0, since two variances above 1 would give a positive product again.
        return float(np.prod(np.maximum(1.0 - variances(x), 0.0)))

    highest = level(lowest)
    if highest < target * (1.0 - 1e-9):
        raise ValueError(
            "fastdpm: num_steps must be smaller for growing variances to end at alpha_bar(T) = "
            f"{target:.3g}, got {steps}, where already equal ones of beta_1 end at {highest:.3g}"
        )
    target = min(target, highest)  # for constant betas and S = T they are equal
    x = _bisected(level, lowest, bound, target, 1e-4)
    if extended and level(x) > target * (1.0 + 1e-4):
        x = _bisected(level, x, limit, target, 0.0)
    return variances(x)


def _bisected(
    f: Callable[[float], float], left: float, right: float, target: float, window: float
) -> float:
    """Return x with ``target <= f(x) <= (1 + window) target`` by bisection; f must be decreasing.

    The midpoints are those of the authors' code.
    """
    x = 0.5 * (left + right)
    for _ in range(1000):
        x = 0.5 * (left + right)
        if f(x) < target:
            right = x
        elif f(x) > (1.0 + window) * target and x not in (left, right):
            left = x
        else:
            break
    return x


def _check_alone(schedule: NoiseSchedule, spacing: str, extended: bool) -> None:
    """Check the arguments beside a list; raise for the ones that choose other variances."""
    if not isinstance(schedule, NoiseSchedule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"fastdpm: schedule must be a NoiseSchedule, got {schedule!r}")
    for name, value, default in (("spacing", spacing, "linear"), ("extended", extended, False)):
        if value != default:
            raise ValueError(
                f"fastdpm: {name} must be left out with a list of variances or noise levels, "
                f"got {value!r}"
            )


def _checked(
    schedule: NoiseSchedule, num_steps: int, spacing: str, extended: bool
) -> tuple[int, int]:
    """Check the arguments and return (T, S); raise for a continuous schedule."""
    if not isinstance(schedule, NoiseSchedule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"fastdpm: schedule must be a NoiseSchedule, got {schedule!r}")
    if schedule.num_steps is None:
        grid = "fs.grids.flow(K, shift=...)" if schedule.kind == "flow" else "real times"
        raise ValueError(
            f'fastdpm: schedule must have whole steps, got {schedule!r}; take method="ddim" on '
            f"{grid} instead"
        )
    if spacing not in ("linear", "quadratic"):
        raise ValueError(f'fastdpm: spacing must be "linear" or "quadratic", got {spacing!r}')
    check_bool("fastdpm", "extended", extended)
    steps = check_integer("fastdpm", "num_steps", num_steps, 2, schedule.num_steps)
    return schedule.num_steps, steps
