"""Grids: lists of the times at which a sampler calls the network, by published rules.

`Grid` holds the times and the functions make grids. The names that `sample(grid=...)` takes are in
`fastsample.grids.registry`.
"""

from fastsample.grids.flow import flow, flow_mu
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
from fastsample.grids.sigmas import from_sigmas

__all__ = [
    "Grid",
    "blended",
    "ddim",
    "diffusers",
    "flow",
    "flow_mu",
    "from_sigmas",
    "karras",
    "log_snr",
    "power",
    "quadratic",
    "random",
    "respaced",
    "uniform",
]
