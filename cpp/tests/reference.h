// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

// A second, plain evaluation of a model, to hold the core to: no frame planes, no formula that
// rests on orthonormality, derivatives by dual numbers. And the writer of model files for tests.

#include "../core/model.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace plumed_cv {
namespace test {

/// A number and its derivative.
struct Dual {
    double v = 0, d = 0;
};
inline Dual operator+(Dual a, Dual b) {
    return {a.v + b.v, a.d + b.d};
}
inline Dual operator-(Dual a, Dual b) {
    return {a.v - b.v, a.d - b.d};
}
inline Dual operator*(Dual a, Dual b) {
    return {a.v * b.v, a.d * b.v + a.v * b.d};
}
inline Dual operator/(Dual a, Dual b) {
    return {a.v / b.v, (a.d - a.v / b.v * b.d) / b.v};
}
inline Dual exp(Dual a) {
    return {std::exp(a.v), std::exp(a.v) * a.d};
}
inline Dual log(Dual a) {
    return {std::log(a.v), a.d / a.v};
}

inline Dual activated(Activation activation, Dual z) {
    const Dual one{1, 0}, minus{-z.v, -z.d};
    switch (activation) {
    case Activation::relu:
        return z.v > 0 ? z : Dual{};
    case Activation::tanh:
        return (exp(z) - exp(minus)) / (exp(z) + exp(minus));
    case Activation::elu:
        return z.v > 0 ? z : exp(z) - one;
    case Activation::softplus:
        return log(one + exp(z));
    case Activation::silu:
        return z / (one + exp(minus));
    case Activation::sigmoid:
        return one / (one + exp(minus));
    }
    return {};
}

inline std::vector<Dual> network(const std::vector<Layer>& layers, Activation activation,
                                 std::vector<Dual> x) {
    for (std::size_t l = 0; l < layers.size(); ++l) {
        const Layer& layer = layers[l];
        std::vector<Dual> z(layer.outputs);
        for (std::size_t i = 0; i < layer.outputs; ++i) {
            z[i].v = layer.bias[i];
            for (std::size_t j = 0; j < layer.inputs; ++j)
                z[i] = z[i] + Dual{layer.weight[i * layer.inputs + j], 0} * x[j];
            if (l + 1 < layers.size())
                z[i] = activated(activation, z[i]);
        }
        x = z;
    }
    return x;
}

/// Displacements u at positions r, each the shortest of many images, unless the drift is kept
/// relative to that of atom 1.
inline std::vector<Dual> displacements(const Model& m, const std::vector<Dual>& r,
                                       const Cell& engine) {
    const Directions periodic = periodic_directions(m.reference_cell);
    const Cell known = completed(m.reference_cell);
    Cell cell = known;
    for (std::size_t i = 0; i < 9; ++i)
        if (periodic[i / 3])
            cell[i] = engine[i];
    const Cell strain = product(inverse(known), cell);
    const std::vector<double>& q = m.reference_positions;
    std::vector<Dual> u(r.size());
    for (std::size_t i = 0; i < m.atoms; ++i)
        for (std::size_t b = 0; b < 3; ++b) {
            double reference = 0;
            for (std::size_t a = 0; a < 3; ++a)
                reference += q[3 * i + a] * strain[3 * a + b];
            u[3 * i + b] = r[3 * i + b] - Dual{reference, 0};
        }
    const bool kept = m.drift == Drift::kept;
    constexpr int reach = 4; // images
    for (std::size_t i = m.atoms; i-- > 0;) {
        double best[3] = {}, least = 1e300, v[3];
        for (int n = 0; n < (2 * reach + 1) * (2 * reach + 1) * (2 * reach + 1); ++n) {
            const int side = 2 * reach + 1;
            const int image[3] = {n / side / side - reach, n / side % side - reach,
                                  n % side - reach};
            double square = 0;
            bool allowed = true;
            for (std::size_t a = 0; a < 3; ++a)
                allowed &= image[a] == 0 || periodic[a];
            if (!allowed)
                continue;
            for (std::size_t b = 0; b < 3; ++b) {
                v[b] = u[3 * i + b].v - (kept ? 0 : u[b].v);
                for (std::size_t a = 0; a < 3; ++a)
                    v[b] += image[a] * cell[3 * a + b];
                square += v[b] * v[b];
            }
            if (square < least) {
                least = square;
                std::copy_n(v, 3, best);
            }
        }
        for (std::size_t b = 0; b < 3; ++b)
            u[3 * i + b].v = best[b] + (kept ? 0 : u[b].v);
    }
    if (kept)
        return u;
    for (std::size_t a = 0; a < 3; ++a) {
        Dual mean;
        for (std::size_t i = 0; i < m.atoms; ++i)
            mean = mean + u[3 * i + a];
        mean = mean / Dual{static_cast<double>(m.atoms), 0};
        for (std::size_t i = 0; i < m.atoms; ++i)
            u[3 * i + a] = u[3 * i + a] - mean;
    }
    return u;
}

struct Result {
    std::vector<double> value, gradient, displacement;
    double deviation;
};

inline Result evaluate(const Model& m, const std::vector<double>& positions, const Cell& cell) {
    const std::size_t n = positions.size();
    Result result;
    result.gradient.resize(m.latent * n);
    std::vector<double> off(n);
    for (std::size_t c = 0; c < n; ++c) {
        std::vector<Dual> r(n);
        for (std::size_t j = 0; j < n; ++j)
            r[j] = {positions[j], j == c ? 1.0 : 0.0};
        const auto u = displacements(m, r, cell);
        std::vector<Dual> x(m.components);
        for (std::size_t k = 0; k < m.components; ++k)
            for (std::size_t j = 0; j < n; ++j)
                x[k] =
                    x[k] + Dual{m.pca_components[k * n + j], 0} * (u[j] - Dual{m.pca_mean[j], 0});
        const auto f = network(m.encoder, m.activation, x);
        const auto path = network(m.decoder, m.activation, f);
        result.value.clear();
        result.displacement.clear();
        for (std::size_t k = 0; k < m.latent; ++k) {
            result.value.push_back((f[k].v - m.latent_shift[k]) * m.latent_scale[k]);
            result.gradient[k * n + c] = f[k].d * m.latent_scale[k];
        }
        for (std::size_t j = 0; j < n; ++j) {
            result.displacement.push_back(u[j].v);
            off[j] = u[j].v - m.pca_mean[j];
            for (std::size_t k = 0; k < m.components; ++k)
                off[j] -= m.pca_components[k * n + j] * path[k].v;
        }
    }
    auto directions = result.gradient;
    const auto dot = [&](const double* a, const double* b) {
        double sum = 0;
        for (std::size_t j = 0; j < n; ++j)
            sum += a[j] * b[j];
        return sum;
    };
    // A direction that is zero up to rounding is omitted.
    const auto remove = [&](double* from, const double* direction, double whole) {
        const double norm = dot(direction, direction);
        const double share = norm > 1e-20 * whole ? dot(from, direction) / norm : 0;
        for (std::size_t j = 0; j < n; ++j)
            from[j] -= share * direction[j];
    };
    const auto whole = [&](std::size_t k) {
        return dot(&result.gradient[k * n], &result.gradient[k * n]);
    };
    for (std::size_t k = 0; k < m.latent; ++k) {
        for (std::size_t l = 0; l < k; ++l)
            remove(&directions[k * n], &directions[l * n], whole(l));
        remove(off.data(), &directions[k * n], whole(k));
    }
    result.deviation = std::sqrt(dot(off.data(), off.data()));
    return result;
}

/// The arrays and metadata of a model file, to be changed and written.
struct ModelFile {
    struct Array {
        std::vector<std::size_t> shape;
        std::vector<double> values;
    };
    std::map<std::string, Array> arrays;
    std::map<std::string, std::string> metadata;

