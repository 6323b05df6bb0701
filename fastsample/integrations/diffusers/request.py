"""The arguments of `FastSampleScheduler.set_timesteps`, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fastsample._support.checks import check_integer, check_vector

SET_TIMESTEPS = "set_timesteps"
"""The caller's name in messages."""


@dataclass(frozen=True)
class Request:
    """The arguments of `set_timesteps`; see there."""

    steps: int | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    mu: float | None = None

    @property
    def count(self) -> int:
        """The number of steps."""
        if self.timesteps is not None:
            return len(self.timesteps)
        return len(self.sigmas) if self.sigmas is not None else self.steps or 0


def checked_request(
    steps: Any, timesteps: Any, sigmas: Any, mu: float | None, is_flow: bool, limit: int
) -> Request:
    """Return the arguments of `set_timesteps` after checking them.

    Args:
        steps: number of steps, or None with a list.
        timesteps: falling timesteps of the network, or None.
        sigmas: falling sigmas, or None.
        mu: shift of a flow-matching model's list, or None.
        is_flow: whether the network is a flow-matching model.
        limit: number of trained timesteps.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: both lists, none, or one that does not fall or is out of range.
    """
    name = SET_TIMESTEPS
    if timesteps is not None and sigmas is not None:
        raise ValueError(f"{name}: timesteps and sigmas must not be given together, got both")
    if timesteps is None and sigmas is None:
        if steps is None:
            raise ValueError(
                f"{name}: num_inference_steps must be given without timesteps or sigmas, got None"
            )
        return Request(check_integer(name, "num_inference_steps", steps, 1, limit), mu=mu)
    kind, given = ("timesteps", timesteps) if sigmas is None else ("sigmas", sigmas)
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    values = check_vector(name, kind, given)
    if not values.size or np.any(np.diff(values) >= 0):
        raise ValueError(f"{name}: {kind} must fall from step to step, got {values.tolist()}")
    if kind == "timesteps":
        highest = float(limit if is_flow else limit - 1)
        if values[0] > highest or values[-1] < 0.0 or (is_flow and values[-1] == 0.0):
            raise ValueError(
                f"{name}: timesteps must be in {'(' if is_flow else '['}0, {highest:g}], got "
                f"{values[0]:g} to {values[-1]:g}"
            )
        return _checked_count(steps, Request(steps, tuple(values.tolist()), mu=mu))
    if values[-1] < 0.0 or (is_flow and values[0] > 1.0 + 1e-6):
        raise ValueError(
            f"{name}: sigmas must be in [0, {'1' if is_flow else 'inf'}], got {values[0]:g} to "
            f"{values[-1]:g}"
        )
    if len(values) > 1 and values[-1] == 0.0:
        values = values[:-1]  # Lists of sigmas come with and without the final 0.
    return _checked_count(steps, Request(steps, sigmas=tuple(values.tolist()), mu=mu))


def _checked_count(steps: Any, request: Request) -> Request:
    """Return the request; ValueError for a number of steps that is not that of the list."""
    if steps is not None and steps != request.count:
        raise ValueError(
            f"{SET_TIMESTEPS}: num_inference_steps must be left out or be the length of the list, "
            f"{request.count}, got {steps}"
        )
    return request
