// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "babf_sums.h"
#include "textfile.h"

// What the files of bABF have in common. A grid in two dimensions has one row for each node; the
// first CV varies fastest.
namespace plumed_cv {

/// The header entries of a file other than the numbers of the estimator.
struct BabfLabels {
    std::vector<std::string> arguments;
    std::string energy_unit;
    std::string extra_bias = "";  // names of the bias potentials that are reweighted
    std::string length_unit = ""; // of CVs that are lengths; empty if it is not known

    /// In files with more than one CV, the entries of one CV include its name.
    std::string of(const std::string& quantity, std::size_t d) const {
        return arguments.size() == 1 ? quantity : quantity + "_" + arguments[d];
    }
};

inline void add_grid_constants(Table& table, const std::vector<Grid>& axes,
                               const BabfLabels& labels) {
    for (std::size_t d = 0; d < axes.size(); ++d) {
        const std::string& argument = labels.arguments[d];
        table.constants.emplace_back("min_" + argument, to_text(axes[d].minimum));
        table.constants.emplace_back("max_" + argument, to_text(axes[d].maximum));
        table.constants.emplace_back("nbins_" + argument, std::to_string(axes[d].bins));
        table.constants.emplace_back("periodic_" + argument, axes[d].periodic ? "true" : "false");
    }
}

inline std::vector<double> column(const Table& table, std::size_t c) {
    std::vector<double> values;
    for (const auto& row : table.rows)
        values.push_back(row[c]);
    return values;
}

} // namespace plumed_cv
