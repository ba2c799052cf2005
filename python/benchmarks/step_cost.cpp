// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// For step_cost.py: an action that asks for atoms and does nothing with them, and a loop that lets
// PLUMED do steps without an engine or Python in between. Registered with PLUMED's kernel, which
// this library is linked with, as soon as it is loaded.

#define __PLUMED_HAS_DLOPEN 1
#define __PLUMED_WRAPPER_LINK_RUNTIME 1
#define __PLUMED_WRAPPER_IMPLEMENTATION 1
#define __PLUMED_WRAPPER_EXTERN 0
#include "wrapper/Plumed.h"

#include "core/ActionRegister.h"
#include "core/Colvar.h"

#include <ctime>
#include <exception>
#include <string>
#include <vector>

namespace {

// A value of 0 whose derivatives are 0, so a bias on it makes PLUMED hand forces to all atoms.
class Nothing : public PLMD::Colvar {
  public:
    explicit Nothing(const PLMD::ActionOptions& options) : Action(options), Colvar(options) {
        std::vector<PLMD::AtomNumber> atoms;
        parseAtomList("ATOMS", atoms);
        checkRead();
        addValueWithDerivatives();
        setNotPeriodic();
        requestAtoms(atoms);
    }

    static void registerKeywords(PLMD::Keywords& keys) {
        Colvar::registerKeywords(keys);
        keys.add("atoms", "ATOMS", "the atoms");
        keys.setValueDescription("scalar", "0");
    }

    void calculate() override { setValue(0.0); }
};

PLUMED_REGISTER_ACTION(Nothing, "NOTHING")

struct Simulation {
    PLMD::Plumed plumed;
    std::vector<double> forces, masses, charges;
    long long step = 0;
};

std::string failure;

// The time of this thread only.
double microseconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return 1e6 * static_cast<double>(now.tv_sec) + 1e-3 * static_cast<double>(now.tv_nsec);
}

} // namespace

extern "C" {

const char* step_cost_failure() {
    return failure.c_str();
}

void* step_cost_open(const char* kernel, const char* input, int natoms) {
    try {
        const auto n = static_cast<std::size_t>(natoms);
        auto* simulation = new Simulation{PLMD::Plumed::dlopen(kernel), std::vector<double>(3 * n),
                                          std::vector<double>(n, 55.845), std::vector<double>(n)};
        auto& plumed = simulation->plumed;
        plumed.cmd("setMDEnergyUnits", 96.48530749925792);
        plumed.cmd("setMDLengthUnits", 0.1);
        plumed.cmd("setPlumedDat", input);
        plumed.cmd("setLogFile", "/dev/null");
        plumed.cmd("setNatoms", natoms);
        plumed.cmd("setNoVirial");
        plumed.cmd("setTimestep", 0.001);
        plumed.cmd("setKbT", 0.02585);
        plumed.cmd("init");
        return simulation;
    } catch (const std::exception& caught) {
        failure = caught.what();
        return nullptr;
    }
}

// Return microseconds a step, or a negative number.
double step_cost_run(void* handle, double* frames, int n_frames, double* box, int n_steps) {
    auto& simulation = *static_cast<Simulation*>(handle);
    auto& plumed = simulation.plumed;
    const std::size_t n = simulation.masses.size();
    const double start = microseconds();
    try {
        for (int k = 0; k < n_steps; ++k) {
            plumed.cmd("setStepLongLong", simulation.step++);
            plumed.cmd("setPositions", frames + static_cast<std::size_t>(k % n_frames) * 3 * n,
                       {n, 3});
            plumed.cmd("setBox", box, {3, 3});
            plumed.cmd("setForces", simulation.forces.data(), {n, 3});
            plumed.cmd("setMasses", simulation.masses.data(), {n});
            plumed.cmd("setCharges", simulation.charges.data(), {n});
            plumed.cmd("calc");
        }
    } catch (const std::exception& caught) {
        failure = caught.what();
        return -1;
    }
    return (microseconds() - start) / n_steps;
}

void step_cost_close(void* handle) {
    delete static_cast<Simulation*>(handle);
}
}
