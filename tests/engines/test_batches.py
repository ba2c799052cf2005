"""Structures, segments and shots that a calculator evaluates in one call."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.engines import Dynamics, Engine, Segment, State
from plumed_cv.engines.ase import AseEngine
from plumed_cv.paths import find_minimum_energy_path, with_forces
from tests.conftest import needed
from tests.engines.kits import (
    CUTOFF,
    EPSILON,
    PLUMED_UNITS,
    SIGMA,
    cluster,
    columns,
    crystal,
    reference,
)

Array = NDArray[np.float64]

LENNARD_JONES = {"sigma": SIGMA, "epsilon": EPSILON, "rc": CUTOFF}
TORCH_SIM = "plumed_cv.engines.batches.TorchSim"


def together(atoms: Atoms, calls: Path | None = None, batch: int = 4, **more: Any) -> AseEngine:
    """An engine that evaluates four structures in a call."""
    arguments = LENNARD_JONES | {"calls": str(calls) if calls else None} | more
    where = Path(__file__).parent
    return AseEngine("together.Pairs", atoms, arguments=arguments, batch=batch, directory=where)


def alone(atoms: Atoms) -> AseEngine:
    """The same potential, one structure after another."""
    return AseEngine("ase.calculators.lj.LennardJones", atoms, arguments=LENNARD_JONES)


def displaced(atoms: Atoms, number: int) -> Array:
    """Structures near one."""
    rng = np.random.default_rng(3)
    noise = rng.normal(scale=0.05, size=(number, len(atoms), 3))
    return np.asarray(atoms.positions + noise)


def test_structures_are_evaluated_in_batches(tmp_path: Path) -> None:
    atoms = cluster()
    structures = displaced(atoms, 10)
    with together(atoms, tmp_path / "calls") as engine, alone(atoms) as other:
        energies, forces = engine.evaluate_all(structures, np.zeros((3, 3)))
        for energy, own, structure in zip(energies, forces, structures, strict=True):
            expected = other.evaluate(structure, np.zeros((3, 3)))
            assert energy == expected[0]
            np.testing.assert_array_equal(own, expected[1])
        np.testing.assert_array_equal(engine.forces(structures, np.zeros((3, 3))), forces)
    assert (tmp_path / "calls").read_text().split() == ["4", "4", "2", "4", "4", "2"]


def segments(folder: Path, atoms: Atoms, thermostat: Any) -> list[Segment]:
    """Three segments of different lengths, the second of which PLUMED stops."""
    made = []
    for k, n_steps in enumerate((30, 30, 20)):
        directory = folder / f"{k}"
        directory.mkdir(parents=True)
        plumed = PLUMED_UNITS + (
            "d: DISTANCE ATOMS=1,2\ne: ENERGY\n"
            f"RESTRAINT ARG=d AT={3.0 + k} KAPPA=0.5\n"
            "PRINT ARG=d,e FILE=colvar STRIDE=1 FMT=%.17g\n"
        )
        if k == 1:
            plumed += "t: TIME\nCOMMITTOR ARG=t STRIDE=1 BASIN_LL1=11.5 BASIN_UL1=99 FILE=stop\n"
        start = State(displaced(atoms, 3)[k], atoms.cell.array)
        dynamics = Dynamics(60.0, 1.0, thermostat, 5.0)
        made.append(Segment(directory, start, dynamics, n_steps, seed=k, plumed=plumed))
    return made


@pytest.mark.parametrize("thermostat", ["langevin", "brownian", "none"])
def test_segments_in_a_batch_are_those_of_one_after_another(
    tmp_path: Path, thermostat: str
) -> None:
    atoms = cluster()
    steps: list[int] = []
    with together(atoms, tmp_path / "calls") as engine, alone(atoms) as other:
        found = engine.run_all(segments(tmp_path / "batch", atoms, thermostat), steps.append)
        expected = other.run_all(segments(tmp_path / "alone", atoms, thermostat))
    assert [result.n_steps for result in found] == [30, 12, 20]
    for k, (one, two) in enumerate(zip(found, expected, strict=True)):
        assert one.n_steps == two.n_steps
        assert one.stopped_by_plumed == two.stopped_by_plumed == (k == 1)
        np.testing.assert_array_equal(one.end.positions, two.end.positions)
        batch, single = (
            columns(tmp_path / name / f"{k}" / "colvar") for name in ("batch", "alone")
        )
        np.testing.assert_array_equal(batch, single)
        written = (tmp_path / name / f"{k}" / "snapshots.dcd" for name in ("batch", "alone"))
        assert len({file.read_bytes()[300:] for file in written}) == 1  # after the title
    calls = [int(number) for number in (tmp_path / "calls").read_text().split()]
    assert calls == [3] * 13 + [2] * 8 + [1] * 10
    assert all(0 <= n <= sum(calls) for n in steps)


class Counts:
    """Ends a trajectory after a number of blocks."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, np.zeros((0,))

    def see(self, positions: Array) -> bool:
        """Receive positions."""
        self.seen = np.append(self.seen, positions[:, 0, 0])
        self.most -= 1
        return self.most == 0


