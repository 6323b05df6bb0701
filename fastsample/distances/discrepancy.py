"""How samples of a chain are compared with data: which distance, of what features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastsample._support.distributed import gathered
from fastsample.distances import distances
from fastsample.distances.names import PAIRED, Distance

Features: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True)
class Discrepancy:
    """A distance of samples from data, over the samples of all processes.

    Attributes:
        distance: its name.
        features: what it looks at, ``(x, **cond) -> (n, ...)``; None is x.
        chains: samples per x0 that are scored against it; 1 compares sets.
        projections: directions of "sliced_wasserstein".
    """

    distance: Distance
    features: Features | None
    chains: int
    projections: int

    @property
    def is_paired(self) -> bool:
        """Whether each sample has an x0 of its own."""
        return self.distance in PAIRED or self.chains > 1

    def __call__(
        self,
        samples: Tensor,
        data: Tensor,
        cond: Mapping[str, Any],
        data_cond: Mapping[str, Any],
        seed: int,
    ) -> Tensor:
        """A number, differentiable in this process's samples.

        Args:
            samples: `(chains * n, *shape)`, all x0 of the first chain first.
            data: `(m, *shape)`; m = n where they are paired.
            cond: keyword arguments of the network, for `features`.
            data_cond: the same for `data`.
            seed: of the directions of "sliced_wasserstein", 64 bits.
        """
        # Arithmetic in float32 or wider: differences of bfloat16 samples are mostly rounding.
        kind = torch.promote_types(samples.dtype, torch.float32)
        one = gathered(self._seen(samples.to(kind), cond))
        with torch.no_grad():
            other = gathered(self._seen(data.to(kind), data_cond))
        if self.chains > 1:
            scored = one.unflatten(0, (-1, self.chains, len(data))).transpose(0, 1).flatten(1, 2)
            return distances.energy_score(scored, other)
        if self.distance == "mse":
            return distances.paired_mse(one, other)
        if self.distance == "huber":
            return distances.paired_huber(one, other)
        if self.distance == "energy":
            return distances.energy_distance(one, other)
        if self.distance == "mmd":
            return distances.mmd(one, other)
        source = torch.Generator().manual_seed(seed >> 1)
        directions = distances.random_directions(self.projections, other[0].numel(), source)
        return distances.sliced_wasserstein(one, other, directions.to(one))

    def _seen(self, x: Tensor, cond: Mapping[str, Any]) -> Tensor:
        if self.features is None:
            return x
        found = self.features(x, **cond)
        if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != len(x):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"FidelityLoss: features must give a tensor ({len(x)}, ...), got {got}"
            )
        return found
