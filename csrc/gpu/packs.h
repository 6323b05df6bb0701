// Reads and writes packs of elements, and generates a pack's noise. Like gpu/indexing.h the code
// can be called on the host, so that tests run it on any machine.
#pragma once

#include <initializer_list>
#include <stdexcept>

#include "core/step.h"
#include "gpu/indexing.h"

#if defined(__CUDA_ARCH__)
#define FS_UNROLL _Pragma("unroll")
#else
#define FS_UNROLL
#endif

namespace fastsample {

// How packs are read and written: 16-byte accesses, one element at a time (samples whose size or
// address is not a multiple of a pack), or one element at a time in channels_last order.
enum class Access { vector, scalar, channels_last };

template <typename T>
constexpr int pack_width = sizeof(T) == 2 ? 8 : 4;

template <typename T, Access access>
constexpr int width_of = access == Access::channels_last ? 4 : pack_width<T>;

template <typename T, Access access>
FS_HD Pack pack_at(const Cut& cut, uint32_t item) {
  if constexpr (access == Access::channels_last) {
    return channels_last_pack(cut, item);
  } else {
    return contiguous_pack<width_of<T, access>>(cut, item);
  }
}

template <Access access>
FS_HD int64_t position(const Cut& cut, const Pack& pack, uint32_t j, int halves, int half) {
  const int64_t sample = int64_t{pack.sample} * halves * cut.layout.size;
  if constexpr (access == Access::channels_last) {
    return sample + channels_last_position(cut, pack, j, halves, half);
  } else {
    return sample + half * cut.layout.size + pack.first + j;
  }
}

// The bytes that one vector access moves.
struct alignas(16) Chunk {
  uint32_t words[4];
};

// Reads the pack's elements of one operand into `values`; entries beyond the pack's count keep
// their values.
template <Access access, int width, typename E, typename F>
FS_HD void read(const void* tensor, const Cut& cut, const Pack& pack, int halves, int half,
                F (&values)[width]) {
  const E* base = static_cast<const E*>(tensor);
  if constexpr (access == Access::vector) {
    constexpr int chunks = width * static_cast<int>(sizeof(E)) / 16;
    const Chunk* source =
        reinterpret_cast<const Chunk*>(base + position<access>(cut, pack, 0, halves, half));
    union {
      Chunk chunk[chunks];
      E element[width];
    } raw;
    FS_UNROLL
    for (int i = 0; i < chunks; ++i) raw.chunk[i] = source[i];
    FS_UNROLL
    for (int j = 0; j < width; ++j) values[j] = widen(raw.element[j]);
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
    constexpr int chunks = width * static_cast<int>(sizeof(E)) / 16;
    union {
      Chunk chunk[chunks];
      E element[width];
    } raw;
    FS_UNROLL
    for (int j = 0; j < width; ++j) raw.element[j] = narrow<E>(values[j]);
    Chunk* target = reinterpret_cast<Chunk*>(base + position<access>(cut, pack, 0, halves, half));
    FS_UNROLL
    for (int i = 0; i < chunks; ++i) target[i] = raw.chunk[i];
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
FS_HD void make_noise(const Stream& stream, const Pack& pack, F (&z)[width]) {
  static_assert(width % 4 == 0, "a pack holds whole Philox blocks");
  FS_UNROLL
  for (int j = 0; j < width; j += 4) {
    const Words words = philox(stream, (pack.first + j) / 4);
    const Pair front = normal_pair(words.r0, words.r1), back = normal_pair(words.r2, words.r3);
    z[j] = front.first;
    z[j + 1] = front.second;
    z[j + 2] = back.first;
    z[j + 3] = back.second;
  }
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
