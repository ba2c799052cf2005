// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <vector>

#include "babf_sums.h"
#include "poisson.h"

// From mean forces at the nodes to free energies: the A that biases and the profiles in files. Eqs.
// 7 and 8 of Baima et al., Phys. Chem. Chem. Phys. 24, 23152 (2022).
namespace plumed_cv {

/// Free energy along the CVs; the lowest value of each of both profiles is zero.
struct BabfProfile {
    std::vector<double> convolved;  // A_k
    std::vector<double> derivative; // dA_k/dz, CV by CV
    std::vector<double> corrected;  // A; NaN in bins without a sample
    std::vector<double> count;      // weight of the samples in each bin
};

/// Computes free energies on the grid of an estimator.
class FreeEnergy {
  public:
    explicit FreeEnergy(const BabfParameters& parameters) : parameters_(parameters) {
        const auto& axes = parameters_.axes;
        if (dimensions() == 2)
            poisson_.emplace(std::array<std::size_t, 2>{axes[0].nodes(), axes[1].nodes()},
                             std::array<bool, 2>{axes[0].periodic, axes[1].periodic});
    }

    /// Eq. 8: the A at the nodes whose slopes are the mean forces, zero at the first node.
    void integrate(const std::vector<double>& weight, const std::vector<double>& derivative,
                   std::vector<double>& energy) const {
        if (dimensions() == 1)
            integrate_line(weight, derivative, energy);
        else
            solve(weight, derivative, energy);
    }

    /// Whether every A so far was found: the solution in two dimensions is iterative.
    bool converged() const { return !poisson_ || poisson_->converged(); }

    /// The two estimates of the profile.
    ///
    /// Convolved: Eq. 7 without the prior for nodes with samples in their own bin, and the prior
    /// for all others. (P_j never vanishes, but a mean over the tails of other bins only has no
    /// meaning.) Corrected: -kT d ln rho/d xi + k (<z> - xi) between neighbouring bins. Each part
    /// of the grid that is joined by visited bins is computed separately. Its height relative to
    /// the other parts is such that its average over the samples equals that of the convolved
    /// profile. On a circle, the difference left after one turn is distributed to the bins with the
    /// fewest samples; in the convolved profile these are empty bins.
    BabfProfile profile(const BabfSums& all) const {
        BabfProfile out{std::vector<double>(size(), 0.0), parameters_.prior,
                        std::vector<double>(size(), NAN), all.count.sum};
        for (std::size_t j = 0; j < size(); ++j)
            if (is_weighed(all, j))
                for (std::size_t d = 0; d < dimensions(); ++d)
                    out.derivative[d * size() + j] =
                        all.force.sum[d * size() + j] / all.weight.sum[j];
        if (dimensions() == 1)
            profile_line(all, out);
        else
            profile_plane(all, out);
        lower_to_zero(out.convolved);
        lower_to_zero(out.corrected);
        return out;
    }

  private:
    std::size_t dimensions() const { return parameters_.axes.size(); }
    std::size_t size() const { return parameters_.prior.size() / dimensions(); }

    /// Whether the samples in the bin of a node determine the mean force there. If A rises by more
    /// than 40 kT in a bin, its node does not contribute to them; and a ramp starts with the weight
    /// 0.
    static bool is_weighed(const BabfSums& all, std::size_t j) {
        return all.count.sum[j] > 0 && all.weight.sum[j] > 0;
    }

    /// Along one CV, by the trapezoidal rule from the first node. On a circle, the difference left
    /// after one turn is distributed to the nodes with the smallest weight; the weight of a node
    /// without samples is that of the prior.
    void integrate_line(const std::vector<double>& weight, const std::vector<double>& derivative,
                        std::vector<double>& energy) const {
        const Grid& grid = parameters_.axes[0];
        const std::size_t edges = grid.periodic ? size() : size() - 1;
        std::vector<double> weights(edges), steps(edges);
        for (std::size_t j = 0; j < edges; ++j) {
            const std::size_t next = (j + 1) % size();
            weights[j] = weight[j] * (weight[next] / (weight[j] + weight[next]));
            steps[j] = 0.5 * grid.spacing() * (derivative[j] + derivative[next]);
        }
        add_up(weights, steps, energy);
    }

    /// Weights of at least 1e-7 of the largest one. Rounding would hide much smaller weights, and
    /// with them the relative height of the parts of the grid that they join. On a part with large
    /// weights, a weight of 1e-7 has as little effect as a smaller one.
    static std::vector<double> bounded(std::vector<double> weights) {
        const double least = 1e-7 * *std::max_element(weights.begin(), weights.end());
        for (double& w : weights)
            w = w > 0 ? std::max(w, least) : w;
        return weights;
    }

