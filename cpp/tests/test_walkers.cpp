// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "../core/babf_fes.h"
#include "../core/walkers.h"
#include "check.h"

#include <filesystem>
#include <fstream>
#include <random>

using namespace plumed_cv;

namespace {

const BabfLabels labels{{"ae.node-0"}, "eV"};

BabfParameters parameters(double ramp = 0) {
    BabfParameters p;
    p.axes = {Grid{-0.2, 1.2, 70, false}};
    p.kT = 0.0259;
    p.kappa = {BabfParameters::default_kappa(p.axes[0], p.kT)};
    p.ramp = ramp;
    p.tau = BabfParameters::default_tau(ramp);
    return p;
}

/// A folder that is empty at first and gone at the end.
struct Folder {
    std::string path;

    Folder() {
        char name[] = "/tmp/plumed_cv_walkers_XXXXXX";
        path = mkdtemp(name);
    }
    ~Folder() { std::filesystem::remove_all(path); }
};

/// A walker as in the action.
struct Walker {
    Babf babf;
    Walkers walkers;
    std::vector<std::string> warnings;

    Walker(const BabfParameters& p, const Folder& folder, std::size_t number, std::size_t id)
        : babf(p), walkers(folder.path, number, id) {}

    void learn(double xi) {
        babf.evaluate(xi);
        babf.update();
    }
    void read() {
        if (walkers.read(babf.parameters(), labels, warnings))
            babf.set_others(walkers.others(babf.parameters()));
    }
    void exchange() {
        walkers.write(babf, labels, LearnedStep{});
        read();
    }
};

std::vector<double> series(unsigned seed, std::size_t length) {
    std::mt19937_64 generator(seed);
    std::uniform_real_distribution<double> uniform(-0.22, 1.22);
    std::vector<double> values;
    for (std::size_t s = 0; s < length; ++s)
        values.push_back(uniform(generator));
    return values;
}

void replace_file(const std::string& path, const std::string& text) {
    std::ofstream(path + ".new") << text;
    std::filesystem::rename(path + ".new", path);
}

std::string text_of(const std::string& path) {
    return OpenFile(path).read(path);
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
    return text.replace(text.find(from), from.size(), to);
}

void check_same_sums(const BabfSums& a, const BabfSums& b, double tolerance) {
    CHECK(a.steps == b.steps);
    for (auto member : {&BabfSums::weight, &BabfSums::force, &BabfSums::count, &BabfSums::offset})
        for (std::size_t j = 0; j < a.nodes(); ++j) {
            const double x = (a.*member).sum[j], y = (b.*member).sum[j];
            CHECK_CLOSE(x, y, tolerance * (1 + std::abs(y)));
        }
}

} // namespace

TEST("walkers with a constant bias have the sums of one run with all samples") {
    const Folder folder;
    auto p = parameters();
    p.tau = INFINITY;
    p.prior.assign(p.nodes(), 0.2);
    const std::size_t number = 3;
    std::vector<Walker> walkers;
    Babf one(p);
    for (std::size_t id = 0; id < number; ++id)
        walkers.emplace_back(p, folder, number, id);
    for (unsigned s = 0; s < 300; ++s)
        for (std::size_t id = 0; id < number; ++id) {
            const double xi = series(unsigned(id), 300)[s];
            walkers[id].learn(xi);
            one.evaluate(xi);
            one.update();
            if (s % 7 == id)
                walkers[id].exchange();
        }
    for (auto& walker : walkers)
        walker.exchange();
    for (auto& walker : walkers) {
        walker.read();
        BabfSums all = walker.babf.sums();
        all.add(walker.walkers.others(p));
        check_same_sums(all, one.sums(), 1e-13);
        CHECK(walker.babf.steps() == 900);
        const auto profile = walker.babf.profile(), expected = one.profile();
        for (std::size_t j = 0; j < p.nodes(); ++j)
            CHECK_CLOSE(profile.corrected[j], expected.corrected[j], 1e-11);
        CHECK(walker.warnings.empty());
    }
}

