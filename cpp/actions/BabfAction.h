// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include "../core/babf_state.h"
#include "../core/paths.h"
#include "../core/walkers.h"
#include "compat.h"

#include "bias/Bias.h"

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace plumed_cv {

/// The bias BABF. Babf.cpp has its manual, keywords and constructor; BabfInput.cpp reads the
/// keywords, BabfFiles.cpp the files, BabfLog.cpp describes the run, BabfStep.cpp does one step, and
/// BabfWalkers.cpp the exchange between walkers.
class BabfAction : public compat::Compat<PLMD::bias::Bias> {
  public:
    explicit BabfAction(const PLMD::ActionOptions&);
    ~BabfAction() override;
    static void registerKeywords(PLMD::Keywords& keys);
    bool onStep() const override;
    void calculate() override;
    void apply() override;
    void beforeUpdate() override;
    void update() override;

  private:
    // A file that is written at checkpoints, at the end, and every `stride` learned steps.
    struct Output {
        std::string path;
        int stride = 0; // 0: only at checkpoints and at the end
        bool due(double steps) const {
            return stride > 0 && static_cast<long long>(steps) % stride == 0;
        }
    };

    // The parts of the constructor in their order: keywords (BabfInput.cpp) ...
    void read_cvs();
    BabfParameters parse_parameters();
    void parse_extra_bias();
    void parse_files();
    void parse_walkers(std::size_t nodes);
    void check_outputs();
    std::vector<std::string> outputs() const;
    void check_writable_outputs();
    // ... the estimator and its files (BabfFiles.cpp, BabfStep.cpp, BabfWalkers.cpp) ...
    void make_estimator(BabfParameters parameters);
    void add_zeta();
    void back_up_outputs();
    void join_walkers();
    // ... and the log (BabfLog.cpp)
    void describe();
    void describe_bias();
    void describe_start();
    void describe_output(const Output& output, const std::string& content);
    void describe_walkers();

    // Keywords (BabfInput.cpp)
    void check_is_scalar(const PLMD::Value& value);
    std::string energy_unit();
    std::string length_unit();
    double parse_kT();
    std::vector<Grid> parse_axes();
    std::size_t parse_bins(std::size_t d, double length, const std::vector<int>& bins,
                           const std::vector<double>& spacings);
    void take_domain(Grid& grid, std::size_t d);
    double parse_tau(double ramp);
    Output parse_output(const std::string& file, const std::string& stride);
    void parse_walkers_of_folder(std::size_t nodes, int stride);
    template <class Number>
    std::vector<Number> parse_list(const std::string& key);
    std::optional<int> parse_stride(const std::string& key);
    void refuse_stride(const std::string& key, int stride);

    // Files (BabfFiles.cpp)
    std::string input_path(const std::string& path) const;
    std::string output_path(const std::string& path) const;
    void read_state(BabfParameters parameters);
    void back_up(const std::string& path);
    void write(bool state, bool profile);
    void write_state();
    void write_profile();
    template <class Work>
    void try_at_the_end(Work work);
    void warn_if_not_converged();
    void warn_from_one_process(const std::string& text);

    // A step (BabfStep.cpp)
    void check_start(std::size_t d, double xi);
    std::optional<double> weight_of_extra_bias();
    void write_outputs(bool state, bool profile);
    void write_at_checkpoint();

    // Walkers (BabfWalkers.cpp)
    void check_replicas();
    void exchange(bool write);
    bool exchange_at_the_end();
    void exchange_by_mpi(bool at_once);
    void broadcast_message(std::string& message);

    BabfLabels labels_;
    std::vector<PLMD::Value*> extra_bias_, zeta_;
    std::optional<int> solve_stride_;
    int pace_ = 1;

    std::string prior_, restart_; // files to read
    bool state_is_new_ = false;   // STATE_RFILE is STATE_WFILE, which does not exist yet
    Output state_, profile_;
    std::string format_; // of the numbers in FES_FILE
    bool stores_states_ = false;
    bool writes_ = false;      // true on one process of a parallel engine
    bool warned_ = false;      // that the free energies did not converge
    double written_steps_ = 0; // learned steps in the files

    mutable bool asked_for_checkpoint_ = false; // whether the engine asked in the last step
    mutable long long checkpoint_ = -1;         // the step of a checkpoint without files yet

    std::optional<Babf> babf_;
    bool has_computed_ = false; // whether a step has been computed
    LearnedStep learned_;       // the last step that was learned
    bool is_the_last_ = true;   // whether the engine has computed no other step since
    bool repeated_ = false;     // whether the engine computes the last learned step again
    bool warned_of_extra_bias_ = false;

    std::optional<Walkers> walkers_;
    bool walkers_mpi_ = false;
    int walkers_stride_ = 0;
    bool exchanged_ = false;         // whether there was an exchange since the start
    bool cannot_contribute_ = false; // whether the log says that the own file cannot be written
};

} // namespace plumed_cv
