// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <vector>

// The two products below take nearly all the time of a step. Compilers that can are asked for a
// second version of them for processors with FMA, chosen when the library is loaded, because a
// plugin is built for any processor. Sanitizers do not go together with the choice at load time.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) &&                 \
    ((defined(__clang__) && __clang_major__ >= 14) || (!defined(__clang__) && defined(__GNUC__)))
#define PLUMED_CV_CLONES __attribute__((target_clones("fma", "default")))
#else
#define PLUMED_CV_CLONES
#endif

namespace plumed_cv {

/// Arrays are filled up with zeros to whole blocks, one cache line each: no loop has a remainder.
constexpr std::size_t block = 8;

constexpr std::size_t padded(std::size_t size) {
    return (size + block - 1) / block * block;
}

/// Aligns to a block, for std::vector.
template <class T>
struct BlockAllocator {
    using value_type = T;
    BlockAllocator() = default;
    template <class U>
    explicit BlockAllocator(const BlockAllocator<U>&) {}
    T* allocate(std::size_t n) {
        return static_cast<T*>(
            ::operator new (n * sizeof(T), std::align_val_t{block * sizeof(double)}));
    }
    void deallocate(T* p, std::size_t) {
        ::operator delete (p, std::align_val_t{block * sizeof(double)});
    }
    friend bool operator==(const BlockAllocator&, const BlockAllocator&) { return true; }
    friend bool operator!=(const BlockAllocator&, const BlockAllocator&) { return false; }
};

using Array = std::vector<double, BlockAllocator<double>>;

/// y = A x for `rows` rows of `stride` numbers.
PLUMED_CV_CLONES
inline void multiply(const double* a, std::size_t rows, std::size_t stride, const double* x,
                     double* y) {
    std::size_t i = 0;
    for (; i + 4 <= rows; i += 4) { // four sums at once hide the latency of an addition
        const double* r0 = a + i * stride;
        const double* r1 = r0 + stride;
        const double* r2 = r1 + stride;
        const double* r3 = r2 + stride;
        double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (std::size_t j = 0; j < stride; ++j) {
            s0 += r0[j] * x[j];
            s1 += r1[j] * x[j];
            s2 += r2[j] * x[j];
            s3 += r3[j] * x[j];
        }
        y[i] = s0;
        y[i + 1] = s1;
        y[i + 2] = s2;
        y[i + 3] = s3;
    }
    for (; i < rows; ++i) {
        const double* row = a + i * stride;
        double s = 0;
#pragma omp simd reduction(+ : s)
        for (std::size_t j = 0; j < stride; ++j)
            s += row[j] * x[j];
        y[i] = s;
    }
}

/// x = A^T y for `rows` rows of `stride` numbers.
PLUMED_CV_CLONES
inline void multiply_transposed(const double* a, std::size_t rows, std::size_t stride,
                                const double* y, double* x) {
    std::fill(x, x + stride, 0.0);
    std::size_t i = 0;
    for (; i + 4 <= rows; i += 4) { // four rows share the loads and stores of x
        const double* r0 = a + i * stride;
        const double* r1 = r0 + stride;
        const double* r2 = r1 + stride;
        const double* r3 = r2 + stride;
        const double y0 = y[i], y1 = y[i + 1], y2 = y[i + 2], y3 = y[i + 3];
#pragma omp simd
        for (std::size_t j = 0; j < stride; ++j)
            x[j] += (y0 * r0[j] + y1 * r1[j]) + (y2 * r2[j] + y3 * r3[j]);
    }
    for (; i < rows; ++i) {
        const double* row = a + i * stride;
        const double yi = y[i];
#pragma omp simd
        for (std::size_t j = 0; j < stride; ++j)
            x[j] += yi * row[j];
    }
}

} // namespace plumed_cv
