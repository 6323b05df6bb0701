// Declares the CPU back end: the same loops are compiled for several instruction sets, and the
// widest that this machine has is chosen when the module loads.
#pragma once

#include <string>
#include <vector>

#include "core/operators.h"

namespace fastsample {
namespace cpu {

const Operators& operators();  // of the instruction set in use

std::vector<std::string> available_isas();  // narrowest first
std::string current_isa();
void use_isa(const std::string& name);  // for tests: every instruction set gives the same bits

}  // namespace cpu
}  // namespace fastsample
