// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// Damaged files for all readers: models, states of one and two CVs, walkers' contributions and
// profiles as priors. Each is cut at every length, then spoilt at random places. A reader refuses
// with one sentence or reads; what it has read after damage in one place is what was written. The
// sanitizers see the rest. PLUMED_CV_FUZZ_CASES sets the number of cases, which is printed.

#include "../core/collective_variable.h"
#include "../core/walkers.h"
#include "check.h"
#include "damage.h"

#include <cstdlib>

using namespace plumed_cv;
using test::Random;

namespace {

std::size_t number_of_cases() {
    const char* text = std::getenv("PLUMED_CV_FUZZ_CASES");
    return text ? std::strtoul(text, nullptr, 10) : 50'000;
}

struct Count {
    std::size_t cases = 0, read = 0, refused = 0, wrong = 0;
};

/// Whether the reader reads `bytes` (and with the right numbers, which it returns), or refuses.
template <class Read>
void attempt(const char* name, const std::string& bytes, bool in_one_place, Read&& read,
             Count& count) {
    ++count.cases;
    try {
        const bool right = read(bytes);
        ++count.read;
        count.wrong += !right && in_one_place;
    } catch (const std::runtime_error& error) { // anything else ends the test
        ++count.refused;
        const std::string what = error.what();
        test::check(test::is_sentence(what), name, 0, "no sentence: " + what);
    }
}

template <class Read>
void fuzz(const char* name, const std::string& bytes, std::size_t header, std::size_t cases,
          Read&& read) {
    Random random(7);
    Count count;
    CHECK(read(bytes));
    for (std::size_t size = 0; size < bytes.size(); ++size)
        attempt(name, bytes.substr(0, size), true, read, count);
    CHECK(count.read == 0);
    while (count.cases < std::max(cases, bytes.size())) {
        std::string damaged = bytes;
        const std::size_t edits = test::below(random, 2) ? 1 : 1 + test::below(random, 4);
        for (std::size_t i = 0; i < edits; ++i)
            test::spoil(random, damaged, header);
        attempt(name, damaged, edits == 1, read, count);
    }
    std::printf("%s: %zu cases, %zu read, %zu refused\n", name, count.cases, count.read,
                count.refused);
    if (count.wrong > 0)
        std::printf("%s: %zu read with other numbers\n", name, count.wrong);
    CHECK(count.wrong == 0);
    CHECK(count.refused > count.cases / 2);
}

void fuzz_model(const char* name, const std::string& activation, const std::string& alignment,
                std::size_t cases) {
    Random random(1);
    Cell cell{5, 0, 0, 1, 6, 0, 0, 1, 7};
    auto file = test::random_model(random, {4, 3, {3}, 1}, activation, cell);
    file.metadata["alignment"] = alignment;
    file.metadata["checksum"] = Safetensors("cv", file.bytes()).checksum();
    const std::string bytes = file.bytes();
    const auto positions = test::normals(random, 12, 2);
    const auto numbers = [&](const std::string& content) {
        const Model model(Safetensors("cv", content));
        CollectiveVariable cv(model);
        std::vector<double> found(model.serials.begin(), model.serials.end());
        if (cv.atoms() != 4)
            return found;
        cv.evaluate(positions.data(), 1, cell);
        found.push_back(cv.deviation());
        for (std::size_t k = 0; k < cv.latent(); ++k)
            found.push_back(cv.value(k));
        return found;
    };
    const auto right = numbers(bytes);
    fuzz(name, bytes, bytes.find("}}") + 2, cases, [&](const std::string& content) {
        const auto found = numbers(content);
        bool same = found.size() == right.size();
        for (std::size_t i = 0; same && i < right.size(); ++i)
            same = std::abs(found[i] - right[i]) <= 1e-6 * (1 + std::abs(right[i]));
        return same;
    });
}

void fuzz_state(const char* name, std::size_t dimensions, bool of_walker, std::size_t cases) {
    const Babf babf = test::learned(dimensions);
    const BabfLabels labels = test::labels(dimensions);
    const std::string text = test::state_file(dimensions, of_walker);
    fuzz(name, text, test::header_of_table(text), cases, [&](const std::string& content) {
        const Table found = parse_table(content, "state");
        const LearnedStep last = learned_step(found, labels, babf.parameters(), "state");
        bool right = last.number == 500 && last.is_at(babf.xi(), babf.parameters().axes) &&
                     last.acted->bias == babf.evaluation().bias &&
                     last.acted->force == babf.evaluation().force;
        if (of_walker)
            right &= walker_of(found) == 1;
        const BabfSums sums = read_sums(found, babf.parameters(), labels, "state");
        const Babf again = restored(found, babf.parameters(), labels, "state");
        right &= sums.steps == babf.steps();
        for (auto member :
             {&BabfSums::weight, &BabfSums::force, &BabfSums::count, &BabfSums::offset})
            right &= (sums.*member).sum == (babf.sums().*member).sum &&
                     (sums.*member).rest == (babf.sums().*member).rest;
        // An estimator without prior has none, and a state of it zeros.
        for (double slope : again.parameters().prior)
            right &= slope == 0;
        return right;
    });
}

void fuzz_prior(const char* name, std::size_t dimensions, std::size_t cases) {
    const Babf babf = test::learned(dimensions);
    const BabfLabels labels = test::labels(dimensions);
    const std::string text = test::profile_file(dimensions);
    const auto derivative = [&](const std::string& content) {
        return prior_of(parse_table(content, "fes.dat"), babf.parameters().axes, labels, "fes.dat");
    };
    const auto right = derivative(text);
    fuzz(name, text, test::header_of_table(text), cases,
         [&](const std::string& content) { return derivative(content) == right; });
}

} // namespace

TEST("damaged models") {
    fuzz_model("model", "tanh", "none", number_of_cases() * 3 / 10);
    fuzz_model("model with ReLU", "relu", "none", number_of_cases() / 10);
}

TEST("damaged states") {
    fuzz_state("state", 1, false, number_of_cases() * 2 / 10);
    fuzz_state("state of two CVs", 2, false, number_of_cases() / 10);
    fuzz_state("contribution of a walker", 1, true, number_of_cases() / 10);
}

TEST("damaged profiles") {
    fuzz_prior("profile", 1, number_of_cases() / 10);
    fuzz_prior("profile of two CVs", 2, number_of_cases() / 10);
}
