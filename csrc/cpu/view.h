// Gives the operands of one tile as pointers to its first element.
#pragma once

#include "cpu/tiles.h"

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

template <typename T>
const T* at(const void* pointer, int64_t offset) {
  return pointer ? static_cast<const T*>(pointer) + offset : nullptr;
}

template <typename T>
T* at(void* pointer, int64_t offset) {
  return pointer ? static_cast<T*>(pointer) + offset : nullptr;
}

// One thread's working memory.
template <typename T>
struct Buffers {
  using F = arithmetic_t<T>;
  alignas(64) F m[tile_size];
  alignas(64) F x0[tile_size];
  alignas(64) F next[tile_size];
  alignas(64) F deviation[tile_size];
  alignas(64) float z[tile_size];
  NoiseScratch scratch;
  alignas(64) T conditional[tile_size];
  alignas(64) T variance[tile_size];
  alignas(64) T unconditional[tile_size];
  alignas(64) T staged[tile_size];
};

template <typename T>
struct View {
  using F = arithmetic_t<T>;
  Row<F> row;
  int64_t count, offset;  // offset of the tile in an x-shaped tensor
  const T *x, *c, *u, *v, *noise;
  const F* history[max_history];
  const float* z;  // generated noise

  bool has_history() const { return history[0] || history[1] || history[2] || history[3]; }
};

// Visits one half (prediction or v) of a channels_last tile in a tensor of 2C channels: calls
// `visit(interleaved, packed)` with each element's position in the sample and among the tile's
// elements of this half.
template <typename Visit>
void for_half(const Layout& layout, const Tile& tile, int64_t half, Visit&& visit) {
  const int64_t channels = layout.channels;
  const int64_t width = std::min(channels, tile.count), pixels = tile.count / width;
  const int64_t first =
      tile.first / channels * 2 * channels + half * channels + tile.first % channels;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t c = 0; c < width; ++c) {
      visit(first + pixel * 2 * channels + c, pixel * width + c);
    }
  }
}

template <typename T>
void gather_half(const T* sample, const Layout& layout, const Tile& tile, int64_t half, T* packed) {
  for_half(layout, tile, half, [=](int64_t from, int64_t to) { packed[to] = sample[from]; });
}

template <typename T>
void scatter_half(const T* packed, const Layout& layout, const Tile& tile, int64_t half,
                  T* sample) {
  for_half(layout, tile, half, [=](int64_t to, int64_t from) { sample[to] = packed[from]; });
}

// Returns pointers to a tile's operands; gathers strided ones and generates noise in `buffers`.
template <typename T>
View<T> make_view(const StepOperands& o, const Tile& tile, Buffers<T>& buffers) {
  using F = arithmetic_t<T>;
  const Layout& layout = o.layout;
  const int64_t number = o.rows.number_of(tile.sample);
  View<T> view;
  view.row = load_row<F>(o.rows.table, o.rows.count, number, o.history);
  view.count = tile.count;
  view.offset = tile.sample * layout.size + tile.first;
  view.x = at<T>(o.x, view.offset);
  view.noise = at<T>(o.noise, view.offset);
  for (int i = 0; i < max_history; ++i) view.history[i] = at<F>(o.history[i], view.offset);
  view.v = nullptr;
  view.z = nullptr;
  if (!o.learned) {
    view.c = at<T>(o.out, view.offset);
    view.u = at<T>(o.uncond, view.offset);
  } else if (!layout.channels_last) {
    const int64_t offset = view.offset + tile.sample * layout.size;
    view.c = at<T>(o.out, offset);
    view.u = at<T>(o.uncond, offset);
    view.v = view.c + layout.size;
  } else {
    const int64_t offset = tile.sample * 2 * layout.size;
    gather_half(at<T>(o.out, offset), layout, tile, 0, buffers.conditional);
    gather_half(at<T>(o.out, offset), layout, tile, 1, buffers.variance);
    view.c = buffers.conditional;
    view.v = buffers.variance;
    if (o.uncond) gather_half(at<T>(o.uncond, offset), layout, tile, 0, buffers.unconditional);
    view.u = o.uncond ? buffers.unconditional : nullptr;
  }
  if (view.row.d != 0 && !view.noise) {
    if (o.identity.seeds) {
      const Stream stream = o.identity.stream(tile.sample, o.draws.of(tile.sample, number));
      fill_tile_noise(stream, layout, tile, buffers.z, buffers.scratch);
    } else {
      // The row draws noise and the caller passed none. NaN shows the mistake; zeros would bias the
      // samples silently.
      std::fill_n(buffers.z, tile.count, not_a_number<float>());
    }
    view.z = buffers.z;
  }
  return view;
}

// Calls `function` with the model output after guidance: of type T* where it is an operand, or F*
// in a buffer.
template <typename T, typename Function>
void with_guided(const View<T>& view, Buffers<T>& buffers, Function&& function) {
  using F = arithmetic_t<T>;
  if (!view.u) return function(view.c);
#pragma omp simd
  for (int64_t i = 0; i < view.count; ++i) {
    buffers.m[i] = guide<F>(view.row, widen(view.c[i]), widen(view.u[i]));
  }
  function(static_cast<const F*>(buffers.m));
}

// Calls `function(z, deviation)` if the row draws noise; deviation(i) is the noise's scale.
template <typename T, typename Function>
void with_noise(const View<T>& view, Buffers<T>& buffers, Function&& function) {
  using F = arithmetic_t<T>;
  if (view.row.d == 0) return;
  const auto scaled = [&](auto deviation) {
    if (view.noise) {
      function(view.noise, deviation);
    } else {
      function(view.z, deviation);
    }
  };
  if (!view.v || !reads_variance(view.row)) {
    const F d = view.row.d;
    return scaled([d](int64_t) { return d; });
  }
#pragma omp simd
  for (int64_t i = 0; i < view.count; ++i) {
    buffers.deviation[i] = learned_deviation<F>(view.row, widen(view.v[i]));
  }
  const F* deviation = buffers.deviation;
  scaled([deviation](int64_t i) { return deviation[i]; });
}

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
