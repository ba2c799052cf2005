// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "BabfAction.h"

#include "../core/babf_fes.h"
#include "../core/babf_prior.h"

#include "tools/Communicator.h"
#include "tools/File.h"

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

// The files of BABF: those from which a run starts, and those that it writes.

namespace plumed_cv {

// Makes the estimator: from a state, from a prior, or from zero.
void BabfAction::make_estimator(BabfParameters parameters) {
    try {
        parameters = checked(std::move(parameters));
        if (!restart_.empty()) {
            read_state(std::move(parameters));
            return;
        }
        if (!prior_.empty())
            parameters.prior = read_prior(input_path(prior_), parameters.axes, labels_);
        babf_.emplace(std::move(parameters));
    } catch (const std::runtime_error& problem) {
        error(problem.what());
    }
}

// Makes the estimator that continues from STATE_RFILE.
void BabfAction::read_state(BabfParameters parameters) {
    const Table table = read_table(restart_);
    const long long walker = walker_of(table);
    if (walkers_ && walker >= 0 &&
        walkers_->path(static_cast<std::size_t>(walker)) != walkers_->path())
        error(restart_ + ": is the contribution of walker " + std::to_string(walker) +
              ", which would count twice; give STATE_RFILE a state of this walker.");
    if (!solve_stride_)
        parameters.solve_stride = solve_stride_of(table, parameters.nodes(), restart_);
    babf_ = restored(table, parameters, labels_, restart_);
    written_steps_ = babf_->sums().steps;
    learned_ = learned_step(table, labels_, parameters, restart_);
}

// As PLUMED opens files for reading: the file of this replica if it exists, otherwise the file
// itself.
std::string BabfAction::input_path(const std::string& path) const {
    const std::string own = output_path(path);
    return file_exists(own) ? own : path;
}

// As PLUMED opens files for writing: each replica has a file of its own.
std::string BabfAction::output_path(const std::string& path) const {
    return path.empty() ? path : PLMD::FileBase::appendSuffix(path, plumed.getSuffix());
}

// With RESTART the profile is replaced like the file of any other action. A state that was not read
// is kept, because it may be all that is left of a run.
void BabfAction::back_up_outputs() {
    writes_ = comm.Get_rank() == 0;
    comm.Barrier(); // another process may still be reading
    const bool continues = getRestart() && !restart_.empty();
    if (!same_file(state_.path, restart_))
        back_up(state_.path);
    if (!continues && !same_file(profile_.path, restart_))
        back_up(profile_.path);
    if (walkers_ && restart_.empty())
        back_up(walkers_->path());
}

// Renames a file of another run as PLUMED does.
void BabfAction::back_up(const std::string& path) {
    if (path.empty())
        return;
    PLMD::OFile file;
    file.link(*this);
    file.backupFile("bck", path);
}

void BabfAction::write(bool state, bool profile) {
    if (!writes_)
        return;
    if (state)
        write_state();
    if (profile)
        write_profile();
    warn_if_not_converged();
}

void BabfAction::write_state() {
    if (state_.path.empty())
        return;
    const Table table = state_table(*babf_, labels_, learned_);
    write_table(state_.path, table);
    if (!stores_states_ || !state_.due(babf_->sums().steps))
        return;
    const std::string number = "." + std::to_string(static_cast<long long>(babf_->sums().steps));
    const std::string path = PLMD::FileBase::appendSuffix(state_.path, number);
    if (restart_.empty())
        back_up(path);
    write_table(path, table);
}

void BabfAction::write_profile() {
    if (!profile_.path.empty())
        write_table(profile_.path, profile_table(*babf_, labels_, format_));
}

// What cannot be written must not keep the run from writing the rest.
template <class Work>
void BabfAction::try_at_the_end(Work work) {
    try {
        work();
    } catch (const std::exception& problem) {
        warn_from_one_process(problem.what());
    }
}

void BabfAction::warn_if_not_converged() {
    if (warned_ || babf_->converged())
        return;
    warned_ = true;
    warn_from_one_process("the free energies did not converge: the sampled regions are joined by "
                          "nodes with too few samples, and their relative heights are wrong");
}

void BabfAction::warn_from_one_process(const std::string& text) {
    if (comm.Get_size() == 1)
        log.printf("+++ WARNING +++ %s\n", text.c_str());
    else // the log would wait for processes that may have ended
        std::fprintf(stderr, "+++ WARNING +++ %s\n", text.c_str());
}

// A run that has learned nothing replaces no file. If it continues from a state, it copies this
// state to a STATE_WFILE that does not exist.
BabfAction::~BabfAction() {
    if (!babf_ || babf_->sums().steps == 0 || !writes_)
        return;
    const bool learned = babf_->sums().steps != written_steps_;
    bool heard = false; // whether other walkers have learned more
    try_at_the_end([&] {
        if (learned || !file_exists(state_.path))
            write_state();
    });
    // The state is that of a run that continues, so it does not contain the last exchange.
    try_at_the_end([&] {
        if (walkers_ && exchanged_) {
            walkers_->write(*babf_, labels_, learned_);
            heard = exchange_at_the_end();
        }
    });
    try_at_the_end([&] {
        if (learned || heard || !file_exists(profile_.path))
            write_profile();
        warn_if_not_converged();
    });
}

} // namespace plumed_cv
