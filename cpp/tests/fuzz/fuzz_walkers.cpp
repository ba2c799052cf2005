// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// Contributions of walkers: another's, which is read, and this one's own, which is looked at before
// it is replaced. In files, as the walkers have them.

#include "../../core/walkers.h"
#include "fuzz_table.h"

#include <filesystem>
#include <fstream>

using namespace plumed_cv;

namespace {

/// A folder that is removed at the end.
struct Folder {
    std::string path = (std::filesystem::temp_directory_path() / "walkers-XXXXXX").string();
    Folder() { fuzz::require(::mkdtemp(path.data()), "a folder can be made"); }
    ~Folder() { std::filesystem::remove_all(path); }
};

void replace(const std::string& path, const std::string& text) {
    std::ofstream(path + ".tmp", std::ios::binary) << text;
    std::filesystem::rename(path + ".tmp", path);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Babf estimators[] = {test::learned(1), test::learned(2)};
    static const Folder folder;
    const std::string text(reinterpret_cast<const char*>(data), size);
    for (const Babf& estimator : estimators)
        fuzz::attempt([&] {
            Walkers walkers(folder.path, 2, 0);
            replace(walkers.path(1), text);
            std::vector<std::string> warnings;
            if (!walkers.read(estimator.parameters(), test::labels(estimator.dimensions()),
                              warnings)) {
                fuzz::require(warnings.size() == 1, "a file that is not read gives one warning");
                throw std::runtime_error(warnings[0]);
            }
            Babf babf = estimator;
            babf.set_others(walkers.others(estimator.parameters()));
            fuzz::require_bias(babf);
        });

    static Walkers owner(folder.path, 2, 0);
    replace(owner.path(), text);
    try {
        owner.write(estimators[0], test::labels(1), {});
    } catch (const Walkers::SameWalker&) {
    }
    return 0;
}
