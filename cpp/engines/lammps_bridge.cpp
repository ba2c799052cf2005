// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// Connects LAMMPS's `fix external` with PLUMED, for builds of LAMMPS without `fix plumed`. LAMMPS
// calls a function of this file in every step. The same function in Python would take more time than
// PLUMED.
//
// The bridge does the same as LAMMPS's fix plumed, with four differences:
//
// - It does not ask for the virial. The cell of a run is constant, and LAMMPS would have to compute
//   the virial in every step.
// - It passes kT.
// - A system without periodic boundaries has no box.
// - The start configuration of a run that continues another one is not counted twice (count_start).
//
// This file neither includes nor links LAMMPS: the settings contain pointers to the functions of
// LAMMPS's C library. PLUMED's own wrapper loads the kernel at run time, by its path.

#define __PLUMED_HAS_DLOPEN 1
#define __PLUMED_WRAPPER_LINK_RUNTIME 1
#define __PLUMED_WRAPPER_IMPLEMENTATION 1
#define __PLUMED_WRAPPER_EXTERN 0
#include "config/version.h"
#include "wrapper/Plumed.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>

extern "C" {

// plumed_cv/engines/lammps_bridge.py has the same structure for ctypes.
struct plumed_cv_lammps_settings {
    void* lammps;
    void* (*extract_atom)(void*, const char*);
    void (*force_timeout)(void*);
    double (*potential_energy)(void*, std::int64_t); // null unless the input uses ENERGY
    const char* kernel;
    const char* plumed_dat;
    const char* log_file;
    double* masses;     // natoms, amu
    double* charges;    // natoms, e
    double* box;        // 3 x 3, rows, angstrom; zero without periodic boundaries
    double energy_unit; // LAMMPS's, eV
    double time_unit;   // LAMMPS's, ps
    double timestep;    // in LAMMPS's unit
    double kt;          // in LAMMPS's unit
    std::int64_t first_step;
    int natoms;
    int count_start;   // 0: actions do not update on the first step, which the previous run counted
    int n_recorded;    // atoms whose positions and forces without the bias are recorded
    int record_stride; // steps between records; 0: none
    const std::int64_t* recorded; // n_recorded, from 0
    const char* record_file;      // doubles: positions (A), then forces (eV/A), of each record
};
}

namespace {

constexpr double ev_in_kj_per_mol = 96.48530749925792; // as in LAMMPS's fix plumed
constexpr double angstrom_in_nm = 0.1;

// These versions of PLUMED keep the pointers to arrays from step to step. 2.9 asks for them in every
// step. A version that forgot them without an error would not see the atoms move, so no later
// version is assumed to keep them.
constexpr bool keeps_pointers =
    PLUMED_VERSION_MAJOR == 2 && (PLUMED_VERSION_MINOR == 10 || PLUMED_VERSION_MINOR == 11);

class Bridge {
  public:
    explicit Bridge(const plumed_cv_lammps_settings& given)
        : settings_(given), plumed_(PLMD::Plumed::dlopen(given.kernel)) {
        if (!plumed_.valid())
            throw std::runtime_error(std::string(given.kernel) +
                                     ": PLUMED cannot be loaded; set PLUMED_KERNEL to another "
                                     "libplumedKernel.so");
        plumed_.cmd("setMDEnergyUnits", ev_in_kj_per_mol * given.energy_unit);
        plumed_.cmd("setMDLengthUnits", angstrom_in_nm);
        plumed_.cmd("setMDTimeUnits", given.time_unit);
        plumed_.cmd("setPlumedDat", given.plumed_dat);
        plumed_.cmd("setLogFile", given.log_file);
        plumed_.cmd("setMDEngine", "LAMMPS");
        plumed_.cmd("setNatoms", given.natoms);
        plumed_.cmd("setNoVirial");
        plumed_.cmd("setTimestep", given.timestep);
        plumed_.cmd("setKbT", given.kt);
        plumed_.cmd("init");
        plumed_.cmd("setStopFlag", &stopped);
        if (given.record_stride > 0)
            record_.open(given.record_file, std::ios::binary | std::ios::trunc);
    }

    void step(std::int64_t step, int natoms, const int* tags, double** positions) {
        if (!error.empty())
            return;
        try {
            calculate(step, natoms, tags, positions);
        } catch (const std::exception& caught) {
            error = caught.what();
        }
        if (stopped != 0 || !error.empty())
            settings_.force_timeout(settings_.lammps);
    }

    std::string error;
    int stopped = 0;

