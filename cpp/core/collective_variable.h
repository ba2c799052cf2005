// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include "basis.h"
#include "frame.h"
#include "matrix.h"
#include "model.h"
#include "network.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace plumed_cv {

/// The collective variable xi of a model, its gradient, and the distance of the system from its
/// path.
///
/// All numbers are in the model's unit of length, angstrom. evaluate() and gradient() do not
/// allocate memory. With x = U^T (u - mean) and orthonormal U, d xi/d r is U d xi/d x. (U is
/// mean-free if the mean of u is subtracted.) Therefore every norm and product of gradients is one
/// of small vectors over the components. With alignment this does not hold, and the gradients
/// themselves are needed.
class CollectiveVariable {
  public:
    /// Throws ModelError if the model does not reproduce its own check values.
    explicit CollectiveVariable(const Model& model)
        : components_(model.components), latent_(model.latent),
          frame_(model.reference_positions, model.reference_cell, model.aligned, model.drift),
          stride_(3 * frame_.plane()), basis_(components_, stride_), mean_(stride_),
          encoder_(model.encoder, model.activation), decoder_(model.decoder, model.activation),
          shift_(model.latent_shift), scale_(model.latent_scale), u_(stride_), v_(stride_),
          apart_(stride_), x_(padded(components_)), off_(padded(components_)),
          path_(padded(components_)), beside_(padded(components_)), back_(padded(components_)),
          f_(padded(latent_)), factors_(padded(latent_)), xi_(latent_),
          jacobian_(latent_ * x_.size()), directions_(jacobian_.size()),
          gradients_((frame_.aligned() ? latent_ : 1) * stride_), guard_(stride_),
          weighted_(frame_.aligned() ? stride_ : jacobian_.size()),
          inverse_mass_(components_ * x_.size()), gram_(latent_ * latent_) {
        to_planes(model.pca_mean.data(), mean_.data());
        for (std::size_t k = 0; k < components_; ++k)
            to_planes(&model.pca_components[3 * k * atoms()], basis_.row(k));
        verify(model);
    }

    std::size_t atoms() const { return frame_.atoms(); }
    std::size_t components() const { return components_; }
    std::size_t latent() const { return latent_; }
    /// Multiplications of one product with the components; a step has two to four.
    std::size_t work() const { return 3 * atoms() * components_; }
    const Frame& frame() const { return frame_; }

    /// Divides the work among processes, which then call all functions together; see Basis.
    void share(Team* team) { basis_.share(team); }
    /// Divides the work of this process among threads.
    void set_threads(std::size_t threads) { basis_.set_threads(threads); }

    /// Masses of the atoms, for inverse_mass(); if a mass is NaN, so is the result.
    void set_masses(const std::vector<double>& masses) {
        if (frame_.aligned()) {
            light_.assign(stride_, 0);
            for (std::size_t j = 0; j < stride_; ++j)
                if (j % frame_.plane() < atoms())
                    light_[j] = 1 / masses[j % frame_.plane()];
            return;
        }
        Array row(stride_);
        for (std::size_t k = 0; k < components_; ++k) {
            for (std::size_t j = 0; j < stride_; ++j) {
                const std::size_t i = j % frame_.plane();
                row[j] = i < atoms() ? basis_.row(k)[j] / masses[i] : 0;
            }
            basis_.project(row.data(), &inverse_mass_[k * x_.size()]);
        }
    }

    /// Sets the state to positions x1 y1 z1 x2 ... times `unit`, in a cell in angstrom.
    void evaluate(const double* positions, double unit, const Cell& cell) {
        frame_.set_cell(cell);
        frame_.displacements(positions, unit, u_.data());
        distance2_ = subtract(frame_.plane(), u_.data(), mean_.data(), v_.data());
        basis_.project(v_.data(), x_.data());

        const double* f = encoder_.forward(x_.data());
        std::copy_n(f, latent_, f_.begin());
        for (std::size_t k = 0; k < latent_; ++k) {
            xi_[k] = (f[k] - shift_[k]) * scale_[k];
            double* g = jacobian(k);
            encoder_.backward(k, g);
            std::transform(g, g + x_.size(), g, [&](double v) { return v * scale_[k]; });
        }
        measure_deviation();
        if (frame_.aligned()) {
            for (std::size_t k = 0; k < latent_; ++k)
                make_gradient(k, &gradients_[k * stride_]);
            for (std::size_t k = 0; k < latent_; ++k)
                multiply(gradients_.data(), latent_, stride_, &gradients_[k * stride_],
                         &gram_[k * latent_]);
            gradient_norm_ = std::sqrt(std::max(determinant_of_gram(), 0.0));
        }
    }

