// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "babf.h"
#include "babf_labels.h"
#include "textfile.h"

// The profile of bABF as a file.
namespace plumed_cv {

inline Table profile_table(const Babf& babf, const BabfLabels& labels,
                           const std::string& format = "") {
    const auto& p = babf.parameters();
    const std::size_t dimensions = babf.dimensions();
    const BabfProfile profile = babf.profile();
    const auto number = format.empty() ? to_text : to_short_text;
    Table table;
    table.format = format;
    table.fields = labels.arguments;
    table.fields.insert(table.fields.end(), {"A_k", "A"});
    table.constants = {
        {"action", "BABF_fes"}, {"energy_unit", labels.energy_unit}, {"kT", number(p.kT)}};
    for (std::size_t d = 0; d < dimensions; ++d) {
        table.fields.push_back(labels.of("der_A_k", d));
        table.constants.emplace_back(labels.of("kappa", d), number(p.kappa[d]));
    }
    table.fields.push_back("count");
    table.constants.emplace_back("steps", to_text(babf.steps()));
    add_grid_constants(table, p.axes, labels);
    if (dimensions > 1)
        table.rows_between_blanks = p.axes[0].nodes();
    for (std::size_t j = 0; j < babf.size(); ++j) {
        const Point z = babf.node(j);
        std::vector<double> row(z.begin(), z.begin() + static_cast<std::ptrdiff_t>(dimensions));
        row.insert(row.end(), {profile.convolved[j], profile.corrected[j]});
        for (std::size_t d = 0; d < dimensions; ++d)
            row.push_back(profile.derivative[d * babf.size() + j]);
        row.push_back(profile.count[j]);
        table.rows.push_back(std::move(row));
    }
    return table;
}

} // namespace plumed_cv
