// Every GPU thread's code in a plain loop on the host, item by item. For tests on machines without
// a GPU: it runs the packs, memory accesses and choice of kernel that the CUDA back end runs.
#include "emulated/operators.h"

#include "gpu/thread.h"

namespace fastsample {
namespace emulated {

void step(const StepOperands& operands) {
  if (operands.layout.batch == 0 || operands.layout.size == 0) return;
  choose_step(operands,
              [](const StepOperands& o, const Cut& cut, auto type, auto kind, auto access) {
                using T = typename decltype(type)::type;
                CurrentRow<arithmetic_t<T>> row(o);
                for (uint32_t item = 0; item < cut.items; ++item) {
                  step_pack<T, kind(), access()>(o, cut, item, row);
                }
              });
}

void step_backward(const BackwardOperands& operands) {
  const Layout& layout = operands.forward.layout;
  if (layout.batch == 0 || layout.size == 0) return;
  choose_backward(operands, [](const BackwardOperands& b, const Cut& cut, auto type, auto access) {
    using T = typename decltype(type)::type;
    CurrentRow<arithmetic_t<T>> row(b.forward);
    for (uint32_t item = 0; item < cut.items; ++item) {
      backward_pack<T, access()>(b, cut, item, row);
    }
  });
}

void fill_noise(const NoiseOperands& operands) {
  if (operands.layout.batch == 0 || operands.layout.size == 0) return;
  choose_noise(operands, [](const NoiseOperands& o, const Cut& cut, auto type, auto access) {
    using T = typename decltype(type)::type;
    for (uint32_t item = 0; item < cut.items; ++item) noise_pack<T, access()>(o, cut, item);
  });
}

}  // namespace emulated
}  // namespace fastsample
