// Implements the noise operator on CUDA. The code of a thread is in gpu/thread.h.
//
// Arithmetic limits the speed: an element takes about 40 instructions, while a float32 element
// writes only 4 bytes.
#include "cuda/launch.cuh"
#include "cuda/operators.h"
#include "gpu/choose.h"

namespace fastsample {
namespace cuda {

namespace {

template <typename T, Access access>
__global__ void __launch_bounds__(block_size) noise_kernel(const NoiseOperands o, const Cut cut) {
  for (uint32_t item = first_item(); item < cut.items; item += threads_of_grid()) {
    noise_pack<T, access>(o, cut, item);
  }
}

}  // namespace

void fill_noise(const NoiseOperands& operands, const Target& target) {
  if (operands.layout.empty()) return;
  launch("noise", target, [&](cudaStream_t stream) {
    choose_noise(operands, [&](const NoiseOperands& o, const Cut& cut, auto type, auto access) {
      using T = typename decltype(type)::type;
      run_items<noise_kernel<T, access()>>(cut.items, target.device, stream, o, cut);
    });
  });
}

}  // namespace cuda
}  // namespace fastsample
