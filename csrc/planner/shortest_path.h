// Finds the cheapest path from time 0 to every time t, for every number of steps k, when the cost
// of a step depends only on the times t and s where it begins and ends.
//
//   best[t][k] = min over s < t of best[s][k - 1] + cost(t, s),     best[0][0] = 0
//
// This is algorithm 1 of Watson et al. 2021, "Learning to Efficiently Sample from Diffusion
// Probabilistic Models" (arXiv:2106.03802). There are two searches. cpu/table_paths.cpp takes any
// table of costs. separable_paths takes costs of the form cost(t, s) = A(s) + B(t) + P(s) Q(t),
// without a table, and finds the minimum on an envelope of lines.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "planner/lower_envelope.h"

namespace fastsample {

constexpr double infinite_cost = std::numeric_limits<double>::infinity();

constexpr int path_lanes = 16;  // budgets that one vector loop advances

struct TablePathOperands {
  const double* costs;    // (size, size), row t, column s < t; the rest is not read
  int64_t size, budgets;  // budgets: a multiple of path_lanes; those above size - 1 have no path
  double* best;           // (size, budgets + 1), every entry is written
};

// Names the cost of a step: its term of the bound with the small or the large variance, or the
// squared error times the time it covers. _EDGES in elbo.py holds the same numbers.
enum class StepCost : int { small = 0, large = 1, mse = 2 };

struct SeparablePathOperands {
  StepCost cost;
  const double* time;       // (size,) rising from 0
  const double* alpha_bar;  // (size,) 1 at t = 0
  const double* noise;      // (size,) 1 - alpha_bar, without cancellation
  const double* error;      // (size,) E||x0 - x0hat||^2; [0] is not read
  const double* decoder;    // (size,) cost(t, 0); [0] is not read
  double dims;
  int64_t size, budgets;
  double* best;     // (size, budgets + 1), every entry is written
  int32_t* origin;  // (size, budgets + 1): the s of each minimum, -1 without one
};

// Returns x - 1 + exp(-x) for x >= 0.
inline double excess(double x) {
  if (x > 0.5) return std::expm1(-x) + x;
  double series = 0.0;
  for (int n = 14; n >= 2; --n) series = (1.0 - series) * (x / n);  // Horner of sum (-x)^n / n!
  return series * x;
}

// Returns the cost of a step from time t to s >= 1, computed without a difference of large terms.
inline double step_cost(const SeparablePathOperands& o, int64_t t, int64_t s) {
  if (o.cost == StepCost::mse) return (o.time[t] - o.time[s]) * o.error[t];
  // The drop in alpha_bar is computed from the one of its two forms that keeps more digits.
  const double drop = o.noise[t] < 0.5 ? o.noise[t] - o.noise[s] : o.alpha_bar[s] - o.alpha_bar[t];
  if (o.cost == StepCost::small) return 0.5 * drop / (o.noise[s] * o.noise[t]) * o.error[t];
  const double log_ratio = std::log1p((o.noise[t] - o.noise[s]) / o.noise[s]);
  return 0.5 * o.dims * excess(log_ratio) + 0.5 * drop / (o.noise[t] * o.noise[t]) * o.error[t];
}

// Finds the paths of every budget in O(budgets size log size) time, without the table. Slopes must
// fall with s, so for "large" the lines are mirrored: x = -Q.
inline void separable_paths(const SeparablePathOperands& o) {
  const int64_t width = o.budgets + 1;
  std::fill(o.best, o.best + o.size * width, infinite_cost);
  std::fill(o.origin, o.origin + o.size * width, int32_t{-1});
  o.best[0] = 0.0;
  std::vector<double> previous(static_cast<size_t>(o.size), infinite_cost);
  std::vector<double> current(previous);
  for (int64_t t = 1; t < o.size; ++t) {
    previous[static_cast<size_t>(t)] = o.best[t * width + 1] = o.decoder[t];
    if (o.decoder[t] < infinite_cost) o.origin[t * width + 1] = 0;
  }
  LowerEnvelope envelope(o.size);
  for (int64_t k = 2; k <= o.budgets; ++k) {
    envelope.clear();
    std::fill(current.begin(), current.end(), infinite_cost);
    for (int64_t t = k; t < o.size; ++t) {
      const int64_t s = t - 1;
      const double before = previous[static_cast<size_t>(s)];
      double x = o.error[t];
      switch (o.cost) {
        case StepCost::mse:
          envelope.add(-o.time[s], before, static_cast<int32_t>(s));
          break;
        case StepCost::small:
          envelope.add(0.5 * o.alpha_bar[s] / o.noise[s], before, static_cast<int32_t>(s));
          break;
        case StepCost::large:
          envelope.add(0.5 * o.alpha_bar[s], before - 0.5 * o.dims * std::log(o.noise[s]),
                       static_cast<int32_t>(s));
          x = (o.error[t] / o.noise[t] - o.dims) / o.noise[t];
          break;
      }
      const int32_t origin = envelope.least(x);
      if (origin < 0) continue;
      const double cost = previous[static_cast<size_t>(origin)] + step_cost(o, t, origin);
      if (!(cost < infinite_cost)) continue;
      current[static_cast<size_t>(t)] = o.best[t * width + k] = cost;
      o.origin[t * width + k] = origin;
    }
    std::swap(previous, current);
  }
}

}  // namespace fastsample
