// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

namespace plumed_cv {

/// Whether a file exists and can be read.
inline bool file_exists(const std::string& path) {
    return static_cast<bool>(std::ifstream(path));
}

/// Whether two names refer to one file; the file need not exist.
inline bool same_file(const std::string& a, const std::string& b) {
    if (a.empty() || b.empty())
        return false;
    const auto real = [](const std::string& path) {
        std::error_code failure;
        const auto found =
            std::filesystem::weakly_canonical(std::filesystem::absolute(path, failure), failure);
        return failure ? std::filesystem::path(path) : found;
    };
    return real(a) == real(b);
}

} // namespace plumed_cv