TEST("samples of other walkers bias like own samples") {
    const Folder folder;
    const auto p = parameters();
    Walker a(p, folder, 2, 0), b(p, folder, 2, 1);
    Babf one(p);
    for (double xi : series(1, 200))
        a.learn(xi);
    a.walkers.write(a.babf, labels, LearnedStep{});
    b.learn(0.3);
    b.read();
    one.evaluate(0.3);
    one.update();
    one.merge(a.babf.sums());
    for (double xi : {-0.3, 0.0, 0.31, 0.9}) {
        CHECK_CLOSE(b.babf.evaluate(xi).bias, one.evaluate(xi).bias, 1e-13);
        CHECK_CLOSE(b.babf.evaluate(xi).force[0], one.evaluate(xi).force[0], 1e-11);
    }
    // The integration during the run includes them: bias and sums equal a new evaluation.
    for (double xi : series(2, 100)) {
        b.learn(xi);
        one.evaluate(xi);
        one.update();
    }
    for (double xi : {-0.3, 0.0, 0.31, 0.9})
        CHECK_CLOSE(b.babf.evaluate(xi).bias, one.evaluate(xi).bias, 1e-12);
    CHECK(b.babf.sums().steps == 101);
}

TEST("one walker equals a run without walkers, to the last bit") {
    const Folder folder;
    const auto p = parameters(40);
    Walker walker(p, folder, 1, 0);
    Babf alone(p);
    for (double xi : series(5, 200)) {
        walker.learn(xi);
        walker.exchange();
        alone.evaluate(xi);
        alone.update();
    }
    CHECK(format_table(state_table(walker.babf, labels)) ==
          format_table(state_table(alone, labels)));
    CHECK(walker.babf.energy() == alone.energy());
    CHECK(format_table(profile_table(walker.babf, labels)) ==
          format_table(profile_table(alone, labels)));
}

TEST("a contribution replaces the one before") {
    const Folder folder;
    const auto p = parameters();
    Walker a(p, folder, 2, 0), b(p, folder, 2, 1);
    for (double xi : series(1, 50)) {
        a.learn(xi);
        a.walkers.write(a.babf, labels, LearnedStep{});
        b.read();
        b.read();
    }
    check_same_sums(b.walkers.others(p), a.babf.sums(), 0);
    // Also by an earlier state, of a walker that was started again from there.
    Walker again(p, folder, 2, 0);
    again.learn(0.4);
    again.walkers.write(again.babf, labels, LearnedStep{});
    b.read();
    check_same_sums(b.walkers.others(p), again.babf.sums(), 0);
}

TEST("the ramp counts the samples of all walkers") {
    const Folder folder;
    const auto p = parameters(1000);
    Walker a(p, folder, 2, 0), b(p, folder, 2, 1);
    for (int s = 0; s < 400; ++s)
        a.learn(0.5);
    a.exchange();
    b.read();
    b.learn(0.5);
    double weight = 0;
    for (double w : b.babf.sums().weight.sum)
        weight += w;
    CHECK_CLOSE(weight, 401 / 1000.0, 1e-14);
}

TEST("a damaged file is ignored with one sentence, and its last good version is used") {
    const Folder folder;
    const auto p = parameters();
    Walker a(p, folder, 3, 0), b(p, folder, 3, 1);
    a.read(); // nobody has written yet
    CHECK(a.warnings.empty() && a.walkers.contributors() == 0);
    for (double xi : series(1, 100))
        b.learn(xi);
    b.exchange();
    a.exchange();
    CHECK(a.walkers.contributors() == 1 && a.warnings.empty());
    const std::string path = b.walkers.path(), good = text_of(path);
    const BabfSums before = a.walkers.others(p);
    const std::size_t row = good.rfind("\n ", good.size() - 2) + 2;
    const std::size_t word = good.find(' ', row) + 1, end = good.find(' ', word);
    const auto with_number = [&](const char* number) {
        return good.substr(0, word) + number + good.substr(end);
    };
    const std::vector<std::pair<std::string, std::string>> damages = {
        {"", "no '#! FIELDS'"},
        {"\x7f"
         "ELF\n",
         "no '#! FIELDS'"},
        {good.substr(0, good.size() / 2), "state: "},
        {good.substr(0, good.rfind("\n ") + 1), "rows"},
        {with_number("NAN"), "row 71"},
        {with_number("1e300"), "weigh more than its 100 steps"},
        {with_number("-1"), "row 71"},
        {replaced(good, "steps 100", "steps 10"), "weigh more than its 10 steps"},
        {replaced(good, "kT 0.02", "kT 0.03"), "has kT="},
        {replaced(good, "nbins_ae.node-0 70", "nbins_ae.node-0 71"), "has nbins_"},
        {replaced(good, "ae.node-0 w", "phi w"), "of the CV 'phi'"},
        {replaced(good, "walker 1", "walker 2"), "no contribution of walker 1"},
        {replaced(good, "#! SET walker 1\n", ""), "no contribution of walker 1"},
    };
    for (const auto& [damage, sentence] : damages) {
        a.warnings.clear();
        for (int k = 0; k < 3; ++k) { // a new version every time
            replace_file(path, damage);
            a.exchange();
        }
        CHECK(a.warnings.size() == 1);
        CHECK(a.warnings.at(0).find(sentence) != std::string::npos);
        CHECK(a.warnings.at(0).find(path) == 0);
        check_same_sums(a.walkers.others(p), before, 0);
        replace_file(path, good);
        a.exchange();
        check_same_sums(a.walkers.others(p), before, 0);
    }
    std::filesystem::remove(path); // a walker that is gone leaves what it had contributed
    a.exchange();
    check_same_sums(a.walkers.others(p), before, 0);
    CHECK(a.walkers.contributors() == 1);
}

