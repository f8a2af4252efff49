// Chamfer distance of two clouds, in float64 from direct differences.
//
// Eight neighbouring points of one cloud look for their nearest points together. Boxes around the blocks
// of the other cloud (cloud.h) say which blocks could still hold a nearer one; the rest is never looked at,
// which leaves about an eighth of all pairs. The bounds are true lower bounds: the result is that of all pairs.

#include "cloud.h"
#include "kernels.h"

namespace ditmoe {
namespace {

using V = Lanes<double>;
constexpr int kQuery = 8;  // smaller groups have smaller boxes, larger ones share more work: 8 measured best
constexpr int kGroups = kQuery / kLanes<double>;
constexpr double kNone = 1e300;

// A few neighbouring points, the box around them, and their squared distances to the nearest point so far.
struct Query {
    V axis[3][kGroups], nearest[kGroups];
    double low[3], high[3];

    Query(const Cloud<double>& from, int first) {
        for (int k = 0; k < 3; ++k) {
            V least_lanes = load(&from.axis[k][first]), greatest_lanes = least_lanes;
            for (int g = 0; g < kGroups; ++g) {
                axis[k][g] = load(&from.axis[k][first + g * kLanes<double>]);
                least_lanes = smaller(least_lanes, axis[k][g]);
                greatest_lanes = larger(greatest_lanes, axis[k][g]);
            }
            low[k] = least<double>(least_lanes), high[k] = greatest<double>(greatest_lanes);
        }
        for (int g = 0; g < kGroups; ++g) nearest[g] = all(kNone);
    }

    // Returns the squared distance from which on a block cannot bring any of the points a nearer one.
    double look_into(const Cloud<double>& to, int block) {
        const double* x = &to.axis[0][block * kBlock];
        const double* y = &to.axis[1][block * kBlock];
        const double* z = &to.axis[2][block * kBlock];
#pragma GCC unroll 4
        for (int j = 0; j < kBlock; ++j) {
#pragma GCC unroll 4
            for (int g = 0; g < kGroups; ++g) {
                const V dx = axis[0][g] - x[j], dy = axis[1][g] - y[j], dz = axis[2][g] - z[j];
                nearest[g] = smaller<V>(nearest[g], dx * dx + dy * dy + dz * dz);
            }
        }
        V worst = nearest[0];
        for (int g = 1; g < kGroups; ++g) worst = larger(worst, nearest[g]);
        return greatest<double>(worst);
    }

    // Squared distances from the box to every box of `to`; returns the nearest block.
    int bound(const Cloud<double>& to, Array<double>& bounds) const {
        const V none = {};
        V best = all(kNone);
        for (int b = 0; b < int(bounds.size()); b += kLanes<double>) {
            V square = none;
            for (int k = 0; k < 3; ++k) {
                const V apart = larger<V>(load(&to.low[k][b]) - high[k], low[k] - load(&to.high[k][b]));
                const V gap = larger<V>(none, apart);
                square += gap * gap;
            }
            store<double>(&bounds[b], square);
            best = smaller(best, square);
        }
        const double least_bound = least<double>(best);
        int at = 0;
        while (at + 1 < to.blocks && bounds[at] != least_bound) ++at;
        return at;
    }
};

// Mean over `from` of the squared distance to the nearest point of `to`.
double mean_square(const Cloud<double>& from, const Cloud<double>& to) {
    Array<double> bounds(to.low[0].size());
    double sum = 0;
    for (int i = 0; i < from.n; i += kQuery) {
        Query query(from, i);
        const int first = query.bound(to, bounds);
        double worst = query.look_into(to, first);
        bounds[first] = kNone;
        for (int b = 0; b < to.blocks; ++b) {
            if (bounds[b] < worst) worst = query.look_into(to, b);
        }
        double nearest[kQuery];
        for (int g = 0; g < kGroups; ++g) store<double>(nearest + g * kLanes<double>, query.nearest[g]);
        for (int q = 0; q < std::min(kQuery, from.n - i); ++q) sum += nearest[q];
    }
    return sum / from.n;
}

}  // namespace
}  // namespace ditmoe

extern "C" DITMOE_EXPORT int ditmoe_chamfer(
    int n, const double* x, int m, const double* y, double* distance) try {
    if (n < 1 || m < 1) return ditmoe_bad_argument;
    // Points that fill up the last block stand so far off that they are nobody's nearest.
    const double far = 1e140;
    ditmoe::Cloud<double> a, b;
    a.fill(n, far, [x](int i, int k) { return x[3 * i + k]; });
    b.fill(m, far, [y](int i, int k) { return y[3 * i + k]; });
    *distance = ditmoe::mean_square(a, b) + ditmoe::mean_square(b, a);
    return ditmoe_done;
} catch (...) {
    return ditmoe_out_of_memory;
}
