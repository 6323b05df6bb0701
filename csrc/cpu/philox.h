// Computes Philox words for many blocks of one stream: the integer half of core/noise.h, written in
// vector instructions.
//
// Compilers do not arrive at the form that suits x86, where each 32-bit word is alone in a 64-bit
// lane: one multiplication then gives both halves of a product, and the upper half of a lane may
// hold anything. Measured on a 2-core AMD EPYC (AVX-512), in ns per normal: 0.83 as compiled from
// core/noise.h, 0.32 as written here.
#pragma once

#include "core/noise.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

#if defined(__AVX512F__)

struct Lanes {
  static constexpr int count = 8, unroll = 4;  // four chains hide the latency of the multiplication
  __m512i value;
  static Lanes all(uint32_t word) { return {_mm512_set1_epi64(static_cast<int64_t>(word))}; }
  static Lanes load(const uint32_t* words) {
    return {_mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)))};
  }
  static Lanes from(int64_t first) {
    return {_mm512_add_epi64(_mm512_set1_epi64(first), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0))};
  }
  Lanes times(Lanes other) const { return {_mm512_mul_epu32(value, other.value)}; }
  Lanes high() const { return {_mm512_srli_epi64(value, 32)}; }
  Lanes mixed(Lanes a, Lanes b) const {
    return {_mm512_ternarylogic_epi64(value, a.value, b.value, 0x96)};
  }
  void store(uint32_t* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(value));
  }
};

#elif defined(__AVX2__)

struct Lanes {
  static constexpr int count = 4, unroll = 2;
  __m256i value;
  static Lanes all(uint32_t word) { return {_mm256_set1_epi64x(static_cast<int64_t>(word))}; }
  static Lanes load(const uint32_t* words) {
    return {_mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)))};
  }
  static Lanes from(int64_t first) {
    return {_mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_set_epi64x(3, 2, 1, 0))};
  }
  Lanes times(Lanes other) const { return {_mm256_mul_epu32(value, other.value)}; }
  Lanes high() const { return {_mm256_srli_epi64(value, 32)}; }
  Lanes mixed(Lanes a, Lanes b) const {
    return {_mm256_xor_si256(value, _mm256_xor_si256(a.value, b.value))};
  }
  void store(uint32_t* to) const {
    const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(value, even)));
  }
};

#else

struct Lanes {
  static constexpr int count = 1, unroll = 1;
  uint64_t value;
  static Lanes all(uint32_t word) { return {word}; }
  static Lanes load(const uint32_t* words) { return {*words}; }
  static Lanes from(int64_t first) { return {static_cast<uint64_t>(first)}; }
  Lanes times(Lanes other) const { return {(value & 0xffffffffu) * (other.value & 0xffffffffu)}; }
  Lanes high() const { return {value >> 32}; }
  Lanes mixed(Lanes a, Lanes b) const { return {value ^ a.value ^ b.value}; }
  void store(uint32_t* to) const { *to = static_cast<uint32_t>(value); }
};

#endif

constexpr int64_t philox_group = Lanes::count * Lanes::unroll;

// The blocks to compute are consecutive, or a list (readable up to a multiple of philox_group).
struct Run {
  int64_t first;
  Lanes operator()(int64_t i) const { return Lanes::from(first + i); }
};

struct List {
  const uint32_t* blocks;
  Lanes operator()(int64_t i) const { return Lanes::load(blocks + i); }
};

// Writes words 0..3 of blocks number begin .. begin + count - 1; each array needs room for count
// rounded up to a multiple of philox_group.
template <typename Blocks>
inline void philox_words(const Stream& stream, const Blocks& blocks, int64_t begin, int64_t count,
                         uint32_t* r0, uint32_t* r1, uint32_t* r2, uint32_t* r3) {
  constexpr int unroll = Lanes::unroll;
  const Lanes multiplier0 = Lanes::all(philox_multiplier0),
              multiplier1 = Lanes::all(philox_multiplier1);
  for (int64_t i = 0; i < count; i += philox_group) {
    Lanes c0[unroll], c1[unroll], c2[unroll], c3[unroll];
    for (int u = 0; u < unroll; ++u) {
      c0[u] = blocks(begin + i + u * Lanes::count);
      c1[u] = Lanes::all(stream.index_low);
      c2[u] = Lanes::all(stream.index_high);
      c3[u] = Lanes::all(stream.draw);
    }
    uint32_t key0 = stream.key0, key1 = stream.key1;
    for (uint32_t round = 0; round < philox_rounds; ++round) {
      const Lanes k0 = Lanes::all(key0), k1 = Lanes::all(key1);
      for (int u = 0; u < unroll; ++u) {
        const Lanes product0 = multiplier0.times(c0[u]), product1 = multiplier1.times(c2[u]);
        c0[u] = product1.high().mixed(c1[u], k0);
        c2[u] = product0.high().mixed(c3[u], k1);
        c1[u] = product1;
        c3[u] = product0;
      }
      key0 += philox_increment0;
      key1 += philox_increment1;
    }
    for (int u = 0; u < unroll; ++u) {
      const int64_t at = i + u * Lanes::count;
      c0[u].store(r0 + at);
      c1[u].store(r1 + at);
      c2[u].store(r2 + at);
      c3[u].store(r3 + at);
    }
  }
}

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
