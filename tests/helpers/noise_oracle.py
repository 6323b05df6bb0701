"""Float64 NumPy transcription of the noise: Philox4x32-10, its inverse, and Box-Muller.

Philox: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Nothing here uses the
package. Words are uint64 arrays that hold 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF

KNOWN_ANSWERS: list[tuple[list[int], list[int], list[int]]] = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([MASK] * 4, [MASK] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
"""(counter, key, words), from the kat_vectors file of Random123."""


def philox(counter: Sequence[Array | int], key: Sequence[int]) -> tuple[Array, ...]:
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    for k0, k1 in round_keys(key):
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ k0,
            product1 & np.uint64(MASK),
            (product0 >> np.uint64(32)) ^ c3 ^ k1,
            product0 & np.uint64(MASK),
        )
    return c0, c1, c2, c3


def counters(words: Sequence[Array | int], key: Sequence[int]) -> tuple[Array, ...]:
    """The counters that give these words: with a key fixed, Philox is a bijection."""
    r0, r1, r2, r3 = (np.asarray(word, dtype=np.uint64) for word in words)
    inverses = [np.uint64(pow(m, -1, 2**32)) for m in MULTIPLIERS]
    for k0, k1 in reversed(round_keys(key)):
        c0, c2 = r3 * inverses[0] & np.uint64(MASK), r1 * inverses[1] & np.uint64(MASK)
        high0 = c0 * np.uint64(MULTIPLIERS[0]) >> np.uint64(32)
        high1 = c2 * np.uint64(MULTIPLIERS[1]) >> np.uint64(32)
        r0, r1, r2, r3 = c0, r0 ^ high1 ^ k0, c2, r2 ^ high0 ^ k1
    return r0, r1, r2, r3


def round_keys(key: Sequence[int]) -> list[tuple[np.uint64, np.uint64]]:
    return [
        (np.uint64((key[0] + n * WEYL[0]) & MASK), np.uint64((key[1] + n * WEYL[1]) & MASK))
        for n in range(10)
    ]


def radius(r: Array) -> Array:
    """R(r) = sqrt(-2 ln((r + 0.5) / 2^32)); r + 0.5 is exact in float64."""
    return np.sqrt(-2.0 * np.log((r.astype(np.float64) + 0.5) / 2.0**32))


def normals(words: Sequence[Array]) -> Array:
    """The four normals of each block, `(..., 4)`."""
    r0, r1, r2, r3 = words
    turns = [2.0 * np.pi * r.astype(np.float64) / 2.0**32 for r in (r1, r3)]
    pairs = [
        (radius(r) * np.cos(turn), radius(r) * np.sin(turn))
        for r, turn in zip((r0, r2), turns, strict=True)
    ]
    return np.stack([*pairs[0], *pairs[1]], axis=-1)


def noise(seed: int, index: int, draw: int, shape: Sequence[int]) -> Array:
    """One sample's noise; seed and index are 64-bit words, signed or not."""
    size = int(np.prod(shape))
    blocks = np.arange((size + 3) // 4)
    counter = (blocks, index & MASK, index >> 32 & MASK, draw)
    words = philox(counter, (seed & MASK, seed >> 32 & MASK))
    return normals(words).reshape(-1)[:size].reshape(shape)


def block_with(r0: int, r2: int, blocks: int, rng: np.random.Generator) -> dict[str, int]:
    """A seed, index, draw and block (below `blocks`) whose two radius words are as wanted.

    The other two words and the key are free: inverted at random until the block is small enough.
    """
    while True:
        key = rng.integers(0, 2**32, 2).tolist()
        r1, r3 = rng.integers(0, 2**32, (2, 1 << 17))
        block, low, high, draw = counters((r0, r1, r2, r3), key)
        hit = int(np.argmin(block))
        if block[hit] < blocks:
            return {
                "seed": signed(key[0] | key[1] << 32),
                "index": signed(int(low[hit]) | int(high[hit]) << 32),
                "draw": int(draw[hit]),
                "block": int(block[hit]),
            }


def signed(word: int) -> int:
    """The int64 of the same bits."""
    return word - 2**64 if word >= 2**63 else word
