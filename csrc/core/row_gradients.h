// Gradients with respect to a row's coefficients: sums over the elements of a sample.
//
// With g = dL/dx_next and g0 = b g + dL/dx0 of one element, inside the clamp range:
//
//   p   g0 x        a   g x        c1  g h1        w      (q g0 + e g) (c - u)
//   q   g0 m        b   g x0       c2  g h2        d      g sd z / d
//   lo, hi  g0 where x0 is held there              lv_lo, lv_hi   g sd z (1 - share, share) / 2
//   e   g m
#pragma once

#include "gpu/packs.h"

namespace fastsample {

struct RowGradientOperands {
  StepOperands forward;   // next and x0 unused
  const void* grad_next;  // T
  const void* grad_x0;    // F
  int64_t chunks;         // parts of a sample that have sums of their own
  double* sums;           // (batch, chunks, row_size), columns as plan.COLUMNS
};

// Where a column stands in `sums`.
enum Column : int {
  at_p,
  at_q,
  at_lo,
  at_hi,
  at_w,
  at_a,
  at_b,
  at_e,
  at_c1,
  at_c2,
  at_d,
  at_lv_lo,
  at_lv_hi
};

template <typename F>
struct RowTerms {
  F p, q, lo, hi, a, b, e;
  F m;  // dL/dm, for w
};

template <typename F>
FS_HD RowTerms<F> row_terms(const Row<F>& row, F x, F m, F grad, F grad_x0) {
  const F unclamped = raw_x0(row, x, m);
  const F x0 = clamp(row, unclamped);
  const F through = fused(row.b, grad, grad_x0);
  const F inside = unclamped >= row.lo && unclamped <= row.hi ? through : F(0);
  const F below = unclamped < row.lo ? through : F(0), above = unclamped > row.hi ? through : F(0);
  return {inside * x, inside * m, below,    above,
          grad * x,   grad * x0,  grad * m, fused(row.q, inside, row.e * grad)};
}

template <typename F>
struct NoiseTerms {
  F d, lv_lo, lv_hi;
};

// `z` of a row that draws noise; `v` the raw output of a learned variance.
template <typename F>
FS_HD NoiseTerms<F> noise_terms(const Row<F>& row, bool learned, F v, F z, F grad) {
  if (!learned) return {grad * z, F(0), F(0)};
  const F share = fused(F(0.5), v, F(0.5));
  const F log_variance = fused(share, row.lv_hi - row.lv_lo, row.lv_lo);
  const F unit = grad * z * exponential(F(0.5) * log_variance);
  const F half = F(0.5) * row.d * unit;
  return {unit, half * (F(1) - share), half * share};
}

}  // namespace fastsample
