// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#include "../core/collective_variable.h"
#include "../core/elements.h"
#include "check.h"
#include "reference.h"

#include <tuple>

using namespace plumed_cv;
using test::Random;

namespace {

const Cell none{};
const Cell triclinic = {9, 0, 0, 1.5, 8, 0, -0.9, 2.1, 10};
const Cell slab = {9, 0, 0, 1.5, 8, 0, 0, 0, 0};
const Cell wire = {0, 0, 0, 1.5, 8, 0.5, 0, 0, 0};
const Cell skew = {9, 0, 0, 22, 8, 0, -13, 11, 10}; // one of triclinic's strongly tilted
constexpr Drift drifts[] = {Drift::removed, Drift::kept};
const char* const activations[] = {"relu", "tanh", "elu", "softplus", "silu", "sigmoid"};

std::vector<double> near(Random& random, const Model& model) {
    auto positions = test::normals(random, 3 * model.atoms, 0.2);
    for (std::size_t j = 0; j < positions.size(); ++j)
        positions[j] += model.reference_positions[j];
    return positions;
}

/// Compares a collective variable with the plain evaluation at one configuration.
void compare(const Model& model, CollectiveVariable& cv, const std::vector<double>& positions,
             const Cell& cell) {
    const auto expected = test::evaluate(model, positions, cell);
    const std::size_t n = 3 * model.atoms, plane = cv.frame().plane();
    cv.evaluate(positions.data(), 1, cell);
    CHECK_CLOSE(cv.deviation(), expected.deviation, 1e-12 * (1 + expected.deviation));
    std::vector<double> masses(model.atoms);
    for (std::size_t i = 0; i < masses.size(); ++i)
        masses[i] = 1 + static_cast<double>(i);
    double square = 0, weighted = 0;
    for (std::size_t k = 0; k < model.latent; ++k) {
        CHECK_CLOSE(cv.value(k), expected.value[k], 1e-12 * (1 + std::abs(expected.value[k])));
        const double* gradient = cv.gradient(k);
        const double* g = &expected.gradient[k * n];
        double strain[9] = {};
        square = weighted = 0;
        for (std::size_t j = 0; j < n; ++j) {
            CHECK_CLOSE(gradient[j % 3 * plane + j / 3], g[j], 1e-12);
            square += g[j] * g[j];
            weighted += g[j] * g[j] / masses[j / 3];
            const auto& u = cv.frame().periodic() ? expected.displacement : positions;
            for (std::size_t a = 0; a < 3; ++a)
                strain[3 * a + j % 3] += u[j - j % 3 + a] * g[j];
        }
        const Cell got = cv.strain_derivative(gradient);
        for (std::size_t a = 0; a < 9 && cell != slab && cell != wire; ++a)
            CHECK_CLOSE(got[a], strain[a], 1e-10);
    }
    if (model.latent > 1)
        return;
    CHECK_CLOSE(cv.gradient_norm(), std::sqrt(square), 1e-12);
    cv.set_masses(masses);
    CHECK_CLOSE(cv.inverse_mass(), weighted, 1e-12);
}

} // namespace

TEST("value, gradient, strain derivative and deviation are those of the plain evaluation") {
    Random random(1);
    for (const char* activation : activations)
        for (const Cell& cell : {none, triclinic, slab, wire, skew})
            for (const Drift drift : drifts)
                for (std::size_t latent = 1; latent <= 3; ++latent)
                    for (const auto& hidden : {std::vector<std::size_t>{}, {9}, {6, 17, 5}}) {
                        const auto model = test::parse(test::random_model(
                            random, {7, 5, hidden, latent}, activation, cell, drift));
                        CollectiveVariable cv(model);
                        compare(model, cv, near(random, model), cell);
                    }
}

TEST("of positions that are not numbers, nothing is a number") {
    Random random(7);
    for (const char* activation : activations)
        for (const Drift drift : drifts) {
            const auto model = test::parse(
                test::random_model(random, {7, 5, {9}, 1}, activation, triclinic, drift));
            CollectiveVariable cv(model);
            auto positions = near(random, model);
            positions[3 * 2 + 1] = NAN; // of one atom, neither the first nor the last
            cv.evaluate(positions.data(), 1, triclinic);
            CHECK(std::isnan(cv.value(0)));
            CHECK(std::isnan(cv.deviation()));
            CHECK(std::isnan(cv.largest_deviation()));
        }
}

