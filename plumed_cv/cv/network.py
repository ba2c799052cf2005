"""The layers and the activation functions of the networks of a collective variable, in NumPy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.structures.frame import Array


@dataclass(frozen=True)
class Layer:
    """A dense layer: ``weight @ input + bias``, shapes (out, in) and (out,)."""

    weight: Array
    bias: Array


def _sigmoid(z: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)))


def _sigmoid_slope(z: Array) -> Array:
    return _sigmoid(z) * (1.0 - _sigmoid(z))


def _silu_curvature(z: Array) -> Array:
    return _sigmoid_slope(z) * (2.0 + z * (1.0 - 2.0 * _sigmoid(z)))


_Function = Callable[[Array], Array]

# For each name in the model file: the function, its first and its second derivative. That of relu
# ignores its kink.
ACTIVATIONS: dict[str, tuple[_Function, _Function, _Function]] = {
    "relu": (
        lambda z: np.maximum(z, 0.0),
        lambda z: (z > 0.0).astype(np.float64),
        np.zeros_like,
    ),
    "tanh": (
        np.tanh,
        lambda z: 1.0 - np.tanh(z) ** 2,
        lambda z: -2.0 * np.tanh(z) * (1.0 - np.tanh(z) ** 2),
    ),
    "elu": (
        lambda z: np.where(z > 0.0, z, np.expm1(np.minimum(z, 0.0))),
        lambda z: np.exp(np.minimum(z, 0.0)),
        lambda z: np.where(z > 0.0, 0.0, np.exp(np.minimum(z, 0.0))),
    ),
    "softplus": (lambda z: np.logaddexp(0.0, z), _sigmoid, _sigmoid_slope),
    "silu": (
        lambda z: z * _sigmoid(z),
        lambda z: _sigmoid(z) * (1.0 + z * (1.0 - _sigmoid(z))),
        _silu_curvature,
    ),
    "sigmoid": (
        _sigmoid,
        _sigmoid_slope,
        lambda z: _sigmoid_slope(z) * (1.0 - 2.0 * _sigmoid(z)),
    ),
}


def forward(layers: Sequence[Layer], activation: str, inputs: NDArray[Any]) -> Array:
    """Return the output of a network, shape (..., out), for inputs of shape (..., in)."""
    function = ACTIVATIONS[activation][0]
    for layer in layers[:-1]:
        inputs = function(inputs @ layer.weight.T + layer.bias)
    return np.asarray(inputs @ layers[-1].weight.T + layers[-1].bias)


def layers_of(tensors: dict[str, Any], name: str) -> tuple[Layer, ...]:
    """Return the layers of the network with this name in a model file.

    Raises
    ------
    KeyError
        If there are none.
    """
    count = sum(key.startswith(f"{name}.") and key.endswith(".weight") for key in tensors)
    if count == 0:
        raise KeyError(f"{name}.0.weight")
    return tuple(
        Layer(tensors[f"{name}.{k}.weight"], tensors[f"{name}.{k}.bias"]) for k in range(count)
    )
