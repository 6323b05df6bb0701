"""Names of the distances."""

from typing import Literal, TypeAlias, get_args

Distance: TypeAlias = Literal["mse", "huber", "energy", "mmd", "sliced_wasserstein"]
DISTANCES = get_args(Distance)
PAIRED = ("mse", "huber")
"""Distances of each sample from an x0 of its own."""
