// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <utility>
#include <vector>

#include "babf_profile.h"
#include "babf_sums.h"
#include "matrix.h"
#include "vector_math.h"

// Bayesian adaptive biasing force in one and two dimensions: Eqs. 7-10 and 12 of Baima et al.,
// Phys. Chem. Chem. Phys. 24, 23152 (2022). Energies can be in any unit.
namespace plumed_cv {

class Babf {
  public:
    using Point = std::array<double, most_dimensions>; // one number a CV; the rest is zero

    struct Evaluation {
        double bias;
        Point force; // -d bias / d xi
        Point zeta;  // <z>, the mean of the extended variable at this xi
    };

    explicit Babf(BabfParameters parameters)
        : parameters_(checked(std::move(parameters))), sums_(parameters_.nodes(), dimensions()),
          others_(sums_), derivative_(parameters_.nodes() * dimensions()),
          energy_(parameters_.nodes()), free_energy_(parameters_) {
        if (dimensions() == 1) {
            distance_ = exponent_ = probability_ = Array(size());
            for (std::size_t j = 0; j < size(); ++j)
                nodes_.push_back(parameters_.axes[0].node(j));
        }
        integrate(0, size());
    }

    const BabfParameters& parameters() const { return parameters_; }
    std::size_t dimensions() const { return parameters_.axes.size(); }
    /// The number of nodes.
    std::size_t size() const { return energy_.size(); }
    /// The position of node j.
    Point node(std::size_t j) const {
        Point z{};
        for (std::size_t d = 0; d < dimensions(); ++d) {
            z[d] = parameters_.axes[d].node(j % parameters_.axes[d].nodes());
            j /= parameters_.axes[d].nodes();
        }
        return z;
    }
    /// The sums of this run.
    const BabfSums& sums() const { return sums_; }
    /// Number of samples that the bias is based on: those of this run and of the others.
    double steps() const { return sums_.steps + others_.steps; }
    /// A at the nodes, as used for the bias; zero at the first node.
    const std::vector<double>& energy() const { return energy_; }
    /// Number of samples of this run when A was last computed from the sums.
    double solved() const { return solved_; }

    /// P_j at the last evaluated xi.
    std::vector<double> probability() const {
        std::vector<double> p(size());
        if (dimensions() == 1)
            std::copy(probability_.begin(), probability_.end(), p.begin());
        else
            for_rows([&](std::size_t j, std::size_t from, std::size_t length, std::size_t) {
                std::copy_n(&probability_[from], length, &p[j]);
            });
        return p;
    }

    /// Adds the sums of another run, or of an earlier part of this run.
    void merge(const BabfSums& other) {
        sums_.add(other);
        integrate(0, size());
    }

    /// Continues from a state. Between two solutions A is not a function of the sums, so it has to
    /// be given.
    void resume(const BabfSums& sums, std::vector<double> energy, double solved) {
        if (!std::all_of(energy.begin(), energy.end(),
                         [&](double a) { return parameters_.can_be_energy(a); }))
            throw std::runtime_error("the profile of a state must rise by less than 1e12 kT.");
        sums_ = sums;
        energy_ = std::move(energy);
        solved_ = solved;
        highest_ = *std::max_element(energy_.begin(), energy_.end());
    }

    /// Replaces the sums of the other walkers. They bias like the sums of this run but are stored
    /// separately. They take effect at once, or at the next update if A already includes them, as
    /// after resume().
    void set_others(BabfSums others, bool at_once = true) {
        if (others.nodes() != size() || others.force.sum.size() != sums_.force.sum.size())
            throw std::runtime_error("the sums are of another grid.");
        others_ = std::move(others);
        if (at_once)
            integrate(0, size());
    }

    /// Bias, force and P_j at xi (one finite number for each CV). update() then adds this sample.
    const Evaluation& evaluate(const double* xi) {
        std::copy_n(xi, dimensions(), xi_.begin());
        return dimensions() == 1 ? evaluate_line() : evaluate_plane();
    }
    const Evaluation& evaluate(double xi) { return evaluate(&xi); }
    /// The last point of evaluate(), and its result.
    const Point& xi() const { return xi_; }
    const Evaluation& evaluation() const { return evaluation_; }

