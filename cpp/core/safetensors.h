// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checksum.h"
#include "json.h"

namespace plumed_cv {

/// A model file that cannot be used; one sentence with the name of the file and the remedy.
class ModelError : public std::runtime_error {
  public:
    ModelError(const std::string& file, const std::string& what)
        : std::runtime_error(printable(file + ": " + what)) {}

  private:
    /// The names in a damaged file may contain anything.
    static std::string printable(std::string text) {
        std::replace_if(
            text.begin(), text.end(), [](char c) { return c >= 0 && c < ' '; }, '?');
        return text;
    }
};

/// A safetensors file: eight bytes with the length of a JSON header, the header, and the data.
///
/// Nothing in the file is trusted. The header must describe exactly the existing bytes, each once.
/// Values are checked for type, shape and finite numbers when they are read.
class Safetensors {
  public:
    static Safetensors read(const std::string& path) {
        std::error_code missing;
        if (!std::filesystem::exists(path, missing))
            throw ModelError(path, "the model file does not exist; check MODEL and the folder.");
        std::error_code unreadable;
        const auto size = std::filesystem::file_size(path, unreadable);
        std::ifstream file(path, std::ios::binary);
        if (unreadable || !file)
            throw ModelError(path, "cannot be read as a file; check its name and permissions.");
        if (size > max_file)
            throw ModelError(path, "is larger than any model file; check MODEL.");
        std::string bytes(static_cast<std::size_t>(size), '\0');
        if (!file.read(bytes.data(), static_cast<std::streamsize>(bytes.size())))
            throw ModelError(path, "ends before its size; write or copy the file again.");
        return Safetensors(path, std::move(bytes));
    }

    /// Reads the contents of a file; `name` is for messages.
    Safetensors(std::string name, std::string bytes)
        : name_(std::move(name)), bytes_(std::move(bytes)) {
        const Json header = parse_header();
        std::vector<std::pair<std::size_t, std::size_t>> extents;
        for (const auto& [key, entry] : header.members) {
            if (key == "__metadata__") {
                read_metadata(entry);
                continue;
            }
            const Tensor tensor = read_entry(key, entry);
            extents.emplace_back(tensor.begin, tensor.end);
            tensors_.emplace(key, tensor);
        }
        std::sort(extents.begin(), extents.end());
        std::size_t end = 0;
        for (const auto& extent : extents) {
            if (extent.first != end)
                fail("has arrays that overlap or leave a gap; write or copy the file again.");
            end = extent.second;
        }
        if (end != data_size())
            fail(end > data_size() ? "is truncated; write or copy the file again."
                                   : "has bytes that belong to no array; write or copy the file "
                                     "again.");
    }

    const std::string& name() const { return name_; }

    bool has(const std::string& key) const { return tensors_.count(key) > 0; }

    bool has_metadata(const std::string& key) const { return metadata_.count(key) > 0; }

    /// A value of the metadata, or a default if it is missing.
    std::string metadata(const std::string& key, const std::string& otherwise) const {
        const auto found = metadata_.find(key);
        return found == metadata_.end() ? otherwise : found->second;
    }

    /// A value of the metadata; all values are strings.
    const std::string& metadata(const std::string& key) const {
        const auto found = metadata_.find(key);
        if (found == metadata_.end())
            fail("has no \"" + key + "\" in its metadata; export the model again.");
        return found->second;
    }

    const std::vector<std::size_t>& shape(const std::string& key) const { return at(key).shape; }

