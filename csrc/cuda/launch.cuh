// Helps every CUDA launch: sets the current device, checks for errors and sizes the grid.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
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

// Number of this thread's first item, and of the threads that share the items.
__device__ inline uint32_t first_item() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline uint32_t threads_of_grid() { return gridDim.x * blockDim.x; }

// Holds the multiprocessors of a device, and the blocks of one kernel that they hold at once.
struct Capacity {
  unsigned processors, blocks;
};

// Asks the driver once per kernel and device: how many blocks fit depends on the registers that the
// compiler gave the kernel.
template <auto kernel>
Capacity capacity(int device) {
  constexpr int most_devices = 64;
  static std::atomic<Capacity> known[most_devices];  // zero until asked for
  if (device < most_devices) {
    const Capacity found = known[device].load(std::memory_order_relaxed);
    if (found.blocks) return found;
  }
  int processors = 0, blocks = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, block_size, 0), "device");
  const Capacity found{static_cast<unsigned>(processors),
                       static_cast<unsigned>(processors * std::max(blocks, 1))};
  if (device < most_devices) known[device].store(found, std::memory_order_relaxed);
  return found;
}

// Launches a kernel whose threads loop over `items`, in at most one full wave of blocks: a second
// wave would leave most of the device idle at its end. Blocks are smaller where full ones would be
// fewer than the multiprocessors.
template <auto kernel, typename... Arguments>
void run_items(uint32_t items, int device, cudaStream_t stream, const Arguments&... arguments) {
  const Capacity most = capacity<kernel>(device);
  const auto blocks_of = [items](unsigned threads) { return (items + threads - 1) / threads; };
  unsigned threads = block_size;
  while (threads > 32 && blocks_of(threads) < most.processors) threads /= 2;
  const unsigned blocks = std::min(blocks_of(threads), most.blocks);
  kernel<<<blocks, threads, 0, stream>>>(arguments...);
}

}  // namespace cuda
}  // namespace fastsample
