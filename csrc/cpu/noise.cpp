// Implements the noise operator on the CPU, which writes the noise z of a step to a tensor.
#include "cpu/operators.h"
#include "cpu/view.h"

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

namespace {

template <typename T>
void fill_all(const NoiseOperands& o, int threads) {
  using F = arithmetic_t<T>;
  const Tiling tiling(o.layout);
  for_tiles(tiling.total, o.layout.batch * o.layout.size, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float z[tile_size];
    NoiseScratch scratch;
    for (int64_t number = begin; number < end; ++number) {
      const Tile tile = tiling[number];
      fill_tile_noise(o.identity.stream(tile.sample, o.draw), o.layout, tile, z, scratch);
      T* out = at<T>(o.out, tile.sample * o.layout.size + tile.first);
#pragma omp simd
      for (int64_t i = 0; i < tile.count; ++i) out[i] = narrow<T>(static_cast<F>(z[i]));
    }
  });
}

}  // namespace

void fill_noise(const NoiseOperands& o, const Target& target) {
  dispatch(o.dtype, [&](auto tag) { fill_all<typename decltype(tag)::type>(o, target.threads); });
}

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
