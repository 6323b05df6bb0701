// Defines the structs in which operands pass from the bindings to the loops: plain pointers and
// sizes, the same for every back end. Sizes and strides are in elements, never bytes. A null
// pointer means that an operand was not passed. T is the dtype of the call, F its arithmetic type.
#pragma once

#include "core/dtype.h"
#include "core/noise.h"
#include "core/step.h"

namespace fastsample {

// Describes a batch of samples, each `size` elements in C order, or (channels_last) `pixels` groups
// of `channels`.
struct Layout {
  int64_t batch, size, channels, pixels;
  bool channels_last;

  FS_HD bool empty() const { return batch == 0 || size == 0; }
};

// Points to the plan's table and to the number of the row that a sample takes, both in memory of
// the device that runs the step.
struct Rows {
  const double* table;
  int64_t count;
  const int64_t* number;  // one for the batch, or one per sample
  bool number_per_sample;

  template <typename Index>
  FS_HD int64_t number_of(Index sample) const {
    return number[number_per_sample ? sample : 0];
  }
};

// Points to the seeds and sample indices that determine each sample's noise, whatever its batch, in
// memory of the device that generates the noise.
struct Identity {
  const int64_t* seeds;  // one for the batch, or one per sample; null: no generated noise
  bool seed_per_sample;
  const int64_t* index;  // one per sample

  template <typename Index>
  FS_HD Stream stream(Index sample, uint32_t draw) const {
    return make_stream(seeds[seed_per_sample ? sample : 0], index[sample], draw);
  }
};

// Points to the number of the draw of generated noise, in memory of the device.
struct Draws {
  const int64_t* number;  // null: the number of the row
  bool per_sample;

  template <typename Index>
  FS_HD uint32_t of(Index sample, int64_t row) const {
    return static_cast<uint32_t>(number ? number[per_sample ? sample : 0] : row);
  }
};

struct StepOperands {
  DType dtype;
  Layout layout;
  Rows rows;
  Draws draws;
  Identity identity;
  bool learned;                      // out holds [prediction | v], 2 * channels
  const void* x;                     // T
  const void* out;                   // T, conditional output if `uncond` is not null
  const void* uncond;                // T, as out
  const void* noise;                 // T, instead of generated noise
  const void* history[max_history];  // F, the x0's of earlier rows, newest first
  void* next;                        // T; may be x
  void* x0;                          // F; may be one of `history`

  // Returns whether the row or its draw changes from sample to sample.
  FS_HD bool row_per_sample() const { return rows.number_per_sample || draws.per_sample; }
};

// Returns the operands with the batch as one long sample, which can be cut into tiles across the
// boundaries of samples. Steps whose samples draw noise, have their own rows or learn the variance
// are returned unchanged.
FS_HD StepOperands joined(const StepOperands& o) {
  StepOperands result = o;
  if (o.identity.seeds || o.rows.number_per_sample || o.learned) return result;
  const int64_t size = o.layout.batch * o.layout.size;
  result.layout = {size > 0 ? 1 : 0, size, 1, size, false};
  return result;
}

// The backward pass for a step's tensors: the forward operands, and gradients in and out.
struct BackwardOperands {
  StepOperands forward;             // next and x0 unused
  const void* grad_next;            // T
  const void* grad_x0;              // F
  void* grad_x;                     // T
  void* grad_out;                   // T, 2 * channels when learned
  void* grad_uncond;                // T, as grad_out
  void* grad_noise;                 // T
  void* grad_history[max_history];  // F
};

// The backward pass for the coefficients of a step's rows: their gradients are sums over elements.
struct RowGradientOperands {
  StepOperands forward;   // next and x0 unused
  const void* grad_next;  // T
  const void* grad_x0;    // F
  int64_t chunks;         // parts that a sample is summed in; 1 on a CPU
  double* sums;           // (batch, chunks, columns of a row)
};

struct NoiseOperands {
  DType dtype;
  Layout layout;
  Identity identity;
  uint32_t draw;
  void* out;  // T
};

}  // namespace fastsample
