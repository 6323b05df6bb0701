// Finds shortest paths over a table of costs by a min-plus matrix product, blocked for registers
// and caches.
#include "cpu/operators.h"
#include "planner/shortest_path.h"

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int tile_times = 8;  // times whose minima are held in registers
#else
constexpr int tile_times = 4;
#endif
constexpr int64_t block_times = 64, block_origins = 128;

// Sets out[r][j] = min(out[r][j], min over s of from[s][j] + costs[r][s]).
template <int times>
void relax(const double* costs, int64_t size, const double* from, int64_t from_stride,
           int64_t origins, double* out, int64_t out_stride) {
  double least[times][path_lanes];
  for (int r = 0; r < times; ++r)
    for (int j = 0; j < path_lanes; ++j) least[r][j] = out[r * out_stride + j];
  for (int64_t s = 0; s < origins; ++s, from += from_stride) {
    for (int r = 0; r < times; ++r) {
      const double edge = costs[r * size + s];
#pragma omp simd
      for (int j = 0; j < path_lanes; ++j) {
        const double cost = from[j] + edge;
        least[r][j] = cost < least[r][j] ? cost : least[r][j];
      }
    }
  }
  for (int r = 0; r < times; ++r)
    for (int j = 0; j < path_lanes; ++j) out[r * out_stride + j] = least[r][j];
}

}  // namespace

void table_paths(const TablePathOperands& o, [[maybe_unused]] const Target& target) {
  const int64_t width = o.budgets + 1, tiles = o.budgets / path_lanes;
  std::fill(o.best, o.best + o.size * width, infinite_cost);
  o.best[0] = 0.0;
#pragma omp parallel num_threads(target.threads)
  {
    // Rows of `best` are far apart in memory; copied next to each other, the origins of a block fit
    // the first-level cache.
    alignas(64) double packed[block_origins * path_lanes];
    for (int64_t first = 0; first < o.size; first += block_times) {
      const int64_t last = std::min(first + block_times, o.size);
      // Take the steps from origins before the block, whose costs are final for every budget.
#pragma omp for schedule(dynamic, 1)
      for (int64_t tile = 0; tile < tiles; ++tile) {
        double* best = o.best + tile * path_lanes;
        for (int64_t begin = 0; begin < first; begin += block_origins) {
          const int64_t origins = std::min(block_origins, first - begin);
          for (int64_t s = 0; s < origins; ++s) {
            std::copy_n(best + (begin + s) * width, path_lanes, packed + s * path_lanes);
          }
          const double* costs = o.costs + begin;
          int64_t t = first;
          for (; t + tile_times <= last; t += tile_times)
            relax<tile_times>(costs + t * o.size, o.size, packed, path_lanes, origins,
                              best + t * width + 1, width);
          for (; t < last; ++t)
            relax<1>(costs + t * o.size, o.size, packed, path_lanes, origins, best + t * width + 1,
                     width);
        }
      }
      // Take the steps inside the block in order: each time needs the final costs of those before.
#pragma omp single
      for (int64_t t = std::max<int64_t>(first, 1); t < last; ++t) {
        for (int64_t tile = 0; tile < tiles; ++tile) {
          double* best = o.best + tile * path_lanes;
          relax<1>(o.costs + t * o.size + first, o.size, best + first * width, width, t - first,
                   best + t * width + 1, width);
        }
      }
    }
  }
}

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
