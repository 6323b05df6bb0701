"""Splits the samples into a calibration and a held-out set, and each over processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsample._support.distributed import meet, process, summed

SEARCHED = 192  # Every candidate is run on this many calibration samples.
RANKING = 32  # This many calibration samples rank the known samplers.


@dataclass(frozen=True)
class Split:
    """Holds the indices of one process's samples: every n-th of each set, for n processes.

    Each set is split over the processes, so that sums over all processes are those that a single
    process would compute.

    Attributes:
        index: global index of each local sample, calibration samples first.
        calibration: local positions of the samples that rows are fitted to.
        held_out: local positions of the samples that plans are judged on.
        searched: local positions of the calibration samples that every candidate is run on.
        ranking: local positions of the calibration samples that rank the known samplers.
        total: number of samples of all processes.
        device: where tensors are reduced over processes.
    """

    index: npt.NDArray[np.int64]
    calibration: slice
    held_out: slice
    searched: slice
    ranking: slice
    total: int
    device: torch.device

    @classmethod
    def of(cls, samples: int, device: torch.device) -> Split:
        """Make this process's split of a number of samples, of which a quarter is held out."""
        rank, world = process()
        num_calibration = samples - samples // 4
        # Shuffle, because conditions may be sorted.
        order = np.random.default_rng(0).permutation(samples)
        calibration = np.arange(rank, num_calibration, world)
        held_out = np.arange(num_calibration + rank, samples, world)
        return cls(
            order[np.concatenate([calibration, held_out])],
            slice(0, len(calibration)),
            slice(len(calibration), len(calibration) + len(held_out)),
            slice(0, int(np.sum(calibration < SEARCHED))),
            slice(0, int(np.sum(calibration < RANKING))),
            samples,
            device,
        )

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, in float64 on the CPU.

        Raises:
            OtherProcessFailedError: another process failed.
        """
        meet("tune", self.device)
        return summed(values.detach().double().cpu(), self.device)

    def median(self, values: Tensor, samples: slice) -> float:
        """Return the median of one number per sample, over a set's samples in all processes.

        Args:
            values: `(n,)` one number per local sample of the set.
            samples: local positions of the set.
        """
        table = torch.zeros(2, self.total, dtype=torch.float64, device="cpu")
        local = torch.as_tensor(self.index[samples], device="cpu")
        table[0, local] = values.double().cpu()
        table[1, local] = 1.0
        table = self.sum(table)
        return float(table[0, table[1] > 0].median())
