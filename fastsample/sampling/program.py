"""The class `Program`: a plan with all that its runs need on a device, made once for many runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.history import HistorySlots
from fastsample.plans.plan import Plan
from fastsample.plans.rows import history_sources


@dataclass(frozen=True, eq=False)
class Program:
    """A plan and its numbers on a device, so that a run does not wait for the host.

    Attributes:
        plan: the rows.
        rows: the rows `(K', 15)` in float64 (float32 where the device has no float64).
        numbers: the row numbers 0..K'-1 as int64 `(K',)`.
        timesteps: the timestep that the network takes in each row, `(K',)`.
    """

    plan: Plan
    rows: Tensor
    numbers: Tensor
    timesteps: Tensor

    @classmethod
    def of(cls, denoiser: Denoiser, plan: Plan, device: torch.device) -> Program:
        """Copy a plan's numbers to a device."""
        # Tensors made in inference mode could not be used in a backward pass later.
        with torch.inference_mode(False):
            return cls(
                plan,
                torch.as_tensor(np.array(plan.rows), dtype=ops.rows_dtype(device), device=device),
                torch.arange(len(plan), device=device),
                denoiser.network_times(plan.times, device),
            )

    @cached_property
    def calls(self) -> list[bool]:
        """Whether each row calls the network."""
        return self.plan.calls_network.tolist()

    @cached_property
    def guided(self) -> list[bool]:
        """Whether each row needs the unconditional output: its guidance scale is not 1."""
        return (self.plan.column("w") != 1.0).tolist()

    @cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """For each row, the earlier rows whose x0 it may read, newest first."""
        return history_sources(self.plan.nodes, self.plan.calls_network)

    @cached_property
    def times(self) -> list[float]:
        """The time at which the network is called in each row."""
        return self.plan.times.tolist()

    @cached_property
    def is_stochastic(self) -> bool:
        """Whether any row draws noise."""
        return self.plan.is_stochastic

    @cached_property
    def slots(self) -> HistorySlots:
        """The buffers of the x0 estimates that later rows read."""
        return HistorySlots.of(self.plan)

    def batch_timesteps(self, batch: int) -> Sequence[Tensor]:
        """Return the timesteps of each row for one run of a batch: K' tensors `(batch,)`.

        They are copies, since a network may write to what it is given.
        """
        return self.timesteps.clone()[:, None].expand(-1, batch).unbind()

    @property
    def is_plain(self) -> bool:
        """Whether any run may use the tensors: they were made outside of modes and transforms."""
        return ops.is_plain(self.rows, self.numbers, self.timesteps)
