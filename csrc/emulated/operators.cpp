// Runs the code of the GPU threads on the host, one pack after the other, with the same packs,
// memory accesses and choice of kernel as the CUDA back end.
#include "emulated/operators.h"

#include "gpu/choose.h"
#include "gpu/row_gradients.h"

namespace fastsample {
namespace emulated {

namespace {

void step(const StepOperands& operands, const Target&) {
  if (operands.layout.empty()) return;
  choose_step(operands,
              [](const StepOperands& o, const Cut& cut, auto type, auto variant, auto access) {
                using T = typename decltype(type)::type;
                CurrentRow<arithmetic_t<T>> row(o);
                const RoundKeys keys = shared_keys<variant()>(o);
                for (uint32_t item = 0; item < cut.items; ++item) {
                  step_pack<T, variant(), access()>(o, cut, item, row, keys);
                }
              });
}

void step_backward(const BackwardOperands& operands, const Target&) {
  if (operands.forward.layout.empty()) return;
  choose_backward(operands, [](const BackwardOperands& b, const Cut& cut, auto type, auto access) {
    using T = typename decltype(type)::type;
    CurrentRow<arithmetic_t<T>> row(b.forward);
    for (uint32_t item = 0; item < cut.items; ++item) {
      backward_pack<T, access()>(b, cut, item, row);
    }
  });
}

void row_gradients(const RowGradientOperands& operands, const Target&) {
  const Layout& layout = operands.forward.layout;
  if (layout.empty()) return;
  choose_row_gradients(
      operands, [](const RowGradientOperands& r, const Cut& cut, auto type, auto access) {
        using T = typename decltype(type)::type;
        CurrentRow<arithmetic_t<T>> row(r.forward);
        for (uint32_t sample = 0; sample < cut.layout.batch; ++sample) {
          row.read(r.forward, sample);
          double sums[Column::count] = {};
          for (uint32_t pack = 0; pack < cut.packs; ++pack) {
            add_row_gradients<T, access()>(r, cut, sample * cut.packs + pack, row, sums);
          }
          for (int i = 0; i < Column::count; ++i) {
            r.sums[int64_t{sample} * r.chunks * Column::count + i] = sums[i];
          }
        }
      });
}

void fill_noise(const NoiseOperands& operands, const Target&) {
  if (operands.layout.empty()) return;
  choose_noise(operands, [](const NoiseOperands& o, const Cut& cut, auto type, auto access) {
    using T = typename decltype(type)::type;
    for (uint32_t item = 0; item < cut.items; ++item) noise_pack<T, access()>(o, cut, item);
  });
}

}  // namespace

const Operators operators{
    step,    step_backward, row_gradients, fill_noise,
    nullptr,  // elbo_sums
    nullptr,  // table_paths
};

}  // namespace emulated
}  // namespace fastsample
