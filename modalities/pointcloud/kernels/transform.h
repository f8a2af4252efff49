// The c-transform: from prices of one cloud's points to the lowest value to each point of another.
//
// With q_i = min_j (c_ij + p_j) the mean of q less the mean of p is at most the cost of any matching, whatever
// the prices: this is where lower bounds come from. Sixteen neighbouring points look together, as in
// chamfer.cpp; a block of the other cloud is left out where its box and its lowest price show that it has
// nothing for any of them.
#pragma once

#include "matching.h"

namespace ditmoe {

constexpr int kGroup = kBlock / kLanes<float>;

// Sixteen points, the box around them, and the lowest value to each so far.
template <bool kSquared>
struct Group {
    using V = Lanes<float>;
    V axis[3][kGroup], lowest[kGroup];
    float low[3], high[3];

    Group(const Cloud<float>& from, int block) {
        for (int k = 0; k < 3; ++k) {
            low[k] = from.low[k][block], high[k] = from.high[k][block];
            for (int g = 0; g < kGroup; ++g) axis[k][g] = load(&from.axis[k][block * kBlock + g * kLanes<float>]);
        }
        // What only fills up the last block has nothing to look for.
        const int size = std::min(kBlock, from.n - block * kBlock);
        float start[kBlock];
        for (int q = 0; q < kBlock; ++q) start[q] = q < size ? float(kHuge) : float(-kHuge);
        for (int g = 0; g < kGroup; ++g) lowest[g] = load(start + g * kLanes<float>);
    }

    // Bounds the values of each block's points from below; returns the block that is least.
    int bound(const Cloud<float>& to, const Array<float>& floors, Array<float>& bounds) const {
        const V none = {};
        V best = all(float(kHuge));
        for (int b = 0; b < int(bounds.size()); b += kLanes<float>) {
            V square = none;
            for (int k = 0; k < 3; ++k) {
                const V apart = larger<V>(load(&to.low[k][b]) - high[k], low[k] - load(&to.high[k][b]));
                const V gap = larger<V>(none, apart);
                square += gap * gap;
            }
            // Rounded down, as boxes are compared with values that came about in another order.
            const V value = (kSquared ? square : root<float>(square)) * (1 - 1e-6f) + load(&floors[b]);
            store<float>(&bounds[b], value);
            best = smaller<V>(best, value);
        }
        const float lowest_bound = least<float>(best);
        int block = 0;
        while (block + 1 < to.blocks && bounds[block] != lowest_bound) ++block;
        return block;
    }

    // Returns the value from which on a block has nothing for any of the points.
    float look_into(const Cloud<float>& to, const Array<float>& price, int block) {
        const float *x = &to.axis[0][block * kBlock], *y = &to.axis[1][block * kBlock];
        const float *z = &to.axis[2][block * kBlock], *p = &price[block * kBlock];
#pragma GCC unroll 4
        for (int j = 0; j < kBlock; ++j) {
#pragma GCC unroll 4
            for (int g = 0; g < kGroup; ++g) {
                const V dx = axis[0][g] - x[j], dy = axis[1][g] - y[j], dz = axis[2][g] - z[j];
                const V square = dx * dx + dy * dy + dz * dz;
                lowest[g] = smaller<V>(lowest[g], (kSquared ? square : root<float>(square)) + p[j]);
            }
        }
        V worst = lowest[0];
        for (int g = 1; g < kGroup; ++g) worst = larger<V>(worst, lowest[g]);
        return greatest<float>(worst);
    }
};

// lowest[i] = min_j (c_ij + price[j]), c the distance or its square, in float32. `lowest` is padded as `price` is.
template <bool kSquared>
void transform(const Cloud<float>& from, const Cloud<float>& to, const Array<float>& price, Array<float>& lowest) {
    Array<float> floors(to.low[0].size(), 0), bounds(to.low[0].size());
    for (int b = 0; b < to.blocks; ++b) {
        const auto first = price.begin() + b * kBlock, last = price.begin() + std::min(to.n, (b + 1) * kBlock);
        floors[b] = *std::min_element(first, last);
    }
    lowest.resize(from.blocks * kBlock);
    for (int block = 0; block < from.blocks; ++block) {
        Group<kSquared> group(from, block);
        const int nearest = group.bound(to, floors, bounds);
        float worst = group.look_into(to, price, nearest);
        bounds[nearest] = float(kHuge);
        for (int b = 0; b < to.blocks; b += kBlock)
            for (unsigned bits = below(&bounds[b], kBlock, worst); bits; bits &= bits - 1) {
                const int at = b + lowest_bit(bits);
                if (at < to.blocks && bounds[at] < worst) worst = group.look_into(to, price, at);
            }
        for (int g = 0; g < kGroup; ++g) store<float>(&lowest[block * kBlock + g * kLanes<float>], group.lowest[g]);
    }
}

// What no matching costs less than: the mean of `lowest`, which is the transform of `price`, less that of `price`.
//
// All float32 numbers are right prices, so only the values carry errors. With points in [-1, 1]^3 one that is c + p
// is off by at most 4e-7 + 5e-7 (c + |v|) for c a distance; for c its square by 8e-7 sqrt(c) + 1e-6 (c + |v|). Prices
// are at least `floor`, so c <= v - floor for all that could be the lowest in truth.
template <bool kSquared>
double dual_value(int n, const Array<float>& lowest, const Array<float>& price) {
    const double floor = *std::min_element(price.begin(), price.begin() + n);
    double values = 0, prices = 0;
    for (int i = 0; i < n; ++i) {
        const double value = lowest[i], cost = std::max(0.0, value - floor) + 1e-5;
        const double error = kSquared ? 8e-7 * std::sqrt(cost) + 1e-6 * (cost + std::abs(value))
                                      : 4e-7 + 5e-7 * (cost + std::abs(value));
        values += value - error;
        prices += price[i];
    }
    return std::max(0.0, (values - prices) / n * (1 - 1e-12));
}

// The same of a matching of the points, at its prices.
template <bool kSquared>
double dual_value(const Matching<float, kSquared>& points) {
    Array<float> lowest;
    transform<kSquared>(points.persons, points.objects, points.price, lowest);
    return dual_value<kSquared>(points.n, lowest, points.price);
}

}  // namespace ditmoe
