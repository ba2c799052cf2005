// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "babf_profile.h"
#include "babf_sums.h"
#include "babf_window.h"

// Bayesian adaptive biasing force in one and two dimensions: Eqs. 7-10 and 12 of Baima et al.,
// Phys. Chem. Chem. Phys. 24, 23152 (2022). Energies can be in any unit.
namespace plumed_cv {

class Babf {
  public:
    explicit Babf(BabfParameters parameters)
        : parameters_(checked(std::move(parameters))), sums_(parameters_.nodes(), dimensions()),
          others_(sums_), derivative_(parameters_.nodes() * dimensions()),
          energy_(parameters_.nodes()), window_(parameters_), free_energy_(parameters_) {
        integrate();
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

    /// Adds the sums of another run, or of an earlier part of this run.
    void merge(const BabfSums& other) {
        sums_.add(other);
        integrate();
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
            integrate();
    }

    /// Bias and force at xi (one finite number for each CV). update() then adds this sample.
    const Evaluation& evaluate(const double* xi) {
        std::copy_n(xi, dimensions(), xi_.begin());
        return window_.evaluate(xi_, energy_, highest_);
    }
    const Evaluation& evaluate(double xi) { return evaluate(&xi); }
    /// The last point of evaluate(), its result, and P_j there.
    const Point& xi() const { return xi_; }
    const Evaluation& evaluation() const { return window_.evaluation(); }
    std::vector<double> probability() const { return window_.probability(size()); }

    /// Adds the last evaluated sample to the sums (Eq. 12), and integrates A again (Eq. 8) if it is
    /// `due`. A sample that is so far outside of the grid that the wall makes it e^-40 times
    /// improbable is only counted: it comes from a start outside or from an engine that fails, and
    /// it would spoil the end node. The ramp gives a sample a weight that depends on the number of
    /// samples of all walkers in A when the sample was taken. `factor` multiplies this weight, to
    /// remove the effect of another bias; without a factor the sample is only counted.
    void update(std::optional<double> factor = 1.0) {
        const auto& p = parameters_;
        sums_.steps += 1;
        double wall = 0;
        bool inside = true;
        for (std::size_t d = 0; d < dimensions(); ++d) {
            const Grid& grid = p.axes[d];
            const double outside =
                grid.periodic ? 0 : std::max({grid.minimum - xi_[d], xi_[d] - grid.maximum, 0.0});
            wall += 0.5 * p.kappa[d] * outside * outside;
            inside = inside && grid.has_bin(xi_[d]);
        }
        if (!factor || wall > Window::cutoff * p.kT)
            return;
        const double w = *factor * (p.ramp > 0 ? std::min(1.0, steps() / p.ramp) : 1.0);
        window_.add_to(sums_, w);
        if (inside) {
            const std::size_t node = nearest_node(p.axes, xi_);
            sums_.count.add(node, w);
            for (std::size_t d = 0; d < dimensions(); ++d)
                sums_.offset.add(d * size() + node, w * window_.offset()[d]);
        }
        if (due())
            integrate();
    }

    /// As `FreeEnergy::converged`.
    bool converged() const { return free_energy_.converged(); }

    /// The profile from the sums of all walkers.
    BabfProfile profile() const {
        BabfSums all = sums_;
        all.add(others_);
        return free_energy_.profile(all);
    }

  private:
    /// Eqs. 12 and 8: the mean force at the nodes, and the A that follows from it.
    void integrate() {
        const double tau = parameters_.tau;
        const auto& prior = parameters_.prior;
        const auto &weight = sums_.weight.sum, &force = sums_.force.sum;
        const auto &more_weight = others_.weight.sum, &more_force = others_.force.sum;
        if (std::isinf(tau))
            std::copy(prior.begin(), prior.end(), derivative_.begin());
        else
            for (std::size_t d = 0, i = 0; d < dimensions(); ++d)
                for (std::size_t j = 0; j < size(); ++j, ++i)
                    derivative_[i] = (tau * prior[i] + (force[i] + more_force[i])) /
                                     (tau + (weight[j] + more_weight[j]));
        free_energy_.integrate(node_weights(), derivative_, energy_);
        highest_ = *std::max_element(energy_.begin(), energy_.end());
        solved_ = sums_.steps;
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

    /// Weight of the derivative at each node, which includes the prior.
    std::vector<double> node_weights() const {
        std::vector<double> weight(size(), 1.0);
        if (!std::isinf(parameters_.tau))
            for (std::size_t j = 0; j < size(); ++j)
                weight[j] = parameters_.tau + (sums_.weight.sum[j] + others_.weight.sum[j]);
        return weight;
    }

    BabfParameters parameters_;
    BabfSums sums_;   // learned here
    BabfSums others_; // and by other walkers
    std::vector<double> derivative_, energy_;
    Window window_;
    FreeEnergy free_energy_;
    double highest_ = 0; // of energy_
    double solved_ = 0;
    Point xi_{};
};

} // namespace plumed_cv
