"""The error of the potential is right: potentials whose differences are known by quadrature."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from plumed_cv import workflow
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Log, Update
from plumed_cv.cv import CollectiveVariable
from plumed_cv.freeenergy import Grid, bin_samples, meanforce
from plumed_cv.freeenergy.basins import find
from plumed_cv.freeenergy.perturbation import FEWEST, Committee, Curves, Sample, compare_potentials
from plumed_cv.structures import cell_of
from tests.truth import landscape
from tests.truth.landscape import MEMBERS
from tests.truth.models import MODELS, Model, exact
from tests.truth.test_truth import between
from tests.vacancy import called

CURVED = MODELS["LAMMPS"]
WELL, KT = CURVED.potential, CURVED.kT_eV
GRID = Grid(-0.2, 1.2, 140)
BLOCKS = 20


def variable() -> CollectiveVariable:
    return between(WELL.state(0.0), WELL.state(WELL.length))


class Points:
    """Structures of the curved landscape, with their weights in equilibrium."""

    def __init__(self, rng: np.random.Generator, number: int) -> None:
        s = rng.uniform(-0.4, 1.4, number) * WELL.length
        y = rng.normal(size=(number, len(WELL.basis) - 1))
        y = WELL.centre(s) + y * np.sqrt(KT / WELL.stiffness_at(s))[:, None]
        self.positions = WELL.positions(np.concatenate([s[:, None], y], axis=1))
        self.weight = np.exp(-CURVED.free_energy(s) / KT)
        cv = variable()
        self.displacements = cv.displacements(self.positions, cell_of(WELL.reference))
        self.xi = cv.encode(cv.components(self.displacements))[:, 0]


def exact_curves() -> Curves:
    points = Points(np.random.default_rng(1), 400_000)
    A = -KT * np.log(bin_samples(GRID, points.xi, points.weight)[1])
    basins = find(GRID, A, (0.0, 1.0), KT)
    assert basins is not None
    return Curves(GRID, KT, A, A, basins)  # the CV is linear: |grad xi| is a constant


def sampled(curves: Curves, number: int, names: list[str]) -> list[Sample]:
    """Blocks of snapshots of a run with a bias that levels the profile, except for a slant."""
    rng = np.random.default_rng(2)
    cv, blocks = variable(), []
    for slant in np.linspace(-1.0, 1.0, BLOCKS):
        points = Points(rng, 40 * number // BLOCKS)
        bins = GRID.bin(points.xi)
        weight = points.weight * np.exp(curves.A[bins] / KT + slant * points.xi) * (bins >= 0)
        chosen = rng.choice(len(weight), number // BLOCKS, p=weight / weight.sum())
        energies, terms = [], []
        for each in (WELL, *(MEMBERS[name] for name in names)):
            found = [each.energy_and_forces(points.positions[k]) for k in chosen]
            forces = np.array([force for _, force in found])
            xi, term = meanforce.compute_instantaneous(cv, points.displacements[chosen], forces, KT)
            energies.append([energy for energy, _ in found])
            terms.append(term)
        blocks.append(Sample(xi, np.ones(len(xi)), np.array(energies), np.array(terms)))
    return blocks


def differences(name: str, cv: CollectiveVariable) -> tuple[float, float]:
    """Flux barrier and delta F of a member minus those of the curved landscape, eV."""
    one, other = exact(Model(name, name), cv), exact(CURVED, cv)
    return one.flux_barrier[0] - other.flux_barrier[0], one.delta_F[0] - other.delta_F[0]


@pytest.fixture(scope="module")
def found() -> Committee:
    curves = exact_curves()
    return compare_potentials(curves, sampled(curves, 2000, list(MEMBERS)))


@pytest.mark.parametrize("name", ["higher", "looser", "straighter"])
def test_reweighted_differences_are_exact(found: Committee, name: str) -> None:
    """Two values of three members within four errors: one is beyond once in 2000 times."""
    member = found.members[list(MEMBERS).index(name)]
    assert member.overlaps
    assert member.best is member.reweighted
    flux_barrier, delta_F = differences(name, variable())
    for estimate, true in (
        (member.best.flux_barrier, flux_barrier),
        (member.best.delta_F, delta_F),
    ):
        assert estimate.error < 0.003
        assert abs(estimate.value - true) < 4.0 * estimate.error + 2e-4  # of the quadrature


def test_the_mean_force_in_the_same_structures_is_not_enough(found: Committee) -> None:
    """Where the paths of two potentials differ, it is far off; energies bring it back."""
    straighter = found.members[list(MEMBERS).index("straighter")]
    true, _ = differences("straighter", variable())
    first, second = straighter.same_structures.flux_barrier, straighter.second_order.flux_barrier
    assert abs(first.value - true) > max(0.02, 8.0 * first.error)
    assert abs(second.value - true) < 4.0 * second.error + 2e-4


def test_too_small_an_overlap_is_stated(found: Committee) -> None:
    """With a third of the stiffness, few snapshots would carry all weight."""
    softer = found.members[list(MEMBERS).index("softer")]
    assert softer.effective < FEWEST
    assert softer.share < 0.3
    assert softer.best is softer.second_order


def test_the_spread_is_that_of_all_potentials(found: Committee) -> None:
    barriers = [0.0, *(member.best.flux_barrier.value for member in found.members)]
    assert found.spread.value == pytest.approx(np.std(barriers, ddof=1), abs=1e-12)
    assert found.spread.error >= found.spread.value / np.sqrt(2 * len(found.members))
    assert found.snapshots == 2000


def test_the_flux_counts_the_gradient_of_the_other_ensemble() -> None:
    """Gradients e^(+energy/kT): -kT ln <g e^(-dE/kT)>/<g> is kT ln <e^(dE/kT)>, without noise."""
    curves = exact_curves()
    rng = np.random.default_rng(3)
    blocks = []
    for _ in range(BLOCKS):
        xi = rng.uniform(-0.2, 1.2, 500)
        energy = 0.01 * rng.choice([-1.0, 1.0], len(xi))
        both = np.array([np.zeros(len(xi)), energy])
        blocks.append(Sample(xi, np.exp(energy / KT), both, np.zeros_like(both)))
    member = compare_potentials(curves, blocks).members[0]
    expected = 2 * KT * np.log(np.cosh(0.01 / KT))
    difference = member.reweighted.flux_barrier
    assert difference.value == pytest.approx(expected, abs=4 * difference.error)
    assert difference.error < 0.1 * expected


COMMITTEE = "".join(
    f'{{ name = "ase", calculator = "landscape.OnLandscape", arguments = {{ name = "{name}" }}, '
    f'directory = "{Path(landscape.__file__).parent}" }},'
    for name in ("higher", "straighter")
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by LAMMPS with two members of ASE."""
    folder = tmp_path_factory.mktemp("committee") / "model"
    source = CURVED.write(folder, seed=11, steps=20_000)
    text = source.read_text().replace("[path]", f"committee = [{COMMITTEE}]\n[path]")
    source.write_text(text)
    done = called("run", source)
    assert done.returncode == 0, done.stderr
    return folder / "run"


