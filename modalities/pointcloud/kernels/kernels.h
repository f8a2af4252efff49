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
// above the best: (cost - dual value) / cost, in float64.
DITMOE_EXPORT int ditmoe_emd(int n, const double* x, const double* y, int squared, double* mean, double* gap);

}