    std::string bytes() const {
        std::string header = "{\"__metadata__\":{", data;
        for (const auto& [key, value] : metadata)
            header += quoted(key) + ":" + quoted(value) + ",";
        if (!metadata.empty())
            header.pop_back();
        header += "}";
        for (const auto& [key, array] : arrays) {
            const bool integers = key == "serials";
            const std::size_t begin = data.size();
            for (const double value : array.values) {
                char raw[8];
                const auto whole = static_cast<std::int64_t>(integers ? value : 0);
                std::memcpy(raw, integers ? static_cast<const void*>(&whole) : &value, 8);
                data.append(raw, 8);
            }
            header += "," + quoted(key) + ":{\"dtype\":\"" + (integers ? "I64" : "F64") +
                      "\",\"shape\":" + list(array.shape) +
                      ",\"data_offsets\":" + list({begin, data.size()}) + "}";
        }
        return with_prefix(header + "}") + data;
    }

    static std::string with_prefix(const std::string& header) {
        std::string prefix(8, '\0');
        for (std::size_t i = 0; i < 8; ++i)
            prefix[i] = static_cast<char>(header.size() >> (8 * i) & 255);
        return prefix + header;
    }

  private:
    static std::string quoted(const std::string& text) {
        std::string json = "\"";
        for (const char c : text)
            json += (c == '"' || c == '\\' ? "\\" : "") + std::string(1, c);
        return json + "\"";
    }

