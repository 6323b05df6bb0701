// Declares the back end that runs the code of CUDA threads in a plain loop on the host, for tests
// on machines without a GPU.
#pragma once

#include "core/operators.h"

namespace fastsample {
namespace emulated {

extern const Operators operators;

}  // namespace emulated
}  // namespace fastsample
