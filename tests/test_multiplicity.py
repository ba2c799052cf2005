"""Numbers of equivalent events that were counted by hand."""

from collections.abc import Sequence
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import find_mic

from plumed_cv import input_file
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json
from plumed_cv.cv import symmetry
from plumed_cv.cv.projection import linear
from plumed_cv.engines.ase import AseEngine
from plumed_cv.paths.path import EnergyPath
from plumed_cv.rates.multiplicity import (
    check_energies,
    count_equivalent_events,
    find_saddle_points,
)
from plumed_cv.structures import cell_of, has_kinds_by_moment, orient
from plumed_cv.workflow import saddle_points
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.harmonic_theory import count_events, escape_rate
from plumed_cv.workflow.mep import read_end_states

BCC = bulk("Fe", "bcc", a=2.87, cubic=True).repeat(3)
FCC = bulk("Cu", "fcc", a=3.6, cubic=True).repeat(2)
HCP = bulk("Mg", "hcp", a=3.2, c=5.2).repeat((4, 4, 2))


def hop(crystal: Atoms, neighbour: int = 1) -> tuple[Atoms, Atoms]:
    """A vacancy before and after its neighbour, the n-th by distance, has moved into it."""
    order = np.argsort(crystal.get_distances(0, range(len(crystal)), mic=True), kind="stable")
    initial, final = crystal.copy(), crystal.copy()
    final.positions[order[neighbour]] = crystal.positions[0]
    del initial[0], final[0]
    return initial, final


@pytest.mark.parametrize(
    ("name", "heavy"), [("masses", 57.0), ("initial_charges", 1.0), ("initial_magmoms", -2.0)]
)
def test_isotopes_and_ions_are_different_kinds(name: str, heavy: float) -> None:
    """One of the eight neighbours of a vacancy is another isotope; then another one moves."""
    initial, final = hop(BCC)
    moving = int(np.linalg.norm(final.positions - initial.positions, axis=1).argmax())
    vacancy = final.positions[moving]
    # Another neighbour of the vacancy, next to the one that moves: three of the eight are so.
    near = next(
        atom
        for atom in np.argsort(initial.get_distances(moving, range(len(initial)), mic=True))[8:]
        if np.linalg.norm(find_mic(initial.positions[atom] - vacancy, initial.cell)[0]) < 2.6
    )
    for changed, expected in ((None, 8), (moving, 1), (near, 3)):
        values = np.full(len(initial), 55.0)
        if changed is not None:
            values[changed] = heavy
        for atoms in (initial, final):
            atoms.set_array(name, values.copy())
        assert count_equivalent_events(initial, final).events == expected


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ('potential = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]', 8),
        ('name = "ase"\ncalculator = "ase.calculators.emt.EMT"', 1),
    ],
)
def test_moments_count_where_a_calculator_may_use_them(
    tmp_path: Path, engine: str, expected: int
) -> None:
    """ASE gives iron a magnetic moment, and an atom that is added has none."""
    initial, final = hop(BCC)
    moving = int(np.linalg.norm(final.positions - initial.positions, axis=1).argmax())
    for name, atoms in (("initial", initial), ("final", final)):
        atoms.set_initial_magnetic_moments([2.3] * len(atoms))
        atoms.arrays["initial_magmoms"][moving] = 0.0
        atoms.write(tmp_path / f"{name}.xyz")
    file = tmp_path / "iron.toml"
    file.write_text(
        '[system]\ninitial = "initial.xyz"\nfinal = "final.xyz"\ntemperature_K = 300.0\n'
        f"[engine]\n{engine}\n"
    )
    start, end = read_end_states(input_file.load(file))
    assert has_kinds_by_moment(start) == (expected == 1)
    assert count_equivalent_events(start, end).events == expected


@pytest.mark.parametrize(
    ("crystal", "neighbour", "expected"),
    [
        (BCC, 1, 8),
        (BCC, 9, 6),  # second neighbours
        (FCC, 1, 12),
        (bulk("Cu", "fcc", a=3.6).repeat(4), 1, 12),  # rhombohedral cell
        (HCP, 1, 6),
        (HCP, 8, 6),  # in the basal plane
    ],
)
@pytest.mark.parametrize("noise_A", [0.0, 2e-3])
def test_vacancies(crystal: Atoms, neighbour: int, expected: int, noise_A: float) -> None:
    initial, final = hop(crystal, neighbour)
    rng = np.random.default_rng(1)
    for atoms in (initial, final):
        atoms.positions += rng.uniform(-noise_A, noise_A, size=atoms.positions.shape)
    assert count_equivalent_events(initial, final).events == expected
    assert count_equivalent_events(final, initial).events == expected