    /// Adds the last evaluated sample to the sums (Eq. 12), and integrates A again (Eq. 8) if it is
    /// `due`. A sample that is so far outside of the grid that the wall makes it e^-40 times
    /// improbable is only counted: it comes from a start outside or from an engine that fails, and
    /// it would spoil the end node. The ramp gives a sample a weight that depends on the number of
    /// samples of all walkers in A when the sample was taken.
    void update() {
        const auto& p = parameters_;
        sums_.steps += 1;
        double wall = 0;
        for (std::size_t d = 0; d < dimensions(); ++d) {
            const Grid& grid = p.axes[d];
            const double outside =
                grid.periodic ? 0 : std::max({grid.minimum - xi_[d], xi_[d] - grid.maximum, 0.0});
            wall += 0.5 * p.kappa[d] * outside * outside;
        }
        if (wall > cutoff * p.kT)
            return;
        const double w = p.ramp > 0 ? std::min(1.0, steps() / p.ramp) : 1.0;
        if (dimensions() == 1)
            add_sample(last_ - first_, w, p.kappa[0], &probability_[first_], &distance_[first_],
                       &sums_.weight.sum[first_], &sums_.weight.rest[first_],
                       &sums_.force.sum[first_], &sums_.force.rest[first_]);
        else
            add_sample_to_plane(w);
        std::size_t node = 0, stride = 1;
        bool inside = true;
        for (std::size_t d = 0; d < dimensions(); ++d) {
            const Grid& grid = p.axes[d];
            const double bin = grid.bin(xi_[d]);
            inside = inside && bin >= 0 && bin < static_cast<double>(grid.nodes());
            if (!inside)
                break;
            node += stride * static_cast<std::size_t>(bin);
            stride *= grid.nodes();
        }
        if (inside) {
            sums_.count.add(node, w);
            for (std::size_t d = 0; d < dimensions(); ++d)
                sums_.offset.add(d * size() + node, w * offset_[d]);
        }
        if (due())
            integrate(0, size());
    }

    /// The profile from the sums of all walkers.
    BabfProfile profile() const {
        BabfSums all = sums_;
        all.add(others_);
        return free_energy_.profile(all);
    }

    static constexpr double cutoff = 40;

  private:
    // One dimension

    const Evaluation& evaluate_line() {
        const double kT = parameters_.kT, kappa = parameters_.kappa[0];
        const double top = measure_exponents();

        // Terms below e^-40 of the largest one do not change a double and are omitted.
        std::fill(probability_.begin() + first_, probability_.begin() + last_, 0.0);
        const double least = top - cutoff;
        first_ = 0;
        while (exponent_[first_] < least)
            ++first_;
        last_ = nodes_.size();
        while (exponent_[last_ - 1] < least)
            --last_;
        // Starts at the beginning of a block: the order in which a compiler adds may depend on it.
        const std::size_t begin = first_ / block * block;
        double sum = 0, moment = 0;
        exponentials(last_ - begin, &exponent_[begin], top, &distance_[begin], &probability_[begin],
                     sum, moment);
        const double norm = 1 / sum;
        for (std::size_t j = first_; j < last_; ++j)
            probability_[j] *= norm;
        offset_[0] = moment * norm;
        evaluation_ = {-kT * (top + std::log(sum * parameters_.axes[0].spacing())),
                       {kappa * offset_[0]},
                       {xi_[0] + offset_[0]}};
        return evaluation_;
    }

    /// Sets distance_ to z_j - xi (the shortest one for a periodic CV) and exponent_ to the
    /// logarithms of the terms of Eq. 9; returns the largest logarithm.
    double measure_exponents() {
        const Grid& grid = parameters_.axes[0];
        const Nearest nearest(grid, xi_[0]);
        return exponents(nodes_.size(), nodes_.data(), nearest.inside, nearest.period,
                         nearest.inverse_period, energy_.data(), 1 / parameters_.kT,
                         0.5 * parameters_.kappa[0], distance_.data(), exponent_.data());
    }

    /// Constants for finding the shortest distance to x.
    struct Nearest {
        double inside, period = 1, inverse_period = 0;
        Nearest(const Grid& grid, double x) : inside(x) {
            if (grid.periodic) {
                period = grid.length();
                inverse_period = 1 / period;
                inside -= period * std::floor((x - grid.minimum) / period);
            }
        }
    };

    PLUMED_CV_CLONES static double exponents(std::size_t n, const double* node, double xi,
                                             double period, double inverse_period,
                                             const double* energy, double beta, double half_kappa,
                                             double* distance, double* exponent) {
#pragma omp simd
        for (std::size_t j = 0; j < n; ++j) {
            const double d = node[j] - xi;
            distance[j] = d - period * nearest(d * inverse_period);
            exponent[j] = beta * (energy[j] - half_kappa * distance[j] * distance[j]);
        }
        return highest(n, exponent);
    }

