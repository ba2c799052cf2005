// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include "alignment.h"
#include "cell.h"
#include "images.h"
#include "matrix.h"

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <vector>

namespace plumed_cv {

/// What removes the motion of the whole system from the displacements: their mean is subtracted
/// (removed), or nothing, because fixed atoms hold the system (kept).
enum class Drift { removed, kept };

/// The displacement frame: the displacement of each atom from a reference structure that follows
/// the cell, for the nearest image, minus the mean displacement of all atoms unless the drift is
/// kept.
///
/// Lattice vectors of the reference that are zero are directions without periodicity. There the
/// vectors of the engine have no meaning, and nothing follows them.
///
/// With alignment, for molecules: the displacement after the best fit to the reference, which has
/// no cell. If the engine has a cell, the molecule is made whole first.
///
/// Results are in planes: all x, all y, all z. Each plane has plane() numbers, zero after the
/// atoms.
class Frame {
  public:
    Frame(const std::vector<double>& reference, const Cell& reference_cell, bool aligned = false,
          Drift drift = Drift::removed)
        : atoms_(reference.size() / 3), plane_(padded(atoms_)), drift_(drift),
          periodic_(periodic_directions(reference_cell)), whole_cell_(completed(reference_cell)),
          original_(3 * plane_), reference_(3 * plane_), arms_(3 * plane_) {
        for (std::size_t i = 0; i < atoms_; ++i)
            for (std::size_t a = 0; a < 3; ++a)
                original_[a * plane_ + i] = reference[3 * i + a];
        if (aligned) {
            if (periodic())
                throw std::runtime_error(
                    "the model is aligned with a reference that has a cell; train the model without "
                    "a cell.");
            alignment_.emplace(original_.data(), atoms_, plane_);
        }
        Cell still = whole_cell_; // the part of the reference that does not follow the cell
        for (std::size_t i = 0; i < 9; ++i)
            if (periodic_[i / 3])
                still[i] = 0;
        transform(original_, product(inverse(whole_cell_), still), arms_);
        follow(reference_cell);
    }

    std::size_t atoms() const { return atoms_; }
    /// The cell of the engine, as set last.
    const Cell& cell() const { return cell_; }
    std::size_t plane() const { return plane_; }
    /// Whether there is any direction with periodicity.
    bool periodic() const { return periodic_[0] || periodic_[1] || periodic_[2]; }
    Drift drift() const { return drift_; }

    /// Lets the reference follow the cell; this takes no time while the cell is constant.
    ///
    /// Throws if a cell is not the reference cell with a strain. xi would jump if an engine turned
    /// or flipped its cell.
    void set_cell(const Cell& cell) {
        if (cell == cell_ && ready_)
            return;
        if (!alignment_ && accepts(cell) &&
            !is_strain(inverse(whole_cell_), own_cell(cell), periodic_))
            throw std::runtime_error(
                "the cell of the engine differs from the model's by more than 25 %, is rotated or is "
                "flipped; use the cell, the orientation, the lattice vectors and the units of the "
                "training, and do not let the engine flip the cell (in LAMMPS: flip no).");
        follow(cell);
    }

    /// Whether the cell has the lattice vectors of the reference.
    bool accepts(const Cell& cell) const { return alignment_ || has_vectors(cell); }

    /// The same for any cell with the lattice vectors of the reference, however strained.
    void follow(const Cell& cell) {
        if (alignment_) {
            const auto around = periodic_directions(cell);
            around_ = around[0] || around[1] || around[2];
            if (around_)
                images_ = Images(completed(cell), around);
        } else {
            if (!accepts(cell))
                throw std::runtime_error("the model is of a periodic system and the engine gives "
                                         "no cell; pass the cell to PLUMED.");
            const Cell own = own_cell(cell);
            images_ = Images(own, periodic_);
            transform(original_, product(inverse(whole_cell_), own), reference_);
        }
        cell_ = cell;
        ready_ = true;
    }

    /// Displacements u, 3 plane() numbers, of positions x1 y1 z1 x2 ... times `unit`.
    void displacements(const double* positions, double unit, double* u) {
        if (alignment_) {
            alignment_->displacements(positions, unit, around_ ? &images_ : nullptr, u);
            return;
        }
        const std::size_t first = drift_ == Drift::removed ? 0 : atoms_;
        relative(positions, unit, atoms_, plane_, reference_.data(), first, u);
        if (periodic())
            images_.wrap(atoms_, plane_, u);
        centre(u);
    }

    bool aligned() const { return alignment_.has_value(); }

    /// Converts derivatives with respect to the last displacements into those to the positions.
    void to_positions(double* gradient) const {
        if (alignment_)
            alignment_->to_positions(gradient);
    }

    /// Subtracts the mean over the atoms, in planes, unless the drift is kept.
    void centre(double* planes) const {
        if (drift_ == Drift::removed)
            subtract_mean(atoms_, plane_, planes);
    }

    /// The vectors that a strain changes: the displacements and these, in planes (null: only
    /// displacements); with alignment only the positions.
    const double* arms() const {
        if (alignment_)
            return alignment_->positions();
        return periodic_[0] && periodic_[1] && periodic_[2] ? nullptr : arms_.data();
    }

  private:
    /// Whether the cell has the lattice vectors that the reference has.
    bool has_vectors(const Cell& cell) const {
        const auto found = periodic_directions(cell);
        for (std::size_t i = 0; i < 3; ++i)
            if (periodic_[i] && !found[i])
                return false;
        return true;
    }

    /// The cell with the vectors of the reference along directions without periodicity.
    Cell own_cell(Cell cell) const {
        for (std::size_t i = 0; i < 9; ++i)
            if (!periodic_[i / 3])
                cell[i] = whole_cell_[i];
        return cell;
    }

    /// Row vectors in planes times a matrix.
    void transform(const Array& from, const Cell& s, Array& to) const {
        const double *x = from.data(), *y = x + plane_, *z = y + plane_;
        for (std::size_t a = 0; a < 3; ++a)
            for (std::size_t i = 0; i < plane_; ++i)
                to[a * plane_ + i] = x[i] * s[a] + y[i] * s[3 + a] + z[i] * s[6 + a];
    }

    /// Displacements relative to that of one atom, so that a rigid drift does not move atoms across
    /// a border; to that of none if `first` is the number of atoms.
    PLUMED_CV_CLONES static void relative(const double* r, double unit, std::size_t atoms,
                                          std::size_t plane, const double* reference,
                                          std::size_t first, double* u) {
        const double *fx = reference, *fy = fx + plane, *fz = fy + plane;
        double *x = u, *y = u + plane, *z = u + 2 * plane;
        double x0 = 0, y0 = 0, z0 = 0;
        if (first < atoms) {
            x0 = unit * r[3 * first] - fx[first];
            y0 = unit * r[3 * first + 1] - fy[first];
            z0 = unit * r[3 * first + 2] - fz[first];
        }
#pragma omp simd
        for (std::size_t i = 0; i < atoms; ++i) {
            x[i] = (unit * r[3 * i] - fx[i]) - x0;
            y[i] = (unit * r[3 * i + 1] - fy[i]) - y0;
            z[i] = (unit * r[3 * i + 2] - fz[i]) - z0;
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
    Drift drift_;
    Directions periodic_;
    bool ready_ = false;
    Cell whole_cell_, cell_{}; // that of the reference, completed, and that of the engine
    Array original_, reference_, arms_;
    Images images_;
    std::optional<Alignment> alignment_;
    bool around_ = false; // whether the engine of an aligned molecule has a cell
};

} // namespace plumed_cv
