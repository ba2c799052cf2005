// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "babf_labels.h"
#include "babf_sums.h"
#include "textfile.h"

// The prior of bABF: the derivative of a profile that is read from a file.
namespace plumed_cv {

/// A profile on a grid of its own, linear in between; `name` is the file name in messages.
class PriorProfile {
  public:
    /// Values of each CV in ascending order, and A there; the first CV varies fastest.
    PriorProfile(std::vector<Grid> axes, std::vector<std::vector<double>> x, std::vector<double> A,
                 const std::string& name)
        : axes_(std::move(axes)), x_(std::move(x)), A_(std::move(A)) {
        for (std::size_t d = 0; d < axes_.size(); ++d) {
            if (axes_[d].periodic)
                close(d);
            const double slack = 1e-6 * axes_[d].spacing();
            if (x_[d].front() > axes_[d].minimum + slack || x_[d].back() < axes_[d].maximum - slack)
                throw std::runtime_error(
                    name + ": covers " + to_text(x_[d].front()) + " to " + to_text(x_[d].back()) +
                    " but the grid goes from " + to_text(axes_[d].minimum) + " to " +
                    to_text(axes_[d].maximum) + "; give a profile over the whole grid.");
        }
    }

    /// dA/dz at the nodes, by central differences over one bin, for one CV after the other.
    std::vector<double> derivative() const {
        BabfParameters parameters;
        parameters.axes = axes_;
        std::vector<double> derivative;
        for (std::size_t d = 0; d < axes_.size(); ++d)
            for (std::size_t j = 0; j < parameters.nodes(); ++j) {
                std::vector<double> z;
                for (std::size_t e = 0, k = j; e < axes_.size(); k /= axes_[e].nodes(), ++e)
                    z.push_back(axes_[e].node(k % axes_[e].nodes()));
                const Grid& grid = axes_[d];
                double low = z[d] - 0.5 * grid.spacing(), high = low + grid.spacing();
                if (!grid.periodic) {
                    low = std::max(low, grid.minimum);
                    high = std::min(high, grid.maximum);
                }
                z[d] = high;
                const double above = value(z);
                z[d] = low;
                derivative.push_back((above - value(z)) / (high - low));
            }
        return derivative;
    }

  private:
    /// Adds the periodic images of the ends beyond them, unless they are present.
    void close(std::size_t d) {
        const Grid& grid = axes_[d];
        const std::vector<double> x = x_[d];
        if (x.back() - x.front() >= grid.length() - 1e-6 * grid.spacing())
            return;
        x_[d].push_back(x.front() + grid.length());
        x_[d].insert(x_[d].begin(), x.back() - grid.length());
        std::size_t stride = 1;
        for (std::size_t e = 0; e < d; ++e)
            stride *= x_[e].size();
        const std::size_t n = x.size();
        std::vector<double> closed;
        for (std::size_t begin = 0; begin < A_.size(); begin += n * stride) {
            const auto row = [&](std::size_t i) {
                const auto first = A_.begin() + static_cast<std::ptrdiff_t>(begin + i * stride);
                closed.insert(closed.end(), first, first + static_cast<std::ptrdiff_t>(stride));
            };
            row(n - 1);
            for (std::size_t i = 0; i < n; ++i)
                row(i);
            row(0);
        }
        A_ = std::move(closed);
    }

    double value(const std::vector<double>& z) const { return value(axes_.size(), 0, z); }

    /// For the first `dimensions` CVs, of the values from `begin` on.
    double value(std::size_t dimensions, std::size_t begin, const std::vector<double>& z) const {
        if (dimensions == 0)
            return A_[begin];
        const std::size_t d = dimensions - 1;
        const auto& x = x_[d];
        std::size_t stride = 1;
        for (std::size_t e = 0; e < d; ++e)
            stride *= x_[e].size();
        double at = z[d];
        if (axes_[d].periodic)
            at -= axes_[d].length() * std::floor((at - x.front()) / axes_[d].length());
        at = std::clamp(at, x.front(), x.back());
        const auto above =
            static_cast<std::size_t>(std::upper_bound(x.begin() + 1, x.end() - 1, at) - x.begin());
        const double t = (at - x[above - 1]) / (x[above] - x[above - 1]);
        const double low = value(d, begin + (above - 1) * stride, z);
        return low + t * (value(d, begin + above * stride, z) - low);
    }

