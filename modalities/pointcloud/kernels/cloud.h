// A point cloud laid out for the kernels: k-d order, one array an axis, and a box around every 16 points.
//
// In k-d order (split at the median of the longest side, again and again) neighbours in memory are
// neighbours in space. So 16 consecutive points have a small box, the distance to that box bounds the
// distance to each of them from below, and whole blocks drop out of a search for near points.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <new>
#include <vector>

#include "lanes.h"

namespace ditmoe {

constexpr int kBlock = 16;  // one AVX-512 register of floats, two of doubles

// Starts on a cache line, so that no vector load straddles two.
template <class T>
struct LineAllocator {
    using value_type = T;
    static constexpr std::align_val_t line{64};
    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) {}
    T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), line)); }
    void deallocate(T* memory, std::size_t) { ::operator delete(memory, line); }
    template <class U>
    bool operator==(const LineAllocator<U>&) const { return true; }
    template <class U>
    bool operator!=(const LineAllocator<U>&) const { return false; }
};

template <class T>
using Array = std::vector<T, LineAllocator<T>>;

inline int whole_blocks(int n) { return (n + kBlock - 1) / kBlock; }

// Points in k-d order with their boxes. The last block is filled up with points at (far, far, far), which
// its box leaves out.
template <class T>
struct Cloud {
    int n = 0, blocks = 0;
    Array<T> axis[3];          // [blocks * 16]
    Array<T> low[3], high[3];  // [blocks rounded up to 16]

    // `at(i, k)` is coordinate k of point i.
    template <class At>
    void fill(int count, T far, At at) {
        n = count;
        blocks = whole_blocks(n);
        for (int k = 0; k < 3; ++k) {
            axis[k].assign(blocks * kBlock, far);
            for (int i = 0; i < n; ++i) axis[k][i] = T(at(i, k));
            low[k].assign(whole_blocks(blocks) * kBlock, far);
            high[k].assign(whole_blocks(blocks) * kBlock, far);
            for (int b = 0; b < blocks; ++b) {
                const auto first = axis[k].begin() + b * kBlock;
                const auto last = axis[k].begin() + std::min(n, (b + 1) * kBlock);
                low[k][b] = *std::min_element(first, last);
                high[k][b] = *std::max_element(first, last);
            }
        }
    }
};

inline bool is_one_point(int n, const double* points) { return std::equal(points + 3, points + 3 * n, points); }

// Where two clouds lie: subtracting the centre and dividing by the scale (a power of two, so nothing is
// rounded by it) brings both into [-1, 1], and float32 then sees shape and not position.
struct Frame {
    double centre[3] = {0, 0, 0};
    double scale = 0;  // 0: all points of both clouds are one

    Frame(int n, const double* x, int m, const double* y) {
        double extent = 0;
        for (int k = 0; k < 3; ++k) {
            double low = x[k], high = x[k];
            for (int i = 0; i < n; ++i) low = std::min(low, x[3 * i + k]), high = std::max(high, x[3 * i + k]);
            for (int i = 0; i < m; ++i) low = std::min(low, y[3 * i + k]), high = std::max(high, y[3 * i + k]);
            centre[k] = low / 2 + high / 2;
            extent = std::max(extent, high / 2 - low / 2);
        }
        int exponent = 0;
        std::frexp(extent, &exponent);
        if (extent > 0) scale = std::ldexp(1.0, exponent);
    }

    double seen(const double* points, int i, int k) const { return (points[3 * i + k] - centre[k]) / scale; }
};

}  // namespace ditmoe
