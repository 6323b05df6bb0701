// Declares the functions by which each file of bind/ adds its bindings to the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace fastsample {

void register_elbo(pybind11::module_& module);
void register_indexing(pybind11::module_& module);
void register_planner(pybind11::module_& module);
void register_step(pybind11::module_& module);

}  // namespace fastsample
