// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include "../core/basis.h"

#include "tools/Communicator.h"

#include <cstddef>
#include <vector>

namespace plumed_cv {

/// The processes of an engine as a team; all of them have the positions of all atoms of an action.
class Processes : public Team {
  public:
    explicit Processes(PLMD::Communicator& among)
        : among_(among), size_(static_cast<std::size_t>(among.Get_size())),
          rank_(static_cast<std::size_t>(among.Get_rank())), begins_(size_) {}

    std::size_t size() const override { return size_; }
    std::size_t rank() const override { return rank_; }

    void gather(const double* own, const std::vector<int>& counts, double* all) override {
        for (std::size_t p = 1; p < size_; ++p)
            begins_[p] = begins_[p - 1] + counts[p - 1];
        among_.Allgatherv(own, counts[rank_], all, counts.data(), begins_.data());
    }

  private:
    PLMD::Communicator& among_;
    std::size_t size_, rank_;
    std::vector<int> begins_;
};

} // namespace plumed_cv
