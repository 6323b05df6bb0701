// What one sample tells about the evidence lower bound at one time: sums over its elements.
//
//   error    sum (x0 - x0hat)^2                       v      sum v
//   epsilon  sum eps^2 of the network                 H_j    sum e^(-a_j v) - 1 + a_j v
//   S_j      sum (x0 - x0hat)^2 e^(-a_j v)            nll_j  decoder at log standard deviation j
//
// With a learned variance (Nichol and Dhariwal 2021, arXiv:2102.09672) a step whose variances lie
// a = log(beta / beta-tilde) apart costs (H + (SNR_s - SNR_t) S) / 2. H is never formed as that
// difference: e^r = 1 + r + r^2 phi(r), and between neighbouring times a v is about 1e-6.
#pragma once

#include "core/dtype.h"

namespace fastsample {

constexpr int fixed_sums = 3;  // error, epsilon, v: the first columns of a row of sums

struct ElboOperands {
  DType dtype;
  int64_t batch, size;  // elements of a sample, contiguous
  bool learned;         // out holds [prediction | v] of 2 * size elements
  const void* x0;       // T
  const void* x;        // T
  const void* out;      // T
  double p, q;          // x0hat = clamp(p x + q m, lo, hi)
  double r, g;          // eps = r x + g m
  double lo, hi;
  const double* nodes;  // (num_nodes,) the a_j
  int64_t num_nodes;
  const double* log_scales;  // (num_scales,)
  int64_t num_scales;
  double bin_width;
  int64_t chunk;  // elements that one row of sums covers
  double* sums;   // (batch, chunks, 3 + 2 num_nodes + num_scales)
};

FS_HD int64_t num_chunks(const ElboOperands& o) { return (o.size + o.chunk - 1) / o.chunk; }
FS_HD int64_t sums_width(const ElboOperands& o) {
  return fixed_sums + 2 * o.num_nodes + o.num_scales;
}

// ---- elementary functions, branch-free so that loops over them vectorise ----

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

// e^x = 2^n (1 + r + r^2 phi) with |r| <= ln 2 / 2; n by its power of two.
template <typename F>
struct Power {
  F power, r, phi;
  bool whole;  // n = 0: then r = x
};

// |x| < 700.
FS_HD Power<double> split_exp(double x) {
  const double shifted = fused(x, 1.4426950408889634, 6755399441055744.0);  // 1.5 * 2^52
  const double n = shifted - 6755399441055744.0;
  const double r = fused(n, -1.9082149292705877e-10, fused(n, -0.6931471803691238, x));
  double y = 1.0 / 6227020800.0;  // 1 / 13!, down to 1 / 2!
  y = fused(y, r, 1.0 / 479001600.0);
  y = fused(y, r, 1.0 / 39916800.0);
  y = fused(y, r, 1.0 / 3628800.0);
  y = fused(y, r, 1.0 / 362880.0);
  y = fused(y, r, 1.0 / 40320.0);
  y = fused(y, r, 1.0 / 5040.0);
  y = fused(y, r, 1.0 / 720.0);
  y = fused(y, r, 1.0 / 120.0);
  y = fused(y, r, 1.0 / 24.0);
  y = fused(y, r, 1.0 / 6.0);
  y = fused(y, r, 0.5);
  // The low bits of `shifted` are n.
  return {bits_double((double_bits(shifted) << 52) + 0x3ff0000000000000u), r, y, n == 0.0};
}

// |x| < 87.
FS_HD Power<float> split_exp(float x) {
  const float shifted = fused(x, 1.44269502f, 12582912.0f);  // 1.5 * 2^23
  const float n = shifted - 12582912.0f;
  const float r = fused(n, -1.42860677e-06f, fused(n, -0.693145752f, x));
  float y = 1.0f / 5040.0f;
  y = fused(y, r, 1.0f / 720.0f);
  y = fused(y, r, 1.0f / 120.0f);
  y = fused(y, r, 1.0f / 24.0f);
  y = fused(y, r, 1.0f / 6.0f);
  y = fused(y, r, 0.5f);
  return {bits_float((float_bits(shifted) << 23) + 0x3f800000u), r, y, n == 0.0f};
}

template <typename F>
FS_HD F limited(F x, F bound) {  // NaN stays
  const F low = x < -bound ? -bound : x;
  return low > bound ? bound : low;
}

template <typename F>
FS_HD F exp_of(F x) {
#if defined(__CUDA_ARCH__)
  // The special-function unit: 2 ulp near 0, 2^-17 at the ends of the range.
  if constexpr (std::is_same<F, float>::value) return __expf(x);
#endif
  const Power<F> e = split_exp(x);
  return e.power * fused(e.r, fused(e.r, e.phi, F(1)), F(1));
}

template <typename F>
FS_HD F quotient(F a, F b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same<F, float>::value) return __fdividef(a, b);  // |b| < 2^126
#endif
  return a / b;
}

