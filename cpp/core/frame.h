// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include "alignment.h"
#include "cell.h"
#include "matrix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <vector>

namespace plumed_cv {

/// The displacement frame: the displacement of each atom from a reference structure that follows
/// the cell, for the nearest image, minus the mean displacement of all atoms.
///
/// With alignment, for molecules: the displacement after the best fit to the reference, which has
/// no cell. If the engine has a cell, the molecule is made whole first.
///
/// Results are in planes: all x, all y, all z. Each plane has plane() numbers, zero after the
/// atoms.
class Frame {
  public:
    Frame(const std::vector<double>& reference, const Cell& reference_cell, bool aligned = false)
        : atoms_(reference.size() / 3), plane_(padded(atoms_)),
          periodic_(is_periodic(reference_cell)), reference_cell_(reference_cell),
          original_(3 * plane_), reference_(3 * plane_) {
        for (std::size_t i = 0; i < atoms_; ++i)
            for (std::size_t a = 0; a < 3; ++a)
                original_[a * plane_ + i] = reference[3 * i + a];
        if (aligned) {
            if (periodic_)
                throw std::runtime_error("a reference that atoms are turned onto has no cell.");
            alignment_.emplace(original_.data(), atoms_, plane_);
        }
        set_cell(reference_cell);
    }

    std::size_t atoms() const { return atoms_; }
    /// The cell of the engine, as set last.
    const Cell& cell() const { return cell_; }
    std::size_t plane() const { return plane_; }
    bool periodic() const { return periodic_; }

    /// The largest element of the strain that transforms the reference cell into this one.
    double strain(const Cell& cell) const {
        const Cell s = product(inverse(reference_cell_), cell);
        double largest = 0;
        for (std::size_t i = 0; i < 9; ++i)
            largest = std::max(largest, std::abs(s[i] - (i % 4 == 0 ? 1 : 0)));
        return largest;
    }

    /// Whether the cell, or its absence, agrees with the reference up to a strain.
    bool accepts(const Cell& cell) const {
        if (alignment_)
            return true;
        return is_periodic(cell) == periodic_ && (!periodic_ || strain(cell) < largest_strain);
    }

    /// Lets the reference follow the cell; this takes no time while the cell is constant.
    ///
    /// Throws if a cell differs too much from the reference cell to be a strain of it. xi would
    /// jump if an engine flipped its cell.
    void set_cell(const Cell& cell) {
        if (cell == cell_ && ready_)
            return;
        if (alignment_) {
            around_ = is_periodic(cell);
            if (around_)
                inverse_ = inverse(cell);
            cell_ = cell;
            ready_ = true;
            return;
        }
        if (is_periodic(cell) != periodic_)
            throw std::runtime_error(
                periodic_ ? "the model is of a periodic system and the engine gives no cell; pass "
                            "the cell to PLUMED."
                          : "the model is of a system without periodicity and the engine gives a "
                            "cell; remove it or train the model with a cell.");
        if (!accepts(cell))
            throw std::runtime_error(
                "the cell of the engine differs from the model's by more than 25 %; use the cell, "
                "the lattice vectors and the units of the training, and no flips of the cell.");
        cell_ = cell;
        ready_ = true;
        if (!periodic_) {
            reference_ = original_;
            return;
        }
        inverse_ = inverse(cell);
        const Cell s = product(inverse(reference_cell_), cell);
        const double *x = original_.data(), *y = x + plane_, *z = y + plane_;
        for (std::size_t a = 0; a < 3; ++a)
            for (std::size_t i = 0; i < plane_; ++i)
                reference_[a * plane_ + i] = x[i] * s[a] + y[i] * s[3 + a] + z[i] * s[6 + a];
    }

