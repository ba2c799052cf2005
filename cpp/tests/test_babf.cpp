// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "../core/babf_fes.h"
#include "../core/babf_prior.h"
#include "../core/babf_state.h"
#include "check.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

using namespace plumed_cv;

namespace {

BabfParameters parameters(bool periodic = false, double ramp = 50) {
    BabfParameters p;
    p.axes = {periodic ? Grid{-M_PI, M_PI, 60, true} : Grid{-0.2, 1.2, 70, false}};
    p.kT = 0.0259;
    p.kappa = {BabfParameters::default_kappa(p.axes[0], p.kT)};
    p.ramp = ramp;
    p.tau = BabfParameters::default_tau(ramp);
    return p;
}

/// Values that cover the grid, and leave it slightly and once by a large distance.
std::vector<double> series(std::size_t length) {
    std::mt19937_64 generator(7);
    std::uniform_real_distribution<double> uniform(-0.22, 1.22);
    std::vector<double> values;
    for (std::size_t s = 0; s < length; ++s)
        values.push_back(s == 40 ? 25.0 : uniform(generator));
    return values;
}

Babf learned(const BabfParameters& p, const std::vector<double>& values) {
    Babf babf(p);
    for (double xi : values) {
        babf.evaluate(xi);
        babf.update();
    }
    return babf;
}

const BabfLabels labels{{"ae.node-0"}, "eV"};

std::string state_text(const Babf& babf) {
    return format_table(state_table(babf, labels));
}

Babf read_back(const std::string& text, const BabfParameters& expected) {
    return restored(parse_table(text, "state"), expected, labels, "state");
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
    return text.replace(text.find(from), from.size(), to);
}

} // namespace

TEST("our exponential equals that of the library") {
    CHECK(exponential(0) == 1);
    for (double x = -690; x < 690; x += 0.0371)
        CHECK_CLOSE(exponential(x), std::exp(x), 1e-15 * std::exp(x));
}

TEST("the force is the derivative of the bias, also outside of the grid and across the border") {
    for (bool periodic : {false, true}) {
        Babf babf = learned(parameters(periodic), series(300));
        const double h = 1e-6;
        for (double xi : {-0.35, -0.2, -0.013, 0.4, 0.77, 1.2, 1.31, -3.1415, 3.1415, 7.0}) {
            const double force = babf.evaluate(xi).force[0];
            const double slope =
                (babf.evaluate(xi + h).bias - babf.evaluate(xi - h).bias) / (2 * h);
            CHECK_CLOSE(force, -slope, 1e-6 * std::max(1.0, std::abs(force)));
        }
    }
}

TEST("the probabilities are those of Eq. 9 and give the force and zeta") {
    const auto p = parameters();
    Babf babf = learned(p, series(200));
    for (double xi : {-0.21, 0.0, 0.333, 1.1}) {
        const auto now = babf.evaluate(xi);
        double sum = 0, zeta = 0, force = 0;
        for (std::size_t j = 0; j < babf.size(); ++j) {
            const double z = babf.node(j)[0];
            const auto term = [&](std::size_t i) {
                const double d = xi - babf.node(i)[0];
                return std::exp((babf.energy()[i] - 0.5 * p.kappa[0] * d * d) / p.kT);
            };
            double all = 0;
            for (std::size_t i = 0; i < babf.size(); ++i)
                all += term(i);
            CHECK_CLOSE(babf.probability()[j], term(j) / all, 1e-14);
            sum += babf.probability()[j];
            zeta += babf.probability()[j] * z;
            force += babf.probability()[j] * p.kappa[0] * (z - xi);
        }
        CHECK_CLOSE(sum, 1, 1e-14);
        CHECK_CLOSE(now.zeta[0], zeta, 1e-13);
        CHECK_CLOSE(now.force[0], force, 1e-12 * p.kappa[0]);
    }
}

TEST("a value very far away gives finite numbers and is not learned") {
    Babf babf = learned(parameters(), series(30));
    const auto before = babf.sums();
    for (double xi : {-1e3, 1e6, 1e140}) {
        const auto now = babf.evaluate(xi);
        CHECK(std::isfinite(now.bias) && std::isfinite(now.force[0]));
        babf.update();
    }
    CHECK(babf.sums().weight.sum == before.weight.sum && babf.sums().force.sum == before.force.sum);
    CHECK(babf.sums().steps == before.steps + 3);
}

