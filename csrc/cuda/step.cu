// Runs the step on CUDA. The code of a thread is in gpu/thread.h.
//
// Memory bandwidth limits the speed. A float32 element moves 12 bytes (x and the model output in,
// x_next out), a bfloat16 element 6. Noise costs arithmetic only: it is generated in registers,
// four normals per Philox call, and never touches memory. A row that draws no noise skips it at run
// time, so one kernel runs a whole plan.
#include "cuda/launch.cuh"
#include "cuda/operators.h"
#include "gpu/choose.h"

namespace fastsample {
namespace cuda {

namespace {

template <typename T, Variant variant, Access access>
__global__ void __launch_bounds__(block_size) step_kernel(const StepOperands o, const Cut cut) {
  CurrentRow<arithmetic_t<T>> row(o);
  for (uint32_t item = blockIdx.x * block_size + threadIdx.x; item < cut.items;
       item += gridDim.x * block_size) {
    step_pack<T, variant, access>(o, cut, item, row);
  }
}

}  // namespace

void step(const StepOperands& operands, const Target& target) {
  if (operands.layout.empty()) return;
  launch("step", target, [&](cudaStream_t stream) {
    choose_step(operands,
                [&](const StepOperands& o, const Cut& cut, auto type, auto variant, auto access) {
                  using T = typename decltype(type)::type;
                  step_kernel<T, variant(), access()>
                      <<<grid_size(cut.items, target.device), block_size, 0, stream>>>(o, cut);
                });
  });
}

}  // namespace cuda
}  // namespace fastsample
