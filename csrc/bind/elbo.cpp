// The sums of core/elbo.h: Python has checked shapes, dtypes and devices; null pointers are errors.
#include "core/elbo.h"

#include <initializer_list>

#include "bind/bind.h"
#include "bind/launch.h"
#include "cpu/instruction_sets.h"

namespace py = pybind11;

namespace fastsample {

void register_elbo(py::module_& module) {
  module.def("elbo_sums", [](int device, uintptr_t stream, int threads, int dtype, int64_t batch,
                             int64_t size, bool learned, uintptr_t x0, uintptr_t x, uintptr_t out,
                             double p, double q, double r, double g, double lo, double hi,
                             uintptr_t nodes, int64_t num_nodes, uintptr_t log_scales,
                             int64_t num_scales, double bin_width, int64_t chunk, uintptr_t sums) {
    const ElboOperands o{static_cast<DType>(dtype),
                         batch,
                         size,
                         learned,
                         pointer<const void>(x0),
                         pointer<const void>(x),
                         pointer<const void>(out),
                         p,
                         q,
                         r,
                         g,
                         lo,
                         hi,
                         pointer<const double>(nodes),
                         num_nodes,
                         pointer<const double>(log_scales),
                         num_scales,
                         bin_width,
                         chunk,
                         pointer<double>(sums)};
    if (batch > 0 && size > 0) {
      if (!o.x0 || !o.x || !o.out || !o.sums || (num_nodes > 0 && !o.nodes) ||
          (num_scales > 0 && !o.log_scales))
        throw std::invalid_argument("native: a tensor without storage (fake or meta) was passed");
    }
    launch<ElboOperands>(o, device, stream, threads, &cpu::elbo_sums, nullptr, FS_CUDA(elbo_sums));
  });
}

}  // namespace fastsample
