// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

// Whether the plugin is loaded in the PLUMED for which it was built. In another build, even of the
// same version, classes may have another layout in memory, and numbers may be wrong.

#include "core/ActionRegister.h"

#include <dlfcn.h>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>

namespace plumed_cv {

/// Throws a std::runtime_error if the kernel in this process is not the one that was linked.
///
/// An action calls it when it declares its keywords, before any object of it exists. The dynamic
/// linker identifies a library by its name, so a kernel that is already loaded is used in place of
/// the one in our rpath. Kernels are compared by their size in bytes, so that they can be moved or
/// copied.
inline void check_kernel() {
    Dl_info loaded;
    if (dladdr(reinterpret_cast<void*>(&PLMD::actionRegister), &loaded) == 0 ||
        loaded.dli_fname == nullptr)
        return;
    std::error_code unknown;
    const auto size = std::filesystem::file_size(loaded.dli_fname, unknown);
    if (unknown || size == PLUMED_CV_KERNEL_SIZE)
        return;
    const std::string kernel = loaded.dli_fname;
    throw std::runtime_error("this plugin was built for the PLUMED kernel " PLUMED_CV_KERNEL
                             " and is loaded in another, " +
                             kernel + ": LOAD the one that `PLUMED_KERNEL=" + kernel +
                             " plumed-cv plugin` prints.");
}

} // namespace plumed_cv
