// Choice of the instruction set at run time.
#include "cpu/instruction_sets.h"

#include <stdexcept>

namespace fastsample {
namespace cpu {

namespace {

struct Isa {
  const char* name;
  void (*step)(const StepOperands&, int);
  void (*step_backward)(const BackwardOperands&, int);
  void (*fill_noise)(const NoiseOperands&, int);
  void (*table_paths)(const TableOperands&, int);
  void (*elbo_sums)(const ElboOperands&, int);
  void (*row_gradients)(const RowGradientOperands&, int);
};

std::vector<Isa> detect() {
  std::vector<Isa> found{{"baseline", baseline::step, baseline::step_backward, baseline::fill_noise,
                          baseline::table_paths, baseline::elbo_sums, baseline::row_gradients}};
#if defined(FASTSAMPLE_X86)
  __builtin_cpu_init();
  // What CMakeLists.txt lets the compiler use.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v3)
    found.push_back({"avx2", avx2::step, avx2::step_backward, avx2::fill_noise, avx2::table_paths,
                     avx2::elbo_sums, avx2::row_gradients});
  if (v4)
    found.push_back({"avx512", avx512::step, avx512::step_backward, avx512::fill_noise,
                     avx512::table_paths, avx512::elbo_sums, avx512::row_gradients});
#endif
  return found;
}

const std::vector<Isa> isas = detect();
const Isa* active = &isas.back();

}  // namespace

void step(const StepOperands& o, int threads) { active->step(o, threads); }
void step_backward(const BackwardOperands& o, int threads) { active->step_backward(o, threads); }
void fill_noise(const NoiseOperands& o, int threads) { active->fill_noise(o, threads); }
void table_paths(const TableOperands& o, int threads) { active->table_paths(o, threads); }
void elbo_sums(const ElboOperands& o, int threads) { active->elbo_sums(o, threads); }
void row_gradients(const RowGradientOperands& r, int threads) { active->row_gradients(r, threads); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas) names.emplace_back(isa.name);
  return names;
}

std::string current_isa() { return active->name; }

void use_isa(const std::string& name) {
  for (const Isa& isa : isas) {
    if (name == isa.name) {
      active = &isa;
      return;
    }
  }
  throw std::invalid_argument("use_isa: name must be an instruction set of this machine, got " +
                              name);
}

}  // namespace cpu
}  // namespace fastsample
