// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#include "../core/alignment.h"
#include "check.h"
#include "reference.h"

using namespace plumed_cv;
using test::Random;

namespace {

constexpr std::size_t atoms = 7, plane = padded(atoms);
const Cell none{};
const Cell box = {19, 0, 0, 3.5, 18, 0, -2.9, 4.1, 20};
const Matrix3 turns[] = {{1, 0, 0, 0, 1, 0, 0, 0, 1},   // none
                         {1, 0, 0, 0, -1, 0, 0, 0, -1}, // half a turn: its quaternion has no w
                         {0, 1, 0, 0, 0, 1, 1, 0, 0},
                         {0.36, 0.48, -0.8, -0.8, 0.6, 0, 0.48, 0.64, 0.6}};

Array planes(const std::vector<double>& values) {
    Array made(3 * plane);
    for (std::size_t j = 0; j < values.size(); ++j)
        made[j % 3 * plane + j / 3] = values[j];
    return made;
}

Array displacements(Alignment& alignment, const Array& positions, const Cell& cell) {
    Array u(3 * plane);
    constexpr double unit = 10; // the engine's, in that of the reference
    std::vector<double> interleaved;
    for (std::size_t i = 0; i < atoms; ++i)
        for (std::size_t a = 0; a < 3; ++a)
            interleaved.push_back(positions[a * plane + i] / unit);
    const Images images(completed(cell), periodic_directions(cell));
    alignment.displacements(interleaved.data(), unit, cell == none ? nullptr : &images, u.data());
    return u;
}

Array turned(const Array& positions, const Matrix3& turn) {
    Array made(3 * plane);
    for (std::size_t i = 0; i < atoms; ++i) {
        const Vector r =
            times(turn, {positions[i], positions[plane + i], positions[2 * plane + i]});
        for (std::size_t a = 0; a < 3; ++a)
            made[a * plane + i] = r[a];
    }
    return made;
}

struct Molecule {
    explicit Molecule(Random& random)
        : reference(planes(test::normals(random, 3 * atoms, 1.5))),
          alignment(reference.data(), atoms, plane), positions(reference) {
        const auto noise = planes(test::normals(random, 3 * atoms, 0.4));
        for (std::size_t j = 0; j < positions.size(); ++j)
            positions[j] += noise[j];
    }

    Array reference;
    Alignment alignment;
    Array positions;
};

} // namespace

TEST("rotation, translation and a border across it do not change the displacements of a molecule") {
    Random random(1);
    std::uniform_int_distribution<int> images(-3, 3);
    Molecule molecule(random);
    const auto expected = displacements(molecule.alignment, molecule.positions, none);
    for (const Matrix3& turn : turns) {
        auto moved = turned(molecule.positions, turn);
        for (std::size_t i = 0; i < atoms; ++i)
            for (std::size_t n = 0; n < 3; ++n) {
                const int image = images(random);
                for (std::size_t a = 0; a < 3; ++a)
                    moved[a * plane + i] += 5.5 + image * box[3 * n + a];
            }
        const auto found = displacements(molecule.alignment, moved, box);
        for (std::size_t j = 0; j < found.size(); ++j)
            CHECK_CLOSE(found[j], expected[j], 1e-12);
    }
}

TEST("the fit is the best one: its torque is zero and a small rotation increases the distance") {
    Random random(2);
    Molecule molecule(random);
    const auto u = displacements(molecule.alignment, molecule.positions, none);
    double square = 0;
    Vector torque{};
    Array z(3 * plane), centred(molecule.reference);
    for (std::size_t a = 0; a < 3; ++a) {
        double mean = 0;
        for (std::size_t i = 0; i < atoms; ++i)
            mean += molecule.reference[a * plane + i] / atoms;
        for (std::size_t i = 0; i < atoms; ++i)
            centred[a * plane + i] -= mean;
    }
    for (std::size_t j = 0; j < z.size(); ++j) {
        z[j] = u[j] + centred[j];
        square += u[j] * u[j];
    }
    for (std::size_t i = 0; i < atoms; ++i) {
        const Vector t = cross({z[i], z[plane + i], z[2 * plane + i]},
                               {centred[i], centred[plane + i], centred[2 * plane + i]});
        for (std::size_t a = 0; a < 3; ++a)
            torque[a] += t[a];
    }
    for (double t : torque)
        CHECK_CLOSE(t, 0, 1e-12);
    const double c = std::cos(0.01), s = std::sin(0.01);
    for (const Matrix3& turn :
         {Matrix3{c, s, 0, -s, c, 0, 0, 0, 1}, {c, 0, -s, 0, 1, 0, s, 0, c}}) {
        const auto worse = turned(z, turn);
        double sum = 0;
        for (std::size_t j = 0; j < worse.size(); ++j)
            sum += (worse[j] - centred[j]) * (worse[j] - centred[j]);
        CHECK(sum > square);
    }
}

TEST("derivatives that include the rotation equal numerical ones, at every orientation") {
    Random random(3);
    Molecule molecule(random);
    const auto weights = planes(test::normals(random, 3 * atoms));
    const auto value = [&](const Array& positions) {
        const auto u = displacements(molecule.alignment, positions, none);
        double sum = 0;
        for (std::size_t j = 0; j < u.size(); ++j)
            sum += weights[j] * u[j] * (1 + u[j]);
        return sum;
    };
    for (const Matrix3& turn : turns) {
        auto positions = turned(molecule.positions, turn);
        const auto u = displacements(molecule.alignment, positions, none);
        Array gradient(3 * plane);
        for (std::size_t a = 0; a < 3; ++a) {
            double mean = 0;
            for (std::size_t i = 0; i < atoms; ++i)
                mean += weights[a * plane + i] * (1 + 2 * u[a * plane + i]) / atoms;
            for (std::size_t i = 0; i < atoms; ++i) // displacements have no mean
                gradient[a * plane + i] =
                    weights[a * plane + i] * (1 + 2 * u[a * plane + i]) - mean;
        }
        molecule.alignment.to_positions(gradient.data());
        constexpr double step = 1e-5;
        for (std::size_t a = 0; a < 3; ++a)
            for (std::size_t i = 0; i < atoms; ++i) {
                const double here = positions[a * plane + i];
                positions[a * plane + i] = here + step;
                const double above = value(positions);
                positions[a * plane + i] = here - step;
                const double below = value(positions);
                positions[a * plane + i] = here;
                CHECK_CLOSE(gradient[a * plane + i], (above - below) / (2 * step), 1e-8);
            }
    }
}

TEST("atoms on a line have no best fit") {
    Array line(3 * plane);
    for (std::size_t i = 0; i < atoms; ++i)
        for (std::size_t a = 0; a < 3; ++a)
            line[a * plane + i] = static_cast<double>(i * (a + 1));
    CHECK_THROWS(Alignment(line.data(), atoms, plane), "more than one way");
}
