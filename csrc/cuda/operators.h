// The CUDA back end. `stream` is torch's raw stream handle: a cudaStream_t belongs to the device's
// one primary context, which every copy of the runtime library shares.
#pragma once

#include "core/elbo.h"
#include "core/operands.h"
#include "core/row_gradients.h"

namespace fastsample {
namespace cuda {

void step(const StepOperands&, int device, uintptr_t stream);
void step_backward(const BackwardOperands&, int device, uintptr_t stream);
void fill_noise(const NoiseOperands&, int device, uintptr_t stream);
void elbo_sums(const ElboOperands&, int device, uintptr_t stream);
void row_gradients(const RowGradientOperands&, int device, uintptr_t stream);

}  // namespace cuda
}  // namespace fastsample
