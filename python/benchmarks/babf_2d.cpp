// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// What a step of BABF on two CVs costs, for babf_2d.py: BINS PERIODIC STEPS. A particle moves on a
// landscape of some 20 kT under its bias; processor times as JSON, in microseconds.

#include "../../cpp/core/babf_state.h"

#include <cstdio>
#include <cstdlib>
#include <random>

#include <time.h>

using namespace plumed_cv;

namespace {

double now() {
    timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return 1e6 * static_cast<double>(time.tv_sec) + 1e-3 * static_cast<double>(time.tv_nsec);
}

double median(std::vector<double> times) {
    std::sort(times.begin(), times.end());
    return times.empty() ? NAN : times[times.size() / 2];
}

} // namespace

int main(int, char** arguments) {
    const auto bins = static_cast<std::size_t>(std::atol(arguments[1]));
    const bool periodic = std::atoi(arguments[2]) != 0;
    const int steps = std::atoi(arguments[3]);
    const Grid grid{-M_PI, M_PI, bins, periodic};
    BabfParameters p;
    p.axes = {grid, grid};
    p.kappa = {BabfParameters::default_kappa(grid, 1), BabfParameters::default_kappa(grid, 1)};
    p.ramp = steps;
    p.tau = BabfParameters::default_tau(p.ramp);
    p.solve_stride = BabfParameters::default_solve_stride(p.nodes());
    Babf babf(p);

    // Langevin dynamics in kT and thermal velocities, a step of 0.03 rad at the thermal velocity.
    std::mt19937_64 generator(1);
    std::normal_distribution<double> normal;
    const double dt = 0.03, friction = 1;
    double x[2] = {-1.5, 0}, v[2] = {0, 0}, all = 0;
    std::vector<double> without, with; // steps without and with a solution for A
    for (int s = 0; s < steps; ++s) {
        const double solved = babf.solved(), begin = now();
        const Evaluation bias = babf.evaluate(x);
        babf.update();
        const double spent = now() - begin;
        all += spent;
        (babf.solved() == solved ? without : with).push_back(spent);
        const double slope[2] = {-8 * std::sin(2 * x[0]) - 4 * std::sin(x[0] - x[1]),
                                 -5 * std::sin(x[1]) + 4 * std::sin(x[0] - x[1])};
        for (int d = 0; d < 2; ++d) {
            v[d] += (bias.force[d] - slope[d] - friction * v[d]) * dt +
                    std::sqrt(2 * friction * dt) * normal(generator);
            x[d] += v[d] * dt;
        }
    }
    const double begin = now();
    const std::string text = format_table(state_table(babf, {{"phi", "psi"}, "eV"}));
    const double writing = now() - begin;
    std::printf("{\"mean\": %.3f, \"without\": %.3f, \"solution\": %.1f, \"solutions\": %zu, "
                "\"stride\": %d, \"state\": %.0f, \"state_bytes\": %zu}\n",
                all / steps, median(without), median(with), with.size(), p.solve_stride, writing,
                text.size());
}
