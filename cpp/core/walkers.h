// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "babf_state.h"
#include "textfile.h"

namespace plumed_cv {

/// A file opened for reading. On a network file system the attributes of an open file come from the
/// server, while those by name may be minutes old. Opening a pipe of this name does not wait for a
/// writer.
class OpenFile {
  public:
    explicit OpenFile(const std::string& path)
        : file_(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {}
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;
    ~OpenFile() {
        if (file_ >= 0)
            ::close(file_);
    }

    /// Distinguishes versions of a file: each one is a new file. Empty if there is no file.
    using Version = std::vector<long long>;
    Version version() const {
        struct stat status;
        if (file_ < 0 || ::fstat(file_, &status) != 0)
            return {};
#ifdef __APPLE__
        const timespec& changed = status.st_mtimespec;
#else
        const timespec& changed = status.st_mtim;
#endif
        return {static_cast<long long>(status.st_ino), static_cast<long long>(status.st_size),
                static_cast<long long>(changed.tv_sec), static_cast<long long>(changed.tv_nsec)};
    }

    /// `name` is the file's, for the message.
    std::string read(const std::string& name) const {
        struct stat status;
        if (::fstat(file_, &status) == 0 && !S_ISREG(status.st_mode))
            throw std::runtime_error(name + ": cannot be read: it is not a regular file.");
        std::string text;
        char part[1 << 16];
        ssize_t length;
        while ((length = ::read(file_, part, sizeof part)) != 0) {
            if (length > 0)
                text.append(part, static_cast<std::size_t>(length));
            else if (errno != EINTR)
                throw std::runtime_error(name + ": cannot be read: " + std::strerror(errno) + ".");
        }
        return text;
    }

  private:
    int file_;
};

/// The number of the walker to which a contribution file belongs; -1 for other files.
inline long long walker_of(const Table& table) {
    const std::string* text = table.constant("walker");
    double number;
    if (!text || !to_number(*text, number) || !(number >= 0 && number < 1e9))
        return -1;
    return static_cast<long long>(number);
}

/// One of several runs, the walkers, that learn one estimate together. Each walker has its own sums
/// and publishes them in its own file in a shared folder. A new version replaces the previous one
/// as a whole, in the folder and in the sums of the others. Therefore nothing is counted twice, and
/// the last contribution of a walker that is late or has stopped remains valid.
class Walkers {
  public:
    Walkers(std::string folder, std::size_t number, std::size_t id)
        : folder_(std::move(folder)), id_(id), contributions_(number) {
        std::random_device random; // one number may be the same in two processes
        for (int i = 0; i < 4; ++i)
            writer_ += (i ? "-" : std::to_string(::getpid()) + "-") + std::to_string(random());
    }

    std::string path(std::size_t id) const {
        return folder_ + "/walker-" + std::to_string(id) + ".state";
    }
    std::string path() const { return path(id_); }

    /// Steps between two exchanges. For a small system, writing and reading the files then takes a
    /// few per cent of the time of the steps.
    static int default_stride(std::size_t number, std::size_t nodes) {
        return static_cast<int>(std::max({std::size_t{1000}, 20 * number, nodes}));
    }

    /// Reads the files that have changed; returns whether one of them gave new sums. A file that no
    /// walker of this estimate has written is ignored, with one sentence in `warnings`, until it
    /// is valid again.
    bool read(const BabfParameters& expected, const BabfLabels& labels,
              std::vector<std::string>& warnings) {
        bool changed = false;
        for (std::size_t id = 0; id < contributions_.size(); ++id) {
            if (id == id_)
                continue;
            Contribution& contribution = contributions_[id];
            const OpenFile file(path(id));
            const OpenFile::Version version = file.version();
            if (version.empty() || version == contribution.version)
                continue;
            try {
                contribution.version.clear(); // a file that cannot be read is tried again
                const std::string text = file.read(path(id));
                contribution.version = version;
                const Table table = parse_table(text, path(id));
                if (walker_of(table) != static_cast<long long>(id))
                    throw std::runtime_error(path(id) + ": is no contribution of walker " +
                                             std::to_string(id) + ".");
                contribution.sums = read_sums(table, expected, labels, path(id));
                contribution.reported = false;
                changed = true;
            } catch (const std::runtime_error& problem) {
                if (!contribution.reported)
                    warnings.push_back(std::string(problem.what()) + " It is ignored; " +
                                       (contribution.sums
                                            ? "what this walker contributed before stays."
                                            : "this walker has contributed nothing yet."));
                contribution.reported = true;
            }
        }
        return changed;
    }

    /// The sum of the contributions of all others, always added in the same order: the same files
    /// give the same bits, whatever was read before.
    BabfSums others(const BabfParameters& expected) const {
        BabfSums sums(expected.nodes(), expected.axes.size());
        for (const Contribution& contribution : contributions_)
            if (contribution.sums)
                sums.add(*contribution.sums);
        return sums;
    }

    /// Contributions in the folder that no walker reads because their number is too high.
    std::vector<std::string> left_out() const {
        std::vector<std::string> names;
        std::error_code unknown;
        for (const auto& entry : std::filesystem::directory_iterator(folder_, unknown)) {
            const std::string name = entry.path().filename().string(), head = "walker-",
                              tail = ".state";
            if (name.size() <= head.size() + tail.size() || name.rfind(head, 0) != 0 ||
                name.substr(name.size() - tail.size()) != tail)
                continue;
            double id;
            if (to_number(name.substr(head.size(), name.size() - head.size() - tail.size()), id) &&
                id >= static_cast<double>(contributions_.size()))
                names.push_back(entry.path().string());
        }
        std::sort(names.begin(), names.end());
        return names;
    }

    std::size_t contributors() const {
        std::size_t number = 0;
        for (const Contribution& contribution : contributions_)
            number += contribution.sums.has_value();
        return number;
    }

    /// Replaces the contribution of this walker. Throws `SameWalker` if another process has written
    /// it in the meantime, and std::runtime_error if the file cannot be written.
    struct SameWalker : std::runtime_error {
        using std::runtime_error::runtime_error;
    };
    void write(const Babf& babf, const BabfLabels& labels, const LearnedStep& last) {
        if (!written_.empty()) {
            const OpenFile file(path());
            const OpenFile::Version version = file.version();
            if (!version.empty() && version != written_ && is_of_another(file))
                throw SameWalker(path() +
                                 ": another run or action writes it, too; give each walker a "
                                 "WALKERS_ID of its own and each estimate a folder, and "
                                 "end a walker before it is started again.");
        }
        Table table = state_table(babf, labels, last);
        table.constants.emplace_back("walker", std::to_string(id_));
        table.constants.emplace_back("writer", writer_);
        // If the machine fails, this version may be lost, and the next one replaces it.
        write_table(path(), table, true);
        written_ = OpenFile(path()).version();
    }

  private:
    struct Contribution {
        OpenFile::Version version; // the last one that was read, valid or not
        std::optional<BabfSums> sums;
        bool reported = false; // whether a warning was given since its last good version
    };

    bool is_of_another(const OpenFile& file) const {
        try {
            const Table table = parse_table(file.read(path()), path());
            const std::string* writer = table.constant("writer");
            return writer && *writer != writer_;
        } catch (const std::runtime_error&) {
            return false; // a damaged file is replaced
        }
    }

    std::string folder_, writer_;
    std::size_t id_;
    std::vector<Contribution> contributions_;
    OpenFile::Version written_;
};

} // namespace plumed_cv
