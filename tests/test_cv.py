"""Collective variable: derivatives, end states, deviation, and the model file."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from plumed_cv.cv import ACTIVATIONS, CollectiveVariable, linear, random_model
from plumed_cv.errors import UserError

CELL = np.array([[9.0, 0.0, 0.0], [2.0, 10.0, 0.0], [-1.5, 2.5, 11.0]])


@pytest.fixture(params=[(a, d) for a in ACTIVATIONS for d in (1, 2)], ids=str)
def model(request: pytest.FixtureRequest) -> CollectiveVariable:
    activation, n_latent = request.param
    return random_model(np.random.default_rng(5), 15, 6, (7, 5), n_latent, activation, CELL)


def near(model: CollectiveVariable) -> np.ndarray:
    rng = np.random.default_rng(6)
    return model.reference_positions + rng.normal(scale=0.1, size=model.reference_positions.shape)


def test_gradient_is_the_derivative(model: CollectiveVariable) -> None:
    r, step = near(model), 1e-5
    gradient = model.gradient(r, CELL)
    for atom in (0, 7):
        for axis in range(3):
            shift = np.zeros_like(r)
            shift[atom, axis] = step
            numerical = (model.value(r + shift, CELL) - model.value(r - shift, CELL)) / (2 * step)
            np.testing.assert_allclose(gradient[:, atom, axis], numerical, atol=1e-8)


def test_strain_derivative_is_the_derivative(model: CollectiveVariable) -> None:
    r, step = near(model), 1e-6
    derivative = model.strain_derivative(r, CELL)
    for a, b in ((0, 0), (1, 2), (2, 0)):
        values = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step
            values.append(model.value(r @ strain, CELL @ strain))
        np.testing.assert_allclose(
            derivative[:, a, b], (values[0] - values[1]) / (2 * step), atol=1e-7
        )


def test_gradient_norm_of_one_dimension(model: CollectiveVariable) -> None:
    r = near(model)
    gradient = model.gradient(r, CELL).reshape(model.n_latent, -1)
    expected = np.sqrt(np.linalg.det(gradient @ gradient.T))
    np.testing.assert_allclose(model.gradient_norm(r, CELL), expected, rtol=1e-10)


def test_deviation_is_distance_orthogonal_to_the_gradient(model: CollectiveVariable) -> None:
    r = near(model)
    u = model.displacements(r, CELL)
    off = (u - model.path(model.value(r, CELL))).ravel()
    gradient = model.gradient(r, CELL).reshape(model.n_latent, -1)
    basis = np.linalg.qr(gradient.T)[0]
    expected = np.linalg.norm(off - basis @ (basis.T @ off))
    np.testing.assert_allclose(model.deviation(r, CELL), expected, rtol=1e-10)


def test_file_gives_the_same_model(model: CollectiveVariable, tmp_path: Path) -> None:
    file = tmp_path / "cv.safetensors"
    model.save(file)
    read = CollectiveVariable.load(file)
    r = near(model)
    np.testing.assert_allclose(read.value(r, CELL), model.value(r, CELL), rtol=1e-13)
    np.testing.assert_allclose(read.gradient(r, CELL), model.gradient(r, CELL), rtol=1e-12)
    assert read.species == model.species
    assert [path.name for path in tmp_path.iterdir()] == ["cv.safetensors"]


def test_linear_cv_is_the_projection() -> None:
    rng = np.random.default_rng(7)
    initial = rng.uniform(size=(10, 3)) @ CELL
    step = rng.normal(scale=0.4, size=(10, 3))
    step -= step.mean(axis=0)
    variable = linear(["Fe"] * 10, CELL, initial, initial + step + CELL[1])
    noise = rng.normal(scale=0.1, size=(10, 3))
    for fraction in (-0.2, 0.0, 0.5, 1.0):
        r = initial + fraction * step
        np.testing.assert_allclose(variable.value(r, CELL), [fraction], atol=1e-12)
        np.testing.assert_allclose(variable.deviation(r, CELL), 0.0, atol=1e-7)
        u = fraction * step + noise - noise.mean(axis=0)
        expected = np.sum(u * step) / np.sum(step**2)  # step 0 of Sec. 2.4
        np.testing.assert_allclose(variable.value(r + noise, CELL), [expected], atol=1e-12)
    np.testing.assert_allclose(
        variable.gradient(initial, CELL)[0], step / np.sum(step**2), atol=1e-14
    )


def test_linear_cv_needs_two_states() -> None:
    r = np.random.default_rng(0).uniform(size=(4, 3)) @ CELL
    with pytest.raises(UserError, match="same structure"):
        linear(["Fe"] * 4, CELL, r, r + CELL[0])


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    model = random_model(np.random.default_rng(1), 8, 3, (4,), cell=CELL)
    file = tmp_path / "cv.safetensors"
    model.save(file)
    whole = file.read_bytes()
    with safe_open(file, framework="np") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    def refused(sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            CollectiveVariable.load(file)

    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused("truncated")
    file.unlink()
    refused("does not exist")
    save_file(tensors, file, metadata | {"format": "other"})
    refused("not a model file")
    save_file(tensors, file, metadata | {"format_version": "99"})
    refused("format version 99")
    save_file(tensors, file, metadata | {"length_unit": "nm"})
    refused("length unit")
    save_file(tensors, file, metadata | {"activation": "step"})
    refused("lacks 'step'")
    save_file({k: v for k, v in tensors.items() if k != "pca_mean"}, file, metadata)
    refused("lacks 'pca_mean'")
    save_file(tensors | {"encoder.0.weight": tensors["encoder.0.weight"] * 1.001}, file, metadata)
    refused("check vector")
    save_file(tensors | {"encoder.0.bias": tensors["encoder.0.bias"] * np.nan}, file, metadata)
    refused("check vector")
    save_file(tensors | {"encoder.0.weight": np.ones((4, 5))}, file, metadata)
    refused("do not fit")
