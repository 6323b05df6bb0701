// Computes normal noise as a pure function of (key, sample index, draw, element), by Philox4x32-10
// and Box-Muller.
//
// Philox: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". One call turns a
// 128-bit counter and a 64-bit key into four words, which become the four normals of elements
// 4*block .. 4*block+3. Only integer, add, multiply, fma and square root are used, each exact or
// correctly rounded, so every back end gives the same bits.
#pragma once

#include "core/platform.h"

namespace fastsample {

constexpr uint32_t philox_rounds = 10;
constexpr uint32_t philox_multiplier0 = 0xd2511f53u, philox_multiplier1 = 0xcd9e8d57u;
constexpr uint32_t philox_increment0 = 0x9e3779b9u, philox_increment1 = 0xbb67ae85u;  // of the key

struct Words {
  uint32_t r0, r1, r2, r3;
};

// Stores what the noise of a whole sample depends on: the seed (key), the sample's index, the draw.
struct Stream {
  uint32_t key0, key1, index_low, index_high, draw;
};

FS_HD Stream make_stream(int64_t seed, int64_t index, uint32_t draw) {
  const uint64_t key = static_cast<uint64_t>(seed), position = static_cast<uint64_t>(index);
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32),
          static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), draw};
}

struct Product {
  uint32_t high, low;
};

FS_HD Product multiply(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  // Both halves are computed apart because nvcc adds a zero to the upper half of a 64-bit product,
  // which costs 5 instructions per normal.
  Product product;
  asm("{\n\t.reg .u64 wide;\n\tmul.wide.u32 wide, %2, %3;\n\tmov.b64 {%1, %0}, wide;\n\t}"
      : "=r"(product.high), "=r"(product.low)
      : "r"(a), "r"(b));
  return product;
#else
  const uint64_t wide = static_cast<uint64_t>(a) * b;
  return {static_cast<uint32_t>(wide >> 32), static_cast<uint32_t>(wide)};
#endif
}

// Holds the keys of the ten rounds, which depend on the seed alone.
struct RoundKeys {
  uint32_t key0[philox_rounds], key1[philox_rounds];
};

FS_HD RoundKeys round_keys(uint32_t key0, uint32_t key1) {
  RoundKeys keys;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (uint32_t round = 0; round < philox_rounds; ++round) {
    keys.key0[round] = key0 + round * philox_increment0;
    keys.key1[round] = key1 + round * philox_increment1;
  }
  return keys;
}

FS_HD RoundKeys round_keys(const Stream& stream) { return round_keys(stream.key0, stream.key1); }

// Runs ten rounds of Philox4x32. cpu/philox.h holds the same rounds for many blocks at once.
FS_HD Words philox(Words counter, const RoundKeys& keys) {
  Words r = counter;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (uint32_t round = 0; round < philox_rounds; ++round) {
    const Product product0 = multiply(philox_multiplier0, r.r0);
    const Product product1 = multiply(philox_multiplier1, r.r2);
    r = {product1.high ^ r.r1 ^ keys.key0[round], product1.low,
         product0.high ^ r.r3 ^ keys.key1[round], product0.low};
  }
  return r;
}

// Returns the upper or lower 16 bits of `word`, with `top` above them; one instruction on CUDA.
FS_HD uint32_t upper_half(uint32_t word, uint32_t top) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(word, top, 0x5432);
#else
  return (word >> 16) | (top << 16);
#endif
}

FS_HD uint32_t lower_half(uint32_t word, uint32_t top) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(word, top, 0x5410);
#else
  return (word & 0xffffu) | (top << 16);
#endif
}

// Returns the Box-Muller radius sqrt(-2 ln u), u = (r + 0.5) / 2^32, to 1.2e-7 relative.
// u = m 2^e with m in [2/3, 4/3); near u = 1 the distance 1 - u is taken from the integer, where it
// is exact: a float that near 1 would leave the radius with no correct digit.
FS_HD float radius(uint32_t r) {
  const bool near_one = r >= 0xaaaaaaabu;
  const uint32_t distance = near_one ? ~r : r;
  // distance + 0.5, rounded once: its halves become the mantissas of 2^39 + 65536 high and 2^23 +
  // low, which costs fewer operations than conversions, on every machine.
  const float high = bits_float(upper_half(distance, 0x5300u)) - 549755813888.0f;
  const float low = bits_float(lower_half(distance, 0x4b00u)) - 8388607.5f;
  const float value = high + low;
  const uint32_t exponent = (float_bits(value) - 0x3f2aaaabu) & 0xff800000u;
  const float fraction = bits_float(float_bits(value) - exponent) - 1.0f;
  const float scale =
      fused(static_cast<float>(static_cast<int32_t>(exponent)), 1.1920928955078125e-7f, -32.0f);
  const float m = near_one ? value * -2.3283064365386963e-10f : fraction;
  const float e = near_one ? 0.0f : scale;
  // -2 ln(1 + m) = -2 m + m^2 (1 + m P(m)); P by Remez on |m| <= 1/3.
  float p = 0.309657305f;
  p = fused(p, m, -0.338183522f);
  p = fused(p, m, 0.32823199f);
  p = fused(p, m, -0.396634549f);
  p = fused(p, m, 0.50013274f);
  p = fused(p, m, -0.666724145f);
  p = fused(p, m, 1.0f);
  const float log1p = fused(m * m, p, -2.0f * m);
  return root(fused(e, -1.38629436f, log1p));
}

struct Pair {
  float first, second;
};

// Returns (cos, sin)(2 pi r / 2^32) to 6e-8, from the nearest quarter turn plus y/8 turn, |y| <= 1.
FS_HD Pair turn(uint32_t r) {
  const float y = static_cast<float>(static_cast<int32_t>(r << 2)) * 4.6566128730773926e-10f;
  const float s = y * y;
  float sine = -3.58774268e-05f;
  sine = fused(sine, s, 2.48987228e-03f);
  sine = fused(sine, s, -8.07453692e-02f);
  sine = fused(sine, s, 0.785398185f);
  sine = sine * y;
  float cosine = -3.19163984e-04f;
  cosine = fused(cosine, s, 1.58504024e-02f);
  cosine = fused(cosine, s, -0.308424503f);
  cosine = fused(cosine, s, 1.0f);
  const uint32_t quarter = r + 0x20000000u;  // bits 30 and 31: number of the nearest quarter turn
  const bool swap = (quarter & 0x40000000u) != 0;
  const uint32_t first = float_bits(swap ? sine : cosine) ^ ((quarter + 0x40000000u) & 0x80000000u);
  const uint32_t second = float_bits(swap ? cosine : sine) ^ (quarter & 0x80000000u);
  return {bits_float(first), bits_float(second)};
}

FS_HD Pair normal_pair(uint32_t r_radius, uint32_t r_angle) {
  const float length = radius(r_radius);
  const Pair direction = turn(r_angle);
  return {length * direction.first, length * direction.second};
}

}  // namespace fastsample
