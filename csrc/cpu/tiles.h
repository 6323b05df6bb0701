// Cuts a batch into tiles that stay in the first-level cache, and generates the noise of a tile.
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
constexpr int64_t parallel_grain = 16 * 1024;  // elements per thread that make it worth waking

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

// Writes the numbers of four arrays in turn, one of each, `count` times; the arrays are aligned.
inline void interleave(const float* first, const float* second, const float* third,
                       const float* fourth, int64_t count, float* to) {
  int64_t i = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
  for (; i + 8 <= count; i += 8) {
    const __m256 a = _mm256_load_ps(first + i), b = _mm256_load_ps(second + i);
    const __m256 c = _mm256_load_ps(third + i), d = _mm256_load_ps(fourth + i);
    // Half h of a vector holds numbers 4h .. 4h + 3. A pair is (a, b) or (c, d) of two of them, a
    // quad all four arrays of one.
    const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
    const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
    const __m256 quad0 = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
    const __m256 quad1 = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
    const __m256 quad2 = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
    const __m256 quad3 = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
    _mm256_storeu_ps(to + 4 * i, _mm256_permute2f128_ps(quad0, quad1, 0x20));
    _mm256_storeu_ps(to + 4 * i + 8, _mm256_permute2f128_ps(quad2, quad3, 0x20));
    _mm256_storeu_ps(to + 4 * i + 16, _mm256_permute2f128_ps(quad0, quad1, 0x31));
    _mm256_storeu_ps(to + 4 * i + 24, _mm256_permute2f128_ps(quad2, quad3, 0x31));
  }
#endif
#pragma omp simd
  for (int64_t j = i; j < count; ++j) {
    to[4 * j] = first[j];
    to[4 * j + 1] = second[j];
    to[4 * j + 2] = third[j];
    to[4 * j + 3] = fourth[j];
  }
}

// Writes four normals for each of `count` blocks.
template <typename Blocks>
void fill_blocks(const Stream& stream, const Blocks& blocks, int64_t count, float* z) {
  alignas(64) uint32_t r0[block_chunk], r1[block_chunk], r2[block_chunk], r3[block_chunk];
  for (int64_t begin = 0; begin < count; begin += block_chunk, z += 4 * block_chunk) {
    const int64_t now = std::min(count - begin, block_chunk);
    philox_words(stream, blocks, begin, now, r0, r1, r2, r3);
    alignas(64) float z0[block_chunk], z1[block_chunk], z2[block_chunk], z3[block_chunk];
#pragma omp simd
    for (int64_t i = 0; i < now; ++i) {
      const Pair front = normal_pair(r0[i], r1[i]), back = normal_pair(r2[i], r3[i]);
      z0[i] = front.first;
      z1[i] = front.second;
      z2[i] = back.first;
      z3[i] = back.second;
    }
    interleave(z0, z1, z2, z3, now, z);
  }
}

// Working memory of fill_tile_noise, sized for the worst case: in a channels_last tile of one pixel
// every element needs its own block, and with two pixels a run may straddle two blocks.
struct NoiseScratch {
  alignas(64) float normals[4 * tile_size];
  alignas(64) uint32_t blocks[tile_size + philox_group];
};

// Writes the noise of a tile to `z`, which has room for whole blocks (tile_size is a multiple of
// 4). Elements are numbered in C order in every memory format, so a channels_last tile takes each
// channel's run of pixels from that channel's blocks; all runs are computed together.
inline void fill_tile_noise(const Stream& stream, const Layout& layout, const Tile& tile, float* z,
                            NoiseScratch& scratch) {
  if (!layout.channels_last) {
    fill_blocks(stream, Run{tile.first / 4}, (tile.count + 3) / 4, z);
    return;
  }
  const int64_t pixel = tile.first / layout.channels, channel = tile.first % layout.channels;
  const int64_t width = std::min(layout.channels, tile.count);
  const int64_t pixels = tile.count / width;
  const auto first_element = [&](int64_t c) { return (channel + c) * layout.pixels + pixel; };
  int64_t count = 0;
  for (int64_t c = 0; c < width; ++c) {
    const int64_t end = (first_element(c) + pixels + 3) / 4;
    for (int64_t block = first_element(c) / 4; block < end; ++block) {
      scratch.blocks[count++] = static_cast<uint32_t>(block);
    }
  }
  std::fill_n(scratch.blocks + count, philox_group, 0u);
  fill_blocks(stream, List{scratch.blocks}, count, scratch.normals);
  const float* run = scratch.normals;
  for (int64_t c = 0; c < width; ++c) {
    const int64_t element = first_element(c);
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) z[i * width + c] = run[element % 4 + i];
    run += 4 * ((element + pixels + 3) / 4 - element / 4);
  }
}

// Calls `work(begin, end)` on equal parts of `total` tiles, one part per thread. With one thread it
// does not enter OpenMP, which would cost more than a small step.
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
