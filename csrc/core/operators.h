// Defines the table of functions that implement the operators. Each instruction set of the CPU,
// CUDA, and the emulation of CUDA on the host has one such table.
#pragma once

#include <cstdint>

namespace fastsample {

// Says on which device, and with which stream or threads, an operator runs.
struct Target {
  int device;        // number of a CUDA device, or one of the two below
  uintptr_t stream;  // CUDA: torch's raw stream handle
  int threads;       // CPU: number of threads to use
};

constexpr int cpu_device = -1;
constexpr int emulated_device = -2;  // for tests: the code of CUDA threads in a loop on the host

struct StepOperands;
struct BackwardOperands;
struct RowGradientOperands;
struct NoiseOperands;
struct ElboOperands;
struct TablePathOperands;

template <typename Operands>
using Operator = void(const Operands&, const Target&);

// An entry is null if the back end does not have the operator.
struct Operators {
  Operator<StepOperands>* step;
  Operator<BackwardOperands>* step_backward;
  Operator<RowGradientOperands>* row_gradients;
  Operator<NoiseOperands>* fill_noise;
  Operator<ElboOperands>* elbo_sums;
  Operator<TablePathOperands>* table_paths;
};

}  // namespace fastsample
