// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <vector>

#include "babf_sums.h"
#include "matrix.h"
#include "vector_math.h"

// One step of bABF: the bias and the conditional distribution of the extended variable, Eq. 9 of
// Baima et al., Phys. Chem. Chem. Phys. 24, 23152 (2022).
namespace plumed_cv {

struct Evaluation {
    double bias;
    Point force; // -d bias / d xi
    Point zeta;  // <z>, the mean of the extended variable at this xi
};

/// The nodes near xi with their probabilities P_j(xi).
///
/// All other nodes have probabilities below e^-40 of the largest one. The nodes form a rectangle,
/// which may extend across the borders of a periodic grid. With one CV it has one row.
class Window {
  public:
    explicit Window(const BabfParameters& parameters)
        : axes_(parameters.axes), kappa_(parameters.kappa), kT_(parameters.kT) {
        for (const Grid& grid : axes_)
            cell_ *= grid.spacing();
    }

    /// Bias and force at xi for the free energy A at the nodes and its largest value.
    const Evaluation& evaluate(const Point& xi, const std::vector<double>& energy, double highest) {
        const double beta = 1 / kT_;
        // No node has a larger A than `highest`, so nodes with a larger spring energy than this
        // are below the cutoff.
        const double most = cutoff + beta * (highest - energy[nearest_node(axes_, xi)]);
        for (std::size_t d = 0; d < axes_.size(); ++d)
            spans_[d].measure(axes_[d], xi[d], 0.5 * beta * kappa_[d], most);
        const Span &along = spans_[0], &across = spans_[1];
        row_ = padded(along.count); // aligned, or the order of sums would depend on the address
        if (exponent_.size() < across.count * row_)
            exponent_ = probability_ = Array(across.count * row_);
        for_pieces([&](const Piece& piece) {
            const double *a = &energy[piece.node], *spring = &along.spring[piece.column];
            double* exponent = &exponent_[index(piece)];
            for (std::size_t i = 0; i < piece.length; ++i)
                exponent[i] = beta * a[i] - (spring[i] + across.spring[piece.row]);
        });
        double top = -INFINITY;
        for (std::size_t r = 0; r < across.count; ++r)
            top = std::max(top, largest(along.count, &exponent_[r * row_]));

        double sum = 0;
        Point moment{};
        for (std::size_t r = 0; r < across.count; ++r) {
            double row_sum = 0, row_moment = 0;
            exponentials(along.count, &exponent_[r * row_], top, along.distance.data(),
                         &probability_[r * row_], row_sum, row_moment);
            sum += row_sum;
            moment[0] += row_moment;
            moment[1] += row_sum * across.distance[r];
        }
        const double norm = 1 / sum;
        for (std::size_t i = 0; i < across.count * row_; ++i)
            probability_[i] *= norm;
        evaluation_.bias = -kT_ * (top + std::log(sum * cell_));
        for (std::size_t d = 0; d < axes_.size(); ++d) {
            offset_[d] = moment[d] * norm;
            evaluation_.force[d] = kappa_[d] * offset_[d];
            evaluation_.zeta[d] = xi[d] + offset_[d];
        }
        return evaluation_;
    }

    /// The result of the last evaluate().
    const Evaluation& evaluation() const { return evaluation_; }
    /// <z> - xi there.
    const Point& offset() const { return offset_; }

    /// Adds a sample of weight w, at the last evaluated xi, to the sums of w P_j and of
    /// w P_j k (z_j - xi).
    void add_to(BabfSums& sums, double w) const {
        for_pieces([&](const Piece& piece) {
            const double* p = &probability_[index(piece)];
            const std::size_t j = piece.node;
            add_first(piece.length, w, kappa_[0], p, &spans_[0].distance[piece.column],
                      &sums.weight.sum[j], &sums.weight.rest[j], &sums.force.sum[j],
                      &sums.force.rest[j]);
            if (axes_.size() == 1)
                return;
            const std::size_t second = sums.nodes() + j;
            add_second(piece.length, w * kappa_[1] * spans_[1].distance[piece.row], p,
                       &sums.force.sum[second], &sums.force.rest[second]);
        });
    }

    /// P_j of all nodes at the last evaluated xi.
    std::vector<double> probability(std::size_t nodes) const {
        std::vector<double> all(nodes);
        for_pieces([&](const Piece& piece) {
            std::copy_n(&probability_[index(piece)], piece.length, &all[piece.node]);
        });
        return all;
    }

    static constexpr double cutoff = 40;

  private:
    /// The nodes along one axis for which Eq. 9 may have relevant terms. Where there is no second
    /// CV, its axis has one node without a spring.
    struct Span {
        std::size_t first = 0, count = 1; // from `first` on, around the border
        Array distance{0.0};              // z - xi
        Array spring{0.0};                // beta k/2 (z - xi)^2

