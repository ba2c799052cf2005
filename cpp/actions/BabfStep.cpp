// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "BabfAction.h"

#include <cmath>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

// One step of BABF: the bias and its force, and then the sample.

namespace plumed_cv {

void BabfAction::add_zeta() {
    const std::size_t dimensions = labels_.arguments.size();
    for (std::size_t d = 0; d < dimensions; ++d) {
        const std::string name = dimensions == 1 ? "zeta" : "zeta-" + std::to_string(d);
        addComponent(name);
        if (babf_->parameters().axes[d].periodic) {
            std::string minimum, maximum;
            getPntrToArgument(static_cast<unsigned>(d))->getDomain(minimum, maximum);
            componentIsPeriodic(name, minimum, maximum);
        } else {
            componentIsNotPeriodic(name);
        }
        zeta_.push_back(getPntrToComponent(name));
    }
}

void BabfAction::calculate() {
    Point xi{};
    const std::size_t dimensions = labels_.arguments.size();
    for (std::size_t d = 0; d < dimensions; ++d) {
        xi[d] = getArgument(static_cast<unsigned>(d));
        if (!std::isfinite(xi[d]))
            error("the CV " + labels_.arguments[d] +
                  " is not a finite number: the dynamics has failed before this step; give a "
                  "shorter time step, and check the start structure and the potential.");
        if (!has_computed_)
            check_start(d, xi[d]);
    }
    has_computed_ = true;
    is_the_last_ = is_the_last_ && getStep() == learned_.number;
    repeated_ = is_the_last_ && learned_.is_at(xi, babf_->parameters().axes);
    // The bias of a step does not depend on the sample of this step.
    const Evaluation now =
        repeated_ ? learned_.acting_at(xi, babf_->parameters().axes) : babf_->evaluate(xi.data());
    for (std::size_t d = 0; d < dimensions; ++d)
        if (!std::isfinite(now.bias) || !std::isfinite(now.force[d]))
            error("the CV " + labels_.arguments[d] + " is " + to_text(xi[d]) +
                  ", where the bias is not a finite number: the dynamics has failed before this "
                  "step; give a shorter time step, and check the start structure and the "
                  "potential.");
    setBias(now.bias);
    for (std::size_t d = 0; d < dimensions; ++d) {
        setOutputForce(static_cast<unsigned>(d), now.force[d]);
        zeta_[d]->set(now.zeta[d]);
    }
}

// Refuses a first CV that is several grids away, for example when the grid is in nm and the CV in
// angstrom.
void BabfAction::check_start(std::size_t d, double xi) {
    const Grid& grid = babf_->parameters().axes[d];
    const double width = grid.maximum - grid.minimum;
    if (grid.periodic || (xi > grid.minimum - width && xi < grid.maximum + width))
        return;
    error("the CV " + labels_.arguments[d] + " is " + to_short_text(xi) +
          " at the first step, further away than the width of its grid from " +
          to_short_text(grid.minimum) + " to " + to_short_text(grid.maximum) +
          ": give GRID_MIN and GRID_MAX in the units of the CV (lengths are in nm unless UNITS "
          "changes them), or start within the grid.");
}

// PLUMED would drop such a force without a message.
void BabfAction::apply() {
    std::vector<double> none(labels_.arguments.size());
    for (const PLMD::Value* zeta : zeta_)
        if (compat::is_forced(*zeta, none))
            error("a bias on " + zeta->getName() +
                  " has no force, because it has no derivatives; bias " + labels_.arguments[0] +
                  " itself.");
    Bias::apply();
}

// PLUMED asks this of every bias in every step, also in steps in which it computes nothing. Some
// engines never withdraw a request for a checkpoint, so only its first step counts.
bool BabfAction::onStep() const {
    const bool asked = getCPT();
    if (asked && !asked_for_checkpoint_)
        checkpoint_ = getStep();
    asked_for_checkpoint_ = asked;
    return Bias::onStep();
}

// Writes the files of a checkpoint in a step that is not learned, or of an earlier step in which
// PLUMED computed nothing. This is before the present sample, so a run that continues from the
// checkpoint counts no step twice.
void BabfAction::beforeUpdate() {
    if (checkpoint_ >= 0 && !(isActive() && checkUpdate() && checkpoint_ == getStep()))
        write_at_checkpoint();
}

void BabfAction::update() {
    if (!onStep() || getStep() % pace_ != 0 || repeated_) {
        write_at_checkpoint();
        return;
    }
    learned_ = {getStep(), babf_->xi(), babf_->evaluation()};
    is_the_last_ = true;
    babf_->update(weight_of_extra_bias());
    const auto steps = static_cast<long long>(babf_->sums().steps);
    const bool exchanges = walkers_stride_ > 0 && steps % walkers_stride_ == 0;
    if (walkers_ && (!exchanged_ || exchanges)) {
        exchange(true);
        exchanged_ = true;
    }
    if (walkers_mpi_ && exchanges)
        exchange_by_mpi(true);
    const bool checkpoint = checkpoint_ >= 0;
    checkpoint_ = -1;
    write_outputs(checkpoint || state_.due(babf_->sums().steps),
                  checkpoint || profile_.due(babf_->sums().steps));
}

void BabfAction::write_at_checkpoint() {
    const bool due = checkpoint_ >= 0 && babf_->sums().steps > 0;
    checkpoint_ = -1;
    write_outputs(due, due);
}

// An error of one process is an error of all.
void BabfAction::write_outputs(bool state, bool profile) {
    if (!state && !profile)
        return;
    plumed.fflush(); // the output of all steps before a state is on disk with the state
    std::string problem;
    try {
        write(state, profile);
    } catch (const std::runtime_error& failure) {
        problem = failure.what();
    }
    broadcast_message(problem);
    if (!problem.empty())
        error(problem);
    if (state && profile)
        written_steps_ = babf_->sums().steps;
}

// The weight exp(V/kT) of the other bias potentials. Nothing if it is so far from 1 that this sample
// would outweigh all others or would not count.
std::optional<double> BabfAction::weight_of_extra_bias() {
    double exponent = 0;
    for (const PLMD::Value* bias : extra_bias_)
        exponent += bias->get() / babf_->parameters().kT;
    if (std::abs(exponent) <= Window::cutoff)
        return std::exp(exponent);
    if (!warned_of_extra_bias_) {
        warned_of_extra_bias_ = true;
        warning("EXTRA_BIAS is " + to_short_text(exponent) + " kT in step " +
                std::to_string(getStep()) +
                ": steps in which it is more than 40 kT from zero are not learned; add a constant "
                "to a bias that is never near zero");
    }
    return std::nullopt;
}

} // namespace plumed_cv
