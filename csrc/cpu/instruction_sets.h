// The CPU back end: the same loops compiled for several instruction sets, the widest that this
// machine has chosen when the module loads.
#pragma once

#include <string>
#include <vector>

#include "core/elbo.h"
#include "core/operands.h"
#include "core/row_gradients.h"
#include "planner/shortest_path.h"

#define FASTSAMPLE_DECLARE_ISA(name)                           \
  namespace name {                                             \
  void step(const StepOperands&, int threads);                 \
  void step_backward(const BackwardOperands&, int threads);    \
  void fill_noise(const NoiseOperands&, int threads);          \
  void table_paths(const TableOperands&, int threads);         \
  void elbo_sums(const ElboOperands&, int threads);            \
  void row_gradients(const RowGradientOperands&, int threads); \
  }

namespace fastsample {
namespace cpu {

FASTSAMPLE_DECLARE_ISA(baseline)
#if defined(FASTSAMPLE_X86)
FASTSAMPLE_DECLARE_ISA(avx2)
FASTSAMPLE_DECLARE_ISA(avx512)
#endif

void step(const StepOperands&, int threads);
void step_backward(const BackwardOperands&, int threads);
void fill_noise(const NoiseOperands&, int threads);
void table_paths(const TableOperands&, int threads);
void elbo_sums(const ElboOperands&, int threads);
void row_gradients(const RowGradientOperands&, int threads);

std::vector<std::string> available_isas();  // narrowest first
std::string current_isa();
void use_isa(const std::string& name);  // for tests: every instruction set gives the same bits

}  // namespace cpu
}  // namespace fastsample
