// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include "frame.h"
#include "json.h"
#include "network.h"
#include "safetensors.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace plumed_cv {

/// The contents of a model file, checked for consistency. Lengths are in angstrom.
struct Model {
    static Model read(const std::string& path) { return Model(Safetensors::read(path)); }
    Model() = default;
    explicit Model(const Safetensors& file);

    std::string name;     // of the file, for messages
    bool changed = false; // whether the file is not as it was written, by its checksum
    std::size_t atoms, components, latent;
    std::vector<std::int64_t> serials;
    std::vector<std::string> species;
    std::vector<double> reference_positions;
    Cell reference_cell;
    bool aligned = false; // whether structures are aligned with the reference
    Drift drift = Drift::removed;
    std::vector<double> pca_mean, pca_components;
    Activation activation;
    std::vector<Layer> encoder, decoder;
    std::vector<double> latent_shift, latent_scale;

    // A configuration and the results that the model must give for it.
    std::vector<double> check_positions;
    Cell check_cell;
    std::vector<double> check_value, check_gradient;
    double check_deviation;
};

namespace detail {

constexpr const char* export_again = "; export the model again.";

inline Cell read_cell(const Safetensors& file, const char* key) {
    const auto values = file.numbers(key, {3, 3});
    Cell cell;
    std::copy(values.begin(), values.end(), cell.begin());
    try {
        periodic_directions(cell);
    } catch (const std::runtime_error& error) {
        file.fail(std::string(key) + ": " + error.what());
    }
    return cell;
}

inline std::vector<Layer> read_layers(const Safetensors& file, const std::string& network,
                                      std::size_t inputs, std::size_t outputs) {
    std::vector<Layer> layers;
    do {
        const std::string key = network + "." + std::to_string(layers.size());
        const auto& shape = file.shape(key + ".weight");
        const std::size_t width = shape.empty() ? 0 : shape[0];
        layers.push_back({inputs, width, file.numbers(key + ".weight", {width, inputs}),
                          file.numbers(key + ".bias", {width})});
        inputs = width;
    } while (file.has(network + "." + std::to_string(layers.size()) + ".weight"));
    if (inputs != outputs)
        file.fail("the " + network + " gives " + std::to_string(inputs) + " numbers and not " +
                  std::to_string(outputs) + export_again);
    return layers;
}

inline std::vector<std::string> read_species(const Safetensors& file, std::size_t atoms) {
    const auto list = JsonParser(file.metadata("species")).parse();
    const auto is_text = [](const Json& value) { return value.is(Json::Kind::text); };
    if (!list || !list->is(Json::Kind::list) || list->list.size() != atoms ||
        !std::all_of(list->list.begin(), list->list.end(), is_text))
        file.fail("does not name the species of its " + std::to_string(atoms) + " atoms" +
                  export_again);
    std::vector<std::string> species;
    for (const Json& name : list->list)
        species.push_back(name.text);
    return species;
}

/// Components must be orthonormal and, unless the drift is kept, invariant under a rigid shift: the
/// formulae for dev, the norms and the virial are based on it.
inline void check_components(const Safetensors& file, const Model& model) {
    constexpr double tolerance = 1e-8;
    const std::size_t n = 3 * model.atoms, rows = model.components;
    if (rows > n)
        file.fail("has more components than coordinates" + std::string(export_again));
    const double* const u = model.pca_components.data();
    std::vector<double> overlap(rows);
    for (std::size_t k = 0; k < rows; ++k) {
        multiply(u, k + 1, n, u + k * n, overlap.data());
        overlap[k] -= 1;
        double mean[3] = {};
        for (std::size_t j = 0; j < n; ++j)
            mean[j % 3] += u[k * n + j];
        const auto small = [&](double v) { return std::abs(v) <= tolerance; };
        if (!std::all_of(overlap.begin(), overlap.begin() + static_cast<std::ptrdiff_t>(k) + 1,
                         small))
            file.fail("its pca_components are not orthonormal" + std::string(export_again));
        if (model.drift == Drift::removed && !std::all_of(mean, mean + 3, small))
            file.fail("its pca_components change under a rigid shift of all atoms" +
                      std::string(export_again));
    }
}

} // namespace detail

inline Model::Model(const Safetensors& file) : name(file.name()) {
    using detail::export_again;
    if (file.metadata("format") != "plumed_cv collective variable")
        file.fail("is a safetensors file but not a model file of plumed_cv; check MODEL.");
    if (file.metadata("format_version") != "1")
        file.fail("has format version " + file.metadata("format_version") +
                  " and this AUTOENCODER reads version 1; export the model again.");
    if (file.metadata("length_unit") != "angstrom")
        file.fail("has lengths in " + file.metadata("length_unit") + " and not in angstrom" +
                  export_again);
    const auto known = activation_from(file.metadata("activation"));
    if (!known)
        file.fail("has the unknown activation " + file.metadata("activation") +
                  "; use relu, tanh, elu, softplus, silu or sigmoid.");
    activation = *known;

    const auto alignment = file.metadata("alignment", "none");
    aligned = alignment == "optimal";
    if (!aligned && alignment != "none")
        file.fail("has the unknown alignment " + alignment + "; use none or optimal.");

    const auto held = file.metadata("drift", "removed");
    drift = held == "kept" ? Drift::kept : Drift::removed;
    if (drift == Drift::removed && held != "removed")
        file.fail("has the unknown drift " + held + "; use removed or kept.");
    if (drift == Drift::kept && aligned)
        file.fail("keeps the drift and aligns structures with the reference" +
                  std::string(export_again));

    const auto extent = [&](const char* key) {
        const auto& shape = file.shape(key);
        return shape.empty() ? 0 : shape[0];
    };
    atoms = extent("serials");
    components = extent("pca_components");
    latent = extent("latent_scale");

    serials = file.integers("serials", {atoms});
    const std::set<std::int64_t> unique(serials.begin(), serials.end());
    if (unique.size() != atoms || *unique.begin() < 1 || *unique.rbegin() > INT32_MAX)
        file.fail("its serials are not distinct numbers from 1" + std::string(export_again));
    species = detail::read_species(file, atoms);
    reference_positions = file.numbers("reference_positions", {atoms, 3});
    reference_cell = detail::read_cell(file, "reference_cell");
    pca_mean = file.numbers("pca_mean", {3 * atoms});
    pca_components = file.numbers("pca_components", {components, 3 * atoms});
    encoder = detail::read_layers(file, "encoder", components, latent);
    decoder = detail::read_layers(file, "decoder", latent, components);
    latent_shift = file.numbers("latent_shift", {latent});
    latent_scale = file.numbers("latent_scale", {latent});
    if (std::count(latent_scale.begin(), latent_scale.end(), 0.0) > 0)
        file.fail("its latent_scale is zero" + std::string(export_again));
    check_positions = file.numbers("check_positions", {atoms, 3});
    check_cell = detail::read_cell(file, "check_cell");
    check_value = file.numbers("check_value", {latent});
    check_gradient = file.numbers("check_gradient", {latent, atoms, 3});
    check_deviation = file.numbers("check_deviation", {1})[0];
    detail::check_components(file, *this);
    // The check values do not detect everything: not which atoms are meant, nor a ReLU that is off
    // there.
    changed = file.has_metadata("checksum") && file.metadata("checksum") != file.checksum();
}

} // namespace plumed_cv
