// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "../core/babf_fes.h"
#include "../core/babf_prior.h"
#include "../core/babf_state.h"
#include "check.h"

#include <random>

using namespace plumed_cv;

namespace {

BabfParameters parameters(bool first_periodic, bool second_periodic, double ramp = 50) {
    BabfParameters p;
    p.axes = {first_periodic ? Grid{-M_PI, M_PI, 18, true} : Grid{-0.2, 1.2, 14, false},
              second_periodic ? Grid{0, 2, 15, true} : Grid{-1, 3, 22, false}};
    p.kT = 0.0259;
    for (const Grid& grid : p.axes)
        p.kappa.push_back(BabfParameters::default_kappa(grid, p.kT));
    p.ramp = ramp;
    p.tau = BabfParameters::default_tau(ramp);
    p.solve_stride = 30;
    return p;
}

const std::pair<bool, bool> kinds[] = {{false, false}, {true, false}, {false, true}, {true, true}};

/// Points that cover the grid, and leave it slightly and once by a large distance.
std::vector<Point> series(const BabfParameters& p, std::size_t length) {
    std::mt19937_64 generator(7);
    std::uniform_real_distribution<double> uniform(-0.03, 1.03);
    std::vector<Point> points(length);
    for (std::size_t s = 0; s < length; ++s)
        for (std::size_t d = 0; d < 2; ++d)
            points[s][d] = p.axes[d].minimum + uniform(generator) * p.axes[d].length();
    if (length > 40)
        points[40] = {25.0, 0.3};
    return points;
}

Babf learned(const BabfParameters& p, const std::vector<Point>& points) {
    Babf babf(p);
    for (const Point& xi : points) {
        babf.evaluate(xi.data());
        babf.update();
    }
    return babf;
}

const BabfLabels labels{{"phi", "d.z"}, "eV"};

std::string state_text(const Babf& babf) {
    return format_table(state_table(babf, labels));
}

Babf read_back(const std::string& text, const BabfParameters& expected) {
    return restored(parse_table(text, "state"), expected, labels, "state");
}

/// Eq. 9 with all nodes and without a cutoff.
struct Book {
    std::vector<double> probability;
    double bias = 0;
    Point force{}, zeta{};

    Book(const Babf& babf, const Point& xi) : probability(babf.size()) {
        const BabfParameters& p = babf.parameters();
        std::vector<Point> distances(babf.size());
        double sum = 0, top = -INFINITY;
        for (std::size_t j = 0; j < babf.size(); ++j) {
            probability[j] = babf.energy()[j] / p.kT;
            for (std::size_t d = 0; d < 2; ++d) {
                const Grid& grid = p.axes[d];
                double x = babf.node(j)[d] - xi[d];
                if (grid.periodic)
                    x -= grid.length() * std::round(x / grid.length());
                distances[j][d] = x;
                probability[j] -= 0.5 * p.kappa[d] * x * x / p.kT;
            }
            top = std::max(top, probability[j]);
        }
        for (double& e : probability)
            sum += e = std::exp(e - top);
        bias = -p.kT * (top + std::log(sum * p.axes[0].spacing() * p.axes[1].spacing()));
        for (std::size_t j = 0; j < babf.size(); ++j) {
            probability[j] /= sum;
            for (std::size_t d = 0; d < 2; ++d) {
                zeta[d] += probability[j] * (xi[d] + distances[j][d]);
                force[d] += probability[j] * p.kappa[d] * distances[j][d];
            }
        }
    }
};

} // namespace

TEST("bias, force and probabilities are those of Eq. 9 over all nodes, for any spring") {
    for (const auto& [first, second] : kinds)
        for (double softer : {1.0, 0.2, 0.003}) {
            auto p = parameters(first, second);
            for (double& kappa : p.kappa)
                kappa *= softer;
            Babf babf = learned(p, series(p, 300));
            for (Point xi : series(p, 60)) {
                const auto now = babf.evaluate(xi.data());
                const Book book(babf, xi);
                CHECK_CLOSE(now.bias, book.bias, 1e-12 * std::max(1.0, std::abs(book.bias)));
                const auto found = babf.probability();
                for (std::size_t j = 0; j < babf.size(); ++j)
                    CHECK_CLOSE(found[j], book.probability[j], 1e-12);
                for (std::size_t d = 0; d < 2; ++d) {
                    CHECK_CLOSE(now.zeta[d], book.zeta[d], 1e-12 * std::max(1.0, std::abs(xi[d])));
                    CHECK_CLOSE(now.force[d], book.force[d],
                                1e-12 * p.kappa[d] * std::max(1.0, std::abs(xi[d])));
                }
            }
        }
}

