// Runs the step on the CPU; compiled once for each instruction set.
//
// Memory bandwidth limits the speed. Per float32 element 4 bytes of x and 4 of the model output are
// read and 4 written. Intermediate values live in tile buffers inside the first-level cache, so an
// optional operand costs its own bytes and nothing else, and each loop over a tile is one that the
// compiler vectorises.
#include "cpu/operators.h"
#include "cpu/view.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

namespace {

// From this size on the output is written around the caches: it would not stay in them anyway, and
// a normal store first reads the line it overwrites (16 bytes moved per float32 element instead of
// 12).
constexpr int64_t stream_bytes = int64_t{24} << 20;

template <typename T>
void stream_tile(const T* from, int64_t count, T* to) {
#if defined(__SSE2__)
  const char* source = reinterpret_cast<const char*>(from);
  char* target = reinterpret_cast<char*>(to);
  int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(target) % 64);
  const int64_t head = std::min(bytes, (64 - misaligned) % 64);
  std::memcpy(target, source, static_cast<size_t>(head));
  target += head, source += head, bytes -= head;
  for (; bytes >= 64; target += 64, source += 64, bytes -= 64) {
    for (int part = 0; part < 64; part += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + part),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + part)));
    }
  }
  std::memcpy(target, source, static_cast<size_t>(bytes));
#else
  std::copy_n(from, count, to);
#endif
}

void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Runs a row without noise that reads the `N` newest x0's, in one pass over the tile. `keeps` says
// whether it writes its own x0, which may replace one that it reads.
template <int N, bool keeps, typename T, typename M>
void history_tile(const View<T>& view, const M* m, arithmetic_t<T>* x0_out, T* target) {
  using F = arithmetic_t<T>;
  const Row<F> row = view.row;
  const T* x = view.x;
  const F *h1 = view.history[0], *h2 = view.history[1];
#pragma omp simd
  for (int64_t i = 0; i < view.count; ++i) {
    const F from = widen(x[i]), output = widen(m[i]);
    const F x0 = clamped_x0(row, unclamped_x0(row, from, output));
    F next = mean(row, from, x0, output);
    if constexpr (N > 0) next = fused(row.c[0], h1[i], next);
    if constexpr (N > 1) next = fused(row.c[1], h2[i], next);
    if constexpr (keeps) x0_out[i] = x0;
    target[i] = narrow<T>(next);
  }
}

// Runs `history_tile` if the row is of its kind, which nearly all rows of multistep samplers are.
template <typename T, typename M>
bool try_history_tile(const View<T>& view, const M* m, arithmetic_t<T>* x0_out, T* target) {
  const auto& h = view.history;
  if (view.row.d != 0 || h[2] || h[3] || (h[1] && !h[0])) return false;
  const auto run = [&](auto count) {
    if (x0_out) {
      history_tile<count(), true>(view, m, x0_out, target);
    } else {
      history_tile<count(), false>(view, m, x0_out, target);
    }
  };
  if (h[1]) {
    run(std::integral_constant<int, 2>{});
  } else if (h[0]) {
    run(std::integral_constant<int, 1>{});
  } else {
    run(std::integral_constant<int, 0>{});
  }
  return true;
}

template <typename T, typename M>
void step_tile(const View<T>& view, const M* m, arithmetic_t<T>* x0_out, T* target,
               Buffers<T>& buffers) {
  using F = arithmetic_t<T>;
  const Row<F> row = view.row;
  const T* x = view.x;
  const int64_t count = view.count;
  // The row is captured by value: for a reference the compiler must assume that a store to the
  // target changes the row.
  const auto x_next = [row, x, m](int64_t i) {
    const F from = widen(x[i]), output = widen(m[i]);
    return mean(row, from, clamped_x0(row, unclamped_x0(row, from, output)), output);
  };
  if (!view.has_history() && !x0_out) {  // one pass; nearly all steps of few-step samplers
    if (row.d == 0) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) target[i] = narrow<T>(x_next(i));
    }
    with_noise(view, buffers, [x_next, target, count](const auto* z, auto deviation) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        target[i] = narrow<T>(fused(deviation(i), static_cast<F>(widen(z[i])), x_next(i)));
      }
    });
    return;
  }
  if (try_history_tile(view, m, x0_out, target)) return;
  F *next = buffers.next, *x0 = buffers.x0;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const F from = widen(x[i]), output = widen(m[i]);
    x0[i] = clamped_x0(row, unclamped_x0(row, from, output));
    next[i] = mean(row, from, x0[i], output);
  }
  for (int n = 0; n < max_history; ++n) {
    const F* h = view.history[n];
    if (!h) continue;
    const F c = row.c[n];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) next[i] = fused(c, h[i], next[i]);
  }
  // Only now, because x0 may replace an earlier one that was read above.
  if (x0_out) std::copy_n(x0, count, x0_out);
  with_noise(view, buffers, [&](const auto* z, auto deviation) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      next[i] = fused(deviation(i), static_cast<F>(widen(z[i])), next[i]);
    }
  });
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) target[i] = narrow<T>(next[i]);
}

template <typename T>
void step_all(const StepOperands& o, int threads) {
  using F = arithmetic_t<T>;
  const Tiling tiling(o.layout);
  const int64_t elements = o.layout.batch * o.layout.size;
  const bool streams = o.next != o.x && elements * static_cast<int64_t>(sizeof(T)) >= stream_bytes;
  for_tiles(tiling.total, elements, threads, [&](int64_t begin, int64_t end) {
    Buffers<T> buffers;
    for (int64_t number = begin; number < end; ++number) {
      const View<T> view = make_view(o, tiling[number], buffers);
      T* next = at<T>(o.next, view.offset);
      T* target = streams ? buffers.staged : next;
      with_guided(view, buffers, [&](const auto* m) {
        step_tile(view, m, at<F>(o.x0, view.offset), target, buffers);
      });
      if (streams) stream_tile(target, view.count, next);
    }
    if (streams) finish_streaming();
  });
}

// Returns whether the call has one row for all samples, which draws no noise. (On CUDA the row is
// in device memory, where the host cannot read it without waiting.)
bool is_deterministic(const Rows& rows) {
  const int64_t number = rows.number_per_sample ? -1 : *rows.number;
  return number >= 0 && number < rows.count && rows.table[number * Column::count + Column::d] == 0;
}

}  // namespace

void step(const StepOperands& operands, const Target& target) {
  StepOperands o = operands;
  if (o.layout.empty()) return;  // the row number may then be a null pointer
  if (is_deterministic(o.rows)) o.identity.seeds = nullptr;
  o = joined(o);
  dispatch(o.dtype, [&](auto tag) { step_all<typename decltype(tag)::type>(o, target.threads); });
}

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
