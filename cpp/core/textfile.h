// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <clocale>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checksum.h"

namespace plumed_cv {

/// A PLUMED text file: `#! FIELDS` names the columns, `#! SET` gives constants, and rows of numbers
/// follow.
struct Table {
    std::vector<std::string> fields;
    std::vector<std::pair<std::string, std::string>> constants;
    std::vector<std::vector<double>> rows;
    std::size_t rows_between_blanks = 0; // an empty line after every so many, as gnuplot has it
    std::string format;   // of the rows, for people: a printf format; empty: full precision
    bool changed = false; // whether it was read from a file that is not as it was written

    /// For readers that have no other objection; `name` is that of the file.
    void check_unchanged(const std::string& name) const {
        if (changed)
            throw std::runtime_error(name + ": was changed or damaged after it was written, as its "
                                            "checksum shows; take an earlier copy, or remove the "
                                            "line '#! SET checksum' if the change is meant.");
    }

    const std::string* constant(const std::string& name) const {
        for (const auto& [key, value] : constants)
            if (key == name)
                return &value;
        return nullptr;
    }
};

/// Full precision, so that reading gives the same double; NAN is the spelling of PLUMED.
inline std::string to_text(double value) {
    if (std::isnan(value))
        return "NAN";
    char text[32];
#ifdef __cpp_lib_to_chars // the same text, ten times faster and in any locale
    const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::general, 17);
    return std::string(text, end.ptr);
#else
    std::snprintf(text, sizeof text, "%.17g", value);
    return text;
#endif
}

/// Whether a text is a format of printf for one real number.
inline bool is_number_format(const std::string& text) {
    static const char digits[] = "0123456789";
    std::size_t end = text.find_first_not_of("-+ #0", 1);
    if (text[0] != '%' || end == std::string::npos)
        return false;
    end = text.find_first_not_of(digits, end);
    if (end != std::string::npos && text[end] == '.')
        end = text.find_first_not_of(digits, end + 1);
    return end != std::string::npos && end + 1 == text.size() && end < 12 &&
           std::strchr("eEfFgG", text[end]) != nullptr;
}

/// A number as a format of is_number_format() writes it; NAN is the spelling of PLUMED.
inline std::string formatted(double value, const std::string& format) {
    if (format.empty() || std::isnan(value))
        return to_text(value);
    std::string text(static_cast<std::size_t>(std::snprintf(nullptr, 0, format.c_str(), value)),
                     '\0');
    std::snprintf(text.data(), text.size() + 1, format.c_str(), value);
    std::replace(text.begin(), text.end(), *std::localeconv()->decimal_point, '.');
    return text;
}

/// Six digits, for messages and for files with a format.
inline std::string to_short_text(double value) {
    return formatted(value, "%g");
}

/// Returns false unless the whole of [begin, end) is one number.
inline bool to_number(const char* begin, const char* end, double& value) {
#ifdef __cpp_lib_to_chars // several times faster; what it refuses is left to strtod
    const auto parsed = std::from_chars(begin, end, value);
    if (parsed.ec == std::errc() && parsed.ptr == end)
        return true;
#endif
    const std::string text(begin, end);
    char* stop = nullptr;
    value = std::strtod(text.c_str(), &stop);
    return !text.empty() && stop == text.c_str() + text.size();
}

inline bool to_number(const std::string& text, double& value) {
    return to_number(text.data(), text.data() + text.size(), value);
}

/// Checksum of the whole file except for the line, between two positions, with the checksum itself.
inline std::string checksum_around(const std::string& text, std::size_t begin, std::size_t end) {
    Checksum checksum;
    checksum.add(text.data(), begin);
    checksum.add(text.data() + end, text.size() - end);
    return checksum.text();
}

