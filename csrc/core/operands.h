// What crosses from the binding to the loops: plain pointers and sizes, the same for CPU and CUDA.
// Sizes and strides are in elements, never bytes. A null pointer means "this operand is not there".
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastsample {

// A batch of samples, each `size` elements in C order, or (channels_last) `pixels` groups of
// `channels`.
struct Layout {
  int64_t batch, size, channels, pixels;
  bool channels_last;
};

// Where a sample finds its row and its noise; all of it in memory of the device that runs the step.
struct Control {
  const double* rows;
  int64_t num_rows;
  const int64_t* row;  // one number, or one per sample
  bool row_per_sample;
  const int64_t* seeds;  // null: no generated noise
  bool seed_per_sample;
  const int64_t* index;  // one per sample
};

// T is the dtype of the call, F its arithmetic type.
struct StepOperands {
  DType dtype;
  Layout layout;
  Control control;
  bool learned;        // out holds [prediction | v], 2 * channels
  const void* x;       // T
  const void* out;     // T, conditional output when `uncond` is there
  const void* uncond;  // T
  const void* noise;   // T, instead of generated noise
  const void* h1;      // F
  const void* h2;      // F
  void* next;          // T; may be x
  void* x0;            // F
};

// A sample that makes no noise and has no row of its own needs no identity: the batch is then one
// long sample, without a cut at each boundary.
FS_HD StepOperands joined(const StepOperands& o) {
  StepOperands result = o;
  if (o.control.seeds || o.control.row_per_sample || o.learned) return result;
  const int64_t size = o.layout.batch * o.layout.size;
  result.layout = {size > 0 ? 1 : 0, size, 1, size, false};
  return result;
}

struct BackwardOperands {
  StepOperands forward;   // next and x0 unused
  const void* grad_next;  // T
  const void* grad_x0;    // F
  void* grad_x;           // T
  void* grad_out;         // T, 2 * channels when learned
  void* grad_uncond;      // T, as grad_out
  void* grad_noise;       // T
  void* grad_h1;          // F
  void* grad_h2;          // F
};

struct NoiseOperands {
  DType dtype;
  Layout layout;
  const int64_t* seeds;
  bool seed_per_sample;
  const int64_t* index;
  uint32_t draw;
  void* out;  // T
};

}  // namespace fastsample
