// Fills the operator table of the CUDA back end.
#include "cuda/operators.h"

namespace fastsample {
namespace cuda {

const Operators operators{
    step,    step_backward, row_gradients, fill_noise, elbo_sums,
    nullptr,  // table_paths
};

}  // namespace cuda
}  // namespace fastsample
