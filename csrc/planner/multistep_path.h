// Finds shortest paths for multistep samplers, whose steps read earlier x0's: the cost of a step
// from t to s depends on the time r before t, so the search goes over pairs of neighbouring times
// (s, t).
//
//   best[0][s][t] = first[t][s]
//   best[k][s][t] = min over r > t of best[k - 1][t][r] + costs[t][s][r]
//
// The search is exact and takes O(K n^3 / 6) time for K steps and n times.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace fastsample {

struct MultistepPathOperands {
  const double* first;  // (size, size), row t, column s: a path's first step, with its start
  const double* costs;  // (size, size, size): t, s, r; read for s < t < r
  int64_t size, budgets;
  double* best;     // (budgets, size, size): k, s, t; every entry is written
  int32_t* origin;  // (budgets, size, size): the r of each minimum, -1 without one
};

inline void multistep_paths(const MultistepPathOperands& o) {
  constexpr double infinite = std::numeric_limits<double>::infinity();
  const int64_t n = o.size, plane = n * n;
  std::fill(o.best, o.best + o.budgets * plane, infinite);
  std::fill(o.origin, o.origin + o.budgets * plane, -1);
  for (int64_t t = 1; t < n; ++t)
    for (int64_t s = 0; s < t; ++s) o.best[s * n + t] = o.first[t * n + s];
  for (int64_t k = 1; k < o.budgets; ++k) {
    const double* before = o.best + (k - 1) * plane;
    double* best = o.best + k * plane;
    int32_t* origin = o.origin + k * plane;
    for (int64_t t = 1; t < n; ++t) {
      const double* arrived = before + t * n;
      for (int64_t s = 0; s < t; ++s) {
        const double* costs = o.costs + t * plane + s * n;
        double least = infinite;
#pragma omp simd reduction(min : least)
        for (int64_t r = t + 1; r < n; ++r) least = std::min(least, arrived[r] + costs[r]);
        if (!(least < infinite)) continue;
        best[s * n + t] = least;
        int64_t r = t + 1;
        while (arrived[r] + costs[r] != least) ++r;  // the smallest of equals
        origin[s * n + t] = static_cast<int32_t>(r);
      }
    }
  }
}

}  // namespace fastsample
