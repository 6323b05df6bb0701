// Defines the Python module `fastsample._native`.
#include <pybind11/stl.h>

#include "bind/bind.h"
#include "cpu/instruction_sets.h"

namespace py = pybind11;

namespace fastsample {

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = FASTSAMPLE_VERSION;
  info["compiler"] = FASTSAMPLE_COMPILER;
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#if defined(FASTSAMPLE_WITH_CUDA)
  info["cuda"] = true;
  info["cuda_architectures"] = FASTSAMPLE_CUDA_ARCHITECTURES;
  info["cuda_compiler"] = FASTSAMPLE_CUDA_COMPILER;
#else
  info["cuda"] = false;
#endif
  info["cpu_available"] = cpu::available_isas();
  info["cpu"] = cpu::current_isa();
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
  module.def("build_info", &build_info);
  module.def("use_isa", &cpu::use_isa, py::arg("name"));
  register_elbo(module);
  register_indexing(module);
  register_planner(module);
  register_step(module);
}

}  // namespace fastsample