class Counting(Log):
    """Counts what is computed, and may interrupt it."""

    def __init__(self, most: int | None = None) -> None:
        self.most, self.computed = most, 0

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator[Update]:
        """One snapshot after the other."""

        def update(done: float, note: str) -> None:
            self.computed += 1
            if self.computed == self.most:
                raise KeyboardInterrupt

        yield update


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())  # type: ignore[no-any-return]


def test_a_run_has_the_barriers_of_its_members(finished: Path, tmp_path: Path) -> None:
    """Interrupted, gone on with, repeated. Four values within four errors: odds of 1 in 4000."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = results(run)
    assert before["model_error_eV"] is None
    assert "has not converged" in before["committee_note"]
    with pytest.raises(KeyboardInterrupt):
        workflow.committee.compute_committee(run, Counting(250), snapshots=200)
    reporter = Counting()
    workflow.committee.compute_committee(run, reporter, snapshots=200)
    assert reporter.computed == 3 * 200 - 250
    done = called("committee", run, "--snapshots", "1000")
    assert done.returncode == 0, done.stderr
    assert "name = higher" in done.stdout
    again = Counting()
    found = workflow.committee.compute_committee(run, again, snapshots=1000)
    assert again.computed == 0
    assert found == results(run)
    assert found["committee"]["snapshots"] == 1000
    cv = CollectiveVariable.load(run / "cv.safetensors")
    for member, name in zip(found["committee"]["members"], ("higher", "straighter"), strict=True):
        assert member["by"] == "reweighting"
        keys = ("difference", "delta_F_difference")
        for key, true in zip(keys, differences(name, cv), strict=True):
            off = abs(member[f"{key}_eV"] - true)
            assert off < 4.0 * member[f"{key}_error_eV"] + 2e-4
    barriers = [m["difference_eV"] for m in found["committee"]["members"]]
    assert found["model_error_eV"] == pytest.approx(np.std([0.0, *barriers], ddof=1))
    unchanged = {key for key in before if before[key] == found[key]}
    assert set(before) - unchanged == {
        "model_error_eV",
        "model_error_error_eV",
        "committee",
        "committee_note",
    }
    page = called("report", run)
    assert page.returncode == 0
    text = (run / "report.html").read_text()
    assert "Error of the potential" in text
    assert "name = straighter" in text


def test_structures_in_which_the_members_disagree_most(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "uncertain.xyz"
    done = called("label", finished, "--uncertain", "5", "-o", file, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    for row in rows:
        assert row["deviation_eV"] > 0.0
    assert np.median([row["deviation_eV"] for row in rows]) > 0.01
    structures = ase.io.read(file, ":")
    cv = CollectiveVariable.load(finished / "cv.safetensors")
    for atoms, row in zip(structures, rows, strict=True):
        assert atoms.info["label_use"] == "training"
        assert row["xi"] == atoms.info["label_xi"]
        found = cv.value(atoms.positions[cv.serials - 1], cell_of(atoms))
        assert found[0] == pytest.approx(row["xi"], abs=1e-5)


def test_refusals(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    starts = json.loads((run / "provenance.json").read_text())
    starts[-1]["input"]["engine"]["committee"] = []
    (run / "provenance.json").write_text(json.dumps(starts))
    with pytest.raises(UserError, match=r"there is no engine\.committee in the input"):
        workflow.committee.compute_committee(run)
    with pytest.raises(UserError, match=r"there is no engine\.committee in the input"):
        workflow.find_uncertain(run, 3, tmp_path / "uncertain.xyz")
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="is not the directory of a finished run"):
        workflow.committee.compute_committee(run)
