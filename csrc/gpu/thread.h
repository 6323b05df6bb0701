// What one GPU thread does with one pack, for every kernel, and which kernel a call needs.
// Host-callable: emulated/operators.cpp runs the same functions in a plain loop, for tests.
#pragma once

#include "gpu/packs.h"

namespace fastsample {

// Operands beyond x and out. `plain` and `noisy` are what few-step sampling runs thousands of
// times; `general` finds out at run time which of all operands are there.
enum class Kind { plain, noisy, general };

// The row of a thread, read again only when samples have rows of their own.
template <typename F>
struct CurrentRow {
  int64_t number;
  Row<F> row;

  FS_HD explicit CurrentRow(const StepOperands& o) { read(o, 0); }

  FS_HD void read(const StepOperands& o, uint32_t sample) {
    number = row_of(o.control, sample);
    row = load_row<F>(o.control.rows, o.control.num_rows, number);
    require_history(row, o.h1, o.h2);
  }
};

template <typename T, Kind kind, Access access>
FS_HD void step_pack(const StepOperands& o, const Cut& cut, uint32_t item,
                     CurrentRow<arithmetic_t<T>>& current) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access>;
  constexpr bool general = kind == Kind::general;
  const int halves = general && o.learned ? 2 : 1;
  const Pack pack = pack_at<T, access>(cut, item);
  if (general && o.control.row_per_sample) current.read(o, pack.sample);
  const Row<F>& row = current.row;

  F x[width], m[width], x0[width], z[width], deviation[width];
  read<access, width, T>(o.x, cut, pack, 1, 0, x);
  read<access, width, T>(o.out, cut, pack, halves, 0, m);
  if constexpr (general) {
    if (o.uncond) {
      F u[width];
      read<access, width, T>(o.uncond, cut, pack, halves, 0, u);
      FS_UNROLL
      for (int j = 0; j < width; ++j) m[j] = guide(row, m[j], u[j]);
    }
  }

  F next[width];
  FS_UNROLL
  for (int j = 0; j < width; ++j) {
    x0[j] = clamp(row, raw_x0(row, x[j], m[j]));
    next[j] = mean(row, x[j], x0[j], m[j]);
    deviation[j] = row.d;
  }

  if constexpr (general) {
    if (o.x0) write<access, width, F>(o.x0, cut, pack, 1, 0, x0);
    if (o.h1) {
      read<access, width, F>(o.h1, cut, pack, 1, 0, x);
      FS_UNROLL
      for (int j = 0; j < width; ++j) next[j] = fused(row.c1, x[j], next[j]);
    }
    if (o.h2) {
      read<access, width, F>(o.h2, cut, pack, 1, 0, x);
      FS_UNROLL
      for (int j = 0; j < width; ++j) next[j] = fused(row.c2, x[j], next[j]);
    }
    if (o.learned && reads_variance(row)) {
      read<access, width, T>(o.out, cut, pack, halves, 1, x);
      FS_UNROLL
      for (int j = 0; j < width; ++j) deviation[j] = learned_deviation(row, x[j]);
    }
  }

  if (row.d != 0) {
    if (general && o.noise) {
      read<access, width, T>(o.noise, cut, pack, 1, 0, z);
    } else if (kind == Kind::noisy || (general && o.control.seeds)) {
      make_noise(stream_of(o.control, pack.sample, current.number), pack, z);
    } else {
      // The row wants noise and the caller gave none: NaN shows it.
      FS_UNROLL
      for (int j = 0; j < width; ++j) z[j] = not_a_number<F>();
    }
    FS_UNROLL
    for (int j = 0; j < width; ++j) next[j] = fused(deviation[j], z[j], next[j]);
  }
  write<access, width, T>(o.next, cut, pack, 1, 0, next);
}

template <typename T, Access access>
FS_HD void noise_pack(const NoiseOperands& o, const Cut& cut, uint32_t item) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access>;
  const Pack pack = pack_at<T, access>(cut, item);
  const Stream stream =
      make_stream(o.seeds[o.seed_per_sample ? pack.sample : 0], o.index[pack.sample], o.draw);
  F z[width];
  make_noise(stream, pack, z);
  write<access, width, T>(o.out, cut, pack, 1, 0, z);
}

