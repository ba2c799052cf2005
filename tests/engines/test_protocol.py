"""What all engines have in common: one crystal, one dynamics, independent references."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import units

from plumed_cv.common.errors import UserError
from plumed_cv.engines import (
    RECORD,
    Dynamics,
    Engine,
    Record,
    Segment,
    SegmentResult,
    State,
    Thermostat,
    read_record,
)
from plumed_cv.engines.engine import BLOCK, PIECE
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.structures.trajectory import read_all_positions
from tests.engines.kits import (
    EPSILON,
    PLUMED_UNITS,
    STILL,
    Kit,
    cluster,
    columns,
    crystal,
    gas,
    reference,
)
from tests.engines.recorder import Recorder


def test_energy_forces_and_stress(kit: Kit, engine: Engine) -> None:
    shifts = np.random.default_rng(1).integers(-2, 3, size=(108, 3))
    for image in (np.zeros_like(shifts), shifts):  # the same atoms, elsewhere
        atoms = crystal()
        energy, forces, stress = reference(atoms)
        atoms.positions += image @ atoms.cell.array
        atoms.calc = engine.calculator()
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=kit.digits)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=kit.digits)
        # LAMMPS has its own idea of a bar.
        np.testing.assert_allclose(atoms.get_stress(), stress, rtol=1e-5, atol=1e-9)


def test_calculators_share_the_engine_and_keep_their_results(kit: Kit, engine: Engine) -> None:
    images = [crystal(seed) for seed in range(2)]
    for image in images:
        image.calc = engine.calculator()
    for image in [*images, *images]:
        np.testing.assert_allclose(image.get_forces(), reference(image)[1], atol=kit.digits)


def test_what_is_forgotten_has_no_influence(engine: Engine) -> None:
    """The last bits of a result do not depend on the structures before it."""
    rng = np.random.default_rng(4)
    atoms = crystal(1)
    cell, found = atoms.cell.array, []
    for _ in range(3):
        engine.forget()
        energy, forces, _ = engine.evaluate(atoms.positions, cell)
        found.append((energy, forces.tobytes()))
        for _ in range(3):
            others = atoms.positions + rng.uniform(-1.5, 1.5, size=3)  # a new list of neighbours
            engine.evaluate(others + rng.normal(scale=0.1, size=others.shape), cell)
    assert found[1:] == found[:-1]


def test_another_cell(kit: Kit, engine: Engine) -> None:
    atoms = crystal()
    atoms.set_cell(atoms.cell.array * 1.02, scale_atoms=True)
    atoms.calc = engine.calculator()
    np.testing.assert_allclose(atoms.get_forces(), reference(atoms)[1], atol=kit.digits)


def test_forces_of_many_structures_are_those_of_each(
    tmp_path: Path, kit: Kit, engine: Engine
) -> None:
    """Atoms far apart, across the border, in another cell, and after an earlier run."""
    dynamics = Dynamics(60.0, timestep_fs=2.0)
    engine.run(Segment(tmp_path, State.of(crystal(3)), dynamics, 5, 1, None))
    structures = [crystal(seed) for seed in range(3)]
    structures[1].positions += structures[1].cell.array.sum(axis=0)
    for atoms in structures:
        atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
    cell = structures[0].cell.array
    found = engine.forces(np.array([atoms.positions for atoms in structures]), cell)
    expected = np.array([reference(atoms)[1] for atoms in structures])
    np.testing.assert_allclose(found, expected, atol=kit.digits)


def test_recorded_forces_are_those_of_the_snapshots(
    tmp_path: Path, kit: Kit, engine: Engine
) -> None:
    """The forces contain no bias and no thermostat, for any atoms and any order of the steps."""
    if not kit.records:
        pytest.skip("this engine is a program, so nothing reads its forces")
    plumed = PLUMED_UNITS + (
        "d: DISTANCE ATOMS=1,2\nb: RESTRAINT ARG=d AT=0 KAPPA=2\nPRINT ARG=d FILE=colvar STRIDE=1\n"
    )
    serials = np.array([1, 2, 40, 108])
    start = State.of(crystal())
    dynamics = Dynamics(60.0, timestep_fs=2.0, friction_per_ps=20.0)
    record = Record(serials, 5)
    segment = Segment(tmp_path, start, dynamics, 43, 3, plumed, snapshot_stride=10, record=record)
    engine.run(segment)
    positions, forces = read_record(tmp_path / RECORD, len(serials))
    assert positions.shape == forces.shape == (8, 4, 3)
    whole = read_all_positions(tmp_path / "snapshots.dcd")
    apart = positions[1::2] - whole[:, serials - 1]
    apart -= np.rint(apart @ np.linalg.inv(start.cell)) @ start.cell
    np.testing.assert_allclose(apart, 0.0, atol=1e-5)  # of single precision
    expected = engine.forces(whole, start.cell)[:, serials - 1]
    np.testing.assert_allclose(forces[1::2], expected, atol=1e-5)
    bias = 2.0 * np.linalg.norm(positions[1, 1] - positions[1, 0])
    assert bias > 1.0  # far more than that difference


@pytest.mark.parametrize("count_start", [True, False])
def test_a_step_follows_the_force_and_the_bias(
    tmp_path: Path, kit: Kit, engine: Engine, count_start: bool
) -> None:
    """One step of Brownian dynamics without noise moves each atom by F / (m gamma)."""
    atoms = crystal()
    cold = Dynamics(STILL, timestep_fs=1.0, thermostat="brownian", friction_per_ps=10.0)
    plumed = PLUMED_UNITS + (
        "d: DISTANCE ATOMS=1,2\nb: RESTRAINT ARG=d AT=0 KAPPA=0 SLOPE=0.5\n"
        "PRINT ARG=d FILE=colvar STRIDE=1 FMT=%.15g\n"
    )
    start = State.of(atoms)
    segment = Segment(tmp_path, start, cold, 1, 1, plumed, 7, count_start)
    moved = engine.run(segment).end.positions - atoms.positions
    vector = atoms.get_distance(0, 1, mic=True, vector=True)
    direction = vector / np.linalg.norm(vector)
    forces = reference(atoms)[1]
    forces[:2] += 0.5 * np.stack([direction, -direction])
    friction = atoms.get_masses() * 0.01 / units.fs
    # Units of the engines: their constants of nature differ in the 7th digit.
    np.testing.assert_allclose(moved, forces / friction[:, None] * units.fs, rtol=1e-5, atol=1e-9)
    rows = columns(tmp_path / "colvar")
    counted = count_start or not kit.skips_start
    assert rows[:, 0].tolist() == ([7, 8] if counted else [8])
    if counted:
        assert rows[0, 1] == pytest.approx(np.linalg.norm(vector), rel=1e-12)


def test_a_folder_with_another_alphabet_is_refused(tmp_path: Path, engine: Engine) -> None:
    """LAMMPS and mdtraj cannot use such names. Spaces are allowed."""
    folder = tmp_path / "Ångström 2"
    folder.mkdir()
    segment = Segment(folder, State.of(crystal()), Dynamics(60.0, 1.0), 5, 1)
    with pytest.raises(UserError, match="has the letter 'Å'; choose a name"):
        engine.run(segment)
    folder = tmp_path / "nm 2"
    folder.mkdir()
    assert engine.run(replace(segment, directory=folder)).n_steps == 5


@pytest.mark.parametrize("thermostat", ["langevin", "brownian"])
def test_equipartition(tmp_path: Path, free: Engine, thermostat: str) -> None:
    """PLUMED's springs hold free atoms; the variance of each coordinate is kT/kappa."""
    atoms, temperature = gas(), 150.0
    kappa, timestep, friction = (1.0, 4.0, 20.0) if thermostat == "langevin" else (10.0, 2.0, 100.0)
    names = [f"p{k}.{axis}" for k in range(1, 5) for axis in "xyz"]
    plumed = PLUMED_UNITS + "".join(f"p{k}: POSITION ATOM={k} NOPBC\n" for k in range(1, 5))
    at = ",".join(map(str, atoms.positions.ravel()))
    constants = ",".join([str(kappa)] * 12)
    plumed += f"RESTRAINT ARG={','.join(names)} AT={at} KAPPA={constants}\n"
    dynamics = Dynamics(temperature, timestep, thermostat, friction)  # type: ignore[arg-type]
    segment = Segment(tmp_path, State.of(atoms), dynamics, 8000, 3, plumed, snapshot_stride=5)
    result = free.run(segment)
    assert result.snapshots is not None
    positions = mdtraj.formats.DCDTrajectoryFile(str(result.snapshots)).read()[0]
    found = ((positions[100:] - atoms.positions) ** 2).mean(axis=(0, 2))
    expected = np.full(4, units.kB * temperature / kappa)
    if thermostat == "brownian":  # Euler's step of dt and a relaxation time of m gamma / kappa
        relaxation = atoms.get_masses() * friction / 1000 / kappa / units.fs**2
        expected /= 1 - timestep / (2 * relaxation)
    # The squares' correlation time is 50 fs or less, so each of 12 coordinates gives 150 samples
    # or more: a relative error of 6 % for an atom, five of them. All four make 3 %.
    np.testing.assert_allclose(found, expected, rtol=0.3)
    assert (found / expected).mean() == pytest.approx(1, abs=0.15)
    if thermostat == "langevin":
        assert result.end.velocities is not None


