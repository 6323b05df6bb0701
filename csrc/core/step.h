// Applies one row of a plan to one element. The arithmetic of every sampler is here, once:
//
//   m      = u + w (c - u)
//   x0     = clamp(p x + q m, lo, hi)
//   sd     = d exp((lv_lo + (v + 1)/2 (lv_hi - lv_lo)) / 2)
//   x_next = a x + b x0 + e m + c1 h1 + c2 h2 + c3 h3 + c4 h4 + sd z
//
// x is the current sample, c and u are the network's conditional and unconditional outputs, v is
// the half of the output that predicts the variance, h1 .. h4 are the x0's of earlier rows, newest
// first, and z is standard normal noise. Without guidance m = c; without a learned variance sd = d.
//
// The loops over elements are in cpu/ and gpu/. F is float or double.
#pragma once

#include "core/dtype.h"
#include "core/elementary.h"

namespace fastsample {

// The columns of a plan's table, in the order of COLUMNS in Python.
struct Column {
  enum : int { p, q, lo, hi, w, a, b, e, c1, c2, c3, c4, d, lv_lo, lv_hi, count };
};

constexpr int max_history = 4;  // a row reads at most this many earlier x0's

// ---- the row ----

template <typename F>
struct Row {
  F p, q, lo, hi, w, a, b, e;
  F c[max_history];  // c1 .. c4
  F d, lv_lo, lv_hi;
};

// Loads a row and rounds its coefficients, once. `history` holds the pointers to the earlier x0's.
// Every output becomes NaN for a row number outside the table (the number lives on the device, so
// nobody can check it without a synchronisation) and for a row that reads an earlier x0 which the
// caller did not pass.
template <typename F>
FS_HD Row<F> load_row(const double* rows, int64_t num_rows, int64_t number,
                      const void* const (&history)[max_history]) {
  const F nan = not_a_number<F>();
  if (number < 0 || number >= num_rows) {
    return {nan, nan, nan, nan, nan, nan, nan, nan, {nan, nan, nan, nan}, F(0), F(0), F(0)};
  }
  const double* c = rows + number * Column::count;
  Row<F> row{F(c[Column::p]),  F(c[Column::q]),     F(c[Column::lo]),
             F(c[Column::hi]), F(c[Column::w]),     F(c[Column::a]),
             F(c[Column::b]),  F(c[Column::e]),     {},
             F(c[Column::d]),  F(c[Column::lv_lo]), F(c[Column::lv_hi])};
  FS_UNROLL
  for (int i = 0; i < max_history; ++i) {
    row.c[i] = F(c[Column::c1 + i]);
    if (!history[i] && row.c[i] != 0) row.b = nan;
  }
  return row;
}

// Returns whether sd depends on v. Otherwise v must not be touched: 0 times an infinite v is NaN.
template <typename F>
FS_HD bool reads_variance(const Row<F>& row) {
  return row.d != 0 && (row.lv_lo != 0 || row.lv_hi != 0);
}

// ---- the formula ----

// Returns m, the model output after guidance.
template <typename F>
FS_HD F guide(const Row<F>& row, F c, F u) {
  return fused(row.w, c - u, u);
}

// Returns p x + q m, which is x0 before the clamp.
template <typename F>
FS_HD F unclamped_x0(const Row<F>& row, F x, F m) {
  return fused(row.q, m, row.p * x);
}

// Returns x0, the clamped value.
template <typename F>
FS_HD F clamped_x0(const Row<F>& row, F unclamped) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same<F, float>::value) {  // clamp in two instructions instead of four
    float bounded;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(bounded) : "f"(unclamped), "f"(row.lo));
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(bounded) : "f"(row.hi));
    return bounded;
  }
#endif
  return clamp(unclamped, row.lo, row.hi);
}

// Returns a x + b x0 + e m, to which the caller adds history and noise.
template <typename F>
FS_HD F mean(const Row<F>& row, F x, F x0, F m) {
  return fused(row.e, m, fused(row.b, x0, row.a * x));
}

// Returns the share (v + 1)/2 of the learned range of variances, with v in [-1, 1] (Nichol &
// Dhariwal 2021, arXiv:2102.09672, eq. 15).
template <typename F>
FS_HD F variance_share(F v) {
  return fused(F(0.5), v, F(0.5));
}

// Returns sd / d.
template <typename F>
FS_HD F relative_deviation(const Row<F>& row, F v) {
  const F log_variance = fused(variance_share(v), row.lv_hi - row.lv_lo, row.lv_lo);
  return exponential(F(0.5) * log_variance);
}

// Returns sd.
template <typename F>
FS_HD F learned_deviation(const Row<F>& row, F v) {
  return row.d * relative_deviation(row, v);
}

// ---- the derivatives of the formula ----

// `grad` is dL/dx_next, and `grad_x0` is dL/dx0 if the call returns x0 as well, else 0.

// Returns the whole dL/dx0, with the part that x_next contributes.
template <typename F>
FS_HD F total_grad_x0(const Row<F>& row, F grad, F grad_x0) {
  return fused(row.b, grad, grad_x0);
}

// Gradients pass at the bounds themselves, as in torch.clamp's backward.
template <typename F>
FS_HD bool inside_clamp(const Row<F>& row, F unclamped) {
  return unclamped >= row.lo && unclamped <= row.hi;
}

// Returns dL/dx and dL/dm.
template <typename F>
struct Gradients {
  F x, m;
};

template <typename F>
FS_HD Gradients<F> differentiate(const Row<F>& row, F unclamped, F grad, F grad_x0) {
  const F through = inside_clamp(row, unclamped) ? total_grad_x0(row, grad, grad_x0) : F(0);
  return {fused(row.p, through, row.a * grad), fused(row.q, through, row.e * grad)};
}

// Returns dL/dv, which follows from d log(sd) / dv = (lv_hi - lv_lo) / 4.
template <typename F>
FS_HD F variance_gradient(const Row<F>& row, F sd, F z, F grad) {
  const F slope = F(0.25) * (row.lv_hi - row.lv_lo);
  return grad * (slope * sd * z);
}

}  // namespace fastsample
