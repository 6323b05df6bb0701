// Computes the sums of core/elbo.h on the CPU, in double for every dtype. A tile of elements is
// read once and serves every node and scale while it stays in the first-level cache.
#include "core/elbo.h"

#include <algorithm>

#include "cpu/operators.h"

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

namespace {

constexpr int tile_size = 256;

struct Tile {
  double error2[tile_size], v[tile_size], x0[tile_size], x0hat[tile_size];
};

template <typename T>
void read(const ElboOperands& o, int64_t sample, int64_t first, int count, Tile& tile,
          double* sums) {
  const int64_t at = sample * o.size + first;
  const T* x0 = static_cast<const T*>(o.x0) + at;
  const T* x = static_cast<const T*>(o.x) + at;
  const T* m = static_cast<const T*>(o.out) + at + (o.learned ? sample * o.size : 0);
  const T* raw = o.learned ? m + o.size : m;
  double error = 0.0, epsilon = 0.0, v = 0.0;
#pragma omp simd reduction(+ : error, epsilon, v)
  for (int i = 0; i < count; ++i) {
    const Element<double> e =
        element(o, static_cast<double>(widen(x0[i])), static_cast<double>(widen(x[i])),
                static_cast<double>(widen(m[i])), static_cast<double>(widen(raw[i])));
    tile.error2[i] = e.error2;
    tile.v[i] = e.v;
    tile.x0[i] = e.x0;
    tile.x0hat[i] = e.x0hat;
    error += e.error2;
    epsilon += e.epsilon2;
    v += e.v;
  }
  sums[0] += error;
  sums[1] += epsilon;
  sums[2] += o.learned ? v : 0.0;
}

void add_node(const Tile& tile, int count, double a, double& excess, double& weighted) {
  double excess_sum = 0.0, weighted_sum = 0.0;
#pragma omp simd reduction(+ : excess_sum, weighted_sum)
  for (int i = 0; i < count; ++i) {
    const NodeTerms<double> terms = node_terms(a, tile.v[i], tile.error2[i]);
    excess_sum += terms.excess;
    weighted_sum += terms.weighted;
  }
  excess += excess_sum;
  weighted += weighted_sum;
}

double decoder(const Tile& tile, int count, double log_scale, double half_bin) {
  const double inverse = std::exp(-log_scale);
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < count; ++i) {
    sum += decoder_nll(tile.x0[i], tile.x0hat[i], inverse, half_bin);
  }
  return sum;
}

}  // namespace

void elbo_sums(const ElboOperands& o, [[maybe_unused]] const Target& target) {
  const int64_t chunks = num_chunks(o), width = sums_width(o);
#pragma omp parallel for num_threads(target.threads) schedule(static)
  for (int64_t item = 0; item < o.batch * chunks; ++item) {
    const int64_t sample = item / chunks, begin = item % chunks * o.chunk;
    const int64_t end = std::min(begin + o.chunk, o.size);
    double* sums = o.sums + item * width;
    std::fill(sums, sums + width, 0.0);
    Tile tile;
    for (int64_t first = begin; first < end; first += tile_size) {
      const int count = static_cast<int>(std::min<int64_t>(tile_size, end - first));
      dispatch(o.dtype, [&](auto type) {
        read<typename decltype(type)::type>(o, sample, first, count, tile, sums);
      });
      for (int64_t j = 0; j < o.num_nodes; ++j)
        add_node(tile, count, o.nodes[j], sums[fixed_sums + j], sums[fixed_sums + o.num_nodes + j]);
      for (int64_t j = 0; j < o.num_scales; ++j)
        sums[fixed_sums + 2 * o.num_nodes + j] +=
            decoder(tile, count, o.log_scales[j], 0.5 * o.bin_width);
    }
  }
}

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
