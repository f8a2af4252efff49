// Several numbers at once, without intrinsics: the vector type of GCC and Clang, as wide as the target's
// registers. Loops over plain arrays compile to the same instructions only sometimes (after inlining GCC
// often takes 128-bit registers for what needs 512), and a kernel should not be fast by luck.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ditmoe {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;  // SSE2, NEON
#endif

template <class T>
struct Vector {
    typedef T type __attribute__((vector_size(kBytes)));
};
template <class T>
using Lanes = typename Vector<T>::type;
template <class T>
constexpr int kLanes = kBytes / int(sizeof(T));

template <class T>
inline Lanes<T> load(const T* from) {
    Lanes<T> lanes;
    std::memcpy(&lanes, from, kBytes);
    return lanes;
}

template <class T>
inline void store(T* to, Lanes<T> lanes) { std::memcpy(to, &lanes, kBytes); }

template <class T>
inline Lanes<T> all(T value) { return value - Lanes<T>{}; }

// The smaller and the larger as one comparison each, of numbers or of lanes: what the instruction does.
template <class V>
inline V smaller(V a, V b) { return a < b ? a : b; }
template <class V>
inline V larger(V a, V b) { return a > b ? a : b; }

template <class T>
inline Lanes<T> root(Lanes<T> lanes) {
    for (int l = 0; l < kLanes<T>; ++l) lanes[l] = std::sqrt(lanes[l]);
    return lanes;
}

// Folds halves onto each other, down to one number.
template <class T>
inline T least(Lanes<T> lanes) {
    T value[kLanes<T>];
    store<T>(value, lanes);
#pragma GCC unroll 4
    for (int half = kLanes<T> / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int l = 0; l < half; ++l) value[l] = smaller(value[l], value[l + half]);
    return value[0];
}

template <class T>
inline T greatest(Lanes<T> lanes) { return -least<T>(-lanes); }

inline int lowest_bit(unsigned bits) { return __builtin_ctz(bits); }

// Bit l says whether values[l] is below the limit. `count` is a multiple of the lanes, 32 at most.
//
// Lanes of all ones or zeros shrink to bytes; of byte l bit l is kept, and a product adds up eight bytes.
template <class T>
inline unsigned below(const T* values, int count, T limit) {
    typedef signed char Bytes __attribute__((vector_size(kLanes<T>)));
    unsigned bits = 0;
    for (int start = 0; start < count; start += kLanes<T>) {
        const Bytes bytes = __builtin_convertvector(load(values + start) < limit, Bytes);
        std::uint64_t words[2] = {0, 0};
        std::memcpy(words, &bytes, sizeof bytes);
        for (int w = 0; w < (kLanes<T> + 7) / 8; ++w) {
            const std::uint64_t kept = words[w] & 0x8040201008040201u;
            bits |= unsigned(kept * 0x0101010101010101u >> 56) << (start + 8 * w);
        }
    }
    return bits;
}

}  // namespace ditmoe
