// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <vector>

#include "vector_math.h"

namespace plumed_cv {

/// The potential on a two-dimensional grid whose differences between neighbours are closest to
/// given steps: the A that minimises the sum over edges of w (A_b - A_a - step)^2. With equal
/// weights this is the Poisson equation for the divergence of the steps, with the steps themselves
/// as (Neumann) boundary conditions; a curl in the steps has no effect. Grids may be periodic along
/// either axis. The first index varies fastest.
///
/// It is solved by conjugate gradients with a modified incomplete Cholesky factorisation, which
/// also works for weights that differ by many orders of magnitude.
class Poisson {
  public:
    /// One number for the edge from every node to the next one along an axis. Numbers of edges that
    /// do not exist are not read.
    using Edges = std::array<std::vector<double>, 2>;

    Poisson(std::array<std::size_t, 2> nodes, std::array<bool, 2> periodic)
        : nodes_(nodes), periodic_(periodic) {
        const std::size_t n = size();
        for (std::vector<double>* array : {&diagonal_, &inverse_, &r_, &z_, &p_, &q_})
            array->resize(n);
        for (auto& weight : weight_)
            weight.resize(n);
    }

    std::size_t size() const { return nodes_[0] * nodes_[1]; }

    bool has_next(std::size_t axis, std::size_t j) const {
        return periodic_[axis] || index(axis, j) + 1 < nodes_[axis];
    }
    bool has_previous(std::size_t axis, std::size_t j) const {
        return periodic_[axis] || index(axis, j) > 0;
    }
    /// The next node along an axis, across the border of a periodic one.
    std::size_t next(std::size_t axis, std::size_t j) const {
        const std::size_t stride = axis == 0 ? 1 : nodes_[0];
        return index(axis, j) + 1 < nodes_[axis] ? j + stride : j - (nodes_[axis] - 1) * stride;
    }
    std::size_t previous(std::size_t axis, std::size_t j) const {
        const std::size_t stride = axis == 0 ? 1 : nodes_[0];
        return index(axis, j) > 0 ? j - stride : j + (nodes_[axis] - 1) * stride;
    }

    /// Improves the given A until it reaches a relative error of 1e-13; returns the number of
    /// iterations. Weights must not be negative. A is determined up to a constant, or up to one
    /// constant for each part if edges without weight divide the grid into parts.
    int solve(const Edges& weight, const Edges& step, std::vector<double>& A) {
        for (std::size_t axis = 0; axis < 2; ++axis)
            for (std::size_t j = 0; j < size(); ++j)
                weight_[axis][j] = has_next(axis, j) ? weight[axis][j] : 0.0;
        factorise();

        // The residuals for A = 0 and for the given A.
        std::fill(r_.begin(), r_.end(), 0.0);
        add_divergence(step);
        const double whole = precondition();
        residual(step, A);
        double rz = precondition();
        const double enough = 1e-26 * std::max(whole, rz);
        int iterations = 0;
        // In many iterations the residual drifts away from that of A, so it is computed anew until
        // this no longer helps.
        for (double before = INFINITY; rz > enough && rz < 0.1 * before;) {
            before = rz;
            iterate(rz, enough, A, iterations);
            residual(step, A);
            rz = precondition();
        }
        if (!(rz <= tolerable * enough))
            converged_ = false;
        return iterations;
    }

    /// Whether every solution so far has a relative error below 1e-10.
    bool converged() const { return converged_; }

  private:
    std::size_t index(std::size_t axis, std::size_t j) const {
        return axis == 0 ? j % nodes_[0] : j / nodes_[0];
    }

