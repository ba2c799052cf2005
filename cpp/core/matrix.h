// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <vector>

#include "vector_math.h"

namespace plumed_cv {

/// Numbers in one cache line. Arrays are padded with zeros to whole cache lines, so that loops have
/// no remainder.
constexpr std::size_t cache_line = 8;

constexpr std::size_t padded(std::size_t size) {
    return (size + cache_line - 1) / cache_line * cache_line;
}

/// Aligns a std::vector to a cache line.
template <class T>
struct AlignedAllocator {
    using value_type = T;
    AlignedAllocator() = default;
    template <class U>
    explicit AlignedAllocator(const AlignedAllocator<U>&) {}
    T* allocate(std::size_t n) {
        return static_cast<T*>(
            ::operator new (n * sizeof(T), std::align_val_t{cache_line * sizeof(double)}));
    }
    void deallocate(T* p, std::size_t) {
        ::operator delete (p, std::align_val_t{cache_line * sizeof(double)});
    }
    friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) { return true; }
    friend bool operator!=(const AlignedAllocator&, const AlignedAllocator&) { return false; }
};

using Array = std::vector<double, AlignedAllocator<double>>;

/// y = A x for `rows` rows of `columns` numbers, each row `stride` numbers after the one before.
PLUMED_CV_CLONES
inline void multiply(const double* a, std::size_t rows, std::size_t stride, std::size_t columns,
                     const double* x, double* y) {
    std::size_t i = 0;
    for (; i + 4 <= rows; i += 4) { // four sums at once hide the latency of an addition
        const double* r0 = a + i * stride;
        const double* r1 = r0 + stride;
        const double* r2 = r1 + stride;
        const double* r3 = r2 + stride;
        double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (std::size_t j = 0; j < columns; ++j) {
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
        for (std::size_t j = 0; j < columns; ++j)
            s += row[j] * x[j];
        y[i] = s;
    }
}

/// The same for rows without gaps.
inline void multiply(const double* a, std::size_t rows, std::size_t stride, const double* x,
                     double* y) {
    multiply(a, rows, stride, stride, x, y);
}

/// Adds n rows of A, times the numbers of y, to x. Several rows at once share the loads and stores
/// of x; two sums halve the latency of the additions.
template <std::size_t n>
PLUMED_CV_INLINE void add_rows(const double* a, std::size_t stride, std::size_t columns,
                               const double* y, double* x) {
    double factor[n];
    std::copy_n(y, n, factor);
#pragma omp simd
    for (std::size_t j = 0; j < columns; ++j) {
        double even = x[j], odd = 0;
        for (std::size_t i = 0; i < n; i += 2)
            even += factor[i] * a[i * stride + j];
        for (std::size_t i = 1; i < n; i += 2)
            odd += factor[i] * a[i * stride + j];
        x[j] = even + odd;
    }
}

/// Adds A^T y to x, for rows as in multiply(). It goes from the last row to the first: after
/// multiply() by a large A the last rows are still in the cache.
PLUMED_CV_CLONES
inline void add_transposed(const double* a, std::size_t rows, std::size_t stride,
                           std::size_t columns, const double* y, double* x) {
    std::size_t i = rows;
    for (; i >= 8; i -= 8)
        add_rows<8>(a + (i - 8) * stride, stride, columns, y + (i - 8), x);
    for (; i >= 4; i -= 4)
        add_rows<4>(a + (i - 4) * stride, stride, columns, y + (i - 4), x);
    for (; i >= 1; --i)
        add_rows<1>(a + (i - 1) * stride, stride, columns, y + (i - 1), x);
}

/// The same for rows without gaps.
inline void add_transposed(const double* a, std::size_t rows, std::size_t stride, const double* y,
                           double* x) {
    add_transposed(a, rows, stride, stride, y, x);
}

} // namespace plumed_cv
