// What the library offers, with C linkage: no state, so any number of threads may call at once.
//
// Clouds are [n][3] float64, finite. Any order gives the right answer; k-d order (ditmoe_order) a fast one.
#pragma once

#if defined(_WIN32)
#define DITMOE_EXPORT __declspec(dllexport)
#else
#define DITMOE_EXPORT __attribute__((visibility("default")))
#endif

enum ditmoe_status { ditmoe_done = 0, ditmoe_bad_argument = 1, ditmoe_out_of_memory = 2 };

extern "C" {

// The x86-64 level (3: AVX2, 4: AVX-512) whose instructions this processor has, or 0.
DITMOE_EXPORT int ditmoe_level();

// Writes the points in k-d order. It depends on the points alone, not on the order in which they came.
DITMOE_EXPORT int ditmoe_order(int n, const double* points, double* ordered);

// Mean squared distance to the nearest point, from x to y plus from y to x.
DITMOE_EXPORT int ditmoe_chamfer(int n, const double* x, int m, const double* y, double* distance);

// Mean cost (distance, or its square) of the best one-to-one matching, and by how much of it, at most, it is
// above the best: (cost - dual value) / cost, in float64. Where the mean is found to be above `limit`, the work ends:
// `mean` is then a bound between the limit and the truth, and `gap` infinite. The same for (x, y) and (y, x).
DITMOE_EXPORT int ditmoe_emd(
    int n, const double* x, const double* y, int squared, double limit, double* mean, double* gap);

// What the mean cost is not below: the dual value at prices that come from a matching of groups of `group` points
// or more; from fewer points a better one and a slower one.
DITMOE_EXPORT int ditmoe_emd_bound(
    int n, const double* x, const double* y, int squared, int group, double* bound);

// How far one cloud's sorted projections are from those of others: the greatest over bases of
// sqrt(sum_k W_k^2), with W_k = sum_q |a_kq - b_kq|, or its root of squares, along axis k of a basis. An array holds
// [bases][3][quantiles], weighted so that this is a distance of clouds; `many` holds `count` of these.
DITMOE_EXPORT void ditmoe_slice_bounds(
    int bases, int quantiles, const double* one, int count, const double* many, int squared, double* bounds);

}
