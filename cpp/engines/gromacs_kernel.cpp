// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// GROMACS loads this library as its PLUMED kernel (PLUMED_KERNEL). The library passes all commands to
// the real kernel (PLUMED_CV_KERNEL). It adds five things that GROMACS's own interface does not have:
//
// - A run ends when PLUMED ends it (COMMITTOR). GROMACS ignores PLUMED's stop flag, so the library
//   sends two interrupts: after the second one GROMACS stops at the next step. In steps after the
//   one that stopped the run, PLUMED computes only forces, and learns and prints nothing.
// - The start configuration of a run that continues another one is not counted twice
//   (PLUMED_CV_COUNT_START=0).
// - A request for a checkpoint ends with its step. GROMACS never withdraws it, so actions would write
//   their files in every later step, or never again.
// - A run that needs the potential energy (ENERGY) is refused. GROMACS does not pass it, and PLUMED
//   would take it as zero.
// - An error of PLUMED includes its cause. GROMACS prints only the outermost of nested exceptions,
//   which contains the place of the error.
//
// At the end the library writes to standard error at which step PLUMED stopped the run, if it did.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

#include <dlfcn.h>

namespace {

/// The messages of an exception and of those nested in it, the cause first, in the form of PLUMED's
/// own wrapper.
std::string causes(const std::exception& error) {
    try {
        std::rethrow_if_nested(error);
    } catch (const std::exception& cause) {
        return causes(cause) +
               "\n\nThe above exception was the direct cause of the following exception:\n" +
               error.what();
    }
    return error.what();
}

struct Kernel {
    void* (*create)() = nullptr;
    void (*cmd)(void*, const char*, const void*) = nullptr;
    void (*finalize)(void*) = nullptr;
};

const Kernel& kernel() {
    static const Kernel loaded = [] {
        const char* path = std::getenv("PLUMED_CV_KERNEL");
        void* library = path == nullptr ? nullptr : dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr)
            throw std::runtime_error(
                path == nullptr
                    ? std::string("PLUMED_CV_KERNEL is not set; set it to libplumedKernel.so")
                    : std::string("PLUMED_CV_KERNEL=") + path + ": PLUMED cannot be loaded (" +
                          dlerror() + "); set it to libplumedKernel.so");
        Kernel found;
        found.create = reinterpret_cast<void* (*)()>(dlsym(library, "plumed_plumedmain_create"));
        found.cmd = reinterpret_cast<void (*)(void*, const char*, const void*)>(
            dlsym(library, "plumed_plumedmain_cmd"));
        found.finalize =
            reinterpret_cast<void (*)(void*)>(dlsym(library, "plumed_plumedmain_finalize"));
        if (found.create == nullptr || found.cmd == nullptr || found.finalize == nullptr)
            throw std::runtime_error(std::string("PLUMED_CV_KERNEL=") + path +
                                     ": is not a kernel of PLUMED; set it to libplumedKernel.so");
        return found;
    }();
    return loaded;
}

class Plumed {
  public:
    Plumed() : plumed_(kernel().create()) {
        const char* counts = std::getenv("PLUMED_CV_COUNT_START");
        skip_update_ = counts != nullptr && std::strcmp(counts, "0") == 0;
    }
    Plumed(const Plumed&) = delete;
    Plumed& operator=(const Plumed&) = delete;
    ~Plumed() {
        if (stopped_ != 0)
            std::fprintf(stderr, "\nplumed_cv: PLUMED stopped the run at step %ld\n", stop_step_);
        kernel().finalize(plumed_);
    }

    void cmd(const char* key, const void* value) {
        if (std::strcmp(key, "performCalc") == 0) {
            perform();
        } else if (std::strcmp(key, "setStopFlag") == 0) {
            kernel().cmd(plumed_, key, &stopped_);
        } else {
            if (std::strcmp(key, "setStepLong") == 0) {
                step_ = *static_cast<const long*>(value);
            }
            kernel().cmd(plumed_, key, value);
            if (std::strcmp(key, "prepareCalc") == 0)
                refuse_energy();
        }
    }

  private:
    void refuse_energy() {
        int needed = 0;
        kernel().cmd(plumed_, "isEnergyNeeded", &needed);
        if (needed != 0)
            throw std::runtime_error("the input or a file that it includes uses ENERGY, which "
                                     "GROMACS does not pass to PLUMED; use another variable");
    }

    void perform() {
        const bool forces_only = skip_update_ || stopped_ != 0;
        const bool stopped_before = stopped_ != 0;
        skip_update_ = false;
        kernel().cmd(plumed_, forces_only ? "performCalcNoUpdate" : "performCalc", nullptr);
        const int no = 0;
        kernel().cmd(plumed_, "doCheckPoint", &no);
        if (stopped_ != 0 && !stopped_before) {
            stop_step_ = step_;
            std::raise(SIGINT);
            std::raise(SIGINT);
        }
    }

    void* plumed_;
    bool skip_update_ = false;
    int stopped_ = 0;
    long step_ = 0;
    long stop_step_ = 0;
};

} // namespace

extern "C" {

void* plumed_plumedmain_create() {
    return new Plumed;
}

void plumed_plumedmain_cmd(void* plumed, const char* key, const void* value) {
    try {
        static_cast<Plumed*>(plumed)->cmd(key, value);
    } catch (const std::exception& error) {
        throw std::runtime_error(causes(error));
    }
}

void plumed_plumedmain_finalize(void* plumed) {
    delete static_cast<Plumed*>(plumed);
}
}
