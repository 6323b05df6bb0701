"""The GPU's index arithmetic (csrc/gpu/indexing.h), run on the host.

Every element is visited once, lies where its memory format says, and meets its own Philox block.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastsample import _native

WIDTHS = (4, 8, 16)  # elements of a pack: float32 and float64 use 4, 16-bit types 8 or 16

light = settings(deadline=None, max_examples=100)
sizes = st.integers(1, 70)


def visits(batch, shape, channels_last, width):
    """Packs of (sample, C-order element, memory position), as a launch on this layout cuts them."""
    channels, pixels = shape[0], math.prod(shape[1:])
    return _native.pack_positions(batch, channels * pixels, channels, pixels, channels_last, width)


def assert_sound(packs, batch, size, width):
    lanes = np.array([lane for pack in packs for lane in pack]).reshape(-1, 3)
    sample, element, position = lanes.T
    everything = np.arange(batch * size)
    assert np.array_equal(np.sort(sample * size + element), everything)
    assert np.array_equal(np.sort(sample * size + position), everything)
    for pack in packs:
        assert 1 <= len(pack) <= width
        first_sample, first, _ = pack[0]
        assert first % 4 == 0
        assert [lane[:2] for lane in pack] == [[first_sample, first + j] for j in range(len(pack))]


@light
@given(st.integers(0, 5), st.integers(0, 300), st.sampled_from(WIDTHS))
@example(3, 1024, 8)
@example(0, 5, 4)
@example(5, 0, 4)
def test_contiguous(batch, size, width):
    packs = visits(batch, (size,), False, width)
    assert_sound(packs, batch, size, width)
    assert all(element == position for pack in packs for _, element, position in pack)
    # One access for a whole pack needs every pack of a sample, but the last, to be full.
    full = (size + width - 1) // width
    assert len(packs) == batch * full
    assert all(len(pack) == width for i, pack in enumerate(packs) if (i + 1) % (full or 1))


@light
@given(st.integers(0, 3), sizes, sizes)
@example(2, 3, 64)
@example(2, 64, 1)
@example(1, 5, 3)
@example(2, 1, 7)
def test_channels_last(batch, channels, pixels):
    packs = visits(batch, (channels, pixels), True, 4)
    assert_sound(packs, batch, channels * pixels, 4)
    for pack in packs:
        for _, element, position in pack:
            channel, pixel = divmod(element, pixels)
            assert position == pixel * channels + channel


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 8, 8), (5, 7, 3), (3, 2, 3, 5), (1030, 3, 1)])
def test_channels_last_is_the_format_of_torch(shape):
    # The value of each element is its C-order number, so storage lists them in memory order.
    x = torch.arange(2 * math.prod(shape)).view(2, *shape)
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    storage = x.contiguous(memory_format=last).permute(0, *range(2, x.dim()), 1).reshape(2, -1)
    for pack in visits(2, shape, True, 4):
        for sample, element, position in pack:
            assert storage[sample, position] == sample * math.prod(shape) + element


def test_neighbouring_packs_are_neighbouring_channels():
    # Then the accesses of a warp cover whole cache lines; it holds when 4 divides the pixels.
    packs = visits(1, (32, 64), True, 4)
    for item in range(0, len(packs), 32):
        positions = [pack[0][2] for pack in packs[item : item + 32]]
        assert positions == list(range(positions[0], positions[0] + 32))


@light
@given(sizes, sizes)
@example(3, 64)
@example(1, 5)
def test_halves_of_a_learned_output(channels, pixels):
    prediction, variance = (_native.half_positions(channels, pixels, half) for half in (0, 1))
    number = np.arange(channels * pixels)
    channel, pixel = number // pixels, number % pixels
    assert np.array_equal(prediction, pixel * 2 * channels + channel)
    assert np.array_equal(variance, np.array(prediction) + channels)


@light
@given(st.integers(1, 2**31 - 1), st.lists(st.integers(0, 2**31 - 1), max_size=50))
@example(1, [0, 1, 2**31 - 1])
@example(2**31 - 1, [0, 2**31 - 2, 2**31 - 1])
@example(2**30 + 1, [2**30, 2**30 + 1, 2**31 - 1])
def test_division_is_exact(divisor, numerators):
    # Multiples and their neighbours are where a reciprocal would be off by one.
    last = (2**31 - 1) // divisor * divisor
    edges = [n for n in (last - 1, last, last + 1, divisor - 1, divisor) if 0 <= n < 2**31]
    numerators = numerators + edges
    assert _native.divide(numerators, divisor) == [n // divisor for n in numerators]


def test_division_by_every_small_divisor():
    numerators = [2**31 - 1 - n for n in range(40)] + list(range(40))
    for divisor in range(1, 3000):
        assert _native.divide(numerators, divisor) == [n // divisor for n in numerators]


def test_bad_arguments():
    with pytest.raises(ValueError, match="divisor must be positive, got 0"):
        _native.divide([1], 0)
    for width, channels_last in ((5, False), (8, True), (16, True)):
        with pytest.raises(ValueError, match="width must be 4, or 8 or 16 for contiguous tensors"):
            _native.pack_positions(1, 8, 2, 4, channels_last, width)


@pytest.mark.parametrize(("batch", "size"), [(1, 2**31), (2**22, 2**11), (2**31, 1)])
def test_launches_that_32_bits_cannot_count_are_refused(batch, size):
    # Device -2 runs a GPU's threads on the host. Refused before the addresses are followed.
    layout = (-2, 0, 0, 0, batch, size, 1, size, False)
    step = (*layout, False, 16, 16, *[0] * 6, 16, 1, 16, False)
    with pytest.raises(ValueError, match="samples below 2\\*\\*31 elements"):
        _native.step(*step, 0, False, 0, 0, False, 16, 0)
    with pytest.raises(ValueError, match="split the batch"):
        _native.fill_noise(*layout, 16, False, 16, 0, 16)
