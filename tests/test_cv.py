"""Collective variable: derivatives, end states, deviation, and the model file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.spatial.transform import Rotation

from plumed_cv.common.errors import UserError
from plumed_cv.cv import ACTIVATIONS, CollectiveVariable, linear, random_model

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


@pytest.fixture(params=[1, 2], ids="{} latent".format)
def molecule(request: pytest.FixtureRequest) -> CollectiveVariable:
    rng = np.random.default_rng(8)
    return random_model(rng, 12, 6, (7, 5), request.param, "tanh", alignment="optimal")


def test_a_molecule_may_turn_and_cross_the_border(molecule: CollectiveVariable) -> None:
    rng = np.random.default_rng(9)
    r, no_cell = near(molecule), np.zeros((3, 3))
    cell = 3.0 * CELL  # bonds of the random reference reach 6 A
    value, gradient = molecule.value(r, no_cell), molecule.gradient(r, no_cell)
    strain = molecule.strain_derivative(r, no_cell)
    for turn in Rotation.random(5, random_state=1).as_matrix():
        moved = r @ turn + rng.uniform(-20, 20, size=3)
        moved += rng.integers(-2, 3, size=(12, 3)) @ cell
        np.testing.assert_allclose(molecule.value(moved, cell), value, atol=1e-12)
        np.testing.assert_allclose(molecule.gradient(moved, cell), gradient @ turn, atol=1e-12)
        np.testing.assert_allclose(
            molecule.strain_derivative(moved, cell), turn.T @ strain @ turn, atol=1e-11
        )
        u = molecule.displacements(r, no_cell)
        np.testing.assert_allclose(molecule.displacements(moved, cell), u, atol=1e-12)
        np.testing.assert_allclose(
            molecule.deviation(moved, cell), molecule.deviation(r, no_cell), rtol=1e-10
        )


def test_derivatives_of_a_molecule(molecule: CollectiveVariable) -> None:
    r, step, cell = near(molecule) @ Rotation.random(random_state=2).as_matrix(), 1e-5, 3.0 * CELL
    gradient = molecule.gradient(r, cell)
    for atom in range(12):
        for axis in range(3):
            shift = np.zeros_like(r)
            shift[atom, axis] = step
            numerical = (molecule.value(r + shift, cell) - molecule.value(r - shift, cell)) / (
                2 * step
            )
            np.testing.assert_allclose(gradient[:, atom, axis], numerical, atol=1e-8)
    # No translation and no rotation changes it.
    np.testing.assert_allclose(gradient.sum(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.cross(r, gradient).sum(axis=1), 0.0, atol=1e-11)
    derivative = molecule.strain_derivative(r, cell)
    for a, b in ((0, 0), (1, 2), (2, 0)):
        values = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step
            values.append(molecule.value(r @ strain, cell @ strain))
        np.testing.assert_allclose(
            derivative[:, a, b], (values[0] - values[1]) / (2 * step), atol=1e-7
        )
    rows = gradient.reshape(molecule.n_latent, -1)
    np.testing.assert_allclose(
        molecule.gradient_norm(r, cell), np.sqrt(np.linalg.det(rows @ rows.T)), rtol=1e-10
    )


def test_linear_cv_of_a_molecule() -> None:
    rng = np.random.default_rng(10)
    initial = rng.uniform(size=(6, 3)) * 4.0
    final = initial + rng.normal(scale=0.4, size=(6, 3))
    turn = Rotation.random(random_state=3).as_matrix()
    serials = np.array([1, 4, 5, 7, 8, 12])
    before, after = rng.uniform(size=(2, 12, 3)) * 4.0  # what the others do is nothing to it
    before[serials - 1], after[serials - 1] = initial, final @ turn + 30.0
    species = ["C" if serial in serials else "H" for serial in range(1, 13)]
    for atoms in ("1,4-5,7-8,12", "heavy"):
        variable = linear(species, 3.0 * CELL, before, after, "optimal", atoms)
        assert variable.serials.tolist() == serials.tolist()
        assert variable.species == ("C",) * 6
    for structure, value in ((initial, 0.0), (final, 1.0), (final @ turn.T, 1.0)):
        np.testing.assert_allclose(variable.value(structure, np.zeros((3, 3))), [value], atol=1e-12)
    with pytest.raises(UserError, match="same structure"):
        linear(["C"] * 6, 3.0 * CELL, initial, initial @ turn, "optimal")
    with pytest.raises(UserError, match="both end states need all atoms"):
        linear(species, 3.0 * CELL, before, final, "optimal", "heavy")


def test_file_of_a_molecule(molecule: CollectiveVariable, tmp_path: Path) -> None:
    molecule.save(tmp_path / "cv.safetensors")
    read = CollectiveVariable.load(tmp_path / "cv.safetensors")
    assert read.alignment == "optimal"
    r = near(molecule) @ Rotation.random(random_state=4).as_matrix()
    np.testing.assert_allclose(
        read.gradient(r, np.zeros((3, 3))), molecule.gradient(r, np.zeros((3, 3))), rtol=1e-12
    )
    with pytest.raises(UserError, match="'none' or 'optimal'"):
        replace(molecule, alignment="best")
    with pytest.raises(UserError, match="no cell"):
        replace(molecule, reference_cell=CELL)


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


@pytest.mark.parametrize("activation", ["tanh", "elu", "softplus", "silu", "sigmoid"])
def test_flow_divergence_is_that_of_the_gradient_over_its_square(activation: str) -> None:
    rng = np.random.default_rng(1)
    model = random_model(rng, 10, 6, (8, 7), activation=activation)
    x = 0.3 * rng.normal(size=(5, 6))

    def flow(x: np.ndarray) -> np.ndarray:
        gradient = model.encoder_jacobian(x)[:, 0]
        return np.asarray(gradient / np.sum(gradient**2, axis=1, keepdims=True))

    h = 1e-5
    differences = [(flow(x + h * e) - flow(x - h * e))[:, k] for k, e in enumerate(np.eye(6))]
    expected = np.sum(differences, axis=0) / (2 * h)
    np.testing.assert_allclose(model.flow_divergence(x), expected, rtol=1e-7)
    assert model.has_curvature


def test_flow_divergence_of_a_linear_variable_vanishes() -> None:
    model = linear(["Fe"] * 4, np.zeros((3, 3)), np.eye(4)[:, :3], 1.1 * np.eye(4)[:, :3])
    assert model.has_curvature  # of relu it has only the name
    np.testing.assert_array_equal(model.flow_divergence(np.ones((2, 1))), 0.0)
    assert not random_model(np.random.default_rng(1), 5, 3, (4,), activation="relu").has_curvature
