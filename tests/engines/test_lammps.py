"""The LAMMPS engine against independent forces, statistics and itself after a restart."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, make_supercell
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.engines import (
    Dynamics,
    Segment,
    State,
    draw_velocities,
)
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.engines.lammps_potential import neighbour_settings
from plumed_cv.engines.lammps_program import LammpsProgram
from plumed_cv.engines.process import how_it_ended, run_program
from plumed_cv.setup.kernel import Plumed
from plumed_cv.structures import orient
from tests.engines.kits import script_output

Array = NDArray[np.float64]

# A mixture of two Lennard-Jones species: epsilon (eV), sigma (angstrom); cutoff, not shifted.
LJ = {("Ar", "Ar"): (0.0103, 3.40), ("Ar", "Kr"): (0.0125, 3.52), ("Kr", "Kr"): (0.0140, 3.65)}
CUTOFF = 7.0
POTENTIAL = [f"pair_style lj/cut {CUTOFF}"] + [
    f"pair_coeff {i} {j} {LJ[pair][0]} {LJ[pair][1]}"
    for (i, j), pair in {(1, 1): ("Ar", "Ar"), (1, 2): ("Ar", "Kr"), (2, 2): ("Kr", "Kr")}.items()
]
SPECIES = ("Ar", "Kr")
EAM = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]


def mixture(seed: int = 0, shear: float = 0.0) -> Atoms:
    """32 atoms of an fcc mixture of two species, displaced, in a cell that may be sheared."""
    rng = np.random.default_rng(seed)
    atoms: Atoms = bulk("Ar", cubic=True, a=5.4) * (2, 2, 2)
    cell = atoms.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = 3.1 * shear, -1.7 * shear, 2.3 * shear
    atoms.set_cell(cell, scale_atoms=True)
    atoms.symbols[1::3] = "Kr"
    atoms.positions += rng.normal(scale=0.15, size=(len(atoms), 3))
    return atoms


def reference(atoms: Atoms) -> tuple[float, Array, Array]:
    """Energy, forces and stress (xx yy zz yz xz xy) of the mixture, from a list of pairs."""
    first, second, length, vector = neighbor_list("ijdD", atoms, CUTOFF)
    symbols = np.array(atoms.symbols)
    pairs = [LJ[tuple(sorted(p))] for p in zip(symbols[first], symbols[second], strict=True)]
    epsilon, sigma = np.array(pairs).T
    power = (sigma / length) ** 6
    energy = float((2 * epsilon * (power**2 - power)).sum())  # each pair is listed twice
    slope = -24 * epsilon * (2 * power**2 - power) / length
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, first, (slope / length)[:, None] * vector)
    stress = 0.5 * np.einsum("p,pa,pb->ab", slope / length, vector, vector)
    volume = atoms.cell.volume or 1.0
    return energy, forces, (stress / volume)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


@pytest.fixture(scope="module")
def engine() -> Iterator[LammpsEngine]:
    with LammpsEngine(POTENTIAL, mixture(), species=SPECIES) as engine:
        yield engine


@pytest.mark.parametrize("shear", [0.0, 1.0, 3.0])
def test_energy_forces_and_stress(shear: float) -> None:
    atoms = mixture(shear=shear)
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES) as engine:
        atoms.calc = engine.calculator()
        energy, forces, stress = reference(atoms)
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-11)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-12)
        np.testing.assert_allclose(atoms.get_stress(), stress, rtol=1e-5, atol=1e-10)


def test_energies_of_structures_that_follow_each_other() -> None:
    """Small steps across borders, then far, in another cell, and after forces of others."""
    rng = np.random.default_rng(5)
    atoms = mixture(shear=1.0)
    cells = [atoms.cell.array] * 30 + [1.01 * atoms.cell.array] * 2
    moves = np.cumsum(rng.normal(0.05, 0.1, (32, *atoms.positions.shape)), axis=0)
    moves[20:] += 30.0 * rng.integers(-1, 2, (len(atoms), 3)) @ atoms.cell.array  # other images
    moves[25:] += rng.uniform(0, 6, 3)
    assert moves[19].max() > 1.0
    with LammpsEngine([*POTENTIAL, "neigh_modify delay 10"], atoms, species=SPECIES) as engine:
        for k, (move, cell) in enumerate(zip(moves, cells, strict=True)):
            moved = atoms.copy()
            moved.set_cell(cell, scale_atoms=False)
            moved.positions += move
            if k % 7 == 6:
                engine.forces(atoms.positions[None], atoms.cell.array)
            energy, forces, stress = engine.evaluate(moved.positions, cell)
            expected = reference(moved)
            assert energy == pytest.approx(expected[0], rel=1e-11)
            np.testing.assert_allclose(forces, expected[1], atol=1e-10)
            np.testing.assert_allclose(stress, expected[2], rtol=1e-5, atol=1e-10)


def lammps_of(program: bool, *arguments: Any, **keys: Any) -> LammpsEngine | LammpsProgram:
    if not program:
        return LammpsEngine(*arguments, **keys)
    plugin = Path(script_output("lammps_fix_plumed.py"))
    lmp = str(Path(sys.executable).with_name("lmp"))
    return LammpsProgram(lmp, *arguments, plugin=plugin, **keys)


def test_oriented_turns_all_structures_alike() -> None:
    one = make_supercell(bulk("Ar", a=5.4), 2 * np.eye(3))
    two = one.copy()
    two.rattle(0.1, seed=1)
    with pytest.raises(UserError, match="first vector along x"):
        LammpsEngine(["pair_style lj/cut 5", "pair_coeff * * 0.01 3.4"], one)
    turned = [orient(one), orient(two)]
    moved = two.positions - one.positions
    turned_moved = turned[1].positions - turned[0].positions
    np.testing.assert_allclose(turned_moved @ turned_moved.T, moved @ moved.T, atol=1e-12)
    with LammpsEngine(["pair_style lj/cut 5", "pair_coeff * * 0.01 3.4"], turned[0]) as engine:
        turned[1].calc = engine.calculator()
        assert np.isfinite(turned[1].get_forces()).all()


def test_maxwell_boltzmann() -> None:
    rng = np.random.default_rng(1)
    masses = np.where(np.arange(4000) % 2, 40.0, 84.0)
    velocities = draw_velocities(rng, masses, 120.0)
    np.testing.assert_allclose((masses[:, None] * velocities).sum(axis=0), 0, atol=1e-10)
    for mass in (40.0, 84.0):
        energy = 0.5 * mass * (velocities[masses == mass] ** 2).sum(axis=1).mean() / units.fs**2
        # 6000 squares of normals: relative error 1.8 %, five of them.
        assert energy == pytest.approx(1.5 * units.kB * 120.0, rel=0.09)


def test_langevin_keeps_the_temperature(tmp_path: Path, engine: LammpsEngine) -> None:
    dynamics = Dynamics(40.0, timestep_fs=4.0, friction_per_ps=10.0)
    engine.run(Segment(tmp_path, State.of(mixture()), dynamics, 60_000, 3))
    log = (tmp_path / "log.lammps").read_text()
    lines = re.findall(r"^\s*(\d+)\s+(\S+)\s+(\S+)\s*$", log, re.MULTILINE)
    temperatures = np.array([float(words[1]) for words in lines])[5:]
    assert len(temperatures) == 56
    # 96 degrees of freedom, samples 4 ps apart at a correlation time of 0.1 ps: each has a
    # relative error of sqrt(2/96) = 14 %, the mean of 56 has 1.9 %; five of them. The
    # discretisation adds less than 0.1 %.
    assert temperatures.mean() == pytest.approx(40.0, rel=0.096)


def test_forces_after_a_run_that_plumed_has_stopped(tmp_path: Path) -> None:
    """A stop leaves the timer expired; later runs would end before their first step."""
    atoms = mixture()
    others = np.stack([mixture(seed).positions for seed in (1, 2, 3)])
    plumed = "d: DISTANCE ATOMS=1,2\nCOMMITTOR ARG=d BASIN_LL1=0 BASIN_UL1=100 STRIDE=1\n"
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES) as engine:
        stopped = engine.run(
            Segment(tmp_path, State.of(atoms), Dynamics(50.0), 20, seed=1, plumed=plumed)
        )
        assert stopped.stopped_by_plumed
        found = engine.forces(others, atoms.cell.array)
        again = engine.evaluate(others[1], atoms.cell.array)[1]
    for structure, forces in zip(others, found, strict=True):
        moved = atoms.copy()
        moved.positions = structure
        np.testing.assert_allclose(forces, reference(moved)[1], atol=1e-9)
    np.testing.assert_allclose(found[1], again, atol=1e-9)


@pytest.mark.parametrize("program", [False, True])
@pytest.mark.parametrize(
    "line",
    [
        "neigh_modify delay 10",
        "neigh_modify every 10 delay 0 check no",
        "neigh_modify once yes",
    ],
)
def test_lists_of_neighbours_for_structures_that_do_not_follow_each_other(
    program: bool, line: str
) -> None:
    """Each structure has the atoms at other places, so no pair of the neighbour list remains."""
    rng = np.random.default_rng(4)
    structures = np.stack([mixture(seed).positions + rng.uniform(0, 6, 3) for seed in range(12)])
    structures[1::2] = structures[1::2, ::-1]
    with lammps_of(program, [*POTENTIAL, line], mixture(), species=SPECIES) as engine:
        found = engine.forces(structures, mixture().cell.array)
        again = engine.forces(structures[::-1], mixture().cell.array)[::-1]
    for structure, forces, same in zip(structures, found, again, strict=True):
        moved = mixture()
        moved.positions = structure
        np.testing.assert_allclose(forces, reference(moved)[1], atol=1e-9)
        np.testing.assert_allclose(same, forces, atol=1e-9)


def test_settings_of_the_list_of_neighbours() -> None:
    lines = [
        "pair_style x",
        "neigh_modify delay 4 every 2 exclude type 1 2",
        "neigh_modify once no",
    ]
    assert neighbour_settings(lines) == [
        "neigh_modify delay 4",
        "neigh_modify every 2",
        "neigh_modify once no",
    ]


def test_brownian_diffusion_and_mobility(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    atoms = Atoms("ArKr" * 2000, rng.uniform(0, 300, (4000, 3)), cell=[300] * 3, pbc=True)
    dynamics = Dynamics(250.0, timestep_fs=2.0, thermostat="brownian", friction_per_ps=50.0)
    with LammpsEngine(["pair_style zero 5.0", "pair_coeff * *"], atoms) as engine:
        start = State.of(atoms)
        end = engine.run(Segment(tmp_path, start, dynamics, 50, 3, snapshot_stride=0)).end
    for kind, mass in ((0, 39.948), (1, 83.798)):
        moved = (end.positions - start.positions)[kind::2]
        # 2 D t with D = kT / (m gamma); 6000 squares of normals: error 1.8 %, five of them.
        diffusion = units.kB * 250.0 / (mass * 0.05 / units.fs)  # angstrom^2 per ASE's time
        expected = 2 * diffusion * 100 * units.fs
        assert (moved**2).mean() == pytest.approx(expected, rel=0.092)


def test_atoms_that_do_not_fit(engine: LammpsEngine) -> None:
    with pytest.raises(UserError, match="31 atoms"):
        engine.check(mixture()[:31])
    other = mixture()
    other.symbols[4] = "Ne"
    with pytest.raises(UserError, match="atom 5 is Ne"):
        engine.check(other)
    with pytest.raises(UserError, match="also contains Kr"):
        LammpsEngine(POTENTIAL, mixture(), species=["Ar"])
    with pytest.raises(UserError, match="'Xx9' is not a chemical symbol"):
        LammpsEngine(POTENTIAL, mixture(), species=["Ar", "Kr", "Xx9"])
    surface = mixture()
    surface.pbc = [True, True, False]
    with pytest.raises(UserError, match=r"is periodic along .* the same periodic boundaries"):
        engine.check(surface)


def test_positions_that_are_no_numbers(engine: LammpsEngine) -> None:
    atoms = mixture()
    atoms.positions[3, 1] = np.nan
    atoms.calc = engine.calculator()
    with pytest.raises(UserError, match="not all finite numbers"):
        atoms.get_forces()
    atoms = mixture()
    atoms.positions[3] = atoms.positions[4]
    atoms.calc = engine.calculator()
    with pytest.raises(UserError, match="not finite"):
        atoms.get_forces()


def test_a_program_on_two_ranks(tmp_path: Path, plumed_installation: Plumed) -> None:
    """Without PLUMED: tests/plumed/test_mpi.py has one with MPI."""
    atoms, programs = mixture(shear=1.0), Path(sys.executable).parent
    command = f"{programs / 'mpirun'} -np 2 {programs / 'lmp'}"
    with LammpsProgram(command, POTENTIAL, atoms, species=SPECIES) as engine:
        energy, forces, _ = engine.evaluate(atoms.positions, atoms.cell.array)
        assert energy == pytest.approx(reference(atoms)[0], rel=1e-11)
        np.testing.assert_allclose(forces, reference(atoms)[1], atol=1e-12)
        result = engine.run(Segment(tmp_path, State.of(atoms), Dynamics(40.0), 50, 1))
        assert result.n_steps == 50
        assert "on 2 procs" in (tmp_path / "log.lammps").read_text()
        if not plumed_installation.mpi:  # PLUMED would see a part of the atoms on each rank
            biased = Segment(tmp_path, State.of(atoms), Dynamics(40.0), 1, 1, "d: DISTANCE\n")
            with pytest.raises(
                UserError, match=r"starts 2 MPI ranks, but the PLUMED here .* no MPI"
            ):
                engine.run(biased)


BAD_POTENTIALS = {
    "missing file": (["pair_style eam/fs", "pair_coeff * * none.eam.fs Ar Kr"], "none.eam.fs"),
    "unknown style": (["pair_style liquid 1.0"], "Unrecognized pair style 'liquid'"),
    "missing element": (["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Ar Kr"], "element"),
    "missing pair": ([POTENTIAL[0], "pair_coeff 1 1 0.01 3.4"], "coeffs are not set"),
    "no pair_style": (["pair_coeff * * 0.01 3.4"], "no pair_style"),
    "other units": (["units real", *POTENTIAL], "engine.units = 'real'"),
    "unknown command": ([*POTENTIAL, "pear_coeff 1 1 1 1"], "Unknown command: pear_coeff"),
}


@pytest.mark.parametrize("name", BAD_POTENTIALS)
def test_bad_potential(name: str) -> None:
    commands, match = BAD_POTENTIALS[name]
    with pytest.raises(UserError, match=re.escape(match)) as caught:
        LammpsEngine(commands, mixture(), species=SPECIES)
    assert "\n" not in str(caught.value)


def test_a_library_that_lacks_fix_plumed(tmp_path: Path, plugin: Path) -> None:
    """That of PyPI."""
    atoms = mixture()
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES, coupling="plumed") as engine:
        biased = Segment(tmp_path, State.of(atoms), Dynamics(40.0), 1, 1, "d: DISTANCE\n")
        with pytest.raises(
            UserError, match=r"without `fix plumed`; choose the coupling 'external'"
        ):
            engine.run(biased)


def test_missing_file_with_the_potential(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lj\.in: there is no such LAMMPS file"):
        LammpsEngine(Path("lj.in"), mixture(), directory=tmp_path)


@pytest.mark.parametrize("name", BAD_POTENTIALS)
def test_bad_potential_of_a_program(name: str) -> None:
    commands, match = BAD_POTENTIALS[name]
    program = str(Path(sys.executable).with_name("lmp"))
    with pytest.raises(UserError, match=re.escape(match)) as caught:
        LammpsProgram(program, commands, mixture(), species=SPECIES)
    assert "\n" not in str(caught.value)


def test_a_program_that_lacks_fix_plumed(tmp_path: Path, plugin: Path) -> None:
    program = str(Path(sys.executable).with_name("lmp"))
    with LammpsProgram(program, POTENTIAL, mixture(), species=SPECIES) as engine:
        segment = Segment(tmp_path, State.of(mixture()), Dynamics(40.0), 1, 1, "d: DISTANCE\n")
        with pytest.raises(UserError, match="Unrecognized fix style 'plumed'"):
            engine.run(segment)
    with pytest.raises(UserError, match="no-such-lmp: there is no such program"):
        LammpsProgram("no-such-lmp", POTENTIAL, mixture(), species=SPECIES)


def processes_in(folder: Path) -> list[Path]:
    """Processes whose working directory is a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(process)
    return found


