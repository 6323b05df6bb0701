// The planner on NumPy's arrays: Python has checked shapes and dtypes and keeps the arrays alive.
#include <stdexcept>

#include "bind/bind.h"
#include "cpu/instruction_sets.h"
#include "planner/multistep_path.h"
#include "planner/shortest_path.h"

namespace py = pybind11;

namespace fastsample {

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  if (!address) throw std::invalid_argument("native: an array without storage was passed");
  return reinterpret_cast<T*>(address);
}

}  // namespace

void register_planner(py::module_& module) {
  module.attr("path_lanes") = path_lanes;
  module.def(
      "table_paths",
      [](uintptr_t costs, int64_t size, int64_t budgets, uintptr_t best, int threads) {
        const TableOperands operands{pointer<const double>(costs), size, budgets,
                                     pointer<double>(best)};
        py::gil_scoped_release release;
        cpu::table_paths(operands, threads);
      },
      py::arg("costs"), py::arg("size"), py::arg("budgets"), py::arg("best"), py::arg("threads"));
  module.def(
      "separable_paths",
      [](int edge, uintptr_t time, uintptr_t alpha_bar, uintptr_t noise, uintptr_t error,
         uintptr_t decoder, double dims, int64_t size, int64_t budgets, uintptr_t best,
         uintptr_t origin) {
        const SeparableOperands operands{static_cast<Edge>(edge),
                                         pointer<const double>(time),
                                         pointer<const double>(alpha_bar),
                                         pointer<const double>(noise),
                                         pointer<const double>(error),
                                         pointer<const double>(decoder),
                                         dims,
                                         size,
                                         budgets,
                                         pointer<double>(best),
                                         pointer<int32_t>(origin)};
        py::gil_scoped_release release;
        separable_paths(operands);
      },
      py::arg("edge"), py::arg("time"), py::arg("alpha_bar"), py::arg("noise"), py::arg("error"),
      py::arg("decoder"), py::arg("dims"), py::arg("size"), py::arg("budgets"), py::arg("best"),
      py::arg("origin"));
  module.def(
      "second_order_paths",
      [](uintptr_t first, uintptr_t costs, int64_t size, int64_t budgets, uintptr_t best,
         uintptr_t origin) {
        const SecondOrderOperands operands{
            pointer<const double>(first), pointer<const double>(costs), size, budgets,
            pointer<double>(best),        pointer<int32_t>(origin)};
        py::gil_scoped_release release;
        second_order_paths(operands);
      },
      py::arg("first"), py::arg("costs"), py::arg("size"), py::arg("budgets"), py::arg("best"),
      py::arg("origin"));
}

}  // namespace fastsample
