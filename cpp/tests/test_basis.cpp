// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#include "../core/collective_variable.h"
#include "check.h"
#include "reference.h"

#include <condition_variable>
#include <mutex>
#include <thread>

using namespace plumed_cv;
using test::Random;

namespace {

/// Where members of a team, each in a thread, leave their numbers for the others.
class Table {
  public:
    explicit Table(std::size_t members) : parts_(members) {}

    std::size_t size() const { return parts_.size(); }

    std::vector<double> put(std::size_t rank, std::vector<double> part) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return !complete_; }); // all have taken the last ones
        parts_[rank] = std::move(part);
        if (++present_ == size())
            complete_ = true;
        changed_.notify_all();
        changed_.wait(lock, [&] { return complete_; });
        std::vector<double> all;
        for (const auto& one : parts_)
            all.insert(all.end(), one.begin(), one.end());
        if (--present_ == 0)
            complete_ = false;
        changed_.notify_all();
        return all;
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::vector<double>> parts_;
    std::size_t present_ = 0;
    bool complete_ = false;
};

class Member : public Team {
  public:
    Member(Table& table, std::size_t rank) : table_(table), rank_(rank) {}
    std::size_t size() const override { return table_.size(); }
    std::size_t rank() const override { return rank_; }
    void gather(const double* own, const std::vector<int>& counts, double* all) override {
        const auto gathered = table_.put(rank_, {own, own + counts[rank_]});
        std::copy(gathered.begin(), gathered.end(), all);
    }

  private:
    Table& table_;
    std::size_t rank_;
};

/// All results at one configuration, and the gradients.
std::vector<double> results(CollectiveVariable& cv, const std::vector<double>& positions,
                            const Cell& cell) {
    std::vector<double> masses(cv.atoms(), 3.5);
    cv.set_masses(masses);
    cv.evaluate(positions.data(), 1, cell);
    std::vector<double> all = {cv.deviation(), cv.gradient_norm(), cv.inverse_mass(),
                               cv.largest_deviation()};
    const auto add = [&](const double* gradient) {
        all.insert(all.end(), gradient, gradient + 3 * cv.frame().plane());
        const Cell strain = cv.strain_derivative(gradient);
        all.insert(all.end(), strain.begin(), strain.end());
    };
    for (std::size_t k = 0; k < cv.latent(); ++k) {
        all.push_back(cv.value(k));
        add(cv.gradient(k));
    }
    add(cv.deviation_gradient());
    add(cv.largest_deviation_gradient());
    return all;
}

} // namespace

TEST("processes and threads that divide the work have the results of one") {
    Random random(6);
    const Cell cell = {9, 0, 0, 1.5, 8, 0, -0.9, 2.1, 10};
    for (const std::size_t atoms : {3, 13, 34}) // fewer parts than members, and parts of all sizes
        for (const std::size_t latent : {1, 2}) {
            const auto model =
                test::parse(test::random_model(random, {atoms, 6, {7}, latent}, "tanh", cell));
            auto positions = test::normals(random, 3 * atoms, 0.2);
            for (std::size_t j = 0; j < positions.size(); ++j)
                positions[j] += model.reference_positions[j];
            CollectiveVariable alone(model);
            const auto expected = results(alone, positions, cell);
            for (std::size_t processes = 1; processes <= 5; ++processes)
                for (const std::size_t threads : {1, 3}) {
                    Table table(processes);
                    std::vector<std::vector<double>> found(processes);
                    std::vector<std::thread> members;
                    for (std::size_t rank = 0; rank < processes; ++rank)
                        members.emplace_back([&, rank] {
                            Member member(table, rank);
                            CollectiveVariable cv(model);
                            cv.share(&member);
                            cv.set_threads(threads);
                            found[rank] = results(cv, positions, cell);
                        });
                    for (auto& member : members)
                        member.join();
                    for (std::size_t j = 0; j < expected.size(); ++j)
                        CHECK_CLOSE(found[0][j], expected[j], 1e-12 * (1 + std::abs(expected[j])));
                    for (const auto& other : found)
                        CHECK(other == found[0]); // to the last bit
                }
        }
}

TEST("of positions that are not numbers, nothing is a number on any process") {
    Random random(7);
    const auto model = test::parse(test::random_model(random, {13, 5, {9}, 1}, "tanh", Cell{}));
    auto positions = test::normals(random, 3 * 13, 0.2);
    positions[3 * 2 + 1] = NAN;
    Table table(2);
    std::vector<std::thread> members;
    std::vector<double> found(2);
    for (std::size_t rank = 0; rank < 2; ++rank)
        members.emplace_back([&, rank] {
            Member member(table, rank);
            CollectiveVariable cv(model);
            cv.share(&member);
            cv.evaluate(positions.data(), 1, Cell{});
            found[rank] = cv.value(0) + cv.deviation() + cv.largest_deviation();
        });
    for (auto& member : members)
        member.join();
    CHECK(std::isnan(found[0]));
    CHECK(std::isnan(found[1]));
}
