// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include "cell.h"
#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

namespace plumed_cv {

/// The nearest periodic images of vectors, along the directions with periodicity.
///
/// Rounding in the reduced lattice gives the nearest image of a vector that is shorter than half of
/// the smallest distance of lattice planes. For longer ones the neighbouring images are compared,
/// unless the lattice is orthogonal, where rounding always gives the nearest.
class Images {
  public:
    Images() = default;
    /// Of a cell that is completed along the directions without periodicity.
    Images(const Cell& cell, const Directions& periodic)
        : periodic_(periodic), cell_(reduced(cell, periodic)), inverse_(inverse(cell_)) {
        double widest = 0;
        for (std::size_t n = 0; n < 3; ++n) {
            if (!periodic_[n])
                continue;
            double square = 0;
            for (std::size_t a = 0; a < 3; ++a)
                square += inverse_[3 * a + n] * inverse_[3 * a + n];
            widest = std::max(widest, square);
            for (std::size_t m = 0; m < n; ++m)
                orthogonal_ &= !periodic_[m] || dot(m, n) == 0;
        }
        unique_ = widest > 0 ? 0.25 / widest : 0;
        for (std::size_t i = 0; i < 9; ++i) { // nothing is rounded along other directions
            if (!periodic_[i % 3])
                inverse_[i] = 0;
        }
    }

    /// Replaces vectors, in planes, by their nearest images.
    void wrap(std::size_t n, std::size_t plane, double* u) const {
        const double longest = round_all(n, plane, cell_, inverse_, u);
        if (orthogonal_ || longest <= unique_)
            return;
        for (std::size_t i = 0; i < n; ++i) {
            double v[3] = {u[i], u[plane + i], u[2 * plane + i]};
            if (v[0] * v[0] + v[1] * v[1] + v[2] * v[2] <= unique_)
                continue;
            shorten(v);
            for (std::size_t a = 0; a < 3; ++a)
                u[a * plane + i] = v[a];
        }
    }

    /// Replaces one vector by its nearest image.
    void wrap(double* v) const {
        const double square = round_all(1, 1, cell_, inverse_, v);
        if (!orthogonal_ && square > unique_)
            shorten(v);
    }

  private:
    /// Lattice vectors that no sum with the others makes shorter.
    static Cell reduced(Cell h, const Directions& periodic) {
        constexpr int most = 1000; // some ten are needed
        bool shorter = true;
        for (int step = 0; shorter && step < most; ++step) {
            shorter = false;
            for (std::size_t i = 0; i < 3; ++i)
                for (int n = 0; n < 9; ++n) {
                    const std::size_t j = (i + 1) % 3, k = (i + 2) % 3;
                    const int first = n / 3 - 1, second = n % 3 - 1;
                    if (!periodic[i] || (first != 0 && !periodic[j]) ||
                        (second != 0 && !periodic[k]))
                        continue;
                    double other[3], square = 0, own = 0;
                    for (std::size_t a = 0; a < 3; ++a) {
                        other[a] = h[3 * i + a] + first * h[3 * j + a] + second * h[3 * k + a];
                        square += other[a] * other[a];
                        own += h[3 * i + a] * h[3 * i + a];
                    }
                    if (square < (1 - 1e-9) * own) {
                        std::copy_n(other, 3, &h[3 * i]);
                        shorter = true;
                    }
                }
        }
        return h;
    }

    /// Of two lattice vectors.
    double dot(std::size_t i, std::size_t j) const {
        return cell_[3 * i] * cell_[3 * j] + cell_[3 * i + 1] * cell_[3 * j + 1] +
               cell_[3 * i + 2] * cell_[3 * j + 2];
    }

    /// Compares a vector with its 26 neighbouring images.
    void shorten(double* v) const {
        double best[3] = {v[0], v[1], v[2]};
        double least = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
        for (int n = 0; n < 27; ++n) {
            const int image[3] = {n / 9 - 1, n / 3 % 3 - 1, n % 3 - 1};
            double other[3], square = 0;
            bool allowed = true;
            for (std::size_t k = 0; k < 3; ++k)
                allowed &= image[k] == 0 || periodic_[k];
            for (std::size_t a = 0; a < 3; ++a) {
                other[a] =
                    v[a] + image[0] * cell_[a] + image[1] * cell_[3 + a] + image[2] * cell_[6 + a];
                square += other[a] * other[a];
            }
            if (allowed && square < least) {
                least = square;
                std::copy_n(other, 3, best);
            }
        }
        std::copy_n(best, 3, v);
    }

    /// Returns the square of the longest of the results.
    PLUMED_CV_CLONES static double round_all(std::size_t n, std::size_t plane, const Cell& h,
                                             const Cell& g, double* u) {
        double *x = u, *y = u + plane, *z = u + 2 * plane;
        const double g0 = g[0], g1 = g[1], g2 = g[2], g3 = g[3], g4 = g[4], g5 = g[5], g6 = g[6],
                     g7 = g[7], g8 = g[8];
        const double h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3], h4 = h[4], h5 = h[5], h6 = h[6],
                     h7 = h[7], h8 = h[8];
        double longest = 0;
#pragma omp simd reduction(max : longest)
        for (std::size_t i = 0; i < n; ++i) {
            const double a = nearest_integer(x[i] * g0 + y[i] * g3 + z[i] * g6);
            const double b = nearest_integer(x[i] * g1 + y[i] * g4 + z[i] * g7);
            const double c = nearest_integer(x[i] * g2 + y[i] * g5 + z[i] * g8);
            x[i] -= a * h0 + b * h3 + c * h6;
            y[i] -= a * h1 + b * h4 + c * h7;
            z[i] -= a * h2 + b * h5 + c * h8;
            longest = std::max(longest, x[i] * x[i] + y[i] * y[i] + z[i] * z[i]);
        }
        return longest;
    }

    Directions periodic_{};
    bool orthogonal_ = true;
    double unique_ = 0; // square of the length up to which rounding gives the nearest image
    Cell cell_{}, inverse_{};
};

} // namespace plumed_cv
