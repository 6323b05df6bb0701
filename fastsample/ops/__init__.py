"""PyTorch operators that run the package's native CPU and CUDA kernels.

An operator has three implementations of one schema (`fastsample.ops.library`): the kernels of
`fastsample._native` for CPU and CUDA (`fastsample.ops.native`), plain torch for devices without a
kernel (`fastsample.ops.reference`), and a fake for tracing. The functions here check their
arguments and call the operators.

The plan's rows and the row number are tensors on the device. Therefore twenty steps under
``torch.compile`` are one graph, a captured CUDA graph replays for every row, and no step waits for
the host.
"""

from fastsample.ops.apply import has_tangent, step, step_x0
from fastsample.ops.direct import DirectSteps, is_plain
from fastsample.ops.draws import NOISE_VERSION, START_DRAW
from fastsample.ops.dtypes import rows_dtype
from fastsample.ops.native import build_info
from fastsample.ops.normal_noise import noise
from fastsample.ops.sums import ElboSums, elbo_sums

__all__ = [
    "NOISE_VERSION",
    "START_DRAW",
    "DirectSteps",
    "ElboSums",
    "build_info",
    "elbo_sums",
    "has_tangent",
    "is_plain",
    "noise",
    "rows_dtype",
    "step",
    "step_x0",
]