TEST("a linear model of one component") {
    Random random(2);
    const auto model = test::parse(test::random_model(random, {17, 1, {}, 1}, "relu", triclinic));
    CollectiveVariable cv(model);
    compare(model, cv, near(random, model), triclinic);
}

TEST("another cell, lattice shifts and a drift of half a cell") {
    Random random(3);
    const auto model = test::parse(test::random_model(random, {9, 6, {5}, 1}, "tanh", triclinic));
    CollectiveVariable cv(model);
    const Cell strain = {1.02, 0.01, -0.02, 0, 0.97, 0.03, 0.01, 0, 1.01};
    const Cell cell = product(triclinic, strain);
    const auto positions = near(random, model);
    compare(model, cv, positions, cell);
    const double value = cv.value(0), deviation = cv.deviation();

    auto moved = positions;
    std::uniform_int_distribution<int> images(-3, 3);
    for (std::size_t i = 0; i < model.atoms; ++i)
        for (std::size_t a = 0; a < 3; ++a) {
            const int m = images(random);
            for (std::size_t b = 0; b < 3; ++b)
                moved[3 * i + b] += m * cell[3 * a + b];
        }
    for (double step = 0; step < 1; step += 0.125) { // through every border of the cell
        auto drifted = moved;
        for (std::size_t j = 0; j < drifted.size(); ++j)
            drifted[j] += step * (cell[j % 3] + cell[3 + j % 3] + cell[6 + j % 3]);
        cv.evaluate(drifted.data(), 1, cell);
        CHECK_CLOSE(cv.value(0), value, 1e-12);
        CHECK_CLOSE(cv.deviation(), deviation, 1e-12);
    }
}

TEST("the reference in a strained cell has the collective variable of the reference") {
    Random random(4);
    const auto model = test::parse(test::random_model(random, {9, 6, {5}, 1}, "silu", triclinic));
    CollectiveVariable cv(model);
    cv.evaluate(model.reference_positions.data(), 1, triclinic);
    const double value = cv.value(0);
    const Cell strain = {1.1, 0.1, 0, 0, 0.9, 0, 0, -0.1, 1};
    std::vector<double> strained(model.reference_positions.size());
    for (std::size_t j = 0; j < strained.size(); ++j)
        for (std::size_t a = 0; a < 3; ++a)
            strained[j] += model.reference_positions[j - j % 3 + a] * strain[3 * a + j % 3];
    cv.evaluate(strained.data(), 1, product(triclinic, strain));
    CHECK_CLOSE(cv.value(0), value, 1e-12);
}

TEST("lengths in another unit") {
    Random random(5);
    const auto model = test::parse(test::random_model(random, {5, 3, {4}, 1}, "elu", triclinic));
    CollectiveVariable cv(model);
    auto positions = near(random, model);
    cv.evaluate(positions.data(), 1, triclinic);
    const double value = cv.value(0);
    for (double& r : positions)
        r /= 10;
    cv.evaluate(positions.data(), 10, triclinic);
    CHECK_CLOSE(cv.value(0), value, 1e-12);
}

TEST("inverse_mass is det(G)/m^d for equal masses, and nan for masses that are not known") {
    Random random(6);
    const auto model = test::parse(test::random_model(random, {8, 6, {7}, 3}, "tanh", triclinic));
    CollectiveVariable cv(model);
    cv.evaluate(near(random, model).data(), 1, triclinic);
    cv.set_masses(std::vector<double>(8, 4.0));
    const double expected = cv.gradient_norm() * cv.gradient_norm() / 64;
    CHECK_CLOSE(cv.inverse_mass(), expected, 1e-12 * expected);
    cv.set_masses(std::vector<double>(8, std::nan("")));
    CHECK(std::isnan(cv.inverse_mass()));
}

TEST("a gradient that vanishes") {
    Random random(7);
    auto file = test::random_model(random, {6, 4, {3}, 1}, "relu", none);
    for (double& bias : file.arrays["encoder.0.bias"].values)
        bias = -1e6; // no unit of the hidden layer is on
    auto model = test::parse(file);
    const auto check = test::evaluate(model, model.check_positions, none);
    model.check_value = check.value;
    model.check_gradient = check.gradient;
    model.check_deviation = check.deviation;
    CollectiveVariable cv(model);
    compare(model, cv, near(random, model), none);
    CHECK(cv.gradient_norm() == 0);
}

