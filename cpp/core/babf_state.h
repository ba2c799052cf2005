// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "babf.h"
#include "babf_labels.h"
#include "textfile.h"

// The state of bABF: the file from which a run continues.
namespace plumed_cv {

constexpr const char* use_earlier_copy = "; use an earlier copy of the file.";

/// The columns of a state: the CVs, the sums, the prior, the rounding errors of the sums, and the A
/// that biases.
inline std::vector<std::string> state_fields(const BabfLabels& labels) {
    const std::size_t dimensions = labels.arguments.size();
    std::vector<std::string> sums{"weight"};
    for (std::size_t d = 0; d < dimensions; ++d)
        sums.push_back(labels.of("force", d));
    sums.push_back("count");
    for (std::size_t d = 0; d < dimensions; ++d)
        sums.push_back(labels.of("offset", d));
    std::vector<std::string> fields = labels.arguments;
    fields.insert(fields.end(), sums.begin(), sums.end());
    for (std::size_t d = 0; d < dimensions; ++d)
        fields.push_back(labels.of("prior", d));
    for (const std::string& sum : sums)
        fields.push_back(sum + "_rest");
    fields.push_back("A");
    return fields;
}

/// The sums of an estimator as columns of a state, with the index in their array.
template <class BabfSumsOrConst>
auto sum_columns(BabfSumsOrConst& sums, std::size_t dimensions) {
    std::vector<std::pair<decltype(&sums.weight), std::size_t>> columns{{&sums.weight, 0}};
    for (std::size_t d = 0; d < dimensions; ++d)
        columns.emplace_back(&sums.force, d * sums.nodes());
    columns.emplace_back(&sums.count, 0);
    for (std::size_t d = 0; d < dimensions; ++d)
        columns.emplace_back(&sums.offset, d * sums.nodes());
    return columns;
}

/// The last step that was added. An engine that continues from it may compute it again.
struct LearnedStep {
    long long number = -1; // the engine's, negative where there is none
    Point xi{};
    std::optional<Evaluation> acted; // unknown in files that only have the number

    /// Whether a point equals this one up to the rounding of the numbers that an engine stores.
    bool is_at(const Point& at, const std::vector<Grid>& axes) const {
        if (!acted)
            return false;
        for (std::size_t d = 0; d < axes.size(); ++d)
            if (!(std::abs(moved(at, axes, d)) <= 1e-3 * axes[d].spacing()))
                return false;
        return true;
    }

    /// The evaluation at such a point: the bias to first order, so that the force is its
    /// derivative.
    Evaluation acting_at(const Point& at, const std::vector<Grid>& axes) const {
        Evaluation now = *acted;
        for (std::size_t d = 0; d < axes.size(); ++d) {
            const double by = moved(at, axes, d);
            now.bias -= now.force[d] * by;
            now.zeta[d] += by;
        }
        return now;
    }

