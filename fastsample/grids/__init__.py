"""Choices of times, by the rules that samplers and other programs use.

`Grid` holds times; the functions here make them. Names for `sample(grid=...)` are in
`fastsample.grids.registry`.
"""

from fastsample.grids.grid import Grid
from fastsample.grids.makers import (
    ddim,
    diffusers,
    karras,
    log_snr,
    quadratic,
    random,
    respaced,
    uniform,
)

__all__ = [
    "Grid",
    "ddim",
    "diffusers",
    "karras",
    "log_snr",
    "quadratic",
    "random",
    "respaced",
    "uniform",
]
