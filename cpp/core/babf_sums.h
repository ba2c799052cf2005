// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "vector_math.h"

// What bABF is set up with and what it learns (Baima et al., Phys. Chem. Chem. Phys. 24, 23152
// (2022)). Energies are in any one unit.
namespace plumed_cv {

/// The values of the extended variable zeta along one CV: bins + 1 nodes, or bins where the last is
/// the first.
struct Grid {
    double minimum = 0;
    double maximum = 1;
    std::size_t bins = 1;
    bool periodic = false;

    std::size_t nodes() const { return periodic ? bins : bins + 1; }
    double length() const { return maximum - minimum; }
    double spacing() const { return (maximum - minimum) / static_cast<double>(bins); }
    double node(std::size_t j) const { return minimum + static_cast<double>(j) * spacing(); }
    /// The node nearest to x, as a whole number that may be outside of a grid that is not periodic.
    double bin(double x) const {
        const double n = static_cast<double>(nodes());
        const double nearest = std::floor((x - minimum) / spacing() + 0.5);
        return periodic ? nearest - n * std::floor(nearest / n) : nearest;
    }
};

constexpr std::size_t most_dimensions = 2;

struct BabfParameters {
    std::vector<Grid> axes; // one a CV; nodes are numbered with the first CV running fastest
    double kT = 1;
    std::vector<double> kappa; // one a CV, energy over the square of the CV
    double tau = 1;            // weight of the prior; infinite: the bias is the prior, for ever
    double ramp = 0;           // samples over which a sample's weight grows to 1
    std::vector<double> prior; // dA/dz at the nodes before there are samples, CV by CV; empty: zero
    int solve_stride = 1000;   // samples between two solutions for A, at most

    std::size_t nodes() const {
        std::size_t product = 1;
        for (const Grid& grid : axes)
            product *= grid.nodes();
        return product;
    }
    /// Whether a number can be a free energy: sums of it must stay finite. Not if it is NaN.
    bool can_be_energy(double energy) const { return std::abs(energy) < 1e12 * kT; }
    static double default_kappa(const Grid& grid, double kT) {
        return kT / (grid.spacing() * grid.spacing());
    }
    /// The weight of the first 20 samples.
    static double default_tau(double ramp) {
        double tau = 0;
        for (int s = 1; s <= 20; ++s)
            tau += ramp > 0 ? std::min(1.0, s / ramp) : 1.0;
        return tau;
    }
    /// A solution takes longer than a thousand steps of their own would where there are many nodes.
    static int default_solve_stride(std::size_t nodes) {
        return std::max(1000, static_cast<int>(nodes / 20));
    }
};

/// The parameters, with a prior of zeros where they have none. Throws if they make no sense.
inline BabfParameters checked(BabfParameters p) {
    if (p.axes.empty() || p.axes.size() > most_dimensions || p.kappa.size() != p.axes.size())
        throw std::runtime_error("one or two CVs can be biased, with a KAPPA for each.");
    for (const Grid& grid : p.axes)
        if (!(grid.maximum > grid.minimum) || !std::isfinite(grid.spacing()) || grid.bins < 2)
            throw std::runtime_error(
                "the grid needs a minimum below its maximum and at least 2 bins.");
    if (!(p.kT > 0 && std::isfinite(p.kT)))
        throw std::runtime_error("the temperature must be positive.");
    for (double kappa : p.kappa)
        if (!(kappa > 0 && std::isfinite(kappa)))
            throw std::runtime_error("the spring constant KAPPA must be positive.");
    if (!(p.tau > 0))
        throw std::runtime_error("TAU, the weight of the prior, must be positive.");
    if (!(p.ramp >= 0 && std::isfinite(p.ramp)))
        throw std::runtime_error("RAMP must be a number of steps, or 0 for equal weights.");
    const std::size_t numbers = p.nodes() * p.axes.size();
    if (p.prior.empty())
        p.prior.assign(numbers, 0.0);
    bool sound = p.prior.size() == numbers;
    for (std::size_t j = 0; sound && j < numbers; ++j)
        sound = p.can_be_energy(p.prior[j] * p.axes[j / p.nodes()].length());
    if (!sound)
        throw std::runtime_error("the prior must have one finite number for every node and rise "
                                 "by less than 1e12 kT.");
    return p;
}

/// Sums, one for every node or more. What rounding takes away from `sum` is kept in `rest`, so that
/// 1e8 samples add up like one; `sum` alone is the rounded total.
struct Sums {
    std::vector<double> sum, rest;

    explicit Sums(std::size_t size = 0) : sum(size), rest(size) {}

    PLUMED_CV_INLINE static void add(double& sum, double& rest, double value) {
        const double a = sum, b = rest + value;
        const double total = a + b, b_rounded = total - a;
        sum = total;
        rest = (a - (total - b_rounded)) + (b - b_rounded);
    }

    void add(std::size_t j, double value) { add(sum[j], rest[j], value); }

    void add(const Sums& other) {
        if (other.sum.size() != sum.size() || other.rest.size() != sum.size())
            throw std::runtime_error("the sums are of another grid.");
        for (std::size_t j = 0; j < sum.size(); ++j) {
            add(j, other.sum[j]);
            add(j, other.rest[j]);
        }
    }
};

/// Everything learned. All of it is sums over samples: runs are merged and blocks are cut out by
/// adding and subtracting. Mean forces and offsets are kept CV by CV.
struct BabfSums {
    explicit BabfSums(std::size_t nodes = 0, std::size_t dimensions = 1)
        : weight(nodes), force(nodes * dimensions), count(nodes), offset(nodes * dimensions) {}

    std::size_t nodes() const { return weight.sum.size(); }

    double steps = 0; // samples (a whole number; exact up to 2^53)
    Sums weight;      // w P_j
    Sums force;       // w P_j k (z_j - xi)
    Sums count;       // w, of the samples in the bin centred on node j
    Sums offset;      // w (<z> - xi), of the same

    void add(const BabfSums& other) {
        weight.add(other.weight);
        force.add(other.force);
        count.add(other.count);
        offset.add(other.offset);
        steps += other.steps;
    }
};

} // namespace plumed_cv
