"""Forces and virial of AUTOENCODER against numerical derivatives."""

import os
import subprocess
from pathlib import Path

import numpy as np
import plumed
import pytest

from plumed_cv.cv import random_model
from plumed_cv.setup.kernel import Plumed
from tests.plumed.autoencoder import (
    NO_CELL,
    TRICLINIC,
    assert_derivatives_of_the_bias,
    configurations,
    step,
    write_model,
)
from tests.plumed.babf import Array, MakePlumed, sentence


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
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    (folder / "plumed.dat").write_text(lines, encoding="utf-8")
    box = " ".join(f"{v:.17g}" for v in cell.ravel())
    atoms = "\n".join("Fe " + " ".join(f"{v:.17g}" for v in r) for r in positions)
    (folder / "traj.xyz").write_text(f"{len(positions)}\n{box}\n{atoms}\n", encoding="utf-8")
    assert installation.executable is not None
    command = [str(installation.executable), "--no-mpi", "driver", "--plumed", "plumed.dat"]
    command += ["--ixyz", "traj.xyz", "--length-units", "A", *options]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )


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


def test_threads(plumed_installation: Plumed, plugin: Path, tmp_path: Path) -> None:
    """Forces on three threads are those on one."""
    if plumed_installation.executable is None:
        pytest.skip("this PLUMED has no `plumed` program")
    rng = np.random.default_rng(15)
    cv = random_model(rng, 1700, 60, [9], 1, "tanh", 3 * TRICLINIC)
    cv.save(tmp_path / "cv.safetensors")
    positions = cv.reference_positions + rng.normal(scale=0.05, size=(1700, 3))
    lines = (
        f"LOAD FILE={plugin}\nae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n"
        "RESTRAINT ARG=ae.node-0,ae.dev,ae.maxdev AT=0,0,0 SLOPE=1,1,1\n"
    )
    dump = ("--dump-forces", "forces", "--dump-forces-fmt=%.17g", "--dump-full-virial")
    found = []
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        environment = {"PLUMED_NUM_THREADS": str(threads)}
        done = run_driver(
            plumed_installation, folder, lines, positions, cv.reference_cell, dump, environment
        )
        assert done.returncode == 0, done.stderr
        assert ("ae uses 3 threads" in done.stdout) == (threads == 3)
        rows = [line.split() for line in (folder / "forces").read_text().splitlines()[1:]]
        virial, *atoms = rows
        numbers = [*virial, *(number for atom in atoms for number in atom[1:])]
        found.append(np.array(numbers, dtype=float))
    assert len(found[0]) == 9 + 3 * 1700
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-12 * abs(found[0]).max())
