"""Functions that make grids from T and a number of steps, by published rules.

Each one reproduces the rounding of the code it names, since a time that is off by one makes another
sampler. Integer times are the papers' steps 1..T; a trained network's timestep is the time minus 1.
Every function raises TypeError for an argument of the wrong type and ValueError for one out of
range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastsample._support.checks import check_integer, check_real
from fastsample.grids.grid import Grid

MOST_EXPONENT = 16.0  # beyond it, times near the data would coincide


def uniform(T: float, num_steps: int) -> Grid:
    """Make a grid of K + 1 evenly spaced times ``T k / K``, rounded half up when T is an int.

    Unlike the timestep lists of other projects it starts at T, and need not hold t = 1.

    Args:
        T: noisiest time. An int gives integer times, a float (as for vdm and flow) real ones.
        num_steps: K, at least 1; at most T for integer times.
    """
    whole, steps = _budget("grids.uniform", T, num_steps)
    k = np.arange(steps, -1, -1)
    if whole is None:
        return Grid(float(T) * (k / steps))
    return Grid([(2 * whole * int(i) + steps) // (2 * steps) for i in k])


def quadratic(T: float, num_steps: int) -> Grid:
    """Make a grid of K + 1 times ``T (k / K)^2``, k = K..0.

    For integer T they are rounded half up, and raised where they would repeat.

    Unlike the DDIM repository's quadratic list (`ddim`) this one starts at T and never repeats a
    time.

    Args:
        T: noisiest time. An int gives integer times, a float (as for vdm and flow) real ones.
        num_steps: K, at least 1; at most T for integer times.
    """
    whole, steps = _budget("grids.quadratic", T, num_steps)
    if whole is None:
        return Grid(float(T) * np.square(np.arange(steps, -1, -1) / steps))
    square = steps * steps
    return distinct([(2 * whole * k * k + square) // (2 * square) for k in range(steps + 1)])


def power(T: float, num_steps: int, exponent: float = 1.75) -> Grid:
    """Make a grid of K + 1 times ``T (k / K)^exponent``, k = K..0, denser near the data.

    For integer T they are rounded to the nearest integer, and moved apart where they would repeat.

    Args:
        T: noisiest time. An int gives integer times, a float (as for vdm and flow) real ones.
        num_steps: K, at least 1; at most T for integer times.
        exponent: from 1, which gives evenly spaced times, to 16.
    """
    whole, steps = _budget("grids.power", T, num_steps)
    p = check_real("grids.power", "exponent", exponent, 1.0, MOST_EXPONENT)
    real = float(T) * (np.arange(steps + 1) / steps) ** p
    return Grid(real[::-1]) if whole is None else distinct(np.floor(real + 0.5).tolist())


def respaced(T: int, sections: int | str | Sequence[int]) -> Grid:
    """Make the grid of the function `space_timesteps` in improved-diffusion.

    Nichol and Dhariwal 2021 (arXiv:2102.09672). Times are its timesteps plus 1.

    Args:
        T: trained steps.
        sections: steps kept in each of equal sections of the process, as `[10, 15, 20]` or
            `"10,15,20"`; an int is one section. `"ddimN"` is the stride that gives exactly N steps,
            an error for most N. `[1]` keeps t = 1 only, as in improved-diffusion.
    """
    name = "grids.respaced"
    whole = check_integer(name, "T", T, 1)
    if isinstance(sections, str) and sections.startswith("ddim"):
        count = _parse(sections.removeprefix("ddim"), sections)
        for stride in range(1, whole):
            if len(range(0, whole, stride)) == count:
                return Grid.from_indices(range(0, whole, stride))
        raise ValueError(
            f"{name}: sections must name a step count that some stride of T = {whole} gives, got "
            f'"{sections}"; pass sections="{count}" for evenly spaced times'
        )
    if isinstance(sections, str):
        counts = [_parse(part, sections) for part in sections.split(",")]
    else:
        values = sections if isinstance(sections, Sequence) else [sections]
        counts = [check_integer(name, "sections", value, 0) for value in values]
    if sum(counts) < 1:
        raise ValueError(f"{name}: sections must keep at least one step, got {sections!r}")
    indices: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = whole // len(counts) + (i < whole % len(counts))
        if count > size:
            raise ValueError(
                f"{name}: sections must not exceed their share of T = {whole}, "
                f"got {count} steps for section {i} of {size}"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            indices.append(start + round(position))  # Python rounds half to even
            position += stride  # k * stride would round differently for 283 of K = 2..1000
        start += size
    return Grid.from_indices(indices)


def ddim(T: int, num_steps: int, spacing: Literal["uniform", "quadratic"] = "uniform") -> Grid:
    """Make one of the two grids of the DDIM repository, uniform or quadratic.

    Song et al. 2021 (arXiv:2010.02502), appendix D.2. Times are its timesteps plus 1. They stop
    short of T (at 901 and 801 for T = 1000, 10 steps). "uniform" may hold more than `num_steps`
    times, since its stride is ``T // K``; "quadratic" repeats low timesteps from K = 30 on: the
    repeats are identity steps and are dropped. The grid's ``len`` is its real number of steps.

    Args:
        T: trained steps.
        num_steps: steps asked for, in [1, T].
        spacing: "uniform" or "quadratic" (the repository's "quad").
    """
    whole, steps = _integer_budget("grids.ddim", T, num_steps)
    if spacing == "uniform":
        return Grid.from_indices(range(0, whole, whole // steps))
    if spacing == "quadratic":
        return Grid.from_indices(
            [int(v) for v in np.square(np.linspace(0, math.sqrt(whole * 0.8), steps))]
        )
    raise ValueError(f'grids.ddim: spacing must be "uniform" or "quadratic", got {spacing!r}')


def diffusers(
    T: int,
    num_steps: int,
    spacing: Literal["leading", "trailing", "linspace"] = "leading",
    steps_offset: int = 0,
    *,
    family: Literal["ddim", "multistep"] = "ddim",
) -> Grid:
    """Make the grid of `set_timesteps` of a scheduler in diffusers 0.42.

    Times are its timesteps plus 1. The spacings are those of Lin et al. 2023, "Common Diffusion
    Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891), table 2. As in diffusers, only
    "leading" uses `steps_offset`. For some K (62 of those up to T = 1000) the float stride of
    diffusers' "trailing" yields one more timestep, -1, which no network has: it is dropped. So are
    the repeats of "linspace" of the multistep schedulers, which appear near K = T.

    Args:
        T: `num_train_timesteps`.
        num_steps: `num_inference_steps`, in [1, T].
        spacing: `timestep_spacing`.
        steps_offset: number >= 0 added to the timesteps of "leading"; 1 in Stable Diffusion.
        family: "ddim" is the list of `DDIMScheduler` and `DDPMScheduler`; "multistep" that of
            `DPMSolverMultistepScheduler` and `UniPCMultistepScheduler`, which space K + 1
            timesteps in "leading" and "linspace" and leave out the last one.
    """
    name = "grids.diffusers"
    whole, steps = _integer_budget(name, T, num_steps)
    offset = check_integer(name, "steps_offset", steps_offset, 0)
    if family not in ("ddim", "multistep"):
        raise ValueError(f'{name}: family must be "ddim" or "multistep", got {family!r}')
    unused = int(family == "multistep")  # timesteps that are spaced with the others and left out
    if spacing == "leading":
        stride = whole // (steps + unused)
        if stride == 0:
            raise ValueError(
                f'{name}: num_steps must be below T = {whole} for "leading" of family "multistep", '
                f"got {steps}"
            )
        indices = np.arange(unused, steps + unused, dtype=np.int64) * stride + offset
        if indices[-1] >= whole:
            raise ValueError(
                f"{name}: steps_offset must keep every index below T = {whole}, "
                f"got {offset} with top index {indices[-1]}"
            )
    elif spacing == "trailing":
        indices = np.rint(np.arange(whole, 0, -whole / steps)).astype(np.int64) - 1
        indices = indices[indices >= 0]
    elif spacing == "linspace":
        indices = np.rint(np.linspace(0, whole - 1, steps + unused)).astype(np.int64)[unused:]
    else:
        raise ValueError(
            f'{name}: spacing must be "leading", "trailing" or "linspace", got {spacing!r}'
        )
    return Grid.from_indices(indices)


def random(T: float, num_steps: int, seed: int) -> Grid:
    """Make a grid of T, then K - 1 distinct random times below T, followed by 0.

    Shortcut sampling uses it: Chen 2023 (arXiv:2301.01206). The paper's "K = 10" makes 11 network
    calls, so K is 11 here.

    Args:
        T: noisiest time. An int gives integer times, a float (as for vdm and flow) real ones.
        num_steps: K, at least 1; at most T for integer times.
        seed: seed of NumPy's default generator, an int >= 0.
    """
    whole, steps = _budget("grids.random", T, num_steps)
    generator = np.random.default_rng(check_integer("grids.random", "seed", seed, 0))
    if whole is None:
        inner = float(T) * (1.0 - generator.random(steps - 1))
    else:
        inner = 1.0 + generator.permutation(whole - 1)[: steps - 1]
    return Grid([float(T), *sorted(inner.tolist(), reverse=True), 0.0])


def distinct(times: Sequence[float]) -> Grid:
    """Make the grid of rising whole times from 0 to T, moved apart where they would repeat.

    A time is raised above the one before it. Where that would lead beyond T, it is lowered instead.
    """
    moved, T = list(times), times[-1]
    for k in range(1, len(moved)):
        moved[k] = max(moved[k], moved[k - 1] + 1)
    moved[-1] = T
    for k in range(len(moved) - 2, 0, -1):
        moved[k] = min(moved[k], moved[k + 1] - 1)
    return Grid(moved[::-1])


def _budget(name: str, T: float, num_steps: int) -> tuple[int | None, int]:
    """Check T and the number of steps; return (T if it is an int, else None; number of steps)."""
    if isinstance(T, int | np.integer) and not isinstance(T, bool):
        return _integer_budget(name, int(T), num_steps)
    if check_real(name, "T", T) <= 0.0:
        raise ValueError(f"{name}: T must be positive, got {T:g}")
    return None, check_integer(name, "num_steps", num_steps, 1)


def _integer_budget(name: str, T: int, num_steps: int) -> tuple[int, int]:
    """Check that T and the number of steps are integers, steps <= T, and return both."""
    whole = check_integer(name, "T", T, 1)
    return whole, check_integer(name, "num_steps", num_steps, 1, whole)


def _parse(text: str, sections: str) -> int:
    """Return the integer in one part of the string `sections`; raise for other text."""
    if not text.strip().isdecimal():
        raise ValueError(
            f'grids.respaced: sections must look like "10,15,20" or "ddim50", got "{sections}"'
        )
    return int(text)