TEST("random damage of a contribution never makes the bias invalid") {
    const Folder folder;
    const auto p = parameters();
    Walker a(p, folder, 2, 0), b(p, folder, 2, 1);
    for (double xi : series(1, 100))
        b.learn(xi);
    b.exchange();
    const std::string good = text_of(b.walkers.path());
    std::mt19937_64 generator(13);
    for (int i = 0; i < 1000; ++i) {
        std::string damaged = good;
        for (int k = 0; k < 3; ++k)
            damaged[generator() % damaged.size()] = char(generator());
        replace_file(b.walkers.path(), damaged);
        a.read();
        // No force is stronger than the spring at its longest.
        const auto now = a.babf.evaluate(0.4);
        CHECK(std::isfinite(now.bias) && std::abs(now.force[0]) < 1.5 * p.kappa[0]);
    }
}

TEST("two processes with the same number are distinguished") {
    const Folder folder;
    const auto p = parameters();
    Walker first(p, folder, 2, 0), second(p, folder, 2, 0);
    first.learn(0.5);
    second.learn(0.6);
    first.exchange();
    first.exchange();
    second.exchange(); // as a walker that is started again
    second.exchange();
    CHECK_THROWS(first.exchange(), "another run or action writes it");
    std::filesystem::remove(second.walkers.path());
    second.exchange(); // a file that was removed is no other process
    replace_file(second.walkers.path(), "garbage");
    second.exchange();
    CHECK_THROWS(Walker(p, folder, 2, 0).babf.set_others(BabfSums(3)), "another grid");
}

TEST("a file that is not regular does not block, and is tried again") {
    const Folder folder;
    const auto p = parameters();
    Walker one(p, folder, 3, 0), two(p, folder, 3, 1);
    two.learn(0.5);
    CHECK(::mkfifo(two.walkers.path().c_str(), 0600) == 0);
    std::filesystem::create_directory(one.walkers.path(2));
    one.read();
    one.read();
    CHECK(one.warnings.size() == 2);
    CHECK(one.warnings[0].find("not a regular file") != std::string::npos);
    two.walkers.write(two.babf, labels, LearnedStep{}); // in the place of the pipe
    one.read();
    CHECK(one.babf.steps() == 1);
}

TEST("a link in the shared folder is replaced and not followed") {
    const Folder folder;
    Walker one(parameters(), folder, 1, 0);
    const std::string precious = folder.path + "/precious";
    std::ofstream(precious) << "mine\n";
    std::filesystem::create_symlink(precious, one.walkers.path());
    std::filesystem::create_symlink(precious, one.walkers.path() + ".tmp");
    one.learn(0.5);
    one.walkers.write(one.babf, labels, LearnedStep{});
    CHECK(text_of(precious) == "mine\n");
    CHECK(!std::filesystem::is_symlink(one.walkers.path()));
    CHECK(read_table(one.walkers.path()).constant("walker") != nullptr);
}

TEST("contributions with a number above the number of walkers are named") {
    const Folder folder;
    for (std::size_t id : {0, 2, 12}) {
        Walker walker(parameters(), folder, 13, id);
        walker.learn(0.5);
        walker.walkers.write(walker.babf, labels, LearnedStep{});
    }
    std::ofstream(folder.path + "/walker-x.state") << "no number\n";
    const Walker now(parameters(), folder, 2, 0);
    CHECK((now.walkers.left_out() == std::vector<std::string>{folder.path + "/walker-12.state",
                                                              folder.path + "/walker-2.state"}));
    CHECK(Walker(parameters(), folder, 13, 0).walkers.left_out().empty());
}

TEST("a missing folder is reported") {
    const auto p = parameters();
    Walkers walkers("no/such/folder", 2, 0);
    std::vector<std::string> warnings;
    CHECK(!walkers.read(p, labels, warnings) && warnings.empty());
    CHECK_THROWS(walkers.write(Babf(p), labels, LearnedStep{}),
                 "no/such/folder/walker-0.state: cannot be");
}
