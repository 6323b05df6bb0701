// Finds the instruction sets that this machine has, and keeps the one in use.
#include "cpu/instruction_sets.h"

#include <stdexcept>

namespace fastsample {
namespace cpu {

// These are defined by cpu/operators.cpp, which is compiled once for each instruction set.
namespace baseline {
extern const Operators operators;
}
#if defined(FASTSAMPLE_X86)
namespace avx2 {
extern const Operators operators;
}
namespace avx512 {
extern const Operators operators;
}
#endif

namespace {

struct InstructionSet {
  const char* name;
  const Operators* operators;
};

std::vector<InstructionSet> detect() {
  std::vector<InstructionSet> sets{{"baseline", &baseline::operators}};
#if defined(FASTSAMPLE_X86)
  __builtin_cpu_init();
  // Exactly these extensions are enabled for the compiler in CMakeLists.txt.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v3) sets.push_back({"avx2", &avx2::operators});
  if (v4) sets.push_back({"avx512", &avx512::operators});
#endif
  return sets;
}

const std::vector<InstructionSet> available = detect();
const InstructionSet* active = &available.back();

}  // namespace

const Operators& operators() { return *active->operators; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const InstructionSet& isa : available) names.emplace_back(isa.name);
  return names;
}

std::string current_isa() { return active->name; }

void use_isa(const std::string& name) {
  for (const InstructionSet& isa : available) {
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
