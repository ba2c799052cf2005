// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#include "../core/collective_variable.h"
#include "check.h"
#include "reference.h"

#include <filesystem>
#include <fstream>
#include <limits>

using namespace plumed_cv;
using test::ModelFile;
using test::Random;

namespace {

ModelFile good() {
    Random random(1);
    return test::random_model(random, {3, 2, {2}, 1}, "tanh", {5, 0, 0, 1, 6, 0, 0, 1, 7});
}

void load(const std::string& bytes) {
    CollectiveVariable(Model(Safetensors("cv", bytes)));
}

void load(const ModelFile& file) {
    load(file.bytes());
}

std::string raw(const std::string& header, std::size_t data = 0) {
    return ModelFile::with_prefix(header) + std::string(data, '\0');
}

} // namespace

TEST("a good file is read, with arrays and metadata of others in it") {
    auto file = good();
    load(file);
    file.arrays["another"] = {{2, 2}, {1, 2, 3, 4}};
    file.metadata["another"] = "one";
    load(file);
}

TEST("bytes that are no safetensors file") {
    for (const std::string& bytes :
         {std::string(), std::string("short"), std::string(8, '\xff'), std::string(100, 'x'),
          raw("[]"), raw("{"), raw("12"), raw(std::string(50000, '[')), raw("{\"\xff\":1}")})
        CHECK_THROWS(load(bytes), "not a safetensors file");
    CHECK_THROWS(load(ModelFile::with_prefix("{}").substr(0, 9)), "truncated");
}

