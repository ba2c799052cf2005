// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

// libFuzzer on the readers of files: it keeps what reaches new code and goes on from there. A reader
// refuses with one sentence or reads, and the sanitizers see the rest.

#include "../damage.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace plumed_cv {
namespace fuzz {

/// Numbers of calls, printed at the end.
struct Count {
    unsigned long long read = 0, refused = 0;
    ~Count() { std::fprintf(stderr, "read %llu, refused %llu\n", read, refused); }
};

inline Count count;

/// Calls a reader, which may throw std::runtime_error with a sentence and nothing else.
template <class Read>
void attempt(Read&& read) {
    try {
        read();
        ++count.read;
    } catch (const std::runtime_error& error) {
        ++count.refused;
        if (!test::is_sentence(error.what())) {
            std::fprintf(stderr, "no sentence: %s\n", error.what());
            std::abort();
        }
    }
}

inline void require(bool fulfilled, const char* what) {
    if (!fulfilled) {
        std::fprintf(stderr, "not so: %s\n", what);
        std::abort();
    }
}

/// Damages a file like libFuzzer or with what its format suggests, then lets `repair` make its
/// checksum right, mostly: it would stop all damage at the door.
template <class Repair>
std::size_t mutate(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed,
                   std::size_t header, Repair&& repair) {
    test::Random random(seed);
    if (test::below(random, 2))
        size = LLVMFuzzerMutate(data, size, most);
    std::string bytes(reinterpret_cast<const char*>(data), size);
    for (std::size_t edits = test::below(random, 3); edits > 0; --edits)
        test::spoil(random, bytes, header);
    if (test::below(random, 8))
        repair(bytes);
    bytes.resize(std::min(bytes.size(), most));
    std::copy(bytes.begin(), bytes.end(), data);
    return bytes.size();
}

} // namespace fuzz
} // namespace plumed_cv
