// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "matrix.h"
#include "textfile.h"
#include "vector_math.h"

// Bayesian adaptive biasing force in one dimension: Eqs. 7-10 and 12 of Baima et al., Phys. Chem.
// Chem. Phys. 24, 23152 (2022). Energies are in any one unit.
namespace plumed_cv {

/// The values of the extended variable zeta: bins + 1 nodes, or bins where the last is the first.
struct Grid {
    double minimum = 0;
    double maximum = 1;
    std::size_t bins = 1;
    bool periodic = false;

    std::size_t nodes() const { return periodic ? bins : bins + 1; }
    double spacing() const { return (maximum - minimum) / static_cast<double>(bins); }
    double node(std::size_t j) const { return minimum + static_cast<double>(j) * spacing(); }
};

struct BabfParameters {
    Grid grid;
    double kT = 1;
    double kappa = 1;          // energy over the square of the CV
    double tau = 1;            // weight of the prior; infinite: the bias is the prior, for ever
    double ramp = 0;           // samples over which a sample's weight grows to 1
    std::vector<double> prior; // dA/dz at the nodes before there are samples; empty: zero

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
};

/// One sum for every node. What rounding takes away from `sum` is kept in `rest`, so that 1e8
/// samples add up like one; `sum` alone is the rounded total.
struct Sums {
    std::vector<double> sum, rest;

    explicit Sums(std::size_t nodes = 0) : sum(nodes), rest(nodes) {}

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
/// adding and subtracting. The profile that biases is a pure function of them.
struct BabfSums {
    explicit BabfSums(std::size_t nodes = 0)
        : weight(nodes), force(nodes), count(nodes), offset(nodes) {}

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

class Babf {
  public:
    struct Evaluation {
        double bias;
        double force; // -d bias / d xi
        double zeta;  // <z>, the mean of the extended variable at this xi
    };

    struct Profile {
        std::vector<double> convolved;  // A_k
        std::vector<double> derivative; // dA_k/dz
        std::vector<double> corrected;  // A; NaN in bins without a sample
        std::vector<double> count;      // weight of the samples in each bin
    };

    explicit Babf(BabfParameters parameters) : parameters_(std::move(parameters)) {
        auto& [grid, kT, kappa, tau, ramp, prior] = parameters_;
        if (!(grid.maximum > grid.minimum) || !std::isfinite(grid.spacing()) || grid.bins < 2)
            throw std::runtime_error(
                "the grid needs a minimum below its maximum and at least 2 bins.");
        if (!(kT > 0 && std::isfinite(kT)))
            throw std::runtime_error("the temperature must be positive.");
        if (!(kappa > 0 && std::isfinite(kappa)))
            throw std::runtime_error("the spring constant KAPPA must be positive.");
        if (!(tau > 0))
            throw std::runtime_error("TAU, the weight of the prior, must be positive.");
        if (!(ramp >= 0 && std::isfinite(ramp)))
            throw std::runtime_error("RAMP must be a number of steps, or 0 for equal weights.");
        const std::size_t n = grid.nodes();
        if (prior.empty())
            prior.assign(n, 0.0);
        if (prior.size() != n ||
            !std::all_of(prior.begin(), prior.end(), [](double f) { return std::isfinite(f); }))
            throw std::runtime_error("the prior must have one finite number for every node.");
        sums_ = others_ = BabfSums(n);
        derivative_ = energy_ = zeros();
        distance_ = exponent_ = probability_ = Array(n);
        for (std::size_t j = 0; j < n; ++j)
            nodes_.push_back(grid.node(j));
        integrate(0, n);
    }

    const BabfParameters& parameters() const { return parameters_; }
    /// What this run has learned itself.
    const BabfSums& sums() const { return sums_; }
    /// Samples that the bias knows of: its own and those of the others.
    double steps() const { return sums_.steps + others_.steps; }
    const std::vector<double>& nodes() const { return nodes_; }
    /// A at the nodes, as it biases now; zero at the first.
    const std::vector<double>& energy() const { return energy_; }
    /// P_j at the last evaluated xi.
    const Array& probability() const { return probability_; }

