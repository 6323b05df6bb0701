// Chooses the kernel for a call, on the host. Each function calls `run` with the operands, how they
// are cut into packs, and tags of the kernel's template arguments.
#pragma once

#include "gpu/thread.h"

namespace fastsample {

template <Variant value>
using VariantTag = std::integral_constant<Variant, value>;
template <Access value>
using AccessTag = std::integral_constant<Access, value>;

// Chooses how packs are read and written. `aligned_operands` says whether every operand allows
// 16-byte accesses.
template <typename T, Variant variant = Variant::general, typename Run>
void choose_access(const Layout& layout, bool aligned_operands, Run&& run) {
  const auto with = [&](auto access) {
    run(Cut::of(layout, width_of<T, access(), variant>), access);
  };
  if (layout.channels_last) {
    with(AccessTag<Access::channels_last>{});
  } else if (layout.size % width_of<T, Access::vector, variant> == 0 && aligned_operands) {
    with(AccessTag<Access::vector>{});
  } else {
    with(AccessTag<Access::scalar>{});
  }
}

template <typename Run>
void choose_step(const StepOperands& operands, Run&& run) {
  require_countable(operands.layout);
  // A huge batch is not joined to one long sample, whose 32-bit element numbers would wrap.
  const StepOperands o = countable(joined(operands).layout) ? joined(operands) : operands;
  const bool general = o.row_per_sample() || o.learned || o.uncond || o.noise || any(o.history) ||
                       o.x0 || o.layout.channels_last;
  const bool wide = aligned({o.x, o.out, o.uncond, o.noise, o.next, o.x0}) && aligned(o.history);
  dispatch(o.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto with = [&](auto tag) {
      constexpr Variant variant = tag();
      choose_access<T, variant>(o.layout, wide, [&](const Cut& cut, auto access) {
        // channels_last is always `general`: no other variant is compiled for it.
        if constexpr (variant == Variant::general || access() != Access::channels_last) {
          run(o, cut, type, VariantTag<variant>{}, access);
        }
      });
    };
    if (general) {
      with(VariantTag<Variant::general>{});
    } else if (o.identity.seeds && o.identity.seed_per_sample) {
      with(VariantTag<Variant::seeded>{});
    } else if (o.identity.seeds) {
      with(VariantTag<Variant::noisy>{});
    } else {
      with(VariantTag<Variant::plain>{});
    }
  });
}

// Chooses a kernel that has no variants, by dtype and memory access.
template <typename Operands, typename Run>
void choose_kernel(const Operands& operands, DType dtype, const Layout& layout,
                   bool aligned_operands, Run&& run) {
  require_countable(layout);
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    choose_access<T>(layout, aligned_operands,
                     [&](const Cut& cut, auto access) { run(operands, cut, type, access); });
  });
}

template <typename Run>
void choose_noise(const NoiseOperands& o, Run&& run) {
  choose_kernel(o, o.dtype, o.layout, aligned({o.out}), run);
}

template <typename Run>
void choose_backward(const BackwardOperands& b, Run&& run) {
  const StepOperands& o = b.forward;
  choose_kernel(b, o.dtype, o.layout,
                aligned({o.x, o.out, o.uncond, o.noise, b.grad_next, b.grad_x0, b.grad_x,
                         b.grad_out, b.grad_uncond, b.grad_noise}) &&
                    aligned(b.grad_history),
                run);
}

template <typename Run>
void choose_row_gradients(const RowGradientOperands& r, Run&& run) {
  const StepOperands& o = r.forward;
  choose_kernel(
      r, o.dtype, o.layout,
      aligned({o.x, o.out, o.uncond, o.noise, r.grad_next, r.grad_x0}) && aligned(o.history), run);
}

}  // namespace fastsample