@pytest.mark.parametrize(
    ("aside", "expected"),
    [
        ((0.0, 0.0), 1),
        ((0.0, 0.4), 2),  # in a mirror plane
        ((0.4, 0.0), 2),
        ((0.4, 0.4), 4),  # in neither
        ((0.0, 0.02), 1),  # noise
    ],
)
def test_saddle_points_beside_the_line_have_equal_ones(
    aside: tuple[float, float], expected: int
) -> None:
    """The hop along [110] in fcc has two mirror planes."""
    initial, final = hop(FCC)
    mover = int(np.linalg.norm(final.positions - initial.positions, axis=1).argmax())
    step = final.positions[mover] - initial.positions[mover]
    step -= 7.2 * np.round(step / 7.2)
    normal = np.eye(3)[int(np.abs(step).argmin())]
    across = np.cross(normal, step / np.linalg.norm(step))
    saddle = initial.positions.copy()
    saddle[mover] += 0.5 * step + aside[0] * across + aside[1] * normal
    assert len(find_saddle_points(initial, final, saddle)) == expected


def test_a_tetragonal_cell_tells_the_neighbours_apart() -> None:
    """Jumps in the plane of the equal edges differ from those out of the plane."""
    crystal = bulk("Cu", "fcc", a=3.6, cubic=True).repeat((2, 2, 3))
    found = [count_equivalent_events(*hop(crystal, neighbour)).events for neighbour in range(1, 13)]
    assert sorted(found) == [4] * 4 + [8] * 8


def test_a_skew_cell_of_the_same_crystal() -> None:
    initial, final = hop(FCC)
    cell = np.array([[1, 0, 0], [2, 1, 0], [-1, 3, 1]]) @ cell_of(FCC)
    for atoms in (initial, final):
        atoms.set_cell(cell)
    found = count_equivalent_events(orient(initial), orient(final))
    assert (found.events, found.operations) == (12, 48)


def test_shifted_by_a_lattice_vector_and_turned() -> None:
    initial, final = hop(BCC)
    for atoms in (initial, final):
        atoms.positions += [40.0, -3.3, 17.0]
        atoms.rotate(30, "z", rotate_cell=True)
    assert count_equivalent_events(orient(initial), orient(final)).events == 8


def test_a_foreign_atom_breaks_the_symmetry() -> None:
    initial, final = hop(BCC)
    step = np.linalg.norm(final.positions - initial.positions, axis=1)
    mover = int(step.argmax())
    alone = [atoms.copy() for atoms in (initial, final)]
    for atoms in alone:
        atoms.symbols[mover] = "Cr"
    assert count_equivalent_events(*alone).events == 1
    # Next to a foreign second neighbour of the vacancy, four of the eight are the same.
    distances = BCC.get_distances(0, range(1, len(BCC)), mic=True)
    (second, *_) = np.flatnonzero(np.abs(distances - 2.87) < 0.01)
    for atoms in (initial, final):
        atoms.symbols[second] = "Cr"
    assert count_equivalent_events(initial, final).events == 4


def test_a_perfect_crystal_has_the_event_at_every_site() -> None:
    final = FCC.copy()
    final.positions[0] += [0.9, 0.0, 0.0]
    found = count_equivalent_events(FCC, final)
    assert found.operations == 48 * 32
    assert found.events == 6 * 32


def test_an_interstitial() -> None:
    """A light atom in the octahedral site of fcc hops to one of twelve others."""
    crystal = FCC.copy()
    crystal.append("H")
    crystal.positions[-1] = [1.8, 0.0, 0.0]
    final = crystal.copy()
    final.positions[-1] = [0.0, 1.8, 0.0]
    assert count_equivalent_events(crystal, final).events == 12


def test_operations_are_those_of_the_structure() -> None:
    initial, _ = hop(BCC)
    cell = cell_of(initial)
    centre = BCC.positions[0]  # the vacancy
    for operation in symmetry.find_space_group(initial.symbols, initial.positions, cell):
        mapped = operation.turn(initial.positions - centre) + centre
        apart = (mapped - initial.positions) @ np.linalg.inv(cell)
        np.testing.assert_allclose(apart - np.rint(apart), 0.0, atol=1e-9)


def test_a_molecule_is_refused() -> None:
    atoms = molecule("NH3")
    other = atoms.copy()
    other.positions[0] += 0.5
    with pytest.raises(UserError, match="periodic"):
        count_equivalent_events(atoms, other)


def test_symmetry_that_depends_on_the_tolerance_is_refused() -> None:
    """One of eight neighbours deviates by less than the tolerance, its images by more."""
    initial, final = hop(BCC)
    step = np.linalg.norm(final.positions - initial.positions, axis=1)
    mover = int(step.argmax())
    for atoms in (initial, final):
        for k in range(len(atoms)):
            atoms.positions[k] += 0.034 * np.sin([1.0 * k, 2.0 * k, 3.0 * k])
        atoms.positions[mover] += 0.03
    found = []
    for tolerance_A in (0.01, 0.03, 0.05, 0.07, 0.09, 0.12, 0.2):
        try:
            found.append(count_equivalent_events(initial, final, tolerance_A).events)
        except UserError:
            found.append(0)
    assert found[0] == 1
    assert found[-1] == 8
    assert set(found) <= {0, 1, 2, 4, 8}