    /// Adds what another run, or an earlier part of this one, has learned.
    void merge(const BabfSums& other) {
        sums_.add(other);
        integrate(0, nodes_.size());
    }

    /// Takes what other walkers have learned in all, in place of what was taken before. It biases
    /// like what this run has learned, and stays apart from it.
    void set_others(BabfSums others) {
        if (others.nodes() != nodes_.size())
            throw std::runtime_error("the sums are of another grid.");
        others_ = std::move(others);
        integrate(0, nodes_.size());
    }

    /// Bias, force and P_j at xi; xi must be finite. update() then learns from this sample.
    const Evaluation& evaluate(double xi) {
        const double kT = parameters_.kT, kappa = parameters_.kappa;
        xi_ = xi;
        const double top = measure_exponents();

        // What is below e^-40 of the largest term does not change a double and is left out.
        std::fill(probability_.begin() + first_, probability_.begin() + last_, 0.0);
        const double least = top - cutoff;
        first_ = 0;
        while (exponent_[first_] < least)
            ++first_;
        last_ = nodes_.size();
        while (exponent_[last_ - 1] < least)
            --last_;
        // From the beginning of a block: the order in which a compiler adds up may depend on it.
        const std::size_t begin = first_ / block * block;
        double sum = 0, moment = 0;
        exponentials(last_ - begin, &exponent_[begin], top, &distance_[begin], &probability_[begin],
                     sum, moment);
        const double norm = 1 / sum;
        for (std::size_t j = first_; j < last_; ++j)
            probability_[j] *= norm;
        offset_ = moment * norm;
        evaluation_ = {-kT * (top + std::log(sum * parameters_.grid.spacing())), kappa * offset_,
                       xi + offset_};
        return evaluation_;
    }

    /// Adds the last evaluated sample to the sums (Eq. 12) and integrates A again (Eq. 8). A sample
    /// so far outside of the grid that the wall makes it e^-40 times improbable comes from a start
    /// out there or a failing engine, and one of them would spoil the end node: it is only counted.
    /// The ramp weights a sample by how much A, under which it was taken, had been learned from: the
    /// samples of all walkers.
    void update() {
        const auto& [grid, kT, kappa, tau, ramp, prior] = parameters_;
        sums_.steps += 1;
        const double outside =
            grid.periodic ? 0 : std::max({grid.minimum - xi_, xi_ - grid.maximum, 0.0});
        if (0.5 * kappa * outside * outside > cutoff * kT)
            return;
        const double w = ramp > 0 ? std::min(1.0, steps() / ramp) : 1.0;
        add_sample(last_ - first_, w, kappa, &probability_[first_], &distance_[first_],
                   &sums_.weight.sum[first_], &sums_.weight.rest[first_], &sums_.force.sum[first_],
                   &sums_.force.rest[first_]);
        const double n = static_cast<double>(nodes_.size());
        double bin = std::floor((xi_ - grid.minimum) / grid.spacing() + 0.5);
        if (grid.periodic)
            bin -= n * std::floor(bin / n);
        if (bin >= 0 && bin < n) {
            sums_.count.add(static_cast<std::size_t>(bin), w);
            sums_.offset.add(static_cast<std::size_t>(bin), w * offset_);
        }
        integrate(first_, last_);
    }