TEST("the force is the gradient of the bias, also outside of the grid and across borders") {
    for (const auto& [first, second] : kinds) {
        const auto p = parameters(first, second);
        Babf babf = learned(p, series(p, 400));
        const double h = 1e-6;
        for (Point xi : {Point{0.1, 0.2}, Point{-0.35, 3.2}, Point{1.2, 1.999999}, Point{7.0, -0.1},
                         Point{M_PI, 2.0}})
            for (std::size_t d = 0; d < 2; ++d) {
                const double force = babf.evaluate(xi.data()).force[d];
                Point above = xi, below = xi;
                above[d] += h;
                below[d] -= h;
                const double slope =
                    (babf.evaluate(above.data()).bias - babf.evaluate(below.data()).bias) / (2 * h);
                CHECK_CLOSE(force, -slope, 1e-6 * std::max(1.0, std::abs(force)));
            }
    }
}

TEST("a shift by a period changes nothing") {
    const auto p = parameters(true, true);
    auto points = series(p, 300);
    const Babf one = learned(p, points);
    for (std::size_t s = 0; s < points.size(); ++s) {
        points[s][0] += 2 * M_PI * double(s % 5) - 4 * M_PI;
        points[s][1] -= 2.0 * double(s % 3);
    }
    Babf other = learned(p, points);
    for (std::size_t j = 0; j < one.size(); ++j) {
        CHECK_CLOSE(other.sums().weight.sum[j], one.sums().weight.sum[j], 1e-11);
        CHECK_CLOSE(other.sums().count.sum[j], one.sums().count.sum[j], 1e-12);
        CHECK_CLOSE(other.energy()[j], one.energy()[j], 1e-11);
    }
}

TEST("a value very far away gives finite numbers and is not learned") {
    const auto p = parameters(false, false);
    Babf babf = learned(p, series(p, 30));
    const auto before = babf.sums();
    for (const Point& xi : {Point{-1e3, 0}, Point{0, 1e6}, Point{1e140, -1e140}}) {
        const auto now = babf.evaluate(xi.data());
        CHECK(std::isfinite(now.bias) && std::isfinite(now.force[0]) &&
              std::isfinite(now.force[1]));
        babf.update();
    }
    CHECK(babf.sums().weight.sum == before.weight.sum && babf.sums().force.sum == before.force.sum);
    CHECK(babf.sums().steps == before.steps + 3);
}

TEST("A has the slopes of an exact mean force; regions without samples change nothing") {
    // Sums as of many samples of a plane with a slope, in one half of the grid.
    const auto p = parameters(false, false);
    const double slopes[] = {0.3, -0.7};
    BabfSums sums(p.nodes(), 2);
    Babf babf(p);
    for (std::size_t j = 0; j < p.nodes(); ++j)
        if (babf.node(j)[0] < 0.55) {
            sums.weight.sum[j] = 1e9;
            for (std::size_t d = 0; d < 2; ++d)
                sums.force.sum[d * p.nodes() + j] = 1e9 * slopes[d];
        }
    babf.merge(sums);
    for (std::size_t j = 0; j < p.nodes(); ++j) {
        const Point z = babf.node(j);
        if (z[0] < 0.55)
            CHECK_CLOSE(babf.energy()[j], slopes[0] * (z[0] + 0.2) + slopes[1] * (z[1] + 1), 1e-6);
    }
}

TEST("known parts keep their heights, however little is known between them") {
    const auto p = parameters(false, false);
    const Babf babf(p);
    const FreeEnergy free_energy(checked(p));
    const double slopes[] = {0.3, -0.7};
    std::vector<double> derivative(2 * p.nodes());
    for (std::size_t i = 0; i < derivative.size(); ++i)
        derivative[i] = slopes[i / p.nodes()];
    for (double between : {1e-3, 1e-9, 1e-15, 1e-30}) {
        std::vector<double> weight(p.nodes(), between), A(p.nodes());
        for (std::size_t j = 0; j < p.nodes(); ++j)
            if (babf.node(j)[0] < 0.2 || babf.node(j)[0] > 0.6)
                weight[j] = 1e6;
        free_energy.integrate(weight, derivative, A);
        for (std::size_t j = 0; j < p.nodes(); ++j) {
            const Point z = babf.node(j), first = babf.node(0);
            CHECK_CLOSE(A[j], slopes[0] * (z[0] - first[0]) + slopes[1] * (z[1] - first[1]), 1e-6);
        }
    }
}

