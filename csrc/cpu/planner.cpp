// The dynamic program over a table of costs: a min-plus matrix product, in registers and caches.
#include "core/planner.h"

#include "cpu/backend.h"

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

namespace {

constexpr int lanes = 16;      // budgets of a register tile
constexpr int tile_times = 4;  // times of a register tile
constexpr int64_t block_times = 64, block_origins = 256;

// out[r][j] = min(out[r][j], min over origins of best[s][j] + costs[r][s]).
template <int times, bool full>
void relax(const double* costs, int64_t size, const double* best, int64_t width, double* out,
           int64_t begin, int64_t end, int count) {
  const int used = full ? lanes : count;
  double least[times][lanes];
  for (int r = 0; r < times; ++r)
    for (int j = 0; j < used; ++j) least[r][j] = out[r * width + j];
  for (int64_t s = begin; s < end; ++s) {
    const double* from = best + s * width;
    for (int r = 0; r < times; ++r) {
      const double edge = costs[r * size + s];
#pragma omp simd
      for (int j = 0; j < used; ++j) {
        const double cost = from[j] + edge;
        least[r][j] = cost < least[r][j] ? cost : least[r][j];
      }
    }
  }
  for (int r = 0; r < times; ++r)
    for (int j = 0; j < used; ++j) out[r * width + j] = least[r][j];
}

template <int times>
void relax(const TableOperands& o, int64_t t, int64_t k, int64_t begin, int64_t end) {
  const int64_t width = o.budgets + 1;
  const int count = static_cast<int>(std::min<int64_t>(lanes, o.budgets - k));
  auto run = count == lanes ? &relax<times, true> : &relax<times, false>;
  run(o.costs + t * o.size, o.size, o.best + k, width, o.best + t * width + k + 1, begin, end,
      count);
}

}  // namespace

void table_paths(const TableOperands& o, [[maybe_unused]] int threads) {
  std::fill(o.best, o.best + o.size * (o.budgets + 1), infinite_cost);
  o.best[0] = 0.0;
  const int64_t tiles = (o.budgets + lanes - 1) / lanes;
#pragma omp parallel num_threads(threads)
  for (int64_t first = 0; first < o.size; first += block_times) {
    const int64_t last = std::min(first + block_times, o.size);
    // Origins before the block are final for every budget.
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t begin = 0; begin < first; begin += block_origins) {
        const int64_t end = std::min(begin + block_origins, first);
        int64_t t = first;
        for (; t + tile_times <= last; t += tile_times)
          relax<tile_times>(o, t, tile * lanes, begin, end);
        for (; t < last; ++t) relax<1>(o, t, tile * lanes, begin, end);
      }
    }
    // Inside it one time after the other.
#pragma omp single
    for (int64_t t = std::max<int64_t>(first, 1); t < last; ++t) {
      for (int64_t k = 0; k < o.budgets; k += lanes) relax<1>(o, t, k, first, t);
    }
  }
}

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