    /// The two estimates of the profile, each with its lowest value at zero, from all that biases.
    ///
    /// Convolved: Eq. 7 without the prior where a node's own bin holds samples, the prior elsewhere
    /// (P_j never vanishes, but a mean over other bins' tails alone means nothing).
    /// Corrected: -kT d ln rho/d xi + k (<z> - xi) between neighbouring bins. Where bins in between
    /// are empty nothing is known of rho, and the convolved profile carries the energy across.
    Profile profile() const {
        const Grid& grid = parameters_.grid;
        const double kT = parameters_.kT, kappa = parameters_.kappa;
        const std::size_t n = nodes_.size();
        BabfSums all = sums_;
        all.add(others_);
        const auto &weight = all.weight.sum, &force = all.force.sum;
        const auto &count = all.count.sum, &offset = all.offset.sum;
        Profile out{zeros(), parameters_.prior, std::vector<double>(n, NAN), count};
        std::vector<std::size_t> sampled;
        for (std::size_t j = 0; j < n; ++j)
            if (count[j] > 0) {
                sampled.push_back(j);
                out.derivative[j] = force[j] / weight[j];
            }
        trapezoid(out.derivative, 0, out.convolved);
        if (!sampled.empty()) {
            const auto step = [&](std::size_t i, std::size_t j, bool adjacent) {
                if (!adjacent)
                    return out.convolved[j] - out.convolved[i];
                const double mean_i = offset[i] / count[i];
                const double mean_j = offset[j] / count[j];
                return -kT * std::log(count[j] / count[i]) +
                       grid.spacing() * kappa * 0.5 * (mean_i + mean_j);
            };
            const std::size_t first = sampled.front(), last = sampled.back();
            out.corrected[first] = 0;
            for (std::size_t s = 1; s < sampled.size(); ++s) {
                const std::size_t i = sampled[s - 1], j = sampled[s];
                out.corrected[j] = out.corrected[i] + step(i, j, j == i + 1);
            }
            if (grid.periodic) { // what is left after one turn is noise: spread it evenly
                const double turn = out.corrected[last] + step(last, first, first + n == last + 1);
                for (std::size_t j : sampled)
                    out.corrected[j] -=
                        turn * static_cast<double>(j - first) / static_cast<double>(n);
            }
        }
        lower_to_zero(out.convolved);
        lower_to_zero(out.corrected);
        return out;
    }

    static constexpr double cutoff = 40;

  private:
    std::vector<double> zeros() const { return std::vector<double>(parameters_.grid.nodes(), 0.0); }

    /// Sets distance_ to z_j - xi, the shortest one on a periodic CV, and exponent_ to the logarithm
    /// of the terms of Eq. 9; returns the largest of these.
    double measure_exponents() {
        const Grid& grid = parameters_.grid;
        double inside = xi_, period = 1, inverse_period = 0;
        if (grid.periodic) {
            period = grid.maximum - grid.minimum;
            inverse_period = 1 / period;
            inside -= period * std::floor((xi_ - grid.minimum) / period);
        }
        return exponents(nodes_.size(), nodes_.data(), inside, period, inverse_period,
                         energy_.data(), 1 / parameters_.kT, 0.5 * parameters_.kappa,
                         distance_.data(), exponent_.data());
    }

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

    /// p = e^(exponent - top), 0 below the cutoff, their sum and that of their products with x.
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

    /// Eqs. 12 and 8, for the nodes [begin, end) whose sums have changed.
    void integrate(std::size_t begin, std::size_t end) {
        const auto& [grid, kT, kappa, tau, ramp, prior] = parameters_;
        const auto &weight = sums_.weight.sum, &force = sums_.force.sum;
        const auto &more_weight = others_.weight.sum, &more_force = others_.force.sum;
        if (std::isinf(tau))
            std::copy(prior.begin(), prior.end(), derivative_.begin());
        else
            for (std::size_t j = begin; j < end; ++j)
                derivative_[j] = (tau * prior[j] + (force[j] + more_force[j])) /
                                 (tau + (weight[j] + more_weight[j]));
        trapezoid(derivative_, begin, energy_);
    }

    /// Integrates from the first node; nodes before `begin` hold their values already. On a circle
    /// only a derivative without a mean has an integral.
    void trapezoid(const std::vector<double>& derivative, std::size_t begin,
                   std::vector<double>& integral) const {
        const double half = 0.5 * parameters_.grid.spacing();
        double twice_mean = 0;
        if (parameters_.grid.periodic) {
            for (double d : derivative)
                twice_mean += d;
            twice_mean *= 2 / static_cast<double>(derivative.size());
            begin = 0;
        }
        integral[0] = 0;
        for (std::size_t j = std::max<std::size_t>(begin, 1); j < integral.size(); ++j)
            integral[j] =
                integral[j - 1] + half * ((derivative[j - 1] + derivative[j]) - twice_mean);
    }