        /// All nodes with a spring energy at most `most`, in kT, above that of the nearest node.
        void measure(const Grid& grid, double xi, double half_kappa, double most) {
            double inside = xi, period = 1, inverse_period = 0;
            if (grid.periodic) {
                period = grid.length();
                inverse_period = 1 / period;
                inside -= period * std::floor((xi - grid.minimum) / period);
            }
            const double h = grid.spacing(), n = static_cast<double>(grid.nodes());
            double near = std::floor((inside - grid.minimum) / h + 0.5);
            if (!grid.periodic)
                near = std::clamp(near, 0.0, n - 1);
            const double shortest = grid.minimum + near * h - inside;
            const double reach = std::sqrt(shortest * shortest + most / half_kappa);
            double low = std::min(near, std::ceil((inside - reach - grid.minimum) / h));
            double high = std::max(near, std::floor((inside + reach - grid.minimum) / h));
            if (grid.periodic && high - low >= n) {
                low = near - std::floor(n / 2);
                high = low + n - 1;
            } else if (!grid.periodic) {
                low = std::max(low, 0.0);
                high = std::min(high, n - 1);
            }
            count = static_cast<std::size_t>(high - low) + 1;
            first = static_cast<std::size_t>(grid.periodic ? low - n * std::floor(low / n) : low);
            if (distance.size() < count)
                distance = spring = Array(padded(count));
            for (std::size_t i = 0; i < count; ++i) {
                const double d = grid.minimum + (low + static_cast<double>(i)) * h - inside;
                distance[i] = d - period * nearest_integer(d * inverse_period);
                spring[i] = half_kappa * distance[i] * distance[i];
            }
        }
    };

    /// Consecutive nodes in one row of the rectangle.
    struct Piece {
        std::size_t node, length; // the first one, and how many
        std::size_t row, column;  // of the first one in the rectangle
    };

    /// Calls f for all pieces: one for each row, or two where a row crosses the border.
    template <class Function>
    void for_pieces(Function&& f) const {
        const std::size_t n = axes_[0].nodes(), rows = axes_.size() == 2 ? axes_[1].nodes() : 1;
        const Span &along = spans_[0], &across = spans_[1];
        const std::size_t before_border = std::min(along.count, n - along.first);
        for (std::size_t r = 0; r < across.count; ++r) {
            const std::size_t start = (across.first + r) % rows * n;
            f(Piece{start + along.first, before_border, r, 0});
            if (before_border < along.count)
                f(Piece{start, along.count - before_border, r, before_border});
        }
    }

    std::size_t index(const Piece& piece) const { return piece.row * row_ + piece.column; }

    PLUMED_CV_CLONES static double largest(std::size_t n, const double* exponent) {
        double top[cache_line]; // several maxima at once hide the latency of a comparison
        std::fill_n(top, cache_line, -INFINITY);
        std::size_t j = 0;
        for (; j + cache_line <= n; j += cache_line)
            for (std::size_t i = 0; i < cache_line; ++i)
                top[i] = exponent[j + i] > top[i] ? exponent[j + i] : top[i];
        for (; j < n; ++j)
            top[0] = std::max(top[0], exponent[j]);
        return *std::max_element(top, top + cache_line);
    }

    /// Sets p = e^(exponent - top), 0 below the cutoff; returns its sum and the sum of p times x.
    PLUMED_CV_CLONES static void exponentials(std::size_t n, const double* exponent, double top,
                                              const double* x, double* p, double& sum,
                                              double& moment) {
        double zeroth = 0, first = 0;
#pragma omp simd reduction(+ : zeroth, first)
        for (std::size_t j = 0; j < n; ++j) {
            const double e = exponent[j] - top;
            const double power = exponential(std::max(e, -cutoff));
            p[j] = e < -cutoff ? 0 : power;
            zeroth += p[j];
            first += p[j] * x[j];
        }
        sum = zeroth;
        moment = first;
    }

    /// Adds w P_j and w P_j k (z_j - xi) for the first CV to sums and rests.
    PLUMED_CV_CLONES static void add_first(std::size_t n, double w, double kappa, const double* p,
                                           const double* distance, double* weight,
                                           double* weight_rest, double* force, double* force_rest) {
#pragma omp simd
        for (std::size_t j = 0; j < n; ++j) {
            const double wp = w * p[j];
            Sums::add(weight[j], weight_rest[j], wp);
            Sums::add(force[j], force_rest[j], wp * kappa * distance[j]);
        }
    }

    /// Adds the force on the second CV, which is the same in a row but for P_j.
    PLUMED_CV_CLONES static void add_second(std::size_t n, double factor, const double* p,
                                            double* force, double* force_rest) {
#pragma omp simd
        for (std::size_t j = 0; j < n; ++j)
            Sums::add(force[j], force_rest[j], factor * p[j]);
    }

    std::vector<Grid> axes_;
    std::vector<double> kappa_;
    double kT_, cell_ = 1;      // cell_: area that belongs to a node, or length
    std::array<Span, 2> spans_; // the rectangle: columns and rows
    std::size_t row_ = 0;       // numbers between two of its rows in the arrays
    Array exponent_, probability_;
    Point offset_{};
    Evaluation evaluation_{};
};

} // namespace plumed_cv
