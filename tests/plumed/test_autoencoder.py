"""Values of AUTOENCODER in a real PLUMED against their definition in NumPy."""

from pathlib import Path

import numpy as np
import pytest
from ase import units as ase_units

from plumed_cv.cv import ACTIVATIONS, CollectiveVariable, linear, random_model
from plumed_cv.structures.frame import Drift
from tests.plumed.autoencoder import NO_CELL, TRICLINIC, configurations, step
from tests.plumed.babf import Array, MakePlumed


def inverse_mass(gradient: Array, masses: Array) -> float:
    return float(np.linalg.det(np.einsum("kia,lia,i->kl", gradient, gradient, 1 / masses)))


def assert_agrees(
    make_plumed: MakePlumed,
    folder: Path,
    cv: CollectiveVariable,
    rng: np.random.Generator,
    box: Array | float = 0.0,
) -> None:
    cv.save(folder / "cv.safetensors")
    nodes = ",".join(f"ae.node-{k}" for k in range(cv.n_latent))
    handle = make_plumed(
        cv.n_atoms,
        f"ae: AUTOENCODER MODEL={folder}/cv.safetensors\n"
        f"PRINT ARG=ae.* FILE={folder}/colvar FMT=%.17g\n"
        f"DUMPDERIVATIVES ARG={nodes} FILE={folder}/derivatives FMT=%.17g",
    )
    masses = rng.uniform(50, 60, size=cv.n_atoms)
    structures = configurations(cv, rng)
    for number, (positions, cell) in enumerate(structures):
        step(handle, number, positions, cell + box, masses)
    handle.finalize()

    values = np.loadtxt(folder / "colvar", ndmin=2)[:, 1:]
    per_step = 3 * cv.n_atoms + 9
    derivatives = np.loadtxt(folder / "derivatives")[:, 2:].reshape(-1, per_step, cv.n_latent)
    for (positions, cell), row, got in zip(structures, values, derivatives, strict=True):
        gradient = cv.gradient(positions, cell)
        size = np.linalg.norm(gradient, axis=(1, 2))
        # The rounding of positions of 30 A, times the slope, is all that may differ.
        np.testing.assert_allclose(
            row[: cv.n_latent], cv.value(positions, cell), rtol=1e-12, atol=1e-13 * (1 + size.max())
        )
        np.testing.assert_allclose(row[-5], cv.deviation(positions, cell), rtol=1e-12)
        largest = cv.atom_deviations(positions, cell).max()
        np.testing.assert_allclose(row[-2], largest, rtol=1e-11, atol=1e-13)
        volume = size.prod()
        # From the gradient over the atoms; by singular values, for they may be dependent (ReLU).
        norm = np.linalg.svd(gradient.reshape(cv.n_latent, -1), compute_uv=False).prod()
        np.testing.assert_allclose(row[-4], norm, rtol=1e-12, atol=1e-14 * volume)
        np.testing.assert_allclose(
            row[-3], inverse_mass(gradient, masses), rtol=1e-11, atol=1e-14 * volume**2
        )
        np.testing.assert_allclose(
            got[:-9].T.reshape(gradient.shape), gradient, rtol=1e-12, atol=1e-13 * size.max()
        )
        if cv.reference_cell.any() or cv.is_aligned:
            # PLUMED's box derivatives are minus those to a strain.
            strain = -cv.strain_derivative(positions, cell)
            np.testing.assert_allclose(
                got[-9:].T.reshape(-1, 3, 3), strain, rtol=1e-12, atol=1e-12 * size.max()
            )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_latent", [1, 2, 3])
@pytest.mark.parametrize("cell", [NO_CELL, TRICLINIC], ids=["no cell", "triclinic"])
def test_agrees_with_numpy(
    make_plumed: MakePlumed, tmp_path: Path, activation: str, n_latent: int, cell: Array
) -> None:
    rng = np.random.default_rng([n_latent, *activation.encode()])
    cv = random_model(rng, 13, 7, [6, 9], n_latent, activation, cell)
    assert_agrees(make_plumed, tmp_path, cv, rng)


@pytest.mark.parametrize("drift", ["removed", "kept"])
@pytest.mark.parametrize("directions", [(1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 0, 0)])
def test_slabs_and_fixed_atoms_agree_with_numpy(
    make_plumed: MakePlumed, tmp_path: Path, directions: tuple[int, ...], drift: Drift
) -> None:
    cell = np.array(directions)[:, None] * TRICLINIC
    rng = np.random.default_rng(len(drift))
    cv = random_model(rng, 13, 7, [6, 9], 2, "silu", cell, drift=drift)
    box = np.where(cell.any(axis=1)[:, None], 0.0, [[50.0, 0, 0], [7.0, 60.0, 0], [0, 0, 70.0]])
    assert_agrees(make_plumed, tmp_path, cv, rng, box)


@pytest.mark.parametrize(("n_atoms", "n_latent"), [(10, 1), (22, 2), (3, 1), (40, 3)])
def test_agrees_with_numpy_for_molecules(
    make_plumed: MakePlumed, tmp_path: Path, n_atoms: int, n_latent: int
) -> None:
    rng = np.random.default_rng(n_atoms)
    cv = random_model(rng, n_atoms, 4, [6, 5], n_latent, "tanh", alignment="optimal")
    assert_agrees(make_plumed, tmp_path, cv, rng)