inline std::string format_table(const Table& table) {
    std::string text = "#! FIELDS";
    for (const auto& field : table.fields)
        text += " " + field;
    text += "\n";
    for (const auto& [key, value] : table.constants)
        text += "#! SET " + key + " " + value + "\n";
    const std::size_t header = text.size();
    std::size_t written = 0;
    for (const auto& row : table.rows) {
        if (written > 0 && table.rows_between_blanks > 0 &&
            written % table.rows_between_blanks == 0)
            text += "\n";
        for (double value : row)
            text += " " + formatted(value, table.format);
        text += "\n";
        ++written;
    }
    if (!table.format.empty()) // rounded numbers are for reading, and a checksum would hide
        return text;           // that two of them are the same
    const std::string checksum = checksum_around(text, header, header);
    return text.insert(header, "#! SET checksum " + checksum + "\n");
}

/// The words of a line, one after the other; empty at its end.
struct Words {
    const char* position;
    const char* end;

    std::pair<const char*, const char*> next() {
        const auto blank = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
        const char* const begin = std::find_if_not(position, end, blank);
        position = std::find_if(begin, end, blank);
        return {begin, position};
    }
    std::string text() {
        const auto [begin, stop] = next();
        return {begin, stop};
    }
};

/// `name` is the file name in messages. A file of format_table that was cut off anywhere is either
/// refused here (cut within a line) or has fewer rows than its reader expects.
inline Table parse_table(const std::string& text, const std::string& name) {
    if (!text.empty() && text.back() != '\n')
        throw std::runtime_error(name + ": ends in the middle of a line, so it is not complete; "
                                        "take an earlier copy of it.");
    // A failing disk leaves zeros, which would truncate the messages below.
    const auto is_of_text = [](char c) { return !(c >= 0 && c < ' ') || (c >= '\t' && c <= '\r'); };
    if (!std::all_of(text.begin(), text.end(), is_of_text))
        throw std::runtime_error(name +
                                 ": contains bytes that are not text, so it is damaged or not "
                                 "a PLUMED text file; take an earlier copy of it.");
    const auto fail_without_fields = [&name] {
        throw std::runtime_error(
            name + ": has no '#! FIELDS' line, so it is not a PLUMED text file; give another "
                   "file.");
    };
    Table table;
    const char* next = text.data();
    const char* const last = next + text.size();
    for (std::size_t number = 1; next != last; ++number) {
        const char* const line = next;
        const char* const end = std::find(next, last, '\n');
        Words words{next, end};
        next = end + 1; // the text ends with a newline
        auto [begin, stop] = words.next();
        if (begin == stop)
            continue;
        if (std::string(begin, stop) == "#!") {
            const std::string kind = words.text();
            if (kind == "FIELDS") {
                std::vector<std::string> fields;
                for (std::string word = words.text(); !word.empty(); word = words.text())
                    fields.push_back(word);
                if (!table.rows.empty() && fields != table.fields)
                    throw std::runtime_error(name + ": line " + std::to_string(number) +
                                             " names other columns than those of the rows before "
                                             "it; give a file with one table.");
                table.fields = std::move(fields);
            } else if (kind == "SET") {
                const std::string key = words.text();
                const std::string value = words.text();
                if (key != "checksum")
                    table.constants.emplace_back(key, value);
                else if (value != checksum_around(text,
                                                  static_cast<std::size_t>(line - text.data()),
                                                  static_cast<std::size_t>(next - text.data())))
                    table.changed = true;
            }
            continue;
        }
        if (*begin == '#')
            continue;
        if (table.fields.empty())
            fail_without_fields();
        std::vector<double> row;
        row.reserve(table.fields.size());
        for (; begin != stop; std::tie(begin, stop) = words.next()) {
            double value;
            if (!to_number(begin, stop, value))
                throw std::runtime_error(
                    name + ": line " + std::to_string(number) + " has '" +
                    std::string(begin, stop).substr(0, 40) +
                    "' where a number is expected; use an earlier copy of it.");
            row.push_back(value);
        }
        if (row.size() != table.fields.size())
            throw std::runtime_error(name + ": line " + std::to_string(number) + " has " +
                                     std::to_string(row.size()) + " numbers for the " +
                                     std::to_string(table.fields.size()) +
                                     " names of its '#! FIELDS' line; use an earlier copy of it.");
        table.rows.push_back(std::move(row));
    }
    if (table.fields.empty())
        fail_without_fields();
    return table;
}

