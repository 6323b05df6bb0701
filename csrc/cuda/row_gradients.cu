// Computes gradients of the rows on CUDA: a block sums one chunk of a sample, without atomics, so
// that every run gives the same sums. The code of a thread is in gpu/row_gradients.h.
//
// Memory bandwidth limits the speed: 12 bytes per float32 element (x, model output, gradient).
// Noise is generated again from its counter.
#include "cuda/launch.cuh"
#include "cuda/operators.h"
#include "gpu/choose.h"
#include "gpu/row_gradients.h"

namespace fastsample {
namespace cuda {

namespace {

// blockIdx.x is the chunk, y the sample.
template <typename T, Access access>
__global__ void __launch_bounds__(block_size)
    row_gradients_kernel(const RowGradientOperands r, const Cut cut) {
  __shared__ double warps[Column::count][block_size / 32];
  const uint32_t sample = blockIdx.y;
  CurrentRow<arithmetic_t<T>> row(r.forward);
  if (r.forward.row_per_sample()) row.read(r.forward, sample);
  double sums[Column::count] = {};
  for (uint32_t pack = blockIdx.x * block_size + threadIdx.x; pack < cut.packs;
       pack += gridDim.x * block_size)
    add_row_gradients<T, access>(r, cut, sample * cut.packs + pack, row, sums);
#pragma unroll
  for (int i = 0; i < Column::count; ++i) {
    double value = sums[i];
    for (int offset = 16; offset > 0; offset /= 2)
      value += __shfl_down_sync(0xffffffffu, value, offset);
    if (threadIdx.x % 32 == 0) warps[i][threadIdx.x / 32] = value;
  }
  __syncthreads();
  if (threadIdx.x < Column::count) {
    double value = 0.0;
    for (int warp = 0; warp < block_size / 32; ++warp) value += warps[threadIdx.x][warp];
    r.sums[(static_cast<int64_t>(sample) * gridDim.x + blockIdx.x) * Column::count + threadIdx.x] =
        value;
  }
}

}  // namespace

void row_gradients(const RowGradientOperands& operands, const Target& target) {
  const Layout& layout = operands.forward.layout;
  if (layout.empty()) return;
  constexpr int64_t most = 65535;  // bound on a grid's second dimension
  if (layout.batch > most)
    throw std::invalid_argument("row_gradients: at most 65535 samples a call");
  const dim3 grid(static_cast<unsigned>(operands.chunks), static_cast<unsigned>(layout.batch));
  launch("row_gradients", target, [&](cudaStream_t stream) {
    choose_row_gradients(
        operands, [&](const RowGradientOperands& r, const Cut& cut, auto type, auto access) {
          using T = typename decltype(type)::type;
          row_gradients_kernel<T, access()><<<grid, block_size, 0, stream>>>(r, cut);
        });
  });
}

}  // namespace cuda
}  // namespace fastsample
