// Declares the CUDA back end. A target's stream is torch's raw handle: a cudaStream_t belongs to
// the device's one primary context, which every copy of the runtime library shares.
#pragma once

#include "core/operators.h"

namespace fastsample {
namespace cuda {

Operator<StepOperands> step;
Operator<BackwardOperands> step_backward;
Operator<RowGradientOperands> row_gradients;
Operator<NoiseOperands> fill_noise;
Operator<ElboOperands> elbo_sums;

extern const Operators operators;

}  // namespace cuda
}  // namespace fastsample
