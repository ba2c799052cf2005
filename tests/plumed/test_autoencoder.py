"""AUTOENCODER in a real PLUMED against the NumPy definition and against numerical derivatives."""

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plumed
import pytest
from ase import units as ase_units
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.spatial.transform import Rotation

from plumed_cv.cv import ACTIVATIONS, CollectiveVariable, linear, random_model
from plumed_cv.setup.kernel import Plumed
from plumed_cv.structures.frame import Drift

MakePlumed = Callable[..., Any]
Array = NDArray[np.float64]

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


def sentence(error: BaseException | None) -> str:
    """Return the whole message of PLUMED, which nests an error in a step in other errors."""
    return "" if error is None else f"{error} {sentence(error.__cause__ or error.__context__)}"


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


@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
@pytest.mark.parametrize("component", ["node-0", "dev", "maxdev"])
@pytest.mark.parametrize("alignment", ["none", "optimal"])
def test_forces_and_virial_are_derivatives_of_the_bias(
    make_plumed: MakePlumed, tmp_path: Path, alignment: str, component: str, late: bool
) -> None:
    """The forces are correct also if the bias is added after the first step."""
    rng = np.random.default_rng(8)
    cell = TRICLINIC if alignment == "none" else NO_CELL
    cv = random_model(rng, 8, 5, [7], 1, "tanh", cell, alignment)
    cv.save(tmp_path / "cv.safetensors")
    handle = make_plumed(
        8,
        f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n"
        f"PRINT ARG=ae.{component} FILE={tmp_path}/colvar",
    )
    ((positions, cell),) = configurations(cv, rng, 1)
    if late:
        step(handle, 0, positions, cell)
    handle.cmd("readInputLine", f"RESTRAINT ARG=ae.{component} AT=0.3 KAPPA=2.0")
    assert_derivatives_of_the_bias(handle, positions, cell)


def test_a_wall_keeps_the_atoms_near_the_path(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """Steepest descent in the wall's energy alone ends where the wall begins."""
    rng = np.random.default_rng(14)
    cv = random_model(rng, 8, 5, [7], 1, "tanh", TRICLINIC)
    cv.save(tmp_path / "cv.safetensors")
    handle = make_plumed(
        8,
        f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n"
        "UPPER_WALLS ARG=ae.maxdev AT=0.2 KAPPA=10",
    )
    ((positions, cell),) = configurations(cv, rng, 1)
    assert cv.atom_deviations(positions, cell).max() > 0.3
    for number in range(300):
        forces, _ = step(handle, number, positions, cell)
        positions = positions + 0.1 * forces / (10 * 96.485 * 2 * 10)
    handle.finalize()
    assert cv.atom_deviations(positions, cell).max() < 0.21


def test_a_bias_on_maxdev_needs_it_in_every_step(make_plumed: MakePlumed, tmp_path: Path) -> None:
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(
        5,
        f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors MAXDEV_STRIDE=2\n"
        "UPPER_WALLS ARG=ae.maxdev AT=0 KAPPA=1",
    )
    positions = np.random.default_rng(0).normal(size=(5, 3))
    step(handle, 0, positions, TRICLINIC)
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 1, positions, TRICLINIC)
    assert "ae.maxdev is not computed in step 1, where a bias acts on it" in sentence(caught.value)
    handle.finalize()


@pytest.mark.parametrize("component", ["gradnorm", "invmass", "temp"])
@pytest.mark.parametrize(
    "bias", ["RESTRAINT ARG=ae.node-0,{} AT=0.3,0 KAPPA=2,1", "UPPER_WALLS ARG={} AT=1e9 KAPPA=1"]
)
def test_a_bias_on_what_has_no_derivatives_is_refused(
    make_plumed: MakePlumed, tmp_path: Path, component: str, bias: str
) -> None:
    """It is refused at once, and not only when the system reaches a wall."""
    rng = np.random.default_rng(12)
    cv = random_model(rng, 5, 3, [4], 1, "tanh", TRICLINIC)
    cv.save(tmp_path / "cv.safetensors")
    ((positions, cell),) = configurations(cv, rng, 1)
    handle = make_plumed(
        5,
        f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n" + bias.format(f"ae.{component}"),
    )
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 0, positions, cell)
    assert f"a bias on ae.{component} has no force" in sentence(caught.value)
    handle.finalize()


