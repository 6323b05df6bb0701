// Holds all that depends on the compiler and the machine: the marker for functions that run on
// host and device, bit casts, and the few operations that must round alike everywhere.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FS_HD __host__ __device__ __forceinline__
#else
// always_inline also keeps code compiled for AVX-512 from being shared, through the linker, with
// the baseline build of the same header.
#define FS_HD inline __attribute__((always_inline))
#endif

#if !defined(__CUDA_ARCH__)
#include <cmath>
#endif

// Unrolls the loop that follows in code for the GPU, where arrays must be indexed by constants to
// stay in registers.
#if defined(__CUDA_ARCH__)
#define FS_UNROLL _Pragma("unroll")
#else
#define FS_UNROLL
#endif

namespace fastsample {

FS_HD uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

FS_HD float bits_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

FS_HD uint64_t double_bits(double value) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint64_t>(__double_as_longlong(value));
#else
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

FS_HD double bits_double(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

template <typename F>
FS_HD F not_a_number() {
  return static_cast<F>(bits_float(0x7fc00000u));
}

// Returns a * b + c rounded once. It is called explicitly, with contraction off, so that a vector
// body and its scalar tail, SSE2 and AVX-512, CPU and GPU all give the same bits.
FS_HD float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  // Baseline x86-64 has no hardware fma. The product of two floats is exact in double; rounding the
  // sum to odd (Boldo & Melquiond 2008) before the final rounding makes the two roundings act as
  // one.
  const double product = static_cast<double>(a) * b;
  const double addend = c;
  const double sum = product + addend;
  const double virtual_addend = sum - product;
  const double error = (product - (sum - virtual_addend)) + (addend - virtual_addend);
  const uint64_t bits = double_bits(sum);
  const bool inexact = error != 0 && (bits & 1) == 0 && sum - sum == 0;
  const bool away = (error > 0) == (sum > 0);
  return static_cast<float>(bits_double(inexact ? (away ? bits + 1 : bits - 1) : bits));
#endif
}

FS_HD double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

// Returns the square root of a normal number far from overflow, correctly rounded. On CUDA this is
// what __fsqrt_rn does for such numbers, without its branch for all others (6 instructions).
FS_HD float root(float value) {
#if defined(__CUDA_ARCH__)
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(value));
  const float estimate = value * inverse;
  return __fmaf_rn(__fmaf_rn(-estimate, estimate, value), 0.5f * inverse, estimate);
#else
  return std::sqrt(value);
#endif
}

// Returns `value` limited to two bounds; NaN stays NaN, as in torch.clamp. It compares, because
// fmin and fmax would replace NaN by a bound.
template <typename F>
FS_HD F clamp(F value, F lo, F hi) {
  const F low = value < lo ? lo : value;
  return low > hi ? hi : low;
}

}  // namespace fastsample
