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

TOLERANCE, RELATIVE_TOLERANCE = 1.25e-6, 4.7e-7
"""Promised distance of a normal from its definition, absolute and relative; normals reach 6.77.

Of all 2^32 words the radius is off by at most 4.6e-7 and 1.9e-7 of itself, the cosine by 1.12e-7,
the sine by 8.2e-8 and 1.55e-7 of itself. Added up for every range of radii and of angles, with the
rounding of each product, that is at most 1.24e-6 and 4.64e-7 of the number.
"""

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
    got = noise(seed, index, (size,), device, draw=draw)[0].cpu().numpy()
    words = noise_oracle.words(seed, index, draw, np.arange((size + 3) // 4))
    expected = noise_oracle.normals(words).reshape(-1)[:size]
    error = np.abs(got - expected)
    assert error.max() <= TOLERANCE
    assert (error <= RELATIVE_TOLERANCE * np.abs(expected)).all()
    contract = noise_oracle.rounded_normals(words).reshape(-1)[:size]
    assert np.array_equal(got.view(np.int32), contract.view(np.int32))


# r = 0 and 2^32 - 1 are the ends of the tails; the radius changes its formula at r = 2^31 and its
# binade at powers of two. Between them are words whose float is rounded.
RADII = sorted(
    {0, 1, 2, 3, 2**32 - 1, 2**32 - 2, 2**32 - 3, 0xAAAAAAAA, 0xC0000000}
    | {2**n + side for n in (8, 16, 23, 24, 25, 30, 31) for side in (-1, 0, 1)}
)
# The angle is nearest 0 at r = 0 and 2^32 - 1, largest at 2^31 - 1 and 2^31; the two lowest bits
# choose its quarter.
ANGLES = sorted(
    (edge + quarter) % 2**32 for edge in (0, -4, 2**31, 2**31 - 4, 2**24) for quarter in range(4)
)


def pairs(values: list[int]) -> list[tuple[int, int]]:
    """All values by twos; an odd last one beside the first."""
    return [(v, values[(i + 1) % len(values)]) for i, v in enumerate(values) if i % 2 == 0]


@pytest.mark.parametrize(
    "wanted",
    [{0: a, 2: b} for a, b in pairs(RADII)] + [{1: a, 3: b} for a, b in pairs(ANGLES)],
    ids=str,
)
def test_at_extreme_words(device, isa, wanted):
    blocks = 1 << 16
    found = noise_oracle.block_with(wanted, blocks, np.random.default_rng(list(wanted.values())))
    seed, index, draw, block = (found[name] for name in ("seed", "index", "draw", "block"))
    words = noise_oracle.words(seed, index, draw, np.array([block]))
    assert all(int(words[n][0]) == word for n, word in wanted.items())
    expected, contract = noise_oracle.normals(words)[0], noise_oracle.rounded_normals(words)[0]
    for name in fs.build_info()["cpu_available"] if device.type == "cpu" else [None]:
        if name:
            isa(name)
        # Two sizes: the block once among full vectors, once in the tail.
        for size in (4 * blocks, 4 * block + 4):
            z = noise(seed, index, (size,), device, draw=draw)[0, 4 * block : 4 * block + 4]
            assert np.abs(z.cpu().double().numpy() - expected).max() <= TOLERANCE
            assert np.array_equal(z.cpu().numpy().view(np.int32), contract.view(np.int32))


@pytest.mark.parametrize(("word", "longest"), [(0, 6.7637057), (2**32 - 1, 1.52587882e-5)])
def test_ends_of_the_radius(device, word, longest):
    # The angle of word 0 is 2^-33 pi/2, whose cosine is 1 in float32.
    for quarter, expected in enumerate([(longest, 0), (-longest, 0), (0, longest), (0, -longest)]):
        wanted = {0: word, 1: quarter}
        found = noise_oracle.block_with(wanted, 1 << 16, np.random.default_rng(quarter))
        first = 4 * found.pop("block")
        z = noise(found["seed"], found["index"], (first + 4,), device, draw=found["draw"])
        got = z[0, first : first + 2].cpu().double()
        assert got.abs().max() == torch.tensor(longest, dtype=torch.float32).item()
        assert (got - torch.tensor(expected)).abs().max() < 1e-8 * longest
        assert (got != 0).all()


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
