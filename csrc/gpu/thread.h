// Defines what one GPU thread does for one pack of elements: the step, its backward pass, the
// noise. It can be called on the host: emulated/operators.cpp runs the same functions in a plain
// loop, for tests.
#pragma once

#include "gpu/packs.h"

namespace fastsample {

// Keeps the row of a thread and its draw, which are read again only when they differ by sample.
template <typename F>
struct CurrentRow {
  uint32_t draw;
  Row<F> row;

  FS_HD explicit CurrentRow(const StepOperands& o) { read(o, 0); }

  FS_HD void read(const StepOperands& o, uint32_t sample) {
    const int64_t number = o.rows.number_of(sample);
    draw = o.draws.of(sample, number);
    row = load_row<F>(o.rows.table, o.rows.count, number, o.history);
  }
};

// Returns the round keys of a seed that the whole batch shares. They are made before a thread's
// loop, so that ptxas finds them the same for all threads and keeps them in uniform registers.
template <Variant variant>
FS_HD RoundKeys shared_keys(const StepOperands& o) {
  if constexpr (variant == Variant::noisy) {
    return round_keys(o.identity.stream(0, 0));
  } else {
    return {};
  }
}

// ---- parts that several kernels share; `halves` is 2 where out holds [prediction | v] ----

// Reads m. With guidance it also writes c - u to `difference`, if that is not null.
template <typename T, Access access, int width, typename F>
FS_HD void read_guided(const StepOperands& o, const Cut& cut, const Pack& pack, int halves,
                       const Row<F>& row, F (&m)[width], F (*difference)[width] = nullptr) {
  read<access, width, T>(o.out, cut, pack, halves, 0, m);
  if (!o.uncond) return;
  F u[width];
  read<access, width, T>(o.uncond, cut, pack, halves, 0, u);
  FS_UNROLL
  for (int j = 0; j < width; ++j) {
    if (difference) (*difference)[j] = m[j] - u[j];
    m[j] = guide(row, m[j], u[j]);
  }
}

// Computes sd.
template <typename T, Access access, int width, typename F>
FS_HD void read_deviation(const StepOperands& o, const Cut& cut, const Pack& pack, int halves,
                          const Row<F>& row, F (&deviation)[width]) {
  if (o.learned && reads_variance(row)) {
    F v[width];
    read<access, width, T>(o.out, cut, pack, halves, 1, v);
    FS_UNROLL
    for (int j = 0; j < width; ++j) deviation[j] = learned_deviation(row, v[j]);
  } else {
    FS_UNROLL
    for (int j = 0; j < width; ++j) deviation[j] = row.d;
  }
}

// Reads or generates z for a row that draws noise; NaN if the caller passed neither noise nor
// seeds.
template <typename T, Variant variant, Access access, int width, typename F>
FS_HD void read_noise(const StepOperands& o, const Cut& cut, const Pack& pack, uint32_t draw,
                      F (&z)[width]) {
  constexpr bool general = variant == Variant::general;
  if (general && o.noise) {
    read<access, width, T>(o.noise, cut, pack, 1, 0, z);
  } else if (makes_noise(variant) || (general && o.identity.seeds)) {
    make_noise(o.identity.stream(pack.sample, draw), pack, z);
  } else {
    FS_UNROLL
    for (int j = 0; j < width; ++j) z[j] = not_a_number<F>();
  }
}

// Reads an operand of type F; zeros if it was not passed.
template <Access access, int width, typename F>
FS_HD void read_optional(const void* tensor, const Cut& cut, const Pack& pack, F (&values)[width]) {
  FS_UNROLL
  for (int j = 0; j < width; ++j) values[j] = 0;
  if (tensor) read<access, width, F>(tensor, cut, pack, 1, 0, values);
}

// Adds the earlier x0's that were passed, each times its coefficient.
template <Access access, int width, typename F>
FS_HD void add_history(const StepOperands& o, const Row<F>& row, const Cut& cut, const Pack& pack,
                       F (&next)[width]) {
  FS_UNROLL
  for (int n = 0; n < max_history; ++n) {
    if (!o.history[n]) continue;
    F h[width];
    read<access, width, F>(o.history[n], cut, pack, 1, 0, h);
    FS_UNROLL
    for (int j = 0; j < width; ++j) next[j] = fused(row.c[n], h[j], next[j]);
  }
}

// ---- the step ----

template <typename T, Variant variant, Access access>
FS_HD void step_pack(const StepOperands& o, const Cut& cut, uint32_t item,
                     CurrentRow<arithmetic_t<T>>& current, const RoundKeys& keys) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access, variant>;
  constexpr bool general = variant == Variant::general;
  const int halves = general && o.learned ? 2 : 1;
  const Pack pack = pack_at<T, access, variant>(cut, item);
  if (general && o.row_per_sample()) current.read(o, pack.sample);
  const Row<F>& row = current.row;

