// Computes exponential and logarithm without branches, so that loops over them vectorise.
#pragma once

#include <type_traits>

#include "core/platform.h"

namespace fastsample {

// x = n ln 2 + r with a whole number n and |r| <= ln 2 / 2. The lowest bits of `shifted` are n.
template <typename F>
struct Reduced {
  F shifted, n, r;
};

FS_HD Reduced<double> reduce(double x) {
  const double shifted = fused(x, 1.4426950408889634, 6755399441055744.0);  // 1.5 * 2^52 rounds
  const double n = shifted - 6755399441055744.0;
  // ln 2 is subtracted in two parts, so that the difference keeps its digits.
  return {shifted, n, fused(n, -1.9082149292705877e-10, fused(n, -0.6931471803691238, x))};
}

FS_HD Reduced<float> reduce(float x) {
  const float shifted = fused(x, 1.44269502f, 12582912.0f);  // 1.5 * 2^23 rounds
  const float n = shifted - 12582912.0f;
  return {shifted, n, fused(n, -1.42860677e-06f, fused(n, -0.693145752f, x))};
}

// ---- e^x over the whole range ----

FS_HD double exponential(double x) {
#if defined(__CUDA_ARCH__)
  return ::exp(x);
#else
  return std::exp(x);
#endif
}

// Returns e^x to 1.5 ulp, infinity and zero where float overflows and underflows; NaN stays.
FS_HD float exponential(float x) {
  // Beyond these bounds the result is 0 or infinity; within them both factors of 2^n are normal.
  const Reduced<float> e = reduce(clamp(x, -150.0f, 150.0f));
  float y = 1.38368504e-03f;
  y = fused(y, e.r, 8.37481581e-03f);
  y = fused(y, e.r, 4.16682251e-02f);
  y = fused(y, e.r, 0.166664198f);
  y = fused(y, e.r, 0.499999911f);
  y = fused(y, e.r, 1.0f);
  y = fused(y, e.r, 1.0f);
  // 2^n is applied in two factors, so that subnormal and overflowing results come out right.
  const int32_t power = static_cast<int32_t>(float_bits(e.shifted)) - 0x4b400000;
  const int32_t half = power >> 1;
  const float scale1 = bits_float(static_cast<uint32_t>(half + 127) << 23);
  const float scale2 = bits_float(static_cast<uint32_t>(power - half + 127) << 23);
  return y * scale1 * scale2;
}

// ---- e^x of moderate x, as a power of 2 and a polynomial ----

// Stores e^x = power (1 + r + r^2 phi), where power = 2^n.
template <typename F>
struct Power {
  F power, r, phi;
  bool whole;  // n = 0, so that power = 1 and r = x
};

// Requires |x| < 700.
FS_HD Power<double> split_exp(double x) {
  const Reduced<double> e = reduce(x);
  double y = 1.0 / 6227020800.0;  // 1 / 13!, down to 1 / 2!
  y = fused(y, e.r, 1.0 / 479001600.0);
  y = fused(y, e.r, 1.0 / 39916800.0);
  y = fused(y, e.r, 1.0 / 3628800.0);
  y = fused(y, e.r, 1.0 / 362880.0);
  y = fused(y, e.r, 1.0 / 40320.0);
  y = fused(y, e.r, 1.0 / 5040.0);
  y = fused(y, e.r, 1.0 / 720.0);
  y = fused(y, e.r, 1.0 / 120.0);
  y = fused(y, e.r, 1.0 / 24.0);
  y = fused(y, e.r, 1.0 / 6.0);
  y = fused(y, e.r, 0.5);
  const double power = bits_double((double_bits(e.shifted) << 52) + 0x3ff0000000000000u);
  return {power, e.r, y, e.n == 0.0};
}

// Requires |x| < 87.
FS_HD Power<float> split_exp(float x) {
  const Reduced<float> e = reduce(x);
  float y = 1.0f / 5040.0f;  // 1 / 7!, down to 1 / 2!
  y = fused(y, e.r, 1.0f / 720.0f);
  y = fused(y, e.r, 1.0f / 120.0f);
  y = fused(y, e.r, 1.0f / 24.0f);
  y = fused(y, e.r, 1.0f / 6.0f);
  y = fused(y, e.r, 0.5f);
  const float power = bits_float((float_bits(e.shifted) << 23) + 0x3f800000u);
  return {power, e.r, y, e.n == 0.0f};
}

// Returns e^x for |x| < 87 to a few ulp, which is enough for the terms of a long sum.
template <typename F>
FS_HD F quick_exp(F x) {
#if defined(__CUDA_ARCH__)
  // The special-function unit errs by 2 ulp near 0 and by 2^-17 at the ends of the range.
  if constexpr (std::is_same<F, float>::value) return __expf(x);
#endif
  const Power<F> e = split_exp(x);
  return e.power * fused(e.r, fused(e.r, e.phi, F(1)), F(1));
}

template <typename F>
FS_HD F quick_quotient(F a, F b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same<F, float>::value) return __fdividef(a, b);  // |b| < 2^126
#endif
  return a / b;
}

// ---- logarithm of a normal positive number ----

FS_HD double quick_log(double x) {
#if defined(__CUDA_ARCH__)
  return ::log(x);
#else
  // x = 2^n m with m in [sqrt 1/2, sqrt 2); log m = 2 artanh((m - 1) / (m + 1)).
  const uint64_t bits = double_bits(x) - 0x3fe6a09e667f3bcdu;
  const double m = bits_double((bits & 0xfffffffffffffu) + 0x3fe6a09e667f3bcdu);
  // The exponent becomes a double by bit operations: AVX2 has no conversion from 64-bit integers.
  const double n =
      bits_double(((bits + 0x4000000000000000u) >> 52) | 0x4330000000000000u) - 4503599627371520.0;
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double y = 1.0 / 23.0;
  y = fused(y, z, 1.0 / 21.0);
  y = fused(y, z, 1.0 / 19.0);
  y = fused(y, z, 1.0 / 17.0);
  y = fused(y, z, 1.0 / 15.0);
  y = fused(y, z, 1.0 / 13.0);
  y = fused(y, z, 1.0 / 11.0);
  y = fused(y, z, 1.0 / 9.0);
  y = fused(y, z, 1.0 / 7.0);
  y = fused(y, z, 1.0 / 5.0);
  y = fused(y, z, 1.0 / 3.0);
  return fused(n, 0.6931471805599453, fused(2.0 * s * z, y, 2.0 * s)) + (x - x);  // NaN stays
#endif
}

FS_HD float quick_log(float x) {
#if defined(__CUDA_ARCH__)
  return __logf(x);
#else
  return std::log(x);
#endif
}

}  // namespace fastsample
