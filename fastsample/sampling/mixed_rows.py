"""The class `RowTable`: the rows of one or several plans, for batches at a row per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import check_integer
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.ops.dtypes import DTYPE_CODES
from fastsample.plans.plan import Plan
from fastsample.plans.rows import calls_network, columns_of, history_length, row_table

Numbers: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RowTable:
    """The rows of P plans, one below the other, with what a batch at mixed rows has to know.

    The arrays are on the host, where they decide what is run; the tensors are on a device. The
    last of the R rows belongs to no plan: it changes nothing and is for samples that rest.

    Attributes:
        plans: the P plans.
        rows: the coefficients `(R, 15)`.
        timesteps: the timestep that the network takes in each row but the last, `(R - 1,)`. Where
            some plans have whole timesteps and others do not, all are float32.
        first: `(P,)` where each plan's rows begin.
        calls: `(R,)` whether a row calls the network.
        guided: `(R,)` whether a row reads the unconditional output: its guidance scale is not 1.
        noisy: `(R,)` whether a row draws noise.
        looks_back: `(R,)` the number of earlier x0's that a row reads, 0 to 4.
        returns: `(R,)` whether a row goes back to a noisier node, after which no earlier x0 counts.
    """

    plans: tuple[Plan, ...]
    rows: Tensor
    timesteps: Tensor
    first: Numbers
    calls: Mask
    guided: Mask
    noisy: Mask
    looks_back: Numbers
    returns: Mask

    @classmethod
    def of(
        cls, plans: Sequence[Plan], denoisers: Sequence[Denoiser], device: torch.device
    ) -> RowTable:
        """Stack plans on a device.

        Args:
            plans: the plans, which run from noise to data.
            denoisers: for each plan the model that knows the timesteps of its times.
            device: the device of the samples.
        """
        lengths = [len(plan) for plan in plans]
        rows = np.concatenate([*(plan.rows for plan in plans), row_table(1, a=1.0)])
        columns, calls = columns_of(rows), calls_network(rows)
        # Tensors made in inference mode could not be used in a backward pass later.
        with torch.inference_mode(False):
            timesteps = [
                denoiser.network_times(plan.times, device)
                for plan, denoiser in zip(plans, denoisers, strict=True)
            ]
            dtype = reduce(torch.promote_types, (t.dtype for t in timesteps))
            return cls(
                tuple(plans),
                torch.as_tensor(rows, dtype=ops.rows_dtype(device), device=device),
                torch.cat([t.to(dtype) for t in timesteps]),
                np.cumsum([0, *lengths[:-1]]),
                calls,
                calls & (columns["w"] != 1.0),
                columns["d"] > 0,
                np.array([history_length(row) for row in rows], np.int64),
                np.concatenate([*(np.diff(plan.nodes) > 0 for plan in plans), [False]]),
            )

    def numbers(
        self, function: str, row: Numbers, which: Numbers, *, rests: bool = False
    ) -> Numbers:
        """Return where the samples' rows are in the table, `(B,)`.

        Args:
            function: the caller's name, for messages.
            row: `(B,)` the row of each sample in its own plan.
            which: `(B,)` the plan of each sample.
            rests: whether a row may be -1, which stands for the last row of the table.

        Raises:
            ValueError: a plan or a row that is not there.
        """
        lengths = np.array([len(plan) for plan in self.plans], np.int64)
        for sample in np.flatnonzero((which < 0) | (which >= len(lengths))):
            raise ValueError(
                f"{function}: sampler must be in [0, {len(lengths) - 1}], got {which[sample]} for "
                f"sample {sample}"
            )
        least = -1 if rests else 0
        for sample in np.flatnonzero((row < least) | (row >= lengths[which])):
            raise ValueError(
                f"{function}: row must be in [{least}, {lengths[which[sample]] - 1}], the rows of "
                f"the sample's plan, got {row[sample]} for sample {sample}"
            )
        return np.where(row < 0, len(self.calls) - 1, self.first[which] + row)

    def call(
        self, denoiser: Denoiser, x: Tensor, numbers: Numbers, conditions: Conditions
    ) -> tuple[Tensor, Tensor | None]:
        """Call the network at most once, for the samples whose rows call it.

        Under guidance it runs two samples for each of them if any of them is guided. A sample that
        does not need an output has values in its place that its row does not read.

        Args:
            denoiser: the model.
            x: samples `(B, *shape)`.
            numbers: `(B,)` their rows in the table.
            conditions: of the B samples; with "no condition" if any of them is guided.

        Returns:
            The conditional output for `ops.step`, and the unconditional one or None.
        """
        calls = self.calls[numbers]
        if not calls.any():
            return x, None
        callers = None if calls.all() else np.flatnonzero(calls)
        guided = self.guided[numbers[calls]]
        inputs = conditions if callers is None else conditions.select(callers)
        if not guided.any():
            inputs = inputs.conditional
        index = None if callers is None else torch.as_tensor(callers, device=x.device)
        current = x if index is None else x.index_select(0, index)
        timestep = self.timesteps[torch.as_tensor(numbers[calls], device=x.device)]
        timestep = timestep.repeat(2) if inputs.guided else timestep
        given = inputs.doubled(current)
        version = None if given.is_inference() else given._version
        output = denoiser.at_timestep(given, timestep, inputs.arguments)
        if version is not None and given._version != version:
            raise ValueError(
                "Denoiser: the model must not write to x, got a change; copy x in the network "
                "before writing to it"
            )
        conditional, unconditional = inputs.split(output)
        if unconditional is not None and not guided.all():
            # u + 1 (c - u) is c only up to rounding, but c + w (c - c) is c.
            mask = torch.as_tensor(guided, device=x.device).reshape(-1, *[1] * (x.dim() - 1))
            unconditional = torch.where(mask, unconditional, conditional)
        if index is not None:
            rest = x if conditional.shape[1] == x.shape[1] else torch.cat((x, x), dim=1)
            conditional = rest.index_copy(0, index, conditional)
            if unconditional is not None:
                unconditional = rest.index_copy(0, index, unconditional)
        return conditional, unconditional


def check_samples(function: str, name: str, x: Any, denoiser: Denoiser) -> Tensor:
    """Return a batch of samples `(B, *shape)`; raise unless the model's rows can run on it.

    Raises:
        TypeError: no tensor, or another dtype than the kernels compute with.
        ValueError: another shape, or a device other than the model's.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in DTYPE_CODES:
        raise TypeError(
            f"{function}: {name} must be one of {[str(known) for known in DTYPE_CODES]}, "
            f"got {x.dtype}"
        )
    if x.dim() < 2 or tuple(x.shape[1:]) != denoiser.shape:
        raise ValueError(
            f"{function}: {name} must have shape (B, {', '.join(map(str, denoiser.shape))}), "
            f"got {tuple(x.shape)}"
        )
    denoiser.check_device(function, x.device)
    return x


def numbers_of(function: str, name: str, value: Any, batch: int) -> Numbers:
    """Return the integers of the samples `(B,)`, from one for all or one per sample.

    Args:
        function: the caller's name, for messages.
        name: the argument's name, for messages.
        value: an integer, or B of them in a sequence, an array or a tensor. Reading a tensor on a
            GPU waits for the GPU.
        batch: the number of samples B.

    Raises:
        TypeError: other things than integers.
        ValueError: another number of them.
    """
    wrapped: Any = value
    values = wrapped.tolist() if isinstance(value, (Tensor, np.ndarray, np.generic)) else wrapped
    if not isinstance(values, Sequence) or isinstance(values, str):
        return np.full(batch, check_integer(function, name, values, -(2**63), 2**63 - 1), np.int64)
    listed = cast("Sequence[Any]", values)
    if len(listed) != batch:
        raise ValueError(
            f"{function}: {name} must be one number or one per sample ({batch},), got {len(listed)}"
        )
    numbers = [check_integer(function, name, number, -(2**63), 2**63 - 1) for number in listed]
    return np.array(numbers, np.int64)