    std::vector<double> numbers(const std::string& key,
                                const std::vector<std::size_t>& shape) const {
        auto values = values_of<double>(key, "F64", shape);
        if (!std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); }))
            fail("array " + key + " holds numbers that are not finite; export the model again.");
        return values;
    }

    std::vector<std::int64_t> integers(const std::string& key,
                                       const std::vector<std::size_t>& shape) const {
        return values_of<std::int64_t>(key, "I64", shape);
    }

    /// Checksum of all arrays and metadata, by name, without the `checksum` in the metadata.
    std::string checksum() const {
        Checksum sum;
        for (const auto& [key, tensor] : tensors_) {
            sum.add(key + " " + describe(tensor.dtype, tensor.shape) + "\n");
            sum.add(bytes_.data() + prefix + header_size_ + tensor.begin,
                    tensor.end - tensor.begin);
        }
        for (const auto& [key, value] : metadata_)
            if (key != "checksum")
                sum.add(key + " " + value + "\n");
        return sum.text();
    }

    [[noreturn]] void fail(const std::string& what) const { throw ModelError(name_, what); }

  private:
    struct Tensor {
        std::string dtype;
        std::vector<std::size_t> shape;
        std::size_t begin, end;
    };

    static constexpr std::size_t prefix = 8;
    static constexpr std::size_t max_header = 100'000'000; // the format's own limit
    static constexpr std::uintmax_t max_file = 16'000'000'000;

    std::size_t data_size() const { return bytes_.size() - prefix - header_size_; }

    Json parse_header() {
        static const char* foreign = "is not a safetensors file; check MODEL.";
        if (bytes_.size() < prefix)
            fail(foreign);
        std::uint64_t length = 0;
        for (std::size_t i = prefix; i-- > 0;)
            length = length << 8 | static_cast<unsigned char>(bytes_[i]);
        if (length > max_header)
            fail(foreign);
        if (length > bytes_.size() - prefix)
            fail("is truncated or not a safetensors file; write or copy the file again.");
        header_size_ = static_cast<std::size_t>(length);
        const auto header =
            JsonParser(std::string_view(bytes_).substr(prefix, header_size_)).parse();
        if (!header || !header->is(Json::Kind::object))
            fail(foreign);
        return *header;
    }

    void read_metadata(const Json& entry) {
        if (!entry.is(Json::Kind::object))
            fail("has metadata that is not a JSON object; export the model again.");
        for (const auto& [key, value] : entry.members) {
            if (!value.is(Json::Kind::text))
                fail("has metadata that is not text (" + key + "); export the model again.");
            metadata_.emplace(key, value.text);
        }
    }

    Tensor read_entry(const std::string& key, const Json& entry) const {
        const std::string remedy = "; write or copy the file again.";
        const Json *dtype = entry.find("dtype"), *shape = entry.find("shape"),
                   *offsets = entry.find("data_offsets");
        const auto is_list = [](const Json* value) {
            return value != nullptr && value->is(Json::Kind::list) &&
                   std::all_of(value->list.begin(), value->list.end(),
                               [](const Json& element) { return element.is(Json::Kind::whole); });
        };
        if (dtype == nullptr || !dtype->is(Json::Kind::text) || !is_list(shape) ||
            !is_list(offsets) || offsets->list.size() != 2)
            fail("does not describe its array " + key + " as safetensors does" + remedy);

        Tensor tensor{dtype->text, {}, offsets->list[0].whole, offsets->list[1].whole};
        for (const Json& extent : shape->list)
            tensor.shape.push_back(extent.whole);
        if (tensor.begin > tensor.end)
            fail("array " + key + " ends before it begins" + remedy);
        if (tensor.end > data_size())
            fail("is truncated: array " + key + " lies beyond its end" + remedy);
        std::size_t bytes = bytes_per_number(tensor.dtype);
        for (const std::size_t extent : tensor.shape) {
            if (extent != 0 && bytes > std::numeric_limits<std::size_t>::max() / extent)
                fail("array " + key + " has an impossible shape" + remedy);
            bytes *= extent;
        }
        if (bytes == 0 || bytes != tensor.end - tensor.begin)
            fail("array " + key + " has a shape that does not fit its bytes" + remedy);
        return tensor;
    }

    std::size_t bytes_per_number(const std::string& dtype) const {
        static const std::map<std::string, std::size_t> sizes = {
            {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
            {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
            {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
        const auto found = sizes.find(dtype);
        if (found == sizes.end())
            fail("has an array of an unknown type; export the model again.");
        return found->second;
    }

    const Tensor& at(const std::string& key) const {
        const auto found = tensors_.find(key);
        if (found == tensors_.end())
            fail("has no array " + key + "; export the model again.");
        return found->second;
    }

    template <class T>
    std::vector<T> values_of(const std::string& key, const char* dtype,
                             const std::vector<std::size_t>& shape) const {
        const Tensor& tensor = at(key);
        if (tensor.dtype != dtype || tensor.shape != shape)
            fail("array " + key + " is " + describe(tensor.dtype, tensor.shape) + " and not " +
                 describe(dtype, shape) + "; export the model again.");
        std::vector<T> values((tensor.end - tensor.begin) / sizeof(T));
        std::memcpy(values.data(), bytes_.data() + prefix + header_size_ + tensor.begin,
                    values.size() * sizeof(T));
        return values;
    }

    static std::string describe(const std::string& dtype, const std::vector<std::size_t>& shape) {
        std::string text = dtype + "[";
        for (std::size_t i = 0; i < shape.size(); ++i)
            text += (i ? "," : "") + std::to_string(shape[i]);
        return text + "]";
    }

    std::string name_, bytes_;
    std::size_t header_size_ = 0;
    std::map<std::string, Tensor> tensors_;
    std::map<std::string, std::string> metadata_;
};

} // namespace plumed_cv
