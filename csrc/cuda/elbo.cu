// Computes the sums of core/elbo.h on CUDA.
//
// Arithmetic limits the speed. An element and node take about 22 instructions, an element and scale
// four uses of the special-function unit, against 4 to 16 bytes per element for all of them. A
// block copies a tile of elements to shared memory; then each thread owns one node (or scale) and a
// slice of the tile, so that its sums stay in registers and a warp reads the same element by
// broadcast. There are no atomics, so that every run gives the same sums.
#include "core/elbo.h"
#include "cuda/launch.cuh"
#include "cuda/operators.h"

namespace fastsample {
namespace cuda {

namespace {

constexpr int quad = 4;  // elements a thread reads at once
constexpr int tile_size = quad * block_size;

template <typename F>
struct alignas(2 * sizeof(F)) Pair {  // read as one word of twice the width
  F first, second;
};

template <typename F>
struct Tile {
  Pair<F> spread[tile_size];  // v, error2
  Pair<F> centre[tile_size];  // x0, x0hat
};

template <typename T>
struct alignas(quad * sizeof(T)) Quad {
  T values[quad];
};

template <typename T, bool wide>
__device__ Quad<T> read(const T* from, int count) {
  Quad<T> four;
  if constexpr (wide) {
    four = *reinterpret_cast<const Quad<T>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < quad; ++i) four.values[i] = from[i < count ? i : 0];
  }
  return four;
}

// Returns the sum of a value over the block. Every thread of the block must call it.
__device__ double block_sum(double value, double* scratch) {
  scratch[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = block_size / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
    __syncthreads();
  }
  const double sum = scratch[0];
  __syncthreads();
  return sum;
}

// Assigns a thread one of `count` columns and a slice of each tile.
struct Share {
  int column, slice, slices;
  bool active;
  __device__ explicit Share(int count) {
    slices = count > 0 ? block_size / count : 0;
    slice = count > 0 ? static_cast<int>(threadIdx.x) / count : 0;
    column = static_cast<int>(threadIdx.x) - slice * count;
    active = slice < slices;
  }
};

// Adds the slices of each column and writes the sums. Every thread of the block must call it.
__device__ void write_columns(const Share& share, int count, double value, double* scratch,
                              double* out) {
  scratch[threadIdx.x] = value;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) {
    double sum = 0.0;
    for (int s = 0; s < share.slices; ++s) sum += scratch[s * count + threadIdx.x];
    out[threadIdx.x] = sum;
  }
  __syncthreads();
}

// blockIdx.x is the chunk, y the sample, z the group of at most 256 nodes and 256 scales. `wide`
// means that every quad of a sample is whole and aligned.
template <typename T, bool wide>
__global__ void __launch_bounds__(block_size) elbo_kernel(const ElboOperands o) {
  using F = arithmetic_t<T>;
  __shared__ Tile<F> tile;
  __shared__ double scratch[block_size];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * o.chunk;
  const int64_t end = begin + o.chunk < o.size ? begin + o.chunk : o.size;
  const int64_t group = static_cast<int64_t>(blockIdx.z) * block_size;
  const auto within = [&](int64_t number) {
    const int64_t left = number - group;
    return static_cast<int>(left < 0 ? 0 : left < block_size ? left : block_size);
  };
  const int nodes = within(o.num_nodes), scales = within(o.num_scales);
  const Share node(nodes), scale(scales);
  const F a = nodes > 0 && node.active ? static_cast<F>(o.nodes[group + node.column]) : F(0);
  const F inverse = scales > 0 && scale.active
                        ? static_cast<F>(::exp(-o.log_scales[group + scale.column]))
                        : F(0);
  const F half_bin = static_cast<F>(0.5 * o.bin_width);

  const int64_t sample = blockIdx.y;
  const T* x0 = static_cast<const T*>(o.x0) + sample * o.size;
  const T* x = static_cast<const T*>(o.x) + sample * o.size;
  const T* m = static_cast<const T*>(o.out) + sample * o.size * (o.learned ? 2 : 1);
  const T* raw = o.learned ? m + o.size : m;

  double error = 0.0, epsilon = 0.0, v = 0.0, excess = 0.0, weighted = 0.0, nll = 0.0;
  for (int64_t first = begin; first < end; first += tile_size) {
    const int count = static_cast<int>(end - first < tile_size ? end - first : tile_size);
    const int mine = quad * static_cast<int>(threadIdx.x);
    if (mine < count) {
      const int64_t at = first + mine;
      const int left = count - mine;
      const Quad<T> four_x0 = read<T, wide>(x0 + at, left), four_x = read<T, wide>(x + at, left),
                    four_m = read<T, wide>(m + at, left), four_v = read<T, wide>(raw + at, left);
#pragma unroll
      for (int i = 0; i < quad; ++i) {
        if (i >= left) break;
        const Element<F> e = element(o, widen(four_x0.values[i]), widen(four_x.values[i]),
                                     widen(four_m.values[i]), widen(four_v.values[i]));
        tile.spread[mine + i] = {e.v, e.error2};
        tile.centre[mine + i] = {e.x0, e.x0hat};
        error += e.error2;
        epsilon += e.epsilon2;
        v += e.v;
      }
    }
    __syncthreads();
    if (node.active) {
      F excess_part = F(0), weighted_part = F(0);
#pragma unroll 4
      for (int i = node.slice; i < count; i += node.slices) {
        const Pair<F> at = tile.spread[i];
        const NodeTerms<F> terms = node_terms(a, at.first, at.second);
        excess_part += terms.excess;
        weighted_part += terms.weighted;
      }
      excess += excess_part;
      weighted += weighted_part;
    }
    if (scale.active) {
      F part = F(0);
#pragma unroll 4
      for (int i = scale.slice; i < count; i += scale.slices) {
        const Pair<F> at = tile.centre[i];
        part += decoder_nll(at.first, at.second, inverse, half_bin);
      }
      nll += part;
    }
    __syncthreads();
  }

  double* sums = o.sums + (sample * gridDim.x + blockIdx.x) * sums_width(o);
  if (group == 0) {
    const double fixed[fixed_sums] = {block_sum(error, scratch), block_sum(epsilon, scratch),
                                      block_sum(o.learned ? v : 0.0, scratch)};
    if (threadIdx.x == 0)
      for (int i = 0; i < fixed_sums; ++i) sums[i] = fixed[i];
  }
  double* out = sums + fixed_sums + group;
  write_columns(node, nodes, excess, scratch, out);
  write_columns(node, nodes, weighted, scratch, out + o.num_nodes);
  write_columns(scale, scales, nll, scratch, out + 2 * o.num_nodes);
}

}  // namespace

