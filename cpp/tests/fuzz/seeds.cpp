// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// Writes whole files for the fuzzers to begin with, into FOLDER/state, FOLDER/profile and
// FOLDER/walkers. Those of models come from Python: python/drills/fuzzers.py calls both.

#include "../damage.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

using namespace plumed_cv;

int main(int count, char** arguments) {
    if (count != 2) {
        std::fprintf(stderr, "usage: seeds FOLDER\n");
        return 1;
    }
    const std::filesystem::path folder(arguments[1]);
    const auto write = [&](const char* kind, std::size_t dimensions, const std::string& text) {
        std::filesystem::create_directories(folder / kind);
        std::ofstream(folder / kind / std::to_string(dimensions), std::ios::binary) << text;
    };
    for (std::size_t dimensions : {1, 2}) {
        write("state", dimensions, test::state_file(dimensions, false));
        write("profile", dimensions, test::profile_file(dimensions));
        write("walkers", dimensions, test::state_file(dimensions, true));
    }
}