@pytest.mark.parametrize(("n_atoms", "n_components"), [(127, 24), (64, 1), (3, 2)])
def test_agrees_with_numpy_at_other_sizes(
    make_plumed: MakePlumed, tmp_path: Path, n_atoms: int, n_components: int
) -> None:
    rng = np.random.default_rng(n_atoms)
    cv = random_model(rng, n_atoms, n_components, [n_components] * 2, 1, "relu", TRICLINIC)
    assert_agrees(make_plumed, tmp_path, cv, rng)


def test_linear_model(make_plumed: MakePlumed, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    initial = rng.uniform(size=(20, 3)) @ TRICLINIC
    final = initial + rng.normal(scale=0.2, size=(20, 3))
    cv = linear(["Fe"] * 20, TRICLINIC, initial, final)
    assert_agrees(make_plumed, tmp_path, cv, rng)


def test_units_of_length(make_plumed: MakePlumed, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    cv = random_model(rng, 9, 5, [6], 1, "tanh", TRICLINIC)
    cv.save(tmp_path / "cv.safetensors")
    ((positions, cell),) = configurations(cv, rng, 1)
    after = positions + rng.normal(scale=0.01, size=positions.shape)
    rows = {}
    for units, scale in [("A TIME=fs", 1.0), ("nm MASS=2.0", 0.1)]:
        handle = make_plumed(
            9,
            f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n"
            f"PRINT ARG=ae.* FILE={tmp_path}/{units[0]} FMT=%.17g",
            units=f"UNITS LENGTH={units}",
        )
        step(handle, 0, positions, cell)
        step(handle, 1, after, cell)
        handle.finalize()
        # In angstrom and amu: xi, dev, gradnorm, invmass, maxdev; the temperature in K.
        mass = 2.0 if "MASS" in units else 1.0
        in_angstrom = [1, 1 / scale, scale, scale**2 / mass, 1 / scale, 1]
        rows[units[0]] = np.loadtxt(tmp_path / units[0])[:, 1:] * in_angstrom
    np.testing.assert_allclose(rows["n"], rows["A"], rtol=1e-11)
    assert np.isnan(rows["A"][0, -1])  # there is no step before the first


def test_kinetic_temperature(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """The velocity of a linear CV is exact: m v^2 = kT of one coordinate."""
    initial = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    final = initial + np.array([[0.0, 0.0, 0.0], [0.0, 1.5, 0.0]])
    linear(["Fe", "Fe"], np.zeros((3, 3)), initial, final).save(tmp_path / "cv.safetensors")
    handle = make_plumed(
        2,
        f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n"
        f"PRINT ARG=ae.temp FILE={tmp_path}/colvar FMT=%.17g",
        timestep_ps=0.002,
    )
    masses, velocity = np.array([56.0, 56.0]), 0.003  # amu, angstrom/fs
    for number in (0, 1, 2, 5):
        positions = initial + np.array([[0.0] * 3, [0.0, 2.0 * velocity * number, 0.0]])
        step(handle, number, positions, np.zeros((3, 3)), masses)
    handle.finalize()
    got = np.loadtxt(tmp_path / "colvar")[:, 1]
    # The reduced mass is that of the relative motion, along which the variable goes.
    kT_eV = 28.0 * (velocity / ase_units.fs) ** 2
    assert np.isnan(got[[0, 3]]).all()  # the first, and one whose step before was not computed
    np.testing.assert_allclose(got[1:3], kT_eV / ase_units.kB, rtol=1e-6)


def test_kinetic_temperature_of_a_step_computed_again(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """The temperature is that of the step, also with numerical derivatives."""
    initial = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    final = initial + np.array([[0.0, 0.0, 0.0], [0.0, 1.5, 0.0]])
    linear(["Fe", "Fe"], np.zeros((3, 3)), initial, final).save(tmp_path / "cv.safetensors")
    handle = make_plumed(
        2,
        f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n"
        f"n: AUTOENCODER MODEL={tmp_path}/cv.safetensors NUMERICAL_DERIVATIVES\n"
        "DUMPDERIVATIVES ARG=n.node-0 FILE=/dev/null\n"
        f"PRINT ARG=ae.temp,n.temp FILE={tmp_path}/colvar FMT=%.17g",
    )
    for number in (0, 1, 1):
        positions = initial + np.array([[0.0] * 3, [0.0, 0.01 * number, 0.0]])
        step(handle, number, positions, NO_CELL)
    handle.finalize()
    _, of_analytic, of_numerical = np.loadtxt(tmp_path / "colvar").T
    assert np.isfinite(of_analytic[1:]).all()
    np.testing.assert_allclose(of_analytic[2], of_analytic[1], rtol=1e-12)
    np.testing.assert_allclose(of_numerical[1:], of_analytic[1:], rtol=1e-12)


def test_atoms_override_serials(make_plumed: MakePlumed, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    cv = random_model(rng, 6, 4, [5], 1, "silu", TRICLINIC)
    cv.save(tmp_path / "cv.safetensors")
    ((positions, cell),) = configurations(cv, rng, 1)
    order = rng.permutation(30)[:6]
    everything = rng.uniform(0, 9, size=(30, 3))
    everything[order] = positions
    serials = ",".join(str(i + 1) for i in order)
    handle = make_plumed(
        30,
        f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors ATOMS={serials}\n"
        f"PRINT ARG=ae.node-0 FILE={tmp_path}/colvar FMT=%.17g",
    )
    step(handle, 0, everything, cell)
    handle.finalize()
    got = np.loadtxt(tmp_path / "colvar")[1]
    np.testing.assert_allclose(got, cv.value(positions, cell)[0], rtol=1e-12)
