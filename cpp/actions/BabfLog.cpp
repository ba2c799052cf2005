// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "BabfAction.h"

#include <cmath>
#include <cstddef>
#include <string>

// What the log says of a run before its first step: every choice, also those by default.

namespace plumed_cv {

void BabfAction::describe() {
    describe_bias();
    describe_start();
    describe_output(profile_, "profile");
    if (!format_.empty())
        log.printf("  format of the profile: %s\n", format_.c_str());
    describe_output(state_, "state");
    if (stores_states_)
        log.printf("  each state is kept in a file of its own\n");
    describe_walkers();
    log << "  Bibliography "
        << plumed.cite("Baima, Goryaeva, Swinburne, Maillet, Nastar, Marinica, "
                       "Phys. Chem. Chem. Phys. 24, 23152 (2022)")
        << plumed.cite(
               "Cao, Stoltz, Lelievre, Marinica, Athenes, J. Chem. Phys. 140, 104108 (2014)")
        << "\n";
}

// The temperature, the CVs and the parameters of the estimator.
void BabfAction::describe_bias() {
    const BabfParameters& parameters = babf_->parameters();
    log.printf("  temperature: kT %g %s\n", parameters.kT, labels_.energy_unit.c_str());
    for (std::size_t d = 0; d < parameters.axes.size(); ++d) {
        const Grid& grid = parameters.axes[d];
        log.printf("  CV %s: grid from %g to %g with %zu bins of %g%s, KAPPA %g\n",
                   labels_.arguments[d].c_str(), grid.minimum, grid.maximum, grid.bins,
                   grid.spacing(), grid.periodic ? ", periodic" : "", parameters.kappa[d]);
        if (parameters.kappa[d] > 4.01 * BabfParameters::default_kappa(grid, parameters.kT))
            warning("KAPPA is more than 4 kT over the square of the grid spacing: the nodes are "
                    "further apart than the spring is wide, and the bias has a well at each of "
                    "them; give a smaller KAPPA or a finer grid");
    }
    log.printf("  weights: RAMP %g, TAU %g\n", parameters.ramp, parameters.tau);
    if (parameters.ramp > 0)
        log.printf("  the weight of a sample grows to 1 in the first %g samples\n",
                   parameters.ramp);
    else
        log.printf("  all samples have equal weights\n");
    if (std::isinf(parameters.tau))
        log.printf("  the bias is that of the prior and does not change\n");
    else
        log.printf("  the prior counts as %g samples at each node\n"
                   "  the profile used as bias is updated after 5 %% more samples, at the latest "
                   "after %d\n",
                   parameters.tau, parameters.solve_stride);
    log.printf("  a sample is learned every %d steps\n", pace_);
    if (getStride() > 1)
        log.printf("  the bias acts and learns only every %d steps, with a force that is %d times "
                   "larger\n",
                   getStride(), getStride());
    if (!extra_bias_.empty())
        log.printf("  the effect of %s is removed by reweighting\n", labels_.extra_bias.c_str());
}

// The state or the profile from which the run starts.
void BabfAction::describe_start() {
    if (!restart_.empty())
        log.printf("  continuing from %s, which has %.0f learned steps%s\n", restart_.c_str(),
                   babf_->sums().steps,
                   prior_.empty() ? "" : "; it contains the prior, and PRIOR is not read");
    else if (!prior_.empty())
        log.printf("  starting from the profile in %s\n", prior_.c_str());
    else if (state_is_new_)
        log.printf("  starting from zero, because %s does not exist yet\n", state_.path.c_str());
    else
        log.printf("  starting from zero\n");
}

void BabfAction::describe_output(const Output& output, const std::string& content) {
    if (output.path.empty()) {
        log.printf("  the %s is not written\n", content.c_str());
        return;
    }
    log.printf("  %s: file %s, written ", content.c_str(), output.path.c_str());
    if (output.stride > 0)
        log.printf("every %d learned steps, ", output.stride);
    log.printf("at checkpoints and at the end\n");
}

void BabfAction::describe_walkers() {
    if (walkers_)
        log.printf("  walker: file %s, written every %d learned steps; %zu of the other walkers "
                   "have contributed %.0f steps\n",
                   walkers_->path().c_str(), walkers_stride_, walkers_->contributors(),
                   babf_->steps() - babf_->sums().steps);
    else if (walkers_mpi_)
        log.printf("  walkers: all replicas, which exchange their sums every %d learned steps\n",
                   walkers_stride_);
    else
        log.printf("  this run shares its estimate with no other walker\n");
}

} // namespace plumed_cv
