// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include "cell.h"
#include "images.h"
#include "matrix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

namespace plumed_cv {

using Vector = std::array<double, 3>;

inline Vector cross(const Vector& a, const Vector& b) {
    return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

inline Vector times(const Matrix3& m, const Vector& v) {
    return {m[0] * v[0] + m[1] * v[1] + m[2] * v[2], m[3] * v[0] + m[4] * v[1] + m[5] * v[2],
            m[6] * v[0] + m[7] * v[1] + m[8] * v[2]};
}

/// The largest two eigenvalues of a symmetric 4 x 4 matrix and the eigenvector of the first, by
/// Jacobi's rotations.
struct Leading {
    explicit Leading(std::array<std::array<double, 4>, 4> a) {
        std::array<std::array<double, 4>, 4> v{};
        for (std::size_t i = 0; i < 4; ++i)
            v[i][i] = 1;
        constexpr int most_sweeps = 50; // some six are needed
        for (int sweep = 0; sweep < most_sweeps; ++sweep) {
            double off = 0, all = 0;
            for (std::size_t i = 0; i < 4; ++i)
                for (std::size_t j = 0; j < 4; ++j)
                    (i == j ? all : off) += a[i][j] * a[i][j];
            if (!(off > 1e-32 * all))
                break;
            for (std::size_t p = 0; p < 3; ++p)
                for (std::size_t q = p + 1; q < 4; ++q)
                    rotate(a, v, p, q);
        }
        std::size_t best = 0;
        for (std::size_t i = 1; i < 4; ++i)
            if (a[i][i] > a[best][best])
                best = i;
        first = a[best][best];
        second = -std::numeric_limits<double>::infinity();
        for (std::size_t i = 0; i < 4; ++i) {
            vector[i] = v[i][best];
            if (i != best)
                second = std::max(second, a[i][i]);
        }
    }

    double first, second;
    std::array<double, 4> vector{};

  private:
    static void rotate(std::array<std::array<double, 4>, 4>& a,
                       std::array<std::array<double, 4>, 4>& v, std::size_t p, std::size_t q) {
        if (a[p][q] == 0)
            return;
        const double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        const double t = (theta < 0 ? -1 : 1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        const auto turn = [c, s](double& x, double& y) {
            const double old = x;
            x = c * old - s * y;
            y = s * old + c * y;
        };
        for (std::size_t k = 0; k < 4; ++k)
            turn(a[k][p], a[k][q]);
        for (std::size_t k = 0; k < 4; ++k)
            turn(a[p][k], a[q][k]);
        for (std::size_t k = 0; k < 4; ++k)
            turn(v[k][p], v[k][q]);
    }
};

/// The best fit of a molecule to its reference by a translation and a rotation, and the derivatives
/// of the fitted positions.
///
/// y are the positions and f the reference, both relative to their means over the atoms. The
/// rotation R minimises sum |R y - f|^2. It is given by the quaternion that is the leading
/// eigenvector of Horn's matrix (J. Opt. Soc. Am. A 4, 629 (1987)); this method has no singular
/// orientations. Arrays are in planes, as in Frame, unless stated otherwise.
class Alignment {
  public:
    /// Throws if the atoms lie on a line.
    Alignment(const double* reference, std::size_t atoms, std::size_t plane)
        : atoms_(atoms), plane_(plane), reference_(reference, reference + 3 * plane), y_(3 * plane),
          z_(3 * plane), order_(1, 0), parents_(atoms, 0) {
        subtract_mean(reference_.data());
        join_neighbours();
        y_ = reference_;
        fit();
    }

    /// Displacements u = R y - f, in planes, of positions x1 y1 z1 x2 ... times `unit`. In a cell,
    /// the molecule is made whole first.
    ///
    /// Each atom is moved to the image nearest to its neighbour in the shortest tree that joins all
    /// atoms of the reference. Distances in this tree must be smaller than half of the width of the
    /// cell.
    void displacements(const double* positions, double unit, const Images* images, double* u) {
        for (std::size_t i = 0; i < atoms_; ++i)
            for (std::size_t a = 0; a < 3; ++a)
                y_[a * plane_ + i] = unit * positions[3 * i + a];
        if (images != nullptr)
            for (std::size_t k = 1; k < atoms_; ++k) {
                const std::size_t i = order_[k], j = parents_[i];
                Vector bond;
                for (std::size_t a = 0; a < 3; ++a)
                    bond[a] = y_[a * plane_ + i] - y_[a * plane_ + j];
                Vector image = bond;
                images->wrap(image.data());
                for (std::size_t a = 0; a < 3; ++a)
                    y_[a * plane_ + i] -= bond[a] - image[a];
            }
        subtract_mean(y_.data());
        fit();
        for (std::size_t j = 0; j < 3 * plane_; ++j)
            u[j] = z_[j] - reference_[j];
    }

    /// Converts derivatives with respect to u into derivatives with respect to the positions.
    ///
    /// The rotation depends on the positions. Its change follows from sum (R y) x f = 0.
    void to_positions(double* gradient) const {
        double* const g = gradient;
        Vector torque{};
        for (std::size_t i = 0; i < atoms_; ++i) {
            const Vector t = cross(atom(z_, i), {g[i], g[plane_ + i], g[2 * plane_ + i]});
            for (std::size_t a = 0; a < 3; ++a)
                torque[a] += t[a];
        }
        const Vector lambda = times(response_, torque);
        for (std::size_t i = 0; i < atoms_; ++i) {
            const Vector change = cross(atom(reference_, i), lambda);
            Vector whole;
            for (std::size_t a = 0; a < 3; ++a)
                whole[a] = g[a * plane_ + i] + change[a];
            for (std::size_t a = 0; a < 3; ++a) // R^T
                g[a * plane_ + i] = rotation_[a] * whole[0] + rotation_[3 + a] * whole[1] +
                                    rotation_[6 + a] * whole[2];
        }
    }

    /// The positions relative to their mean, made whole and not rotated.
    const double* positions() const { return y_.data(); }

  private:
    Vector atom(const Array& planes, std::size_t i) const {
        return {planes[i], planes[plane_ + i], planes[2 * plane_ + i]};
    }

    void subtract_mean(double* planes) const {
        for (std::size_t a = 0; a < 3; ++a) {
            double* const x = planes + a * plane_;
            double sum = 0;
            for (std::size_t i = 0; i < atoms_; ++i)
                sum += x[i];
            for (std::size_t i = 0; i < atoms_; ++i)
                x[i] -= sum / static_cast<double>(atoms_);
        }
    }

    /// The shortest tree through the reference (Prim): order_ has each atom after its parent.
    void join_neighbours() {
        std::vector<double> nearest_distance(atoms_, std::numeric_limits<double>::infinity());
        std::vector<bool> joined(atoms_, false);
        joined[0] = true;
        for (std::size_t last = 0; order_.size() < atoms_;) {
            std::size_t next = atoms_;
            for (std::size_t i = 0; i < atoms_; ++i) {
                if (joined[i])
                    continue;
                double distance = 0;
                for (std::size_t a = 0; a < 3; ++a) {
                    const double* const x = &reference_[a * plane_];
                    distance += (x[i] - x[last]) * (x[i] - x[last]);
                }
                if (distance < nearest_distance[i]) {
                    nearest_distance[i] = distance;
                    parents_[i] = last;
                }
                if (next == atoms_ || nearest_distance[i] < nearest_distance[next])
                    next = i;
            }
            joined[next] = true;
            order_.push_back(next);
            last = next;
        }
    }

    /// The rotation, z = R y, and the inverse of sum (z . f - z f^T).
    void fit() {
        Matrix3 s{}; // sum y_a f_b
        for (std::size_t a = 0; a < 3; ++a)
            for (std::size_t b = 0; b < 3; ++b)
                for (std::size_t i = 0; i < atoms_; ++i)
                    s[3 * a + b] += y_[a * plane_ + i] * reference_[b * plane_ + i];
        const double xx = s[0], yy = s[4], zz = s[8];
        const Leading found({{{xx + yy + zz, s[5] - s[7], s[6] - s[2], s[1] - s[3]},
                              {s[5] - s[7], xx - yy - zz, s[1] + s[3], s[6] + s[2]},
                              {s[6] - s[2], s[1] + s[3], -xx + yy - zz, s[5] + s[7]},
                              {s[1] - s[3], s[6] + s[2], s[5] + s[7], -xx - yy + zz}}});
        // Half the difference is the least moment that fixes the rotation. NaN fails this
        // comparison.
        if (!(0.5 * (found.first - found.second) > smallest_moment * found.first))
            throw std::runtime_error(
                "the atoms can be aligned with the reference in more than one way, as when they lie "
                "on a line or the molecule has turned inside out; choose other atoms.");
        const double w = found.vector[0], x = found.vector[1], y = found.vector[2],
                     z = found.vector[3];
        rotation_ = {w * w + x * x - y * y - z * z, 2 * (x * y - w * z),
                     2 * (x * z + w * y),           2 * (x * y + w * z),
                     w * w - x * x + y * y - z * z, 2 * (y * z - w * x),
                     2 * (x * z - w * y),           2 * (y * z + w * x),
                     w * w - x * x - y * y + z * z};
        Matrix3 m{};
        for (std::size_t i = 0; i < atoms_; ++i) {
            const Vector turned = times(rotation_, atom(y_, i)), f = atom(reference_, i);
            for (std::size_t a = 0; a < 3; ++a) {
                z_[a * plane_ + i] = turned[a];
                for (std::size_t b = 0; b < 3; ++b)
                    m[3 * a + b] -= turned[a] * f[b];
            }
        }
        const double trace = m[0] + m[4] + m[8];
        for (std::size_t a = 0; a < 9; a += 4)
            m[a] -= trace;
        response_ = inverse(m);
    }

    static constexpr double smallest_moment = 1e-6;

    std::size_t atoms_, plane_;
    Array reference_, y_, z_; // f, y and R y
    std::vector<std::size_t> order_, parents_;
    Matrix3 rotation_{}, response_{};
};

} // namespace plumed_cv
