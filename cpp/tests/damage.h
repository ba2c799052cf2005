// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

// For the tests with damaged files: damage, the estimators whose files are damaged, and what a
// refusal must be.

#include "../core/babf_fes.h"
#include "../core/babf_prior.h"
#include "../core/babf_state.h"
#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

namespace plumed_cv {
namespace test {

inline std::size_t below(Random& random, std::size_t n) {
    return random() % n;
}

template <class List>
auto one_of(Random& random, const List& list) {
    return list[below(random, std::size(list))];
}

/// One edit at one place. `header` is the length of the part to damage most often.
inline void spoil(Random& random, std::string& bytes, std::size_t header) {
    static const std::string signs = "{}[]\",:0123456789-+.eE \n\r\t#!naifNI\\x\xff";
    static const char* const numbers[] = {"nan", "-inf",   "1e999", "1e308",
                                          "-1",  "0",      "-0.0",  "18446744073709551615",
                                          "0x1", "1e-320", "null",  "true"};
    static const double doubles[] = {NAN,  INFINITY, -INFINITY, 1e308, 5e-324, 0.0,
                                     -0.0, 1e-20,    1e20,      -1,    1,      2};
    if (bytes.empty())
        return;
    const std::size_t reach = below(random, 3) ? std::min(header, bytes.size()) : bytes.size();
    std::size_t at = below(random, reach), length = 1 + below(random, 20);
    switch (below(random, 9)) {
    case 0:
        bytes[at] = static_cast<char>(random());
        break;
    case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(random, 8)));
        break;
    case 2: // another digit, the silent one
        at = bytes.find_first_of("0123456789", at);
        if (at != std::string::npos)
            bytes[at] = one_of(random, std::string("0123456789"));
        break;
    case 3:
        bytes.insert(at, 1, one_of(random, signs));
        break;
    case 4:
        bytes.erase(at, length);
        break;
    case 5: // twice
        bytes.insert(at, bytes.substr(at, length * length));
        break;
    case 6: { // another number
        const std::size_t begin = bytes.find_first_of("0123456789", at);
        if (begin == std::string::npos)
            break;
        const std::size_t end = bytes.find_first_not_of("0123456789.e+-", begin);
        bytes.replace(begin, end - begin, one_of(random, numbers));
        break;
    }
    case 7: { // another double, as the data of a model have them
        const double value = one_of(random, doubles);
        at = (bytes.size() - at) / 8 * 8; // from the end, where they begin
        if (at >= 8)
            std::memcpy(&bytes[bytes.size() - at], &value, 8);
        break;
    }
    case 8: // a block of zeros, as a machine that fails leaves them
        bytes.replace(at, std::min(length * length, bytes.size() - at), length, '\0');
        break;
    }
}

/// Whether it is one sentence on one line.
inline bool is_sentence(const std::string& what) {
    return !what.empty() && what.back() == '.' && what.find('\n') == std::string::npos;
}

/// An estimator with some samples.
inline Babf learned(std::size_t dimensions) {
    BabfParameters p;
    for (std::size_t d = 0; d < dimensions; ++d) {
        p.axes.push_back(Grid{-1, 1, dimensions == 1 ? 6u : 3u, d == 1});
        p.kappa.push_back(BabfParameters::default_kappa(p.axes[d], 2.5));
    }
    p.kT = 2.5;
    p.ramp = 10;
    p.tau = BabfParameters::default_tau(p.ramp);
    Babf babf(p);
    std::mt19937_64 random(3);
    std::uniform_real_distribution<double> uniform(-1, 1);
    for (int s = 0; s < 500; ++s) {
        Point x{};
        for (std::size_t d = 0; d < dimensions; ++d)
            x[d] = uniform(random);
        babf.evaluate(x.data());
        babf.update();
    }
    return babf;
}

/// The names in its files.
inline BabfLabels labels(std::size_t dimensions) {
    return {dimensions == 1 ? std::vector<std::string>{"cv.node-0"}
                            : std::vector<std::string>{"phi", "psi"},
            "kj/mol"};
}

/// Its state or, with `of_walker`, the contribution of a walker with the number 1.
inline std::string state_file(std::size_t dimensions, bool of_walker) {
    const Babf babf = learned(dimensions);
    Table table = state_table(babf, labels(dimensions), {500, babf.xi(), babf.evaluation()});
    if (of_walker) {
        table.constants.emplace_back("walker", "1");
        table.constants.emplace_back("writer", "1-2-3-4-5");
    }
    return format_table(table);
}

inline std::string profile_file(std::size_t dimensions) {
    return format_table(profile_table(learned(dimensions), labels(dimensions)));
}

/// The length of the part to damage most often: the header and a little more.
inline std::size_t header_of_table(const std::string& text) {
    return std::min(text.find("\n "), text.size()) + 100;
}

} // namespace test
} // namespace plumed_cv
