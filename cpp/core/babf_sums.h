// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "vector_math.h"

// The parameters of bABF and its sums (Baima et al., Phys. Chem. Chem. Phys. 24, 23152 (2022)).
// Energies can be in any unit.
namespace plumed_cv {

/// The values of the extended variable zeta along one CV: bins + 1 nodes, or bins nodes if the last
/// one is equivalent to the first.
struct Grid {
    double minimum = 0;
    double maximum = 1;
    std::size_t bins = 1;
    bool periodic = false;

    std::size_t nodes() const { return periodic ? bins : bins + 1; }
    double length() const { return maximum - minimum; }
    double spacing() const { return (maximum - minimum) / static_cast<double>(bins); }
    double node(std::size_t j) const { return minimum + static_cast<double>(j) * spacing(); }
    /// The number of the node nearest to x; outside of a grid that is not periodic it is out of
    /// range.
    double bin(double x) const {
        const double n = static_cast<double>(nodes());
        const double node = std::floor((x - minimum) / spacing() + 0.5);
        return periodic ? node - n * std::floor(node / n) : node;
    }
    /// Whether x lies in the bin of a node.
    bool has_bin(double x) const {
        const double number = bin(x);
        return number >= 0 && number < static_cast<double>(nodes());
    }
};

constexpr std::size_t most_dimensions = 2;

/// One number for each CV; the rest is zero.
using Point = std::array<double, most_dimensions>;

/// The number of the node nearest to a point.
inline std::size_t nearest_node(const std::vector<Grid>& axes, const Point& x) {
    std::size_t node = 0, stride = 1;
    for (std::size_t d = 0; d < axes.size(); ++d) {
        const double last = static_cast<double>(axes[d].nodes() - 1);
        node += stride * static_cast<std::size_t>(std::clamp(axes[d].bin(x[d]), 0.0, last));
        stride *= axes[d].nodes();
    }
    return node;
}

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
    /// Whether a number can be a free energy: sums of it must be finite. NaN cannot.
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
    /// With many nodes, one solution takes longer than a thousand other steps.
    static int default_solve_stride(std::size_t nodes) {
        return std::max(1000, static_cast<int>(nodes / 20));
    }
};

/// The parameters, with a prior of zeros if there is none. Throws if they are invalid.
inline BabfParameters checked(BabfParameters p) {
    if (p.axes.empty() || p.axes.size() > most_dimensions || p.kappa.size() != p.axes.size())
        throw std::runtime_error("one or two CVs can be biased, with a KAPPA for each.");
    for (const Grid& grid : p.axes)
        if (!(grid.maximum > grid.minimum) || !std::isfinite(grid.spacing()) || grid.bins < 2)
            throw std::runtime_error(
                "the grid needs a minimum below its maximum and at least 2 bins; give other values of "
                "GRID_MIN, GRID_MAX and GRID_BIN.");
    if (!(p.kT > 0 && std::isfinite(p.kT)))
        throw std::runtime_error("the temperature must be positive; give another TEMP.");
    for (double kappa : p.kappa)
        if (!(kappa > 0 && std::isfinite(kappa)))
            throw std::runtime_error(
                "the spring constant KAPPA must be positive; give another one.");
    if (!(p.tau > 0))
        throw std::runtime_error(
            "TAU, the weight of the prior, must be positive; give another one.");
    if (!(p.ramp >= 0 && std::isfinite(p.ramp)))
        throw std::runtime_error("RAMP must be a number of steps; give 0 for equal weights.");
    const std::size_t numbers = p.nodes() * p.axes.size();
    if (p.prior.empty())
        p.prior.assign(numbers, 0.0);
    bool sound = p.prior.size() == numbers;
    for (std::size_t j = 0; sound && j < numbers; ++j)
        sound = p.can_be_energy(p.prior[j] * p.axes[j / p.nodes()].length());
    if (!sound)
        throw std::runtime_error("the prior must have one finite number for every node and rise "
                                 "by less than 1e12 kT; give another PRIOR.");
    return p;
}

/// Sums, one or more for every node. The rounding error of `sum` is stored in `rest`, so that 1e8
/// samples are added without loss; `sum` alone is the rounded total.
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

/// All sums over samples. Runs are merged by adding sums, and blocks are obtained by subtracting
/// them. Mean forces and offsets are stored for one CV after the other.
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
