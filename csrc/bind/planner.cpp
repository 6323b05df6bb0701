// Binds the shortest-path searches on NumPy arrays. Python has checked shapes and dtypes and keeps
// the arrays alive.
#include "bind/bind.h"
#include "bind/operator.h"
#include "planner/multistep_path.h"
#include "planner/shortest_path.h"

namespace py = pybind11;

namespace fastsample {

namespace {

void table_paths(const py::args& values) {
  Arguments arguments(values);
  TablePathOperands o{};
  Target target{cpu_device, 0, 1};
  arguments.read(o.costs, o.size, o.budgets, o.best, target.threads);
  arguments.require_end();
  require_storage({o.costs, o.best});
  run(&Operators::table_paths, o, target);
}

void separable_paths(const py::args& values) {
  Arguments arguments(values);
  SeparablePathOperands o{};
  arguments.read(o.cost, o.time, o.alpha_bar, o.noise, o.error, o.decoder, o.dims, o.size,
                 o.budgets, o.best, o.origin);
  arguments.require_end();
  require_storage({o.time, o.alpha_bar, o.noise, o.error, o.decoder, o.best, o.origin});
  const py::gil_scoped_release release;
  separable_paths(o);
}

void multistep_paths(const py::args& values) {
  Arguments arguments(values);
  MultistepPathOperands o{};
  arguments.read(o.first, o.costs, o.size, o.budgets, o.best, o.origin);
  arguments.require_end();
  require_storage({o.first, o.costs, o.best, o.origin});
  const py::gil_scoped_release release;
  multistep_paths(o);
}

}  // namespace

void register_planner(py::module_& module) {
  module.attr("path_lanes") = path_lanes;
  module.def("table_paths", &table_paths);
  module.def("separable_paths", py::overload_cast<const py::args&>(&separable_paths));
  module.def("multistep_paths", py::overload_cast<const py::args&>(&multistep_paths));
}

}  // namespace fastsample
