"""Labels correct a barrier: potentials whose differences are known by quadrature."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from plumed_cv import workflow
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.freeenergy.labelled import Correction, estimate_correction
from plumed_cv.freeenergy.perturbation import FEWEST, Curves, Estimator, Sample
from plumed_cv.freeenergy.spreading import choose_farthest, choose_spread, compute_probabilities
from plumed_cv.structures import cell_of
from plumed_cv.structures.pairs import PairBasis, Sums, add_up
from plumed_cv.workflow.label_structures import make_structure, write_structures
from tests.truth.landscape import MEMBERS
from tests.truth.test_committee import CURVED, differences, exact_curves, sampled, variable
from tests.vacancy import called


def test_probabilities_add_up_and_the_largest_are_certain() -> None:
    p = compute_probabilities(np.array([1.0, 1.0, 2.0, 100.0, 0.0]), 3)
    np.testing.assert_allclose(p, [0.5, 0.5, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(compute_probabilities(np.array([3.0, 0.0, 1.0]), 5), [1, 0, 1])


def test_a_spread_sample_has_the_probabilities_and_is_balanced() -> None:
    """Shares within five standard errors, 30 of them: odds of 1 in 60 000."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(size=(30, 1)), axis=0)
    p = compute_probabilities(rng.uniform(0.2, 2.0, 30), 10)
    chosen = [choose_spread(x, p, rng) for _ in range(2000)]
    assert {len(each) for each in chosen} == {10}
    share = np.bincount(np.concatenate(chosen), minlength=30) / 2000
    assert (abs(share - p) < 5.0 * np.sqrt(p * (1 - p) / 2000) + 1e-9).all()
    means = [x[each, 0].mean() for each in chosen]
    off = x[:, 0] - p @ x[:, 0] / 10
    assert np.std(means) < 0.5 * np.sqrt(p @ off**2) / 10  # of 10 independent ones


def test_the_farthest_are_far_and_allowed() -> None:
    points = np.array([[0.0], [1.0], [2.0], [10.0], [20.0]])
    allowed = np.array([0.0, 1.0, 1.0, 1.0, 0.0])
    assert choose_farthest(points, np.array([0]), allowed, 9).tolist() == [3, 2, 1]


