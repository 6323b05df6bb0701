// Binds the sums of core/elbo.h to Python.
#include "core/elbo.h"

#include "bind/bind.h"
#include "bind/operator.h"

namespace py = pybind11;

namespace fastsample {

namespace {

void read_operands(ElboOperands& o, Arguments& arguments) {
  arguments.read(o.dtype, o.batch, o.size, o.learned, o.x0, o.x, o.out, o.p, o.q, o.r, o.g, o.lo,
                 o.hi, o.nodes, o.num_nodes, o.log_scales, o.num_scales, o.bin_width, o.chunk,
                 o.sums);
  if (o.batch == 0 || o.size == 0) return;
  require_storage({o.x0, o.x, o.out, o.sums});
  if (o.num_nodes > 0) require_storage({o.nodes});
  if (o.num_scales > 0) require_storage({o.log_scales});
}

}  // namespace

void register_elbo(py::module_& module) {
  define<ElboOperands>(module, "elbo_sums", &Operators::elbo_sums, read_operands);
}

}  // namespace fastsample
