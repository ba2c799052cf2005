// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "BabfAction.h"

#include "tools/Communicator.h"

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// What walkers exchange: by files in a folder, or by MPI.

namespace plumed_cv {

namespace {

/// Gives all processes of a communicator the sums of one of them.
void broadcast(PLMD::Communicator& among, BabfSums& sums, int root) {
    for (Sums* one : {&sums.weight, &sums.force, &sums.count, &sums.offset}) {
        among.Bcast(one->sum, root);
        among.Bcast(one->rest, root);
    }
    among.Bcast(sums.steps, root);
}

/// Gives all processes of a communicator the text of one of them.
void broadcast(PLMD::Communicator& among, std::string& text, int root) {
    int size = static_cast<int>(text.size());
    among.Bcast(size, root);
    text.resize(static_cast<std::size_t>(size));
    if (size > 0)
        among.Bcast(text, root);
}

} // namespace

// Takes the sums of walkers that have begun earlier.
void BabfAction::join_walkers() {
    if (walkers_) {
        for (const std::string& name : walkers_->left_out())
            warning(name + ": is the contribution of a walker whose number is too high for "
                           "WALKERS_N, and does not count");
        exchange(false);
    }
    if (walkers_mpi_) {
        check_replicas();
        exchange_by_mpi(babf_->sums().steps == 0);
    }
}

// The walkers wait for each other, so all must exchange sums of one estimator in the same step.
void BabfAction::check_replicas() {
    std::string own;
    for (const auto& [key, value] : state_table(*babf_, labels_).constants)
        own += key + " " + value + "\n";
    own += std::to_string(pace_) + " " + std::to_string(walkers_stride_);
    std::string first = own;
    int different = 0;
    if (writes_) {
        broadcast(multi_sim_comm, first, 0);
        different = first != own;
        multi_sim_comm.Sum(different);
    }
    comm.Bcast(different, 0);
    if (different != 0)
        error("WALKERS_MPI: the replicas differ in the CVs, the grid, the parameters or the number "
              "of learned steps; give all of them the same input, and states of the same length.");
}

// One process reads and writes. All processes get the same sums, or an error.
void BabfAction::exchange(bool write) {
    enum { same, changed, failed } outcome = same;
    std::string problem;
    std::vector<std::string> warnings;
    if (writes_) {
        try {
            if (write)
                walkers_->write(*babf_, labels_, learned_);
        } catch (const Walkers::SameWalker& found) {
            problem = found.what();
            outcome = failed;
        } catch (const std::runtime_error& found) { // a file system may work again later
            problem = found.what();
            if (!exchanged_)
                outcome = failed;
            else if (!cannot_contribute_)
                warnings.push_back(problem + " The other walkers do not know the later steps of "
                                             "this one until the file can be written.");
            cannot_contribute_ = true;
        }
        if (outcome != failed && walkers_->read(babf_->parameters(), labels_, warnings))
            outcome = changed;
    }
    int shared[] = {outcome, static_cast<int>(warnings.size())};
    comm.Bcast(shared, 2, 0);
    warnings.resize(static_cast<std::size_t>(shared[1]));
    for (std::string& text : warnings) {
        broadcast_message(text);
        warning(text);
    }
    broadcast_message(problem);
    if (shared[0] == failed)
        error(problem);
    if (shared[0] == same)
        return;
    BabfSums others = writes_ ? walkers_->others(babf_->parameters())
                              : BabfSums(babf_->size(), babf_->dimensions());
    broadcast(comm, others, 0);
    // A run that continues uses the profile of its state, which includes the other walkers.
    babf_->set_others(std::move(others), write || babf_->sums().steps == 0);
}

// Reads what the others have learned since the last exchange, for the last profile. Only one process
// does so, and it waits for no other one.
bool BabfAction::exchange_at_the_end() {
    std::vector<std::string> warnings;
    const bool changed = walkers_->read(babf_->parameters(), labels_, warnings);
    for (const std::string& text : warnings)
        warn_from_one_process(text);
    if (changed)
        babf_->set_others(walkers_->others(babf_->parameters()));
    return changed;
}

// The sums of the others are added in the order of the replicas, so that the same sums give the same
// bits.
void BabfAction::exchange_by_mpi(bool at_once) {
    BabfSums others(babf_->size(), babf_->dimensions());
    if (writes_)
        for (int replica = 0; replica < multi_sim_comm.Get_size(); ++replica) {
            const bool mine = replica == multi_sim_comm.Get_rank();
            BabfSums sums = mine ? babf_->sums() : BabfSums(babf_->size(), babf_->dimensions());
            broadcast(multi_sim_comm, sums, replica);
            if (!mine)
                others.add(sums);
        }
    broadcast(comm, others, 0);
    babf_->set_others(std::move(others), at_once);
}

// Gives all processes the message of one. PLUMED's error, warning and log need every process.
void BabfAction::broadcast_message(std::string& message) {
    broadcast(comm, message, 0);
}

} // namespace plumed_cv