TEST("A on a line across the plane equals that of one dimension") {
    // Mean force and A depend on the first CV only, so A follows the trapezoidal rule.
    for (bool periodic : {false, true}) {
        auto p = parameters(periodic, true);
        p.tau = INFINITY;
        BabfParameters line = p;
        line.axes.pop_back();
        line.kappa.pop_back();
        std::mt19937_64 generator(3);
        std::normal_distribution<double> normal;
        for (std::size_t j = 0; j < line.nodes(); ++j)
            line.prior.push_back(normal(generator));
        p.prior.assign(2 * p.nodes(), 0.0);
        for (std::size_t j = 0; j < p.nodes(); ++j)
            p.prior[j] = line.prior[j % line.nodes()];
        const Babf plane(p), one(line);
        for (std::size_t j = 0; j < p.nodes(); ++j)
            CHECK_CLOSE(plane.energy()[j], one.energy()[j % line.nodes()], 1e-12);
    }
}

TEST("a run continued from its file equals the whole run to the last bit") {
    for (const auto& [first, second] : kinds) {
        const auto p = parameters(first, second);
        const auto points = series(p, 500);
        for (std::size_t cut : {1u, 20u, 41u, 333u, 345u}) {
            const std::vector<Point> begin(points.begin(), points.begin() + long(cut));
            Babf babf = read_back(state_text(learned(p, begin)), p);
            for (std::size_t s = cut; s < points.size(); ++s) {
                babf.evaluate(points[s].data());
                babf.update();
            }
            CHECK(state_text(babf) == state_text(learned(p, points)));
        }
    }
}

TEST("A is solved for after every sample at first, then every so many") {
    const auto p = parameters(true, false);
    const auto points = series(p, 2000);
    Babf babf(p);
    double solutions = 0, before = -1;
    for (const Point& xi : points) {
        babf.evaluate(xi.data());
        babf.update();
        solutions += babf.solved() != before;
        before = babf.solved();
        if (babf.sums().steps <= 39)
            CHECK(before == babf.sums().steps);
        CHECK(babf.sums().steps - before < 30);
    }
    CHECK(solutions > 100 && solutions < 170);
    CHECK(BabfParameters::default_solve_stride(10000) == 1000);
    CHECK(BabfParameters::default_solve_stride(40000) == 2000);
}

TEST("an infinite TAU freezes the bias, and everything is still counted") {
    auto p = parameters(true, true);
    p.tau = INFINITY;
    p.prior.assign(2 * p.nodes(), 0.3);
    Babf babf(p);
    const Point xi{0.4, 0.5};
    const double bias = babf.evaluate(xi.data()).bias;
    babf = learned(p, series(p, 100));
    CHECK(babf.evaluate(xi.data()).bias == bias);
    CHECK(state_text(read_back(state_text(babf), p)) == state_text(babf));
}

TEST("an invalid profile is refused") {
    Babf babf(parameters(true, true));
    const std::vector<double> huge(babf.size(), 1e300); // finite, but not the sums of it
    CHECK_THROWS(babf.resume(babf.sums(), huge, 0), "1e12 kT");
}

TEST("a prior is the gradient of its profile, for any grid of the profile") {
    for (const auto& [first, second] : kinds) {
        const auto p = parameters(first, second);
        const Grid &X = p.axes[0], &Y = p.axes[1];
        const auto wave = [](const Grid& grid, double x) {
            return std::sin(2 * M_PI * (x - grid.minimum) / grid.length());
        };
        std::array<std::vector<double>, 2> points;
        std::vector<double> A;
        const int n = 300;
        for (int i = 0; i < n * n; ++i) { // without the last point of a period
            points[0].push_back(X.minimum + X.length() * (i % n) / (X.periodic ? n : n - 1));
            points[1].push_back(Y.minimum + Y.length() * (i / n) / (Y.periodic ? n : n - 1));
            A.push_back(wave(X, points[0].back()) * wave(Y, points[1].back()) +
                        2 * wave(X, points[0].back()));
        }
        const auto derivative = prior_derivative(p.axes, points, A, "fes.dat");
        const double k = 2 * M_PI / X.length(), h = X.spacing();
        for (std::size_t j = 0; j < p.nodes(); ++j) {
            const Point z = Babf(p).node(j);
            const bool end = !X.periodic && (j % X.nodes() == 0 || j % X.nodes() + 1 == X.nodes());
            if (end)
                continue;
            const double slope = (wave(Y, z[1]) + 2) * k * std::cos(k * (z[0] - X.minimum)) *
                                 std::sin(k * h / 2) / (k * h / 2);
            CHECK_CLOSE(derivative[j], slope, 2e-3 * k);
        }
        std::swap(points[0][0], points[0][1]); // in any order
        std::swap(A[0], A[1]);
        CHECK(prior_derivative(p.axes, points, A, "fes.dat") == derivative);
        points[0][5] = points[0][6];
        CHECK_THROWS(prior_derivative(p.axes, points, A, "fes.dat"), "the place of an earlier one");
        points[0].pop_back(), points[1].pop_back(), A.pop_back();
        CHECK_THROWS(prior_derivative(p.axes, points, A, "fes.dat"), "rows are no grid of");
        A[3] = NAN;
        CHECK_THROWS(prior_derivative(p.axes, points, A, "fes.dat"), "row 4");
    }
    const auto p = parameters(false, true);
    CHECK_THROWS(prior_derivative(p.axes, {{{0, 1, 0, 1}, {0, 0, 2, 2}}}, {1, 2, 3, 4}, "fes.dat"),
                 "give a profile over the whole grid");
}