void elbo_sums(const ElboOperands& o, const Target& target) {
  if (o.batch == 0 || o.size == 0) return;
  const int64_t columns = o.num_nodes > o.num_scales ? o.num_nodes : o.num_scales;
  const int64_t groups = columns > 0 ? (columns + block_size - 1) / block_size : 1;
  constexpr int64_t most = 65535;  // bound on a grid's second and third dimension
  if (o.batch > most || groups > most)
    throw std::invalid_argument("elbo_sums: at most 65535 samples a call");
  const dim3 grid(static_cast<unsigned>(num_chunks(o)), static_cast<unsigned>(o.batch),
                  static_cast<unsigned>(groups));
  launch("elbo_sums", target, [&](cudaStream_t stream) {
    dispatch(o.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const auto addresses = reinterpret_cast<uintptr_t>(o.x0) | reinterpret_cast<uintptr_t>(o.x) |
                             reinterpret_cast<uintptr_t>(o.out);
      if (addresses % sizeof(Quad<T>) == 0 && o.size % quad == 0 && o.chunk % quad == 0)
        elbo_kernel<T, true><<<grid, block_size, 0, stream>>>(o);
      else
        elbo_kernel<T, false><<<grid, block_size, 0, stream>>>(o);
    });
  });
}

}  // namespace cuda
}  // namespace fastsample
