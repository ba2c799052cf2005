// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include "matrix.h"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace plumed_cv {

/// Processes that compute the same at the same positions and can divide the work.
class Team {
  public:
    virtual ~Team() = default;
    virtual std::size_t size() const = 0;
    /// The number of this process, from 0.
    virtual std::size_t rank() const = 0;
    /// Fills `all` with the numbers of all processes in their order, process p with counts[p].
    virtual void gather(const double* own, const std::vector<int>& counts, double* all) = 0;
};

/// The principal components U, row by row, and the two products with them, which take most of the
/// time of a large model.
///
/// Threads and processes divide the columns. Every process has the same results, to the last bit,
/// because the sums of the parts are added in the same order everywhere.
class Basis {
  public:
    Basis(std::size_t components, std::size_t stride)
        : components_(components), stride_(stride), numbers_(components * stride) {
        divide();
    }

    double* row(std::size_t k) { return &numbers_[k * stride_]; }
    const double* row(std::size_t k) const { return &numbers_[k * stride_]; }

    /// Divides the work among processes; null: this process does all. The team must exist as long
    /// as this object.
    void share(Team* team) {
        team_ = team;
        divide();
    }

    /// Divides the work of this process among threads.
    void set_threads(std::size_t threads) {
        threads_ = static_cast<int>(std::max<std::size_t>(threads, 1));
        divide();
    }

    /// x = U v, a number for each component.
    void project(const double* v, double* x) {
        if (is_undivided()) {
            multiply(numbers_.data(), components_, stride_, v, x);
            return;
        }
        in_threads([&](std::size_t begin, std::size_t end, std::size_t t) {
            multiply(&numbers_[begin], components_, stride_, end - begin, v + begin,
                     &sums_[t * padded(components_)]);
        });
        const std::size_t rows = padded(components_);
        for (std::size_t t = 1; t < static_cast<std::size_t>(threads_); ++t)
            for (std::size_t k = 0; k < components_; ++k)
                sums_[k] += sums_[t * rows + k];
        if (team_ == nullptr) {
            std::copy_n(sums_.begin(), components_, x);
            return;
        }
        team_->gather(sums_.data(), sum_counts_, all_sums_.data());
        std::fill_n(x, components_, 0.0);
        for (std::size_t p = 0; p < team_->size(); ++p)
            for (std::size_t k = 0; k < components_; ++k)
                x[k] += all_sums_[p * components_ + k];
    }

    /// Adds U^T c to an array that is the same on all processes.
    void add(const double* c, double* planes) {
        if (is_undivided()) {
            add_transposed(numbers_.data(), components_, stride_, c, planes);
            return;
        }
        in_threads([&](std::size_t begin, std::size_t end, std::size_t) {
            add_transposed(&numbers_[begin], components_, stride_, end - begin, c, planes + begin);
        });
        if (team_ == nullptr)
            return;
        std::copy(planes + first_, planes + last_, part_.begin());
        team_->gather(part_.data(), part_counts_, planes);
    }

  private:
    bool is_undivided() const { return team_ == nullptr && threads_ == 1; }

    /// Where part number k of n parts of the columns from `begin` to `end` begins: at a cache line.
    static std::size_t border(std::size_t begin, std::size_t end, std::size_t k, std::size_t n) {
        return begin + (end - begin) / cache_line * k / n * cache_line;
    }

    void divide() {
        const std::size_t processes = team_ == nullptr ? 1 : team_->size();
        const std::size_t rank = team_ == nullptr ? 0 : team_->rank();
        first_ = border(0, stride_, rank, processes);
        last_ = border(0, stride_, rank + 1, processes);
        sums_.assign(static_cast<std::size_t>(threads_) * padded(components_), 0);
        if (team_ == nullptr)
            return;
        part_.resize(last_ - first_);
        all_sums_.resize(processes * components_);
        sum_counts_.assign(processes, static_cast<int>(components_));
        part_counts_.clear();
        for (std::size_t p = 0; p < processes; ++p)
            part_counts_.push_back(static_cast<int>(border(0, stride_, p + 1, processes) -
                                                    border(0, stride_, p, processes)));
    }

    template <class Work>
    void in_threads(Work work) const {
        const std::size_t n = static_cast<std::size_t>(threads_);
#pragma omp parallel for schedule(static) num_threads(threads_) if (threads_ > 1)
        for (int t = 0; t < threads_; ++t) {
            const auto k = static_cast<std::size_t>(t);
            work(border(first_, last_, k, n), border(first_, last_, k + 1, n), k);
        }
    }

    std::size_t components_, stride_;
    Array numbers_;
    int threads_ = 1;
    Team* team_ = nullptr;
    std::size_t first_ = 0, last_ = 0; // the columns of this process
    Array sums_;                       // of the threads
    Array part_, all_sums_;            // what this process sends, and the sums of all
    std::vector<int> sum_counts_, part_counts_;
};

} // namespace plumed_cv
