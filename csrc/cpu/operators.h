// Declares the operators compiled for one instruction set, whose name CMake defines as
// FASTSAMPLE_ISA.
#pragma once

#include "core/operators.h"

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

Operator<StepOperands> step;
Operator<BackwardOperands> step_backward;
Operator<RowGradientOperands> row_gradients;
Operator<NoiseOperands> fill_noise;
Operator<ElboOperands> elbo_sums;
Operator<TablePathOperands> table_paths;

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
