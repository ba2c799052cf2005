// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// What an exchange between walkers costs, for walkers.py: FOLDER NUMBER REPETITIONS. One walker's
// time to write its contribution, to read those of all others when all have changed and when none
// has, and to add them up; the medians, in microseconds, as JSON.

#include "../../cpp/core/walkers.h"

#include <cstdio>
#include <functional>
#include <memory>

#include <time.h>

using namespace plumed_cv;

namespace {

double now() {
    timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return 1e6 * static_cast<double>(time.tv_sec) + 1e-3 * static_cast<double>(time.tv_nsec);
}

/// Processor time including system calls, which other processes hardly change.
double microseconds(const std::function<void()>& what) {
    const double begin = now();
    what();
    return now() - begin;
}

double median(std::vector<double> times) {
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

} // namespace

int main(int, char** arguments) {
    const std::string folder = arguments[1];
    const auto number = static_cast<std::size_t>(std::atol(arguments[2]));
    const int repetitions = std::atoi(arguments[3]);
    BabfParameters parameters;
    parameters.axes = {Grid{-0.2, 1.2, 140, false}};
    parameters.kT = 0.0259;
    parameters.kappa = {BabfParameters::default_kappa(parameters.axes[0], parameters.kT)};
    const BabfLabels labels{{"ae.node-0"}, "eV"};
    std::mt19937_64 generator(1);
    std::uniform_real_distribution<double> uniform(-0.2, 1.2);

    Babf babf(parameters);
    const auto learn = [&] {
        for (int s = 0; s < 1000; ++s) {
            babf.evaluate(uniform(generator));
            babf.update();
        }
    };
    std::vector<std::unique_ptr<Walkers>> walkers;
    for (std::size_t id = 0; id < number; ++id)
        walkers.push_back(std::make_unique<Walkers>(folder, number, id));
    std::vector<double> write, changed, unchanged, sum;
    std::vector<std::string> warnings;
    const LearnedStep last{1000, {}, {}};
    for (int i = 0; i < repetitions; ++i) {
        learn();
        for (std::size_t id = 1; id < number; ++id)
            walkers[id]->write(babf, labels, last);
        Walkers& first = *walkers[0];
        write.push_back(microseconds([&] { first.write(babf, labels, last); }));
        changed.push_back(microseconds([&] { first.read(parameters, labels, warnings); }));
        unchanged.push_back(microseconds([&] { first.read(parameters, labels, warnings); }));
        sum.push_back(microseconds([&] { babf.set_others(first.others(parameters)); }));
    }
    if (walkers[0]->contributors() != number - 1 || !warnings.empty())
        return 1;
    std::printf("{\"stride\": %d, \"write\": %.0f, \"read_changed\": %.0f, "
                "\"read_unchanged\": %.0f, \"sum\": %.0f}\n",
                Walkers::default_stride(number, parameters.nodes()), median(write), median(changed),
                median(unchanged), median(sum));
}