namespace {

/// Holds the gradients of both deviations to central differences, along one direction of all atoms
/// and under one strain of cell and atoms.
void differentiate(Random& random, const Model& model, const Cell& cell) {
    CollectiveVariable cv(model);
    const auto positions = near(random, model);
    const std::size_t n = positions.size(), plane = cv.frame().plane();
    const auto direction = test::normals(random, n);
    const auto strains = test::normals(random, 9, 0.1);
    for (const bool largest : {false, true}) {
        const auto measure = [&](const std::vector<double>& r, const Cell& h) {
            cv.evaluate(r.data(), 1, h);
            return largest ? cv.largest_deviation() : cv.deviation();
        };
        constexpr double step = 1e-5;
        const auto slope = [&](auto&& moved) { return (moved(step) - moved(-step)) / (2 * step); };
        const double along = slope([&](double length) {
            auto there = positions;
            for (std::size_t j = 0; j < n; ++j)
                there[j] += length * direction[j];
            return measure(there, cell);
        });
        const double strained = slope([&](double length) {
            const auto stretch = [&](const double* r, double* to) {
                for (std::size_t b = 0; b < 3; ++b)
                    for (std::size_t a = 0; a < 3; ++a)
                        to[b] += length * r[a] * strains[3 * a + b];
            };
            auto there = positions;
            for (std::size_t i = 0; i < n; i += 3)
                stretch(&positions[i], &there[i]);
            Cell stretched = cell;
            for (std::size_t i = 0; i < 9; i += 3)
                stretch(&cell[i], &stretched[i]);
            return measure(there, stretched);
        });
        measure(positions, cell);
        const double* gradient =
            largest ? cv.largest_deviation_gradient() : cv.deviation_gradient();
        double expected = 0;
        for (std::size_t j = 0; j < n; ++j)
            expected += gradient[j % 3 * plane + j / 3] * direction[j];
        CHECK_CLOSE(along, expected, 1e-6);
        const Cell strain = cv.strain_derivative(gradient);
        expected = 0;
        for (std::size_t a = 0; a < 9; ++a)
            expected += strain[a] * strains[a];
        // Without a cell the atoms alone are strained, and the reference stays.
        if (cv.frame().periodic())
            CHECK_CLOSE(strained, expected, 1e-6);
    }
}

} // namespace

TEST("the gradients of the deviations are their derivatives") {
    Random random(9);
    for (const char* activation : activations)
        for (const Cell& cell : {none, triclinic, slab, wire, skew})
            for (const Drift drift : drifts)
                for (std::size_t latent = 1; latent <= 3; ++latent)
                    for (const auto& hidden : {std::vector<std::size_t>{}, {9}, {6, 17, 5}})
                        differentiate(random,
                                      test::parse(test::random_model(random, {7, 5, hidden, latent},
                                                                     activation, cell, drift)),
                                      cell);
}

TEST("cells that do not fit the model") {
    Random random(8);
    const auto positions = test::normals(random, 15);
    const auto solid = test::parse(test::random_model(random, {5, 3, {4}, 1}, "elu", triclinic));
    const auto cluster = test::parse(test::random_model(random, {5, 3, {4}, 1}, "elu", none));
    CollectiveVariable periodic(solid), free(cluster);
    CHECK_THROWS(periodic.evaluate(positions.data(), 1, none), "gives no cell");
    const Cell flat = {1, 0, 0, 0, 1, 0, 1, 1, 0}, plane = {1, 0, 0, 0, 1, 0, 0, 0, 0};
    CHECK_THROWS(periodic.evaluate(positions.data(), 1, flat), "no volume");
    CHECK_THROWS(periodic.evaluate(positions.data(), 1, plane), "gives no cell");
    Cell wild = triclinic;
    wild[4] = std::nan("");
    CHECK_THROWS(periodic.evaluate(positions.data(), 1, wild), "no volume");

    // A cluster ignores the box of the engine.
    free.evaluate(positions.data(), 1, none);
    const double alone = free.value(0);
    free.evaluate(positions.data(), 1, triclinic);
    CHECK(free.value(0) == alone);

    // A flip to another cell of the same lattice is refused; the previous cell remains.
    periodic.evaluate(positions.data(), 1, triclinic);
    const double value = periodic.value(0);
    Cell flipped = triclinic;
    for (std::size_t a = 0; a < 3; ++a)
        flipped[3 + a] -= triclinic[a];
    CHECK_THROWS(periodic.evaluate(positions.data(), 1, flipped), "more than 25 %");
    CHECK_THROWS(periodic.evaluate(positions.data(), 1, flipped), "more than 25 %");
    periodic.evaluate(positions.data(), 1, triclinic);
    CHECK(periodic.value(0) == value);
}

