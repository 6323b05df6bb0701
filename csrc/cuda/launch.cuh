// Helps every CUDA launch: sets the current device, checks for errors and sizes the grid.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "core/operators.h"

namespace fastsample {
namespace cuda {

constexpr int block_size = 256;

inline void check(cudaError_t error, const char* name) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(name) + ": CUDA error: " + cudaGetErrorString(error));
}

// Makes `device` current and restores the previous one: the current device is shared with torch.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "device");
    if (previous_ != device) check(cudaSetDevice(device), "device");
    switched_ = previous_ != device;
  }
  ~DeviceGuard() {
    if (switched_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool switched_ = false;
};

// Calls `enqueue(stream)` with the target's device current, then checks for a launch error.
template <typename Enqueue>
void launch(const char* name, const Target& target, Enqueue&& enqueue) {
  const DeviceGuard guard(target.device);
  enqueue(reinterpret_cast<cudaStream_t>(target.stream));
  check(cudaGetLastError(), name);
}

// Returns the number of blocks, at most one full wave; threads loop over the items beyond it.
inline unsigned grid_size(uint32_t items, int device) {
  int processors = 0, threads = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device");
  check(cudaDeviceGetAttribute(&threads, cudaDevAttrMaxThreadsPerMultiProcessor, device), "device");
  const unsigned wave = static_cast<unsigned>(processors * (threads / block_size));
  const unsigned needed = (items + block_size - 1) / block_size;
  return needed < wave ? needed : wave;
}

}  // namespace cuda
}  // namespace fastsample