def test_a_segment_depends_on_nothing_before_it(tmp_path: Path, kit: Kit, engine: Engine) -> None:
    plumed = PLUMED_UNITS + (
        "d: DISTANCE ATOMS=1,12\n"
        "m: METAD ARG=d PACE=5 HEIGHT=0.001 SIGMA=0.1 FILE=hills TEMP=60\n"
        "PRINT ARG=d,m.bias FILE=colvar STRIDE=1 FMT=%.17g\n"
    )

    def run(name: str, start: State, first_step: int) -> SegmentResult:
        folder = tmp_path / name
        folder.mkdir()
        dynamics, fresh = Dynamics(60.0, timestep_fs=2.0), first_step == 0
        return engine.run(
            Segment(folder, start, dynamics, 50, first_step + 7, plumed, first_step, fresh)
        )

    first = run("first", State.of(crystal()), 0).end
    first.save(tmp_path / "state.npz")
    here = run("here", first, 50).end
    engine.evaluate(crystal(1).positions, crystal().cell.array * 1.01)
    there = run("there", State.load(tmp_path / "state.npz"), 50).end
    assert np.array_equal(here.positions, there.positions)
    assert here.velocities is not None
    assert there.velocities is not None
    assert np.array_equal(here.velocities, there.velocities)
    for name in ("colvar", "hills"):
        assert (tmp_path / "here" / name).read_text() == (tmp_path / "there" / name).read_text()


