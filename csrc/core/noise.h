// Computes normal noise as a pure function of (key, sample index, draw, element), by Philox4x32-10
// and Box-Muller. NOISE_VERSION in fastsample/ops/normal_noise.py names this function: another one
// would be another version.
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

// ---- the normals: version 2 of the noise ----
//
// Two words make two normals by Box-Muller. One gives the radius, to a float's last digits at both
// ends. The other gives an angle within an eighth of a turn; its two lowest bits choose which of
// the four quarters the pair lies in, by a change of sign and of order. In exact arithmetic:
//
//   R = sqrt(-2 ln((r0 + 0.5) / 2^32)),  theta = pi/4 (int(r1) + 0.5) / 2^31
//   along = R cos(theta), with the other sign if bit 0 of r1 is set;  across = R sin(theta)
//   normals = (across, along) if bit 1 of r1 is set, else (along, across)
//
// int() reads a word as signed. The operations below and their order are a contract: each is
// rounded once to float32, so that every back end gives the same bits.

FS_HD float signed_float(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word)); }

// Returns the mantissa of a float's bits, in [1, 2).
FS_HD float mantissa(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  uint32_t result;  // nvcc makes two instructions of this one
  asm("lop3.b32 %0, %1, 0x007fffff, 0x3f800000, 0xea;" : "=r"(result) : "r"(bits));
  return bits_float(result);
#else
  return bits_float((bits & 0x007fffffu) | 0x3f800000u);
#endif
}

// Returns R to 1.9e-7 relative. u = (r + 0.5) / 2^32 is 2^-e (1 - d/2) with d in [0, 1], so that
// R^2 = 2 ln 2 e + d (2 ln 2 + g(d)), with g by Remez. `scale` is e + d times 2^23. In the upper
// half of u, e is 0 and d is twice the distance to 1, which is taken from the integer, where it is
// exact: a float that near 1 would leave the radius with no correct digit. In the lower half both
// are read off the bits of a float.
FS_HD float radius(uint32_t r) {
  const float value = signed_float(r) + 0.5f;
  const uint32_t bits = float_bits(value);
  const bool upper = value < 0.0f;
  const float d = upper ? value * -4.6566128730773926e-10f : 2.0f - mantissa(bits);
  const float scale = upper ? value * -0.00390625f : signed_float(0x4f800000u - bits);
  float g = 0.00930846948f;
  g = fused(g, d, -0.0170512907f);
  g = fused(g, d, 0.0247161426f);
  g = fused(g, d, 0.00228538504f);
  g = fused(g, d, 0.0340541862f);
  g = fused(g, d, 0.0829630718f);
  g = fused(g, d, 0.250018418f);
  g = fused(g, d, -0.386294514f);
  return root(fused(scale, 1.65259166e-07f, g * d));
}

struct Pair {
  float first, second;
};

// Returns the two numbers, in the other order if bit 1 of `r` is set.
FS_HD Pair ordered(float first, float second, uint32_t r) {
#if defined(__CUDA_ARCH__)
  Pair pair;  // nvcc makes more instructions than a test and two selections
  asm("{\n\t.reg .pred swap;\n\t.reg .b32 bit;\n\t"
      "and.b32 bit, %4, 2;\n\tsetp.ne.u32 swap, bit, 0;\n\t"
      "selp.f32 %0, %3, %2, swap;\n\tselp.f32 %1, %2, %3, swap;\n\t}"
      : "=f"(pair.first), "=f"(pair.second)
      : "f"(first), "f"(second), "r"(r));
  return pair;
#else
  const bool swap = (r & 2u) != 0;
  return {swap ? second : first, swap ? first : second};
#endif
}

FS_HD Pair normal_pair(uint32_t r_radius, uint32_t r_angle) {
  const float length = radius(r_radius);
  // The angle is y pi/4. Its cosine, to 1.2e-7, and its sine / y are polynomials in y^2.
  const float y = fused(signed_float(r_angle), 4.6566128730773926e-10f, 2.3283064365386963e-10f);
  const float s = y * y;
  float sine = -3.58774268e-05f;
  sine = fused(sine, s, 2.48987228e-03f);
  sine = fused(sine, s, -8.07453692e-02f);
  sine = fused(sine, s, 0.785398185f);
  float cosine = -3.19163984e-04f;
  cosine = fused(cosine, s, 1.58504024e-02f);
  cosine = fused(cosine, s, -0.308424503f);
  cosine = fused(cosine, s, 1.0f);
  // The radius is positive: adding bit 0 at the place of the sign sets the sign.
  const float along = bits_float(float_bits(length) + (r_angle << 31)) * cosine;
  const float across = (length * y) * sine;
  return ordered(along, across, r_angle);
}

}  // namespace fastsample
