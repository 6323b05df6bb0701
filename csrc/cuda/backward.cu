// Computes gradients of the step's tensors on CUDA in one pass over the operands of the forward
// step; noise is generated again from its counter. The code of a thread is in gpu/thread.h.
//
// Memory bandwidth limits the speed: a plain float32 element moves 20 bytes (3 operands in, 2 out).
#include "cuda/launch.cuh"
#include "cuda/operators.h"
#include "gpu/choose.h"

namespace fastsample {
namespace cuda {

namespace {

template <typename T, Access access>
__global__ void __launch_bounds__(block_size)
    backward_kernel(const BackwardOperands b, const Cut cut) {
  CurrentRow<arithmetic_t<T>> row(b.forward);
  for (uint32_t item = first_item(); item < cut.items; item += threads_of_grid()) {
    backward_pack<T, access>(b, cut, item, row);
  }
}

}  // namespace

void step_backward(const BackwardOperands& operands, const Target& target) {
  if (operands.forward.layout.empty()) return;
  launch("step_backward", target, [&](cudaStream_t stream) {
    choose_backward(
        operands, [&](const BackwardOperands& b, const Cut& cut, auto type, auto access) {
          using T = typename decltype(type)::type;
          run_items<backward_kernel<T, access()>>(cut.items, target.device, stream, b, cut);
        });
  });
}

}  // namespace cuda
}  // namespace fastsample
