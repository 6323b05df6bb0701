"""Grids: lists of the times at which a sampler calls the network, by published rules.

`Grid` holds the times and the functions make grids. The names that `sample(grid=...)` takes are in
`fastsample.grids.registry`.
"""

from fastsample.grids.grid import Grid
from fastsample.grids.makers import (
    ddim,
    diffusers,
    power,
    quadratic,
    random,
    respaced,
    uniform,
)
from fastsample.grids.scheduled import blended, karras, log_snr

__all__ = [
    "Grid",
    "blended",
    "ddim",
    "diffusers",
    "karras",
    "log_snr",
    "power",
    "quadratic",
    "random",
    "respaced",
    "uniform",
]