    double value(std::size_t k) const { return xi_[k]; }

    /// The distance from the mean path orthogonal to the gradients (Eq. 21), angstrom.
    double deviation() const { return deviation_; }

    /// The largest distance of an atom from its place on the mean path, |u_i - u^_i|, angstrom.
    ///
    /// deviation() increases with the thermal motion of all atoms; this distance shows the jump of
    /// a single atom in a system of any size. It takes as long as gradient().
    double largest_deviation() {
        for (std::size_t k = 0; k < components_; ++k)
            path_[k] = off_[k] - x_[k]; // the path, negative
        std::copy(v_.begin(), v_.end(), apart_.begin());
        basis_.add(path_.data(), apart_.data());
        const Planes apart(apart_.data(), frame_.plane());
        double largest = 0;
        farthest_ = 0;
        for (std::size_t i = 0; i < atoms(); ++i) {
            const double square =
                apart.x[i] * apart.x[i] + apart.y[i] * apart.y[i] + apart.z[i] * apart.z[i];
            if (square > largest || std::isnan(square)) {
                largest = square;
                farthest_ = i;
            }
        }
        return std::sqrt(largest);
    }

    /// The gradient of deviation() in planes (see Frame); zero if the deviation is zero. It is
    /// valid until the next call of this function or the next one.
    ///
    /// With w = x - x^(x), P the projection on the gradients g_k and w' = w - P w, half the gradient
    /// of dev^2 is v - U x + U [w' - (d x^/dx)^T w' - sum_k c_k (d g_k/dx) w'], P w = sum_k c_k g_k.
    const double* deviation_gradient() {
        const std::size_t n = x_.size();
        beside_ = off_;
        std::vector<double> along(latent_);
        for (std::size_t k = 0; k < latent_; ++k) {
            const double* q = &directions_[k * n];
            along[k] = dot(q, off_.data(), n);
            for (std::size_t i = 0; i < n; ++i)
                beside_[i] -= along[k] * q[i];
        }
        std::fill(factors_.begin(), factors_.end(), 0.0);
        for (std::size_t k = latent_; k-- > 0;) {
            const double* q = &directions_[k * n];
            double left = along[k];
            for (std::size_t l = k + 1; l < latent_; ++l)
                left -= factors_[l] * dot(jacobian(l), q, n);
            const double length = dot(jacobian(k), q, n);
            factors_[k] = length > 0 ? left / length : 0;
        }
        for (std::size_t k = 0; k < latent_; ++k)
            factors_[k] *= scale_[k];
        encoder_.curvature(factors_.data(), beside_.data(), path_.data());
        path_back(beside_.data());
        for (std::size_t i = 0; i < n; ++i)
            back_[i] = beside_[i] - back_[i] - path_[i] - x_[i];
        guard_ = v_;
        basis_.add(back_.data(), guard_.data());
        const double scale = deviation_ > 0 ? 1 / deviation_ : 0;
        for (double& g : guard_)
            g *= scale;
        return finished_guard();
    }

    /// The same for largest_deviation(), for the atom that its last call found.
    const double* largest_deviation_gradient() {
        const std::size_t plane = frame_.plane();
        double direction[3], square = 0;
        for (std::size_t a = 0; a < 3; ++a) {
            direction[a] = apart_[a * plane + farthest_];
            square += direction[a] * direction[a];
        }
        const double scale = square > 0 ? 1 / std::sqrt(square) : 0;
        std::fill(guard_.begin(), guard_.end(), 0.0);
        std::fill(beside_.begin(), beside_.end(), 0.0);
        for (std::size_t a = 0; a < 3; ++a) {
            const std::size_t j = a * plane + farthest_;
            guard_[j] = scale * direction[a];
            for (std::size_t k = 0; k < components_; ++k)
                beside_[k] += guard_[j] * basis_.row(k)[j];
        }
        path_back(beside_.data());
        for (double& b : back_)
            b = -b;
        basis_.add(back_.data(), guard_.data());
        return finished_guard();
    }

    /// The volume spanned by the gradients; |grad xi| if there is one latent dimension, 1/angstrom.
    double gradient_norm() const { return gradient_norm_; }