    static void lower_to_zero(std::vector<double>& profile) {
        double lowest = INFINITY;
        for (double a : profile)
            lowest = std::min(lowest, std::isnan(a) ? INFINITY : a);
        for (double& a : profile)
            a -= lowest;
    }

    BabfParameters parameters_;
    BabfSums sums_;   // learned here
    BabfSums others_; // and by other walkers
    std::vector<double> nodes_, derivative_, energy_;
    Array distance_, exponent_, probability_; // at the last evaluated xi
    std::size_t first_ = 0, last_ = 0;        // probability_ is zero outside
    double xi_ = 0, offset_ = 0;
    Evaluation evaluation_{};
};

/// dA/dz at the nodes from a profile (x, A) read from a file, by central differences of its linear
/// interpolation. `name` is the file's, for the messages.
inline std::vector<double> prior_derivative(const Grid& grid, std::vector<double> x,
                                            std::vector<double> A, const std::string& name) {
    if (x.size() < 2)
        throw std::runtime_error(name + ": needs at least two rows to be a prior.");
    for (std::size_t i = 0; i < x.size(); ++i)
        if (!std::isfinite(x[i]) || !std::isfinite(A[i]) || (i > 0 && x[i] <= x[i - 1]))
            throw std::runtime_error(name + ": row " + std::to_string(i + 1) +
                                     " has a number that is not finite or a CV that does not grow, "
                                     "so it is no profile to take a prior from.");
    const double slack = 1e-6 * grid.spacing();
    const double length = grid.maximum - grid.minimum;
    if (grid.periodic) {
        const double x0 = x.front(), A0 = A.front(), xn = x.back(), An = A.back();
        if (xn - x0 < length - slack) {
            x.push_back(x0 + length);
            A.push_back(A0);
            x.insert(x.begin(), xn - length);
            A.insert(A.begin(), An);
        }
    }
    if (x.front() > grid.minimum + slack || x.back() < grid.maximum - slack)
        throw std::runtime_error(name + ": covers " + to_text(x.front()) + " to " +
                                 to_text(x.back()) + " but the grid goes from " +
                                 to_text(grid.minimum) + " to " + to_text(grid.maximum) +
                                 "; give a profile over the whole grid.");
    const auto interpolate = [&](double z) {
        z = std::clamp(z, x.front(), x.back());
        const auto above = std::upper_bound(x.begin() + 1, x.end() - 1, z) - x.begin();
        const double t = (z - x[above - 1]) / (x[above] - x[above - 1]);
        return A[above - 1] + t * (A[above] - A[above - 1]);
    };
    std::vector<double> derivative;
    for (std::size_t j = 0; j < grid.nodes(); ++j) {
        double low = grid.node(j) - 0.5 * grid.spacing(), high = low + grid.spacing();
        if (!grid.periodic) {
            low = std::max(low, grid.minimum);
            high = std::min(high, grid.maximum);
        }
        derivative.push_back((interpolate(high) - interpolate(low)) / (high - low));
    }
    return derivative;
}

inline std::vector<double> column(const Table& table, std::size_t c) {
    std::vector<double> values;
    for (const auto& row : table.rows)
        values.push_back(row[c]);
    return values;
}

/// A profile file: `A_k` where it has such a column (ours), else the second (sum_hills and others).
inline std::vector<double> read_prior(const std::string& path, const Grid& grid,
                                      const std::string& energy_unit) {
    const Table table = read_table(path);
    if (table.fields.size() < 2)
        throw std::runtime_error(path + ": needs two columns, the CV and its free energy.");
    const std::string* unit = table.constant("energy_unit");
    if (unit && *unit != energy_unit)
        throw std::runtime_error(path + ": is in " + *unit + " but the energy unit here is " +
                                 energy_unit + "; use the same UNITS ENERGY.");
    const auto found = std::find(table.fields.begin(), table.fields.end(), "A_k");
    const auto c = found == table.fields.end() ? 1 : found - table.fields.begin();
    return prior_derivative(grid, column(table, 0), column(table, static_cast<std::size_t>(c)),
                            path);
}

/// What the header of a file says beside the numbers of the estimator.
struct BabfLabels {
    std::string argument;
    std::string energy_unit;
};

inline std::vector<std::pair<std::string, std::string>>
grid_constants(const Grid& grid, const std::string& argument) {
    return {{"min_" + argument, to_text(grid.minimum)},
            {"max_" + argument, to_text(grid.maximum)},
            {"nbins_" + argument, std::to_string(grid.bins)},
            {"periodic_" + argument, grid.periodic ? "true" : "false"}};
}

inline std::vector<std::string> state_fields(const BabfLabels& labels) {
    return {labels.argument, "weight",      "force",      "count",      "offset",
            "prior",         "weight_rest", "force_rest", "count_rest", "offset_rest"};
}

/// `md_step` is the engine's number of the last step learned from, negative where there is none.
inline Table state_table(const Babf& babf, const BabfLabels& labels, long long md_step = -1) {
    const auto& p = babf.parameters();
    const auto& s = babf.sums();
    Table table;
    table.fields = state_fields(labels);
    table.constants = {
        {"action", "BABF_state"},  {"format_version", "1"},     {"energy_unit", labels.energy_unit},
        {"kT", to_text(p.kT)},     {"kappa", to_text(p.kappa)}, {"tau", to_text(p.tau)},
        {"ramp", to_text(p.ramp)}, {"steps", to_text(s.steps)}};
    if (md_step >= 0)
        table.constants.emplace_back("md_step", std::to_string(md_step));
    for (auto& constant : grid_constants(p.grid, labels.argument))
        table.constants.push_back(std::move(constant));
    for (std::size_t j = 0; j < babf.nodes().size(); ++j)
        table.rows.push_back({babf.nodes()[j], s.weight.sum[j], s.force.sum[j], s.count.sum[j],
                              s.offset.sum[j], p.prior[j], s.weight.rest[j], s.force.rest[j],
                              s.count.rest[j], s.offset.rest[j]});
    return table;
}

/// The sums of a state, if it is of the same estimator as `expected` (its prior aside) and holds
/// nothing that no run writes.
inline BabfSums read_sums(const Table& table, const BabfParameters& expected,
                          const BabfLabels& labels, const std::string& name) {
    const auto text = [&](const std::string& key) {
        const std::string* value = table.constant(key);
        if (!value || value->empty())
            throw std::runtime_error(name + ": its header has no '#! SET " + key +
                                     "', so it is not a whole state file of BABF.");
        return *value;
    };
    const auto same = [&](const std::string& key, const std::string& here) {
        if (text(key) != here)
            throw std::runtime_error(name + ": has " + key + "=" + text(key) + " but here it is " +
                                     here + "; give the same, or do without this file.");
    };
    const auto same_number = [&](const std::string& key, double here, double scale) {
        double there;
        // Written so that NaN is refused, and two infinities are the same.
        if (!to_number(text(key), there) ||
            !(there == here || std::abs(there - here) <= 1e-6 * scale))
            same(key, to_text(here));
    };
    same("action", "BABF_state");
    same("format_version", "1");
    if (table.fields.front() != labels.argument)
        throw std::runtime_error(name + ": is of the CV '" + table.fields.front() +
                                 "' but ARG is '" + labels.argument + "'.");
    const Grid& grid = expected.grid;
    for (const auto& [key, value] : grid_constants(grid, labels.argument))
        if (key.rfind("min_", 0) == 0)
            same_number(key, grid.minimum, grid.spacing());
        else if (key.rfind("max_", 0) == 0)
            same_number(key, grid.maximum, grid.spacing());
        else
            same(key, value);
    same("energy_unit", labels.energy_unit);
    same_number("kT", expected.kT, expected.kT);
    same_number("kappa", expected.kappa, expected.kappa);
    same_number("ramp", expected.ramp, expected.ramp);
    same_number("tau", expected.tau, expected.tau);
    if (table.fields != state_fields(labels))
        throw std::runtime_error(name + ": its columns are not those of a state file of BABF.");
    if (table.rows.size() != grid.nodes())
        throw std::runtime_error(name + ": has " + std::to_string(table.rows.size()) + " of the " +
                                 std::to_string(grid.nodes()) +
                                 " rows that its header promises, so it is not complete.");

    BabfSums sums;
    if (!to_number(text("steps"), sums.steps) || sums.steps < 0 ||
        sums.steps != std::floor(sums.steps) || std::isinf(sums.steps))
        throw std::runtime_error(name + ": steps=" + text("steps") + " is no number of steps.");
    // No spring is longer, and no sample weighs more than 1. What a sum leaves is below its digits.
    const double longest =
        expected.kappa *
        (grid.maximum - grid.minimum + std::sqrt(2 * Babf::cutoff * expected.kT / expected.kappa));
    const double slack = 1 + 1e-6;
    double all_weight = 0, all_count = 0;
    for (std::size_t j = 0; j < table.rows.size(); ++j) {
        const auto& row = table.rows[j];
        bool sound =
            std::all_of(row.begin(), row.end(), [](double v) { return std::isfinite(v); }) &&
            std::abs(row[0] - grid.node(j)) <= 1e-6 * grid.spacing() && row[1] >= 0 &&
            std::abs(row[2]) <= slack * longest * row[1] && row[3] >= 0 &&
            std::abs(row[4]) <= slack * longest / expected.kappa * row[3];
        for (std::size_t c = 1; c <= 4; ++c)
            sound = sound && std::abs(row[c + 5]) <= 1e-15 * std::abs(row[c]);
        if (!sound)
            throw std::runtime_error(name + ": row " + std::to_string(j + 1) +
                                     " holds a number that no run writes (NaN, infinite, negative "
                                     "weight, impossible force or wrong node), so the file is "
                                     "damaged.");
        all_weight += row[1];
        all_count += row[3];
    }
    if (std::max(all_weight, all_count) > slack * sums.steps)
        throw std::runtime_error(name + ": its samples weigh more than its " + text("steps") +
                                 " steps, so the file is damaged.");
    std::size_t c = 0;
    for (Sums* sum : {&sums.weight, &sums.force, &sums.count, &sums.offset}) {
        sum->sum = column(table, ++c);
        sum->rest = column(table, c + 5);
    }
    return sums;
}

/// The estimator that goes on from a state of the same one as `expected`, with the prior of the
/// state.
inline Babf restored(const Table& table, const BabfParameters& expected, const BabfLabels& labels,
                     const std::string& name) {
    const BabfSums sums = read_sums(table, expected, labels, name);
    BabfParameters parameters = expected;
    parameters.prior = column(table, 5);
    Babf babf(std::move(parameters));
    babf.merge(sums);
    return babf;
}

/// The `md_step` of a state, -1 if it has none (the sum of several runs).
inline long long md_step(const Table& table, const std::string& name) {
    const std::string* text = table.constant("md_step");
    if (!text)
        return -1;
    double step;
    if (!to_number(*text, step) || !(step >= 0 && step < 1e15) || step != std::floor(step))
        throw std::runtime_error(name + ": md_step=" + *text + " is no number of a step.");
    return static_cast<long long>(step);
}

inline Table profile_table(const Babf& babf, const BabfLabels& labels) {
    const auto& p = babf.parameters();
    const Babf::Profile profile = babf.profile();
    Table table;
    table.fields = {labels.argument, "A_k", "A", "der_A_k", "count"};
    table.constants = {{"action", "BABF_fes"},
                       {"energy_unit", labels.energy_unit},
                       {"kT", to_text(p.kT)},
                       {"kappa", to_text(p.kappa)},
                       {"steps", to_text(babf.steps())}};
    for (auto& constant : grid_constants(p.grid, labels.argument))
        table.constants.push_back(std::move(constant));
    for (std::size_t j = 0; j < babf.nodes().size(); ++j)
        table.rows.push_back({babf.nodes()[j], profile.convolved[j], profile.corrected[j],
                              profile.derivative[j], profile.count[j]});
    return table;
}

} // namespace plumed_cv
