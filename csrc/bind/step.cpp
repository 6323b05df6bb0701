// Integers from Python become pointers here. Python has checked shapes, dtypes and devices; this
// file only guards memory: a null pointer (a fake or meta tensor) is an error, never a crash.
#include "core/step.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>

#include "bind/bind.h"
#include "bind/launch.h"
#include "cpu/instruction_sets.h"
#include "emulated/operators.h"

namespace py = pybind11;

namespace fastsample {

namespace {

void require(const Layout& layout, std::initializer_list<const void*> pointers) {
  if (layout.batch == 0 || layout.size == 0) return;
  for (const void* p : pointers) {
    if (!p)
      throw std::invalid_argument("native: a tensor without storage (fake or meta) was passed");
  }
}

StepOperands step_operands(int dtype, int64_t batch, int64_t size, int64_t channels, int64_t pixels,
                           bool channels_last, bool learned, uintptr_t x, uintptr_t out,
                           uintptr_t uncond, uintptr_t noise, uintptr_t h1, uintptr_t h2,
                           uintptr_t rows, int64_t num_rows, uintptr_t row, bool row_per_sample,
                           uintptr_t seeds, bool seed_per_sample, uintptr_t index) {
  StepOperands o{};
  o.dtype = static_cast<DType>(dtype);
  o.layout = {batch, size, channels, pixels, channels_last};
  o.control = {
      pointer<const double>(rows),   num_rows,        pointer<const int64_t>(row),  row_per_sample,
      pointer<const int64_t>(seeds), seed_per_sample, pointer<const int64_t>(index)};
  o.learned = learned;
  o.x = pointer<void>(x);
  o.out = pointer<void>(out);
  o.uncond = pointer<void>(uncond);
  o.noise = pointer<void>(noise);
  o.h1 = pointer<void>(h1);
  o.h2 = pointer<void>(h2);
  require(o.layout, {o.x, o.out, o.control.rows, o.control.row});
  if (o.control.seeds) require(o.layout, {o.control.index});
  return o;
}

}  // namespace

void register_step(py::module_& module) {
  module.def("step", [](int device, uintptr_t stream, int threads, int dtype, int64_t batch,
                        int64_t size, int64_t channels, int64_t pixels, bool channels_last,
                        bool learned, uintptr_t x, uintptr_t out, uintptr_t uncond, uintptr_t noise,
                        uintptr_t h1, uintptr_t h2, uintptr_t rows, int64_t num_rows, uintptr_t row,
                        bool row_per_sample, uintptr_t seeds, bool seed_per_sample, uintptr_t index,
                        uintptr_t next, uintptr_t x0) {
    StepOperands o = step_operands(dtype, batch, size, channels, pixels, channels_last, learned, x,
                                   out, uncond, noise, h1, h2, rows, num_rows, row, row_per_sample,
                                   seeds, seed_per_sample, index);
    o.next = pointer<void>(next);
    o.x0 = pointer<void>(x0);
    require(o.layout, {o.next});
    launch<StepOperands>(o, device, stream, threads, &cpu::step, &emulated::step, FS_CUDA(step));
  });

  module.def("step_backward",
             [](int device, uintptr_t stream, int threads, int dtype, int64_t batch, int64_t size,
                int64_t channels, int64_t pixels, bool channels_last, bool learned, uintptr_t x,
                uintptr_t out, uintptr_t uncond, uintptr_t noise, uintptr_t h1, uintptr_t h2,
                uintptr_t rows, int64_t num_rows, uintptr_t row, bool row_per_sample,
                uintptr_t seeds, bool seed_per_sample, uintptr_t index, uintptr_t grad_next,
                uintptr_t grad_x0, uintptr_t grad_x, uintptr_t grad_out, uintptr_t grad_uncond,
                uintptr_t grad_noise, uintptr_t grad_h1, uintptr_t grad_h2) {
               BackwardOperands b{};
               b.forward = step_operands(dtype, batch, size, channels, pixels, channels_last,
                                         learned, x, out, uncond, noise, h1, h2, rows, num_rows,
                                         row, row_per_sample, seeds, seed_per_sample, index);
               b.grad_next = pointer<void>(grad_next);
               b.grad_x0 = pointer<void>(grad_x0);
               b.grad_x = pointer<void>(grad_x);
               b.grad_out = pointer<void>(grad_out);
               b.grad_uncond = pointer<void>(grad_uncond);
               b.grad_noise = pointer<void>(grad_noise);
               b.grad_h1 = pointer<void>(grad_h1);
               b.grad_h2 = pointer<void>(grad_h2);
               require(b.forward.layout, {b.grad_next, b.grad_x, b.grad_out});
               if (b.forward.uncond) require(b.forward.layout, {b.grad_uncond});
               launch<BackwardOperands>(b, device, stream, threads, &cpu::step_backward,
                                        &emulated::step_backward, FS_CUDA(step_backward));
             });

  module.def("row_gradients",
             [](int device, uintptr_t stream, int threads, int dtype, int64_t batch, int64_t size,
                int64_t channels, int64_t pixels, bool channels_last, bool learned, uintptr_t x,
                uintptr_t out, uintptr_t uncond, uintptr_t noise, uintptr_t h1, uintptr_t h2,
                uintptr_t rows, int64_t num_rows, uintptr_t row, bool row_per_sample,
                uintptr_t seeds, bool seed_per_sample, uintptr_t index, uintptr_t grad_next,
                uintptr_t grad_x0, int64_t chunks, uintptr_t sums) {
               RowGradientOperands r{};
               r.forward = step_operands(dtype, batch, size, channels, pixels, channels_last,
                                         learned, x, out, uncond, noise, h1, h2, rows, num_rows,
                                         row, row_per_sample, seeds, seed_per_sample, index);
               r.grad_next = pointer<void>(grad_next);
               r.grad_x0 = pointer<void>(grad_x0);
               r.chunks = chunks;
               r.sums = pointer<double>(sums);
               require(r.forward.layout, {r.grad_next, r.sums});
               launch<RowGradientOperands>(r, device, stream, threads, &cpu::row_gradients, nullptr,
                                           FS_CUDA(row_gradients));
             });

  module.def("fill_noise",
             [](int device, uintptr_t stream, int threads, int dtype, int64_t batch, int64_t size,
                int64_t channels, int64_t pixels, bool channels_last, uintptr_t seeds,
                bool seed_per_sample, uintptr_t index, uint32_t draw, uintptr_t out) {
               NoiseOperands o{};
               o.dtype = static_cast<DType>(dtype);
               o.layout = {batch, size, channels, pixels, channels_last};
               o.seeds = pointer<const int64_t>(seeds);
               o.seed_per_sample = seed_per_sample;
               o.index = pointer<const int64_t>(index);
               o.draw = draw;
               o.out = pointer<void>(out);
               require(o.layout, {o.seeds, o.index, o.out});
               launch<NoiseOperands>(o, device, stream, threads, &cpu::fill_noise,
                                     &emulated::fill_noise, FS_CUDA(fill_noise));
             });

  module.def("philox", [](std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    const Words words =
        philox(Words{counter[0], counter[1], counter[2], counter[3]}, key[0], key[1]);
    return std::array<uint32_t, 4>{words.r0, words.r1, words.r2, words.r3};
  });
}

}  // namespace fastsample
