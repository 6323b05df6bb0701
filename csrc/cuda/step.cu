// The fused step and the noise kernel on CUDA.
//
// Bound: memory. A float32 element moves 12 bytes (x and the model output in, x_next out), a
// bfloat16 element 6. Noise costs arithmetic only: it is made in registers, four normals per Philox
// call, and never touches memory. A row that draws no noise skips it at run time, so the same
// kernel runs a whole plan.
#include "cuda/backend.h"
#include "cuda/launch.cuh"

namespace fastsample {
namespace cuda {

namespace {

// ---- kernels ----

// Operands beyond x and out. `plain` and `noisy` are what few-step sampling runs thousands of
// times; `general` finds out at run time which of all operands are there.
enum class Kind { plain, noisy, general };

template <typename T, Kind kind, Access access>
__global__ void __launch_bounds__(block_size) step_kernel(const StepOperands o, const Cut cut) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access>;
  constexpr bool general = kind == Kind::general;
  const int halves = general && o.learned ? 2 : 1;

  int64_t number = row_of(o.control, 0);
  Row<F> row = load_row<F>(o.control.rows, o.control.num_rows, number);
  for (uint32_t item = blockIdx.x * block_size + threadIdx.x; item < cut.items;
       item += gridDim.x * block_size) {
    const Pack pack = pack_at<T, access>(cut, item);
    if (general && o.control.row_per_sample) {
      number = row_of(o.control, pack.sample);
      row = load_row<F>(o.control.rows, o.control.num_rows, number);
    }

    F x[width], m[width], x0[width], z[width], deviation[width];
    read<access, width, T>(o.x, cut, pack, 1, 0, x);
    read<access, width, T>(o.out, cut, pack, halves, 0, m);
    if constexpr (general) {
      if (o.uncond) {
        F u[width];
        read<access, width, T>(o.uncond, cut, pack, halves, 0, u);
#pragma unroll
        for (int j = 0; j < width; ++j) m[j] = guide(row, m[j], u[j]);
      }
    }

    F next[width];
#pragma unroll
    for (int j = 0; j < width; ++j) {
      x0[j] = clamp(row, raw_x0(row, x[j], m[j]));
      next[j] = mean(row, x[j], x0[j], m[j]);
      deviation[j] = row.d;
    }

    if constexpr (general) {
      if (o.x0) write<access, width, F>(o.x0, cut, pack, 1, 0, x0);
      if (o.h1) {
        read<access, width, F>(o.h1, cut, pack, 1, 0, x);
#pragma unroll
        for (int j = 0; j < width; ++j) next[j] = fused(row.c1, x[j], next[j]);
      }
      if (o.h2) {
        read<access, width, F>(o.h2, cut, pack, 1, 0, x);
#pragma unroll
        for (int j = 0; j < width; ++j) next[j] = fused(row.c2, x[j], next[j]);
      }
      if (o.learned && row.d != 0) {
        read<access, width, T>(o.out, cut, pack, halves, 1, x);
#pragma unroll
        for (int j = 0; j < width; ++j) deviation[j] = learned_deviation(row, x[j]);
      }
    }

    if (row.d != 0) {
      if (general && o.noise) {
        read<access, width, T>(o.noise, cut, pack, 1, 0, z);
      } else if (kind == Kind::noisy || (general && o.control.seeds)) {
        make_noise(stream_of(o.control, pack.sample, number), pack, z);
      } else {
        // The row wants noise and the caller gave none: NaN shows it.
#pragma unroll
        for (int j = 0; j < width; ++j) z[j] = not_a_number<F>();
      }
#pragma unroll
      for (int j = 0; j < width; ++j) next[j] = fused(deviation[j], z[j], next[j]);
    }
    write<access, width, T>(o.next, cut, pack, 1, 0, next);
  }
}

template <typename T, Access access>
__global__ void __launch_bounds__(block_size) noise_kernel(const NoiseOperands o, const Cut cut) {
  using F = arithmetic_t<T>;
  constexpr int width = width_of<T, access>;
  for (uint32_t item = blockIdx.x * block_size + threadIdx.x; item < cut.items;
       item += gridDim.x * block_size) {
    const Pack pack = pack_at<T, access>(cut, item);
    const Stream stream =
        make_stream(o.seeds[o.seed_per_sample ? pack.sample : 0], o.index[pack.sample], o.draw);
    F z[width];
    make_noise(stream, pack, z);
    write<access, width, T>(o.out, cut, pack, 1, 0, z);
  }
}

// ---- launchers ----

template <typename T, Kind kind, Access access>
void launch_step(const StepOperands& o, int device, cudaStream_t stream) {
  const Cut cut = Cut::of(o.layout, width_of<T, access>);
  step_kernel<T, kind, access><<<grid_size(cut.items, device), block_size, 0, stream>>>(o, cut);
}

template <typename T, Kind kind>
void launch_contiguous(const StepOperands& o, int device, cudaStream_t stream) {
  // As one long sample a huge batch would wrap its 32-bit element numbers.
  const StepOperands flat = countable(joined(o).layout) ? joined(o) : o;
  if (flat.layout.size % pack_width<T> == 0 &&
      aligned({o.x, o.out, o.uncond, o.noise, o.h1, o.h2, o.next, o.x0})) {
    launch_step<T, kind, Access::vector>(flat, device, stream);
  } else {
    launch_step<T, kind, Access::scalar>(o, device, stream);
  }
}

}  // namespace

void step(const StepOperands& o, int device, uintptr_t stream_handle) {
  if (o.layout.batch == 0 || o.layout.size == 0) return;
  require_countable(o.layout);
  const DeviceGuard guard(device);
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  const bool general = o.control.row_per_sample || o.learned || o.uncond || o.noise || o.h1 ||
                       o.h2 || o.x0 || o.layout.channels_last;
  dispatch(o.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (o.layout.channels_last) {
      launch_step<T, Kind::general, Access::channels_last>(o, device, stream);
    } else if (general) {
      launch_contiguous<T, Kind::general>(o, device, stream);
    } else if (o.control.seeds) {
      launch_contiguous<T, Kind::noisy>(o, device, stream);
    } else {
      launch_contiguous<T, Kind::plain>(o, device, stream);
    }
  });
  check(cudaGetLastError(), "step");
}

void fill_noise(const NoiseOperands& o, int device, uintptr_t stream_handle) {
  if (o.layout.batch == 0 || o.layout.size == 0) return;
  require_countable(o.layout);
  const DeviceGuard guard(device);
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  dispatch(o.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto launch = [&](auto access) {
      const Cut cut = Cut::of(o.layout, width_of<T, access()>);
      noise_kernel<T, access()><<<grid_size(cut.items, device), block_size, 0, stream>>>(o, cut);
    };
    if (o.layout.channels_last) {
      launch(std::integral_constant<Access, Access::channels_last>{});
    } else if (o.layout.size % pack_width<T> == 0 && aligned({o.out})) {
      launch(std::integral_constant<Access, Access::vector>{});
    } else {
      launch(std::integral_constant<Access, Access::scalar>{});
    }
  });
  check(cudaGetLastError(), "noise");
}

}  // namespace cuda
}  // namespace fastsample
