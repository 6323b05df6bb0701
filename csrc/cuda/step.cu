// The fused step and the noise kernel on CUDA. What a thread does is in gpu/thread.h.
//
// Bound: memory. A float32 element moves 12 bytes (x and the model output in, x_next out), a
// bfloat16 element 6. Noise costs arithmetic only: it is made in registers, four normals per Philox
// call, and never touches memory. A row that draws no noise skips it at run time, so the same
// kernel runs a whole plan.
#include "cuda/launch.cuh"
#include "cuda/operators.h"

namespace fastsample {
namespace cuda {

namespace {

// ---- kernels ----

template <typename T, Kind kind, Access access>
__global__ void __launch_bounds__(block_size) step_kernel(const StepOperands o, const Cut cut) {
  CurrentRow<arithmetic_t<T>> row(o);
  for (uint32_t item = blockIdx.x * block_size + threadIdx.x; item < cut.items;
       item += gridDim.x * block_size) {
    step_pack<T, kind, access>(o, cut, item, row);
  }
}

template <typename T, Access access>
__global__ void __launch_bounds__(block_size) noise_kernel(const NoiseOperands o, const Cut cut) {
  for (uint32_t item = blockIdx.x * block_size + threadIdx.x; item < cut.items;
       item += gridDim.x * block_size) {
    noise_pack<T, access>(o, cut, item);
  }
}

}  // namespace

// ---- launchers ----

void step(const StepOperands& operands, int device, uintptr_t stream_handle) {
  if (operands.layout.batch == 0 || operands.layout.size == 0) return;
  const DeviceGuard guard(device);
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  choose_step(operands,
              [&](const StepOperands& o, const Cut& cut, auto type, auto kind, auto access) {
                using T = typename decltype(type)::type;
                step_kernel<T, kind(), access()>
                    <<<grid_size(cut.items, device), block_size, 0, stream>>>(o, cut);
              });
  check(cudaGetLastError(), "step");
}

void fill_noise(const NoiseOperands& operands, int device, uintptr_t stream_handle) {
  if (operands.layout.batch == 0 || operands.layout.size == 0) return;
  const DeviceGuard guard(device);
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  choose_noise(operands, [&](const NoiseOperands& o, const Cut& cut, auto type, auto access) {
    using T = typename decltype(type)::type;
    noise_kernel<T, access()><<<grid_size(cut.items, device), block_size, 0, stream>>>(o, cut);
  });
  check(cudaGetLastError(), "noise");
}

}  // namespace cuda
}  // namespace fastsample