    /// det of sum_i grad_i xi_k . grad_i xi_l / m_i, in 1/(angstrom^2 mass) to the power latent().
    double inverse_mass() {
        if (frame_.aligned()) {
            for (std::size_t k = 0; k < latent_; ++k) {
                const double* const g = &gradients_[k * stride_];
                for (std::size_t j = 0; j < stride_; ++j)
                    weighted_[j] = g[j] * light_[j];
                multiply(gradients_.data(), latent_, stride_, weighted_.data(),
                         &gram_[k * latent_]);
            }
            return determinant_of_gram();
        }
        const std::size_t n = x_.size();
        std::fill(weighted_.begin(), weighted_.end(), 0.0);
        for (std::size_t k = 0; k < latent_; ++k) // the matrix is symmetric
            add_transposed(inverse_mass_.data(), components_, n, jacobian(k), &weighted_[k * n]);
        for (std::size_t k = 0; k < latent_; ++k)
            multiply(jacobian_.data(), latent_, n, &weighted_[k * n], &gram_[k * latent_]);
        return determinant_of_gram();
    }

    /// The gradient d xi_k/d r in planes (see Frame), 1/angstrom. It is valid until the next call.
    const double* gradient(std::size_t k) {
        if (frame_.aligned())
            return &gradients_[k * stride_];
        make_gradient(k, gradients_.data());
        return gradients_.data();
    }

    /// d xi_k/d strain_ab for strains r_b -> r_b + sum_a r_a strain_ab of cell and atoms, from the
    /// result of gradient(k).
    Cell strain_derivative(const double* gradient) const {
        Cell strain{};
        if (!frame_.aligned())
            add_products(frame_.plane(), u_.data(), gradient, strain);
        if (const double* const arms = frame_.arms())
            add_products(frame_.plane(), arms, gradient, strain);
        return strain;
    }

  private:
    /// back_ = (d x^/dx)^T c, of components c.
    void path_back(const double* c) {
        decoder_.backward(c, factors_.data());
        encoder_.backward(factors_.data(), back_.data());
    }

    const double* finished_guard() {
        frame_.centre(guard_.data());
        frame_.to_positions(guard_.data());
        return guard_.data();
    }

    void make_gradient(std::size_t k, double* gradient) {
        std::fill_n(gradient, stride_, 0.0);
        basis_.add(jacobian(k), gradient);
        frame_.to_positions(gradient);
    }

    /// By elimination, which overwrites the matrix.
    double determinant_of_gram() {
        double determinant = 1;
        for (std::size_t k = 0; k < latent_; ++k) {
            const double pivot = gram_[k * latent_ + k];
            determinant *= pivot;
            if (pivot == 0)
                break;
            for (std::size_t i = k + 1; i < latent_; ++i)
                for (std::size_t j = latent_; j-- > k;)
                    gram_[i * latent_ + j] -=
                        gram_[i * latent_ + k] / pivot * gram_[k * latent_ + j];
        }
        return determinant;
    }

    double* jacobian(std::size_t k) { return &jacobian_[k * x_.size()]; }

    void to_planes(const double* interleaved, double* planes) const {
        for (std::size_t i = 0; i < atoms(); ++i)
            for (std::size_t a = 0; a < 3; ++a)
                planes[a * frame_.plane() + i] = interleaved[3 * i + a];
    }

    /// c = a - b; returns |c|^2. Three sums, as in frame planes, hide the latency of an addition.
    PLUMED_CV_CLONES static double subtract(std::size_t plane, const double* a, const double* b,
                                            double* c) {
        const Planes u(a, plane), v(b, plane);
        const Planes w(c, plane);
        double sx = 0, sy = 0, sz = 0;
#pragma omp simd reduction(+ : sx, sy, sz)
        for (std::size_t i = 0; i < plane; ++i) {
            w.x[i] = u.x[i] - v.x[i];
            w.y[i] = u.y[i] - v.y[i];
            w.z[i] = u.z[i] - v.z[i];
            sx += w.x[i] * w.x[i];
            sy += w.y[i] * w.y[i];
            sz += w.z[i] * w.z[i];
        }
        return sx + sy + sz;
    }

    /// Adds sum_i a_i (x) b_i of two arrays in planes to a 3 x 3 matrix.
    PLUMED_CV_CLONES static void add_products(std::size_t plane, const double* a, const double* b,
                                              Cell& sum) {
        const Planes u(a, plane), v(b, plane);
        double xx = 0, xy = 0, xz = 0, yx = 0, yy = 0, yz = 0, zx = 0, zy = 0, zz = 0;
#pragma omp simd reduction(+ : xx, xy, xz, yx, yy, yz, zx, zy, zz)
        for (std::size_t i = 0; i < plane; ++i) {
            xx += u.x[i] * v.x[i];
            xy += u.x[i] * v.y[i];
            xz += u.x[i] * v.z[i];
            yx += u.y[i] * v.x[i];
            yy += u.y[i] * v.y[i];
            yz += u.y[i] * v.z[i];
            zx += u.z[i] * v.x[i];
            zy += u.z[i] * v.y[i];
            zz += u.z[i] * v.z[i];
        }
        const double sums[9] = {xx, xy, xz, yx, yy, yz, zx, zy, zz};
        for (std::size_t j = 0; j < 9; ++j)
            sum[j] += sums[j];
    }

