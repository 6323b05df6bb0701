// Finds the least of many lines at a point, for lines and points that arrive one after the other.
// It makes the shortest path over a separable table fast.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace fastsample {

// Lines must be added in order of falling slope.
class LowerEnvelope {
 public:
  explicit LowerEnvelope(int64_t capacity) { lines_.reserve(static_cast<size_t>(capacity)); }

  void clear() {
    lines_.clear();
    last_ = 0;
  }

  void add(double slope, double intercept, int32_t name) {
    if (intercept == std::numeric_limits<double>::infinity()) return;
    const Line line{slope, intercept, name};
    while (lines_.size() >= 2 && hides(lines_[lines_.size() - 2], lines_.back(), line))
      lines_.pop_back();
    lines_.push_back(line);
  }

  // Returns the name of the line that is least at x, or -1 if there is no line. Of equal lines it
  // is the one that was added first.
  int32_t least(double x) {
    const int64_t size = static_cast<int64_t>(lines_.size());
    if (size == 0) return -1;
    // The values along the envelope fall, then rise. Successive queries move little, so the search
    // gallops from the last answer.
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

  // Returns whether line b, between a and the newer c, is nowhere below both.
  static bool hides(const Line& a, const Line& b, const Line& c) {
    return (c.intercept - a.intercept) * (a.slope - b.slope) <=
           (b.intercept - a.intercept) * (a.slope - c.slope);
  }

  std::vector<Line> lines_;
  int64_t last_ = 0;
};

}  // namespace fastsample
