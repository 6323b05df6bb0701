"""A pipeline's run on a device: its timesteps, and the rows that its steps execute."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import FloatArray
from fastsample.integrations.diffusers.course import Course, Rows
from fastsample.plans.rows import COLUMNS

_P, _Q, _E, _D = (COLUMNS.index(name) for name in ("p", "q", "e", "d"))
_LO, _HI = COLUMNS.index("lo"), COLUMNS.index("hi")


class DeviceRows:
    """The rows of a run on a device.

    Args:
        rows: the rows.
        device: the device.
        x0_given: whether steps are given x0 itself instead of the network's output, as with
            dynamic thresholding.

    Attributes:
        table: `(R, 15)` on the device.
        numbers: the row numbers, R tensors `(1,)` on the device.
        groups: for each timestep the numbers of its rows.
        slots: the buffers of the x0 estimates.
        terms: for each row (p, q, lo, hi) of its x0 estimate.
        deviations: for each row its weight of the noise.
        output_weights: for each row its weight of the network's output.
    """

    def __init__(self, rows: Rows, device: torch.device, *, x0_given: bool = False) -> None:
        values = rows.table
        columns: list[list[float]] = values.tolist()
        self.terms = [(r[_P], r[_Q], r[_LO], r[_HI]) for r in columns]
        self.deviations = [r[_D] for r in columns]
        self.output_weights = [r[_E] for r in columns]
        if x0_given:
            values = np.array(values)
            values[:, [_P, _E]], values[:, _Q] = 0.0, 1.0
        self.host = values
        self.groups, self.slots = rows.groups, rows.slots
        # Tensors made in inference mode could not be used in a graph of autograd later.
        with torch.inference_mode(False):
            self.table = torch.as_tensor(
                np.array(values), dtype=ops.rows_dtype(device), device=device
            )
            self.numbers_flat = torch.arange(len(values), device=device)
            self.numbers: list[Tensor] = [self.numbers_flat[k : k + 1] for k in range(len(values))]


class Run:
    """The timesteps of `set_timesteps` on a device, and their rows.

    Args:
        course: the noise levels and rows.
        device: where the timesteps go.
        owner: what is kept alive with the run, since its `id` is the key of the run.
        threshold: (quantile, largest bound) of dynamic thresholding, or None.

    Attributes:
        course: the noise levels and rows.
        threshold: as given.
        start_scale: the factor of the noise that the run starts from.
        request: the arguments of `set_timesteps`, and the device.
        shown_sigmas: what the scheduler showed as its sigmas.
        timesteps: `(K,)` on the device; the pipeline iterates over it.
        is_stochastic: whether any step adds noise.
        looks_back: whether steps read the x0 estimates of steps before them.
        alphas: `(K + 1,)` float32 on the device.
        sigmas: `(K + 1,)` float32 on the device.
    """

    def __init__(
        self,
        course: Course,
        device: torch.device,
        owner: object,
        threshold: tuple[float, float] | None,
    ) -> None:
        self.course, self.threshold, self._owner = course, threshold, owner
        self.start_scale = 1.0
        self.request: Any = None
        self.shown_sigmas: Tensor | None = None
        with torch.inference_mode(False):
            self.timesteps = course.timesteps.to(device, copy=True)
            self.alphas, self.sigmas = (
                torch.as_tensor(levels.astype(np.float32), device=device)
                for levels in (course.alphas, course.sigmas)
            )
        self._address = self.timesteps.data_ptr()
        self._itemsize = self.timesteps.element_size()
        self._bytes = self._itemsize * len(self.timesteps)
        self.values: list[float] = course.timesteps.double().numpy().tolist()
        self._rows: dict[Any, DeviceRows] = {}
        first = self.rows(0, None, None, device)
        self.looks_back = first.slots.count > 0
        self.is_stochastic = any(first.deviations)
        self._terms = [first.terms[rows[0]] for rows in first.groups]

    def __len__(self) -> int:
        return len(self.values)

    def number_of_view(self, timestep: Any) -> int | None:
        """Return the number of a timestep that is a view of `timesteps`; None for another one."""
        if not isinstance(timestep, Tensor) or timestep.numel() != 1:
            return None
        offset = timestep.data_ptr() - self._address
        if 0 <= offset < self._bytes and timestep.dtype == self.timesteps.dtype:
            return offset // self._itemsize
        return None

    def number_of_value(self, timestep: Any, expected: int | None) -> int | None:
        """Return the number of a timestep by its value; None if it is none of the run's.

        Args:
            timestep: the timestep, a number or a tensor; one of lower precision means the value
                that it was rounded from.
            expected: the number that would follow the last one; preferred among equal values.
        """
        values = self.values
        if isinstance(timestep, Tensor) and timestep.dtype in (torch.bfloat16, torch.float16):
            values = self.course.timesteps.to(timestep.dtype).double().numpy().tolist()
        value = float(timestep)
        if expected is not None and expected < len(self) and values[expected] == value:
            return expected
        return values.index(value) if value in values else None

    def rows(
        self, begin: int, eta: float | None, rederive: bool | None, device: torch.device
    ) -> DeviceRows:
        """Return the rows from a timestep on; made at the first request."""
        key = (begin, eta, rederive, device)
        if key not in self._rows:
            rows = self.course.rows(begin, eta, rederive)
            self._rows[key] = DeviceRows(rows, device, x0_given=self.threshold is not None)
        return self._rows[key]

    def terms(self, k: int) -> tuple[float, float, float, float]:
        """Return (p, q, lo, hi) of the x0 estimate of timestep number k."""
        return self._terms[k]


def ratios(alphas: FloatArray, sigmas: FloatArray, is_flow: bool) -> FloatArray:
    """Return what diffusers calls sigmas: sigma / alpha, or t for flow matching."""
    if is_flow:
        return sigmas
    return np.divide(sigmas, alphas, out=np.full_like(sigmas, np.inf), where=alphas > 0.0)
