// Defines bfloat16 and float16 for storage: 16 bits in memory, float in arithmetic. Conversions
// round to nearest even and keep NaN; on the host they are branch-free integer code, which
// compilers vectorise.
#pragma once

#include <type_traits>

#include "core/platform.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastsample {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

FS_HD float widen(float value) { return value; }
FS_HD double widen(double value) { return value; }

FS_HD float widen(BFloat16 value) { return bits_float(static_cast<uint32_t>(value.bits) << 16); }

FS_HD float widen(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  // The exponent is rebiased by 127 - 15 = 112, twice that for infinity and NaN; subnormals are
  // exact multiples of 2^-24.
  const uint32_t rebias = magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;
  const uint32_t normal = (magnitude << 13) + rebias;
  const float subnormal =
      static_cast<float>(static_cast<int32_t>(magnitude)) * 5.9604644775390625e-8f;
  return bits_float((magnitude < 0x400u ? float_bits(subnormal) : normal) | sign);
#endif
}

template <typename T>
FS_HD T
narrow(typename std::conditional<std::is_same<T, double>::value, double, float>::type value);

template <>
FS_HD float narrow<float>(float value) {
  return value;
}

template <>
FS_HD double narrow<double>(double value) {
  return value;
}

template <>
FS_HD BFloat16 narrow<BFloat16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
#endif
}

template <>
FS_HD Float16 narrow<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  // This follows F. Giesen's float_to_half_fast3_rtne: adding 0.5 aligns a subnormal's last bit
  // with float's.
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return {static_cast<uint16_t>((magnitude >= 0x47800000u ? special : finite) | sign)};
#endif
}

}  // namespace fastsample