FOREVER = """
import sys
from pathlib import Path
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.lammps_program import LammpsProgram
from tests.engines.test_lammps import POTENTIAL, SPECIES, mixture
engine = LammpsProgram(sys.argv[1], POTENTIAL, mixture(), species=SPECIES)
engine.run(Segment(Path(sys.argv[2]), State.of(mixture()), Dynamics(50.0), 10**8, 1))
"""


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_a_program_ends_with_what_started_it(tmp_path: Path, how: str) -> None:
    """pip's lmp is a script: the program that it starts must end too."""
    program = str(Path(sys.executable).with_name("lmp"))
    line = [sys.executable, "-c", FOREVER, program, str(tmp_path)]
    repository = Path(__file__).parents[2]
    with subprocess.Popen(line, cwd=repository, stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 300
        while not processes_in(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_in(tmp_path)
        parent.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
    # After a kill it ends when it has nobody to tell its next thousand steps.
    deadline = time.monotonic() + 200
    while processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_in(tmp_path)


def test_what_an_exit_status_says() -> None:
    assert how_it_ended(3) == "with status 3"
    assert how_it_ended(-9) == "by signal 9 (SIGKILL)"
    assert how_it_ended(137) == "with status 137, as after signal 9 (SIGKILL)"
    assert how_it_ended(247) == "with status 247, as after signal 9 (SIGKILL)"
    killed = ["sh", "-c", "kill -9 $$"]
    assert "SIGKILL" in how_it_ended(run_program(killed, Path.cwd())[0])


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    with LammpsEngine(POTENTIAL, mixture(), species=SPECIES) as engine:
        started: list[int] = []

        def kill(step: int) -> None:
            if not started:
                started.append(step)
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                for child in map(int, children):
                    if b"lammps_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                        victims.append(child)
                os.kill(victims[-1], signal.SIGKILL)

        victims: list[int] = []
        segment = Segment(tmp_path, State.of(mixture()), Dynamics(50.0), 10**7, 1)
        with pytest.raises(UserError, match="signal 9"):
            engine.run(segment, kill)