    /// Displacements u, 3 plane() numbers, of positions x1 y1 z1 x2 ... times `unit`.
    void displacements(const double* positions, double unit, double* u) {
        if (alignment_) {
            alignment_->displacements(positions, unit, around_, cell_, inverse_, u);
            return;
        }
        relative(positions, unit, atoms_, plane_, reference_.data(), u);
        if (periodic_)
            wrap(atoms_, plane_, cell_, inverse_, u);
        subtract_mean(atoms_, plane_, u);
    }

    bool aligned() const { return alignment_.has_value(); }

    /// Converts derivatives with respect to the last displacements into those to the positions.
    void to_positions(double* gradient) const {
        if (alignment_)
            alignment_->to_positions(gradient);
    }

    /// Subtracts the mean over the atoms, in planes.
    void centre(double* planes) const { subtract_mean(atoms_, plane_, planes); }

    /// The vectors that a strain changes: the displacements and these, in planes (null: only
    /// displacements); with alignment only the positions.
    const double* arms() const {
        if (alignment_)
            return alignment_->positions();
        return periodic_ ? nullptr : reference_.data();
    }

  private:
    static constexpr double largest_strain = 0.25;

    /// Relative to the first atom, so that a rigid drift does not move atoms across a border.
    PLUMED_CV_CLONES static void relative(const double* r, double unit, std::size_t atoms,
                                          std::size_t plane, const double* reference, double* u) {
        const double *fx = reference, *fy = fx + plane, *fz = fy + plane;
        double *x = u, *y = u + plane, *z = u + 2 * plane;
        const double x0 = unit * r[0] - fx[0], y0 = unit * r[1] - fy[0], z0 = unit * r[2] - fz[0];
#pragma omp simd
        for (std::size_t i = 0; i < atoms; ++i) {
            x[i] = (unit * r[3 * i] - fx[i]) - x0;
            y[i] = (unit * r[3 * i + 1] - fy[i]) - y0;
            z[i] = (unit * r[3 * i + 2] - fz[i]) - z0;
        }
    }

    PLUMED_CV_CLONES static void wrap(std::size_t atoms, std::size_t plane, const Cell& h,
                                      const Cell& g, double* u) {
        double *x = u, *y = u + plane, *z = u + 2 * plane;
        const double g0 = g[0], g1 = g[1], g2 = g[2], g3 = g[3], g4 = g[4], g5 = g[5], g6 = g[6],
                     g7 = g[7], g8 = g[8];
        const double h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3], h4 = h[4], h5 = h[5], h6 = h[6],
                     h7 = h[7], h8 = h[8];
#pragma omp simd
        for (std::size_t i = 0; i < atoms; ++i) {
            const double a = nearest(x[i] * g0 + y[i] * g3 + z[i] * g6);
            const double b = nearest(x[i] * g1 + y[i] * g4 + z[i] * g7);
            const double c = nearest(x[i] * g2 + y[i] * g5 + z[i] * g8);
            x[i] -= a * h0 + b * h3 + c * h6;
            y[i] -= a * h1 + b * h4 + c * h7;
            z[i] -= a * h2 + b * h5 + c * h8;
        }
    }

    PLUMED_CV_CLONES static void subtract_mean(std::size_t atoms, std::size_t plane, double* u) {
        double *x = u, *y = u + plane, *z = u + 2 * plane;
        double sx = 0, sy = 0, sz = 0;
#pragma omp simd reduction(+ : sx, sy, sz)
        for (std::size_t i = 0; i < atoms; ++i) {
            sx += x[i];
            sy += y[i];
            sz += z[i];
        }
        const double n = static_cast<double>(atoms), mx = sx / n, my = sy / n, mz = sz / n;
#pragma omp simd
        for (std::size_t i = 0; i < atoms; ++i) {
            x[i] -= mx;
            y[i] -= my;
            z[i] -= mz;
        }
    }

    std::size_t atoms_, plane_;
    bool periodic_, ready_ = false;
    Cell reference_cell_, cell_{}, inverse_{};
    Array original_, reference_;
    std::optional<Alignment> alignment_;
    bool around_ = false; // whether the engine of an aligned molecule has a cell
};

} // namespace plumed_cv