    PLUMED_CV_INLINE static double highest(std::size_t n, const double* exponent) {
        double top[block]; // so many at once, for each has to wait for the one before
        std::fill_n(top, block, -INFINITY);
        std::size_t j = 0;
        for (; j + block <= n; j += block)
            for (std::size_t i = 0; i < block; ++i)
                top[i] = exponent[j + i] > top[i] ? exponent[j + i] : top[i];
        for (; j < n; ++j)
            top[0] = std::max(top[0], exponent[j]);
        return *std::max_element(top, top + block);
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

    /// Adds w P_j and w P_j k (z_j - xi) to sums and rests.
    PLUMED_CV_CLONES static void add_sample(std::size_t n, double w, double kappa, const double* p,
                                            const double* distance, double* weight,
                                            double* weight_rest, double* force,
                                            double* force_rest) {
#pragma omp simd
        for (std::size_t j = 0; j < n; ++j) {
            const double wp = w * p[j];
            Sums::add(weight[j], weight_rest[j], wp);
            Sums::add(force[j], force_rest[j], wp * kappa * distance[j]);
        }
    }

    /// Eqs. 12 and 8 for the nodes [begin, end), the sums of which have changed.
    void integrate(std::size_t begin, std::size_t end) {
        const double tau = parameters_.tau;
        const auto& prior = parameters_.prior;
        const auto &weight = sums_.weight.sum, &force = sums_.force.sum;
        const auto &more_weight = others_.weight.sum, &more_force = others_.force.sum;
        if (std::isinf(tau))
            std::copy(prior.begin(), prior.end(), derivative_.begin());
        else
            for (std::size_t d = 0, i = begin; d < dimensions(); ++d, i = d * size() + begin)
                for (std::size_t j = begin; j < end; ++j, ++i)
                    derivative_[i] = (tau * prior[i] + (force[i] + more_force[i])) /
                                     (tau + (weight[j] + more_weight[j]));
        if (dimensions() == 1)
            free_energy_.integrate(node_weights(), derivative_, begin, energy_);
        else
            solve();
        solved_ = sums_.steps;
    }

    // Two dimensions: a step involves only nodes near xi. They form a rectangle, which may extend
    // across the borders of a periodic grid. A is computed from the mean force only at some steps.

    /// The nodes along one axis for which Eq. 9 may have relevant terms.
    struct Span {
        std::size_t first = 0, count = 0; // from `first` on, around the border
        Array distance;                   // z - xi
        Array spring;                     // beta k/2 (z - xi)^2

        /// All nodes with a spring energy at most `most`, in kT, above that of the nearest node.
        void measure(const Grid& grid, double xi, double half_kappa, double most) {
            const Nearest nearest_image(grid, xi);
            const double h = grid.spacing(), inside = nearest_image.inside;
            const double n = static_cast<double>(grid.nodes());
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
                distance[i] = d - nearest_image.period * nearest(d * nearest_image.inverse_period);
                spring[i] = half_kappa * distance[i] * distance[i];
            }
        }
    };

    /// Calls f(j, from, length, row) for pieces of rows: the first node, its index in probability_,
    /// the number of nodes, and the number of the row in the rectangle.
    template <class Function>
    void for_rows(Function&& f) const {
        const std::size_t n = parameters_.axes[0].nodes(), m = parameters_.axes[1].nodes();
        const Span &along = spans_[0], &across = spans_[1];
        const std::size_t before_border = std::min(along.count, n - along.first);
        for (std::size_t r = 0; r < across.count; ++r) {
            const std::size_t row = (across.first + r) % m * n, from = r * row_;
            f(row + along.first, from, before_border, r);
            if (before_border < along.count)
                f(row, from + before_border, along.count - before_border, r);
        }
    }