TEST("headers that do not describe the data") {
    const auto tensor = [](const std::string& entry) { return "{\"t\":" + entry + "}"; };
    const std::string offsets = "\"data_offsets\":[0,8]";
    for (const std::string& entry :
         {std::string("1"), std::string("{}"), "{\"dtype\":\"F64\"," + offsets + "}",
          "{\"dtype\":8,\"shape\":[1]," + offsets + "}",
          "{\"dtype\":\"F64\",\"shape\":[-1]," + offsets + "}",
          "{\"dtype\":\"F64\",\"shape\":[1.5]," + offsets + "}",
          "{\"dtype\":\"F64\",\"shape\":1," + offsets + "}",
          std::string("{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8,8]}"),
          std::string("{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[-8,0]}")})
        CHECK_THROWS(load(raw(tensor(entry), 8)), "does not describe its array t");
    const auto f64 = [&](const std::string& shape, const std::string& at) {
        return raw(
            tensor("{\"dtype\":\"F64\",\"shape\":" + shape + ",\"data_offsets\":" + at + "}"), 8);
    };
    CHECK_THROWS(load(f64("[1]", "[8,0]")), "ends before it begins");
    CHECK_THROWS(load(f64("[1]", "[0,16]")), "beyond its end");
    CHECK_THROWS(load(f64("[1]", "[18446744073709551608,18446744073709551615]")), "beyond its end");
    CHECK_THROWS(load(f64("[2]", "[0,8]")), "does not fit its bytes");
    CHECK_THROWS(load(f64("[0]", "[0,0]")), "does not fit its bytes");
    CHECK_THROWS(load(f64("[2305843009213693953]", "[0,8]")), "impossible shape");
    CHECK_THROWS(load(f64("[4294967296,4294967296,1]", "[0,8]")), "impossible shape");
    CHECK_THROWS(load(f64("[]", "[0,8]") + "x"), "belong to no array");
    CHECK_THROWS(load(raw("{\"t\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[8,16]}}", 16)),
                 "leave a gap");
    CHECK_THROWS(load(raw("{\"t\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]},"
                          "\"s\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
                          12)),
                 "overlap");
    CHECK_THROWS(load(raw("{\"t\":{\"dtype\":\"C64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8)),
                 "unknown type");
    CHECK_THROWS(load(raw("{\"__metadata__\":3}")), "not a JSON object");
    CHECK_THROWS(load(raw("{\"__metadata__\":{\"a\":3}}")), "not text");
}

TEST("every truncation is refused") {
    const std::string bytes = good().bytes();
    for (std::size_t size = 0; size < bytes.size(); size += 7)
        CHECK_THROWS(load(bytes.substr(0, size)), "cv: ");
}

TEST("metadata") {
    for (const char* key : {"format", "format_version", "length_unit", "activation", "species"}) {
        auto file = good();
        file.metadata.erase(key);
        CHECK_THROWS(load(file), std::string("no \"") + key);
    }
    const auto with = [](const char* key, const char* value) {
        auto file = good();
        file.metadata[key] = value;
        return file;
    };
    CHECK_THROWS(load(with("format", "pt")), "not a model file of plumed_cv");
    CHECK_THROWS(load(with("format_version", "2")), "format version 2");
    CHECK_THROWS(load(with("length_unit", "nm")), "lengths in nm");
    CHECK_THROWS(load(with("activation", "gelu")), "unknown activation gelu");
    for (const char* species : {"", "Fe", "[\"Fe\"]", "[1,2,3]", "[", "{}"})
        CHECK_THROWS(load(with("species", species)), "species of its 3 atoms");
}

TEST("every array must be there, with its shape, and finite") {
    for (const auto& entry : good().arrays) {
        const std::string& key = entry.first;
        if (key == "end_displacements") // for Python alone
            continue;
        auto file = good();
        file.arrays.erase(key);
        CHECK_THROWS(load(file), "cv: ");
        file = good();
        file.arrays[key].shape.push_back(1);
        CHECK_THROWS(load(file), "cv: ");
        file = good();
        file.arrays[key].shape.back() += 1;
        file.arrays[key].values.resize(file.arrays[key].values.size() * 2);
        CHECK_THROWS(load(file), "cv: ");
        if (key == "serials")
            continue;
        for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
            file = good();
            file.arrays[key].values[0] = bad;
            CHECK_THROWS(load(file), "array " + key + " holds numbers that are not finite");
        }
    }
}

TEST("contents that contradict the assumptions of the formulae") {
    auto file = good();
    file.arrays["serials"].values[1] = 1;
    CHECK_THROWS(load(file), "distinct");
    file.arrays["serials"].values[1] = 0;
    CHECK_THROWS(load(file), "distinct");
    file = good();
    for (double& u : file.arrays["pca_components"].values)
        u *= 1 + 1e-7;
    CHECK_THROWS(load(file), "orthonormal");
    file = good();
    file.arrays["pca_components"] = {{2, 9},
                                     {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}};
    CHECK_THROWS(load(file), "rigid shift");
    file = good();
    file.arrays["latent_scale"].values[0] = 0;
    CHECK_THROWS(load(file), "latent_scale");
    file = good();
    for (std::size_t a = 0; a < 3; ++a)
        file.arrays["reference_cell"].values[6 + a] = file.arrays["reference_cell"].values[a];
    CHECK_THROWS(load(file), "reference_cell: the cell has no volume");
    file = good();
    file.metadata["drift"] = "gone";
    CHECK_THROWS(load(file), "unknown drift gone");
    file = good();
    for (double& h : file.arrays["check_cell"].values)
        h = 0;
    CHECK_THROWS(load(file), "check values");
}

TEST("a change in the ninth digit of any relevant number is found") {
    for (const char* key : {"reference_positions", "pca_mean", "encoder.0.weight", "encoder.0.bias",
                            "encoder.1.weight", "latent_shift", "latent_scale", "check_positions",
                            "check_value", "check_gradient", "check_deviation", "decoder.1.bias"}) {
        auto file = good();
        for (double& value : file.arrays[key].values)
            value += 1e-7 * (1 + std::abs(value)) * (&value - file.arrays[key].values.data() + 1);
        CHECK_THROWS(load(file), "check values");
    }
}

TEST("missing files, and folders") {
    const auto folder = std::filesystem::temp_directory_path();
    CHECK_THROWS(Model::read((folder / "no such model").string()), "does not exist");
    CHECK_THROWS(Model::read(folder.string()), "cannot be read as a file");
    const auto path = folder / "plumed_cv_test_model";
    std::ofstream(path, std::ios::binary) << good().bytes();
    CHECK(Model::read(path.string()).atoms == 3);
    std::filesystem::remove(path);
}

namespace {

/// One to three random edits, in the header or anywhere.
std::string damage(Random& random, std::string bytes, std::size_t header) {
    const auto below = [&](std::size_t n) { return random() % n; };
    const std::string json = "{}[]\",:0123456789-e.tfn\\";
    for (std::size_t edits = 1 + below(3); edits > 0 && bytes.size() > header; --edits) {
        const std::size_t at = below(below(3) ? header : bytes.size());
        switch (below(5)) {
        case 0:
            bytes[at] = static_cast<char>(random());
            break;
        case 1:
            bytes[at] = json[below(json.size())];
            break;
        case 2:
            bytes.insert(at, 1, json[below(json.size())]);
            break;
        case 3:
            bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
            break;
        case 4:
            bytes.erase(at, 1 + below(10));
            break;
        }
    }
    return bytes;
}

/// How many of `trials` damaged files are read; ends the program on anything but a ModelError.
template <class Read>
int survivors(int trials, const std::string& bytes, Read&& read) {
    Random random(42);
    const std::size_t header = bytes.find("}}") + 2;
    int count = 0;
    for (int trial = 0; trial < trials; ++trial) {
        try {
            read(damage(random, bytes, header));
            ++count;
        } catch (const ModelError&) {
        }
    }
    return count;
}

} // namespace

TEST("random bytes are refused") {
    Random random(43);
    for (int trial = 0; trial < 30'000; ++trial) {
        std::string bytes(random() % 200, '\0');
        for (char& c : bytes)
            c = static_cast<char>(random());
        CHECK_THROWS(load(trial % 2 ? ModelFile::with_prefix(bytes) : bytes), "cv: ");
    }
}

TEST("a damaged file is refused, or read where the damage does not matter") {
    ModelFile small;
    small.arrays["a"] = {{2, 2}, {1, 2, 3, 4}};
    small.arrays["b"] = {{1}, {5}};
    small.metadata["key"] = "value";
    const auto read = [](const std::string& bytes) {
        const Safetensors file("cv", bytes);
        if (file.has("a"))
            file.numbers("a", file.shape("a"));
    };
    const int of_reader = survivors(100'000, small.bytes(), read);
    CHECK(of_reader > 0 && of_reader < 50'000);
    const int of_model = survivors(10'000, good().bytes(), [](const auto& b) { load(b); });
    CHECK(of_model > 0 && of_model < 5'000);
}