// log of a normal positive number.
FS_HD double log_of(double x) {
#if defined(__CUDA_ARCH__)
  return ::log(x);
#else
  // x = 2^n m with m in [sqrt 1/2, sqrt 2); log m = 2 artanh((m - 1) / (m + 1)).
  const uint64_t bits = double_bits(x) - 0x3fe6a09e667f3bcdu;
  const double m = bits_double((bits & 0xfffffffffffffu) + 0x3fe6a09e667f3bcdu);
  // The exponent as a double without a conversion, which AVX2 does not have.
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

FS_HD float log_of(float x) {
#if defined(__CUDA_ARCH__)
  return __logf(x);
#else
  return std::log(x);
#endif
}

// ---- one element ----

template <typename F>
struct Element {
  F error2, epsilon2, v, x0, x0hat;
};

template <typename F>
FS_HD Element<F> element(const ElboOperands& o, F x0, F x, F m, F raw) {
  const F predicted = fused(static_cast<F>(o.q), m, static_cast<F>(o.p) * x);
  const F low = predicted < static_cast<F>(o.lo) ? static_cast<F>(o.lo) : predicted;
  const F x0hat = low > static_cast<F>(o.hi) ? static_cast<F>(o.hi) : low;  // NaN stays
  const F epsilon = fused(static_cast<F>(o.g), m, static_cast<F>(o.r) * x);
  const F error = x0 - x0hat;
  return {error * error, epsilon * epsilon, fused(F(0.5), raw, F(0.5)), x0, x0hat};
}

template <typename F>
struct NodeTerms {
  F excess, weighted;  // e^-x - 1 + x and error2 e^-x, where x = a v
};

template <typename F>
FS_HD NodeTerms<F> node_terms(F a, F v, F error2) {
  const F x = a * v;
  const Power<F> e = split_exp(-limited(x, F(80)));
  const F square = e.r * e.r * e.phi;
  const F exponential = e.power * (F(1) + (e.r + square));
  return {e.whole ? square : exponential - F(1) + x, error2 * exponential};
}

// -log P(bin of x0) under N(x0hat, 1 / inverse^2), with the tanh approximation of the normal
// distribution function and the floor 1e-12 of improved-diffusion; the outer bins are open. In
// terms of the logistic function, which tanh is, the lesser tail keeps its digits.
template <typename F>
FS_HD F decoder_nll(F x0, F x0hat, F inverse, F half_bin) {
  const F centred = x0 - x0hat;
  const F upper_z = (centred + half_bin) * inverse, lower_z = (centred - half_bin) * inverse;
  const F scale = F(1.5957691216057308), cubic = F(0.044715);  // 2 sqrt(2 / pi)
  F upper = scale * upper_z * fused(cubic * upper_z, upper_z, F(1));
  F lower = scale * lower_z * fused(cubic * lower_z, lower_z, F(1));
  upper = x0 > F(0.999) ? F(80) : limited(upper, F(80));
  lower = x0 < F(-0.999) ? F(-80) : limited(lower, F(80));
  const bool reflect = upper + lower > F(0);
  const F high = exp_of(reflect ? -lower : upper), low = exp_of(reflect ? -upper : lower);
  const F probability = quotient(high - low, (F(1) + high) * (F(1) + low));
  const F floored = probability < F(1e-12) ? F(1e-12) : probability;  // NaN stays
  return -log_of(floored);
}

}  // namespace fastsample