    static double dot(const double* a, const double* b, std::size_t n) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::size_t i = 0; i < n; ++i)
            sum += a[i] * b[i];
        return sum;
    }

    /// |v - U x^| orthogonal to the gradients, v = u - mean. It has two parts: the part of v
    /// outside of the components, and the part of x - x^ orthogonal to the gradients, which are
    /// orthonormalised.
    void measure_deviation() {
        const std::size_t n = x_.size();
        const double* path = decoder_.forward(f_.data());
        for (std::size_t i = 0; i < components_; ++i)
            off_[i] = x_[i] - path[i];
        double square =
            distance2_ - dot(x_.data(), x_.data(), n) + dot(off_.data(), off_.data(), n);
        gradient_norm_ = 1;
        std::copy(jacobian_.begin(), jacobian_.end(), directions_.begin());
        for (std::size_t k = 0; k < latent_; ++k) {
            double* q = &directions_[k * n];
            const double whole = dot(q, q, n);
            for (std::size_t l = 0; l < k; ++l) {
                const double* p = &directions_[l * n];
                const double along = dot(p, q, n);
                for (std::size_t i = 0; i < n; ++i)
                    q[i] -= along * p[i];
            }
            const double left = dot(q, q, n), norm = std::sqrt(left);
            gradient_norm_ *= norm;
            // A gradient that is zero, or a combination of those before, adds no direction.
            const double inverse = left > 1e-15 * whole ? 1 / norm : 0;
            for (std::size_t i = 0; i < n; ++i)
                q[i] *= inverse;
            const double along = dot(q, off_.data(), n);
            square -= along * along;
        }
        deviation_ = std::sqrt(std::max(square, 0.0));
    }

    /// The file may be damaged, or the program that wrote it may differ from this one: both are
    /// errors.
    void verify(const Model& model) {
        constexpr double tolerance = 1e-9;
        bool agrees = frame_.accepts(model.check_cell);
        if (agrees) {
            frame_.follow(model.check_cell);
            evaluate(model.check_positions.data(), 1, model.check_cell);
            for (std::size_t k = 0; k < latent_; ++k) {
                const double expected = model.check_value[k];
                agrees &= std::abs(xi_[k] - expected) <= tolerance * (1 + std::abs(expected));
                const double* g = gradient(k);
                const double* check = &model.check_gradient[3 * k * atoms()];
                double difference = 0, norm = 0;
                for (std::size_t i = 0; i < atoms(); ++i)
                    for (std::size_t a = 0; a < 3; ++a) {
                        const double c = check[3 * i + a];
                        difference += std::pow(g[a * frame_.plane() + i] - c, 2);
                        norm += c * c;
                    }
                agrees &= std::sqrt(difference) <= tolerance * std::sqrt(norm);
            }
            // dev^2 is a difference of squares; its rounding error is that of the largest square.
            const double expected = model.check_deviation;
            agrees &= std::abs(deviation_ * deviation_ - expected * expected) <=
                      tolerance * (distance2_ + expected * expected);
        }
        if (!agrees || model.changed)
            throw ModelError(model.name,
                             std::string("does not give its own ") +
                                 (agrees ? "checksum" : "check values") +
                                 ", so the file has been changed or damaged; export the model "
                                 "again.");
    }

    std::size_t components_, latent_;
    Frame frame_;
    std::size_t stride_;
    Basis basis_;
    Array mean_; // in planes
    Network encoder_, decoder_;
    std::vector<double> shift_, scale_;

    Array u_, v_;                   // displacements, and the same less the mean
    Array apart_;                   // displacements from the path
    Array x_, off_, path_;          // components, their distance from the path, and the path
    Array beside_, back_;           // components, for the gradients of both deviations
    Array f_, factors_;             // the encoder's output; factors of such numbers
    std::vector<double> xi_;        // the same, rescaled
    Array jacobian_, directions_;   // d xi/d x, row by row, and the same made orthonormal
    Array gradients_;               // with alignment all of them, else the one asked for last
    Array guard_;                   // the gradient of a deviation
    Array weighted_, inverse_mass_; // U^T diag(1/m) U
    std::vector<double> gram_;
    Array light_; // with alignment, 1/m of each coordinate
    double distance2_ = 0, deviation_ = 0, gradient_norm_ = 0;
    std::size_t farthest_ = 0; // the atom of largest_deviation()
};

} // namespace plumed_cv
