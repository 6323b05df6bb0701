// Computes gradients of the fused step on the CPU in one pass over the operands of the forward
// step, which are all that autograd keeps. Noise is generated again from its counter.
#include "cpu/operators.h"
#include "cpu/view.h"

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

namespace {

// Writes one half of dL/d(model output): directly, or through a buffer when channels_last
// interleaves the halves.
template <typename T, typename Value>
void write_half(const StepOperands& o, const Tile& tile, int64_t half, void* gradient, T* packed,
                Value value) {
  const Layout& layout = o.layout;
  const int64_t width = o.learned ? 2 * layout.size : layout.size;
  T* sample = at<T>(gradient, tile.sample * width);
  const bool interleaved = o.learned && layout.channels_last;
  T* to = interleaved ? packed : sample + half * layout.size + tile.first;
#pragma omp simd
  for (int64_t i = 0; i < tile.count; ++i) to[i] = narrow<T>(value(i));
  if (interleaved) scatter_half(packed, layout, tile, half, sample);
}

template <typename T, typename M>
void backward_tile(const BackwardOperands& b, const Tile& tile, const View<T>& view, const M* m,
                   Buffers<T>& buffers) {
  using F = arithmetic_t<T>;
  const StepOperands& o = b.forward;
  const Row<F> row = view.row;
  const T* grad = at<T>(b.grad_next, view.offset);
  const F* grad_x0 = at<F>(b.grad_x0, view.offset);
  T* grad_x = at<T>(b.grad_x, view.offset);
  F* grad_m = buffers.next;
#pragma omp simd
  for (int64_t i = 0; i < tile.count; ++i) {
    const F g = widen(grad[i]);
    const F unclamped = unclamped_x0<F>(row, widen(view.x[i]), widen(m[i]));
    const Gradients<F> result = differentiate(row, unclamped, g, grad_x0 ? grad_x0[i] : F(0));
    grad_x[i] = narrow<T>(result.x);
    grad_m[i] = result.m;
  }
  const bool guided = view.u != nullptr;
  write_half(o, tile, 0, b.grad_out, buffers.staged,
             [&](int64_t i) { return guided ? row.w * grad_m[i] : grad_m[i]; });
  if (guided) {
    write_half(o, tile, 0, b.grad_uncond, buffers.staged,
               [&](int64_t i) { return (F(1) - row.w) * grad_m[i]; });
    if (o.learned) {
      write_half(o, tile, 1, b.grad_uncond, buffers.staged, [](int64_t) { return F(0); });
    }
  }
  if (o.learned && !reads_variance(row)) {
    write_half(o, tile, 1, b.grad_out, buffers.staged, [](int64_t) { return F(0); });
  }
  for (int n = 0; n < max_history; ++n) {
    F* grad_h = at<F>(b.grad_history[n], view.offset);
    if (!grad_h) continue;
    const F c = row.c[n];
#pragma omp simd
    for (int64_t i = 0; i < tile.count; ++i) grad_h[i] = c * widen(grad[i]);
  }
  T* grad_noise = at<T>(b.grad_noise, view.offset);
  if (grad_noise && row.d == 0) std::fill_n(grad_noise, tile.count, narrow<T>(F(0)));
  with_noise(view, buffers, [&](const auto* z, auto deviation) {
    if (o.learned && reads_variance(row)) {
      write_half(o, tile, 1, b.grad_out, buffers.staged, [&](int64_t i) {
        return variance_gradient<F>(row, deviation(i), widen(z[i]), widen(grad[i]));
      });
    }
    if (!grad_noise) return;
#pragma omp simd
    for (int64_t i = 0; i < tile.count; ++i) {
      grad_noise[i] = narrow<T>(deviation(i) * widen(grad[i]));
    }
  });
}

template <typename T>
void backward_all(const BackwardOperands& b, int threads) {
  const StepOperands& o = b.forward;
  const Tiling tiling(o.layout);
  for_tiles(tiling.total, o.layout.batch * o.layout.size, threads, [&](int64_t begin, int64_t end) {
    Buffers<T> buffers;
    for (int64_t number = begin; number < end; ++number) {
      const Tile tile = tiling[number];
      const View<T> view = make_view(o, tile, buffers);
      with_guided(view, buffers, [&](const auto* m) { backward_tile(b, tile, view, m, buffers); });
    }
  });
}

}  // namespace

void step_backward(const BackwardOperands& b, const Target& target) {
  dispatch(b.forward.dtype,
           [&](auto tag) { backward_all<typename decltype(tag)::type>(b, target.threads); });
}

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
