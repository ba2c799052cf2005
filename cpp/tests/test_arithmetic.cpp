// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// Properties of floating point numbers on which all else depends, for any CXXFLAGS.

#include <limits>

#include "../core/babf_sums.h"
#include "../core/vector_math.h"
#include "check.h"

using namespace plumed_cv;

namespace {

/// A number that the compiler cannot know.
double unknown(double value) {
    volatile double copy = value;
    return copy;
}

} // namespace

TEST("two additions round to the nearest integer") {
    for (double x : {-2.5, -0.7, 0.3, 1.5, 10.49})
        CHECK(nearest_integer(unknown(x)) == std::nearbyint(x));
}

TEST("compensated sums keep their rounding errors") {
    Sums sums(1);
    sums.add(0, unknown(1));
    for (int i = 0; i < 1000; ++i)
        sums.add(0, unknown(1e-17));
    CHECK_CLOSE(sums.sum[0] - 1 + sums.rest[0], 1e-14, 1e-20);
}

TEST("NaN and infinity are recognised") {
    CHECK(std::isnan(unknown(NAN)));
    CHECK(!std::isfinite(unknown(INFINITY)));
    CHECK(!(unknown(NAN) > 0));
}

TEST("the smallest numbers are not rounded to zero") {
    CHECK(unknown(std::numeric_limits<double>::min()) / unknown(4) > 0);
}
