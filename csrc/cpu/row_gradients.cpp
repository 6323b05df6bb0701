// Computes gradients of the rows on the CPU: a thread sums whole samples, in double.
#include "core/row_gradients.h"

#include "cpu/operators.h"
#include "cpu/view.h"

namespace fastsample {
namespace cpu {
namespace FASTSAMPLE_ISA {

namespace {

template <typename T, typename M>
void add_tile(const RowGradientOperands& r, const View<T>& view, const M* m, Buffers<T>& buffers,
              double* sums) {
  using F = arithmetic_t<T>;
  const Row<F> row = view.row;
  const int64_t count = view.count;
  const T* grad = at<T>(r.grad_next, view.offset);
  const F* grad_x0 = at<F>(r.grad_x0, view.offset);
  const bool guided = view.u != nullptr;
  double p = 0, q = 0, lo = 0, hi = 0, w = 0, a = 0, b = 0, e = 0;
#pragma omp simd reduction(+ : p, q, lo, hi, a, b, e)
  for (int64_t i = 0; i < count; ++i) {
    const RowTerms<F> terms = row_terms<F>(row, widen(view.x[i]), widen(m[i]), widen(grad[i]),
                                           grad_x0 ? grad_x0[i] : F(0));
    buffers.next[i] = terms.m;
    p += terms.p;
    q += terms.q;
    lo += terms.lo;
    hi += terms.hi;
    a += terms.a;
    b += terms.b;
    e += terms.e;
  }
  if (guided) {
#pragma omp simd reduction(+ : w)
    for (int64_t i = 0; i < count; ++i)
      w += static_cast<double>(buffers.next[i] * (widen(view.c[i]) - widen(view.u[i])));
  }
  sums[Column::p] += p;
  sums[Column::q] += q;
  sums[Column::lo] += lo;
  sums[Column::hi] += hi;
  sums[Column::w] += w;
  sums[Column::a] += a;
  sums[Column::b] += b;
  sums[Column::e] += e;
  for (int n = 0; n < max_history; ++n) {
    const F* h = view.history[n];
    if (!h) continue;
    double c = 0;
#pragma omp simd reduction(+ : c)
    for (int64_t i = 0; i < count; ++i) c += static_cast<double>(widen(grad[i]) * h[i]);
    sums[Column::c1 + n] += c;
  }
  if (row.d == 0) return;
  const bool learned = view.v && reads_variance(row);
  double d = 0, lv_lo = 0, lv_hi = 0;
  const auto add = [&](const auto* z) {
#pragma omp simd reduction(+ : d, lv_lo, lv_hi)
    for (int64_t i = 0; i < count; ++i) {
      const NoiseTerms<F> terms = noise_terms<F>(row, learned, learned ? F(widen(view.v[i])) : F(0),
                                                 static_cast<F>(widen(z[i])), F(widen(grad[i])));
      d += terms.d;
      lv_lo += terms.lv_lo;
      lv_hi += terms.lv_hi;
    }
  };
  if (view.noise)
    add(view.noise);
  else
    add(view.z);
  sums[Column::d] += d;
  sums[Column::lv_lo] += lv_lo;
  sums[Column::lv_hi] += lv_hi;
}

template <typename T>
void all_samples(const RowGradientOperands& r, [[maybe_unused]] int threads) {
  const StepOperands& o = r.forward;
  const Tiling tiling(o.layout);
#pragma omp parallel num_threads(threads) if (o.layout.batch * o.layout.size > parallel_grain)
  {
    Buffers<T> buffers;
#pragma omp for schedule(static)
    for (int64_t sample = 0; sample < o.layout.batch; ++sample) {
      double* sums = r.sums + sample * Column::count;
      std::fill_n(sums, Column::count, 0.0);
      for (int64_t i = 0; i < tiling.per_sample; ++i) {
        const View<T> view = make_view(o, tiling[sample * tiling.per_sample + i], buffers);
        with_guided(view, buffers, [&](const auto* m) { add_tile(r, view, m, buffers, sums); });
      }
    }
  }
}

}  // namespace

void row_gradients(const RowGradientOperands& r, const Target& target) {
  dispatch(r.forward.dtype,
           [&](auto tag) { all_samples<typename decltype(tag)::type>(r, target.threads); });
}

}  // namespace FASTSAMPLE_ISA
}  // namespace cpu
}  // namespace fastsample