template <typename T, Access access>
FS_HD void backward_pack(const BackwardOperands& b, const Cut& cut, uint32_t item,
                         CurrentRow<arithmetic_t<T>>& current) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access>;
  const StepOperands& o = b.forward;
  const int halves = o.learned ? 2 : 1;
  const Pack pack = pack_at<T, access>(cut, item);
  if (o.control.row_per_sample) current.read(o, pack.sample);
  const Row<F>& row = current.row;
  F grad[width], x[width], m[width], grad_x0[width], value[width];
  read<access, width, T>(b.grad_next, cut, pack, 1, 0, grad);
  read<access, width, T>(o.x, cut, pack, 1, 0, x);
  read<access, width, T>(o.out, cut, pack, halves, 0, m);
  if (o.uncond) {
    read<access, width, T>(o.uncond, cut, pack, halves, 0, value);
    FS_UNROLL
    for (int j = 0; j < width; ++j) m[j] = guide(row, m[j], value[j]);
  }
  FS_UNROLL
  for (int j = 0; j < width; ++j) grad_x0[j] = 0;
  if (b.grad_x0) read<access, width, F>(b.grad_x0, cut, pack, 1, 0, grad_x0);
  FS_UNROLL
  for (int j = 0; j < width; ++j) {
    const Gradients<F> result = differentiate(row, raw_x0(row, x[j], m[j]), grad[j], grad_x0[j]);
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
  if (b.grad_h1) {
    FS_UNROLL
    for (int j = 0; j < width; ++j) value[j] = row.c1 * grad[j];
    write<access, width, F>(b.grad_h1, cut, pack, 1, 0, value);
  }
  if (b.grad_h2) {
    FS_UNROLL
    for (int j = 0; j < width; ++j) value[j] = row.c2 * grad[j];
    write<access, width, F>(b.grad_h2, cut, pack, 1, 0, value);
  }
  if (!o.learned && !b.grad_noise) return;

  // What is left depends on the noise's scale: d/dv through sd, d/dz.
  F deviation[width];
  FS_UNROLL
  for (int j = 0; j < width; ++j) deviation[j] = row.d;
  if (o.learned && reads_variance(row)) {
    read<access, width, T>(o.out, cut, pack, halves, 1, value);
    FS_UNROLL
    for (int j = 0; j < width; ++j) deviation[j] = learned_deviation(row, value[j]);
  }
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
    if (o.noise) {
      read<access, width, T>(o.noise, cut, pack, 1, 0, value);
    } else if (o.control.seeds) {
      make_noise(stream_of(o.control, pack.sample, current.number), pack, value);
    } else {
      FS_UNROLL
      for (int j = 0; j < width; ++j) value[j] = not_a_number<F>();
    }
    const F slope = F(0.25) * (row.lv_hi - row.lv_lo);  // d log(sd) / dv
    FS_UNROLL
    for (int j = 0; j < width; ++j) value[j] = grad[j] * (slope * deviation[j] * value[j]);
  }
  write<access, width, T>(b.grad_out, cut, pack, halves, 1, value);
}

// ---- which kernel: each calls `run` with the operands, their cut, and the template arguments ----

template <Kind value>
using KindTag = std::integral_constant<Kind, value>;
template <Access value>
using AccessTag = std::integral_constant<Access, value>;

template <typename Run>
void choose_step(const StepOperands& given, Run&& run) {
  require_countable(given.layout);
  // As one long sample a huge batch would wrap its 32-bit element numbers.
  const StepOperands o = countable(joined(given).layout) ? joined(given) : given;
  const bool general = o.control.row_per_sample || o.learned || o.uncond || o.noise || o.h1 ||
                       o.h2 || o.x0 || o.layout.channels_last;
  dispatch(o.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto with = [&](auto kind, auto access) {
      run(o, Cut::of(o.layout, width_of<T, access()>), type, kind, access);
    };
    const auto contiguous = [&](auto kind) {
      if (o.layout.size % pack_width<T> == 0 &&
          aligned({o.x, o.out, o.uncond, o.noise, o.h1, o.h2, o.next, o.x0})) {
        with(kind, AccessTag<Access::vector>{});
      } else {
        with(kind, AccessTag<Access::scalar>{});
      }
    };
    if (o.layout.channels_last) {
      with(KindTag<Kind::general>{}, AccessTag<Access::channels_last>{});
    } else if (general) {
      contiguous(KindTag<Kind::general>{});
    } else if (o.control.seeds) {
      contiguous(KindTag<Kind::noisy>{});
    } else {
      contiguous(KindTag<Kind::plain>{});
    }
  });
}

// For kernels without kinds: `vector_ready` says whether every pointer allows 16-byte accesses.
template <typename Operands, typename Run>
void choose_access(const Operands& o, const Layout& layout, DType dtype, bool vector_ready,
                   Run&& run) {
  require_countable(layout);
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto with = [&](auto access) {
      run(o, Cut::of(layout, width_of<T, access()>), type, access);
    };
    if (layout.channels_last) {
      with(AccessTag<Access::channels_last>{});
    } else if (layout.size % pack_width<T> == 0 && vector_ready) {
      with(AccessTag<Access::vector>{});
    } else {
      with(AccessTag<Access::scalar>{});
    }
  });
}

template <typename Run>
void choose_noise(const NoiseOperands& o, Run&& run) {
  choose_access(o, o.layout, o.dtype, aligned({o.out}), run);
}

template <typename Run>
void choose_backward(const BackwardOperands& b, Run&& run) {
  const StepOperands& o = b.forward;
  const bool vector_ready =
      aligned({o.x, o.out, o.uncond, o.noise, b.grad_next, b.grad_x0, b.grad_x, b.grad_out,
               b.grad_uncond, b.grad_noise, b.grad_h1, b.grad_h2});
  choose_access(b, o.layout, o.dtype, vector_ready, run);
}

}  // namespace fastsample
