"""Defines the operators' schemas, and registers the function that runs each on each device.

Importing this module defines ``torch.ops.fastsample``.
"""
# torch.library has no annotations for `impl`, `register_fake` and operator overloads.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsample.ops import native, reference
from fastsample.ops.dtypes import history_dtype
from fastsample.ops.launch import new_like, packing
from fastsample.ops.operator_checks import (
    check_elbo_sums,
    check_gradient,
    check_noise,
    check_step_into,
    check_step_operator,
    checked,
)

# The operators: their required operands, and what checks all operands of a direct call.
_OPERATORS = {
    "step": (range(4), check_step_operator),
    "step_x0": (range(4), check_step_operator),
    "step_into": (range(5), check_step_into),
    "step_backward": ((0, *range(2, 6)), check_gradient),
    "row_gradients": ((0, *range(2, 6)), check_gradient),
    "noise": (range(2), check_noise),
    "elbo_sums": ((0, 1, 2, 4, 5), check_elbo_sums),
}

_STEP_ARGUMENTS = (
    "Tensor x, Tensor out, Tensor rows, Tensor row, Tensor? uncond=None, Tensor? seeds=None, "
    "Tensor? index=None, Tensor? draw=None, Tensor? noise=None, Tensor? h1=None, Tensor? h2=None, "
    "Tensor? h3=None, Tensor? h4=None"
)

_library = torch.library.Library("fastsample", "DEF")
_library.define(f"step({_STEP_ARGUMENTS}) -> Tensor")
_library.define(f"step_x0({_STEP_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(f"step_into(Tensor(a!) target, {_STEP_ARGUMENTS}) -> ()")
_library.define(
    f"step_backward(Tensor grad, Tensor? grad_x0, {_STEP_ARGUMENTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
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

# `.default` is the only overload; naming it saves torch 1 us per call to look for one.
step_op = torch.ops.fastsample.step.default
step_x0_op = torch.ops.fastsample.step_x0.default
step_into_op = torch.ops.fastsample.step_into.default
step_backward_op = torch.ops.fastsample.step_backward.default
row_gradients_op = torch.ops.fastsample.row_gradients.default
noise_op = torch.ops.fastsample.noise.default
elbo_sums_op = torch.ops.fastsample.elbo_sums.default

for _module, _devices in ((native, ("CPU", "CUDA")), (reference, ("MPS", "XPU"))):
    for _name, (_required, _check) in _OPERATORS.items():
        _implementation = checked(_name, _required, _check, getattr(_module, _name))
        for _device in _devices:
            _library.impl(_name, _implementation, _device)


def _fake_step(x: Tensor, out: Tensor, *rest: Tensor | None) -> Tensor:
    return new_like(x, packing(x, out))


def _fake_step_x0(x: Tensor, out: Tensor, *rest: Tensor | None) -> tuple[Tensor, Tensor]:
    fmt = packing(x, out)
    return new_like(x, fmt), new_like(x, fmt, history_dtype(x))


def _fake_step_into(target: Tensor, *rest: Tensor | None) -> None:
    pass


def _fake_step_backward(
    grad: Tensor,
    grad_x0: Tensor | None,
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    row: Tensor,
    uncond: Tensor | None = None,
    seeds: Tensor | None = None,
    index: Tensor | None = None,
    draw: Tensor | None = None,
    noise: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    h4: Tensor | None = None,
) -> native.Gradients:
    return native.empty_gradients(x, out, uncond, noise, h1, h2, h3, h4)


def _fake_row_gradients(
    grad: Tensor,
    grad_x0: Tensor | None,
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    *rest: Tensor | None,
) -> Tensor:
    return rows.new_empty((x.shape[0], rows.shape[1]), dtype=torch.float64)


def _fake_noise(
    seeds: Tensor,
    index: Tensor,
    size: Sequence[int],
    draw: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return native.new_noise(index, size, dtype, channels_last)


def _fake_elbo_sums(
    x0: Tensor,
    x: Tensor,
    out: Tensor,
    coefficients: Sequence[float],
    nodes: Tensor,
    log_scales: Tensor,
    bin_width: float,
) -> Tensor:
    return x0.new_empty(x0.shape[0], native.sums_width(nodes, log_scales), dtype=torch.float64)


for _name, _fake in (
    ("step", _fake_step),
    ("step_x0", _fake_step_x0),
    ("step_into", _fake_step_into),
    ("step_backward", _fake_step_backward),
    ("row_gradients", _fake_row_gradients),
    ("noise", _fake_noise),
    ("elbo_sums", _fake_elbo_sums),
):
    torch.library.register_fake(f"fastsample::{_name}", _fake, lib=_library)
