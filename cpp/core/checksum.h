// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

namespace plumed_cv {

/// CRC-32 as in zlib and Python's `zlib.crc32`, in hexadecimal. It detects any damage within 32
/// bits, and all but one in four billion of other damages.
class Checksum {
  public:
    void add(const char* data, std::size_t size) {
        static const std::array<std::uint32_t, 256> table = make_table();
        for (std::size_t i = 0; i < size; ++i)
            state_ = table[(state_ ^ static_cast<unsigned char>(data[i])) & 255] ^ state_ >> 8;
    }
    void add(const std::string& text) { add(text.data(), text.size()); }

    std::string text() const {
        char digits[9];
        std::snprintf(digits, sizeof digits, "%08x", static_cast<unsigned>(~state_));
        return digits;
    }

  private:
    static std::array<std::uint32_t, 256> make_table() {
        std::array<std::uint32_t, 256> table{};
        for (std::uint32_t i = 0; i < 256; ++i) {
            std::uint32_t remainder = i;
            for (int bit = 0; bit < 8; ++bit)
                remainder = remainder >> 1 ^ (remainder & 1 ? 0xedb88320u : 0u);
            table[i] = remainder;
        }
        return table;
    }

    std::uint32_t state_ = 0xffffffffu;
};

} // namespace plumed_cv
