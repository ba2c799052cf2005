"""The LAMMPS engine against independent forces, statistics and itself after a restart."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, make_supercell
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from plumed_cv.engines import Dynamics, Segment, State, maxwell_boltzmann
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.errors import UserError
from plumed_cv.path import oriented

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
PLUMED_UNITS = "UNITS LENGTH=A ENERGY=eV TIME=fs\n"


def mixture(seed: int = 0, shear: float = 0.0, periodic: bool = True) -> Atoms:
    """32 atoms of an fcc mixture of two species, displaced, in a cell that may be sheared."""
    rng = np.random.default_rng(seed)
    atoms: Atoms = bulk("Ar", cubic=True, a=5.4) * (2, 2, 2)
    cell = atoms.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = 3.1 * shear, -1.7 * shear, 2.3 * shear
    atoms.set_cell(cell, scale_atoms=True)
    atoms.symbols[1::3] = "Kr"
    atoms.positions += rng.normal(scale=0.15, size=(len(atoms), 3))
    atoms.pbc = periodic
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


def test_atoms_in_other_images_and_another_cell(engine: LammpsEngine) -> None:
    atoms = mixture()
    shifts = np.random.default_rng(1).integers(-3, 4, size=(len(atoms), 3))
    energy, forces, _ = reference(atoms)
    atoms.positions += shifts @ atoms.cell.array
    atoms.calc = engine.calculator()
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-11)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-11)
    for shear in (0.5, 0.0):
        cell = mixture(shear=shear).cell.array * 1.01
        atoms.set_cell(cell, scale_atoms=True)
        np.testing.assert_allclose(atoms.get_forces(), reference(atoms)[1], atol=1e-11)


def test_calculators_share_the_engine_and_keep_their_results(engine: LammpsEngine) -> None:
    images = [mixture(seed) for seed in range(3)]
    for image in images:
        image.calc = engine.calculator()
    for _ in range(2):
        for image in images:
            np.testing.assert_allclose(image.get_forces(), reference(image)[1], atol=1e-12)


def test_a_cluster_has_no_box(tmp_path: Path, plugin: Path) -> None:
    atoms = mixture(periodic=False)
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES) as engine:
        atoms.calc = engine.calculator()
        np.testing.assert_allclose(atoms.get_forces(), reference(atoms)[1], atol=1e-12)
        # With a box the distance would be that to the nearest image.
        ends = np.argmin(atoms.positions.sum(axis=1)), np.argmax(atoms.positions.sum(axis=1))
        plumed = f"d: DISTANCE ATOMS={ends[0] + 1},{ends[1] + 1}\nPRINT ARG=d FILE=colvar\n"
        engine.run(Segment(tmp_path, State.of(atoms), Dynamics(1.0), 1, 1, PLUMED_UNITS + plumed))
    distance = np.linalg.norm(atoms.positions[ends[1]] - atoms.positions[ends[0]])
    assert np.loadtxt(tmp_path / "colvar")[0, 1] == pytest.approx(distance, abs=2e-6)


def test_charges() -> None:
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.5]])
    atoms.set_initial_charges([1.0, -1.0])
    potential = ["pair_style coul/cut 10.0", "pair_coeff * *"]
    with LammpsEngine(potential, atoms) as engine:
        atoms.calc = engine.calculator()
        force = units._e**2 / (4 * np.pi * units._eps0) / 2.5**2 * 1e10 / units._e
        assert atoms.get_forces()[0, 2] == pytest.approx(force, rel=1e-5)


def test_masses(tmp_path: Path) -> None:
    atoms = mixture()
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES) as engine:
        np.testing.assert_allclose(engine.masses, atoms.get_masses())
    with LammpsEngine([*POTENTIAL, "mass 2 7.0"], atoms, species=SPECIES) as engine:
        assert set(engine.masses) == {7.0, 39.948}
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES, masses={"Ar": 5.0}) as engine:
        assert set(engine.masses) == {5.0, 83.798}


def test_a_file_that_sets_up_the_potential(tmp_path: Path) -> None:
    (tmp_path / "lj.in").write_text("\n".join(POTENTIAL))
    atoms = mixture()
    with LammpsEngine(Path("lj.in"), atoms, species=SPECIES, directory=tmp_path) as engine:
        atoms.calc = engine.calculator()
        np.testing.assert_allclose(atoms.get_forces(), reference(atoms)[1], atol=1e-12)


def test_potential_of_the_lammps_package() -> None:
    atoms = bulk("Fe", cubic=True, a=2.8553) * (4, 4, 4)
    with LammpsEngine(EAM, atoms) as engine:
        atoms.calc = engine.calculator()
        # Cohesive energy of this potential: Mendelev et al., Philos. Mag. 83, 3977 (2003).
        assert atoms.get_potential_energy() / len(atoms) == pytest.approx(-4.12, abs=0.005)


def test_oriented_turns_all_structures_alike() -> None:
    one = make_supercell(bulk("Ar", a=5.4), 2 * np.eye(3))
    two = one.copy()
    two.rattle(0.1, seed=1)
    with pytest.raises(UserError, match="first vector along x"):
        LammpsEngine(["pair_style lj/cut 5", "pair_coeff * * 0.01 3.4"], one)
    turned = [oriented(one), oriented(two)]
    moved = two.positions - one.positions
    turned_moved = turned[1].positions - turned[0].positions
    np.testing.assert_allclose(turned_moved @ turned_moved.T, moved @ moved.T, atol=1e-12)
    with LammpsEngine(["pair_style lj/cut 5", "pair_coeff * * 0.01 3.4"], turned[0]) as engine:
        turned[1].calc = engine.calculator()
        assert np.isfinite(turned[1].get_forces()).all()


def test_maxwell_boltzmann() -> None:
    rng = np.random.default_rng(1)
    masses = np.where(np.arange(4000) % 2, 40.0, 84.0)
    velocities = maxwell_boltzmann(rng, masses, 120.0)
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


@pytest.mark.parametrize("count_start", [True, False])
def test_brownian_step_follows_the_force_and_the_bias(
    tmp_path: Path, engine: LammpsEngine, plugin: Path, count_start: bool
) -> None:
    atoms = mixture()
    cold = Dynamics(1e-20, timestep_fs=1.0, thermostat="brownian", friction_per_ps=10.0)
    plumed = "d: DISTANCE ATOMS=1,2\nb: RESTRAINT ARG=d AT=0 KAPPA=0 SLOPE=0.5\n"
    segment = Segment(
        tmp_path, State.of(atoms), cold, 1, 1, PLUMED_UNITS + plumed, count_start=count_start
    )
    moved = engine.run(segment).end.positions - atoms.positions
    vector = atoms.get_distance(0, 1, mic=True, vector=True)
    forces = reference(atoms)[1]
    forces[0] += 0.5 * vector / np.linalg.norm(vector)
    forces[1] -= 0.5 * vector / np.linalg.norm(vector)
    friction = atoms.get_masses() * 0.01 / units.fs
    expected = forces / friction[:, None] * units.fs
    np.testing.assert_allclose(moved, expected, atol=1e-10, rtol=1e-5)


def test_a_run_does_not_depend_on_what_the_process_did_before(tmp_path: Path, plugin: Path) -> None:
    atoms = mixture(shear=1.0)
    plumed = PLUMED_UNITS + (
        "d: DISTANCE ATOMS=1,12\nm: METAD ARG=d PACE=5 HEIGHT=0.001 SIGMA=0.1 FILE=hills\n"
        "PRINT ARG=d,m.bias FILE=colvar STRIDE=1 FMT=%.17g\n"
    )
    dynamics = Dynamics(60.0, timestep_fs=2.0)

    def segment(name: str, start: State, first_step: int) -> Segment:
        directory = tmp_path / name
        directory.mkdir()
        return Segment(
            directory, start, dynamics, 200, first_step + 7, plumed, first_step, first_step == 0
        )

    with LammpsEngine(POTENTIAL, atoms, species=SPECIES) as engine:
        first = engine.run(segment("first", State.of(atoms), 0)).end
        first.save(tmp_path / "state.npz")
        for seed in range(3):
            engine.evaluate(mixture(seed).positions, atoms.cell.array * (1 + 0.01 * seed))
        here = engine.run(segment("here", first, 200)).end
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES) as engine:
        there = engine.run(segment("there", State.load(tmp_path / "state.npz"), 200)).end
    assert np.array_equal(here.positions, there.positions)
    assert here.velocities is not None
    assert there.velocities is not None
    assert np.array_equal(here.velocities, there.velocities)
    for name in ("colvar", "hills", "snapshots.dcd"):
        one, two = ((tmp_path / where / name).read_bytes() for where in ("here", "there"))
        # A DCD file carries the date of its making in the title.
        assert one[-5000:] == two[-5000:]


def test_plumed_counts_the_start_of_a_chain_once(
    tmp_path: Path, engine: LammpsEngine, plugin: Path
) -> None:
    plumed = PLUMED_UNITS + "d: DISTANCE ATOMS=1,12\nPRINT ARG=d FILE=colvar STRIDE=1\n"
    state, rows = State.of(mixture()), []
    for k in range(3):
        directory = tmp_path / str(k)
        directory.mkdir()
        state = engine.run(
            Segment(directory, state, Dynamics(60.0), 20, k, plumed, 20 * k, k == 0)
        ).end
        rows.append(np.loadtxt(directory / "colvar"))
    assert [len(part) for part in rows] == [21, 20, 20]
    np.testing.assert_allclose(np.concatenate(rows)[:, 0], np.arange(61))


def test_snapshots_follow_the_atoms_through_the_walls(tmp_path: Path, engine: LammpsEngine) -> None:
    atoms = mixture()
    drift = np.full((len(atoms), 3), 0.02)  # angstrom/fs: 20 angstrom in the two segments
    state = State(atoms.positions, atoms.cell.array, drift)
    weak = Dynamics(10.0, friction_per_ps=1e-6)
    for k in range(2):
        directory = tmp_path / str(k)
        directory.mkdir()
        start = state
        result = engine.run(Segment(directory, start, weak, 500, 1, snapshot_stride=50))
        state = result.end
        assert result.snapshots is not None
        frames = mdtraj.formats.DCDTrajectoryFile(str(result.snapshots)).read()
        positions, lengths, angles = frames
        assert positions.shape == (10, 32, 3)
        np.testing.assert_allclose(positions[-1], state.positions, atol=1e-5)
        steps = np.diff(np.concatenate([start.positions[None], positions]), axis=0)
        np.testing.assert_allclose(steps.mean(axis=1), 1.0, atol=0.01)
        assert abs(steps - 1.0).max() < 0.5
        np.testing.assert_allclose(lengths[0], atoms.cell.lengths(), rtol=1e-6)
        np.testing.assert_allclose(angles[0], 90, rtol=1e-6)


def test_plumed_sees_the_energy(tmp_path: Path, engine: LammpsEngine, plugin: Path) -> None:
    plumed = PLUMED_UNITS + "e: ENERGY\nPRINT ARG=e FILE=colvar STRIDE=3 FMT=%.12g\n"
    start = State.of(mixture())
    # The first step is no multiple of the stride: PLUMED first needs the energy on the second.
    result = engine.run(Segment(tmp_path, start, Dynamics(60.0), 10, 1, plumed, first_step=2))
    energies = np.loadtxt(tmp_path / "colvar")
    assert energies[:, 0].tolist() == [3, 6, 9, 12]
    energy, _, _ = engine.evaluate(result.end.positions, result.end.cell)
    assert energies[-1, 1] == pytest.approx(energy, rel=1e-10)


def test_plumed_is_given_kt(tmp_path: Path, engine: LammpsEngine, plugin: Path) -> None:
    plumed = PLUMED_UNITS + (
        "d: DISTANCE ATOMS=1,2\nMETAD ARG=d PACE=10 HEIGHT=0.01 SIGMA=0.1 BIASFACTOR=5\n"
    )
    engine.run(Segment(tmp_path, State.of(mixture()), Dynamics(100.0), 1, 1, plumed))
    logged = re.search(r"KbT (\S+)", (tmp_path / "plumed.log").read_text())
    assert logged is not None
    assert float(logged[1]) == pytest.approx(units.kB * 100.0, rel=1e-3)


def test_plumed_stops_the_run(tmp_path: Path, engine: LammpsEngine, plugin: Path) -> None:
    start = State.of(mixture())
    plumed = PLUMED_UNITS + (
        "p: POSITION ATOM=1 NOPBC\nPRINT ARG=p.x FILE=colvar\n"
        f"COMMITTOR ARG=p.x BASIN_LL1={start.positions[0, 0] + 0.1} BASIN_UL1=100\n"
    )
    velocities = np.zeros((32, 3))
    velocities[:, 0] = 0.01  # 0.1 angstrom in 10 fs
    moving = State(start.positions, start.cell, velocities)
    weak = Dynamics(1.0, friction_per_ps=1e-6)
    result = engine.run(Segment(tmp_path, moving, weak, 1000, 1, plumed))
    assert result.stopped_by_plumed
    assert 5 < result.n_steps < 20
    assert len(np.loadtxt(tmp_path / "colvar")) == result.n_steps + 1
    again = engine.run(Segment(tmp_path, start, weak, 30, 1))
    assert not again.stopped_by_plumed
    assert again.n_steps == 30


def test_progress_counts_up(tmp_path: Path, engine: LammpsEngine) -> None:
    seen: list[int] = []
    segment = Segment(tmp_path, State.of(mixture()), Dynamics(50.0), 30_000, 1, first_step=1000)
    result = engine.run(segment, seen.append)
    assert seen == sorted(seen)
    assert seen
    assert seen[0] >= 0
    assert seen[-1] <= 30_000
    assert result.n_steps == 30_000


BAD_PLUMED = {
    "d: DISTNCE ATOMS=1,2\n": 'Action "DISTNCE" is not known',
    "d: DISTANCE ATOMS=1,99\n": "out of range",
    "METAD ARG=d PACE=1 HEIGHT=1 SIGMA=1\n": "cannot find action named d",
    "LOAD FILE=nothing.so\n": "Could not load library nothing.so",
}


@pytest.mark.parametrize("line", BAD_PLUMED)
def test_bad_plumed_input(tmp_path: Path, engine: LammpsEngine, plugin: Path, line: str) -> None:
    with pytest.raises(UserError, match=BAD_PLUMED[line]) as caught:
        engine.run(Segment(tmp_path, State.of(mixture()), Dynamics(50.0), 1, 1, line))
    assert "\n" not in str(caught.value)
    assert "plumed.dat" in str(caught.value)


BAD_POTENTIALS = {
    "missing file": (["pair_style eam/fs", "pair_coeff * * none.eam.fs Ar Kr"], "none.eam.fs"),
    "unknown style": (["pair_style liquid 1.0"], "Unrecognized pair style 'liquid'"),
    "missing element": (["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Ar Kr"], "element"),
    "missing pair": ([POTENTIAL[0], "pair_coeff 1 1 0.01 3.4"], "coeffs are not set"),
    "no pair_style": (["pair_coeff * * 0.01 3.4"], "no pair_style"),
    "other units": (["units real", *POTENTIAL], "units metal"),
    "unknown command": ([*POTENTIAL, "pear_coeff 1 1 1 1"], "Unknown command: pear_coeff"),
}


@pytest.mark.parametrize("name", BAD_POTENTIALS)
def test_bad_potential(name: str) -> None:
    commands, match = BAD_POTENTIALS[name]
    with pytest.raises(UserError, match=re.escape(match)) as caught:
        LammpsEngine(commands, mixture(), species=SPECIES)
    assert "\n" not in str(caught.value)


def test_missing_file_with_the_potential(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lj\.in: there is no such LAMMPS file"):
        LammpsEngine(Path("lj.in"), mixture(), directory=tmp_path)


def test_atoms_that_do_not_fit(engine: LammpsEngine) -> None:
    with pytest.raises(UserError, match="31 atoms"):
        engine.check(mixture()[:31])
    other = mixture()
    other.symbols[4] = "Ne"
    with pytest.raises(UserError, match="atom 5 is Ne"):
        engine.check(other)
    with pytest.raises(UserError, match="also holds Kr"):
        LammpsEngine(POTENTIAL, mixture(), species=["Ar"])
    with pytest.raises(UserError, match="'Xx9' is no chemical symbol"):
        LammpsEngine(POTENTIAL, mixture(), species=["Ar", "Kr", "Xx9"])
    surface = mixture()
    surface.pbc = [True, True, False]
    with pytest.raises(UserError, match="with vacuum in the cell"):
        LammpsEngine(POTENTIAL, surface, species=SPECIES)


def test_positions_that_are_no_numbers(engine: LammpsEngine) -> None:
    atoms = mixture()
    atoms.positions[3, 1] = np.nan
    atoms.calc = engine.calculator()
    with pytest.raises(UserError, match="no number"):
        atoms.get_forces()
    atoms = mixture()
    atoms.positions[3] = atoms.positions[4]
    atoms.calc = engine.calculator()
    with pytest.raises(UserError, match="not finite"):
        atoms.get_forces()


@pytest.mark.parametrize("plumed", [None, PLUMED_UNITS + "d: DISTANCE ATOMS=1,2\n"])
def test_exploding_dynamics(
    tmp_path: Path, engine: LammpsEngine, plugin: Path, plumed: str | None
) -> None:
    hasty = Dynamics(300.0, timestep_fs=1000.0)
    with pytest.raises(UserError, match="flew apart"):
        engine.run(Segment(tmp_path, State.of(mixture()), hasty, 1000, 1, plumed))
    # The engine works on, in a new process.
    assert np.isfinite(engine.evaluate(mixture().positions, mixture().cell.array)[0])


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


def test_states_and_segments_refuse_nonsense(tmp_path: Path, engine: LammpsEngine) -> None:
    with pytest.raises(UserError, match="temperature_K = -1"):
        Dynamics(-1.0)
    with pytest.raises(UserError, match="'langevin' and 'brownian'"):
        Dynamics(300.0, thermostat="nose")  # type: ignore[arg-type]
    start = State.of(mixture())
    with pytest.raises(UserError, match="n_steps = 0"):
        Segment(tmp_path, start, Dynamics(300.0), 0, 1)
    with pytest.raises(UserError, match="no such folder"):
        engine.run(Segment(tmp_path / "none", start, Dynamics(300.0), 1, 1))
    with pytest.raises(UserError, match="not a state of a run"):
        State.load(tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"shape \(3, 3\)"):
        engine.run(Segment(tmp_path, State(np.eye(3), start.cell), Dynamics(300.0), 1, 1))