def test_two_segments_are_one_run(tmp_path: Path, kit: Kit, engine: Engine) -> None:
    """Without noise, a run in parts has the trajectory and PLUMED's times of an undivided run."""
    weak = Dynamics(STILL, timestep_fs=2.0, friction_per_ps=1e-6)
    plumed = PLUMED_UNITS + "d: DISTANCE ATOMS=1,12\nPRINT ARG=d FILE=colvar STRIDE=1\n"
    rng = np.random.default_rng(5)
    velocities = rng.normal(scale=1e-3, size=(108, 3))
    ends, rows = [], []
    for lengths in ((60,), (20, 40)):
        state, first = State(crystal().positions, crystal().cell.array, velocities), 0
        for n_steps in lengths:
            folder = tmp_path / f"{len(lengths)}-{first}"
            folder.mkdir()
            segment = Segment(folder, state, weak, n_steps, 1, plumed, first, first == 0)
            state = engine.run(segment).end
            first += n_steps
            rows.append(columns(folder / "colvar"))
        ends.append(state)
    whole, *parts = rows
    if not kit.skips_start:
        parts[1] = parts[1][1:]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-6)
    np.testing.assert_allclose(whole[:, 0], 2.0 * np.arange(61))
    np.testing.assert_allclose(ends[0].positions, ends[1].positions, atol=1e-9)
    assert ends[0].velocities is not None
    assert ends[1].velocities is not None
    np.testing.assert_allclose(ends[0].velocities, ends[1].velocities, atol=1e-11)


