"""NumPy transcription of the noise: Philox4x32-10, its inverse, and the normals.

`normals` is the definition in float64, `rounded_normals` the contract: the same numbers by the very
sequence of float32 operations that every kernel performs.

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
    return np.stack([*pair(r0, r1), *pair(r2, r3)], axis=-1)


def pair(r: Array, angle: Array) -> tuple[Array, Array]:
    """The two normals of two words; see the formula in csrc/core/noise.h."""
    signed = angle.astype(np.uint32).view(np.int32).astype(np.float64)
    theta = np.pi / 4 * (signed + 0.5) / 2.0**31
    along = radius(r) * np.cos(theta) * np.where(angle & np.uint64(1), -1.0, 1.0)
    across = radius(r) * np.sin(theta)
    swap = (angle & np.uint64(2)) != 0
    return np.where(swap, across, along), np.where(swap, along, across)


def words(seed: int, index: int, draw: int, blocks: Array | int) -> tuple[Array, ...]:
    """The words of some blocks of a sample; seed and index are 64-bit words, signed or not."""
    counter = (blocks, index & MASK, index >> 32 & MASK, draw)
    return philox(counter, (seed & MASK, seed >> 32 & MASK))


def fused(a: Array, b: Array, c: Array | float) -> Array:
    """a * b + c of float32 numbers, rounded once.

    The product is exact in float64. Its sum with c is rounded to odd, so that rounding it again, to
    float32, gives what one rounding would.
    """
    product, addend = a.astype(np.float64) * b.astype(np.float64), np.float64(c)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    inexact = (error != 0) & (total.view(np.int64) % 2 == 0)
    away = np.where((error > 0) == (total > 0), 1, -1)
    return (total.view(np.int64) + np.where(inexact, away, 0)).view(np.float64).astype(np.float32)


def polynomial(x: Array, *coefficients: float) -> Array:
    """By Horner's rule from the highest power down, each coefficient rounded to float32."""
    value = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = fused(value, x, np.float32(c))
    return value


def integer(bits: Array) -> Array:
    """Words read as signed integers and rounded to float32."""
    return bits.astype(np.uint32).view(np.int32).astype(np.float32)


def rounded_pair(r: Array, angle: Array) -> tuple[Array, Array]:
    f = np.float32
    a = integer(r) + f(0.5)
    bits = a.view(np.uint32)
    mantissa = (bits & np.uint32(0x007FFFFF) | np.uint32(0x3F800000)).view(np.float32)
    d = np.where(a < 0, a * f(-(2.0**-31)), f(2) - mantissa)
    scale = np.where(a < 0, a * f(-(2.0**-8)), integer(np.uint32(0x4F800000) - bits))
    g = polynomial(
        d,
        *(0.00930846948, -0.0170512907, 0.0247161426, 0.00228538504),
        *(0.0340541862, 0.0829630718, 0.250018418, -0.386294514),
    )
    radius = np.sqrt(fused(scale, np.full_like(d, 1.65259166e-07), g * d))
    y = fused(integer(angle), np.full_like(d, 2.0**-31), 2.0**-32)
    s = y * y
    sine = polynomial(s, -3.58774268e-05, 2.48987228e-03, -8.07453692e-02, 0.785398185)
    cosine = polynomial(s, -3.19163984e-04, 1.58504024e-02, -0.308424503, 1.0)
    along = np.where(angle & np.uint64(1), -radius, radius) * cosine
    across = radius * y * sine
    swap = (angle & np.uint64(2)) != 0
    return np.where(swap, across, along), np.where(swap, along, across)


def rounded_normals(words: Sequence[Array]) -> Array:
    """The four normals of each block as every kernel computes them, `(..., 4)` in float32."""
    r0, r1, r2, r3 = words
    return np.stack([*rounded_pair(r0, r1), *rounded_pair(r2, r3)], axis=-1)


def block_with(wanted: dict[int, int], blocks: int, rng: np.random.Generator) -> dict[str, int]:
    """A seed, index, draw and block (below `blocks`) that give some of the four words.

    The other words and the key are free: inverted at random until the block is small enough.
    """
    while True:
        key = rng.integers(0, 2**32, 2).tolist()
        free = rng.integers(0, 2**32, (4, 1 << 17))
        block, low, high, draw = counters([wanted.get(n, free[n]) for n in range(4)], key)
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
