"""The lists of times that programs make for flow-matching models, and the shift of such a list."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np

from fastsample._support.checks import FloatArray, check_integer, check_real
from fastsample.grids.grid import Grid

Like: TypeAlias = Literal["sigmas", "euler", "unipc", "dpm"]

_TRAINED_STEPS = 1000  # `num_train_timesteps` of diffusers, the same for all published flow models
_UNIPC_GAP = 1e-6  # UniPC starts this far below t = 1, where its log SNR would be infinite


def flow(
    num_steps: int,
    *,
    shift: float = 1.0,
    mu: float | None = None,
    terminal: float | None = None,
    like: Like = "sigmas",
) -> Grid:
    r"""Make the times of a flow-matching model, as one of four programs would.

    Time t is sigma, from 1 (noise) to 0 (data), as in `NoiseSchedule.flow`. All lists begin with
    evenly spaced times and shift them towards the noise by ``shift t / (1 + (shift - 1) t)`` (Esser
    et al. 2024, arXiv:2403.03206, eq. 23). They differ in what is spaced evenly, so that one shift
    means four lists. In diffusers 0.42 they are those of

    - "sigmas": `FlowMatchEulerDiscreteScheduler` given ``sigmas=linspace(1, 1 / K, K)``, as the
      pipelines of FLUX, Qwen-Image and Z-Image call it. Shift 1 is `uniform(1.0, K)`.
    - "euler": the same scheduler given the number of steps (Stable Diffusion 3). The last time is
      0.001, shifted twice: by the scheduler's constructor and with the others.
    - "unipc": `UniPCMultistepScheduler` with `use_flow_sigmas` (Wan). Its first time is 1 - 1e-6.
    - "dpm": `DPMSolverMultistepScheduler` with `use_flow_sigmas`. Its first time is the shifted
      0.999.

    Args:
        num_steps: K, at least 1.
        shift: positive; `shift` or `flow_shift` of the scheduler. Above 1, more times are noisy.
        mu: dynamic shifting of time_shift_type "exponential" instead: the shift is ``e^mu``
            (`flow_mu` computes mu from the resolution). "euler" then shifts its last time once. For
            time_shift_type "linear", where mu is the shift itself, pass its logarithm as `mu`;
            except with "euler" that is the same as ``shift=mu``.
        terminal: `shift_terminal` of the scheduler, in (0, 1): the shifted times are stretched away
            from 1 until the last one above 0 is this. It needs two steps, and "dpm" has none.
        like: the program, see above.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, both `shift` and `mu`, or times so close to each other
            that they coincide.
    """
    name = "grids.flow"
    steps = check_integer(name, "num_steps", num_steps, 1)
    factor = check_real(name, "shift", shift)
    if factor <= 0.0:
        raise ValueError(f"{name}: shift must be positive, got {factor:g}")
    if mu is not None:
        exponent = check_real(name, "mu", mu, -20.0, 20.0)
        if factor != 1.0:
            raise ValueError(f"{name}: shift must be left out with mu, got both {shift} and {mu}")
        factor = math.exp(exponent)
    if like not in get_args(Like):
        raise ValueError(f"{name}: like must be one of {list(get_args(Like))}, got {like!r}")
    end = None if terminal is None else _checked_terminal(name, terminal, steps, like)

    times: FloatArray
    # The operations are those of diffusers in their order: a truncated timestep shows each bit.
    if like == "sigmas":
        times = _shifted(np.linspace(1.0, 1.0 / steps, steps), factor)
    elif like == "euler":
        last: FloatArray = np.asarray(1.0 / _TRAINED_STEPS)
        if mu is None:
            last = _shifted(last, factor)
        spaced = np.linspace(float(_TRAINED_STEPS), last * _TRAINED_STEPS, steps) / _TRAINED_STEPS
        times = _shifted(spaced, factor)
    elif like == "unipc":
        spaced = np.linspace(1.0, 1.0 / _TRAINED_STEPS, steps + 1)[:-1]
        times = _shifted(spaced, factor) if mu is None else factor / (factor + (1 / spaced - 1))
    else:
        spaced = np.subtract(1.0, np.linspace(1.0, 1.0 / _TRAINED_STEPS, steps + 1))
        times = _shifted(spaced, factor)[:0:-1]
    if end is not None:
        data = 1.0 - times
        times = 1.0 - data / (data[-1] / (1.0 - end))
    if like == "unipc" and abs(times[0] - 1.0) < _UNIPC_GAP:
        times[0] -= _UNIPC_GAP
    if times[-1] <= 0.0 or np.any(np.diff(times) >= 0.0):
        argument, value = ("shift", shift) if mu is None else ("mu", mu)
        raise ValueError(
            f'{name}: {argument} must leave the {steps} times of like="{like}" apart from each '
            f"other, got {value}"
        )
    return Grid(np.append(times, 0.0))


def flow_mu(
    sequence_length: int,
    *,
    base_seq_len: int = 256,
    max_seq_len: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """Return the `mu` of `flow` for an image size, as the pipelines of diffusers compute it.

    It is `calculate_shift` of the FLUX pipeline: a straight line through (base_seq_len, base_shift)
    and (max_seq_len, max_shift), continued beyond both. The values of other models are in the
    configuration of their scheduler, as `base_image_seq_len`, `max_image_seq_len`, `base_shift` and
    `max_shift`; the defaults are FLUX.1's.

    Args:
        sequence_length: image tokens of one sample. For FLUX there is one per 2 x 2 latent pixels,
            which are 16 x 16 image pixels: 4096 for 1024 x 1024.
        base_seq_len: tokens at which mu is `base_shift`.
        max_seq_len: tokens at which mu is `max_shift`, more than `base_seq_len`.
        base_shift: mu of the small images.
        max_shift: mu of the large images.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a length below 1, or `max_seq_len` not above `base_seq_len`.
    """
    name = "grids.flow_mu"
    tokens = check_integer(name, "sequence_length", sequence_length, 1)
    first = check_integer(name, "base_seq_len", base_seq_len, 1)
    last = check_integer(name, "max_seq_len", max_seq_len, 1)
    if last <= first:
        raise ValueError(f"{name}: max_seq_len must be above base_seq_len = {first}, got {last}")
    low = check_real(name, "base_shift", base_shift)
    slope = (check_real(name, "max_shift", max_shift) - low) / (last - first)
    return tokens * slope + (low - slope * first)


def _shifted(times: FloatArray, shift: float) -> FloatArray:
    """Return ``shift t / (1 + (shift - 1) t)``."""
    return shift * times / (1.0 + (shift - 1.0) * times)


def _checked_terminal(name: str, terminal: float, steps: int, like: Like) -> float:
    """Return `shift_terminal` as a float; raise where no program has one."""
    if like == "dpm":
        raise ValueError(
            f'{name}: terminal must be left out with like="dpm", whose scheduler has no '
            f"shift_terminal, got {terminal!r}"
        )
    value = check_real(name, "terminal", terminal)
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name}: terminal must be in (0, 1), got {value:g}")
    if steps == 1:
        raise ValueError(
            f"{name}: num_steps must be at least 2 with terminal, got 1: the first time is always 1"
        )
    return value