def test_forces_of_several_components_add_up(make_plumed: MakePlumed, tmp_path: Path) -> None:
    rng = np.random.default_rng(13)
    cv = random_model(rng, 6, 4, [5], 3, "tanh", TRICLINIC)
    cv.save(tmp_path / "cv.safetensors")
    ((positions, cell),) = configurations(cv, rng, 1)
    slopes = np.array([0.7, 0.0, -1.3])
    handle = make_plumed(
        6,
        f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n"
        "RESTRAINT ARG=ae.node-0,ae.node-1,ae.node-2 AT=0,0,0 "
        f"SLOPE={','.join(map(str, slopes))}",
    )
    forces, virial = step(handle, 0, positions, cell)
    handle.finalize()
    # The engine's units are kJ/mol and nm, those of the slopes eV.
    kj_per_mol = 96.48533212331
    gradient = np.einsum("k,kia->ia", slopes, cv.gradient(positions, cell))
    np.testing.assert_allclose(forces, -10 * kj_per_mol * gradient, rtol=1e-6, atol=1e-6)
    strain = np.einsum("k,kab->ab", slopes, cv.strain_derivative(positions, cell))
    np.testing.assert_allclose(virial, kj_per_mol * strain, rtol=1e-6, atol=1e-6)


def run_driver(
    installation: Plumed,
    folder: Path,
    lines: str,
    positions: Array,
    cell: Array,
    options: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    (folder / "plumed.dat").write_text(lines, encoding="utf-8")
    box = " ".join(f"{v:.17g}" for v in cell.ravel())
    atoms = "\n".join("Fe " + " ".join(f"{v:.17g}" for v in r) for r in positions)
    (folder / "traj.xyz").write_text(f"{len(positions)}\n{box}\n{atoms}\n", encoding="utf-8")
    assert installation.executable is not None
    command = [str(installation.executable), "--no-mpi", "driver", "--plumed", "plumed.dat"]
    command += ["--ixyz", "traj.xyz", "--length-units", "A", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("activation", "cell", "alignment"),
    [
        ("relu", TRICLINIC, "none"),
        ("silu", TRICLINIC, "none"),
        ("silu", NO_CELL, "none"),
        ("tanh", NO_CELL, "optimal"),  # of a molecule in the engine's cell
    ],
)
def test_numerical_derivatives_in_driver(
    plumed_installation: Plumed,
    plugin: Path,
    tmp_path: Path,
    activation: str,
    cell: Array,
    alignment: str,
) -> None:
    if plumed_installation.executable is None:
        pytest.skip("this PLUMED has no `plumed` program")
    rng = np.random.default_rng(9)
    cv = random_model(rng, 8, 5, [7], 2, activation, cell, alignment)
    cv.save(tmp_path / "cv.safetensors")
    ((positions, cell),) = configurations(cv, rng, 1)
    done = run_driver(
        plumed_installation,
        tmp_path,
        f"UNITS LENGTH=A\nLOAD FILE={plugin}\n"
        "a: AUTOENCODER MODEL=cv.safetensors\n"
        "n: AUTOENCODER MODEL=cv.safetensors NUMERICAL_DERIVATIVES\n"
        "DUMPDERIVATIVES ARG=a.node-0,a.node-1,a.dev,a.maxdev FILE=analytic FMT=%.12f\n"
        "DUMPDERIVATIVES ARG=n.node-0,n.node-1,n.dev,n.maxdev FILE=numerical FMT=%.12f\n"
        "PRINT ARG=a.* FILE=colvar FMT=%.17g\n",
        positions,
        cell,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    analytic, numerical = (np.loadtxt(tmp_path / f)[:, 2:] for f in ("analytic", "numerical"))
    # Forward differences of 1.5e-8 A: positions of 30 A round to 4e-15, so 2e-7 of the slope, and
    # more in a larger cell. The box derivatives are these times the box; three of them add up, and
    # in a molecule the images of all atoms.
    scale = abs(analytic[:-9]).max(axis=0) * max(1.0, cell.max() / 10)
    assert (abs(analytic - numerical)[:-9] < 1e-6 * scale).all()
    if cell.any():  # without a cell PLUMED has no numerical virial
        assert (abs(analytic - numerical)[-9:] < 6e-5 * scale).all()
    row = np.loadtxt(tmp_path / "colvar")[1:]
    np.testing.assert_allclose(row[:2], cv.value(positions, cell), rtol=1e-9)
    # The driver has no masses: the rest must not suffer from it.
    assert np.isnan(row[[-3, -1]]).all()
    assert np.isfinite(np.delete(row, [-3, -1])).all()


@pytest.mark.parametrize("cell", [NO_CELL, TRICLINIC], ids=["no cell", "triclinic"])
def test_the_driver_finds_the_forces_of_babf(
    plumed_installation: Plumed, plugin: Path, tmp_path: Path, cell: Array
) -> None:
    """`--debug-forces` computes every step again with slightly displaced atoms and cell."""
    if plumed_installation.executable is None:
        pytest.skip("this PLUMED has no `plumed` program")
    rng = np.random.default_rng(15)
    cv = random_model(rng, 8, 5, [7], 1, "tanh", cell)
    cv.save(tmp_path / "cv.safetensors")
    ((positions, cell),) = configurations(cv, rng, 1)
    xi = cv.value(positions, cell)[0]
    done = run_driver(
        plumed_installation,
        tmp_path,
        f"UNITS LENGTH=A ENERGY=eV\nLOAD FILE={plugin}\n"
        "ae: AUTOENCODER MODEL=cv.safetensors\n"
        f"b: BABF ARG=ae.node-0 TEMP=300 GRID_MIN={xi + 0.05} GRID_MAX={xi + 1} GRID_BIN=10 "
        "RAMP=0 SOLVE_STRIDE=1\n",
        positions,
        cell,
        ("--debug-forces", "found"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, analytic, numerical = np.loadtxt(tmp_path / "found").T
    assert abs(analytic).max() > 1e-3
    # Printed to six digits behind the point; the forward differences are of 1.5e-8 nm.
    np.testing.assert_allclose(
        analytic[:-9], numerical[:-9], rtol=1e-4, atol=1e-5 * abs(analytic).max()
    )


def test_numerical_strain_without_a_cell(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """Without a cell the virial is that of positions scaled about any origin."""
    rng = np.random.default_rng(10)
    cv = random_model(rng, 8, 5, [7], 1, "tanh")
    cv.save(tmp_path / "cv.safetensors")
    handle = make_plumed(
        8,
        f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n"
        "RESTRAINT ARG=ae.node-0 AT=0.0 SLOPE=1.0",
    )
    ((positions, cell),) = configurations(cv, rng, 1)
    forces, virial = step(handle, 0, positions, cell)
    np.testing.assert_allclose(
        virial, -0.1 * positions.T @ forces, rtol=1e-10, atol=1e-10 * abs(virial).max()
    )
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


def truncated(path: Path) -> None:
    write_model(path)
    path.write_bytes(path.read_bytes()[:-100])


def text(path: Path) -> None:
    path.write_text("ATOMS=1-10", encoding="utf-8")


def foreign(path: Path) -> None:
    save_file({"weight": np.zeros(3)}, path, {"format": "pt"})


MISTAKES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "missing file": (lambda path: None, "", "the model file does not exist"),
    "folder": (lambda path: path.mkdir(), "", "cannot be read as a file"),
    "truncated": (truncated, "", "is truncated"),
    "text file": (text, "", "not a safetensors file"),
    "empty file": (lambda path: path.touch(), "", "not a safetensors file"),
    "foreign model": (foreign, "", "not a model file of plumed_cv"),
    "later version": (lambda p: write_model(p, format_version="2"), "", "format version 2"),
    "unit": (lambda p: write_model(p, length_unit="nm"), "", "lengths in nm"),
    "activation": (lambda p: write_model(p, activation="gelu"), "", "unknown activation gelu"),
    "NaN": (lambda p: write_model(p, pca_mean=np.full(15, np.nan)), "", "not finite"),
    "species": (lambda p: write_model(p, species='["Fe"]'), "", "species of its 5 atoms"),
    "tampered weight": (
        lambda p: write_model(p, encoder__0__bias=np.zeros(4)),
        "",
        "does not give its own check values",
    ),
    "tampered check": (lambda p: write_model(p, check_value=np.ones(1)), "", "check values"),
    "wrong shape": (lambda p: write_model(p, latent_shift=np.ones(2)), "", "latent_shift"),
    "atom count": (write_model, "ATOMS=1-4", "has 5 atoms and ATOMS lists 4"),
    "atom twice": (write_model, "ATOMS=1-4,2", "lists atom 2 twice"),
    "atom out of range": (write_model, "ATOMS=1-4,9", "out of range"),
    "unknown keyword": (write_model, "STRIDE=1", "STRIDE"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_sentence(
    make_plumed: MakePlumed, tmp_path: Path, mistake: str
) -> None:
    prepare, keywords, message = MISTAKES[mistake]
    path = tmp_path / "cv.safetensors"
    prepare(path)
    handle = make_plumed(5)
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"ae: AUTOENCODER MODEL={path} {keywords}")
    assert message in sentence(caught.value)
    handle.finalize()


def test_model_is_compulsory_and_natural_units_are_refused(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    handle = make_plumed(5)
    with pytest.raises(plumed.PlumedError, match="MODEL is compulsory"):
        handle.cmd("readInputLine", "ae: AUTOENCODER")
    handle.finalize()
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(5, units="UNITS NATURAL")
    with pytest.raises(plumed.PlumedError, match="UNITS NATURAL cannot be used"):
        handle.cmd("readInputLine", f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors")
    handle.finalize()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (NO_CELL, "the engine gives no cell"),
        (np.diag([9.0, 8.0, 0.0]), "the engine gives no cell"),
        (2 * TRICLINIC, "differs from the model's by more than 25 %"),
        (0.1 * TRICLINIC, "differs from the model's by more than 25 %"),
        (TRICLINIC[[1, 0, 2]], "differs from the model's by more than 25 %"),
    ],
    ids=["none", "flat", "supercell", "unit", "order"],
)
def test_other_cells(make_plumed: MakePlumed, tmp_path: Path, cell: Array, message: str) -> None:
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(5, f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\nPRINT ARG=ae.*")
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 0, np.zeros((5, 3)), cell)
    assert message in sentence(caught.value)
    handle.finalize()


def test_a_flip_of_the_cell_is_refused(make_plumed: MakePlumed, tmp_path: Path) -> None:
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(5, f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\nPRINT ARG=ae.*")
    step(handle, 0, np.zeros((5, 3)), TRICLINIC)
    flipped = TRICLINIC - np.outer([0, 1, 0], TRICLINIC[0])
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 1, np.zeros((5, 3)), flipped)
    assert "differs from the model's by more than 25 %" in sentence(caught.value)
    handle.finalize()


def test_a_rotation_of_the_cell_is_refused(make_plumed: MakePlumed, tmp_path: Path) -> None:
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(5, f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\nPRINT ARG=ae.*")
    turn = Rotation.from_rotvec([0.0, 0.0, 0.05]).as_matrix()
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 0, np.zeros((5, 3)), TRICLINIC @ turn)
    assert "is rotated" in sentence(caught.value)
    handle.finalize()


@pytest.mark.parametrize(("mass", "warned"), [(55.845, False), (57.0, False), (63.5, True)])
def test_masses_of_other_elements_are_reported(
    make_plumed: MakePlumed, tmp_path: Path, mass: float, warned: bool
) -> None:
    write_model(tmp_path / "cv.safetensors")
    handle = make_plumed(5, f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\nPRINT ARG=ae.*")
    masses = np.full(5, 55.845)
    masses[3] = mass
    step(handle, 0, np.zeros((5, 3)), TRICLINIC, masses)
    handle.finalize()
    log = (tmp_path / "plumed.log").read_text(encoding="utf-8")
    assert ("atom 4 is Fe in the model and has a mass of 63.5" in log) == warned
