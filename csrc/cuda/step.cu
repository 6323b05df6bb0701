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
  const RoundKeys keys = shared_keys<variant>(o);
  for (uint32_t item = first_item(); item < cut.items; item += threads_of_grid()) {
    step_pack<T, variant, access>(o, cut, item, row, keys);
  }
}

}  // namespace

void step(const StepOperands& operands, const Target& target) {
  if (operands.layout.empty()) return;
  launch("step", target, [&](cudaStream_t stream) {
    choose_step(
        operands, [&](const StepOperands& o, const Cut& cut, auto type, auto variant, auto access) {
          using T = typename decltype(type)::type;
          run_items<step_kernel<T, variant(), access()>>(cut.items, target.device, stream, o, cut);
        });
  });
}

}  // namespace cuda
}  // namespace fastsample
