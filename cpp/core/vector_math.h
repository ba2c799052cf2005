// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// Tools for loops that compilers can turn into vector instructions.

// With these compiler options nearest_integer() would return its argument, sums would lose the rests of
// Sums, and NAN would compare equal.
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) ||                                     \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "compile without -ffast-math, -Ofast and -ffinite-math-only: they make the results wrong"
#endif

// For the loops that take nearly all the time of a step. Compilers that support it make a second
// version for processors with FMA, which is chosen when the library is loaded, because a plugin is
// built for any processor. Sanitizers do not work with this choice at load time.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) &&                 \
    ((defined(__clang__) && __clang_major__ >= 14) || (!defined(__clang__) && defined(__GNUC__)))
#define PLUMED_CV_CLONES __attribute__((target_clones("fma", "default")))
#else
#define PLUMED_CV_CLONES
#endif

// For functions that are called in such loops: they must be inlined.
#define PLUMED_CV_INLINE [[gnu::always_inline]] inline

namespace plumed_cv {

/// An array in planes: all x, then all y, then all z, `plane` numbers each.
template <class Number>
struct Planes {
    Number *x, *y, *z;
    Planes(Number* first, std::size_t plane) : x(first), y(x + plane), z(y + plane) {}
};

constexpr double whole_numbers = 6755399441055744.0; // 1.5 * 2^52: no digits behind the point

/// The nearest integer, ties to even, in two additions; |x| < 2^51.
PLUMED_CV_INLINE double nearest_integer(double x) {
    return (x + whole_numbers) - whole_numbers;
}

/// e^x to 1e-15 for |x| < 700.
PLUMED_CV_INLINE double exponential(double x) {
    // x = k ln 2 + r, where k is an integer, |r| < 0.35, and ln 2 has two parts.
    const double shifted = x * 1.4426950408889634 + whole_numbers;
    const double k = shifted - whole_numbers;
    const double r = (x - k * 0.69314718036912382) - k * 1.9082149292705877e-10;
    // The Taylor series of e^r; the first term left out is below 2e-16.
    double power = 1.0 / 479001600;
    power = power * r + 1.0 / 39916800;
    power = power * r + 1.0 / 3628800;
    power = power * r + 1.0 / 362880;
    power = power * r + 1.0 / 40320;
    power = power * r + 1.0 / 5040;
    power = power * r + 1.0 / 720;
    power = power * r + 1.0 / 120;
    power = power * r + 1.0 / 24;
    power = power * r + 1.0 / 6;
    power = power * r + 1.0 / 2;
    power = power * r + 1.0;
    power = power * r + 1.0;
    // Times 2^k: the lowest bits of `shifted` are k, and a double's exponent begins at bit 52.
    std::uint64_t bits, exponent;
    std::memcpy(&bits, &power, sizeof bits);
    std::memcpy(&exponent, &shifted, sizeof exponent);
    bits += exponent << 52;
    std::memcpy(&power, &bits, sizeof power);
    return power;
}

} // namespace plumed_cv
