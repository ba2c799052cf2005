// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// Model files, read and used as AUTOENCODER does.

#include "../../core/collective_variable.h"
#include "fuzz.h"

using namespace plumed_cv;

namespace {

void repair(std::string& bytes) {
    static const std::string key = "\"checksum\":\"";
    const std::size_t begin = bytes.find(key);
    if (begin == std::string::npos)
        return;
    try {
        const std::string checksum = Safetensors("cv", bytes).checksum();
        bytes.replace(begin + key.size(), checksum.size(), checksum);
    } catch (const ModelError&) { // not even a file of arrays
    }
}

} // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
    const std::string bytes(reinterpret_cast<const char*>(data), size);
    return fuzz::mutate(data, size, most, seed, std::min(bytes.find("}}"), size) + 2, repair);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::attempt([&] {
        const Model model(Safetensors("cv", {reinterpret_cast<const char*>(data), size}));
        CollectiveVariable cv(model);
        cv.set_masses(std::vector<double>(cv.atoms(), 2));
        cv.evaluate(model.reference_positions.data(), 1, model.reference_cell);
        cv.inverse_mass();
        for (std::size_t k = 0; k < cv.latent(); ++k)
            cv.strain_derivative(cv.gradient(k));
    });
    return 0;
}
