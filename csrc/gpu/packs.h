// Reads and writes packs of elements, and generates a pack's noise. Like gpu/indexing.h the code
// can be called on the host, so that tests run it on any machine.
#pragma once

#include <initializer_list>
#include <stdexcept>

#include "core/step.h"
#include "gpu/indexing.h"

namespace fastsample {

// Names the operands that a step kernel is compiled for. `plain` takes x and out; `noisy` generates
// noise too, from one seed for the batch, and `seeded` from a seed per sample: few-step sampling
// runs these thousands of times. `general` checks at run time which operands were passed.
enum class Variant { plain, noisy, seeded, general };

FS_HD constexpr bool makes_noise(Variant variant) {
  return variant == Variant::noisy || variant == Variant::seeded;
}

// How packs are read and written: 16-byte accesses, one element at a time (samples whose size or
// address is not a multiple of a pack), or one element at a time in channels_last order.
enum class Access { vector, scalar, channels_last };

// The number of 16-bit elements that a thread takes at once where it generates noise and does
// little else: 8, or 16, which shares the costs of a pack among more elements and needs more
// registers.
constexpr int noisy_width = 16;

template <typename T, Access access, Variant variant = Variant::general>
constexpr int width_of = access == Access::channels_last || sizeof(T) != 2  ? 4
                         : access == Access::vector && makes_noise(variant) ? noisy_width
                                                                            : 8;

template <typename T, Access access, Variant variant = Variant::general>
FS_HD Pack pack_at(const Cut& cut, uint32_t item) {
  if constexpr (access == Access::channels_last) {
    return channels_last_pack(cut, item);
  } else {
    return contiguous_pack<width_of<T, access, variant>>(cut, item);
  }
}

// Returns the memory position of element j of a pack, for accesses of one element.
template <Access access>
FS_HD int64_t position(const Cut& cut, const Pack& pack, uint32_t j, int halves, int half) {
  const int64_t sample = int64_t{pack.sample} * halves * cut.layout.size;
  if constexpr (access == Access::channels_last) {
    return sample + channels_last_position(cut, pack, j, halves, half);
  } else {
    return sample + half * cut.layout.size + pack.first + j;
  }
}

// Returns the memory position of a pack's first element, for vector accesses. Every pack is full
// then, so that only a tensor with two halves has anything between two packs.
template <int width>
FS_HD int64_t vector_position(const Cut& cut, const Pack& pack, int halves, int half) {
  const int64_t start = int64_t{pack.item} * width;
  return halves == 1 ? start : start + (int64_t{pack.sample} + half) * cut.layout.size;
}

// The bytes that one vector access moves.
struct alignas(16) Chunk {
  uint32_t words[4];
};

// Holds the elements of a pack between memory and arithmetic.
template <typename E, int width>
union Raw {
  static constexpr int chunks = width * static_cast<int>(sizeof(E)) / 16;
  Chunk chunk[chunks];
  uint32_t word[4 * chunks];
  E element[width];

  FS_HD arithmetic_t<E> widened(int j) const {
    if constexpr (std::is_same<E, BFloat16>::value) {
      // A word holds two: a shift or a mask is the whole conversion.
      return bits_float(j % 2 ? word[j / 2] & 0xffff0000u : word[j / 2] << 16);
    } else {
      return widen(element[j]);
    }
  }
};

// Reads the pack's elements of one operand into `values`; entries beyond the pack's count keep
// their values.
template <Access access, int width, typename E, typename F>
FS_HD void read(const void* tensor, const Cut& cut, const Pack& pack, int halves, int half,
                F (&values)[width]) {
  const E* base = static_cast<const E*>(tensor);
  if constexpr (access == Access::vector) {
    const Chunk* source =
        reinterpret_cast<const Chunk*>(base + vector_position<width>(cut, pack, halves, half));
    Raw<E, width> raw;
    FS_UNROLL
    for (int i = 0; i < raw.chunks; ++i) raw.chunk[i] = source[i];
    FS_UNROLL
    for (int j = 0; j < width; ++j) values[j] = raw.widened(j);
  } else {
    FS_UNROLL
    for (int j = 0; j < width; ++j) {
      if (static_cast<uint32_t>(j) < pack.count)
        values[j] = widen(base[position<access>(cut, pack, j, halves, half)]);
    }
  }
}

template <Access access, int width, typename E, typename F>
FS_HD void write(void* tensor, const Cut& cut, const Pack& pack, int halves, int half,
                 const F (&values)[width]) {
  E* base = static_cast<E*>(tensor);
  if constexpr (access == Access::vector) {
    Raw<E, width> raw;
    FS_UNROLL
    for (int j = 0; j < width; ++j) raw.element[j] = narrow<E>(values[j]);
    Chunk* target =
        reinterpret_cast<Chunk*>(base + vector_position<width>(cut, pack, halves, half));
    FS_UNROLL
    for (int i = 0; i < raw.chunks; ++i) target[i] = raw.chunk[i];
  } else {
    FS_UNROLL
    for (int j = 0; j < width; ++j) {
      if (static_cast<uint32_t>(j) < pack.count)
        base[position<access>(cut, pack, j, halves, half)] = narrow<E>(values[j]);
    }
  }
}

// Generates the pack's normals in registers, four per Philox call. Every pack's `first` is a
// multiple of 4.
template <int width, typename F>
FS_HD void make_noise(const Stream& stream, const RoundKeys& keys, const Pack& pack,
                      F (&z)[width]) {
  static_assert(width % 4 == 0, "a pack holds whole Philox blocks");
  FS_UNROLL
  for (int j = 0; j < width; j += 4) {
    const uint32_t block = pack.first / 4 + j / 4;
    const Words words = philox({block, stream.index_low, stream.index_high, stream.draw}, keys);
    const Pair front = normal_pair(words.r0, words.r1), back = normal_pair(words.r2, words.r3);
    z[j] = front.first;
    z[j + 1] = front.second;
    z[j + 2] = back.first;
    z[j + 3] = back.second;
  }
}

template <int width, typename F>
FS_HD void make_noise(const Stream& stream, const Pack& pack, F (&z)[width]) {
  make_noise(stream, round_keys(stream), pack, z);
}

// Returns whether every address allows 16-byte accesses.
template <typename Pointers>
bool all_aligned(const Pointers& pointers) {
  uintptr_t bits = 0;
  for (const void* p : pointers) bits |= reinterpret_cast<uintptr_t>(p);
  return bits % 16 == 0;
}

inline bool aligned(std::initializer_list<const void*> pointers) { return all_aligned(pointers); }

template <typename Pointer, int count>
bool aligned(Pointer* const (&pointers)[count]) {
  return all_aligned(pointers);
}

// Returns whether a pointer is not null.
inline bool any(const void* const (&pointers)[max_history]) {
  for (const void* p : pointers)
    if (p) return true;
  return false;
}

// Returns whether element numbers inside a sample, and packs in the batch, stay below 2^31: Divider
// is exact below it and 32-bit indices do not wrap.
inline bool countable(const Layout& layout) {
  const int64_t packs = (layout.size + 3) / 4;
  return packs < (int64_t{1} << 29) && layout.batch * packs < (int64_t{1} << 31);
}

inline void require_countable(const Layout& layout) {
  if (countable(layout)) return;
  throw std::invalid_argument(
      "native: a CUDA call takes samples below 2**31 elements, and below 2**31 packs of 4 in all; "
      "split the batch");
}

}  // namespace fastsample