@pytest.mark.parametrize("thermostat", ["none", "langevin"])
def test_an_observer_sees_what_a_run_does(
    tmp_path: Path, kit: Kit, engine: Engine, thermostat: Thermostat
) -> None:
    dynamics = Dynamics(60.0, timestep_fs=2.0, thermostat=thermostat)
    start = State.of(crystal())
    if not kit.follows:
        with pytest.raises(UserError, match="GROMACS"):
            engine.follow(start, dynamics, 23, 5, Recorder())
        return
    followed = engine.follow(start, dynamics, 23, 5, Recorder())
    seen = followed.observer.positions
    assert followed.n_steps == len(seen) == 23
    np.testing.assert_allclose(seen[-1], followed.end.positions, atol=1e-5)
    if not kit.starts_for_each:  # where it does, a segment has a seed of its own
        result = engine.run(Segment(tmp_path, start, dynamics, 23, 5, snapshot_stride=1))
        assert result.snapshots is not None
        with mdtraj.formats.DCDTrajectoryFile(str(result.snapshots)) as file:
            np.testing.assert_allclose(seen, file.read()[0], atol=1e-5)
        assert np.array_equal(followed.end.positions, result.end.positions)
    block = PIECE if kit.starts_for_each else BLOCK
    stopped = engine.follow(start, dynamics, 10 * block, 5, Recorder(enough=block + 1))
    assert stopped.n_steps == len(stopped.observer.positions) == 2 * block


def test_dynamics_without_a_thermostat(tmp_path: Path, kit: Kit, engine: Engine) -> None:
    """The dynamics conserves the energy and is reversible."""
    dynamics = Dynamics(60.0, timestep_fs=2.0, thermostat="none")
    start = State.of(crystal())
    if not kit.follows:
        with pytest.raises(UserError, match="constant energy is not available with GROMACS"):
            engine.run(Segment(tmp_path, start, dynamics, 10, 1))
        return
    rng = np.random.default_rng(5)
    start = State(start.positions, start.cell, rng.normal(scale=1e-3, size=(108, 3)))
    end = engine.follow(start, dynamics, 100, 1, Recorder()).end
    np.testing.assert_allclose(engine.masses, crystal().get_masses(), rtol=1e-4)

    def energy(state: State) -> float:
        assert state.velocities is not None
        kinetic = 0.5 * (engine.masses[:, None] * state.velocities**2).sum() / units.fs**2
        return float(kinetic) + engine.evaluate(state.positions, state.cell)[0]

    assert end.velocities is not None
    assert start.velocities is not None
    # Both energies change by 0.2 eV and more; that of velocity Verlet's step is 1e-4 of it.
    assert energy(end) == pytest.approx(energy(start), abs=1e-3)
    back = engine.follow(
        State(end.positions, end.cell, -end.velocities), dynamics, 100, 1, Recorder()
    ).end
    assert back.velocities is not None
    np.testing.assert_allclose(back.positions, start.positions, atol=1e-8)
    np.testing.assert_allclose(back.velocities, -start.velocities, atol=1e-10)


