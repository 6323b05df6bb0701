// Computes which elements a GPU thread works on. The code can be called on the host, so that tests
// check on any machine that every element is visited exactly once and gets its own noise.
//
// Work is cut into packs of W elements that follow one another in C order inside one sample (W a
// multiple of 4, the size of a Philox block). Contiguous tensors read a pack with 16-byte accesses.
// In channels_last tensors a pack is 4 pixels of one channel and neighbouring packs are
// neighbouring channels, so that a warp's accesses together cover whole cache lines.
#pragma once

#include "core/operands.h"

namespace fastsample {

// Divides numbers below 2^31 by a constant with multiply, add and shift (Granlund & Montgomery
// 1994).
struct Divider {
  uint32_t divisor, multiplier, shift;

  static Divider by(uint32_t divisor) {
    uint32_t shift = 0;
    while ((uint64_t{1} << shift) < divisor) ++shift;
    const uint64_t multiplier =
        ((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor)) / divisor + 1;
    return {divisor, static_cast<uint32_t>(multiplier), shift};
  }

  FS_HD uint32_t divide(uint32_t n) const {
#if defined(__CUDA_ARCH__)
    return (__umulhi(n, multiplier) + n) >> shift;
#else
    return static_cast<uint32_t>(((uint64_t{n} * multiplier >> 32) + n) >> shift);
#endif
  }
};

// Describes how a batch is cut into packs; computed once per launch.
struct Cut {
  Layout layout;
  uint32_t packs;    // per sample
  uint32_t items;    // in the batch, below 2^31
  bool whole_quads;  // channels_last: packs never straddle channels
  Divider by_packs;
  Divider by_minor;  // channels_last: by channels (whole quads) or by pixels

  static Cut of(const Layout& layout, int width) {
    Cut cut{};
    cut.layout = layout;
    cut.packs = static_cast<uint32_t>((layout.size + width - 1) / width);
    cut.items = static_cast<uint32_t>(layout.batch) * cut.packs;
    cut.whole_quads = layout.channels_last && layout.pixels % 4 == 0;
    cut.by_packs = Divider::by(cut.packs ? cut.packs : 1);
    const int64_t minor = cut.whole_quads ? layout.channels : layout.pixels;
    cut.by_minor = Divider::by(minor > 0 ? static_cast<uint32_t>(minor) : 1);
    return cut;
  }
};

// One pack: `item` is its number in the batch, `first` its first element in C order, `count` how
// many of its W elements exist. A channels_last pack has 4 elements; it keeps the channel of each,
// and the first memory position of its pixel in a tensor with one half.
struct Pack {
  uint32_t item, sample, first, count;
  uint32_t channel[4], pixel_position[4];
};

template <int width>
FS_HD Pack contiguous_pack(const Cut& cut, uint32_t item) {
  const uint32_t sample = cut.by_packs.divide(item);
  const uint32_t first = (item - sample * cut.packs) * width;
  const uint32_t left = static_cast<uint32_t>(cut.layout.size) - first;
  return {item, sample, first, left < width ? left : width, {}, {}};
}

FS_HD Pack channels_last_pack(const Cut& cut, uint32_t item) {
  Pack pack = contiguous_pack<4>(cut, item);
  const auto pixels = static_cast<uint32_t>(cut.layout.pixels);
  const auto channels = static_cast<uint32_t>(cut.layout.channels);
  const uint32_t dividend = cut.whole_quads ? pack.first / 4 : pack.first;
  const uint32_t quotient = cut.by_minor.divide(dividend);
  const uint32_t remainder = dividend - quotient * cut.by_minor.divisor;
  uint32_t channel = cut.whole_quads ? remainder : quotient;
  uint32_t pixel = cut.whole_quads ? quotient * 4 : remainder;
  if (cut.whole_quads) pack.first = channel * pixels + pixel;
  FS_UNROLL
  for (int j = 0; j < 4; ++j, ++pixel) {
    if (pixel == pixels) {  // the pack goes on in the next channel
      pixel = 0;
      ++channel;
    }
    pack.channel[j] = channel;
    pack.pixel_position[j] = pixel * channels;
  }
  return pack;
}

// Returns the memory position, within a sample, of element `first + j` of a channels_last pack. A
// tensor with two halves (prediction and v) has twice the channels.
FS_HD int64_t channels_last_position(const Cut& cut, const Pack& pack, uint32_t j, int halves,
                                     int half) {
  return int64_t{pack.pixel_position[j]} * halves + half * cut.layout.channels + pack.channel[j];
}

}  // namespace fastsample
