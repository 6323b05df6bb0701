// Defines the sums over a sample's elements from which every term of the evidence lower bound at
// one time can be computed.
//
//   error    sum (x0 - x0hat)^2                       v      sum v
//   epsilon  sum eps^2 of the network                 H_j    sum e^(-a_j v) - 1 + a_j v
//   S_j      sum (x0 - x0hat)^2 e^(-a_j v)            nll_j  decoder at log standard deviation j
//
// With a learned variance (Nichol and Dhariwal 2021, arXiv:2102.09672) a step whose variances lie
// a = log(beta / beta-tilde) apart costs (H + (SNR_s - SNR_t) S) / 2. The sum e^(-a v) - 1 + a v
// would cancel, since a v is about 1e-6 between neighbouring times; e^r = 1 + r + r^2 phi(r) gives
// its value without a difference.
#pragma once

#include "core/dtype.h"
#include "core/elementary.h"
#include "core/step.h"

namespace fastsample {

constexpr int fixed_sums = 3;  // error, epsilon, v: the first columns of a row of sums

// T in the comments below is the dtype of the call's tensors.
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
  const double* nodes;  // (num_nodes,) a_j
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

// ---- one element ----

template <typename F>
struct Element {
  F error2, epsilon2, v, x0, x0hat;
};

template <typename F>
FS_HD Element<F> element(const ElboOperands& o, F x0, F x, F m, F raw) {
  const F predicted = fused(static_cast<F>(o.q), m, static_cast<F>(o.p) * x);
  const F x0hat = clamp(predicted, static_cast<F>(o.lo), static_cast<F>(o.hi));
  const F epsilon = fused(static_cast<F>(o.g), m, static_cast<F>(o.r) * x);
  const F error = x0 - x0hat;
  return {error * error, epsilon * epsilon, variance_share(raw), x0, x0hat};
}

template <typename F>
struct NodeTerms {
  F excess, weighted;  // e^-x - 1 + x and error2 e^-x, where x = a v
};

template <typename F>
FS_HD NodeTerms<F> node_terms(F a, F v, F error2) {
  const F x = a * v;
  const Power<F> e = split_exp(-clamp(x, F(-80), F(80)));
  const F square = e.r * e.r * e.phi;
  const F exponential = e.power * (F(1) + (e.r + square));
  return {e.whole ? square : exponential - F(1) + x, error2 * exponential};
}

// Returns -log P(bin of x0) under N(x0hat, 1 / inverse^2), with the tanh approximation of the
// normal distribution function and the floor 1e-12 of improved-diffusion; the outer bins are open.
// The tanh is written as a logistic function, so that the lesser tail keeps its digits.
template <typename F>
FS_HD F decoder_nll(F x0, F x0hat, F inverse, F half_bin) {
  const F centred = x0 - x0hat;
  const F upper_z = (centred + half_bin) * inverse, lower_z = (centred - half_bin) * inverse;
  const F scale = F(1.5957691216057308), cubic = F(0.044715);  // 2 sqrt(2 / pi)
  F upper = scale * upper_z * fused(cubic * upper_z, upper_z, F(1));
  F lower = scale * lower_z * fused(cubic * lower_z, lower_z, F(1));
  upper = x0 > F(0.999) ? F(80) : clamp(upper, F(-80), F(80));
  lower = x0 < F(-0.999) ? F(-80) : clamp(lower, F(-80), F(80));
  const bool reflect = upper + lower > F(0);
  const F high = quick_exp(reflect ? -lower : upper), low = quick_exp(reflect ? -upper : lower);
  const F probability = quick_quotient(high - low, (F(1) + high) * (F(1) + low));
  const F floored = probability < F(1e-12) ? F(1e-12) : probability;  // NaN stays
  return -quick_log(floored);
}

}  // namespace fastsample