def follow(engine: Engine, atoms: Atoms) -> Sequence[Any]:
    starts = [State(positions, atoms.cell.array) for positions in displaced(atoms, 3)]
    return engine.follow_all(
        starts, Dynamics(60.0), 40, range(3), [Counts(most) for most in (1, 3, 100)]
    )


def test_shots_in_a_batch_are_those_of_one_after_another() -> None:
    atoms = cluster()
    with together(atoms) as engine, alone(atoms) as other:
        found, expected = follow(engine, atoms), follow(other, atoms)
    assert [each.n_steps for each in found] == [10, 30, 40]
    for one, two in zip(found, expected, strict=True):
        assert one.n_steps == two.n_steps
        np.testing.assert_array_equal(one.observer.seen, two.observer.seen)
        np.testing.assert_array_equal(one.end.velocities, two.end.velocities)


def test_a_calculator_that_cannot_is_refused() -> None:
    atoms = cluster()
    with pytest.raises(UserError, match=r"engine.batch = 2: .* calculate_batch"):
        AseEngine("ase.calculators.emt.EMT", atoms, batch=2)
    with (
        together(atoms, flat=True) as engine,
        pytest.raises(UserError, match=r"shapes \(2,\) and \(26, 3\)"),
    ):
        engine.evaluate_all(displaced(atoms, 2), np.zeros((3, 3)))


def with_near_atoms(structures: Array, *numbers: int) -> Array:
    """Move atom 2 to 1 angstrom from atom 1 in some structures."""
    moved = structures.copy()
    for k in numbers:
        moved[k, 1] = moved[k, 0] + [1.0, 0.0, 0.0]
    return moved


@pytest.mark.parametrize(
    ("wrong", "most", "words"),
    [
        ((2,), 4, r"fails for structure 3 of 10 \(ValueError: two atoms .* engine.batch = 1"),
        ((5, 7), 4, r"fails for structure 6 of 10, structure 8 of 10 \(ValueError"),
        ((9,), 4, r"fails for structure 10 of 10 \(ValueError"),
        ((0, 1, 2, 3), 4, r"fails for each of 4 structures \(ValueError"),
        ((), 3, r"for 4 structures together, but for none alone \(MemoryError: .* a smaller"),
    ],
    ids=["first batch", "two", "last", "all", "too many"],
)
def test_the_structures_that_a_batch_fails_for_are_named(
    wrong: tuple[int, ...], most: int, words: str
) -> None:
    atoms = cluster()
    structures = with_near_atoms(displaced(atoms, 10), *wrong)
    with (
        together(atoms, closest=2.0, most=most) as engine,
        pytest.raises(UserError, match=words),
    ):
        engine.evaluate_all(structures, np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("blind", "words"),
    [(False, "calculate_batch fails for {} "), (True, "^{}: .* flew apart")],
    ids=["refused", "not numbers"],
)
def test_the_trajectory_that_ends_a_batch_is_named(tmp_path: Path, blind: bool, words: str) -> None:
    atoms = cluster()
    given = segments(tmp_path, atoms, "langevin")
    starts = [State(each, atoms.cell.array) for each in with_near_atoms(displaced(atoms, 3), 1)]
    parts = [replace(part, start=start) for part, start in zip(given, starts, strict=True)]
    observers = [Counts(100) for _ in starts]
    with together(atoms, closest=2.0, blind=blind) as engine:
        with pytest.raises(UserError, match=words.format(parts[1].directory)):
            engine.run_all(parts)
        with pytest.raises(UserError, match=words.format("trajectory 2 of 3")):
            engine.follow_all(starts, Dynamics(60.0), 40, range(3), observers)
        mistaken = replace(given[2], plumed="NONSENSE\n")
        with pytest.raises(UserError, match=f"^{mistaken.directory}/plumed.dat: ") as refused:
            engine.run_all([*given[:2], mistaken])
    assert str(refused.value).count(str(mistaken.directory)) == 1