def test_snapshots_follow_the_atoms_through_the_walls(tmp_path: Path, engine: Engine) -> None:
    atoms = crystal()
    drift = np.full((len(atoms), 3), 0.2)  # angstrom/fs: 40 angstrom in the two segments
    state = State(atoms.positions, atoms.cell.array, drift)
    weak = Dynamics(10.0, friction_per_ps=1e-6)
    for k in range(2):
        folder = tmp_path / str(k)
        folder.mkdir()
        start = state
        result = engine.run(Segment(folder, start, weak, 100, 1, snapshot_stride=20))
        state = result.end
        assert result.snapshots is not None
        with mdtraj.formats.DCDTrajectoryFile(str(result.snapshots)) as file:
            positions, lengths, angles = file.read()
        assert positions.shape == (5, 108, 3)
        np.testing.assert_allclose(positions[-1], state.positions, atol=1e-4)
        steps = np.diff(np.concatenate([start.positions[None], positions]), axis=0)
        np.testing.assert_allclose(steps.mean(axis=1), 4.0, atol=0.01)
        assert abs(steps - 4.0).max() < 0.5
        np.testing.assert_allclose(lengths[0], atoms.cell.lengths(), rtol=1e-5)
        np.testing.assert_allclose(angles[0], atoms.cell.angles(), rtol=1e-5)
    assert state.velocities is not None
    np.testing.assert_allclose(state.velocities.mean(axis=0), 0.2, atol=0.01)


def test_plumed_stops_the_run(tmp_path: Path, kit: Kit, free: Engine) -> None:
    start = State.of(gas())
    plumed = PLUMED_UNITS + (
        "p: POSITION ATOM=1 NOPBC\nPRINT ARG=p.x FILE=colvar\n"
        f"COMMITTOR ARG=p.x BASIN_LL1={start.positions[0, 0] + 0.1005} BASIN_UL1=100\n"
    )
    velocities = np.zeros((4, 3))
    velocities[:, 0] = 0.01  # 0.1005 angstrom are passed on the 11th step
    moving = State(start.positions, start.cell, velocities)
    weak = Dynamics(STILL, friction_per_ps=1e-6)
    result = free.run(Segment(tmp_path, moving, weak, 1000, 1, plumed, 100, snapshot_stride=5))
    assert result.stopped_by_plumed
    assert result.n_steps == 11
    assert columns(tmp_path / "colvar")[:, 0].tolist() == list(range(100, 112))
    assert result.snapshots is not None
    frames = mdtraj.formats.DCDTrajectoryFile(str(result.snapshots)).read()[0]
    assert len(frames) == 2
    far = result.end.positions[0, 0] - start.positions[0, 0]
    assert far >= 0.11 - 1e-6
    assert far <= 0.01 * (11 + kit.overshoot) + 1e-6
    (tmp_path / "again").mkdir()
    again = free.run(Segment(tmp_path / "again", start, weak, 30, 1, plumed))
    assert not again.stopped_by_plumed
    assert again.n_steps == 30


def test_plumed_is_given_kt(tmp_path: Path, kit: Kit, engine: Engine) -> None:
    plumed = PLUMED_UNITS + (
        "d: DISTANCE ATOMS=1,2\nMETAD ARG=d PACE=10 HEIGHT=0.01 SIGMA=0.1 BIASFACTOR=5\n"
    )
    if not kit.hands_kt:
        with pytest.raises(UserError, match="TEMP"):
            engine.run(Segment(tmp_path, State.of(crystal()), Dynamics(100.0), 1, 1, plumed))
        return
    engine.run(Segment(tmp_path, State.of(crystal()), Dynamics(100.0), 1, 1, plumed))
    logged = re.search(r"KbT (\S+)", (tmp_path / "plumed.log").read_text())
    assert logged is not None
    assert float(logged[1]) == pytest.approx(units.kB * 100.0, rel=1e-3)


# The line that contains ENERGY. Our reader of inputs does not know the braces of the last one.
ENERGY = {"itself": "e: ENERGY", "included": "INCLUDE FILE=e.dat", "hidden": "INCLUDE FILE={e.dat}"}


