// One row of a plan, applied to one element. The whole sampler arithmetic of the package is here:
//
//   m      = u + w (c - u)                       without guidance m = c
//   x0     = clamp(p x + q m, lo, hi)
//   sd     = d exp((lv_lo + (v + 1)/2 (lv_hi - lv_lo)) / 2)      without learned variance sd = d
//   x_next = a x + b x0 + e m + c1 h1 + c2 h2 + sd z
//
// Loops over elements live in cpu/ and cuda/. F is float or double.
#pragma once

#include "core/dtype.h"
#include "core/noise.h"

namespace fastsample {

constexpr int row_size = 13;  // p q lo hi w a b e c1 c2 d lv_lo lv_hi, as plan.COLUMNS

template <typename F>
struct Row {
  F p, q, lo, hi, w, a, b, e, c1, c2, d, lv_lo, lv_hi;
};

template <typename F>
FS_HD F not_a_number() {
#if defined(__CUDA_ARCH__)
  return static_cast<F>(__int_as_float(0x7fc00000));
#else
  return static_cast<F>(bits_float(0x7fc00000u));
#endif
}

// Coefficients are rounded once, here. A row number outside the table makes every output NaN: the
// number lives on the device, so nobody can check it without a synchronisation.
template <typename F>
FS_HD Row<F> load_row(const double* rows, int64_t num_rows, int64_t number) {
  if (number < 0 || number >= num_rows) {
    const F nan = not_a_number<F>();
    return {nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, F(0), F(0), F(0)};
  }
  const double* r = rows + number * row_size;
  return {F(r[0]), F(r[1]), F(r[2]), F(r[3]),  F(r[4]),  F(r[5]), F(r[6]),
          F(r[7]), F(r[8]), F(r[9]), F(r[10]), F(r[11]), F(r[12])};
}

// A row that looks back at x0's the caller did not give makes NaN, like one that misses its noise.
template <typename F>
FS_HD void require_history(Row<F>& row, bool h1, bool h2) {
  if ((!h1 && row.c1 != 0) || (!h2 && row.c2 != 0)) row.b = not_a_number<F>();
}

// Whether the noise's scale depends on v. It must not be touched otherwise: 0 times an infinite v
// is NaN.
template <typename F>
FS_HD bool reads_variance(const Row<F>& row) {
  return row.d != 0 && (row.lv_lo != 0 || row.lv_hi != 0);
}

template <typename F>
FS_HD F guide(const Row<F>& row, F conditional, F unconditional) {
  return fused(row.w, conditional - unconditional, unconditional);
}

template <typename F>
FS_HD F raw_x0(const Row<F>& row, F x, F m) {
  return fused(row.q, m, row.p * x);
}

// Comparisons, not fmin/fmax: those replace NaN by a bound, torch.clamp keeps it.
template <typename F>
FS_HD F clamp(const Row<F>& row, F x0) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same<F, float>::value) {  // two instructions instead of four
    float bounded;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(bounded) : "f"(x0), "f"(row.lo));
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(bounded) : "f"(row.hi));
    return bounded;
  }
#endif
  const F low = x0 < row.lo ? row.lo : x0;
  return low > row.hi ? row.hi : low;
}

// x_next without history and noise.
template <typename F>
FS_HD F mean(const Row<F>& row, F x, F x0, F m) {
  return fused(row.e, m, fused(row.b, x0, row.a * x));
}

FS_HD double exponential(double x) {
#if defined(__CUDA_ARCH__)
  return ::exp(x);
#else
  return std::exp(x);
#endif
}

// exp(x) to 1.5 ulp; infinity and zero where float overflows and underflows; NaN stays.
FS_HD float exponential(float x) {
  // Beyond these the result is 0 or infinity; both halves of the power stay exponents.
  const float low = x < -150.0f ? -150.0f : x;
  const float bounded = low > 150.0f ? 150.0f : low;
  const float shifted = fused(bounded, 1.44269502f, 12582912.0f);  // 1.5 * 2^23: rounds to integer
  const float n = shifted - 12582912.0f;
  const float r =
      fused(n, -1.42860677e-06f, fused(n, -0.693145752f, bounded));  // ln 2 in two parts
  float y = 1.38368504e-03f;
  y = fused(y, r, 8.37481581e-03f);
  y = fused(y, r, 4.16682251e-02f);
  y = fused(y, r, 0.166664198f);
  y = fused(y, r, 0.499999911f);
  y = fused(y, r, 1.0f);
  y = fused(y, r, 1.0f);
  // 2^n in two factors, so that subnormal and overflowing results come out right.
  const int32_t power = static_cast<int32_t>(float_bits(shifted)) - 0x4b400000;
  const int32_t half = power >> 1;
  const float scale1 = bits_float(static_cast<uint32_t>(half + 127) << 23);
  const float scale2 = bits_float(static_cast<uint32_t>(power - half + 127) << 23);
  return y * scale1 * scale2;
}

// Standard deviation of a step whose network predicts the variance (learned range, Nichol &
// Dhariwal 2021, arXiv:2102.09672, eq. 15 with v in [-1, 1]).
template <typename F>
FS_HD F learned_deviation(const Row<F>& row, F v) {
  const F share = fused(F(0.5), v, F(0.5));
  const F log_variance = fused(share, row.lv_hi - row.lv_lo, row.lv_lo);
  return row.d * exponential(F(0.5) * log_variance);
}

// Gradients of one element. `grad` is dL/dx_next, `grad_x0` is dL/dx0 when x0 was asked for, else
// 0.
template <typename F>
struct Gradients {
  F x, m;
};

template <typename F>
FS_HD Gradients<F> differentiate(const Row<F>& row, F unclamped, F grad, F grad_x0) {
  const bool inside = unclamped >= row.lo && unclamped <= row.hi;  // as torch.clamp's backward
  const F through = inside ? fused(row.b, grad, grad_x0) : F(0);
  return {fused(row.p, through, row.a * grad), fused(row.q, through, row.e * grad)};
}

}  // namespace fastsample