def test_images_of_a_path_are_evaluated_together(tmp_path: Path) -> None:
    start: Atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    end = start.copy()
    end.positions[1] = start.positions[0]
    del start[0], end[0]
    arguments = {"asap_cutoff": False}
    where, calls = Path(__file__).parent, tmp_path / "calls"
    with (
        AseEngine(
            "together.Metal",
            start,
            arguments=arguments | {"calls": str(calls)},
            batch=8,
            directory=where,
        ) as engine,
        AseEngine("ase.calculators.emt.EMT", start, arguments=arguments) as other,
    ):
        found, expected = (
            find_minimum_energy_path(start, end, each.calculator, n_images=5, fmax_eV_A=0.05)
            for each in (engine, other)
        )
        again = with_forces(found.images, engine.calculator)
    np.testing.assert_array_equal(found.energies, expected.energies)
    np.testing.assert_array_equal(found.forces, expected.forces)
    for atoms, image in zip(again, found.images, strict=True):
        assert atoms.get_potential_energy() == pytest.approx(image.get_potential_energy())
    numbers = calls.read_text().split()
    assert numbers[-1] == "5"
    assert len(numbers) > 5
    assert set(numbers[:-1]) == {"3"}  # the inner images; no image is evaluated twice


def torch_sim(atoms: Atoms) -> AseEngine:
    """The same potential as a model of torch-sim."""
    given = {"model": "argon.Argon", "arguments": LENNARD_JONES}
    where = Path(__file__).parent
    return AseEngine(TORCH_SIM, atoms, arguments=given, batch=4, directory=where)


def test_a_model_of_torch_sim_is_a_calculator(tmp_path: Path) -> None:
    needed("torch_sim", "torch-sim-atomistic")
    atoms = crystal()
    cell = atoms.cell.array
    structures = displaced(atoms, 3)
    with torch_sim(atoms) as engine:
        energies, forces = engine.evaluate_all(structures, cell)
        _, own, stress = engine.evaluate(structures[1], cell)
        far = structures[2] + 3.0 * cell[0] - cell[2]
        moved = engine.evaluate(far, cell)[1]
        ran = engine.run_all(segments(tmp_path / "torch", atoms, "langevin"))
    with alone(atoms) as other:
        expected = other.run_all(segments(tmp_path / "ase", atoms, "langevin"))
    for k, structure in enumerate(structures):
        atoms.positions = structure
        energy, independent, its_stress = reference(atoms)
        assert energies[k] == pytest.approx(energy, rel=1e-12)
        np.testing.assert_allclose(forces[k], independent, atol=1e-12)
        if k == 1:
            np.testing.assert_allclose(own, independent, atol=1e-12)
            np.testing.assert_allclose(stress, its_stress, atol=1e-12)
    np.testing.assert_allclose(moved, forces[2], atol=1e-12)
    for one, two in zip(ran, expected, strict=True):
        assert one.n_steps == two.n_steps
        np.testing.assert_allclose(one.end.positions, two.end.positions, atol=1e-10)


def test_boundaries_that_torch_sim_does_not_know_are_refused() -> None:
    needed("torch_sim", "torch-sim-atomistic")
    slab = cluster()
    slab.cell, slab.pbc = [30.0, 30.0, 30.0], (True, True, False)
    state = import_module("torch_sim").io.atoms_to_state(slab, "cpu", None)
    if np.size(state.pbc) == 3:
        pytest.skip("this version of torch-sim knows them")
    with pytest.raises(UserError, match="periodic along all directions or none"):
        torch_sim(slab)
