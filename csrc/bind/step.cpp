// Binds the step, its gradients and the noise. The order of the fields below is the order of the
// arguments in fastsample/ops/launch.py and native.py.
#include <pybind11/stl.h>

#include <array>

#include "bind/bind.h"
#include "bind/operator.h"
#include "core/operands.h"

namespace py = pybind11;

namespace fastsample {

namespace {

void read_layout(Layout& layout, Arguments& arguments) {
  arguments.read(layout.batch, layout.size, layout.channels, layout.pixels, layout.channels_last);
}

void read_identity(Identity& identity, Arguments& arguments) {
  arguments.read(identity.seeds, identity.seed_per_sample, identity.index);
}

// Reads the operands that a step and its gradients have in common.
void read_forward(StepOperands& o, Arguments& arguments) {
  arguments.read(o.dtype);
  read_layout(o.layout, arguments);
  arguments.read(o.learned, o.x, o.out, o.uncond, o.noise);
  for (const void*& earlier : o.history) arguments.read(earlier);
  arguments.read(o.rows.table, o.rows.count, o.rows.number, o.rows.number_per_sample);
  read_identity(o.identity, arguments);
  arguments.read(o.draws.number, o.draws.per_sample);
  if (o.layout.empty()) return;
  require_storage({o.x, o.out, o.rows.table, o.rows.number});
  if (o.identity.seeds) require_storage({o.identity.index});
}

void read_operands(StepOperands& o, Arguments& arguments) {
  read_forward(o, arguments);
  arguments.read(o.next, o.x0);
  if (!o.layout.empty()) require_storage({o.next});
}

void read_operands(BackwardOperands& b, Arguments& arguments) {
  read_forward(b.forward, arguments);
  arguments.read(b.grad_next, b.grad_x0, b.grad_x, b.grad_out, b.grad_uncond, b.grad_noise);
  for (void*& gradient : b.grad_history) arguments.read(gradient);
  if (b.forward.layout.empty()) return;
  require_storage({b.grad_next, b.grad_x, b.grad_out});
  if (b.forward.uncond) require_storage({b.grad_uncond});
}

void read_operands(RowGradientOperands& r, Arguments& arguments) {
  read_forward(r.forward, arguments);
  arguments.read(r.grad_next, r.grad_x0, r.chunks, r.sums);
  if (!r.forward.layout.empty()) require_storage({r.grad_next, r.sums});
}

void read_operands(NoiseOperands& o, Arguments& arguments) {
  arguments.read(o.dtype);
  read_layout(o.layout, arguments);
  read_identity(o.identity, arguments);
  arguments.read(o.draw, o.out);
  if (!o.layout.empty()) require_storage({o.identity.seeds, o.identity.index, o.out});
}

}  // namespace

void register_step(py::module_& module) {
  define<StepOperands>(module, "step", &Operators::step, read_operands);
  define<BackwardOperands>(module, "step_backward", &Operators::step_backward, read_operands);
  define<RowGradientOperands>(module, "row_gradients", &Operators::row_gradients, read_operands);
  define<NoiseOperands>(module, "fill_noise", &Operators::fill_noise, read_operands);

  module.def("philox", [](std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    const Words words =
        philox({counter[0], counter[1], counter[2], counter[3]}, round_keys(key[0], key[1]));
    return std::array<uint32_t, 4>{words.r0, words.r1, words.r2, words.r3};
  });
}

}  // namespace fastsample
