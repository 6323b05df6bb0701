"""Which samples a process tunes with, and sums over all processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsample._support.distributed import process, summed

SEARCHED = 192  # samples that a candidate is run on
RANKING = 32  # samples that sort out the known samplers


@dataclass(frozen=True)
class Shares:
    """A process's part of the samples: every world-th of each set, so that sums are those of one.

    Attributes:
        index: global number of each local sample, calibration first.
        calibration: local positions of what rows are fitted to.
        held_out: of what judges.
        searched: the calibration samples that candidates are run on.
        ranking: the calibration samples that sort out the known samplers.
        total: samples of all processes.
        device: where tensors are reduced.
    """

    index: npt.NDArray[np.int64]
    calibration: slice
    held_out: slice
    searched: slice
    ranking: slice
    total: int
    device: torch.device

    @classmethod
    def of(cls, samples: int, device: torch.device) -> Shares:
        """This process's; with one process, everything."""
        rank, world = process()
        first = samples - samples // 4
        # Shuffled: conditions may come sorted.
        order = np.random.default_rng(0).permutation(samples)
        fit, judge = np.arange(rank, first, world), np.arange(first + rank, samples, world)
        return cls(
            order[np.concatenate([fit, judge])],
            slice(0, len(fit)),
            slice(len(fit), len(fit) + len(judge)),
            slice(0, int(np.sum(fit < SEARCHED))),
            slice(0, int(np.sum(fit < RANKING))),
            samples,
            device,
        )

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, float64 on the CPU."""
        return summed(values.detach().double().cpu(), self.device)

    def median(self, values: Tensor, samples: slice) -> float:
        """Median of one number per sample, over all processes' samples of a set."""
        everyone = torch.zeros(2, self.total, dtype=torch.float64)
        here = torch.from_numpy(self.index[samples])
        everyone[0, here] = values.double().cpu()
        everyone[1, here] = 1.0
        everyone = self.sum(everyone)
        return float(everyone[0, everyone[1] > 0].median())