TEST("weights grow over the ramp and TAU is the weight of the first 20 samples") {
    CHECK_CLOSE(BabfParameters::default_tau(0), 20, 0);
    CHECK_CLOSE(BabfParameters::default_tau(1e5), 210e-5, 1e-15);
    CHECK_CLOSE(BabfParameters::default_tau(10), 5.5 + 10, 1e-14);
    const Babf babf = learned(parameters(false, 10), std::vector<double>(25, 0.5));
    double count = 0, weight = 0;
    for (std::size_t j = 0; j < babf.size(); ++j) {
        count += babf.sums().count.sum[j];
        weight += babf.sums().weight.sum[j];
    }
    CHECK_CLOSE(count, 5.5 + 15, 1e-13);
    CHECK_CLOSE(weight, 5.5 + 15, 1e-13);
}

TEST("a run continued from its file equals the whole run to the last bit") {
    const auto values = series(500);
    for (bool periodic : {false, true})
        for (std::size_t cut : {1u, 20u, 41u, 333u}) {
            const auto p = parameters(periodic);
            const std::vector<double> first(values.begin(), values.begin() + long(cut));
            Babf second = read_back(state_text(learned(p, first)), p);
            for (std::size_t s = cut; s < values.size(); ++s) {
                second.evaluate(values[s]);
                second.update();
            }
            CHECK(state_text(second) == state_text(learned(p, values)));
        }
}

TEST("merged states are the sum") {
    const auto p = parameters();
    const auto values = series(200);
    Babf one = learned(p, values), other = learned(p, {0.1, 0.2, 0.7});
    const auto before = one.sums();
    one.merge(other.sums());
    CHECK(one.sums().steps == 203);
    for (std::size_t j = 0; j < one.size(); ++j) {
        const double force = before.force.sum[j] + other.sums().force.sum[j];
        CHECK_CLOSE(one.sums().force.sum[j], force, 1e-15 * std::abs(force));
        CHECK(one.sums().count.sum[j] == before.count.sum[j] + other.sums().count.sum[j]);
    }
    CHECK_THROWS(one.merge(Babf(parameters(true)).sums()), "another grid");
}

TEST("an infinite TAU freezes the bias, and everything is still counted") {
    auto p = parameters();
    p.tau = INFINITY;
    p.prior.assign(p.nodes(), 0.3);
    Babf babf(p);
    const double bias = babf.evaluate(0.4).bias;
    babf = learned(p, series(100));
    CHECK(babf.evaluate(0.4).bias == bias);
    CHECK(babf.sums().weight.sum[30] > 0);
    CHECK(state_text(read_back(state_text(babf), p)) == state_text(babf));
}

TEST("the sums of many samples are exact to the last digit") {
    auto p = parameters(false, 0);
    Babf babf(p);
    std::vector<long double> weight(p.nodes()), force(p.nodes());
    std::mt19937_64 generator(3);
    std::uniform_real_distribution<double> uniform(-0.2, 1.2);
    const int samples = 200000;
    for (int s = 0; s < samples; ++s) {
        const double xi = uniform(generator);
        babf.evaluate(xi);
        for (std::size_t j = 0; j < weight.size(); ++j) {
            weight[j] += babf.probability()[j];
            force[j] += babf.probability()[j] * p.kappa[0] * (babf.node(j)[0] - xi);
        }
        babf.update();
    }
    for (std::size_t j = 0; j < weight.size(); ++j) {
        CHECK_CLOSE(babf.sums().weight.sum[j], double(weight[j]), 3e-16 * double(weight[j]));
        CHECK_CLOSE(babf.sums().force.sum[j], double(force[j]),
                    3e-16 * double(weight[j]) * p.kT / p.axes[0].spacing());
    }
}