@pytest.mark.parametrize("where", ENERGY)
def test_plumed_sees_the_energy(tmp_path: Path, kit: Kit, engine: Engine, where: str) -> None:
    (tmp_path / "e.dat").write_text("e: ENERGY\n")
    plumed = f"{PLUMED_UNITS}{ENERGY[where]}\nPRINT ARG=e FILE=colvar STRIDE=3 FMT=%.12g\n"
    # The first step is no multiple of the stride: PLUMED first needs the energy on the second.
    segment = Segment(tmp_path, State.of(crystal()), Dynamics(60.0), 10, 1, plumed, first_step=2)
    if not kit.hands_energy:
        with pytest.raises(UserError, match="uses ENERGY, which GROMACS does not pass to PLUMED"):
            engine.run(segment)
        return
    if where == "hidden" and isinstance(engine, LammpsEngine):
        with pytest.raises(UserError, match="write ENERGY into the input itself"):
            engine.run(segment)
        return
    result = engine.run(segment)
    energies = columns(tmp_path / "colvar")
    assert energies[:, 0].tolist() == [3, 6, 9, 12]
    atoms = crystal()
    atoms.positions = result.end.positions
    assert energies[-1, 1] == pytest.approx(reference(atoms)[0], rel=1e-9)


def test_progress_counts_up(tmp_path: Path, free: Engine) -> None:
    seen: list[int] = []
    segment = Segment(
        tmp_path, State.of(gas()), Dynamics(50.0), 3000, 1, first_step=1000, snapshot_stride=0
    )
    result = free.run(segment, seen.append)
    assert seen == sorted(seen)
    assert all(0 <= step <= 3000 for step in seen)
    assert result.n_steps == 3000
    assert result.snapshots is None


def test_progress_can_end_the_run(tmp_path: Path, free: Engine) -> None:
    class EnoughError(Exception):
        pass

    def enough(step: int) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        free.run(Segment(tmp_path, State.of(gas()), Dynamics(50.0), 10**8, 1), enough)
    # The engine works on.
    assert np.isfinite(free.evaluate(gas().positions, gas().cell.array)[0])


def test_a_run_that_was_ended_is_rescued(tmp_path: Path, engine: Engine) -> None:
    """The files up to a step are those of a complete run at that step."""

    class EnoughError(Exception):
        pass

    n_steps, dynamics = 150, Dynamics(60.0, timestep_fs=2.0)

    def run(name: str, steps: int, progress: Callable[[int], None] | None) -> Segment:
        (tmp_path / name).mkdir()
        segment = Segment(tmp_path / name, State.of(crystal()), dynamics, steps, 7)
        assert engine.rescue(segment, n_steps) is None
        if progress is None:
            engine.run(segment)
            return segment
        with pytest.raises(EnoughError):
            engine.run(segment, progress)
        return segment

    def enough(step: int) -> None:
        if step > 2 * n_steps:
            raise EnoughError

    run("whole", n_steps, None)
    ended = run("ended", 10**8, enough)
    end = engine.rescue(ended, n_steps)
    assert end is not None
    whole, rescued = (
        mdtraj.formats.DCDTrajectoryFile(str(tmp_path / name / "snapshots.dcd")).read()[0]
        for name in ("whole", "ended")
    )
    assert len(rescued) == n_steps // ended.snapshot_stride
    np.testing.assert_allclose(rescued, whole, atol=1e-4)
    np.testing.assert_allclose(end.positions, rescued[-1], atol=1e-6)
    assert end.velocities is None


def test_a_cluster_has_no_box(
    tmp_path: Path, kit: Kit, tmp_path_factory: pytest.TempPathFactory
) -> None:
    atoms = cluster()
    if kit.clusters is None:
        with pytest.raises(UserError, match="put a molecule in a large box"):
            kit.make(atoms, EPSILON, tmp_path)
        return
    with kit.make(atoms, EPSILON, tmp_path_factory.mktemp("cluster")) as engine:
        atoms.calc = engine.calculator()
        np.testing.assert_allclose(atoms.get_forces(), reference(atoms)[1], atol=kit.digits)
        plumed = f"d: DISTANCE ATOMS=1,13 {kit.clusters}\nPRINT ARG=d FILE=colvar\n"
        engine.run(Segment(tmp_path, State.of(atoms), Dynamics(1.0), 1, 1, PLUMED_UNITS + plumed))
    distance = atoms.get_distance(0, 12)
    assert columns(tmp_path / "colvar")[0, 1] == pytest.approx(distance, abs=2e-6)
