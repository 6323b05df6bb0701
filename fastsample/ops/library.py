"""The operators' schemas, and which code runs them on which device.

Importing this module makes ``torch.ops.fastsample``.
"""

from __future__ import annotations

import torch

from fastsample.ops import native, reference
from fastsample.ops.dtypes import history_dtype

_REFERENCE_DEVICES = ("MPS", "XPU")

_STEP_ARGUMENTS = (
    "Tensor x, Tensor out, Tensor rows, Tensor row, Tensor? uncond=None, Tensor? seeds=None, "
    "Tensor? index=None, Tensor? noise=None, Tensor? h1=None, Tensor? h2=None"
)

_library = torch.library.Library("fastsample", "DEF")
_library.define(f"step({_STEP_ARGUMENTS}) -> Tensor")
_library.define(f"step_x0({_STEP_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(f"step_into(Tensor(a!) target, {_STEP_ARGUMENTS}) -> ()")
_library.define(
    f"step_backward(Tensor grad, Tensor? grad_x0, {_STEP_ARGUMENTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(f"row_gradients(Tensor grad, Tensor? grad_x0, {_STEP_ARGUMENTS}) -> Tensor")
_library.define(
    "noise(Tensor seeds, Tensor index, SymInt[] size, int draw, ScalarType dtype, "
    "bool channels_last) -> Tensor"
)
_library.define(
    "elbo_sums(Tensor x0, Tensor x, Tensor out, float[] coefficients, Tensor nodes, "
    "Tensor log_scales, float bin_width) -> Tensor"
)

# The overload itself: naming it skips the packet's overload resolution, 1 us a call.
step_op = torch.ops.fastsample.step.default
step_x0_op = torch.ops.fastsample.step_x0.default
step_into_op = torch.ops.fastsample.step_into.default
step_backward_op = torch.ops.fastsample.step_backward.default
row_gradients_op = torch.ops.fastsample.row_gradients.default
noise_op = torch.ops.fastsample.noise.default
elbo_sums_op = torch.ops.fastsample.elbo_sums.default

for _device in ("CPU", "CUDA"):
    _library.impl("step", native.step, _device)
    _library.impl("step_x0", native.step_x0, _device)
    _library.impl("step_into", native.step_into, _device)
    _library.impl("step_backward", native.step_backward, _device)
    _library.impl("row_gradients", native.row_gradients, _device)
    _library.impl("noise", native.noise, _device)
    _library.impl("elbo_sums", native.elbo_sums, _device)

for _device in _REFERENCE_DEVICES:
    _library.impl("step", reference.step, _device)
    _library.impl("step_x0", reference.step_x0, _device)
    _library.impl("step_into", reference.step_into, _device)
    _library.impl("step_backward", reference.step_backward, _device)
    _library.impl("row_gradients", reference.row_gradients, _device)
    _library.impl("noise", reference.noise, _device)
    _library.impl("elbo_sums", reference.elbo_sums, _device)

torch.library.register_fake(
    "fastsample::step",
    lambda x, out, *rest: native.new(x, native.packing(x, out)),
    lib=_library,
)
torch.library.register_fake(
    "fastsample::step_x0",
    lambda x, out, *rest: (
        native.new(x, native.packing(x, out)),
        native.new(x, native.packing(x, out), history_dtype(x)),
    ),
    lib=_library,
)
torch.library.register_fake("fastsample::step_into", lambda target, *rest: None, lib=_library)


def _fake_backward(
    grad,
    grad_x0,
    x,
    out,
    rows,
    row,
    uncond=None,
    seeds=None,
    index=None,
    noise=None,
    h1=None,
    h2=None,
):
    return native.empty_gradients(x, out, uncond, noise, h1, h2)


torch.library.register_fake(
    "fastsample::step_backward",
    _fake_backward,
    lib=_library,
)
torch.library.register_fake(
    "fastsample::row_gradients",
    lambda grad, grad_x0, x, out, rows, row, *rest: rows.new_empty(
        (x.shape[0], rows.shape[1]), dtype=torch.float64
    ),
    lib=_library,
)
torch.library.register_fake(
    "fastsample::noise",
    lambda seeds, index, size, draw, dtype, channels_last: native.new_noise(
        index, size, dtype, channels_last
    ),
    lib=_library,
)
torch.library.register_fake(
    "fastsample::elbo_sums",
    lambda x0, x, out, coefficients, nodes, log_scales, bin_width: x0.new_empty(
        x0.shape[0], native.sums_width(nodes, log_scales), dtype=torch.float64
    ),
    lib=_library,
)
