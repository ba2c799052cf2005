// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// Profiles, read as PRIOR of BABF on one CV and on two.

#include "fuzz_table.h"

using namespace plumed_cv;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Babf estimators[] = {test::learned(1), test::learned(2)};
    const std::string text(reinterpret_cast<const char*>(data), size);
    for (const Babf& estimator : estimators)
        fuzz::attempt([&] {
            BabfParameters parameters = estimator.parameters();
            parameters.prior = prior_of(parse_table(text, "fes.dat"), parameters.axes,
                                        test::labels(estimator.dimensions()), "fes.dat");
            Babf babf(parameters);
            fuzz::require_bias(babf);
        });
    return 0;
}
