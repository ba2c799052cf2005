"""Shared by the tests of AUTOENCODER and TORCH_CV: a step, structures, derivatives, model files."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.spatial.transform import Rotation

from plumed_cv.cv import CollectiveVariable, random_model
from tests.plumed.babf import Array

NO_CELL = np.zeros((3, 3))
TRICLINIC = np.array([[9.0, 0.0, 0.0], [1.5, 8.0, 0.0], [-0.9, 2.1, 10.0]])


def step(
    handle: Any, number: int, positions: Array, cell: Array, masses: Array | None = None
) -> tuple[Array, Array]:
    """Run one step of an engine whose lengths are in nm; return forces and virial."""
    n = len(positions)
    # PLUMED keeps pointers until "calc": the arrays must have names.
    box, lengths = np.ascontiguousarray(0.1 * cell), np.ascontiguousarray(0.1 * positions)
    masses = np.full(n, 55.845) if masses is None else masses
    forces, virial = np.zeros((n, 3)), np.zeros((3, 3))
    handle.cmd("setStep", number)
    handle.cmd("setBox", box)
    handle.cmd("setPositions", lengths)
    handle.cmd("setMasses", masses)
    handle.cmd("setForces", forces)
    handle.cmd("setVirial", virial)
    handle.cmd("calc")
    return forces, virial


def configurations(
    cv: CollectiveVariable, rng: np.random.Generator, count: int = 3
) -> list[tuple[Array, Array]]:
    """Return structures near the reference, in strained cells, drifted, in any periodic image."""
    made = []
    for _ in range(count):
        if cv.is_aligned:
            noise = rng.normal(scale=0.2, size=(cv.n_atoms, 3))
            turned = (cv.reference_positions + noise) @ Rotation.random(
                random_state=rng
            ).as_matrix()
            cell = 4.0 * TRICLINIC
            turned += rng.integers(-3, 4, size=(cv.n_atoms, 3)) @ cell
            made.append((turned + rng.uniform(-6, 6, size=3), cell))
            continue
        strain = np.eye(3)
        if cv.reference_cell.any():
            change = rng.uniform(-0.05, 0.05, size=(3, 3))
            strain += 0.5 * (change + change.T)  # without a rotation
        cell = cv.reference_cell @ strain
        positions = cv.reference_positions @ strain + rng.normal(scale=0.2, size=(cv.n_atoms, 3))
        positions += rng.integers(-3, 4, size=(cv.n_atoms, 3)) @ cell
        drift = rng.uniform(-6, 6, size=3) if cv.drift == "removed" else 0.0
        made.append((positions + drift, cell))
    return made


def bias_energy(handle: Any) -> float:
    energy = np.zeros(1)
    handle.cmd("getBias", energy)
    return float(energy[0])


def assert_derivatives_of_the_bias(handle: Any, positions: Array, cell: Array) -> None:
    """Forces and virial against energies at displaced atoms and in strained cells."""
    n = len(positions)
    forces, virial = step(handle, 0, positions, cell)

    def energy(r: Array, h: Array) -> float:
        step(handle, 1, r, h)
        return bias_energy(handle)

    # Central differences of 1e-4 A: error of order 1e-8 of the largest force. Engine: kJ/mol, nm.
    delta = 1e-4
    assert abs(forces).max() > 0.1
    for i, a in [(0, 0), (1, 1), (3, 1), (n - 1, 2)]:
        shift = np.zeros((n, 3))
        shift[i, a] = delta
        slope = energy(positions + shift, cell) - energy(positions - shift, cell)
        expected = -slope / (2 * 0.1 * delta)
        np.testing.assert_allclose(forces[i, a], expected, rtol=1e-6, atol=1e-7 * abs(forces).max())
    expected_virial = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[a, b] = delta
            plus, minus = np.eye(3) + strain, np.eye(3) - strain
            slope = energy(positions @ plus, cell @ plus) - energy(positions @ minus, cell @ minus)
            expected_virial[a, b] = slope / (2 * delta)  # PLUMED gives the engine + dE/d strain
    np.testing.assert_allclose(virial, expected_virial, rtol=1e-6, atol=1e-6 * abs(virial).max())
    handle.finalize()


def write_model(path: Path, **changes: Any) -> None:
    """Write a model of 5 atoms, then replace tensors or metadata in the file."""
    cv = random_model(np.random.default_rng(11), 5, 3, [4], 1, "tanh", TRICLINIC)
    cv.save(path)
    if not changes:
        return
    tensors = load_file(path)
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    metadata = header["__metadata__"]
    for name, value in changes.items():
        (metadata if isinstance(value, str) else tensors)[name.replace("__", ".")] = value
    save_file(tensors, path, metadata)
