// k-d order of a cloud, see cloud.h.

#include <numeric>

#include "cloud.h"
#include "kernels.h"

namespace ditmoe {
namespace {

// Cuts at multiples of 64, 16 and 4, so that blocks of 16 and the groups of the coarse levels in emd.cpp
// are cells of the tree for any number of points.
int middle(int low, int high) {
    const int length = high - low, unit = length > 64 ? 64 : length > 16 ? 16 : length > 4 ? 4 : 1;
    return low + (length / 2 + unit - 1) / unit * unit;
}

void order(const double* points, int* index, int low, int high) {
    if (high - low < 2) return;
    int longest = 0;
    double side = -1;
    for (int k = 0; k < 3; ++k) {
        double least = points[3 * index[low] + k], most = least;
        for (int i = low; i < high; ++i) {
            const double value = points[3 * index[i] + k];
            least = smaller(least, value), most = larger(most, value);
        }
        if (most - least > side) side = most - least, longest = k;
    }
    const int mid = middle(low, high);
    // Ties go by the other axes, so the order of a cloud does not depend on how it came.
    const int second = (longest + 1) % 3, third = (longest + 2) % 3;
    std::nth_element(index + low, index + mid, index + high, [=](int a, int b) {
        const double *p = points + 3 * a, *q = points + 3 * b;
        if (p[longest] != q[longest]) return p[longest] < q[longest];
        if (p[second] != q[second]) return p[second] < q[second];
        return p[third] < q[third];
    });
    order(points, index, low, mid);
    order(points, index, mid, high);
}

}  // namespace
}  // namespace ditmoe

extern "C" DITMOE_EXPORT int ditmoe_order(int n, const double* points, double* ordered) try {
    if (n < 1) return ditmoe_bad_argument;
    std::vector<int> index(n);
    std::iota(index.begin(), index.end(), 0);
    ditmoe::order(points, index.data(), 0, n);
    for (int i = 0; i < n; ++i)
        for (int k = 0; k < 3; ++k) ordered[3 * i + k] = points[3 * index[i] + k];
    return ditmoe_done;
} catch (...) {
    return ditmoe_out_of_memory;
}