TEST("a prior is the derivative of its profile") {
    for (bool periodic : {false, true}) {
        const Grid grid = parameters(periodic).axes[0];
        std::vector<double> x, A;
        for (int i = 0; i < 2000; ++i) { // without the last point of a period
            x.push_back(grid.minimum +
                        (grid.maximum - grid.minimum) * i / (periodic ? 2000 : 1999));
            A.push_back(std::cos(x.back()));
        }
        const auto derivative = prior_derivative(grid, x, A, "fes.dat");
        const std::size_t end = periodic ? 0 : 1;
        for (std::size_t j = end; j + end < grid.nodes(); ++j)
            CHECK_CLOSE(derivative[j], -std::sin(grid.node(j)), 1e-3);
    }
    const Grid grid = parameters().axes[0];
    CHECK_THROWS(prior_derivative(grid, {0, 1}, {0, 1}, "fes.dat"), "the whole grid");
    CHECK_THROWS(prior_derivative(grid, {0}, {0}, "fes.dat"), "at least two rows");
    CHECK_THROWS(prior_derivative(grid, {-1, 2, 1}, {0, 1, 2}, "fes.dat"), "row 3");
    CHECK_THROWS(prior_derivative(grid, {-1, 2}, {0, NAN}, "fes.dat"), "not finite");
}

TEST("the profile omits empty bins and continues behind them") {
    const auto p = parameters();
    const Babf babf = learned(p, {0.0, 0.02, 0.02, 0.5, 0.52});
    const auto profile = babf.profile();
    CHECK(std::isnan(profile.corrected[20]) && std::isnan(profile.corrected[0]));
    CHECK(std::isfinite(profile.corrected[10]) && std::isfinite(profile.corrected[36]));
    // On average over its samples each part lies where A_k does.
    const auto above = [&](std::size_t i, std::size_t j) {
        double sum = 0;
        for (std::size_t k : {i, j})
            sum += profile.count[k] * (profile.corrected[k] - profile.convolved[k]);
        return sum / (profile.count[i] + profile.count[j]);
    };
    CHECK_CLOSE(above(10, 11), above(35, 36), 1e-12);
    CHECK(std::isnan(Babf(p).profile().corrected[3]));
}

TEST("on a circle the bias closes where samples are fewest") {
    // Visited from -0.75 to 0.75 by a CV that is pulled one way: A climbs there as on a line.
    auto p = parameters(true);
    Babf babf(p);
    for (int s = 0; s < 4000; ++s) {
        const double x = 0.7 * std::sin(0.37 * s) + 0.05 * std::cos(0.11 * s);
        babf.evaluate(x);
        babf.update();
    }
    Babf circle(p);
    BabfSums sums = babf.sums();
    for (std::size_t j = 0; j < sums.force.sum.size(); ++j)
        sums.force.sum[j] += 3 * sums.weight.sum[j];
    circle.merge(sums);
    const auto slope = [&](std::size_t j) {
        return sums.force.sum[j] / (p.tau + sums.weight.sum[j]); // no prior
    };
    const double half = 0.5 * p.axes[0].spacing();
    for (std::size_t j = 25; j < 35; ++j)
        CHECK_CLOSE(circle.energy()[j + 1] - circle.energy()[j], half * (slope(j) + slope(j + 1)),
                    1e-2);
    CHECK(circle.energy()[35] - circle.energy()[25] > 3);
}

TEST("on a circle with empty bins the difference is not distributed to visited ones") {
    // Visited from 2.5 over the end of the domain to -2.5: one part, and a gap of 50 bins.
    auto p = parameters(true);
    Babf babf(p);
    for (int s = 0; s < 4000; ++s) {
        const double x = M_PI + 0.64 * std::sin(0.37 * s);
        babf.evaluate(x);
        babf.update();
    }
    const auto profile = babf.profile();
    // The same sums, shifted by half of the circle, are one part in the middle of a line.
    p.axes = {Grid{0, 2 * M_PI, 60, false}};
    p.prior.assign(61, 0);
    BabfSums shifted(61);
    for (std::size_t j = 0; j < 60; ++j) {
        const std::size_t i = (j + 30) % 60;
        shifted.weight.sum[i] = babf.sums().weight.sum[j];
        shifted.force.sum[i] = babf.sums().force.sum[j];
        shifted.count.sum[i] = babf.sums().count.sum[j];
        shifted.offset.sum[i] = babf.sums().offset.sum[j];
    }
    const auto expected = FreeEnergy(p).profile(shifted);
    for (std::size_t j = 0; j < 60; ++j) {
        const std::size_t i = (j + 30) % 60;
        CHECK(std::isnan(profile.corrected[j]) == std::isnan(expected.corrected[i]));
        if (!std::isnan(profile.corrected[j]))
            CHECK_CLOSE(profile.corrected[j], expected.corrected[i], 1e-9);
    }
    CHECK(std::isfinite(profile.corrected[0]) && std::isnan(profile.corrected[30]));
}

