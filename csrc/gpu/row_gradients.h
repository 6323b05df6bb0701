// Computes what one GPU thread adds to the gradients of a row for one pack of elements. The code
// can be called on the host.
#pragma once

#include "core/row_gradients.h"
#include "gpu/thread.h"

namespace fastsample {

template <typename T, Access access>
FS_HD void add_row_gradients(const RowGradientOperands& r, const Cut& cut, uint32_t item,
                             CurrentRow<arithmetic_t<T>>& current, double (&sums)[Column::count]) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access>;
  const StepOperands& o = r.forward;
  const int halves = o.learned ? 2 : 1;
  const Pack pack = pack_at<T, access>(cut, item);
  const Row<F>& row = current.row;
  const auto exists = [&](int j) { return static_cast<uint32_t>(j) < pack.count; };
  F grad[width], x[width], m[width], grad_x0[width], value[width];
  F part[Column::count] = {};
  read<access, width, T>(r.grad_next, cut, pack, 1, 0, grad);
  read<access, width, T>(o.x, cut, pack, 1, 0, x);
  FS_UNROLL
  for (int j = 0; j < width; ++j) value[j] = 0;
  read_guided<T, access>(o, cut, pack, halves, row, m, &value);
  read_optional<access>(r.grad_x0, cut, pack, grad_x0);
  FS_UNROLL
  for (int j = 0; j < width; ++j) {
    if (!exists(j)) continue;
    const RowTerms<F> terms = row_terms(row, x[j], m[j], grad[j], grad_x0[j]);
    part[Column::p] += terms.p;
    part[Column::q] += terms.q;
    part[Column::lo] += terms.lo;
    part[Column::hi] += terms.hi;
    part[Column::a] += terms.a;
    part[Column::b] += terms.b;
    part[Column::e] += terms.e;
    if (o.uncond) part[Column::w] += terms.m * value[j];
  }
  FS_UNROLL
  for (int n = 0; n < max_history; ++n) {
    if (!o.history[n]) continue;
    read<access, width, F>(o.history[n], cut, pack, 1, 0, value);
    FS_UNROLL
    for (int j = 0; j < width; ++j)
      if (exists(j)) part[Column::c1 + n] += grad[j] * value[j];
  }
  if (row.d != 0) {
    read_noise<T, Variant::general, access>(o, cut, pack, current.draw, value);
    const bool learned = o.learned && reads_variance(row);
    if (learned) read<access, width, T>(o.out, cut, pack, halves, 1, x);
    FS_UNROLL
    for (int j = 0; j < width; ++j) {
      if (!exists(j)) continue;
      const NoiseTerms<F> terms = noise_terms(row, learned, x[j], value[j], grad[j]);
      part[Column::d] += terms.d;
      part[Column::lv_lo] += terms.lv_lo;
      part[Column::lv_hi] += terms.lv_hi;
    }
  }
  FS_UNROLL
  for (int i = 0; i < Column::count; ++i) sums[i] += part[i];
}

}  // namespace fastsample