TEST("the profile omits empty bins and determines the heights of separate parts") {
    const auto p = parameters(false, false);
    std::vector<Point> points;
    for (double x : {0.0, 0.0, 0.11, 0.8, 0.8, 0.91})
        points.push_back({x, 0.1});
    const Babf babf = learned(p, points);
    const auto profile = babf.profile();
    std::size_t known = 0;
    double above[2] = {0, 0}, samples[2] = {0, 0};
    for (std::size_t j = 0; j < babf.size(); ++j) {
        CHECK(std::isfinite(profile.convolved[j]));
        CHECK(std::isfinite(profile.corrected[j]) == (profile.count[j] > 0));
        if (profile.count[j] > 0) {
            const std::size_t part = babf.node(j)[0] > 0.5;
            above[part] += profile.count[j] * (profile.corrected[j] - profile.convolved[j]);
            samples[part] += profile.count[j];
            ++known;
        }
    }
    CHECK(known == 4);
    CHECK_CLOSE(above[0] / samples[0], above[1] / samples[1], 1e-12);
    CHECK(std::isnan(Babf(p).profile().corrected[3]));
}

TEST("a profile's file has an empty line after every row of the grid") {
    const auto p = parameters(true, false);
    const std::string text = format_table(profile_table(learned(p, series(p, 50)), labels));
    CHECK(text.find("#! FIELDS phi d.z A_k A der_A_k_phi der_A_k_d.z count\n") == 0);
    std::size_t empty = 0;
    for (std::size_t at = text.find("\n\n"); at != std::string::npos;
         at = text.find("\n\n", at + 1))
        ++empty;
    CHECK(empty == p.axes[1].nodes() - 1);
    CHECK(parse_table(text, "fes").rows.size() == p.nodes());
}

TEST("merged states are the sum") {
    const auto p = parameters(true, true);
    const auto points = series(p, 200);
    Babf one = learned(p, points);
    const Babf other = learned(p, {points.begin(), points.begin() + 30});
    const auto before = one.sums();
    one.merge(other.sums());
    CHECK(one.sums().steps == 230);
    for (std::size_t j = 0; j < 2 * one.size(); ++j)
        CHECK_CLOSE(one.sums().force.sum[j], before.force.sum[j] + other.sums().force.sum[j],
                    1e-15 * p.kappa[j / one.size()]);
    CHECK_THROWS(one.merge(Babf(parameters(true, false)).sums()), "another grid");
    CHECK_THROWS(one.set_others(BabfSums(one.size(), 1)), "another grid");
}

TEST("damaged and foreign states are refused in a sentence") {
    const auto p = parameters(true, false);
    const std::string text = state_text(learned(p, series(p, 100)));
    std::mt19937_64 generator(11);
    for (int i = 0; i < 300; ++i)
        CHECK_THROWS(read_back(text.substr(0, generator() % text.size()), p), "state: ");
    auto other = p;
    std::swap(other.axes[0], other.axes[1]);
    CHECK_THROWS(read_back(text, other), "min_phi=");
    other = p;
    other.kappa[1] *= 2;
    CHECK_THROWS(read_back(text, other), "kappa_d.z=");
    other = p;
    other.axes.pop_back();
    other.kappa.pop_back();
    CHECK_THROWS(restored(parse_table(text, "state"), other, {{"phi"}, "eV"}, "state"), "kappa");
    CHECK_THROWS(restored(parse_table(text, "state"), p, {{"d.z", "phi"}, "eV"}, "state"),
                 "is of the CV 'phi' but ARG is 'd.z'");
}

TEST("parameters without a meaning are refused") {
    const auto refuse = [](auto change, const char* text) {
        auto p = parameters(false, true);
        change(p);
        CHECK_THROWS(Babf{p}, text);
    };
    refuse([](auto& p) { p.axes[1].maximum = -1; }, "grid");
    refuse([](auto& p) { p.kappa[1] = 0; }, "KAPPA");
    refuse([](auto& p) { p.kappa.pop_back(); }, "a KAPPA for each");
    refuse([](auto& p) { p.axes.push_back(p.axes[0]); }, "one or two CVs");
    refuse([](auto& p) { p.prior.assign(p.nodes(), 0.0); }, "prior");
}
