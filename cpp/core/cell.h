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

/// Three lattice vectors, one after the other; all zero without periodicity.
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

/// Whether the cell has a volume, in angstrom. Throws if the volume is neither positive nor zero;
/// small numbers that numerical derivatives add to a missing cell are ignored.
inline bool is_periodic(const Cell& h) {
    if (std::all_of(h.begin(), h.end(), [](double v) { return std::abs(v) < 1e-4; }))
        return false;
    double lengths = 1;
    for (std::size_t i = 0; i < 9; i += 3)
        lengths *= std::sqrt(h[i] * h[i] + h[i + 1] * h[i + 1] + h[i + 2] * h[i + 2]);
    // NaN fails this comparison.
    if (!(std::abs(determinant(h)) > 1e-6 * lengths) || !std::isfinite(lengths))
        throw std::runtime_error("the cell has no volume; three independent lattice vectors are "
                                 "needed, or none at all for a system without periodicity.");
    return true;
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
