// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace plumed_cv {

enum class Activation { relu, tanh, elu, softplus, silu, sigmoid };

inline std::optional<Activation> activation_from(const std::string& name) {
    if (name == "relu")
        return Activation::relu;
    if (name == "tanh")
        return Activation::tanh;
    if (name == "elu")
        return Activation::elu;
    if (name == "softplus")
        return Activation::softplus;
    if (name == "silu")
        return Activation::silu;
    if (name == "sigmoid")
        return Activation::sigmoid;
    return std::nullopt;
}

/// Replaces z by its activation and sets the slope there.
inline void activate(Activation activation, std::size_t n, double* z, double* slope) {
    const auto each = [&](auto&& function) {
        for (std::size_t i = 0; i < n; ++i) {
            const auto [value, derivative] = function(z[i]);
            z[i] = value;
            slope[i] = derivative;
        }
    };
    // The exponential of -|x|, which cannot overflow, and the sigmoid of x from it.
    const auto decay = [](double x) { return std::exp(-std::abs(x)); };
    const auto sigmoid = [](double x, double decay) { return (x < 0 ? decay : 1) / (1 + decay); };
    switch (activation) {
    case Activation::relu: // NaN stays NaN
        return each([](double x) { return std::pair(x < 0 ? 0.0 : x, x > 0 ? 1.0 : 0.0); });
    case Activation::tanh:
        return each([](double x) {
            const double t = std::tanh(x);
            return std::pair(t, 1 - t * t);
        });
    case Activation::elu:
        return each([](double x) {
            if (x > 0)
                return std::pair(x, 1.0);
            const double e = std::expm1(x);
            return std::pair(e, 1 + e);
        });
    case Activation::softplus:
        return each([&](double x) {
            const double e = decay(x);
            return std::pair(std::max(x, 0.0) + std::log1p(e), sigmoid(x, e));
        });
    case Activation::silu:
        return each([&](double x) {
            const double s = sigmoid(x, decay(x));
            return std::pair(x * s, s * (1 + x * (1 - s)));
        });
    case Activation::sigmoid:
        return each([&](double x) {
            const double s = sigmoid(x, decay(x));
            return std::pair(s, s * (1 - s));
        });
    }
}

/// The derivative of the slope of the activation at x.
inline double bend(Activation activation, double x) {
    const double decay = std::exp(-std::abs(x));
    const double s = (x < 0 ? decay : 1) / (1 + decay); // the sigmoid of x
    switch (activation) {
    case Activation::relu:
        return 0;
    case Activation::tanh: {
        const double t = std::tanh(x);
        return -2 * t * (1 - t * t);
    }
    case Activation::elu:
        return x > 0 ? 0 : decay;
    case Activation::softplus:
        return s * (1 - s);
    case Activation::silu:
        return s * (1 - s) * (2 + x * (1 - 2 * s));
    case Activation::sigmoid:
        return s * (1 - s) * (1 - 2 * s);
    }
    return 0;
}

/// A dense layer, weight (outputs x inputs, row by row) times the input plus bias.
struct Layer {
    std::size_t inputs, outputs;
    std::vector<double> weight, bias;
};

/// Dense layers with an activation between them; the last one is linear.
class Network {
  public:
    Network(const std::vector<Layer>& layers, Activation activation) : activation_(activation) {
        std::size_t widest = 0;
        for (const Layer& layer : layers) {
            layers_.emplace_back(layer);
            widest = std::max({widest, layer.inputs, layer.outputs});
        }
        back_.resize(padded(widest));
        ahead_.resize(padded(widest));
    }

    std::size_t outputs() const { return layers_.back().outputs; }

    /// The outputs at `input`, an array of whole blocks. They last until the next call.
    const double* forward(const double* input) {
        for (Stage& layer : layers_) {
            double* z = layer.z.data();
            std::copy(layer.bias.begin(), layer.bias.end(), z);
            add_transposed(layer.columns.data(), layer.inputs, layer.z.size(), input, z);
            if (&layer != &layers_.back()) {
                std::copy_n(z, layer.outputs, layer.before.begin());
                activate(activation_, layer.outputs, z, layer.slope.data());
            }
            input = z;
        }
        return input;
    }

    /// The gradient of one output with respect to the inputs of the last forward(): whole blocks.
    void backward(std::size_t output, double* gradient) {
        const Stage& last = layers_.back();
        const double* row = last.weight.data() + output * last.stride;
        std::copy(row, row + last.stride, layers_.size() == 1 ? gradient : back_.data());
        through_hidden_layers(gradient);
    }