inline Table read_table(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file)
        throw std::runtime_error(path + ": is not there or cannot be opened; give the path of an "
                                        "existing file.");
    std::ostringstream text;
    text << file.rdbuf();
    return parse_table(text.str(), path);
}

/// A new file beside `path`, open for writing: its descriptor (-1 if it cannot be made) and its
/// name, which no other process has. An existing file or link is never opened.
inline std::pair<int, std::string> new_file_beside(const std::string& path) {
    static std::atomic<unsigned> count{0};
    std::random_device random;
    for (int attempt = 0;; ++attempt) {
        const std::string name = path + "." + std::to_string(::getpid()) + "-" +
                                 std::to_string(count++) + "-" + std::to_string(random()) + ".tmp";
        const int file =
            ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (file >= 0 || errno != EEXIST || attempt == 100)
            return {file, name};
    }
}

/// Writes a text to an open file; returns whether it was written completely.
inline bool write_all(int file, const std::string& text) {
    for (std::size_t done = 0; done < text.size();) {
        const ssize_t length = ::write(file, text.data() + done, text.size() - done);
        if (length < 0 && errno != EINTR)
            return false;
        if (length > 0)
            done += static_cast<std::size_t>(length);
    }
    return true;
}

[[noreturn]] inline void refuse_unwritable(const std::string& path, int reason) {
    throw std::runtime_error(path + ": cannot be written: " + std::strerror(reason) +
                             "; give a path that can be written to, or make room on the disk.");
}

/// The file that a path leads to if it is a link, and otherwise the path.
inline std::string link_target(const std::string& path) {
    std::error_code unknown;
    if (!std::filesystem::is_symlink(path, unknown))
        return path;
    const std::string target = std::filesystem::weakly_canonical(path, unknown).string();
    if (unknown)
        refuse_unwritable(path, unknown.value());
    return target;
}

/// Throws unless `write_table` can make its new file. A folder or a device is not replaced.
inline void check_writable(const std::string& path) {
    const std::string target = link_target(path);
    std::error_code unknown;
    if (std::filesystem::exists(target, unknown) &&
        !std::filesystem::is_regular_file(target, unknown))
        throw std::runtime_error(path + ": cannot be written: it is a folder or a device; give the "
                                        "path of a file.");
    const auto [file, temporary] = new_file_beside(target);
    if (file < 0)
        refuse_unwritable(path, errno);
    ::close(file);
    std::remove(temporary.c_str());
}

/// Replaces the whole file. A process that reads, or is killed, in between sees the old or the new
/// file. The new file has the mode of the old one. If the path is a link, the file to which it
/// leads is replaced. In a `shared` folder, where anybody may have made the link, the link itself
/// is replaced; and a shared file may be lost if the machine fails, which saves the time of waiting
/// for the disk.
inline void write_table(const std::string& path, const Table& table, bool shared = false) {
    const std::string text = format_table(table);
    const std::string target = shared ? path : link_target(path);
    const auto [file, temporary] = new_file_beside(target);
    if (file < 0)
        refuse_unwritable(path, errno);
    struct stat old;
    const bool keeps_mode = ::lstat(target.c_str(), &old) != 0 || !S_ISREG(old.st_mode) ||
                            ::fchmod(file, old.st_mode & 0777) == 0 || errno == EPERM;
    bool written = keeps_mode && write_all(file, text);
    while (written && !shared && ::fsync(file) != 0)
        written = errno == EINTR;
    const int reason = errno;
    const bool closed = ::close(file) == 0 || errno == EINTR;
    if (!written)
        errno = reason;
    if (!closed || !written || std::rename(temporary.c_str(), target.c_str()) != 0) {
        const int last_reason = errno;
        std::remove(temporary.c_str());
        refuse_unwritable(path, last_reason);
    }
}

} // namespace plumed_cv
