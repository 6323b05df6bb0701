"""Generated noise: the definition (float64 oracle), and the same bits however it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import fastsample as fs
from fastsample import _native, ops
from fastsample.ops import reference
from tests.helpers import noise_oracle
from tests.helpers.tensors import DTYPES, same_bits, table

TOLERANCE = 2e-6
"""Promised distance of a normal from its definition, absolute; normals reach 6.77."""

TOP_BIT = -(2**63)

# C-order sizes that are no multiple of a block (4), a vector (16) or a tile (1024), and channel
# counts beyond a tile, where a channels_last pixel is cut.
FORMATS = [
    (3, 8, 8),
    (5, 7, 3),
    (64, 17, 5),
    (1030, 3, 1),
    (2052, 2, 3),
    (1, 5, 5),
    (3, 5, 4, 7),
    (1025, 1, 3, 2),
]


def noise(seeds, index, shape, device="cpu", **options) -> Tensor:
    def words(values):
        return torch.as_tensor(values, dtype=torch.int64, device=device).reshape(-1)

    return ops.noise(words(seeds), words(index), shape, **options)


# ---- the definition ----


@pytest.mark.parametrize(("counter", "key", "words"), noise_oracle.KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, words):
    assert _native.philox(counter, key) == words
    tensors = reference.philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert [int(word) for word in tensors] == words
    assert [int(word) for word in noise_oracle.philox(counter, key)] == words
    assert [int(word) for word in noise_oracle.counters(words, key)] == counter


@pytest.mark.parametrize(
    ("seed", "index", "draw"),
    [
        (0, 0, ops.START_DRAW),
        (1234, 5, 0),
        (2**32 + 7, 2**32, 19),
        (-1, 2**63 - 1, ops.START_DRAW - 1),
        (TOP_BIT, TOP_BIT + 3, 1),
    ],
)
def test_is_its_definition(device, seed, index, draw):
    size = 300_001
    got = noise(seed, index, (size,), device, draw=draw)[0].cpu().double().numpy()
    expected = noise_oracle.noise(seed, index, draw, (size,))
    assert np.abs(got - expected).max() <= TOLERANCE


# r = 0 and 2^32 - 1 are the ends of the tails; the radius changes its formula at r = 0xaaaaaaab
# (2/3 of 2^32) and its binade at powers of two and at 2/3 of them.
_TURNS = [0xAAAAAAAA >> n for n in (0, 1, 8, 24)]
EXTREMES = sorted(
    {0, 1, 2, 3, 2**32 - 1, 2**32 - 2, 2**32 - 3, 0xAAAAAAA9, 0xAAAAAAAC, 0xC0000000}
    | {edge + side for edge in _TURNS for side in (0, 1)}
    | {2**n + side for n in (8, 16, 23, 24, 25, 31) for side in (-1, 0, 1)}
)


@pytest.mark.parametrize("pair", range(0, len(EXTREMES), 2))
def test_at_extreme_words(device, isa, pair):
    blocks = 1 << 16
    first, second = EXTREMES[pair], EXTREMES[(pair + 1) % len(EXTREMES)]
    found = noise_oracle.block_with(first, second, blocks, np.random.default_rng(pair))
    seed, index, draw, block = (found[name] for name in ("seed", "index", "draw", "block"))
    words = noise_oracle.philox(
        (block, index & 0xFFFFFFFF, index >> 32 & 0xFFFFFFFF, draw),
        (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF),
    )
    assert (int(words[0]), int(words[2])) == (first, second)
    expected = noise_oracle.normals(words)
    for name in fs.build_info()["cpu_available"] if device.type == "cpu" else [None]:
        if name:
            isa(name)
        # Two sizes: the block once among full vectors, once in the tail.
        for size in (4 * blocks, 4 * block + 4):
            z = noise(seed, index, (size,), device, draw=draw)[0, 4 * block : 4 * block + 4]
            assert np.abs(z.cpu().double().numpy() - expected).max() <= TOLERANCE


def test_native_and_reference_agree(device):
    index = torch.tensor([0, 2**40 + 1, -7], device=device)
    seeds = torch.tensor([3, -4, 2**33], device=device)
    for dtype in DTYPES.values():
        got = ops.noise(seeds, index, (3, 50, 67), draw=12, dtype=dtype).double()
        expected = reference.noise(seeds, index, (3, 3, 50, 67), 12, dtype).double()
        # Two float32 values 2e-6 apart may round to neighbouring 16-bit ones.
        bound = TOLERANCE + torch.finfo(dtype).eps * expected.abs()
        assert ((got - expected).abs() <= bound).all()


# ---- the same bits however it is asked for ----


@pytest.mark.parametrize("size", [1, 3, 4, 37, 1024, 1029, 4099])
def test_any_batch_and_position(device, size):
    index = torch.tensor([9, 0, 2**35, 3, 9, -2, 4])
    together = noise(5, index, (size,), device)
    assert same_bits(together[0], together[4])
    for i, number in enumerate(index):
        assert same_bits(noise(5, number, (size,), device)[0], together[i])
    for cut in (1, 3, 6):
        parts = [noise(5, part, (size,), device) for part in index.split(cut)]
        assert same_bits(torch.cat(parts), together)
    order = torch.randperm(len(index))
    assert same_bits(noise(5, index[order], (size,), device), together.cpu()[order])


def test_shape_of_a_sample_does_not_matter(device):
    flat = noise(1, [0, 1], (360,), device)
    for shape in [(3, 120), (5, 8, 9), (2, 3, 4, 15)]:
        assert same_bits(noise(1, [0, 1], shape, device).reshape(2, -1), flat)
    longer = noise(1, [0, 1], (5000,), device)
    assert same_bits(longer[:, :360], flat)


@pytest.mark.parametrize("shape", FORMATS, ids=str)
def test_channels_last(device, shape):
    for dtype in DTYPES.values():
        plain = noise([3, -9], [2, 2**32], shape, device, dtype=dtype)
        other = noise([3, -9], [2, 2**32], shape, device, dtype=dtype, channels_last=True)
        fmt = torch.channels_last if len(shape) == 3 else torch.channels_last_3d
        assert plain.is_contiguous()
        assert other.is_contiguous(memory_format=fmt)
        assert same_bits(plain, other)


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_are_roundings_of_float32(device, name):
    expected = noise(77, [1, 2, 3], (40_003,), device).to(DTYPES[name])
    assert same_bits(noise(77, [1, 2, 3], (40_003,), device, dtype=DTYPES[name]), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_threads(threads, channels_last):
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(noise(8, range(3), (5, 83, 61), channels_last=channels_last))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@pytest.mark.parametrize("name", fs.build_info()["cpu_available"])
def test_instruction_sets(isa, name):
    def several():
        yield noise(21, range(2), (500_003,))
        yield noise(21, range(2), (3, 83, 61), channels_last=True)
        for dtype in DTYPES.values():
            yield noise([4, 5], [6, 7], (4099,), dtype=dtype, draw=3)

    widest = list(several())
    isa(name)
    assert all(same_bits(a, b) for a, b in zip(several(), widest, strict=True))


def test_one_seed_per_sample(device):
    seeds, index = [3, -1, 2**40, 3], [0, 0, 5, 1]
    each = noise(seeds, index, (101,), device)
    for i in range(4):
        assert same_bits(noise(seeds[i], index[i], (101,), device)[0], each[i])
    assert same_bits(noise([3] * 4, index, (101,), device), noise(3, index, (101,), device))


def test_every_bit_of_seed_index_and_draw_counts(device):
    variants = [noise(0, 0, (4,), device, draw=0)]
    for bit in range(64):
        word = noise_oracle.signed(1 << bit)
        variants += [noise(word, 0, (4,), device, draw=0), noise(0, word, (4,), device, draw=0)]
        if bit < 32:
            variants.append(noise(0, 0, (4,), device, draw=1 << bit))
    rows = torch.cat(variants).cpu()
    assert len(torch.unique(rows, dim=0)) == len(rows)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", DTYPES)
def test_a_step_draws_the_noise_of_its_row_number(device, name, channels_last):
    shape, dtype = (6, 13, 11), DTYPES[name]
    fmt = torch.channels_last if channels_last else torch.contiguous_format
    rows = table(d=1.0).repeat(7, 1).to(device)
    zeros = torch.zeros(3, *shape, dtype=dtype, device=device).to(memory_format=fmt)
    seeds, index = (torch.tensor(w, device=device) for w in ([2**40, -8, 1], [5, 2**33, 0]))
    number = torch.tensor([6, 0, 3], device=device)
    got = ops.step(zeros, zeros, rows, number, seeds=seeds, index=index)
    for i in range(3):
        row = int(number[i])
        expected = ops.noise(seeds[i : i + 1], index[i : i + 1], shape, draw=row, dtype=dtype)
        assert torch.equal(got[i], expected[0])


def test_no_samples_and_no_elements(device):
    assert noise(0, [], (3, 4), device).shape == (0, 3, 4)
    assert noise(0, [1, 2], (0, 4), device).shape == (2, 0, 4)
    assert noise([], [], (3, 4, 4), device, channels_last=True).shape == (0, 3, 4, 4)
    assert noise(0, [1, 2], (), device).shape == (2,)
