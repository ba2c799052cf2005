// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// What many samples add up to, against their exact sum: with a frozen bias a sample that comes
// again adds the same again. PLUMED_CV_UPDATES sets the number of samples.

#include "../core/babf.h"
#include "check.h"

#include <cstdlib>
#include <random>

using namespace plumed_cv;

TEST("the sums of many samples do not drift") {
    const char* text = std::getenv("PLUMED_CV_UPDATES");
    const std::size_t different = 1000;
    const std::size_t rounds = (text ? std::strtoul(text, nullptr, 10) : 200'000) / different;
    BabfParameters p;
    p.axes = {Grid{0, 1, 20, false}};
    p.kT = 0.0259;
    p.kappa = {BabfParameters::default_kappa(p.axes[0], p.kT)};
    p.tau = INFINITY;
    p.prior.assign(p.nodes(), 0.1);
    std::mt19937_64 random(1);
    std::uniform_real_distribution<double> uniform(0, 1);
    std::vector<double> series;
    for (std::size_t s = 0; s < different; ++s)
        series.push_back(uniform(random));

    std::vector<long double> weight(p.nodes()), force(p.nodes()), size(p.nodes());
    for (const double xi : series) {
        Babf one(p);
        one.evaluate(xi);
        one.update();
        for (std::size_t j = 0; j < p.nodes(); ++j) {
            weight[j] += one.sums().weight.sum[j];
            force[j] += one.sums().force.sum[j];
            size[j] += std::abs(one.sums().force.sum[j]);
        }
    }
    Babf all(p);
    for (std::size_t round = 0; round < rounds; ++round)
        for (const double xi : series) {
            all.evaluate(xi);
            all.update();
        }
    // Forces cancel, so their error is relative to the sum of their sizes.
    const long double times = static_cast<long double>(rounds);
    long double worst = 0;
    for (std::size_t j = 0; j < p.nodes(); ++j) {
        worst = std::max(worst, std::abs(all.sums().weight.sum[j] / (times * weight[j]) - 1));
        worst = std::max(worst,
                         std::abs(all.sums().force.sum[j] - times * force[j]) / (times * size[j]));
    }
    std::printf("%zu updates: largest relative error %.2Le\n", rounds * different, worst);
    CHECK(all.sums().steps == static_cast<double>(rounds * different));
    CHECK(worst < 1e-15L);
}
