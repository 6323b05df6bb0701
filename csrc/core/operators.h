// The package's operators, and the table in which a back end says what it runs. An instruction set
// of the CPU, CUDA, and the host loop over a GPU's threads have one such table each.
#pragma once

#include <cstdint>

namespace fastsample {

// Where an operator runs.
struct Target {
  int device;        // number of a CUDA device, or one of the two below
  uintptr_t stream;  // CUDA: torch's raw stream handle
  int threads;       // CPU: how many to use
};

constexpr int cpu_device = -1;
constexpr int emulated_device = -2;  // tests only: the CUDA threads' code in a loop on the host

struct StepOperands;
struct BackwardOperands;
struct RowGradientOperands;
struct NoiseOperands;
struct ElboOperands;
struct TablePathOperands;

template <typename Operands>
using Operator = void(const Operands&, const Target&);

// Null where a back end does not have an operator.
struct Operators {
  Operator<StepOperands>* step;
  Operator<BackwardOperands>* step_backward;
  Operator<RowGradientOperands>* row_gradients;
  Operator<NoiseOperands>* fill_noise;
  Operator<ElboOperands>* elbo_sums;
  Operator<TablePathOperands>* table_paths;
};

}  // namespace fastsample
