// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "BabfAction.h"

#include "core/ActionSet.h"
#include "tools/Communicator.h"
#include "tools/File.h"

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

// What the keywords of BABF mean, and which of them contradict each other.

namespace plumed_cv {

void BabfAction::read_cvs() {
    const std::size_t dimensions = getNumberOfArguments();
    if (dimensions < 1 || dimensions > most_dimensions)
        error("BABF biases one or two CVs, but ARG names " + std::to_string(dimensions) +
              ": give one or two.");
    for (std::size_t d = 0; d < dimensions; ++d) {
        const PLMD::Value& cv = *getPntrToArgument(static_cast<unsigned>(d));
        check_is_scalar(cv);
        labels_.arguments.push_back(cv.getName());
    }
    if (dimensions == 2 && labels_.arguments[0] == labels_.arguments[1])
        error("ARG names " + labels_.arguments[0] + " twice: name two CVs.");
    labels_.energy_unit = energy_unit();
    labels_.length_unit = length_unit();
}

// PLUMED would take the first number of a vector without a message.
void BabfAction::check_is_scalar(const PLMD::Value& value) {
    if (compat::rank(value) > 0)
        error(value.getName() + " is not a single number: give one of its elements.");
}

// The name of the energy unit, or its size in kJ/mol if the user or the engine gives a number.
std::string BabfAction::energy_unit() {
    if (usingNaturalUnits())
        return "natural";
    const std::string name = getUnits().getEnergyString();
    return name.empty() ? to_text(getUnits().getEnergy()) : name;
}

// The name of the length unit, or its size in nm.
std::string BabfAction::length_unit() {
    if (usingNaturalUnits())
        return "natural";
    const std::string name = getUnits().getLengthString();
    return name.empty() ? to_text(getUnits().getLength()) : name;
}

BabfParameters BabfAction::parse_parameters() {
    BabfParameters parameters;
    parameters.kT = parse_kT();
    parameters.axes = parse_axes();
    parse("RAMP", parameters.ramp);
    pace_ = parse_stride("PACE").value_or(1);
    // Unsigned from 2.11 on. PLUMED multiplies the forces by it.
    if (const int stride = static_cast<int>(getStride()); stride < 1)
        refuse_stride("STRIDE", stride);
    parameters.kappa = parse_list<double>("KAPPA");
    if (parameters.kappa.empty())
        for (const Grid& grid : parameters.axes)
            parameters.kappa.push_back(BabfParameters::default_kappa(grid, parameters.kT));
    parameters.tau = parse_tau(parameters.ramp);
    solve_stride_ = parse_stride("SOLVE_STRIDE");
    parameters.solve_stride =
        solve_stride_.value_or(BabfParameters::default_solve_stride(parameters.nodes()));
    return parameters;
}

double BabfAction::parse_kT() {
    const double kT = getkBT(), engine = engine_kT();
    if (!(kT > 0))
        error("the temperature is not known, because the engine does not pass it: give TEMP.");
    // The constants of nature of engines and PLUMED agree in the first seven digits.
    if (engine > 0 && std::abs(engine / kT - 1) > 1e-3)
        error("kT is " + std::to_string(kT) + " by TEMP and " + std::to_string(engine) +
              " by the engine (" + labels_.energy_unit +
              "): give both the same temperature, or leave TEMP out.");
    return kT;
}

std::vector<Grid> BabfAction::parse_axes() {
    const auto minima = parse_list<double>("GRID_MIN"), maxima = parse_list<double>("GRID_MAX"),
               spacings = parse_list<double>("GRID_SPACING");
    const auto bins = parse_list<int>("GRID_BIN");
    if (bins.empty() == spacings.empty())
        error("the number of nodes is needed once: give either GRID_BIN or GRID_SPACING.");
    std::vector<Grid> axes;
    double nodes = 1;
    for (std::size_t d = 0; d < labels_.arguments.size(); ++d) {
        Grid grid{minima[d], maxima[d], parse_bins(d, maxima[d] - minima[d], bins, spacings),
                  getPntrToArgument(static_cast<unsigned>(d))->isPeriodic()};
        if (grid.periodic)
            take_domain(grid, d);
        nodes *= static_cast<double>(grid.nodes());
        axes.push_back(grid);
    }
    if (axes.size() > 1 && nodes > 4e6)
        error("the grid has " + to_text(nodes) +
              " nodes: give a smaller GRID_BIN or a larger GRID_SPACING, for at most 4000000 nodes "
              "in all.");
    return axes;
}

// The grid of a periodic CV is its domain. The keywords have it with fewer digits.
void BabfAction::take_domain(Grid& grid, std::size_t d) {
    PLMD::Value& cv = *getPntrToArgument(static_cast<unsigned>(d));
    double minimum = 0, maximum = 0;
    cv.getDomain(minimum, maximum);
    const double slack = 1e-6 * (maximum - minimum);
    if (!(std::abs(grid.minimum - minimum) < slack && std::abs(grid.maximum - maximum) < slack)) {
        std::string from, to;
        cv.getDomain(from, to);
        error("the CV " + labels_.arguments[d] +
              " is periodic, so the grid must be its domain: give GRID_MIN=" + from +
              " and GRID_MAX=" + to + (labels_.arguments.size() == 1 ? "." : " for it."));
    }
    grid.minimum = minimum;
    grid.maximum = maximum;
}

std::size_t BabfAction::parse_bins(std::size_t d, double length, const std::vector<int>& bins,
                                   const std::vector<double>& spacings) {
    if (!bins.empty()) {
        if (bins[d] < 2 || bins[d] > 1000000)
            error("GRID_BIN=" + std::to_string(bins[d]) +
                  " must be from 2 to 1000000: give another number of bins.");
        return static_cast<std::size_t>(bins[d]);
    }
    // If the length is a multiple of the spacing up to rounding, no further bin is needed.
    const double number = std::ceil(length / spacings[d] * (1 - 1e-9));
    if (!(length > 0))
        return 2; // the estimator refuses such a grid and gives the reason
    if (!(spacings[d] > 0 && number >= 2 && number <= 1000000))
        error("GRID_SPACING=" + to_short_text(spacings[d]) + " gives " + to_short_text(number) +
              " bins, and there must be from 2 to 1000000: give another spacing.");
    return static_cast<std::size_t>(number);
}

double BabfAction::parse_tau(double ramp) {
    std::string text;
    parse("TAU", text);
    if (text.empty())
        return BabfParameters::default_tau(ramp);
    double tau = 0;
    if (!to_number(text, tau) || !(tau > 0))
        error("TAU=" + text + " must be a positive number, or inf to keep the bias as it is.");
    return tau;
}

void BabfAction::parse_extra_bias() {
    parseArgumentList("EXTRA_BIAS", extra_bias_);
    if (extra_bias_.empty())
        return;
    requestExtraDependencies(extra_bias_);
    for (const PLMD::Value* bias : extra_bias_) {
        check_is_scalar(*bias);
        labels_.extra_bias += (labels_.extra_bias.empty() ? "" : ",") + bias->getName();
    }
}

void BabfAction::parse_files() {
    parse("PRIOR", prior_);
    parse("STATE_RFILE", restart_);
    const std::string own_restart = output_path(restart_); // of this replica
    if (!restart_.empty())
        restart_ = input_path(restart_);
    state_ = parse_output("STATE_WFILE", "STATE_WSTRIDE");
    parseFlag("STORE_STATES", stores_states_);
    if (stores_states_ && state_.stride == 0)
        error("STORE_STATES keeps the states that STATE_WSTRIDE asks for: give STATE_WFILE and "
              "STATE_WSTRIDE.");
    // One input can serve for the first part of a run and for all later ones: then the state does
    // not exist in the first part.
    state_is_new_ = same_file(own_restart, state_.path) && !file_exists(restart_) && !getRestart();
    if (state_is_new_)
        restart_.clear();
    profile_ = parse_output("FES_FILE", "FES_STRIDE");
    parse("FMT", format_);
    if (!format_.empty() && !is_number_format(format_))
        error("FMT=" + format_ + " is not a format for one number: give one such as %8.3f.");
    if (!format_.empty() && profile_.path.empty())
        error("FMT is the format of FES_FILE: give FES_FILE, too.");
}

BabfAction::Output BabfAction::parse_output(const std::string& file, const std::string& stride) {
    Output output;
    parse(file, output.path);
    parse(stride, output.stride);
    if (output.stride < 0)
        error(stride + "=" + std::to_string(output.stride) +
              " must be a number of steps: give 0 or a positive number.");
    if (output.path.empty() && output.stride > 0)
        error(stride + " is given without " + file + ": name the file to write.");
    output.path = output_path(output.path);
    return output;
}

void BabfAction::parse_walkers(std::size_t nodes) {
    parseFlag("WALKERS_MPI", walkers_mpi_);
    const std::optional<int> stride = parse_stride("WALKERS_RSTRIDE");
    if (!walkers_mpi_) {
        parse_walkers_of_folder(nodes, stride.value_or(0));
        return;
    }
    int number = 0, id = 0;
    std::string folder;
    parse("WALKERS_N", number);
    parse("WALKERS_ID", id);
    parse("WALKERS_DIR", folder);
    if (number != 0 || id != 0 || !folder.empty())
        error("with WALKERS_MPI the walkers need no files: leave out WALKERS_N, WALKERS_ID and "
              "WALKERS_DIR.");
    int replicas = comm.Get_rank() == 0 ? multi_sim_comm.Get_size() : 0;
    comm.Bcast(replicas, 0);
    walkers_stride_ =
        stride.value_or(Walkers::default_stride(static_cast<std::size_t>(replicas), nodes));
}

void BabfAction::parse_walkers_of_folder(std::size_t nodes, int stride) {
    const int absent = std::numeric_limits<int>::min();
    int number = absent, id = absent;
    std::string folder;
    parse("WALKERS_N", number);
    parse("WALKERS_ID", id);
    parse("WALKERS_DIR", folder);
    if (number == absent) {
        if (id != absent || !folder.empty() || stride != 0)
            error("WALKERS_ID, WALKERS_DIR or WALKERS_RSTRIDE is given without WALKERS_N: give the "
                  "number of walkers, or WALKERS_MPI.");
        return;
    }
    const std::string given = "WALKERS_N=" + std::to_string(number);
    if (number < 1 || number > 100000)
        error(given + " must be from 1 to 100000: give the number of walkers.");
    if (id < 0 || id >= number)
        error(given + " walkers have numbers from 0 to " + std::to_string(number - 1) +
              ": give this one by WALKERS_ID" +
              (id == absent ? "." : ", which is " + std::to_string(id) + "."));
    if (folder.empty())
        error(given + " is given without WALKERS_DIR: name a folder that all walkers can access.");
    if (!std::filesystem::is_directory(folder))
        error("WALKERS_DIR=" + folder + " is not a folder: make it before the walkers start.");
    const auto walkers = static_cast<std::size_t>(number);
    walkers_.emplace(folder, walkers, static_cast<std::size_t>(id));
    walkers_stride_ = stride != 0 ? stride : Walkers::default_stride(walkers, nodes);
}

void BabfAction::check_outputs() {
    if (same_file(state_.path, profile_.path))
        error("STATE_WFILE and FES_FILE are both " + state_.path + "; give them different names.");
    if (same_file(restart_, profile_.path))
        error("STATE_RFILE and FES_FILE are both " + restart_ + "; give them different names.");
    const std::string contribution = walkers_ ? walkers_->path() : "";
    for (const Output* output : {&state_, &profile_})
        if (same_file(contribution, output->path))
            error(output->path + ": is this walker's file in WALKERS_DIR; give another name.");
    for (const auto& action : plumed.getActionSet()) {
        const auto* other = dynamic_cast<const BabfAction*>(action.get());
        if (other == nullptr)
            continue;
        for (const std::string& mine : outputs())
            for (const std::string& theirs : other->outputs())
                if (same_file(mine, theirs))
                    error(mine + ": " + other->getLabel() +
                          " writes this file, too; give each action files of its own.");
    }
    for (const std::string& path : {state_.path, contribution})
        if (getRestart() && restart_.empty() && file_exists(path))
            error(path +
                  ": is the state of an earlier run, and RESTART would not continue from it; give "
                  "STATE_RFILE=" +
                  path + ", or move the file away to start from zero.");
    check_writable_outputs();
}

// All files that this action replaces; empty names of those that it does not.
std::vector<std::string> BabfAction::outputs() const {
    return {state_.path, profile_.path, walkers_ ? walkers_->path() : std::string()};
}

// A run must not learn for hours and lose it because a path is wrong.
void BabfAction::check_writable_outputs() {
    std::string problem;
    if (comm.Get_rank() == 0) {
        try {
            for (const std::string& path : outputs())
                if (!path.empty())
                    check_writable(path);
        } catch (const std::runtime_error& failure) {
            problem = failure.what();
        }
    }
    broadcast_message(problem);
    if (!problem.empty())
        error(problem);
}

// One number for each CV, or none if the keyword is absent.
template <class Number>
std::vector<Number> BabfAction::parse_list(const std::string& key) {
    std::vector<Number> list;
    parseVector(key, list);
    const std::size_t expected = labels_.arguments.size();
    if (!list.empty() && list.size() != expected)
        error(key + " has " + std::to_string(list.size()) + " numbers for the " +
              std::to_string(expected) + (expected == 1 ? " CV" : " CVs") + " of ARG: give " +
              (expected == 1 ? "one." : "one for each."));
    return list;
}

// A positive number of steps, or nothing if the keyword is absent.
std::optional<int> BabfAction::parse_stride(const std::string& key) {
    const int absent = std::numeric_limits<int>::min();
    int stride = absent;
    parse(key, stride);
    if (stride == absent)
        return std::nullopt;
    if (stride < 1)
        refuse_stride(key, stride);
    return stride;
}

void BabfAction::refuse_stride(const std::string& key, int stride) {
    error(key + "=" + std::to_string(stride) + " must be a positive number of steps.");
}

} // namespace plumed_cv