  F x[width], m[width], x0[width], next[width];
  read<access, width, T>(o.x, cut, pack, 1, 0, x);
  if constexpr (general) {
    read_guided<T, access>(o, cut, pack, halves, row, m);
  } else {
    read<access, width, T>(o.out, cut, pack, 1, 0, m);
  }
  FS_UNROLL
  for (int j = 0; j < width; ++j) {
    x0[j] = clamped_x0(row, unclamped_x0(row, x[j], m[j]));
    next[j] = mean(row, x[j], x0[j], m[j]);
  }
  if constexpr (general) {
    add_history<access>(o, row, cut, pack, next);
    // Only now, because x0 may replace an earlier one that was read above.
    if (o.x0) write<access, width, F>(o.x0, cut, pack, 1, 0, x0);
  }
  if (row.d != 0) {
    F z[width], deviation[width];
    if constexpr (general) {
      read_deviation<T, access>(o, cut, pack, halves, row, deviation);
    } else {
      FS_UNROLL
      for (int j = 0; j < width; ++j) deviation[j] = row.d;
    }
    if constexpr (variant == Variant::noisy) {
      make_noise(o.identity.stream(pack.sample, current.draw), keys, pack, z);
    } else {
      read_noise<T, variant, access>(o, cut, pack, current.draw, z);
    }
    FS_UNROLL
    for (int j = 0; j < width; ++j) next[j] = fused(deviation[j], z[j], next[j]);
  }
  write<access, width, T>(o.next, cut, pack, 1, 0, next);
}

// ---- the backward pass ----

template <typename T, Access access>
FS_HD void backward_pack(const BackwardOperands& b, const Cut& cut, uint32_t item,
                         CurrentRow<arithmetic_t<T>>& current) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access>;
  const StepOperands& o = b.forward;
  const int halves = o.learned ? 2 : 1;
  const Pack pack = pack_at<T, access>(cut, item);
  if (o.row_per_sample()) current.read(o, pack.sample);
  const Row<F>& row = current.row;
  F grad[width], x[width], m[width], grad_x0[width], value[width];
  read<access, width, T>(b.grad_next, cut, pack, 1, 0, grad);
  read<access, width, T>(o.x, cut, pack, 1, 0, x);
  read_guided<T, access>(o, cut, pack, halves, row, m);
  read_optional<access>(b.grad_x0, cut, pack, grad_x0);
  FS_UNROLL
  for (int j = 0; j < width; ++j) {
    const Gradients<F> result =
        differentiate(row, unclamped_x0(row, x[j], m[j]), grad[j], grad_x0[j]);
    x[j] = result.x;
    m[j] = result.m;
  }
  write<access, width, T>(b.grad_x, cut, pack, 1, 0, x);
  if (o.uncond) {
    FS_UNROLL
    for (int j = 0; j < width; ++j) {
      value[j] = (F(1) - row.w) * m[j];
      m[j] = row.w * m[j];
    }
    write<access, width, T>(b.grad_uncond, cut, pack, halves, 0, value);
  }
  write<access, width, T>(b.grad_out, cut, pack, halves, 0, m);
  FS_UNROLL
  for (int n = 0; n < max_history; ++n) {
    if (!b.grad_history[n]) continue;
    FS_UNROLL
    for (int j = 0; j < width; ++j) value[j] = row.c[n] * grad[j];
    write<access, width, F>(b.grad_history[n], cut, pack, 1, 0, value);
  }
  if (!o.learned && !b.grad_noise) return;

  // The remaining gradients, dL/dz and dL/dv, depend on sd.
  F deviation[width];
  read_deviation<T, access>(o, cut, pack, halves, row, deviation);
  if (b.grad_noise) {
    FS_UNROLL
    for (int j = 0; j < width; ++j) value[j] = deviation[j] * grad[j];
    write<access, width, T>(b.grad_noise, cut, pack, 1, 0, value);
  }
  if (!o.learned) return;
  FS_UNROLL
  for (int j = 0; j < width; ++j) value[j] = 0;
  if (o.uncond) write<access, width, T>(b.grad_uncond, cut, pack, halves, 1, value);
  if (reads_variance(row)) {
    read_noise<T, Variant::general, access>(o, cut, pack, current.draw, value);
    FS_UNROLL
    for (int j = 0; j < width; ++j)
      value[j] = variance_gradient(row, deviation[j], value[j], grad[j]);
  }
  write<access, width, T>(b.grad_out, cut, pack, halves, 1, value);
}

// ---- the noise operator ----

template <typename T, Access access>
FS_HD void noise_pack(const NoiseOperands& o, const Cut& cut, uint32_t item) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access>;
  const Pack pack = pack_at<T, access>(cut, item);
  F z[width];
  make_noise(o.identity.stream(pack.sample, o.draw), pack, z);
  write<access, width, T>(o.out, cut, pack, 1, 0, z);
}

}  // namespace fastsample
