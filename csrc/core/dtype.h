// Defines the element types of tensors, their codes in Python, and the type each is computed in.
#pragma once

#include <stdexcept>

#include "core/half.h"

namespace fastsample {

// DTYPE_CODES in fastsample/ops holds the same numbers.
enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3 };

// Arithmetic is float for float32 and the 16-bit types, double for float64.
template <typename T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <typename T>
using arithmetic_t = typename Arithmetic<T>::type;

// Carries a type as an argument of a generic lambda.
template <typename T>
struct Tag {
  using type = T;
};

// Calls `function(Tag<T>{})` with the C++ type behind a dtype code.
template <typename Function>
void dispatch(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::float32:
      return function(Tag<float>{});
    case DType::bfloat16:
      return function(Tag<BFloat16>{});
    case DType::float16:
      return function(Tag<Float16>{});
    case DType::float64:
      return function(Tag<double>{});
  }
  throw std::invalid_argument("native: unknown dtype code");
}

}  // namespace fastsample