    static double dot(const std::vector<double>& a, const std::vector<double>& b) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::size_t j = 0; j < a.size(); ++j)
            sum += a[j] * b[j];
        return sum;
    }

    /// Calls f(a, b, e) for every edge from a to b, where e is its index in Edges, axis by axis.
    template <class Function>
    void for_edges(std::size_t axis, Function&& f) const {
        const std::size_t n = nodes_[0], m = nodes_[1];
        if (axis == 0) {
            for (std::size_t y = 0; y < m; ++y) {
                const std::size_t row = y * n;
                for (std::size_t x = 0; x + 1 < n; ++x)
                    f(row + x, row + x + 1);
                if (periodic_[0])
                    f(row + n - 1, row);
            }
        } else {
            for (std::size_t j = 0; j + n < n * m; ++j)
                f(j, j + n);
            if (periodic_[1])
                for (std::size_t x = 0; x < n; ++x)
                    f((m - 1) * n + x, x);
        }
    }

    void add_divergence(const Edges& step) {
        for (std::size_t axis = 0; axis < 2; ++axis)
            for_edges(axis, [&](std::size_t a, std::size_t b) {
                const double flow = weight_[axis][a] * step[axis][a];
                r_[b] += flow;
                r_[a] -= flow;
            });
    }

    /// Conjugate gradients from A, whose residual is r, until rz is small enough or no longer falls.
    void iterate(double rz, double enough, std::vector<double>& A, int& iterations) {
        std::copy(z_.begin(), z_.end(), p_.begin());
        double least = rz;
        for (int stuck = 0; rz > enough && stuck < 300 && iterations < 20000; ++iterations) {
            multiply();
            const double curvature = dot(p_, q_);
            if (!(curvature > 0))
                break;
            const double alpha = rz / curvature;
            for (std::size_t j = 0; j < size(); ++j) {
                A[j] += alpha * p_[j];
                r_[j] -= alpha * q_[j];
            }
            const double before = rz;
            rz = precondition();
            stuck = rz < least ? 0 : stuck + 1;
            least = std::min(least, rz);
            const double beta = rz / before;
            for (std::size_t j = 0; j < size(); ++j)
                p_[j] = z_[j] + beta * p_[j];
        }
    }

    /// r = right-hand side of the steps minus the matrix times A.
    void residual(const Edges& step, const std::vector<double>& A) {
        std::fill(r_.begin(), r_.end(), 0.0);
        for (std::size_t axis = 0; axis < 2; ++axis)
            for_edges(axis, [&](std::size_t a, std::size_t b) {
                const double flow = weight_[axis][a] * (step[axis][a] - (A[b] - A[a]));
                r_[b] += flow;
                r_[a] -= flow;
            });
    }

    /// q = the matrix of the problem times p.
    void multiply() {
        const std::size_t n = nodes_[0], m = nodes_[1];
        for (std::size_t j = 0; j < size(); ++j)
            q_[j] = diagonal_[j] * p_[j];
        for (std::size_t row = 0; row < n * m; row += n) {
            inner(&weight_[0][row], &p_[row], &q_[row], n - 1, 1);
            if (periodic_[0])
                inner(&weight_[0][row + n - 1], &p_[row + n - 1], &q_[row + n - 1], 1,
                      1 - static_cast<std::ptrdiff_t>(n));
        }
        inner(weight_[1].data(), p_.data(), q_.data(), n * m - n, static_cast<std::ptrdiff_t>(n));
        if (periodic_[1]) {
            const std::size_t last = n * m - n;
            inner(&weight_[1][last], &p_[last], &q_[last], n, -static_cast<std::ptrdiff_t>(last));
        }
    }

    /// The same for edges between j and j + stride, which may be backwards.
    PLUMED_CV_CLONES static void inner(const double* w, const double* p, double* q, std::size_t n,
                                       std::ptrdiff_t stride) {
        const double* there = p + stride;
        double* result = q + stride;
#pragma omp simd
        for (std::size_t j = 0; j < n; ++j)
            q[j] -= w[j] * there[j];
#pragma omp simd
        for (std::size_t j = 0; j < n; ++j)
            result[j] -= w[j] * p[j];
    }

    /// The pivots of a factorisation without fill-in that adds nearly all omitted elements to the
    /// diagonal.
    void factorise() {
        const std::size_t n = nodes_[0], m = nodes_[1];
        std::fill(diagonal_.begin(), diagonal_.end(), 0.0);
        std::vector<double>& later = q_; // weights of the edges to nodes that come later
        std::fill(later.begin(), later.end(), 0.0);
        for (std::size_t axis = 0; axis < 2; ++axis)
            for_edges(axis, [&](std::size_t a, std::size_t b) {
                const double w = weight_[axis][a];
                diagonal_[a] += w;
                diagonal_[b] += w;
                later[std::min(a, b)] += w;
            });
        constexpr double kept = 0.99; // with all of it many grids take twice as long
        std::vector<double>& pivot = z_;
        std::copy(diagonal_.begin(), diagonal_.end(), pivot.begin());
        const auto eliminate = [&](std::size_t earlier, std::size_t j, double w) {
            pivot[j] -= w * ((1 - kept) * w + kept * later[earlier]) * inverse_[earlier];
        };
        for (std::size_t y = 0, j = 0; y < m; ++y)
            for (std::size_t x = 0; x < n; ++x, ++j) {
                if (x > 0)
                    eliminate(j - 1, j, weight_[0][j - 1]);
                if (y > 0)
                    eliminate(j - n, j, weight_[1][j - n]);
                if (periodic_[0] && x + 1 == n)
                    eliminate(j - (n - 1), j, weight_[0][j]);
                if (periodic_[1] && y + 1 == m)
                    eliminate(x, j, weight_[1][j]);
                // A node without edges has the pivot 0, and the last node of a part nearly 0.
                inverse_[j] = pivot[j] > 1e-9 * diagonal_[j] ? 1 / pivot[j] : 0.0;
            }
    }

    /// z = r divided by the factorisation; returns r z.
    double precondition() {
        const std::size_t n = nodes_[0], m = nodes_[1]; // clang wants no [n, m] in omp loops
        for (std::size_t y = 0; y < m; ++y) {
            const std::size_t row = y * n;
            double* z = &z_[row];
            std::copy_n(&r_[row], n, z);
            if (y > 0) {
                const double *w = &weight_[1][row - n], *below = &z_[row - n];
#pragma omp simd
                for (std::size_t x = 0; x < n; ++x)
                    z[x] += w[x] * below[x];
            }
            if (periodic_[1] && y + 1 == m)
                for (std::size_t x = 0; x < n; ++x)
                    z[x] += weight_[1][row + x] * z_[x];
            const double *w = &weight_[0][row], *inverse = &inverse_[row];
            z[0] *= inverse[0];
            if (periodic_[0])
                z[n - 1] += w[n - 1] * z[0];
            for (std::size_t x = 1; x < n; ++x)
                z[x] = inverse[x] * z[x] + (inverse[x] * w[x - 1]) * z[x - 1];
        }
        double product = 0;
        for (std::size_t y = m; y-- > 0;) {
            const std::size_t row = y * n;
            double* z = &z_[row];
            const double *w = &weight_[0][row], *inverse = &inverse_[row];
            if (y + 1 < m) {
                const double *up = &weight_[1][row], *above = &z_[row + n];
#pragma omp simd
                for (std::size_t x = 0; x < n; ++x)
                    z[x] += inverse[x] * up[x] * above[x];
            }
            if (periodic_[1] && y == 0)
                for (std::size_t x = 0; x < n; ++x)
                    z[x] += inverse[x] * weight_[1][(m - 1) * n + x] * z_[(m - 1) * n + x];
            for (std::size_t x = n - 1; x-- > 0;) {
                if (x == 0 && periodic_[0])
                    z[0] += inverse[0] * w[n - 1] * z[n - 1];
                z[x] += (inverse[x] * w[x]) * z[x + 1];
            }
            for (std::size_t x = 0; x < n; ++x)
                product += z[x] * r_[row + x];
        }
        return product;
    }

    static constexpr double tolerable = 1e6;

    std::array<std::size_t, 2> nodes_;
    std::array<bool, 2> periodic_;
    std::array<std::vector<double>, 2> weight_;
    std::vector<double> diagonal_, inverse_; // of the matrix; of the pivots
    std::vector<double> r_, z_, p_, q_;      // of conjugate gradients
    bool converged_ = true;
};

} // namespace plumed_cv