  private:
    double moved(const Point& at, const std::vector<Grid>& axes, std::size_t d) const {
        const double by = at[d] - xi[d];
        return axes[d].periodic ? std::remainder(by, axes[d].length()) : by;
    }
};

inline Table state_table(const Babf& babf, const BabfLabels& labels, const LearnedStep& last = {}) {
    const auto& p = babf.parameters();
    const std::size_t dimensions = babf.dimensions();
    Table table;
    table.fields = state_fields(labels);
    table.constants = {{"action", "BABF_state"},
                       {"format_version", "1"},
                       {"energy_unit", labels.energy_unit},
                       {"kT", to_text(p.kT)}};
    if (!labels.length_unit.empty())
        table.constants.emplace_back("length_unit", labels.length_unit);
    for (std::size_t d = 0; d < dimensions; ++d)
        table.constants.emplace_back(labels.of("kappa", d), to_text(p.kappa[d]));
    table.constants.emplace_back("tau", to_text(p.tau));
    table.constants.emplace_back("ramp", to_text(p.ramp));
    if (!labels.extra_bias.empty())
        table.constants.emplace_back("extra_bias", labels.extra_bias);
    if (p.solve_stride != BabfParameters::default_solve_stride(p.nodes()))
        table.constants.emplace_back("solve_stride", std::to_string(p.solve_stride));
    table.constants.emplace_back("steps", to_text(babf.sums().steps));
    table.constants.emplace_back("solved", to_text(babf.solved()));
    if (last.number >= 0)
        table.constants.emplace_back("md_step", std::to_string(last.number));
    if (last.acted) {
        table.constants.emplace_back("md_bias", to_text(last.acted->bias));
        for (std::size_t d = 0; d < dimensions; ++d) {
            table.constants.emplace_back(labels.of("md_cv", d), to_text(last.xi[d]));
            table.constants.emplace_back(labels.of("md_force", d), to_text(last.acted->force[d]));
        }
    }
    add_grid_constants(table, p.axes, labels);
    const auto columns = sum_columns(babf.sums(), dimensions);
    for (std::size_t j = 0; j < babf.size(); ++j) {
        const Point z = babf.node(j);
        std::vector<double> row(z.begin(), z.begin() + static_cast<std::ptrdiff_t>(dimensions));
        for (const auto& [sums, begin] : columns)
            row.push_back(sums->sum[begin + j]);
        for (std::size_t d = 0; d < dimensions; ++d)
            row.push_back(p.prior[d * babf.size() + j]);
        for (const auto& [sums, begin] : columns)
            row.push_back(sums->rest[begin + j]);
        row.push_back(babf.energy()[j]);
        table.rows.push_back(std::move(row));
    }
    return table;
}

/// A constant in the header of a file; it must be present.
inline std::string required(const Table& table, const std::string& key, const std::string& name) {
    const std::string* value = table.constant(key);
    if (!value || value->empty())
        throw std::runtime_error(name + ": its header has no '#! SET " + key +
                                 "', so it is not a whole state file of BABF; give another file.");
    return *value;
}

/// A number of samples in the header of a file.
inline double sample_number(const Table& table, const std::string& key, const std::string& name) {
    const std::string text = required(table, key, name);
    double steps;
    if (!to_number(text, steps) || steps < 0 || steps != std::floor(steps) || std::isinf(steps))
        throw std::runtime_error(name + ": " + key + "=" + text + " is no number of steps" +
                                 use_earlier_copy);
    return steps;
}

/// The largest number of samples between two solutions in the run that wrote a state.
inline int solve_stride_of(const Table& table, std::size_t nodes, const std::string& name) {
    if (!table.constant("solve_stride"))
        return BabfParameters::default_solve_stride(nodes);
    const double stride = sample_number(table, "solve_stride", name);
    if (!(stride >= 1 && stride <= 2147483647.0))
        throw std::runtime_error(name + ": solve_stride=" + to_text(stride) +
                                 " is no number of steps" + use_earlier_copy);
    return static_cast<int>(stride);
}

/// The sums of a state. It must be of the same estimator as `expected` (except for the prior) and
/// contain only numbers that a run can write.
inline BabfSums read_sums(const Table& table, const BabfParameters& expected,
                          const BabfLabels& labels, const std::string& name) {
    const std::size_t dimensions = expected.axes.size();
    const auto same = [&](const std::string& key, const std::string& here) {
        const std::string there = required(table, key, name);
        if (there != here)
            throw std::runtime_error(name + ": has " + key + "=" + there + " but here it is " +
                                     here + "; give the same, or do without this file.");
    };
    const auto same_number = [&](const std::string& key, double here, double scale) {
        double there;
        // NaN fails this comparison, and two infinities are equal.
        if (!to_number(required(table, key, name), there) ||
            !(there == here || std::abs(there - here) <= 1e-6 * scale))
            same(key, to_text(here));
    };
    same("action", "BABF_state");
    same("format_version", "1");
    for (std::size_t d = 0; d < dimensions; ++d) {
        const std::string& argument = labels.arguments[d];
        const std::string there = d < table.fields.size() ? table.fields[d] : "nothing";
        if (there != argument)
            throw std::runtime_error(name + ": is of the CV '" + there + "' but ARG is '" +
                                     argument + "'; give the state of this CV.");
    }
    for (std::size_t d = 0; d < dimensions; ++d) {
        const Grid& grid = expected.axes[d];
        const std::string& argument = labels.arguments[d];
        same_number("min_" + argument, grid.minimum, grid.spacing());
        same_number("max_" + argument, grid.maximum, grid.spacing());
        same("nbins_" + argument, std::to_string(grid.bins));
        same("periodic_" + argument, grid.periodic ? "true" : "false");
    }
    same("energy_unit", labels.energy_unit);
    if (table.constant("length_unit") && !labels.length_unit.empty())
        same("length_unit", labels.length_unit);
    same_number("kT", expected.kT, expected.kT);
    for (std::size_t d = 0; d < dimensions; ++d)
        same_number(labels.of("kappa", d), expected.kappa[d], expected.kappa[d]);
    same_number("ramp", expected.ramp, expected.ramp);
    same_number("tau", expected.tau, expected.tau);
    if (table.constant("extra_bias") || !labels.extra_bias.empty())
        same("extra_bias", labels.extra_bias);
    if (table.fields != state_fields(labels))
        throw std::runtime_error(
            name + ": its columns are not those of a state file of BABF; give another file.");
    const std::size_t nodes = expected.nodes();
    if (table.rows.size() != nodes)
        throw std::runtime_error(name + ": has " + std::to_string(table.rows.size()) + " of the " +
                                 std::to_string(nodes) +
                                 " rows of its grid, so it is not complete" + use_earlier_copy);

    BabfSums sums(nodes, dimensions);
    sums.steps = sample_number(table, "steps", name);
    // No spring is longer than this, and no weight exceeds 1. A rest is below the digits of its
    // sum.
    const double slack = 1 + 1e-6;
    const auto longest = [&](std::size_t d) {
        return expected.axes[d].length() +
               std::sqrt(2 * Window::cutoff * expected.kT / expected.kappa[d]);
    };
    const std::size_t weight = dimensions, force = weight + 1, count = force + dimensions,
                      offset = count + 1, prior = offset + dimensions, rest = prior + dimensions;
    double all_weight = 0, all_count = 0;
    for (std::size_t j = 0; j < nodes; ++j) {
        const auto& row = table.rows[j];
        bool sound =
            std::all_of(row.begin(), row.end(), [](double v) { return std::isfinite(v); }) &&
            row[weight] >= 0 && row[count] >= 0;
        for (std::size_t d = 0, k = j; d < dimensions; k /= expected.axes[d].nodes(), ++d) {
            const Grid& grid = expected.axes[d];
            const double reach = slack * longest(d);
            sound = sound &&
                    std::abs(row[d] - grid.node(k % grid.nodes())) <= 1e-6 * grid.spacing() &&
                    std::abs(row[force + d]) <= expected.kappa[d] * reach * row[weight] &&
                    std::abs(row[offset + d]) <= reach * row[count];
        }
        // A rest is below the last digit of the largest possible sum, not of the sum itself: forces
        // cancel, also those of several states.
        const auto is_rest = [&](std::size_t c, double most) {
            return std::abs(row[rest + c - weight]) <= 1e-15 * most;
        };
        sound = sound && is_rest(weight, row[weight]) && is_rest(count, row[count]);
        for (std::size_t d = 0; d < dimensions; ++d) {
            const double reach = slack * longest(d);
            sound = sound && is_rest(force + d, expected.kappa[d] * reach * row[weight]) &&
                    is_rest(offset + d, reach * row[count]);
        }
        if (!sound)
            throw std::runtime_error(name + ": row " + std::to_string(j + 1) +
                                     " holds a number that no run writes (NaN, infinite, negative "
                                     "weight, impossible force or wrong node), so the file is "
                                     "damaged" +
                                     use_earlier_copy);
        all_weight += row[weight];
        all_count += row[count];
    }
    if (labels.extra_bias.empty() && std::max(all_weight, all_count) > slack * sums.steps)
        throw std::runtime_error(name + ": its samples weigh more than its " +
                                 required(table, "steps", name) + " steps, so the file is damaged" +
                                 use_earlier_copy);
    table.check_unchanged(name);
    std::size_t c = 0;
    for (const auto& [sum, begin] : sum_columns(sums, dimensions)) {
        for (std::size_t j = 0; j < nodes; ++j) {
            sum->sum[begin + j] = table.rows[j][weight + c];
            sum->rest[begin + j] = table.rows[j][rest + c];
        }
        ++c;
    }
    return sums;
}

/// The estimator that continues from a state of the same estimator as `expected`, with the prior of
/// the state.
inline Babf restored(const Table& table, const BabfParameters& expected, const BabfLabels& labels,
                     const std::string& name) {
    const BabfSums sums = read_sums(table, expected, labels, name);
    const std::size_t dimensions = expected.axes.size();
    BabfParameters parameters = expected;
    parameters.prior.clear();
    for (std::size_t d = 0; d < dimensions; ++d)
        for (double slope : column(table, dimensions + 2 + 2 * dimensions + d))
            parameters.prior.push_back(slope);
    Babf babf(std::move(parameters));
    babf.resume(sums, column(table, table.fields.size() - 1), sample_number(table, "solved", name));
    return babf;
}

/// The last step that a state contains: `md_step` (absent in the sum of several runs), the CVs at
/// this step, and the bias that acted.
inline LearnedStep learned_step(const Table& table, const BabfLabels& labels,
                                const BabfParameters& parameters, const std::string& name) {
    LearnedStep last;
    const std::string* text = table.constant("md_step");
    if (!text)
        return last;
    double step;
    if (!to_number(*text, step) || !(step >= 0 && step < 1e15) || step != std::floor(step))
        throw std::runtime_error(name + ": md_step=" + *text + " is no number of a step" +
                                 use_earlier_copy);
    last.number = static_cast<long long>(step);
    if (!table.constant("md_bias"))
        return last;
    const auto number = [&](const std::string& key) {
        const std::string value = required(table, key, name);
        double found;
        if (!to_number(value, found) || !std::isfinite(found))
            throw std::runtime_error(name + ": " + key + "=" + value + " is no number" +
                                     use_earlier_copy);
        return found;
    };
    Evaluation acted{number("md_bias"), {}, {}};
    for (std::size_t d = 0; d < labels.arguments.size(); ++d) {
        last.xi[d] = number(labels.of("md_cv", d));
        acted.force[d] = number(labels.of("md_force", d));
        acted.zeta[d] = last.xi[d] + acted.force[d] / parameters.kappa[d];
    }
    last.acted = acted;
    return last;
}

} // namespace plumed_cv
