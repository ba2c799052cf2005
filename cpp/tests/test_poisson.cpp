// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "../core/poisson.h"
#include "check.h"

#include <random>

using namespace plumed_cv;

namespace {

using Shape = std::array<std::size_t, 2>;
using Periodic = std::array<bool, 2>;

const Shape shapes[] = {{12, 9}, {2, 7}, {3, 3}, {31, 40}};
const Periodic borders[] = {{false, false}, {true, false}, {false, true}, {true, true}};

/// The steps of a potential; what no edge has stays NaN, for the solver must not read it.
Poisson::Edges steps_of(const Poisson& grid, const std::vector<double>& A) {
    Poisson::Edges steps;
    for (std::size_t axis = 0; axis < 2; ++axis) {
        steps[axis].assign(grid.size(), NAN);
        for (std::size_t j = 0; j < grid.size(); ++j)
            if (grid.has_next(axis, j))
                steps[axis][j] = A[grid.next(axis, j)] - A[j];
    }
    return steps;
}

Poisson::Edges equal_weights(const Poisson& grid) {
    const std::vector<double> ones(grid.size(), 1.0);
    return {ones, ones};
}

std::vector<double> random_numbers(std::size_t size, unsigned seed) {
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal;
    std::vector<double> numbers(size);
    for (double& number : numbers)
        number = normal(generator);
    return numbers;
}

std::vector<double> solution(Poisson& grid, const Poisson::Edges& weights,
                             const Poisson::Edges& steps) {
    std::vector<double> A(grid.size(), 0.0);
    grid.solve(weights, steps, A);
    return A;
}

/// The largest difference after subtraction of the first values.
double difference(const std::vector<double>& a, const std::vector<double>& b) {
    double most = 0;
    for (std::size_t j = 0; j < a.size(); ++j)
        most = std::max(most, std::abs((a[j] - a[0]) - (b[j] - b[0])));
    return most;
}

} // namespace

TEST("the steps of a potential give the potential, for any weights and any first guess") {
    for (const Shape& shape : shapes)
        for (const Periodic& periodic : borders) {
            Poisson grid(shape, periodic);
            const std::vector<double> A = random_numbers(grid.size(), 1);
            Poisson::Edges weights = equal_weights(grid);
            CHECK(difference(solution(grid, weights, steps_of(grid, A)), A) < 1e-11);
            for (std::size_t axis = 0; axis < 2; ++axis)
                for (double& w : weights[axis] = random_numbers(grid.size(), 2))
                    w = std::pow(10, w); // six orders of magnitude
            std::vector<double> guess = random_numbers(grid.size(), 3);
            grid.solve(weights, steps_of(grid, A), guess);
            CHECK(difference(guess, A) < 1e-9);
        }
}

TEST("steps around the cells of the grid do not contribute") {
    for (const Periodic& periodic : borders) {
        Poisson grid({14, 11}, periodic);
        const std::vector<double> A = random_numbers(grid.size(), 4);
        Poisson::Edges steps = steps_of(grid, A);
        const std::vector<double> turns = random_numbers(grid.size(), 5);
        for (std::size_t j = 0; j < grid.size(); ++j) {
            if (!grid.has_next(0, j) || !grid.has_next(1, j))
                continue;
            steps[0][j] += turns[j];
            steps[1][grid.next(0, j)] += turns[j];
            steps[0][grid.next(1, j)] -= turns[j];
            steps[1][j] -= turns[j];
        }
        if (periodic[0]) // nor what goes around a periodic axis
            for (std::size_t j = 0; j < grid.size(); ++j)
                steps[0][j] += 3;
        CHECK(difference(solution(grid, equal_weights(grid), steps), A) < 1e-11);
    }
}

TEST("the solution has the least sum of squares") {
    Poisson grid({8, 9}, {true, false});
    Poisson::Edges steps = {random_numbers(72, 6), random_numbers(72, 7)}, weights = steps;
    for (auto& axis : weights)
        for (double& w : axis)
            w = w * w;
    std::vector<double> A = solution(grid, weights, steps);
    const auto squares = [&] {
        double sum = 0;
        for (std::size_t axis = 0; axis < 2; ++axis)
            for (std::size_t j = 0; j < grid.size(); ++j)
                if (grid.has_next(axis, j)) {
                    const double off = A[grid.next(axis, j)] - A[j] - steps[axis][j];
                    sum += weights[axis][j] * off * off;
                }
        return sum;
    };
    const double least = squares();
    for (double& a : A)
        for (double by : {1e-3, -1e-3}) {
            const double before = a;
            a += by;
            CHECK(squares() > least);
            a = before;
        }
}

TEST("separate parts of the grid are solved independently") {
    Poisson grid({10, 6}, {false, false});
    const std::vector<double> A = random_numbers(grid.size(), 8);
    Poisson::Edges weights = equal_weights(grid);
    for (std::size_t j = 0; j < grid.size(); ++j) {
        if (j % 10 == 4)
            weights[0][j] = 0; // between columns 4 and 5
        if (j % 10 == 9 && j / 10 < 5)
            weights[1][j] = weights[0][j - 1] = 0; // the nodes of the last column, each alone
    }
    weights[0][58] = 0;
    const std::vector<double> found = solution(grid, weights, steps_of(grid, A));
    for (std::size_t j = 0; j < grid.size(); ++j) {
        CHECK(std::isfinite(found[j]));
        const std::size_t first = j % 10 < 5 ? 0 : 5;
        if (j % 10 != 9)
            CHECK_CLOSE(found[j] - found[first], A[j] - A[first], 1e-11);
    }
}

TEST("a known solution needs no iteration") {
    Poisson grid({60, 50}, {true, true});
    const Poisson::Edges steps = {random_numbers(3000, 9), random_numbers(3000, 10)};
    std::vector<double> A(grid.size(), 0.0);
    CHECK(grid.solve(equal_weights(grid), steps, A) > 10);
    const std::vector<double> before = A;
    CHECK(grid.solve(equal_weights(grid), steps, A) < 3);
    CHECK(difference(A, before) < 1e-12);
}

TEST("patches that narrow bridges of small weights join keep their heights") {
    for (double between : {1e-3, 1e-5, 1e-7}) {
        Poisson grid({120, 120}, {false, false});
        const std::vector<double> A = random_numbers(grid.size(), 11);
        Poisson::Edges weights = equal_weights(grid);
        for (std::size_t axis = 0; axis < 2; ++axis)
            for (std::size_t j = 0; j < grid.size(); ++j)
                if ((j % 120 / 7 + j / 120 / 7) % 2 == 0)
                    weights[axis][j] = between;
        CHECK(difference(solution(grid, weights, steps_of(grid, A)), A) < 1e-13 / between);
        CHECK(grid.converged());
    }
}

TEST("a solution that does not converge is told") {
    Poisson grid({30, 30}, {false, false});
    Poisson::Edges steps = equal_weights(grid);
    CHECK(grid.converged());
    steps[0][3] = NAN;
    std::vector<double> A(grid.size(), 0.0);
    grid.solve(equal_weights(grid), steps, A);
    CHECK(!grid.converged());
}
