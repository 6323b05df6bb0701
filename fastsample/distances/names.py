"""Lists the names of the distances between samples and data."""

from typing import Literal, TypeAlias, get_args

Distance: TypeAlias = Literal["mse", "huber", "energy", "mmd", "sliced_wasserstein"]
DISTANCES = get_args(Distance)
PAIRED = ("mse", "huber")
"""The distances that compare each sample with its own x0; the others compare sets."""