    static std::string list(const std::vector<std::size_t>& numbers) {
        std::string json;
        for (const std::size_t number : numbers)
            json += (json.empty() ? "" : ",") + std::to_string(number);
        return "[" + json + "]";
    }
};

using Random = std::mt19937_64;

inline std::vector<double> normals(Random& random, std::size_t n, double width = 1) {
    std::normal_distribution<double> normal(0, width);
    std::vector<double> values(n);
    for (double& value : values)
        value = normal(random);
    return values;
}

struct Sizes {
    std::size_t atoms, components;
    std::vector<std::size_t> hidden;
    std::size_t latent;
};

/// A valid random model file.
inline ModelFile random_model(Random& random, const Sizes& sizes, const std::string& activation,
                              const Cell& cell, Drift drift = Drift::removed) {
    Model m{};
    m.drift = drift;
    m.atoms = sizes.atoms;
    m.components = sizes.components;
    m.latent = sizes.latent;
    m.activation = *activation_from(activation);
    m.reference_cell = m.check_cell = cell;
    const std::size_t n = 3 * m.atoms;
    m.reference_positions = normals(random, n, 3);
    m.pca_mean = normals(random, n, 0.1);
    m.pca_components = normals(random, m.components * n);
    for (std::size_t k = 0; k < m.components; ++k) { // mean-free, then orthonormal, twice over
        double* row = &m.pca_components[k * n];
        for (std::size_t a = 0; a < 3 && drift == Drift::removed; ++a) {
            double mean = 0;
            for (std::size_t j = a; j < n; j += 3)
                mean += row[j] / static_cast<double>(m.atoms);
            for (std::size_t j = a; j < n; j += 3)
                row[j] -= mean;
        }
        for (std::size_t l = 0; l < 2 * k + 2; ++l) {
            const double* other = &m.pca_components[l % (k + 1) * n];
            double share = 0, norm = 0;
            for (std::size_t j = 0; j < n; ++j) {
                share += row[j] * other[j];
                norm += row[j] * row[j];
            }
            for (std::size_t j = 0; j < n; ++j)
                row[j] = other == row ? row[j] / std::sqrt(norm) : row[j] - share * other[j];
        }
    }

    ModelFile file;
    const auto layers = [&](const std::string& name, std::vector<std::size_t> widths) {
        std::vector<Layer> made;
        for (std::size_t l = 0; l + 1 < widths.size(); ++l) {
            const std::size_t in = widths[l], out = widths[l + 1];
            const auto weight = normals(random, in * out, std::sqrt(2.0 / double(in + out)));
            made.push_back({in, out, weight, normals(random, out, 0.3)});
            const std::string key = name + "." + std::to_string(l);
            file.arrays[key + ".weight"] = {{out, in}, made.back().weight};
            file.arrays[key + ".bias"] = {{out}, made.back().bias};
        }
        return made;
    };
    std::vector<std::size_t> down{m.components};
    down.insert(down.end(), sizes.hidden.begin(), sizes.hidden.end());
    down.push_back(m.latent);
    m.encoder = layers("encoder", down);
    m.decoder = layers("decoder", {down.rbegin(), down.rend()});
    m.latent_shift = normals(random, m.latent);
    m.latent_scale = std::vector<double>(m.latent, 1.7);
    m.check_positions = m.reference_positions;
    const auto noise = normals(random, n, 0.1);
    for (std::size_t j = 0; j < n; ++j)
        m.check_positions[j] += noise[j];
    const Result check = evaluate(m, m.check_positions, m.check_cell);

    std::vector<double> serials(m.atoms);
    std::string species;
    for (std::size_t i = 0; i < m.atoms; ++i) {
        serials[i] = static_cast<double>(i + 1);
        species += std::string(i == 0 ? "" : ",") + "\"Fe\"";
    }
    const std::vector<double> lattice(cell.begin(), cell.end());
    file.arrays["serials"] = {{m.atoms}, serials};
    file.arrays["reference_positions"] = {{m.atoms, 3}, m.reference_positions};
    file.arrays["reference_cell"] = {{3, 3}, lattice};
    file.arrays["pca_mean"] = {{n}, m.pca_mean};
    file.arrays["pca_components"] = {{m.components, n}, m.pca_components};
    file.arrays["latent_shift"] = {{m.latent}, m.latent_shift};
    file.arrays["latent_scale"] = {{m.latent}, m.latent_scale};
    file.arrays["end_displacements"] = {{2, m.atoms, 3}, std::vector<double>(2 * n)};
    file.arrays["check_positions"] = {{m.atoms, 3}, m.check_positions};
    file.arrays["check_cell"] = {{3, 3}, lattice};
    file.arrays["check_value"] = {{m.latent}, check.value};
    file.arrays["check_gradient"] = {{m.latent, m.atoms, 3}, check.gradient};
    file.arrays["check_deviation"] = {{1}, {check.deviation}};
    file.metadata = {{"format", "plumed_cv collective variable"},
                     {"format_version", "1"},
                     {"length_unit", "angstrom"},
                     {"activation", activation},
                     {"kind", "autoencoder"},
                     {"drift", drift == Drift::kept ? "kept" : "removed"},
                     {"species", "[" + species + "]"},
                     {"written_by", "a test"},
                     {"provenance", "{}"}};
    return file;
}

inline Model parse(const ModelFile& file) {
    return Model(Safetensors("cv", file.bytes()));
}

} // namespace test
} // namespace plumed_cv
