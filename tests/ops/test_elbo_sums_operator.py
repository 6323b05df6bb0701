"""The operator elbo_sums as torch asks for it, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastsample import _native
from tests.helpers.elbo_operands import COEFFICIENTS, NODES, SCALES, keywords, operands
from tests.helpers.refusals import check_refusal, refusals
from tests.helpers.tensors import DTYPES, LAYOUTS


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("learned", [False, True])
def test_opcheck(device, dtype, learned):
    given = operands((3, 2, 5, 4), learned, dtype, device)
    nodes = NODES.to(device) if learned else NODES[:0].to(device)
    arguments = (*given, COEFFICIENTS, nodes, SCALES.to(device), 0.125)
    torch.library.opcheck(torch.ops.fastsample.elbo_sums.default, arguments)
    moved = [LAYOUTS["channels_last"](t) for t in given]
    torch.library.opcheck(torch.ops.fastsample.elbo_sums.default, (*moved, *arguments[3:]))


def test_meta_and_fake_tensors_only_have_shapes():
    given = operands((3, 2, 5), True, torch.bfloat16)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (*given, NODES, SCALES)]
        sums = keywords(fakes[:3], nodes=fakes[3], log_scales=fakes[4])
    for found, expected in zip(sums, keywords(given), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, torch.float64)


def test_one_graph_under_compile():
    given = operands((3, 2, 5), True)
    compiled = torch.compile(lambda *t: keywords(t).weighted + 1.0, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*given), keywords(given).weighted + 1.0)


def test_a_null_pointer_is_an_error():
    # (device, stream, threads, dtype, batch, size, learned), pointers, coefficients, nodes, scales.
    call = (-1, 0, 1, 0, 1, 4, False, 0, 0, 0, *COEFFICIENTS, 0, 0, 0, 0, 0.1, 4096, 0)
    with pytest.raises(ValueError, match="without storage"):
        _native.elbo_sums(*call)
    _native.elbo_sums(*call[:5], 0, *call[6:])


GOOD = operands((2, 3, 4), True, torch.float32)


def call(x0=GOOD[0], x=GOOD[1], out=GOOD[2], **changes):
    return lambda: keywords((x0, x, out), **changes)


@refusals(
    tensors={
        "integers": (
            call(x0=GOOD[0].long()),
            TypeError,
            r"x0, x and out must have one floating dtype, got torch\.int64, torch\.float32 and",
        ),
        "two dtypes": (
            call(out=GOOD[2].double()),
            TypeError,
            r"one floating dtype, got torch\.float32, torch\.float32 and torch\.float64",
        ),
        "no sample dimension": (
            call(*(torch.ones(3),) * 3),
            ValueError,
            r"x must have the shape \(B, \*shape\) of x0 \(3,\), got \(3,\)",
        ),
        "x of another shape": (
            call(x=GOOD[1][:1]),
            ValueError,
            r"x must have .* of x0 \(2, 3, 4\), got \(1, 3, 4\)",
        ),
        "thrice the channels": (
            call(out=torch.ones(2, 9, 4)),
            ValueError,
            r"out must have the shape of x0 \(2, 3, 4\) or twice its channels, got \(2, 9, 4\)",
        ),
        "elsewhere": (call(out=GOOD[2].to("meta")), ValueError, "out must be on cpu, got meta"),
    },
    vectors={
        "float32 nodes": (
            call(nodes=NODES.float()),
            ValueError,
            r"nodes must be a float64 vector, got torch\.float32 \(8,\)",
        ),
        "a table of scales": (
            call(log_scales=SCALES[None]),
            ValueError,
            r"log_scales must be a float64 vector, got torch\.float64 \(1, 7\)",
        ),
        "nodes without v": (
            call(out=GOOD[2][:, :3]),
            ValueError,
            "nodes must be left out without a learned variance in out, got 8",
        ),
        "nodes elsewhere": (
            call(nodes=NODES.to("meta")),
            ValueError,
            "elbo_sums: nodes must be on cpu, got meta",
        ),
    },
)
def test_refused(call, error, match):
    check_refusal(call, error, match)