// Measured over 20 seeds: 0.094 kT on average, at most 0.128. Samples of the first crossings, of
// which some have 60 kT too much, are in it.
TEST("a barrier of 50 kT in 200 000 steps of inertial dynamics: 0.2 kT root mean square") {
    constexpr double height = 50;
    auto p = parameters(false, 40000);
    p.kT = 1;
    p.kappa = {BabfParameters::default_kappa(p.axes[0], p.kT)};
    Babf babf(p);
    std::mt19937_64 generator(1);
    std::normal_distribution<double> normal;
    const double dt = 0.4 * p.axes[0].spacing(), decay = std::exp(-dt / 0.4);
    double x = 0, v = normal(generator), force = 0;
    for (int s = 0; s < 200000; ++s) { // BAOAB
        v += 0.5 * dt * force;
        x += 0.5 * dt * v;
        v = decay * v + std::sqrt(1 - decay * decay) * normal(generator);
        x += 0.5 * dt * v;
        force = babf.evaluate(x).force[0] - 32 * height * x * (1 - x) * (1 - 2 * x);
        babf.update();
        v += 0.5 * dt * force;
    }
    const auto profile = babf.profile();
    double sum = 0, squares = 0, nodes = 0;
    for (std::size_t j = 5; j + 5 < babf.size(); ++j) {
        const double z = babf.node(j)[0];
        const double off = profile.corrected[j] - 16 * height * std::pow(z * (1 - z), 2);
        sum += off;
        squares += off * off;
        nodes += 1;
    }
    CHECK(std::sqrt(squares / nodes - std::pow(sum / nodes, 2)) < 0.2);
}

TEST("every cut and every typical damage of a state file is refused in a sentence") {
    const auto p = parameters();
    const std::string text = state_text(learned(p, series(100)));
    for (std::size_t length = 0; length < text.size(); ++length)
        CHECK_THROWS(read_back(text.substr(0, length), p), "state: ");
    CHECK_THROWS(read_back("# nothing\n", p), "not a PLUMED text file");
    CHECK_THROWS(read_back("#! FIELDS time ae.node-0\n 0 1\n", p), "no '#! SET action'");
    CHECK_THROWS(read_back(text + "#! FIELDS time ae.node-0 bias\n", p), "other columns");
    CHECK_THROWS(read_back(replaced(text, "ae.node-0 w", "cv w"), p), "the CV 'cv'");
    CHECK_THROWS(read_back(replaced(text, "force count", "count force"), p), "columns");
    CHECK_THROWS(read_back(replaced(text, "eV", "kj/mol"), p), "energy_unit=kj/mol");
    CHECK_THROWS(read_back(replaced(text, "kT 0.02", "kT nan0.02"), p), "kT=nan");
    CHECK_THROWS(read_back(replaced(text, "steps 100", "steps -1"), p), "steps=-1");
    const std::size_t row = text.rfind("\n ", text.size() - 2) + 2;
    const std::size_t word = text.find(' ', row) + 1, end = text.find(' ', word);
    for (const char* bad : {"NAN", "inf", "-1"})
        CHECK_THROWS(read_back(text.substr(0, word) + bad + text.substr(end), p), "row 71");
    CHECK_THROWS(read_back(text.substr(0, word) + "1e5x" + text.substr(end), p), "'1e5x'");
    auto other = p;
    other.axes[0].bins = 71;
    CHECK_THROWS(read_back(text, other), "nbins_ae.node-0=70 but here it is 71");
    other = p;
    other.kappa[0] *= 2;
    CHECK_THROWS(read_back(text, other), "kappa=");
    other = p;
    other.kT *= 1.01;
    CHECK_THROWS(read_back(text, other), "kT=");
    CHECK_THROWS(read_back(text, parameters(true)), "-3.14");
}

TEST("files that cannot be read or written are named") {
    const Table table = state_table(learned(parameters(), {0.5}), labels);
    CHECK_THROWS(write_table("no/such/folder/state", table), "no/such/folder/state: cannot be");
    CHECK_THROWS(read_table("no/such/folder/state"), "no/such/folder/state: is not there");
    CHECK_THROWS(read_table("."), "not a PLUMED text file");
}

