// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

// Whether the plugin is in the PLUMED that it was built for. Another one, even of the same version,
// may lay out its classes in another way: then anything may happen, wrong numbers included.

#include "core/ActionRegister.h"

#include <dlfcn.h>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>

namespace plumed_cv {

/// Throws a std::runtime_error if the kernel in this process is not the one that was linked.
///
/// Called where an action declares its keywords, before anything of it is made. The dynamic linker
/// goes by the library's name alone, so a kernel that is there already takes the place of the one in
/// our rpath. They are told apart by their size in bytes, so that a kernel may be moved or copied.
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
