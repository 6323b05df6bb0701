"""Remembers the plans of the last calls of `sample`, so that a call like them need not make one."""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

import torch

from fastsample._support.checks import warn_user
from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.sampling.first_node import signal_at_start
from fastsample.sampling.program import Program
from fastsample.sampling.resolve import PlanRequest, Resolved, resolve

Value = TypeVar("Value")

_STEPS = (int, float, str, Plan, Grid, type(None))  # the kinds of `steps` that cannot change


class Recent(Generic[Value]):
    """A thread-safe memory of the values that were asked for last.

    Args:
        size: number of values that are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._values: OrderedDict[Any, Value] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Value]) -> Value:
        """Return the value of a key, made now if it is not remembered.

        A key that cannot be hashed is not remembered.
        """
        try:
            with self._lock:
                value = self._values.get(key)
                if value is not None:
                    self._values.move_to_end(key)
                    return value
        except TypeError:
            return make()
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value


@dataclass(frozen=True, eq=False)
class Prepared:
    """A resolved plan, and its programs by device. It holds no network.

    Attributes:
        resolved: the plan and where it came from.
        programs: the programs that were made so far.
        kept: objects whose identity is part of the key under which this is remembered.
        warning: what a run from noise should warn of, see `signal_at_start`.
        warned: the functions that did.
    """

    resolved: Resolved
    programs: dict[torch.device, Program] = field(default_factory=dict[torch.device, Program])
    kept: Any = None
    warning: str | None = None
    warned: set[str] = field(default_factory=set[str])

    @classmethod
    def of(cls, denoiser: Denoiser, resolved: Resolved, kept: Any = None) -> Prepared:
        """Return a resolved plan of a model, with what is to be told of it."""
        # Here and not in a run, because torch.compile cannot trace NumPy code; see `Sampler`.
        warning = signal_at_start(denoiser.schedule, resolved.plan)
        return cls(resolved, kept=kept, warning=warning)

    @cached_property
    def is_stochastic(self) -> bool:
        """Whether any row draws noise."""
        return self.resolved.plan.is_stochastic

    def warn_of_start(self, function: str) -> None:
        """Warn, once per function, of a plan that should not be run from noise."""
        if self.warning and function not in self.warned:
            self.warned.add(function)
            warn_user(f"{function}: {self.warning}")

    def program(self, denoiser: Denoiser, device: torch.device) -> Program:
        """Return the plan's program on a device."""
        program = self.programs.get(device)
        if program is None:
            program = Program.of(denoiser, self.resolved.plan, device)
            if program.is_plain:  # fake tensors, say, would fail in later calls
                self.programs[device] = program
        return program


_PREPARED: Recent[Prepared] = Recent(64)


def prepare(function: str, denoiser: Denoiser, request: PlanRequest) -> Prepared:
    """Return the plan of a request, remembered if the same was asked for before.

    Whatever the plan depends on is compared: the arguments by value and type, the schedule, the
    profile and a tuned plan as objects. Requests with lists, arrays or tensors, which may change,
    and those of a model whose `time` is a function, are resolved anew.

    Args:
        function: the caller's name, for messages.
        denoiser: the model.
        request: the arguments of the caller.

    Raises:
        TypeError: see `resolve`.
        ValueError: see `resolve`.
    """
    r, knobs = request, request.knobs
    # Lists and arrays may change, and a time function may keep a network alive.
    if not (isinstance(r.steps, _STEPS) and isinstance(denoiser.time, str)):
        return Prepared.of(denoiser, resolve(function, denoiser, request))
    # For a model without thresholding "auto" is none.
    threshold = r.threshold if denoiser.threshold or not isinstance(r.threshold, str) else None
    values = (
        *(r.method, r.grid, r.clip, r.grid_seed, r.guidance, r.guidance_interval),
        *(r.guidance_rescale, threshold, r.default, r.whole, *knobs.values()),
        *(denoiser.prediction, denoiser.variance, denoiser.clip, denoiser.threshold),
        denoiser.last if r.models_last else "data",
    )
    try:
        constants = _constants(values)
    except TypeError:
        return Prepared.of(denoiser, resolve(function, denoiser, request))
    steps = r.steps if isinstance(r.steps, (int, float, str)) else id(r.steps)
    kept = (r.steps, denoiser.schedule, denoiser.profile, _tuned(denoiser, r.steps))
    key = (
        *(steps, type(r.steps), constants, *knobs, denoiser.shape, denoiser.time),
        *map(id, kept[1:]),
    )
    return _PREPARED.get(
        key, lambda: Prepared.of(denoiser, resolve(function, denoiser, request), kept)
    )


def _constants(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return values with their types, because True and 1.0 equal 1, and are not always as good.

    Raises:
        TypeError: a value that may change: anything but a number, a string, None or tuples of them.
    """
    found: list[Any] = []
    for value in values:
        if isinstance(value, tuple):
            found.append(_constants(cast("tuple[Any, ...]", value)))
        elif value is None or isinstance(value, (int, float, str)):
            found.append((type(value), value))
        else:
            raise TypeError(f"a value must be constant, got {value!r}")
    return tuple(found)


def _tuned(denoiser: Denoiser, steps: Any) -> Any:
    """Return the model's tuned plan of this number of steps, or None."""
    if not denoiser.plans:
        return None
    try:
        return denoiser.plans.get(operator.index(steps))
    except TypeError:
        return None
