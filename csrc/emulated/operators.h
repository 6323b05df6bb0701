// The CUDA back end's per-thread code on the host; see operators.cpp.
#pragma once

#include "core/operands.h"

namespace fastsample {
namespace emulated {

void step(const StepOperands&);
void step_backward(const BackwardOperands&);
void fill_noise(const NoiseOperands&);

}  // namespace emulated
}  // namespace fastsample
