// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <stdexcept>

namespace plumed_cv {

using Matrix3 = std::array<double, 9>; // row by row

/// Three lattice vectors, one after the other; zero along directions without periodicity.
using Cell = Matrix3;

inline double determinant(const Cell& h) {
    return h[0] * (h[4] * h[8] - h[5] * h[7]) - h[1] * (h[3] * h[8] - h[5] * h[6]) +
           h[2] * (h[3] * h[7] - h[4] * h[6]);
}

inline Cell inverse(const Cell& h) {
    const double d = determinant(h);
    return {(h[4] * h[8] - h[5] * h[7]) / d, (h[2] * h[7] - h[1] * h[8]) / d,
            (h[1] * h[5] - h[2] * h[4]) / d, (h[5] * h[6] - h[3] * h[8]) / d,
            (h[0] * h[8] - h[2] * h[6]) / d, (h[2] * h[3] - h[0] * h[5]) / d,
            (h[3] * h[7] - h[4] * h[6]) / d, (h[1] * h[6] - h[0] * h[7]) / d,
            (h[0] * h[4] - h[1] * h[3]) / d};
}

inline Cell product(const Cell& a, const Cell& b) {
    Cell c{};
    for (std::size_t i = 0; i < 3; ++i)
        for (std::size_t j = 0; j < 3; ++j)
            for (std::size_t k = 0; k < 3; ++k)
                c[3 * i + j] += a[3 * i + k] * b[3 * k + j];
    return c;
}

/// For each lattice vector, whether the system is periodic along it.
using Directions = std::array<bool, 3>;

inline std::array<double, 3> cross_product(const double* a, const double* b) {
    return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

/// The cell with unit vectors in place of those that are zero: orthogonal to all others, and
/// right-handed. A system without periodicity gets the unit matrix.
inline Cell completed(Cell h) {
    constexpr double nothing = 1e-4; // numerical derivatives add small numbers to a missing cell
    std::size_t missing[3], n = 0, known = 0;
    for (std::size_t i = 0; i < 3; ++i)
        if (std::all_of(&h[3 * i], &h[3 * i] + 3, [](double v) { return std::abs(v) < nothing; }))
            missing[n++] = i;
        else
            known = i;
    const auto orthogonal = [&h](std::size_t i) {
        auto v = cross_product(&h[3 * ((i + 1) % 3)], &h[3 * ((i + 2) % 3)]);
        const double norm = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
        for (std::size_t a = 0; a < 3; ++a)
            h[3 * i + a] = v[a] / norm;
    };
    if (n == 3)
        return {1, 0, 0, 0, 1, 0, 0, 0, 1};
    if (n == 2) {
        const double* const v = &h[3 * known];
        const double square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
        const std::size_t next = (known + 1) % 3, last = (known + 2) % 3;
        const std::size_t axis = v[next] * v[next] > 0.8 * square ? last : next;
        double rest[3], norm = 0;
        for (std::size_t a = 0; a < 3; ++a) {
            rest[a] = (a == axis ? 1 : 0) - v[axis] * v[a] / square;
            norm += rest[a] * rest[a];
        }
        for (std::size_t a = 0; a < 3; ++a)
            h[3 * next + a] = rest[a] / std::sqrt(norm);
        orthogonal(last);
    } else if (n == 1) {
        orthogonal(missing[0]);
    }
    return h;
}

/// The directions with periodicity: those with a lattice vector, in angstrom. Throws if the lattice
/// vectors are not independent.
inline Directions periodic_directions(const Cell& h) {
    Directions periodic{};
    double lengths = 1;
    for (std::size_t i = 0; i < 3; ++i) {
        const double* const v = &h[3 * i];
        // NaN fails this comparison.
        periodic[i] = !std::all_of(v, v + 3, [](double x) { return std::abs(x) < 1e-4; });
        if (periodic[i])
            lengths *= std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    }
    if (!(std::abs(determinant(completed(h))) > 1e-6 * lengths) || !std::isfinite(lengths))
        throw std::runtime_error("the cell has no volume; independent lattice vectors are needed, "
                                 "or none along a direction without periodicity.");
    return periodic;
}

/// Whether a cell is a strained reference, and not a turned one or another choice of lattice
/// vectors (a flip).
///
/// `inverse` is that of the reference cell. A cell whose vectors keep the convention of the
/// reference, the first one along x and the second in the xy plane, turns with a shear by no more
/// than twice the strain.
inline bool is_strain(const Cell& inverse_reference, const Cell& cell, const Directions& periodic) {
    constexpr double largest_strain = 0.25, rounding = 1e-3; // radian
    const Cell s = product(inverse_reference, cell);
    if (!(determinant(s) > 0))
        return false;
    const auto distance = [](const Cell& m) {
        double square = 0;
        for (std::size_t i = 0; i < 9; ++i)
            square += (m[i] - (i % 4 == 0)) * (m[i] - (i % 4 == 0));
        return square;
    };
    for (std::size_t i = 0; i < 3; ++i)
        for (int n = 0; n < 9; ++n) {
            const std::size_t j = (i + 1) % 3, k = (i + 2) % 3;
            const int first = n / 3 - 1, second = n % 3 - 1;
            if (!periodic[i] || (first != 0 && !periodic[j]) || (second != 0 && !periodic[k]))
                continue;
            Cell other = cell;
            for (std::size_t a = 0; a < 3; ++a)
                other[3 * i + a] += first * cell[3 * j + a] + second * cell[3 * k + a];
            if (distance(product(inverse_reference, other)) < distance(s) - 1e-12)
                return false;
        }
    Cell rotation = s; // the polar decomposition, by Newton's method
    for (int step = 0; step < 30; ++step) {
        const Cell back = inverse(rotation);
        Cell next;
        for (std::size_t i = 0; i < 3; ++i)
            for (std::size_t j = 0; j < 3; ++j)
                next[3 * i + j] = 0.5 * (rotation[3 * i + j] + back[3 * j + i]);
        rotation = next;
    }
    const Cell stretch = product(s, inverse(rotation));
    double strain = 0;
    for (std::size_t i = 0; i < 9; ++i)
        strain = std::max(strain, std::abs(stretch[i] - (i % 4 == 0)));
    const double cosine = 0.5 * (rotation[0] + rotation[4] + rotation[8] - 1);
    const double angle = std::acos(std::min(1.0, std::max(-1.0, cosine)));
    return strain < largest_strain && angle < 2 * strain + rounding;
}

/// Makes derivatives with respect to strains r_b -> r_b + sum_a r_a e_ab symmetric by copying the
/// lower half, if the first cell vector is along x and the second in the xy plane.
///
/// Engines with such cells can apply only the strains of the lower half, and use either half of the
/// virial for them; LAMMPS uses the upper one. The halves differ if the reference of a variable
/// does not rotate with the cell, but such an engine never makes this rotation.
inline void symmetrise(const Cell& cell, Cell& strain) {
    const bool periodic = cell[0] != 0 && cell[4] != 0 && cell[8] != 0;
    if (!periodic || cell[1] != 0 || cell[2] != 0 || cell[5] != 0)
        return;
    strain[1] = strain[3];
    strain[2] = strain[6];
    strain[5] = strain[7];
}

} // namespace plumed_cv
