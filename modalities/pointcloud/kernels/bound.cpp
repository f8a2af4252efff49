// Lower bounds of the earth mover's distance, from cheap to dear: what a search for near clouds asks first.

#include "auction.h"
#include "kernels.h"

namespace ditmoe {
namespace {

// Prices of groups are no prices of points, but a c-transform makes them some (auction.h), and then any prices
// give a bound: their dual value. Another transform, the other way round, never lowers it.
template <bool kSquared>
double coarse_dual(const Pair& pair, int size) {
    // Here the distance itself is found at once.
    if (pair.n <= kSmall || is_one_point(pair.n, pair.x) || is_one_point(pair.n, pair.y)) return 0;
    Cloud<float> persons, objects;
    persons.fill(pair.n, float(kFar), [&](int i, int k) { return pair.person(i, k); });
    objects.fill(pair.n, float(kFar), [&](int i, int k) { return pair.object(i, k); });
    Array<float> price, lowest;
    extend(*approximate<kSquared>(pair, size), objects, price);
    transform<kSquared>(persons, objects, price, lowest);
    for (float& value : lowest) value = -value;
    transform<kSquared>(objects, persons, lowest, price);
    const double unit = kSquared ? pair.frame.scale * pair.frame.scale : pair.frame.scale;
    return dual_value<kSquared>(pair.n, price, lowest) * unit;
}

// The sum of |a - b|, or of its square.
template <bool kSquared>
double apart(int count, const double* a, const double* b) {
    using V = Lanes<double>;
    V sum = {};
    int q = 0;
    for (; q + kLanes<double> <= count; q += kLanes<double>) {
        const V way = load(a + q) - load(b + q);
        sum += kSquared ? way * way : larger<V>(way, -way);
    }
    double total = 0;
    for (int l = 0; l < kLanes<double>; ++l) total += sum[l];
    for (; q < count; ++q) total += kSquared ? (a[q] - b[q]) * (a[q] - b[q]) : std::abs(a[q] - b[q]);
    return total;
}

}  // namespace
}  // namespace ditmoe

extern "C" DITMOE_EXPORT int ditmoe_emd_bound(
    int n, const double* x, const double* y, int squared, int group, double* bound) try {
    if (n < 1 || group < 1) return ditmoe_bad_argument;
    *bound = 0;
    const ditmoe::Pair pair(n, x, y);
    if (!std::isfinite(pair.frame.scale)) return ditmoe_bad_argument;
    if (pair.frame.scale == 0) return ditmoe_done;
    *bound = squared ? ditmoe::coarse_dual<true>(pair, group) : ditmoe::coarse_dual<false>(pair, group);
    return ditmoe_done;
} catch (...) {
    return ditmoe_out_of_memory;
}

extern "C" DITMOE_EXPORT void ditmoe_slice_bounds(
    int bases, int quantiles, const double* one, int count, const double* many, int squared, double* bounds) {
    const int length = 3 * bases * quantiles;
    for (int c = 0; c < count; ++c) {
        double best = 0;
        for (int r = 0; r < bases; ++r) {
            double sum = 0;
            for (int k = 0; k < 3; ++k) {
                const double* a = one + (3 * r + k) * quantiles;
                const double* b = many + std::size_t(c) * length + (3 * r + k) * quantiles;
                const double way = squared ? 0 : ditmoe::apart<false>(quantiles, a, b);
                sum += squared ? ditmoe::apart<true>(quantiles, a, b) : way * way;
            }
            best = std::max(best, sum);
        }
        bounds[c] = std::sqrt(best);
    }
}
