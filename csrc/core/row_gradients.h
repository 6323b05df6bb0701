// Computes derivatives of the step in core/step.h with respect to the coefficients of its row. Each
// one is a sum over elements of the terms below, with g = dL/dx_next and g0 = b g + dL/dx0 of the
// element.
//
//   p   g0 x inside the clamp     a   g x      c1  g h1      w      dL/dm (c - u)
//   q   g0 m inside the clamp     b   g x0     ..            d      g z sd/d
//   lo  g0 below the clamp        e   g m      c4  g h4      lv_lo  g z sd (1 - share) / 2
//   hi  g0 above the clamp                                   lv_hi  g z sd share / 2
#pragma once

#include "core/step.h"

namespace fastsample {

template <typename F>
struct RowTerms {
  F p, q, lo, hi, a, b, e;
  F m;  // dL/dm, the factor of w
};

template <typename F>
FS_HD RowTerms<F> row_terms(const Row<F>& row, F x, F m, F grad, F grad_x0) {
  const F unclamped = unclamped_x0(row, x, m);
  const F x0 = clamped_x0(row, unclamped);
  const F total = total_grad_x0(row, grad, grad_x0);
  const F inside = inside_clamp(row, unclamped) ? total : F(0);
  const F below = unclamped < row.lo ? total : F(0), above = unclamped > row.hi ? total : F(0);
  const F grad_m = differentiate(row, unclamped, grad, grad_x0).m;
  return {inside * x, inside * m, below, above, grad * x, grad * x0, grad * m, grad_m};
}

template <typename F>
struct NoiseTerms {
  F d, lv_lo, lv_hi;
};

// Returns the terms of d, lv_lo and lv_hi for a row that draws noise; v is read if it is learned.
template <typename F>
FS_HD NoiseTerms<F> noise_terms(const Row<F>& row, bool learned, F v, F z, F grad) {
  if (!learned) return {grad * z, F(0), F(0)};
  const F share = variance_share(v);
  const F unit = grad * z * relative_deviation(row, v);
  const F half = F(0.5) * row.d * unit;
  return {unit, half * (F(1) - share), half * share};
}

}  // namespace fastsample