    /// In two dimensions: the A whose slopes are closest to the mean force, where each node counts
    /// with its weight, which includes the prior. Where there are no samples, A therefore follows
    /// the surrounding values, and guessed values there do not spoil the known ones. The solution
    /// starts from the current A.
    void solve(const std::vector<double>& weights_of_nodes, const std::vector<double>& derivative,
               std::vector<double>& energy) const {
        const std::vector<double> weight = bounded(weights_of_nodes);
        Poisson::Edges weights, steps;
        for (std::size_t d = 0; d < 2; ++d) {
            const double h = parameters_.axes[d].spacing();
            // A sample of the force along d has the variance kT k_d, and the step is h times it.
            const double stiffness = parameters_.kT / (parameters_.kappa[d] * h * h);
            const double* slope = &derivative[d * size()];
            weights[d].resize(size());
            steps[d].resize(size());
            for (std::size_t j = 0; j < size(); ++j) {
                if (!poisson_->has_next(d, j))
                    continue;
                const std::size_t next = poisson_->next(d, j);
                weights[d][j] = stiffness * weight[j] * weight[next] / (weight[j] + weight[next]);
                steps[d][j] = 0.5 * h * (slope[j] + slope[next]);
            }
        }
        poisson_->solve(weights, steps, energy);
        const double first = energy[0];
        for (double& a : energy)
            a -= first;
    }

    void profile_line(const BabfSums& all, BabfProfile& out) const {
        const Grid& grid = parameters_.axes[0];
        const double kT = parameters_.kT, half = 0.5 * grid.spacing();
        const auto &weight = all.weight.sum, &count = all.count.sum, &offset = all.offset.sum;
        const std::size_t n = size(), edges = grid.periodic ? n : n - 1;
        double sum = 0, weighed = 0;
        for (std::size_t j = 0; j < n; ++j)
            if (is_weighed(all, j)) {
                sum += weight[j];
                weighed += 1;
            }
        const double least = weighed > 0 ? unsampled * sum / weighed : 1;
        const auto trust = [&](std::size_t j) {
            return count[j] > 0 ? std::max(weight[j], least) : least;
        };
        std::vector<double> weights(edges), steps(edges);
        for (std::size_t j = 0; j < edges; ++j) {
            const std::size_t next = (j + 1) % n;
            weights[j] = trust(j) * trust(next) / (trust(j) + trust(next));
            steps[j] = half * (out.derivative[j] + out.derivative[next]);
        }
        add_up(weights, steps, out.convolved);
        const auto mean = [&](std::size_t j) {
            return parameters_.kappa[0] * offset[j] / count[j];
        };
        for (std::size_t j = 0; j < edges; ++j) {
            const std::size_t next = (j + 1) % n;
            const bool both = count[j] > 0 && count[next] > 0;
            weights[j] = both ? count[j] * count[next] / (count[j] + count[next]) : 0;
            steps[j] =
                both ? -kT * std::log(count[next] / count[j]) + half * (mean(j) + mean(next)) : 0;
        }
        add_up(weights, steps, out.corrected);
        // A stretch of visited bins begins at a bin without an edge before it, or anywhere on a
        // circle.
        std::size_t begin = 0;
        while (grid.periodic && begin < n && weights[(begin + n - 1) % n] > 0)
            ++begin;
        begin %= n;
        for (std::size_t k = 0; k < n;) {
            double samples = 0, above = 0;
            std::size_t length = 0;
            while (k + length < n) {
                const std::size_t j = (begin + k + length++) % n;
                samples += count[j];
                above += count[j] * (out.convolved[j] - out.corrected[j]);
                if (j >= edges || !(weights[j] > 0))
                    break;
            }
            for (; length > 0; --length, ++k) {
                const std::size_t j = (begin + k) % n;
                out.corrected[j] = count[j] > 0 ? out.corrected[j] + above / samples : NAN;
            }
        }
    }

