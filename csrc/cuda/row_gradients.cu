// Gradients of the rows on CUDA: a block sums one chunk of a sample. No atomics: the same sums on
// every run.
//
// Bound: memory, 12 bytes per float32 element (x, model output, gradient); noise is made again from
// its counter.
#include "core/row_gradients.h"
#include "cuda/launch.cuh"
#include "cuda/operators.h"
#include "gpu/thread.h"

namespace fastsample {
namespace cuda {

namespace {

template <typename T, Access access>
__device__ void add_pack(const RowGradientOperands& r, const Cut& cut, uint32_t item,
                         CurrentRow<arithmetic_t<T>>& current, double (&sums)[row_size]) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access>;
  const StepOperands& o = r.forward;
  const int halves = o.learned ? 2 : 1;
  const Pack pack = pack_at<T, access>(cut, item);
  const Row<F>& row = current.row;
  const auto there = [&](int j) { return static_cast<uint32_t>(j) < pack.count; };
  F grad[width], x[width], m[width], grad_x0[width], value[width];
  F part[row_size] = {};
  read<access, width, T>(r.grad_next, cut, pack, 1, 0, grad);
  read<access, width, T>(o.x, cut, pack, 1, 0, x);
  read<access, width, T>(o.out, cut, pack, halves, 0, m);
  FS_UNROLL
  for (int j = 0; j < width; ++j) value[j] = 0;  // c - u
  if (o.uncond) {
    F u[width];
    read<access, width, T>(o.uncond, cut, pack, halves, 0, u);
    FS_UNROLL
    for (int j = 0; j < width; ++j) {
      value[j] = m[j] - u[j];
      m[j] = guide(row, m[j], u[j]);
    }
  }
  FS_UNROLL
  for (int j = 0; j < width; ++j) grad_x0[j] = 0;
  if (r.grad_x0) read<access, width, F>(r.grad_x0, cut, pack, 1, 0, grad_x0);
  FS_UNROLL
  for (int j = 0; j < width; ++j) {
    if (!there(j)) continue;
    const RowTerms<F> terms = row_terms(row, x[j], m[j], grad[j], grad_x0[j]);
    part[at_p] += terms.p;
    part[at_q] += terms.q;
    part[at_lo] += terms.lo;
    part[at_hi] += terms.hi;
    part[at_a] += terms.a;
    part[at_b] += terms.b;
    part[at_e] += terms.e;
    if (o.uncond) part[at_w] += terms.m * value[j];
  }
  if (o.h1) {
    read<access, width, F>(o.h1, cut, pack, 1, 0, value);
    FS_UNROLL
    for (int j = 0; j < width; ++j)
      if (there(j)) part[at_c1] += grad[j] * value[j];
  }
  if (o.h2) {
    read<access, width, F>(o.h2, cut, pack, 1, 0, value);
    FS_UNROLL
    for (int j = 0; j < width; ++j)
      if (there(j)) part[at_c2] += grad[j] * value[j];
  }
  if (row.d != 0) {
    if (o.noise) {
      read<access, width, T>(o.noise, cut, pack, 1, 0, value);
    } else if (o.control.seeds) {
      make_noise(stream_of(o.control, pack.sample, current.number), pack, value);
    } else {
      FS_UNROLL
      for (int j = 0; j < width; ++j) value[j] = not_a_number<F>();
    }
    const bool learned = o.learned && reads_variance(row);
    if (learned) read<access, width, T>(o.out, cut, pack, halves, 1, x);
    FS_UNROLL
    for (int j = 0; j < width; ++j) {
      if (!there(j)) continue;
      const NoiseTerms<F> terms = noise_terms(row, learned, x[j], value[j], grad[j]);
      part[at_d] += terms.d;
      part[at_lv_lo] += terms.lv_lo;
      part[at_lv_hi] += terms.lv_hi;
    }
  }
  FS_UNROLL
  for (int i = 0; i < row_size; ++i) sums[i] += part[i];
}

// blockIdx: x the chunk, y the sample.
template <typename T, Access access>
__global__ void __launch_bounds__(block_size)
    row_gradients_kernel(const RowGradientOperands r, const Cut cut) {
  __shared__ double warps[row_size][block_size / 32];
  const uint32_t sample = blockIdx.y;
  CurrentRow<arithmetic_t<T>> row(r.forward);
  if (r.forward.control.row_per_sample) row.read(r.forward, sample);
  double sums[row_size] = {};
  for (uint32_t pack = blockIdx.x * block_size + threadIdx.x; pack < cut.packs;
       pack += gridDim.x * block_size)
    add_pack<T, access>(r, cut, sample * cut.packs + pack, row, sums);
#pragma unroll
  for (int i = 0; i < row_size; ++i) {
    double value = sums[i];
    for (int offset = 16; offset > 0; offset /= 2)
      value += __shfl_down_sync(0xffffffffu, value, offset);
    if (threadIdx.x % 32 == 0) warps[i][threadIdx.x / 32] = value;
  }
  __syncthreads();
  if (threadIdx.x < row_size) {
    double value = 0.0;
    for (int warp = 0; warp < block_size / 32; ++warp) value += warps[threadIdx.x][warp];
    r.sums[(static_cast<int64_t>(sample) * gridDim.x + blockIdx.x) * row_size + threadIdx.x] =
        value;
  }
}

}  // namespace

void row_gradients(const RowGradientOperands& operands, int device, uintptr_t stream_handle) {
  const StepOperands& o = operands.forward;
  if (o.layout.batch == 0 || o.layout.size == 0) return;
  constexpr int64_t most = 65535;  // of a grid's second dimension
  if (o.layout.batch > most)
    throw std::invalid_argument("row_gradients: at most 65535 samples a call");
  const DeviceGuard guard(device);
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  const bool vector_ready =
      aligned({o.x, o.out, o.uncond, o.noise, o.h1, o.h2, operands.grad_next, operands.grad_x0});
  choose_access(operands, o.layout, o.dtype, vector_ready,
                [&](const RowGradientOperands& r, const Cut& cut, auto type, auto access) {
                  using T = typename decltype(type)::type;
                  const dim3 grid(static_cast<unsigned>(r.chunks),
                                  static_cast<unsigned>(r.forward.layout.batch));
                  row_gradients_kernel<T, access()><<<grid, block_size, 0, stream>>>(r, cut);
                });
  check(cudaGetLastError(), "row_gradients");
}

}  // namespace cuda
}  // namespace fastsample