  private:
    void calculate(std::int64_t step, int natoms, const int* tags, double** positions) {
        check_order(natoms, tags);
        auto** forces = static_cast<double**>(settings_.extract_atom(settings_.lammps, "f"));
        if (settings_.record_stride > 0 && step > settings_.first_step &&
            step % settings_.record_stride == 0)
            record(positions, forces);
        plumed_.cmd("setStepLongLong", static_cast<long long>(step));
        set_arrays(positions[0], forces[0]);
        plumed_.cmd("prepareCalc");
        int needed = 0;
        plumed_.cmd("isEnergyNeeded", &needed);
        if (needed != 0 && settings_.potential_energy == nullptr)
            throw std::runtime_error(
                "an action needs the potential energy (ENERGY), but no line of the input shows it; "
                "write ENERGY into the input itself");
        if (settings_.potential_energy != nullptr) { // also where PLUMED does not need it, because
                                                     // LAMMPS must be asked a step before
            energy_ = settings_.potential_energy(settings_.lammps, step);
            plumed_.cmd("setEnergy", &energy_);
        }
        const bool counts = settings_.count_start != 0 || step != settings_.first_step;
        plumed_.cmd(counts ? "performCalc" : "performCalcNoUpdate");
    }

    // Each command takes 1 to 2 us with the kernel of the wheel. LAMMPS moves the arrays of positions
    // and forces only when the number of ghost atoms grows.
    void set_arrays(double* positions, double* forces) {
        if (keeps_pointers && positions == positions_ && forces == forces_)
            return;
        positions_ = positions;
        forces_ = forces;
        const auto n = static_cast<std::size_t>(settings_.natoms);
        plumed_.cmd("setPositions", positions, {n, 3});
        plumed_.cmd("setForces", forces, {n, 3});
        plumed_.cmd("setBox", settings_.box, {3, 3});
        plumed_.cmd("setMasses", settings_.masses, {n});
        plumed_.cmd("setCharges", settings_.charges, {n});
    }

    void record(double** positions, double** forces) {
        write(positions, 1.0);
        write(forces, settings_.energy_unit);
        record_.flush();
        if (!record_)
            throw std::runtime_error(std::string(settings_.record_file) +
                                     ": cannot be written; make room on the disk and run again");
    }

    void write(double** values, double unit) {
        for (int i = 0; i < settings_.n_recorded; ++i) {
            for (int k = 0; k < 3; ++k) {
                const double value = values[settings_.recorded[i]][k] * unit;
                record_.write(reinterpret_cast<const char*>(&value), sizeof value);
            }
        }
    }

    void check_order(int natoms, const int* tags) const {
        if (natoms != settings_.natoms)
            throw std::runtime_error("lost atoms");
        for (int i = 0; i < natoms; ++i) {
            if (tags[i] != i + 1) {
                throw std::runtime_error(
                    "LAMMPS has changed the order of the atoms; use atom_modify sort 0 0");
            }
        }
    }

    plumed_cv_lammps_settings settings_;
    PLMD::Plumed plumed_;
    std::ofstream record_;
    double* positions_ = nullptr; // the arrays that PLUMED has
    double* forces_ = nullptr;
    double energy_ = 0.0;
};

std::string open_error;

} // namespace

extern "C" {

// Returns null on failure; the reason is then plumed_cv_lammps_error(nullptr).
void* plumed_cv_lammps_open(const plumed_cv_lammps_settings* settings) {
    try {
        return new Bridge(*settings);
    } catch (const std::exception& caught) {
        open_error = caught.what();
        return nullptr;
    }
}

// The callback of `fix ID all external pf/callback 1 1`. PLUMED adds its forces to those of LAMMPS,
// so that it can also scale them (a bias on ENERGY). The array of the fix remains zero.
void plumed_cv_lammps_step(void* bridge, std::int64_t step, int natoms, int* tags,
                           double** positions, double** /*external_forces*/) {
    static_cast<Bridge*>(bridge)->step(step, natoms, tags, positions);
}

// An empty string if nothing went wrong.
const char* plumed_cv_lammps_error(void* bridge) {
    return bridge == nullptr ? open_error.c_str() : static_cast<Bridge*>(bridge)->error.c_str();
}

// 1 if an action (COMMITTOR) asked for the end of the run.
int plumed_cv_lammps_stopped(void* bridge) {
    return static_cast<Bridge*>(bridge)->stopped;
}

// Ends PLUMED, which flushes and closes its files.
void plumed_cv_lammps_close(void* bridge) {
    delete static_cast<Bridge*>(bridge);
}
}
