"""The operator elbo_sums: every instruction set, dtype and layout against the plain sums."""

from __future__ import annotations

import math

import pytest
import torch

import fastsample as fs
from tests.helpers.elbo_operands import SCALES, columns, keywords, operands, parts, truth
from tests.helpers.tensors import DTYPES, LAYOUTS

ISAS = fs.build_info()["cpu_available"]

SHAPES = {
    "one element": (1, 1),
    "a prime": (3, 251),
    "one tile": (2, 256),
    "past one tile": (2, 257),
    "images": (3, 3, 5, 7),
    "one chunk": (1, 4096),
    "past one chunk": (2, 4097),
    "three chunks": (2, 3, 53, 53),
}
"""The kernel cuts at 8 (a vector), 256 (a tile) and 4096 elements (a chunk of one sum)."""


def assert_close(found, expected, tolerance=1e-13):
    """Every sum, relative: none of them has terms of both signs."""
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("learned", [False, True])
def test_every_instruction_set_equals_the_reference(isa, name, dtype, learned):
    isa(name)
    for shape in SHAPES.values():
        given = operands(shape, learned, dtype)
        assert_close(columns(given), truth(given))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("learned", [False, True])
def test_every_device_equals_the_reference(device, dtype, learned):
    # A GPU computes the terms of inputs of 32 bits or less in float32, their sums in float64.
    short = device.type == "cuda" and dtype != torch.float64
    exact = 1e-12 if device.type == "cuda" else 1e-13
    for shape in SHAPES.values():
        given = operands(shape, learned, dtype, device)
        found = columns(given)
        assert found.device == given[0].device
        assert_close(found, truth(given), 2e-5 if short else exact)
        assert torch.equal(found, columns(given))  # no atomics: the same sums on every run


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_threads_change_no_bit(threads, count):
    given = operands((5, 3, 40, 41), True)
    alone = columns(given)
    threads(count)
    assert torch.equal(columns(given), alone)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("learned", [False, True])
def test_layouts_change_no_bit(device, layout, learned):
    given = operands((3, 4, 9, 5), learned, device=device)
    moved = [LAYOUTS[layout](t) for t in given]
    assert torch.equal(columns(moved), columns(given))


def test_a_sample_does_not_depend_on_its_batch(device):
    given = operands((6, 3, 41, 37), True, device=device)
    whole = columns(given)
    for i in range(6):
        assert torch.equal(columns([t[i : i + 1] for t in given])[0], whole[i])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (0, 0)])
@pytest.mark.parametrize("learned", [False, True])
def test_nothing_sums_to_zero(device, shape, learned):
    given = [torch.empty(s, device=device) for s in (shape, shape)]
    wide = (shape[0], shape[1] * (2 if learned else 1), *shape[2:])
    scales = SCALES.to(device)
    sums = keywords((*given, torch.empty(wide, device=device)), nodes=None, log_scales=scales)
    assert sums.error.shape == (shape[0],)
    assert sums.nll.shape == (shape[0], len(SCALES))
    assert all(not part.any() for part in sums)


def test_more_nodes_and_scales_than_a_block_has_threads(device):
    given = operands((2, 300), True, device=device)
    nodes, scales = torch.rand(2, 700, dtype=torch.float64)
    found = columns(given, 11.0 * nodes, -3.0 * scales)
    assert_close(found, truth(given, 11.0 * nodes, -3.0 * scales), 1e-12)


def test_names_of_the_sums():
    given = operands((3, 5, 4), True)
    sums, row = keywords(given), truth(given)
    assert torch.equal(sums.table, columns(given))
    for name, expected in parts(row).items():
        found = getattr(sums, name)
        assert_close(found, expected.reshape(found.shape))
    x0, x, out = given
    x0hat = (1.3 * x - 0.8 * out[:, :5]).clamp(-1.0, 1.0)
    assert_close(sums.error, (x0 - x0hat).square().sum((1, 2)))
    assert_close(sums.eps_square, (0.2 * x + 0.9 * out[:, :5]).square().sum((1, 2)))
    assert_close(sums.v, ((out[:, 5:] + 1.0) / 2.0).sum((1, 2)), 1e-12)
    assert torch.equal(sums.weighted[:, 0], sums.error)  # at a = 0
    assert not sums.excess[:, 0].any()


def test_without_a_learned_variance_there_are_no_nodes():
    sums = keywords(operands((3, 4), False), nodes=None, log_scales=None)
    assert not sums.v.any()
    assert sums.excess.shape == sums.weighted.shape == sums.nll.shape == (3, 0)


READ = {
    "x0": {"error", "weighted", "nll"},
    "x": {"error", "eps_square", "weighted", "nll"},
    "out": {"error", "eps_square", "weighted", "nll"},
    "v": {"v", "excess", "weighted"},
}
"""Which sums an operand goes into."""


@pytest.mark.parametrize("which", READ)
@pytest.mark.parametrize("name", ISAS)
def test_nan_stays_in_its_sample(device, isa, name, which):
    isa(name)
    for where in (0, 5, 256):  # the last one alone in its vector and in its tile
        given = operands((3, 257), True, device=device)
        before = columns(given)
        place = {"x0": 0, "x": 1, "out": 2, "v": 2}[which]
        given[place][1, where + (257 if which == "v" else 0)] = math.nan
        found = columns(given)
        assert torch.equal(found[::2], before[::2])
        others = parts(before[1:2])
        for name, ours in parts(found[1:2]).items():
            if name in READ[which]:
                assert ours.isnan().all(), name
            else:
                assert torch.equal(ours, others[name]), name