    /// The same for the sum of all outputs times the numbers of `factors`.
    void backward(const double* factors, double* gradient) {
        const Stage& last = layers_.back();
        double* ahead = layers_.size() == 1 ? gradient : back_.data();
        std::fill(ahead, ahead + last.stride, 0.0);
        add_transposed(last.weight.data(), last.outputs, last.stride, factors, ahead);
        through_hidden_layers(gradient);
    }

    /// The change of that gradient along `direction`: the second derivatives of the sum times it.
    void curvature(const double* factors, const double* direction, double* change) {
        // Changes of the inputs of the activations, layer by layer.
        for (Stage& layer : layers_) {
            std::fill(layer.moved.begin(), layer.moved.end(), 0.0);
            add_transposed(layer.columns.data(), layer.inputs, layer.z.size(), direction,
                           layer.moved.data());
            layer.along = layer.moved;
            if (&layer != &layers_.back())
                for (std::size_t i = 0; i < layer.outputs; ++i)
                    layer.along[i] *= layer.slope[i];
            direction = layer.along.data();
        }
        // Gradients of the sum, and their changes, with respect to the outputs of the activations.
        const Stage& last = layers_.back();
        std::fill(change, change + layers_[0].stride, 0.0);
        if (layers_.size() == 1)
            return;
        std::fill(back_.begin(), back_.end(), 0.0);
        add_transposed(last.weight.data(), last.outputs, last.stride, factors, back_.data());
        Array turned(back_.size()), turned_ahead(back_.size());
        for (std::size_t l = layers_.size() - 1; l-- > 0;) {
            const Stage& layer = layers_[l];
            for (std::size_t i = 0; i < layer.outputs; ++i) {
                turned[i] = layer.slope[i] * turned[i] +
                            bend(activation_, layer.before[i]) * layer.moved[i] * back_[i];
                back_[i] *= layer.slope[i];
            }
            double* const ahead = l == 0 ? change : turned_ahead.data();
            std::fill(ahead, ahead + layer.stride, 0.0);
            add_transposed(layer.weight.data(), layer.outputs, layer.stride, turned.data(), ahead);
            std::fill(ahead_.begin(), ahead_.end(), 0.0);
            add_transposed(layer.weight.data(), layer.outputs, layer.stride, back_.data(),
                           ahead_.data());
            std::swap(back_, ahead_);
            std::swap(turned, turned_ahead);
        }
    }

  private:
    /// Takes the gradient in back_ from the inputs of the last layer to those of the first.
    void through_hidden_layers(double* gradient) {
        for (std::size_t l = layers_.size() - 1; l-- > 0;) {
            const Stage& layer = layers_[l];
            for (std::size_t i = 0; i < layer.outputs; ++i)
                back_[i] *= layer.slope[i];
            double* ahead = l == 0 ? gradient : ahead_.data();
            std::fill(ahead, ahead + layer.stride, 0.0);
            add_transposed(layer.weight.data(), layer.outputs, layer.stride, back_.data(), ahead);
            std::swap(back_, ahead_);
        }
    }

    struct Stage {
        explicit Stage(const Layer& layer)
            : inputs(layer.inputs), outputs(layer.outputs), stride(padded(inputs)),
              weight(outputs * stride), columns(inputs * padded(outputs)), bias(padded(outputs)),
              z(bias.size()), before(outputs), slope(outputs), moved(z.size()), along(z.size()) {
            for (std::size_t i = 0; i < outputs; ++i)
                for (std::size_t j = 0; j < inputs; ++j) {
                    weight[i * stride + j] = layer.weight[i * inputs + j];
                    columns[j * z.size() + i] = layer.weight[i * inputs + j];
                }
            std::copy(layer.bias.begin(), layer.bias.end(), bias.begin());
        }
        std::size_t inputs, outputs, stride;
        // By rows for the gradient and by columns for the outputs: both products then add whole
        // vectors, which at this size is much faster than sums along a vector.
        Array weight, columns;
        Array bias, z;
        Array before, slope; // what went into the activations, and their slopes there
        Array moved, along;  // of curvature(): changes of these inputs, and of the outputs
    };

    Activation activation_;
    std::vector<Stage> layers_;
    Array back_, ahead_;
};

} // namespace plumed_cv