    std::vector<Grid> axes_;
    std::vector<std::vector<double>> x_;
    std::vector<double> A_;
};

/// dA/dz at the nodes along one CV from a profile (x, A) read from a file.
inline std::vector<double> prior_derivative(const Grid& grid, const std::vector<double>& x,
                                            const std::vector<double>& A, const std::string& name) {
    if (x.size() < 2)
        throw std::runtime_error(name +
                                 ": needs at least two rows; give a profile over the whole grid.");
    for (std::size_t i = 0; i < x.size(); ++i)
        if (!std::isfinite(x[i]) || !std::isfinite(A[i]) || (i > 0 && x[i] <= x[i - 1]))
            throw std::runtime_error(
                name + ": row " + std::to_string(i + 1) +
                " has a number that is not finite or a CV that does not increase, "
                "so it is no profile for PRIOR; give another file.");
    return PriorProfile({grid}, {x}, A, name).derivative();
}

/// The same in two dimensions, from points (x, y, A) in any order that form a grid.
inline std::vector<double> prior_derivative(const std::vector<Grid>& axes,
                                            const std::array<std::vector<double>, 2>& points,
                                            const std::vector<double>& A, const std::string& name) {
    const auto fail = [&](std::size_t row, const std::string& what) {
        throw std::runtime_error(name + ": row " + std::to_string(row + 1) + " has " + what +
                                 ", so it is no profile for PRIOR; give another file.");
    };
    std::vector<std::vector<double>> x;
    for (std::vector<double> values : points) {
        for (std::size_t i = 0; i < values.size(); ++i)
            if (!std::isfinite(values[i]) || !std::isfinite(A[i]))
                fail(i, "a number that is not finite");
        std::sort(values.begin(), values.end());
        values.erase(std::unique(values.begin(), values.end()), values.end());
        x.push_back(std::move(values));
    }
    if (x[0].size() < 2 || x[1].size() < 2 || x[0].size() * x[1].size() != A.size())
        throw std::runtime_error(name + ": its " + std::to_string(A.size()) +
                                 " rows are no grid of " + std::to_string(x[0].size()) + " by " +
                                 std::to_string(x[1].size()) +
                                 " values, so it is no profile for PRIOR; give another file.");
    std::vector<double> ordered(A.size(), NAN);
    for (std::size_t i = 0; i < A.size(); ++i) {
        std::size_t j = 0;
        for (std::size_t d = 2; d-- > 0;) {
            const auto at = std::lower_bound(x[d].begin(), x[d].end(), points[d][i]);
            j = j * x[d].size() + static_cast<std::size_t>(at - x[d].begin());
        }
        if (!std::isnan(ordered[j]))
            fail(i, "the place of an earlier one");
        ordered[j] = A[i];
    }
    return PriorProfile(axes, x, std::move(ordered), name).derivative();
}

/// dA/dz at the nodes from a profile file: from the column `A_k` if there is one (our files), else
/// from the column after the CVs (sum_hills and others).
inline std::vector<double> prior_of(const Table& table, const std::vector<Grid>& axes,
                                    const BabfLabels& labels, const std::string& path) {
    const std::size_t dimensions = axes.size();
    if (const std::string* action = table.constant("action"); action && *action == "BABF_state")
        throw std::runtime_error(path + ": is a state and no profile; give it to STATE_RFILE, or "
                                        "give PRIOR the FES_FILE of that run.");
    if (table.fields.size() < dimensions + 1)
        throw std::runtime_error(path + (dimensions == 1
                                             ? ": needs two columns, the CV and its free energy."
                                             : ": needs three columns, the CVs and their free "
                                               "energy."));
    const std::string* unit = table.constant("energy_unit");
    if (unit && *unit != labels.energy_unit)
        throw std::runtime_error(path + ": is in " + *unit + " but the energy unit here is " +
                                 labels.energy_unit + "; use the same UNITS ENERGY.");
    const auto place = [&](const std::string& name, std::size_t otherwise) {
        const auto found = std::find(table.fields.begin(), table.fields.end(), name);
        return found == table.fields.end() ? otherwise
                                           : static_cast<std::size_t>(found - table.fields.begin());
    };
    const std::vector<double> A = column(table, place("A_k", dimensions));
    if (dimensions == 1) {
        auto derivative = prior_derivative(axes[0], column(table, 0), A, path);
        table.check_unchanged(path);
        return derivative;
    }
    // By name, so that a file of (psi, phi) can be used for ARG=phi,psi.
    std::array<std::size_t, 2> columns{place(labels.arguments[0], 2),
                                       place(labels.arguments[1], 2)};
    if (columns[0] > 1 || columns[1] > 1)
        columns = {0, 1};
    auto derivative =
        prior_derivative(axes, {column(table, columns[0]), column(table, columns[1])}, A, path);
    table.check_unchanged(path);
    return derivative;
}

inline std::vector<double> read_prior(const std::string& path, const std::vector<Grid>& axes,
                                      const BabfLabels& labels) {
    return prior_of(read_table(path), axes, labels, path);
}

} // namespace plumed_cv
