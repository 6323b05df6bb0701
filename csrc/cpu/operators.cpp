// Fills the operator table of one instruction set.
#include "cpu/operators.h"

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

extern const Operators operators;
const Operators operators{step, step_backward, row_gradients, fill_noise, elbo_sums, table_paths};

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
