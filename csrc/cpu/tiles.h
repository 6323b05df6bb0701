// Cutting a batch into tiles that stay in the first-level cache, and the noise of one tile.
#pragma once

#include <algorithm>

#include "core/operands.h"
#include "core/step.h"
#include "cpu/philox.h"

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

// Buffers of this length stay in the first-level cache, and while a tile's noise is computed the
// hardware prefetcher is still fetching the next operands: 1024 was 25% slower with noise at 50 MB,
// 256 paid more per tile (2-core AMD EPYC).
constexpr int64_t tile_size = 512;
constexpr int64_t parallel_grain = 16 * 1024;  // elements worth waking a thread for

// Loops over a tile carry `omp simd`: operands either do not overlap or are the same tensor,
// position by position, which a compiler cannot know.

// A run of consecutive memory positions of one sample.
struct Tile {
  int64_t sample, first, count;
};

// Contiguous samples are cut every tile_size elements (a multiple of 4: Philox blocks stay whole).
// channels_last samples are cut at whole pixels, or inside a pixel when it alone exceeds a tile.
struct Tiling {
  Layout layout;
  bool splits_pixels;
  int64_t length, per_pixel, per_sample, total;

  explicit Tiling(const Layout& l) : layout(l) {
    splits_pixels = l.channels_last && l.channels > tile_size;
    const bool whole_pixels = l.channels_last && !splits_pixels;
    length = whole_pixels ? tile_size / l.channels * l.channels : tile_size;
    per_pixel = (l.channels + length - 1) / length;
    per_sample = splits_pixels ? l.pixels * per_pixel : (l.size + length - 1) / length;
    total = l.batch * per_sample;
  }

  Tile operator[](int64_t number) const {
    const int64_t sample = number / per_sample, within = number % per_sample;
    if (!splits_pixels) {
      const int64_t first = within * length;
      return {sample, first, std::min(length, layout.size - first)};
    }
    const int64_t pixel = within / per_pixel, channel = within % per_pixel * length;
    return {sample, pixel * layout.channels + channel, std::min(length, layout.channels - channel)};
  }
};

constexpr int64_t block_chunk = tile_size / 4;
static_assert(block_chunk % philox_group == 0, "a chunk holds whole groups");

// Normals of elements 4 * block .. 4 * (block + count) - 1.
inline void fill_blocks(const Stream& stream, int64_t block, int64_t count, float* z) {
  alignas(64) uint32_t r0[block_chunk], r1[block_chunk], r2[block_chunk], r3[block_chunk];
  for (; count > 0; block += block_chunk, count -= block_chunk, z += tile_size) {
    const int64_t now = std::min(count, block_chunk);
    philox_words(stream, block, now, r0, r1, r2, r3);
#pragma omp simd
    for (int64_t i = 0; i < now; ++i) {
      const Pair front = normal_pair(r0[i], r1[i]), back = normal_pair(r2[i], r3[i]);
      z[4 * i] = front.first;
      z[4 * i + 1] = front.second;
      z[4 * i + 2] = back.first;
      z[4 * i + 3] = back.second;
    }
  }
}

// Noise of a tile into `z`. The element number is the C-order one whatever the memory format, so a
// channels_last tile takes each channel's run of pixels from that channel's own blocks. Both
// buffers hold tile_size + 8 floats: a run that starts inside a block still fills whole blocks.
inline void fill_noise(const Stream& stream, const Layout& layout, const Tile& tile, float* z,
                       float* scratch) {
  if (!layout.channels_last) {
    fill_blocks(stream, tile.first / 4, (tile.count + 3) / 4, z);
    return;
  }
  const int64_t pixel = tile.first / layout.channels, channel = tile.first % layout.channels;
  const int64_t width = std::min(layout.channels, tile.count);
  const int64_t pixels = tile.count / width;
  for (int64_t c = 0; c < width; ++c) {
    const int64_t element = (channel + c) * layout.pixels + pixel;
    const int64_t block = element / 4;
    fill_blocks(stream, block, (element + pixels + 3) / 4 - block, scratch);
    const float* run = scratch + element % 4;
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) z[i * width + c] = run[i];
  }
}

// Calls `work(begin, end)` on equal parts of `total` tiles, one part per thread; with one thread
// there is no trip through OpenMP, which costs more than a small step.
template <typename Work>
void for_tiles(int64_t total, int64_t elements, int threads, Work&& work) {
  const int64_t team = std::clamp<int64_t>(elements / parallel_grain, 1, std::max(threads, 1));
  if (team == 1) return work(int64_t{0}, total);
#pragma omp parallel for num_threads(static_cast<int>(team)) schedule(static)
  for (int64_t part = 0; part < team; ++part) {
    work(total * part / team, total * (part + 1) / team);
  }
}

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
