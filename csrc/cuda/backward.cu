// Gradients of the fused step on CUDA: one pass over the operands of the forward step; noise is
// made again from its counter. Bound: memory; plain float32 moves 20 bytes per element (3 in, 2
// out).
#include "cuda/backend.h"
#include "cuda/launch.cuh"

namespace fastsample {
namespace cuda {

namespace {

// ---- kernel ----

template <typename T, Access access>
__global__ void __launch_bounds__(block_size)
    backward_kernel(const BackwardOperands b, const Cut cut) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access>;
  const StepOperands& o = b.forward;
  const int halves = o.learned ? 2 : 1;
  int64_t number = row_of(o.control, 0);
  Row<F> row = load_row<F>(o.control.rows, o.control.num_rows, number);
  for (uint32_t item = blockIdx.x * block_size + threadIdx.x; item < cut.items;
       item += gridDim.x * block_size) {
    const Pack pack = pack_at<T, access>(cut, item);
    if (o.control.row_per_sample) {
      number = row_of(o.control, pack.sample);
      row = load_row<F>(o.control.rows, o.control.num_rows, number);
    }
    F grad[width], x[width], m[width], grad_x0[width], value[width];
    read<access, width, T>(b.grad_next, cut, pack, 1, 0, grad);
    read<access, width, T>(o.x, cut, pack, 1, 0, x);
    read<access, width, T>(o.out, cut, pack, halves, 0, m);
    if (o.uncond) {
      read<access, width, T>(o.uncond, cut, pack, halves, 0, value);
#pragma unroll
      for (int j = 0; j < width; ++j) m[j] = guide(row, m[j], value[j]);
    }
#pragma unroll
    for (int j = 0; j < width; ++j) grad_x0[j] = 0;
    if (b.grad_x0) read<access, width, F>(b.grad_x0, cut, pack, 1, 0, grad_x0);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const Gradients<F> result = differentiate(row, raw_x0(row, x[j], m[j]), grad[j], grad_x0[j]);
      x[j] = result.x;
      m[j] = result.m;
    }
    write<access, width, T>(b.grad_x, cut, pack, 1, 0, x);
    if (o.uncond) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
        value[j] = (F(1) - row.w) * m[j];
        m[j] = row.w * m[j];
      }
      write<access, width, T>(b.grad_uncond, cut, pack, halves, 0, value);
    }
    write<access, width, T>(b.grad_out, cut, pack, halves, 0, m);
    if (b.grad_h1) {
#pragma unroll
      for (int j = 0; j < width; ++j) value[j] = row.c1 * grad[j];
      write<access, width, F>(b.grad_h1, cut, pack, 1, 0, value);
    }
    if (b.grad_h2) {
#pragma unroll
      for (int j = 0; j < width; ++j) value[j] = row.c2 * grad[j];
      write<access, width, F>(b.grad_h2, cut, pack, 1, 0, value);
    }
    if (!o.learned && !b.grad_noise) continue;

    // What is left depends on the noise's scale: d/dv through sd, d/dz.
    F deviation[width];
#pragma unroll
    for (int j = 0; j < width; ++j) deviation[j] = row.d;
    if (o.learned && row.d != 0) {
      read<access, width, T>(o.out, cut, pack, halves, 1, value);
#pragma unroll
      for (int j = 0; j < width; ++j) deviation[j] = learned_deviation(row, value[j]);
    }
    if (b.grad_noise) {
#pragma unroll
      for (int j = 0; j < width; ++j) value[j] = deviation[j] * grad[j];
      write<access, width, T>(b.grad_noise, cut, pack, 1, 0, value);
    }
    if (!o.learned) continue;
#pragma unroll
    for (int j = 0; j < width; ++j) value[j] = 0;
    if (o.uncond) write<access, width, T>(b.grad_uncond, cut, pack, halves, 1, value);
    if (row.d != 0) {
      if (o.noise) {
        read<access, width, T>(o.noise, cut, pack, 1, 0, value);
      } else if (o.control.seeds) {
        make_noise(stream_of(o.control, pack.sample, number), pack, value);
      } else {
#pragma unroll
        for (int j = 0; j < width; ++j) value[j] = not_a_number<F>();
      }
      const F slope = F(0.25) * (row.lv_hi - row.lv_lo);  // d log(sd) / dv
#pragma unroll
      for (int j = 0; j < width; ++j) value[j] = grad[j] * (slope * deviation[j] * value[j]);
    }
    write<access, width, T>(b.grad_out, cut, pack, halves, 1, value);
  }
}

// ---- launcher ----

template <typename T, Access access>
void launch_backward(const BackwardOperands& b, int device, cudaStream_t stream) {
  const Cut cut = Cut::of(b.forward.layout, width_of<T, access>);
  backward_kernel<T, access><<<grid_size(cut.items, device), block_size, 0, stream>>>(b, cut);
}

}  // namespace

void step_backward(const BackwardOperands& b, int device, uintptr_t stream_handle) {
  const StepOperands& o = b.forward;
  if (o.layout.batch == 0 || o.layout.size == 0) return;
  require_countable(o.layout);
  const DeviceGuard guard(device);
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  dispatch(o.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (o.layout.channels_last) {
      launch_backward<T, Access::channels_last>(b, device, stream);
    } else if (o.layout.size % pack_width<T> == 0 &&
               aligned({o.x, o.out, o.uncond, o.noise, b.grad_next, b.grad_x0, b.grad_x, b.grad_out,
                        b.grad_uncond, b.grad_noise, b.grad_h1, b.grad_h2})) {
      launch_backward<T, Access::vector>(b, device, stream);
    } else {
      launch_backward<T, Access::scalar>(b, device, stream);
    }
  });
  check(cudaGetLastError(), "step_backward");
}

}  // namespace cuda
}  // namespace fastsample
