// The dynamic program over grids: cheapest paths from time 0 to every time, for every budget.
//
//   best[t][k] = min over s < t of best[s][k - 1] + cost(t, s),     best[0][0] = 0
//
// Watson et al. 2021, "Learning to Efficiently Sample from Diffusion Probabilistic Models"
// (arXiv:2106.03802), algorithm 1. Two forms: any table of costs, and tables that are separable
// plus rank one, cost(t, s) = A(s) + B(t) + P(s) Q(t), where the minimum lies on an envelope of
// lines.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace fastsample {

constexpr double infinite_cost = std::numeric_limits<double>::infinity();

constexpr int path_lanes = 16;  // budgets that advance together

struct TableOperands {
  const double* costs;    // (size, size), row t, column s < t; the rest is not read
  int64_t size, budgets;  // budgets: a multiple of path_lanes; those above size - 1 have no path
  double* best;           // (size, budgets + 1), filled whole
};

enum class Edge : int { small = 0, large = 1, mse = 2 };

struct SeparableOperands {
  Edge edge;
  const double* time;       // (size,) rising from 0
  const double* alpha_bar;  // (size,) 1 at t = 0
  const double* noise;      // (size,) 1 - alpha_bar, without cancellation
  const double* error;      // (size,) E||x0 - x0hat||^2; [0] is not read
  const double* decoder;    // (size,) cost(t, 0); [0] is not read
  double dims;
  int64_t size, budgets;
  double* best;     // (size, budgets + 1), filled whole
  int32_t* origin;  // the same: the s of each minimum, -1 where there is none
};

// x - 1 + exp(-x) for x >= 0.
inline double excess(double x) {
  if (x > 0.5) return std::expm1(-x) + x;
  double series = 0.0;
  for (int n = 14; n >= 2; --n) series = (1.0 - series) * (x / n);  // Horner of sum (-x)^n / n!
  return series * x;
}

// The cost of a step from time t to s >= 1, as in math: never a difference of large terms.
inline double edge_cost(const SeparableOperands& o, int64_t t, int64_t s) {
  if (o.edge == Edge::mse) return (o.time[t] - o.time[s]) * o.error[t];
  // alpha_bar_s - alpha_bar_t, from whichever of the two forms holds more digits.
  const double drop = o.noise[t] < 0.5 ? o.noise[t] - o.noise[s] : o.alpha_bar[s] - o.alpha_bar[t];
  if (o.edge == Edge::small) return 0.5 * drop / (o.noise[s] * o.noise[t]) * o.error[t];
  const double log_ratio = std::log1p((o.noise[t] - o.noise[s]) / o.noise[s]);
  return 0.5 * o.dims * excess(log_ratio) + 0.5 * drop / (o.noise[t] * o.noise[t]) * o.error[t];
}

// Minimum of lines that come in falling order of slope.
class Envelope {
 public:
  explicit Envelope(int64_t most) { lines_.reserve(static_cast<size_t>(most)); }

  void clear() {
    lines_.clear();
    last_ = 0;
  }

  void add(double slope, double intercept, int32_t name) {
    if (intercept == infinite_cost) return;
    const Line line{slope, intercept, name};
    while (lines_.size() >= 2 && hides(lines_[lines_.size() - 2], lines_.back(), line))
      lines_.pop_back();
    lines_.push_back(line);
  }

  // The line that is least at x; -1 if there is none. Of equal ones the earliest.
  int32_t least(double x) {
    const int64_t size = static_cast<int64_t>(lines_.size());
    if (size == 0) return -1;
    // Values along the envelope fall, then rise. Queries move little: gallop from the last answer.
    int64_t low = std::min(last_, size - 1), high = low, step = 1;
    if (low + 1 < size && falls(low, x)) {
      while (high + step < size - 1 && falls(high + step, x)) {
        high += step;
        step *= 2;
      }
      low = high + 1;
      high = std::min(high + step + 1, size - 1);
    } else {
      while (low - step >= 0 && !falls(low - step, x)) {
        low -= step;
        step *= 2;
      }
      high = low;
      low = std::max<int64_t>(low - step + 1, 0);
      if (high - step < 0) low = 0;
    }
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (falls(middle, x)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    last_ = low;
    return lines_[static_cast<size_t>(low)].name;
  }

 private:
  struct Line {
    double slope, intercept;
    int32_t name;
  };

  double value(int64_t i, double x) const {
    const Line& line = lines_[static_cast<size_t>(i)];
    return line.slope * x + line.intercept;
  }
  bool falls(int64_t i, double x) const { return value(i + 1, x) < value(i, x); }

  // Whether b is nowhere least between a and the newer c.
  static bool hides(const Line& a, const Line& b, const Line& c) {
    return (c.intercept - a.intercept) * (a.slope - b.slope) <=
           (b.intercept - a.intercept) * (a.slope - c.slope);
  }

  std::vector<Line> lines_;
  int64_t last_ = 0;
};

// Every budget of a separable table in O(budgets size log size) time, without the table. Slopes
// fall with s for every kind of edge (for "large" the line is turned around: x = -Q).
inline void separable_paths(const SeparableOperands& o) {
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
  Envelope envelope(o.size);
  for (int64_t k = 2; k <= o.budgets; ++k) {
    envelope.clear();
    std::fill(current.begin(), current.end(), infinite_cost);
    for (int64_t t = k; t < o.size; ++t) {
      const int64_t s = t - 1;
      const double before = previous[static_cast<size_t>(s)];
      double x = o.error[t];
      switch (o.edge) {
        case Edge::mse:
          envelope.add(-o.time[s], before, static_cast<int32_t>(s));
          break;
        case Edge::small:
          envelope.add(0.5 * o.alpha_bar[s] / o.noise[s], before, static_cast<int32_t>(s));
          break;
        case Edge::large:
          envelope.add(0.5 * o.alpha_bar[s], before - 0.5 * o.dims * std::log(o.noise[s]),
                       static_cast<int32_t>(s));
          x = (o.error[t] / o.noise[t] - o.dims) / o.noise[t];
          break;
      }
      const int32_t found = envelope.least(x);
      if (found < 0) continue;
      const double cost = previous[static_cast<size_t>(found)] + edge_cost(o, t, found);
      if (!(cost < infinite_cost)) continue;
      current[static_cast<size_t>(t)] = o.best[t * width + k] = cost;
      o.origin[t * width + k] = found;
    }
    std::swap(previous, current);
  }
}

}  // namespace fastsample
