// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// Gives PLUMED one atom that moves, as replica number 0 of several: the files of its actions have the
// suffix .0. Engines do this with MPI; here there is none.
//   replica INPUT FIRST_STEP N_STEPS

#include "core/PlumedMain.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>

int main(int, char** arguments) {
    try {
        PLMD::PlumedMain plumed;
        const int one = 1;
        const double timestep = 0.001;
        plumed.cmd("setNatoms", &one);
        plumed.cmd("setTimestep", &timestep);
        plumed.cmd("setMDEngine", "test");
        plumed.cmd("setLogFile", "replica.log");
        plumed.setSuffix(".0");
        plumed.cmd("init");
        plumed.readInputFile(arguments[1]);
        const int first = std::atoi(arguments[2]), last = first + std::atoi(arguments[3]);
        for (int step = first; step < last; ++step) {
            double position[3] = {0.5 + 0.4 * std::sin(step), 0, 0}, force[3] = {}, virial[9] = {};
            double mass = 1;
            plumed.cmd("setStep", &step);
            plumed.cmd("setPositions", position);
            plumed.cmd("setMasses", &mass);
            plumed.cmd("setForces", force);
            plumed.cmd("setVirial", virial);
            plumed.cmd("calc");
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
