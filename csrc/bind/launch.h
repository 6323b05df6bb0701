// From Python's integers to a kernel: addresses become pointers, a device number chooses the back
// end, and the interpreter lock is released meanwhile.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>

#if defined(FASTSAMPLE_WITH_CUDA)
#include "cuda/operators.h"
#endif

namespace fastsample {

// An address as torch gives it; 0 stands for "no tensor".
template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

constexpr int cpu_device = -1;
constexpr int emulated_device = -2;  // tests only: the CUDA threads' code in a loop on the host

// Runs on the CPU, emulated, or on that CUDA device and stream.
template <typename Operands>
void launch(const Operands& operands, int device, uintptr_t stream, int threads,
            void (*on_cpu)(const Operands&, int), void (*on_threads)(const Operands&),
            [[maybe_unused]] void (*on_cuda)(const Operands&, int, uintptr_t)) {
  pybind11::gil_scoped_release release;
  if (device == cpu_device) return on_cpu(operands, threads);
  if (device == emulated_device && on_threads) return on_threads(operands);
#if defined(FASTSAMPLE_WITH_CUDA)
  on_cuda(operands, device, stream);
#else
  (void)stream;
  throw std::runtime_error(
      "fastsample was built without CUDA; rebuild with -C cmake.define.FASTSAMPLE_CUDA=ON");
#endif
}

#if defined(FASTSAMPLE_WITH_CUDA)
#define FS_CUDA(function) &cuda::function
#else
#define FS_CUDA(function) nullptr
#endif

}  // namespace fastsample