def test_energies_say_whether_the_potential_has_the_symmetry() -> None:
    initial, final = hop(FCC)
    found = count_equivalent_events(initial, final)
    with AseEngine("ase.calculators.emt.EMT", initial) as engine:
        check_energies(engine, initial, found)
    springs = {"ideal_positions": initial.positions * 1.001, "k": 1.0}
    moved = initial.copy()
    with (
        AseEngine("ase.calculators.harmonic.SpringCalculator", moved, arguments=springs) as engine,
        pytest.raises(UserError, match="less symmetry"),
    ):
        check_energies(engine, initial, found)


def path_over(aside_A: float, moments: Sequence[float] | None = None) -> EnergyPath:
    """A path of a vacancy in copper whose saddle point lies beside the line of the hop."""
    initial, final = hop(FCC)
    top = initial.copy()
    mover = int(np.linalg.norm(final.positions - initial.positions, axis=1).argmax())
    step = final.positions[mover] - initial.positions[mover]
    step -= 7.2 * np.round(step / 7.2)
    top.positions[mover] += 0.5 * step + aside_A * np.eye(3)[int(np.abs(step).argmin())]
    final.positions[mover] = initial.positions[mover] + step
    for atoms, energy in ((initial, 0.0), (top, 1.0), (final, 0.0)):
        atoms.set_initial_magnetic_moments(moments)
        forces = np.zeros_like(atoms.positions)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return EnergyPath((initial, top, final), "path")


@pytest.mark.parametrize(("aside_A", "expected"), [(0.0, 1), (0.4, 2)])
def test_a_path_beside_a_mirror_plane_is_one_of_two(
    aside_A: float, expected: int, tmp_path: Path
) -> None:
    files = RunDirectory(tmp_path)
    path = path_over(aside_A)
    path.save(files.path)
    with AseEngine("ase.calculators.emt.EMT", path.images[0]) as engine:
        count_events(files, engine)
    known = read_json(files.multiplicity)
    assert (known["multiplicity"], known["reverse_multiplicity"]) == (12, 12)
    assert known["equal_saddle_points"] == expected


@pytest.mark.parametrize(
    ("others", "crossed", "words", "factor"),
    [
        (0, 1, "this one alone. The rate is that over one of them; the rate of the event is 2", 2),
        (60, 2, "crosses them all. The rate contains all", 1),
        (12, None, "it is unknown whether", None),
    ],
)
def test_snapshots_tell_which_saddle_points_are_crossed(
    others: int, crossed: int | None, words: str, factor: float | None, tmp_path: Path
) -> None:
    """Of 100 snapshots at the dividing surface, some are at the saddle point beyond the mirror."""
    path, files = path_over(0.4), RunDirectory(tmp_path)
    path.save(files.path)
    initial, top, final = path.images
    species, cell = initial.get_chemical_symbols(), cell_of(initial)
    variable = linear(species, cell, initial.positions, final.positions)
    variable.save(files.cv(0))
    other = 2.0 * (initial.positions + 0.5 * (final.positions - initial.positions)) - top.positions
    rng = np.random.default_rng(3)
    frames = np.array([other] * others + [top.positions] * (100 - others))
    frames += rng.normal(scale=0.05, size=frames.shape)
    segment = files.iteration(1) / "segment-000001"
    segment.mkdir(parents=True)
    (segment / "segment.json").write_text("{}")
    box = {"cell_lengths": np.full((100, 3), 7.2), "cell_angles": np.full((100, 3), 90.0)}
    with mdtraj.formats.DCDTrajectoryFile(str(segment / "snapshots.dcd"), "w") as stream:
        stream.write(frames.astype(np.float32), **box)
    result = {"equal_saddle_points": 2, "answer_iteration": 1, "dividing_surface": 0.5}
    found = saddle_points.count_crossed(files, result)
    assert found["crossed_saddle_points"] == crossed
    assert words in found["multiplicity_note"]
    assert saddle_points.factor_of(result | found) == factor
    rate = {"multiplicity": 12, "rate_per_s": 1e6, "rate_error_factor": 1.1}
    total = escape_rate(result | found | rate)["escape_rate_per_s"]
    assert total == (None if factor is None else pytest.approx(12e6 * factor))


def test_the_run_says_that_moments_tell_atoms_apart(tmp_path: Path) -> None:
    path, files = path_over(0.0, [1.0, *[0.0] * (len(FCC) - 2)]), RunDirectory(tmp_path)
    path.save(files.path)
    with AseEngine("ase.calculators.emt.EMT", path.images[0]) as engine:
        count_events(files, engine)
    known = read_json(files.multiplicity)
    assert known["multiplicity"] < 12
    assert "different initial magnetic moments" in known["multiplicity_note"]