    /// The A along one CV with given steps from node to node. A starts again at zero where the
    /// weight of a step is zero. On a circle it is the least-squares solution with these weights:
    /// the difference left after one turn is distributed in proportion to 1/weight.
    static void add_up(const std::vector<double>& weights, std::vector<double> steps,
                       std::vector<double>& energy) {
        const std::size_t n = energy.size(), edges = steps.size();
        bool closed = edges == n;
        for (double weight : weights)
            closed = closed && weight > 0;
        if (closed) {
            double turn = 0, looseness = 0;
            for (std::size_t j = 0; j < n; ++j) {
                turn += steps[j];
                looseness += 1 / weights[j];
            }
            for (std::size_t j = 0; j < n; ++j)
                steps[j] -= turn / (weights[j] * looseness);
        }
        energy[0] = 0;
        for (std::size_t j = 0; j + 1 < n; ++j)
            energy[j + 1] = energy[j] + (weights[j] > 0 ? steps[j] : 0);
        if (edges < n || closed || !(weights[n - 1] > 0))
            return;
        // The last stretch continues in the first one.
        const double shift = energy[n - 1] + steps[n - 1];
        for (std::size_t j = n; j-- > 0 && (j + 1 == n || weights[j] > 0);)
            energy[j] -= shift;
    }

    void profile_plane(const BabfSums& all, BabfProfile& out) const {
        const double kT = parameters_.kT;
        const auto &weight = all.weight.sum, &count = all.count.sum, &offset = all.offset.sum;
        double sum = 0, sampled = 0;
        bool visited = false;
        for (std::size_t j = 0; j < size(); ++j) {
            visited = visited || count[j] > 0;
            if (is_weighed(all, j)) {
                sum += weight[j];
                sampled += 1;
            }
        }
        if (!visited) {
            solve(std::vector<double>(size(), 1.0), out.derivative, out.convolved);
            return;
        }
        const double least = sampled > 0 ? unsampled * sum / sampled : 1;
        std::vector<double> weights(size());
        for (std::size_t j = 0; j < size(); ++j)
            weights[j] = count[j] > 0 ? std::max(weight[j], least) : least;
        solve(weights, out.derivative, out.convolved);

        // The same between neighbouring sampled bins; the error of the logarithm follows from the
        // number of samples.
        const std::vector<double> counted = bounded(count);
        Poisson::Edges edge, step;
        for (std::size_t d = 0; d < 2; ++d) {
            edge[d].assign(size(), 0.0);
            step[d].assign(size(), 0.0);
            const double half = 0.5 * parameters_.axes[d].spacing() * parameters_.kappa[d];
            const double* moment = &offset[d * size()];
            for (std::size_t i = 0; i < size(); ++i) {
                if (!(count[i] > 0) || !poisson_->has_next(d, i))
                    continue;
                const std::size_t j = poisson_->next(d, i);
                if (!(count[j] > 0))
                    continue;
                edge[d][i] = counted[i] * counted[j] / (counted[i] + counted[j]);
                step[d][i] = -kT * std::log(count[j] / count[i]) +
                             half * (moment[i] / count[i] + moment[j] / count[j]);
            }
        }
        out.corrected = out.convolved;
        poisson_->solve(edge, step, out.corrected);
        // The convolved profile determines the relative height of parts of the grid that no sampled
        // bins join.
        std::vector<bool> done(size());
        for (std::size_t start = 0; start < size(); ++start) {
            if (!(count[start] > 0)) {
                out.corrected[start] = NAN;
                continue;
            }
            if (done[start])
                continue;
            std::vector<std::size_t> part{start};
            done[start] = true;
            double samples = 0, above = 0;
            for (std::size_t p = 0; p < part.size(); ++p) {
                const std::size_t j = part[p];
                samples += count[j];
                above += count[j] * (out.convolved[j] - out.corrected[j]);
                const auto visit = [&](std::size_t i) {
                    if (count[i] > 0 && !done[i]) {
                        done[i] = true;
                        part.push_back(i);
                    }
                };
                for (std::size_t d = 0; d < 2; ++d) {
                    if (poisson_->has_next(d, j))
                        visit(poisson_->next(d, j));
                    if (poisson_->has_previous(d, j))
                        visit(poisson_->previous(d, j));
                }
            }
            for (std::size_t j : part)
                out.corrected[j] += above / samples;
        }
    }

    /// Weight in A_k of a node without samples, relative to the mean of the others.
    static constexpr double unsampled = 1e-4;

    static void lower_to_zero(std::vector<double>& profile) {
        double lowest = INFINITY;
        for (double a : profile)
            lowest = std::min(lowest, std::isnan(a) ? INFINITY : a);
        for (double& a : profile)
            a -= lowest;
    }

    BabfParameters parameters_;
    mutable std::optional<Poisson> poisson_;
};

} // namespace plumed_cv