TEST("a linked file is replaced at the target of the link, and keeps its mode") {
    char name[] = "/tmp/plumed_cv_files_XXXXXX";
    const std::filesystem::path folder = ::mkdtemp(name);
    std::filesystem::create_directory(folder / "elsewhere");
    const auto file = folder / "elsewhere" / "state", link = folder / "state";
    std::ofstream(file) << "old\n";
    std::filesystem::permissions(file, std::filesystem::perms(0640));
    std::filesystem::create_symlink("elsewhere/state", link);
    const Table table = state_table(learned(parameters(), {0.5}), labels);
    write_table(link, table);
    CHECK(std::filesystem::is_symlink(link));
    CHECK(!std::filesystem::is_symlink(file));
    CHECK(read_table(file).rows.size() == table.rows.size());
    CHECK(std::filesystem::status(file).permissions() == std::filesystem::perms(0640));
    const auto entries = std::filesystem::directory_iterator(folder / "elsewhere");
    CHECK(std::distance(begin(entries), end(entries)) == 1);
    std::filesystem::remove_all(folder);
}

TEST("parameters without a meaning are refused") {
    const auto refuse = [](auto change, const char* text) {
        auto p = parameters();
        change(p);
        CHECK_THROWS(Babf{p}, text);
    };
    refuse([](auto& p) { p.axes[0].maximum = -1; }, "grid");
    refuse([](auto& p) { p.axes[0].bins = 1; }, "grid");
    refuse([](auto& p) { p.kT = NAN; }, "temperature");
    refuse([](auto& p) { p.kappa[0] = -1; }, "KAPPA");
    refuse([](auto& p) { p.tau = 0; }, "TAU");
    refuse([](auto& p) { p.ramp = -5; }, "RAMP");
    refuse([](auto& p) { p.prior = {1, 2}; }, "prior");
    for (double slope : {std::nan(""), 1e300}) // what is finite may still add up to what is not
        refuse(
            [slope](auto& p) {
                p.prior.assign(p.nodes(), 0.0);
                p.prior[3] = slope;
            },
            "prior");
}

TEST("a bin with samples to which its node does not contribute gives no NaN") {
    auto p = parameters();
    p.tau = INFINITY;
    // A that rises by 60 kT and falls again in one bin: its node takes all samples of its neighbours.
    p.prior.assign(p.nodes(), 0.0);
    const double slope = 120 * p.kT / p.axes[0].spacing();
    p.prior[30] = slope;
    p.prior[32] = -slope;
    const double at = p.axes[0].node(30) - 0.4 * p.axes[0].spacing();
    const BabfProfile profile = learned(p, std::vector<double>(10, at)).profile();
    CHECK(profile.count[30] > 0);
    for (std::size_t j = 0; j < p.nodes(); ++j)
        CHECK(std::isfinite(profile.convolved[j]) && std::isfinite(profile.derivative[j]));
}

TEST("the column-wise sum of states is the state of all") {
    for (bool periodic : {false, true}) {
        const auto p = parameters(periodic, 0);
        const auto values = series(4000);
        const std::size_t parts = 8, length = values.size() / parts;
        Babf all(p);
        Table sum;
        for (std::size_t k = 0; k < parts; ++k) {
            const auto begin = values.begin() + static_cast<std::ptrdiff_t>(k * length);
            const Babf part = learned(p, {begin, begin + static_cast<std::ptrdiff_t>(length)});
            all.merge(part.sums());
            const Table table = state_table(part, labels);
            if (k == 0) {
                sum = table;
                continue;
            }
            for (std::size_t j = 0; j < sum.rows.size(); ++j)
                for (std::size_t c = 1; c + 1 < sum.fields.size(); ++c)
                    if (sum.fields[c] != "prior")
                        sum.rows[j][c] += table.rows[j][c];
        }
        for (auto& [key, value] : sum.constants)
            if (key == "steps")
                value = to_text(all.sums().steps);
        const Babf read = read_back(format_table(sum), p);
        CHECK(read.sums().steps == all.sums().steps);
        for (std::size_t j = 0; j < p.nodes(); ++j) {
            CHECK_CLOSE(read.sums().force.sum[j], all.sums().force.sum[j], 1e-13);
            CHECK_CLOSE(read.sums().weight.sum[j], all.sums().weight.sum[j], 1e-11);
        }
    }
}
