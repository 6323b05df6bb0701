"""Computes a named distance between samples and data, over all processes, of any features."""

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
    """Computes a distance between the samples and the data of all processes.

    Attributes:
        distance: name of the distance.
        features: ``(x, **cond) -> (n, ...)`` for x `(n, *shape)`, whose results are compared; None
            compares x.
        chains: samples per x0. More than 1 make the energy score of each x0's samples; 1 computes
            the named distance.
        projections: number of directions of "sliced_wasserstein".
    """

    distance: Distance
    features: Features | None
    chains: int
    projections: int

    @property
    def is_paired(self) -> bool:
        """Return whether each sample is compared with its own x0."""
        return self.distance in PAIRED or self.chains > 1

    def __call__(
        self,
        samples: Tensor,
        data: Tensor,
        cond: Mapping[str, Any],
        data_cond: Mapping[str, Any],
        seed: int,
    ) -> Tensor:
        """Return the distance as a scalar, differentiable in this process's samples.

        Args:
            samples: `(chains * n, *shape)`: a sample of each x0, then the next sample of each.
            data: `(m, *shape)`; m = n if they are paired.
            cond: the network's keyword arguments for the samples, passed to `features`.
            data_cond: the same for `data`.
            seed: 64-bit seed of the directions of "sliced_wasserstein".

        Raises:
            ValueError: features of another shape, or samples and data that the distance refuses.
        """
        # Compute in float32 or wider: differences of bfloat16 samples are mostly rounding errors.
        dtype = torch.promote_types(samples.dtype, torch.float32)
        x = gathered(self._features_of(samples.to(dtype), cond))
        with torch.no_grad():
            y = gathered(self._features_of(data.to(dtype), data_cond))
        if self.chains > 1:
            # x has the axes (process, chain, x0); the score takes (chain, process * x0).
            by_chain = x.reshape(-1, self.chains, len(data), *x.shape[1:]).transpose(0, 1)
            return distances.energy_score(by_chain.flatten(1, 2), y)
        if self.distance == "mse":
            return distances.paired_mse(x, y)
        if self.distance == "huber":
            return distances.paired_huber(x, y)
        if self.distance == "energy":
            return distances.energy_distance(x, y)
        if self.distance == "mmd":
            return distances.mmd(x, y)
        generator = torch.Generator().manual_seed(seed >> 1)  # torch's seeds have 63 bits
        directions = distances.random_directions(self.projections, y[0].numel(), generator)
        return distances.sliced_wasserstein(x, y, directions.to(x))

    def _features_of(self, x: Tensor, cond: Mapping[str, Any]) -> Tensor:
        if self.features is None:
            return x
        features: Any = self.features(x, **cond)
        if not isinstance(features, Tensor) or features.dim() < 2 or len(features) != len(x):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"FidelityLoss: features must give a tensor ({len(x)}, ...), got {got}"
            )
        return features
