// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

// For the fuzzers of files that are tables, states and profiles: their mutator, and what must hold of
// an estimator that has read one.

#include "fuzz.h"

namespace plumed_cv {
namespace fuzz {

/// The checksum of a state or profile.
inline void repair_table(std::string& text) {
    static const std::string key = "#! SET checksum ";
    const std::size_t begin = text.find(key);
    const std::size_t end = begin == std::string::npos ? begin : text.find('\n', begin);
    if (end != std::string::npos)
        text.replace(begin, end - begin, key + checksum_around(text, begin, end + 1));
}

/// An estimator that was read gives finite numbers, also after further samples.
inline void require_bias(Babf& babf) {
    for (double x : {-1.3, 0.1, 0.9}) {
        const Point xi{x, 0.5 * x};
        const Evaluation now = babf.evaluate(xi.data());
        bool finite = std::isfinite(now.bias);
        for (std::size_t d = 0; d < babf.dimensions(); ++d)
            finite = finite && std::isfinite(now.force[d]);
        require(finite, "the bias is finite");
        babf.update();
    }
}

} // namespace fuzz
} // namespace plumed_cv

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
    using namespace plumed_cv;
    const std::string text(reinterpret_cast<const char*>(data), size);
    return fuzz::mutate(data, size, most, seed, test::header_of_table(text), fuzz::repair_table);
}