    const Evaluation& evaluate_plane() {
        const double beta = 1 / parameters_.kT;
        // No node has a larger A than `highest_`, so nodes with a larger spring energy than this
        // are below the cutoff.
        const double most = cutoff + beta * (highest_ - energy_[nearest_node()]);
        for (std::size_t d = 0; d < 2; ++d)
            spans_[d].measure(parameters_.axes[d], xi_[d], 0.5 * beta * parameters_.kappa[d], most);
        const Span &along = spans_[0], &across = spans_[1];
        row_ = padded(along.count); // aligned, or the order of sums would depend on the address
        if (exponent_.size() < across.count * row_)
            exponent_ = probability_ = Array(across.count * row_);
        for_rows([&](std::size_t j, std::size_t from, std::size_t length, std::size_t r) {
            const double *energy = &energy_[j], *spring = &along.spring[from - r * row_];
            double* exponent = &exponent_[from];
            for (std::size_t i = 0; i < length; ++i)
                exponent[i] = beta * energy[i] - (spring[i] + across.spring[r]);
        });
        double top = -INFINITY;
        for (std::size_t r = 0; r < across.count; ++r)
            top = std::max(top, highest(along.count, &exponent_[r * row_]));

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
        const double cell = parameters_.axes[0].spacing() * parameters_.axes[1].spacing();
        evaluation_.bias = -parameters_.kT * (top + std::log(sum * cell));
        for (std::size_t d = 0; d < 2; ++d) {
            offset_[d] = moment[d] * norm;
            evaluation_.force[d] = parameters_.kappa[d] * offset_[d];
            evaluation_.zeta[d] = xi_[d] + offset_[d];
        }
        return evaluation_;
    }

    std::size_t nearest_node() const {
        std::size_t node = 0, stride = 1;
        for (std::size_t d = 0; d < 2; ++d) {
            const Grid& grid = parameters_.axes[d];
            const double last = static_cast<double>(grid.nodes() - 1);
            node += stride * static_cast<std::size_t>(std::clamp(grid.bin(xi_[d]), 0.0, last));
            stride *= grid.nodes();
        }
        return node;
    }

    void add_sample_to_plane(double w) {
        const double k0 = parameters_.kappa[0], k1 = parameters_.kappa[1];
        for_rows([&](std::size_t j, std::size_t from, std::size_t length, std::size_t r) {
            const double* p = &probability_[from];
            add_sample(length, w, k0, p, &spans_[0].distance[from - r * row_], &sums_.weight.sum[j],
                       &sums_.weight.rest[j], &sums_.force.sum[j], &sums_.force.rest[j]);
            add_products(length, w * k1 * spans_[1].distance[r], p, &sums_.force.sum[size() + j],
                         &sums_.force.rest[size() + j]);
        });
    }

    PLUMED_CV_CLONES static void add_products(std::size_t n, double factor, const double* p,
                                              double* sum, double* rest) {
#pragma omp simd
        for (std::size_t j = 0; j < n; ++j)
            Sums::add(sum[j], rest[j], factor * p[j]);
    }

    /// Whether A must be computed from the sums again: after 5 % more samples, and at most after a
    /// fixed number of samples, because the system may reach an unknown region at any time. This is
    /// not done in every step. A sample raises the bias where the system is, so a bias that is
    /// updated at once does work on the system in every step and heats the CV. After some ten
    /// femtoseconds the system is elsewhere.
    bool due() const {
        const double stride = parameters_.solve_stride;
        const double wait = std::clamp(std::floor(sums_.steps / 20),
                                       std::max(1.0, std::floor(stride / 20)), stride);
        return !std::isinf(parameters_.tau) && sums_.steps - solved_ >= wait;
    }

    /// Eq. 8 in two dimensions: the A whose slopes are closest to the mean force. Each node counts
    /// with its weight, which includes the prior. Therefore, where there are no samples, A follows
    /// the surrounding values, and guessed values there do not spoil the known ones.
    void solve() {
        free_energy_.solve(node_weights(), derivative_, energy_);
        highest_ = *std::max_element(energy_.begin(), energy_.end());
    }

    /// Weight of the derivative at each node. For a CV that is not periodic the result does not
    /// depend on it.
    std::vector<double> node_weights() const {
        if (dimensions() == 1 && !parameters_.axes[0].periodic)
            return {};
        std::vector<double> weight(size(), 1.0);
        if (!std::isinf(parameters_.tau))
            for (std::size_t j = 0; j < size(); ++j)
                weight[j] = parameters_.tau + (sums_.weight.sum[j] + others_.weight.sum[j]);
        return weight;
    }

    BabfParameters parameters_;
    BabfSums sums_;   // learned here
    BabfSums others_; // and by other walkers
    std::vector<double> nodes_, derivative_, energy_;
    Array distance_, exponent_, probability_; // at the last evaluated xi
    std::size_t first_ = 0, last_ = 0;        // probability_ is zero outside; one dimension
    std::array<Span, 2> spans_;               // two dimensions: the rectangle of exponent_ and
    std::size_t row_ = 0;                     // probability_, and what one of its rows takes
    FreeEnergy free_energy_;
    double highest_ = 0; // of energy_
    double solved_ = 0;
    Point xi_{}, offset_{};
    Evaluation evaluation_{};
};

} // namespace plumed_cv