def crystal(rng: np.random.Generator) -> Atoms:
    """Two elements in a small skewed cell, whose pairs cross its borders."""
    atoms = Atoms(
        "CuAgCuAg",
        scaled_positions=[[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        cell=[[4.0, 0, 0], [0.5, 4.2, 0], [0.0, 0.3, 4.1]],
        pbc=True,
    )
    atoms.positions += rng.normal(scale=0.1, size=(4, 3))
    return atoms


def test_forces_of_the_learned_potential_are_its_slopes() -> None:
    atoms = crystal(np.random.default_rng(1))
    cell = cell_of(atoms)
    basis = PairBasis(tuple(atoms.symbols), atoms.positions + 0.05, cell)
    forces = basis.features(atoms.positions, cell)[1]
    h = 1e-5
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        step = np.zeros((4, 3))
        step[atom, axis] = h
        ahead, behind = (basis.features(atoms.positions + s, cell)[0] for s in (step, -step))
        np.testing.assert_allclose(
            forces[atom, axis], (behind - ahead) / (2 * h), atol=1e-6 * abs(forces).max()
        )


def test_a_difference_of_pair_potentials_is_learned_from_few_structures() -> None:
    rng = np.random.default_rng(2)
    structures = [crystal(rng) for _ in range(30)]
    basis = PairBasis(tuple(structures[0].symbols), structures[0].positions, cell_of(structures[0]))
    energies, forces = np.zeros(30), np.zeros((30, 4, 3))
    for k, atoms in enumerate(structures):
        atoms.calc = MorsePotential(epsilon=0.1, r0=2.9, rho0=4.0, rcut1=4.5, rcut2=5.9)
        energies[k], forces[k] = atoms.get_potential_energy(), atoms.get_forces()
    found: list[Sums] = []
    features = [basis.features(atoms.positions, cell_of(atoms)) for atoms in structures]
    for k in range(20):
        found.append(add_up(*features[k], energies[k], forces[k], np.ones(2)))
    total = found[0]
    for each in found[1:]:
        total = total + each
    solved = total.solved()
    guess = np.array([energy @ solved[:-1] + solved[-1] for energy, _ in features[20:]])
    assert np.std(guess - energies[20:]) < 0.05 * np.std(energies[20:])


BLOCKS = 20


@pytest.fixture(scope="module")
def curves() -> Curves:
    return exact_curves()


def with_g(curves: Curves, name: str, number: int) -> list[Sample]:
    """Snapshots of a run; three potentials: of the run, the same plus g, the reference.

    g is 80 % of the difference and a function of its own.
    """
    found = []
    for part in sampled(curves, number, [name]):
        own = 0.01 * np.sin(20.0 * part.xi)
        energy, force = part.energy_eV, part.mean_force_eV
        g = 0.8 * (energy[1] - energy[0]) + own
        slope = 0.8 * (force[1] - force[0]) + 0.2 * np.cos(20.0 * part.xi)
        found.append(
            part._replace(
                energy_eV=np.array([energy[0], energy[0] + g, energy[1]]),
                mean_force_eV=np.array([force[0], force[0] + slope, force[1]]),
            )
        )
    return found


def corrected(
    curves: Curves, snapshots: list[Sample], number: int, rng: np.random.Generator
) -> Correction:
    """The correction by labels that are spread along xi."""
    xi = np.concatenate([part.xi for part in snapshots])
    columns = [np.concatenate([getattr(part, name) for part in snapshots], axis=-1)
               for name in ("gradnorm", "energy_eV", "mean_force_eV")]  # fmt: skip
    sizes = 0.3 + np.sum([np.exp(-30.0 * (xi - centre) ** 2) for centre in (0.0, 0.5, 1.0)], axis=0)
    p = compute_probabilities(sizes, number)
    labels = [
        Sample(xi[[k]], columns[0][[k]], columns[1][:, [k]], columns[2][:, [k]], float(1 / p[k]))
        for k in choose_spread(xi[:, None], p, rng)
    ]
    without = [
        part._replace(energy_eV=part.energy_eV[:2], mean_force_eV=part.mean_force_eV[:2])
        for part in snapshots
    ]
    return estimate_correction(curves, labels, without)


@pytest.mark.parametrize("name", ["higher", "looser", "straighter"])
def test_a_hundred_labels_correct_the_barrier(curves: Curves, name: str) -> None:
    """Two values of three potentials within four errors: one is beyond once in 2000 times."""
    found = corrected(curves, with_g(curves, name, 4000), 100, np.random.default_rng(3))
    assert found.by == "reweighting"
    flux_barrier, delta_F = differences(name, variable())
    assert found.best.flux_barrier.error < 0.005
    for estimate, true in (
        (found.best.flux_barrier, flux_barrier),
        (found.best.delta_F, delta_F),
    ):
        assert abs(estimate.value - true) < 4.0 * estimate.error + 1e-3  # of the windows


def test_the_error_is_that_of_repeated_choices(curves: Curves) -> None:
    """The same run, 40 choices of labels: their mean is that of all, their spread the error.

    A standard deviation of 40 values is uncertain by 11 %. The jackknife does not know that labels
    are spread evenly, so that its error may be larger than the spread.
    """
    snapshots = with_g(curves, "straighter", 2000)
    rng = np.random.default_rng(4)
    found = [corrected(curves, snapshots, 100, rng) for _ in range(40)]
    values = np.array([each.ways["reweighting"].flux_barrier.value for each in found])
    errors = np.array([each.label_errors["reweighting"] for each in found])
    every = Estimator(curves, snapshots, 2).differences(range(BLOCKS))[2, 0]
    assert abs(values.mean() - every) < 4.0 * values.std() / np.sqrt(40) + 1e-3  # of the windows
    assert 0.6 * values.std() < np.sqrt(np.mean(errors**2)) < 2.0 * values.std()


def test_too_small_an_overlap_is_refused(curves: Curves) -> None:
    """With a third of the stiffness, few snapshots would carry all weight."""
    found = corrected(curves, with_g(curves, "softer", 2000), 100, np.random.default_rng(5))
    assert found.effective_snapshots < FEWEST
    assert not found.trusts("reweighting")
    assert found.by == "second order"


def test_fixed_atoms_and_boundaries_are_written(tmp_path: Path) -> None:
    atoms = Atoms("Al3", [[0, 0, 0], [2, 0, 0], [0, 2, 0]], cell=[9, 9, 0], pbc=[1, 1, 0])
    atoms.set_constraint(FixAtoms([1]))
    row = {"name": "segment-000000:3", "xi": 0.5, "weight": 2.0, "use": "correction"}
    moved = atoms.positions + 0.125
    write_structures(tmp_path / "a.xyz", [make_structure(atoms, moved, row)])
    back = ase.io.read(tmp_path / "a.xyz")
    assert isinstance(back, Atoms)
    np.testing.assert_allclose(back.positions, moved, atol=1e-7)
    assert back.constraints[0].index.tolist() == [1]
    assert back.pbc.tolist() == [True, True, False]
    assert back.info["label"] == "segment-000000:3"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run along the curved landscape."""
    folder = tmp_path_factory.mktemp("label") / "model"
    done = called("run", CURVED.write(folder, seed=12, steps=20_000))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def computed(file: Path, name: str) -> list[Atoms]:
    """The structures of a file with energies, from another zero, and forces."""
    found: list[Atoms] = ase.io.read(file, ":")  # type: ignore[assignment]
    for atoms in found:
        energy, forces = MEMBERS[name].energy_and_forces(atoms.positions)
        atoms.calc = SinglePointCalculator(atoms, energy=energy - 1234.5, forces=forces)
    return found


@pytest.mark.slow
def test_a_run_is_corrected(finished: Path, tmp_path: Path) -> None:
    """Two values within four errors: odds of 1 in 8000."""
    run, chosen, back = tmp_path / "run", tmp_path / "labels.xyz", tmp_path / "back.xyz"
    shutil.copytree(finished, run)
    refused = called("label", run, "--labels", chosen)
    assert refused.returncode == 1
    assert "no structures have been chosen" in refused.stderr
    last = sorted(run.glob("iteration-2/segment-*"))[-1]
    later = last.rename(tmp_path / last.name)
    done = called("label", run, "-n", "120", "-o", chosen, "--training", "10")
    assert done.returncode == 0, done.stderr
    again = tmp_path / "again.xyz"
    workflow.label.choose(run, 120, again, training=10)
    assert again.read_bytes() == chosen.read_bytes()
    later.rename(last)  # as if the run had been sampled on after the choice
    structures = computed(chosen, "straighter")
    assert len(structures) == 130
    assert sum(atoms.info["label_use"] == "correction" for atoms in structures) == 120
    xi = np.array([atoms.info["label_xi"] for atoms in structures])
    assert (np.histogram(xi, np.linspace(0, 1, 11))[0] >= 4).all()
    structures = structures[::-1][2:]  # two are missing
    for atoms in structures[::2]:
        atoms.info.clear()
        atoms.positions += atoms.cell[0]
    ase.io.write(back, structures, format="extxyz")
    done = called("label", run, "--labels", back)
    assert done.returncode == 0, done.stderr
    assert "Flux barrier of the reference" in done.stdout
    found = json.loads((run / "labels" / "correction.json").read_text())
    assert found["labels"] == 120 - (2 - (10 - found["training"]))
    variable = CollectiveVariable.load(run / "cv.safetensors")
    for key, true in zip(
        ("difference", "delta_F_difference"), differences("straighter", variable), strict=True
    ):
        assert found[f"{key}_error_eV"] < 0.01
        assert abs(found[f"{key}_eV"] - true) < 4.0 * found[f"{key}_error_eV"] + 2e-4
    assert found["flux_barrier_error_eV"] > found["difference_error_eV"]
    assert "Reference" in (run / "report.html").read_text()
    mistakes(run, structures, tmp_path / "wrong.xyz")
    workflow.label.choose(run, 120, again, seed=2)
    assert not (run / "labels" / "correction.json").exists()
    with pytest.raises(UserError, match="snapshots to choose from, which are fewer than 9,999"):
        workflow.label.choose(run, 9999, again)
    for file in run.glob("iteration-*/segment-*/snapshots.dcd"):
        file.unlink()
    with pytest.raises(UserError, match="has 0 whole snapshots"):
        workflow.label.choose(run, 120, again)
    with pytest.raises(UserError, match="snapshots that were chosen are no longer there"):
        workflow.label.correct(run, back)


def mistakes(run: Path, structures: list[Atoms], file: Path) -> None:
    """What comes back may be of another kind."""

    def refused(changed: Any, message: str) -> None:
        copies = []
        for atoms in structures:
            other = atoms.copy()
            other.calc = SinglePointCalculator(other, **atoms.calc.results)
            copies.append(other)
        changed(copies)
        ase.io.write(file, copies, format="extxyz")
        with pytest.raises(UserError, match=message):
            workflow.label.correct(run, file)

    def relaxed(copies: list[Atoms]) -> None:
        copies[3].positions[0, 0] += 0.1

    def hartree(copies: list[Atoms]) -> None:
        for atoms in copies:
            atoms.calc.results["forces"] = atoms.calc.results["forces"] / 51.4

    def energies(factor: float) -> Callable[[list[Atoms]], None]:
        def change(copies: list[Atoms]) -> None:
            for atoms in copies:
                atoms.calc.results["energy"] *= factor

        return change

    def twice(copies: list[Atoms]) -> None:
        copies.append(copies[4])

    def left_handed(copies: list[Atoms]) -> None:
        copies[1].set_cell(copies[1].cell.array[[1, 0, 2]])

    def other(copies: list[Atoms]) -> None:
        copies[1].info["label"] = "segment-000000:99999"

    def bare(copies: list[Atoms]) -> None:
        copies[2].calc = None

    def few(copies: list[Atoms]) -> None:
        del copies[15:]

    refused(relaxed, r"structure 4 is no snapshot .* an atom is 0\.1 angstrom")
    refused(hartree, r"check that they are in eV/angstrom")
    refused(energies(23.06), r"check that they are in eV for the whole structure")
    refused(energies(0.0), r"the energies have little to do with .*correlation 0")
    refused(twice, r"structure 129 is the same snapshot \(.*\) as structure 5; leave one")
    refused(left_handed, "structure 2: the cell vectors are left-handed")
    refused(other, "choose them again with the same number and seed")
    refused(bare, "structure 3 has no energy and forces")
    refused(few, "at least 20 are needed")