TEST("flips and rotations of the cell are distinguished from strains") {
    Random random(10);
    const Cell tall = {3, 0, 0, 1.4, 40, 0, 0, 0, 30}; // a flip of it is a shear of 8 %
    CollectiveVariable cv(test::parse(test::random_model(random, {5, 3, {4}, 1}, "elu", tall)));
    const auto positions = test::normals(random, 15);
    Cell flipped = tall;
    flipped[3] -= tall[0];
    CHECK_THROWS(cv.evaluate(positions.data(), 1, flipped), "is flipped");
    for (const double degrees : {0.2, 3.0, 10.0, 90.0, 180.0}) {
        const double turn = degrees * std::acos(-1) / 180;
        const Cell rotation = {
            std::cos(turn), std::sin(turn), 0, -std::sin(turn), std::cos(turn), 0, 0, 0, 1};
        CHECK_THROWS(cv.evaluate(positions.data(), 1, product(tall, rotation)), "is rotated");
    }
    Cell mirrored = tall;
    mirrored[0] = -mirrored[0];
    CHECK_THROWS(cv.evaluate(positions.data(), 1, mirrored), "is rotated");
    for (const double strain : {-0.2, -0.01, 0.01, 0.2}) // as engines with such cells make them
        for (const std::size_t element : {0u, 4u, 6u, 7u, 8u}) {
            Cell deformation = {1, 0, 0, 0, 1, 0, 0, 0, 1};
            deformation[element] += strain;
            if (element < 6 || std::abs(strain) < 0.04) // else it flips
                cv.evaluate(positions.data(), 1, product(tall, deformation));
        }
    Cell large = tall;
    large[8] *= 1.3;
    CHECK_THROWS(cv.evaluate(positions.data(), 1, large), "25 %");
}

TEST("the height of the engine's box has no effect on a slab") {
    Random random(11);
    for (const Drift drift : drifts) {
        const auto model =
            test::parse(test::random_model(random, {6, 4, {5}, 1}, "tanh", slab, drift));
        CollectiveVariable cv(model);
        auto positions = near(random, model);
        cv.evaluate(positions.data(), 1, slab);
        const double value = cv.value(0);
        for (const double height : {0.5, 20.0, 1000.0}) {
            Cell box = slab;
            box[8] = height;
            cv.evaluate(positions.data(), 1, box);
            CHECK_CLOSE(cv.value(0), value, 1e-14);
        }
        for (std::size_t a = 0; a < 3; ++a) { // along the surface an atom may cross them
            positions[6 + a] += 2 * slab[a] - slab[3 + a];
            positions[12 + a] -= slab[3 + a];
        }
        cv.evaluate(positions.data(), 1, slab);
        CHECK_CLOSE(cv.value(0), value, 1e-12);
    }
}

TEST("activations far from zero") {
    for (const auto& [name, low, high, slope] :
         {std::tuple("sigmoid", 0.0, 1.0, 0.0), std::tuple("silu", 0.0, 800.0, 1.0),
          std::tuple("softplus", 0.0, 800.0, 1.0), std::tuple("elu", -1.0, 800.0, 1.0)}) {
        double z[] = {-800, 800}, slopes[2];
        activate(*activation_from(name), 2, z, slopes);
        CHECK_CLOSE(z[0], low, 1e-300);
        CHECK_CLOSE(z[1], high, 1e-300);
        CHECK_CLOSE(slopes[0], 0, 1e-300);
        CHECK_CLOSE(slopes[1], slope, 1e-300);
    }
}

TEST("standard masses") {
    CHECK_CLOSE(*standard_mass("Fe"), 55.845, 1e-3);
    CHECK_CLOSE(*standard_mass("H"), 1.008, 1e-3);
    CHECK(!standard_mass("X"));
}
