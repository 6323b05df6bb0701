// Makes the binding of an operator: it reads the operands from Python's arguments, selects the back
// end by the device number, and releases the interpreter lock while the operator runs.
#pragma once

#include "bind/arguments.h"
#include "core/operators.h"
#include "cpu/instruction_sets.h"
#include "emulated/operators.h"

#if defined(FASTSAMPLE_WITH_CUDA)
#include "cuda/operators.h"
#endif

namespace fastsample {

inline const Operators& operators_of(int device) {
  if (device == cpu_device) return cpu::operators();
  if (device == emulated_device) return emulated::operators;
#if defined(FASTSAMPLE_WITH_CUDA)
  return cuda::operators;
#else
  throw std::runtime_error(
      "fastsample was built without CUDA; rebuild with -C cmake.define.FASTSAMPLE_CUDA=ON");
#endif
}

template <typename Operands>
void run(Operator<Operands>* Operators::* op, const Operands& operands, const Target& target) {
  Operator<Operands>* function = operators_of(target.device).*op;
  if (!function) throw std::invalid_argument("native: the device does not have this operator");
  const pybind11::gil_scoped_release release;
  function(operands, target);
}

// Registers an operator. Its Python arguments are (device, stream, threads) and then what `read`
// takes from them to fill and check the operands.
template <typename Operands>
void define(pybind11::module_& module, const char* name, Operator<Operands>* Operators::* op,
            void (*read)(Operands&, Arguments&)) {
  module.def(name, [op, read](const pybind11::args& values) {
    Arguments arguments(values);
    Target target{};
    arguments.read(target.device, target.stream, target.threads);
    Operands operands{};
    read(operands, arguments);
    arguments.require_end();
    run(op, operands, target);
  });
}

}  // namespace fastsample
