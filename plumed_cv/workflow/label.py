"""Structures to compute with a better method, and the correction of the barrier by them.

The folder `labels` of a run has

    selection.json    the structures that were chosen, with their inclusion probabilities
    correction.json   the correction, once they have come back

A label is a structure with the energy and the forces of the reference. Its name is that of a
snapshot, `segment-000003:17`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from plumed_cv import freeenergy, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, replacing, write_text
from plumed_cv.common.numbers import energy_in_words
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.cv import CollectiveVariable
from plumed_cv.freeenergy import meanforce, perturbation
from plumed_cv.freeenergy.labelled import FEWEST_LABELS, Correction, correction
from plumed_cv.freeenergy.spreading import farthest, inclusion_probabilities, spread_sample
from plumed_cv.structures import (
    cell_of,
    find_meant_order,
    has_forces,
    held_atoms,
    orient,
    read_structures,
)
from plumed_cv.structures.frame import Array, nearest_images
from plumed_cv.structures.pairs import PairBasis, Sums, sums_of
from plumed_cv.workflow import provenance
from plumed_cv.workflow.committee import chosen_snapshots, name_of, refusal, run_curves
from plumed_cv.workflow.directory import RunDirectory, claimed
from plumed_cv.workflow.keys import as_json, or_none
from plumed_cv.workflow.mep import read_end_states
from plumed_cv.workflow.samples import read_samples

LABELS = 100  # by default
CANDIDATES = 8000  # snapshots from which labels are chosen, and in which g is evaluated
FEWEST = 20  # labels of a correction
_CELLS = 8  # neighbours along xi that differ in other coordinates
_COORDINATES = 3  # other coordinates in which labels are spread
_FOCUS = 0.08  # standard deviation around states and surfaces, relative to their distance
_SAME_A = 0.02  # a label is at the positions of its snapshot
_FOLDS = 5  # g of a label does not know this label
_CORRECTION, _TRAINING = "correction", "training"


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Snapshots of the iteration that gives the answer.

    Attributes
    ----------
    files, result, variable, curves
        The run and what it has found.
    iteration
        Folder of the iteration.
    walkers
        Number of segments of each walker.
    wanted
        Numbers of the snapshots in each segment.
    names
        Names of the snapshots, (M).
    block
        Number of the segment of each, (M,).
    weight
        Weight of each in averages, (M,).
    """

    files: RunDirectory
    result: dict[str, Any]
    variable: CollectiveVariable
    curves: perturbation.Curves
    iteration: Path
    walkers: Sequence[int]
    wanted: dict[Path, list[int]]
    names: list[str]
    block: NDArray[np.int64]
    weight: Array

    def positions(self) -> Iterator[Array]:
        """Positions of the snapshots of each segment, (m, N, 3), angstrom."""
        from plumed_cv.structures.trajectory import (
            read_all_positions,  # importing mdtraj takes a second
        )

        for segment, frames in self.wanted.items():
            yield read_all_positions(segment / "snapshots.dcd")[frames]


def choose(
    directory: Path | str,
    number: int = LABELS,
    output: Path | str = "labels.xyz",
    *,
    training: int = 0,
    seed: int = 1,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Choose snapshots of a finished run, and write them as extended XYZ.

    Parameters
    ----------
    directory
        The run directory.
    number
        Number of structures for the correction, chosen at random with known probabilities.
    output
        The file.
    training
        Number of further structures that differ as much as possible, for training alone.
    seed
        Of the choice. The same seed chooses the same structures.
    reporter
        Receives the progress.

    Returns
    -------
    The contents of labels/selection.json.

    Raises
    ------
    UserError
        If the run has not ended, or its result cannot be corrected (`committee.refusal`).
    """
    if number < FEWEST:
        raise UserError(f"{number} structures: a correction needs at least {FEWEST}.")
    reporter = reporter or Log()
    files, config = provenance.read_finished_run(directory)
    with claimed(files.root):
        provenance.check_same_input(files.root, config)
        found = _candidates(files, CANDIDATES, directory)
        initial = read_end_states(config)[0]
        cell = cell_of(initial)
        u = np.concatenate(
            [
                found.variable.displacements(part[:, found.variable.serials - 1], cell)
                for part in found.positions()
            ]
        )
        x = found.variable.components(u)
        xi = found.variable.encode(x)[:, 0]
        disagreement = _disagreement(found, xi)
        sizes = _sizes(found, xi) * (0.5 + 0.5 * disagreement)
        probability = inclusion_probabilities(sizes, number)
        points = _points(found, xi, x, number)
        rng = np.random.default_rng(seed)
        chosen = spread_sample(points, probability, rng)
        weights = np.where((found.weight > 0) & (sizes > 0), disagreement, 0.0)
        weights[chosen] = 0.0
        more = farthest(points, chosen, weights, training)
        uses = [(int(k), _CORRECTION) for k in chosen] + [(int(k), _TRAINING) for k in more]
        rows: list[dict[str, Any]] = [
            {
                "name": found.names[k],
                "xi": float(xi[k]),
                "probability": float(probability[k]),
                "weight": float(found.weight[k] / probability[k]) if use == _CORRECTION else 0.0,
                "use": use,
            }
            for k, use in uses
        ]
        record = {
            "iteration": found.result["answer_iteration"],
            "seed": seed,
            "candidates": len(found.names),
            "by_disagreement": bool(np.ptp(disagreement) > 0),
            "labels": rows,
        }
        structures = [
            _structure(initial, positions, row)
            for positions, row in zip(_positions_of(found, rows), rows, strict=True)
        ]
        _write(Path(output), structures)
        folder = files.root / "labels"
        folder.mkdir(exist_ok=True)
        if (
            not (folder / "selection.json").exists()
            or read_json(folder / "selection.json") != record
        ):
            (folder / "correction.json").unlink(missing_ok=True)  # of other structures
        write_text(folder / "selection.json", json.dumps(record, indent=2, allow_nan=False))
    places = [float(xi[k]) for k, _ in uses]
    reporter.say(
        f"{output}: {len(chosen)} structures for the correction"
        + (f" and {len(more)} more for training" if training else "")
        + f", from xi = {min(places):.2f} to {max(places):.2f}, out of {len(found.names):,} "
        "snapshots."
    )
    return record


def correct(
    directory: Path | str, labels: Path | str, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Correct the free energy of a run by labels that have come back.

    Parameters
    ----------
    directory
        The run directory.
    labels
        File with energies and forces, in any order, of any format of ASE.
    reporter
        Receives the progress.

    Returns
    -------
    The contents of labels/correction.json.

    Raises
    ------
    UserError
        If no structures of this run were chosen before, a structure is not one of them, or has no
        energy and forces, or fewer than `FEWEST` have come back.
    """
    reporter = reporter or Log()
    files, config = provenance.read_finished_run(directory)
    record_file = files.root / "labels" / "selection.json"
    if not record_file.exists():
        raise UserError(
            f"{directory}: no structures have been chosen; 'plumed-cv label {directory}' does so."
        )
    record = read_json(record_file)
    with claimed(files.root):
        provenance.check_same_input(files.root, config)
        found = _candidates(files, record["candidates"], directory)
        if record["iteration"] != found.result["answer_iteration"]:
            raise UserError(
                f"{directory}: the labels belong to iteration {record['iteration']}, but the "
                f"answer is now that of iteration {found.result['answer_iteration']}; choose new "
                "ones."
            )
        initial = read_end_states(config)[0]
        back = _matched(Path(labels), read_structures(labels), found, record, initial)
        usable = [label for label in back if label.row["use"] == _CORRECTION]
        if len(usable) < FEWEST:
            raise UserError(
                f"{labels}: has {len(usable)} structures for the correction, and at least {FEWEST} "
                "are needed."
            )
        with (
            sampling.open_engine(config, initial) as engine,
            reporter.task("potential of the run: labels", len(back)) as update,
        ):
            own = []
            for k, label in enumerate(back):
                energy, forces, _ = engine.evaluate(label.positions, cell_of(initial))
                own.append((energy, forces))
                update(k + 1, "")
        differences = _differences(back, own, Path(labels), held_atoms(initial))
        result = _corrected(found, initial, back, differences, reporter)
        result |= {
            "labels": len(usable),
            "chosen": sum(row["use"] == _CORRECTION for row in record["labels"]),
            "training": len(back) - len(usable),
        }
        write_text(
            files.root / "labels" / "correction.json",
            json.dumps(result, indent=2, allow_nan=False),
        )
    return result


def in_words(result: dict[str, Any]) -> str:
    """The corrected barrier in a sentence."""
    return (
        f"Flux barrier of the reference: {energy_in_words(result, 'flux_barrier', 'eV')}, from "
        f"{result['labels']} labels by {result['by']}; the potential of the run gives "
        f"{energy_in_words(result, 'before', 'eV')}."
    )


def _candidates(files: RunDirectory, number: int, directory: Path | str) -> _Candidates:
    """Return the snapshots from which labels are chosen."""
    result = read_json(files.result)
    if reason := refusal(files, result):
        raise UserError(f"{directory}: {reason}.")
    iteration = files.iteration(result["answer_iteration"])
    data, walkers = read_samples(iteration), sampling.count_segments(iteration)
    wanted = chosen_snapshots(iteration, number)
    weights = [block.sums[2].sum() / max(1, block.steps) for block in data.blocks]
    names, of_snapshot = [], []
    for k, segment in enumerate(sampling.list_segments(iteration)):
        own = wanted.get(segment, [])
        names += [name_of(iteration, segment, i) for i in own]
        of_snapshot += [k] * len(own)
    block = np.array(of_snapshot, dtype=np.int64)
    return _Candidates(
        files=files,
        result=result,
        variable=CollectiveVariable.load(files.cv(result["answer_iteration"] - 1)),
        curves=run_curves(iteration, result, data, walkers),
        iteration=iteration,
        walkers=walkers,
        wanted=wanted,
        names=names,
        block=block,
        weight=np.array(weights)[block],
    )


def _sizes(found: _Candidates, xi: Array) -> Array:
    """Return what inclusion probabilities are proportional to, apart from the committee.

    Per unit of xi, half of the labels are spread evenly from basin to basin. The other half are
    around the minima of the states and the highest dividing surface, whose energies decide. All
    labels at one xi then have the same weight.
    """
    curves = found.curves
    basins, nodes = curves.basins, curves.grid.nodes
    order, along = basins.along.order, basins.along
    W = curves.F[order]
    top = max(basins.surfaces, key=lambda k: W[k])
    place = np.interp(xi, nodes, _position_of_nodes(curves))
    low, high = along.position[basins.minima[0]], along.position[basins.minima[-1]]
    slack = 0.15 * along.length
    even = np.where((place > low - slack) & (place < high + slack), 1.0, 0.2)
    centres = [low, along.position[top], high]
    width = _FOCUS * along.length
    focus = sum(np.exp(-0.5 * ((place - centre) / width) ** 2) for centre in centres)
    wanted = even / along.length / 1.3 + focus / (3 * np.sqrt(2 * np.pi) * width)
    bins = curves.grid.bin(xi)
    density = np.bincount(bins[bins >= 0], found.weight[bins >= 0], len(nodes))
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
    density = np.convolve(density, kernel / kernel.sum(), mode="same")
    size = found.weight * wanted / np.maximum(density[bins], 1e-300)
    return np.where(bins >= 0, size, 0.0)


def _position_of_nodes(curves: perturbation.Curves) -> Array:
    """Return the distance of each node from the reactant, (n,)."""
    along = curves.basins.along
    position = np.empty(len(along.order))
    position[along.order] = along.position
    return position


def _points(found: _Candidates, xi: Array, x: Array, number: int) -> Array:
    """Return coordinates in which labels are to differ, (M, 1 + k).

    The first is xi, with number/8 labels' distances between the states. The others are the
    principal components of the structures without their mean at this xi, in units of standard
    deviations.
    """
    length = found.curves.basins.along.length
    t = xi / length
    powers = t[:, None] ** np.arange(6)
    rest = x - powers @ np.linalg.lstsq(powers, x, rcond=None)[0]
    _, _, directions = np.linalg.svd(rest - rest.mean(axis=0), full_matrices=False)
    others = rest @ directions[:_COORDINATES].T
    others /= np.maximum(others.std(axis=0), 1e-12)
    return np.concatenate([1.5 * max(1.0, number / _CELLS) * t[:, None], others], axis=1)


def _disagreement(found: _Candidates, xi: Array) -> Array:
    """Return how far the members of the committee disagree in each snapshot, (M,), 1 on average.

    This is the standard deviation of their energies without the mean at this xi, of all potentials;
    1 everywhere without a committee.
    """
    folder = found.iteration / "committee"
    energies = []
    for file in sorted(folder.glob("potential-*.npz")):
        with np.load(file) as content:
            values = dict(zip(content["snapshots"].tolist(), content["values"][:, 2], strict=True))
        energies.append([values.get(name, np.nan) for name in found.names])
    table = np.array(energies)
    known = np.isfinite(table).all(axis=0) if len(table) > 1 else np.zeros(len(xi), dtype=bool)
    if known.sum() < 100:
        return np.ones(len(xi))
    powers = xi[known, None] ** np.arange(6)
    differences = (table[1:, known] - table[0, known]).T
    rest = differences - powers @ np.linalg.lstsq(powers, differences, rcond=None)[0]
    spread = np.sqrt(np.mean(rest**2, axis=1))
    found_spread = np.ones(len(xi))
    found_spread[known] = spread / spread.mean()
    return found_spread


def _positions_of(found: _Candidates, rows: Sequence[dict[str, Any]]) -> list[Array]:
    """Return the positions of snapshots by their names, (N, 3) each."""
    from plumed_cv.structures.trajectory import read_positions  # importing mdtraj takes a second

    places = []
    for row in rows:
        segment, _, i = row["name"].rpartition(":")
        places.append(read_positions(found.iteration / segment / "snapshots.dcd", int(i)))
    return places


def _structure(initial: Atoms, positions: Array, row: dict[str, Any]) -> Atoms:
    """Return a structure to be written."""
    atoms = initial.copy()
    atoms.calc = None
    atoms.set_positions(positions, apply_constraint=False)
    atoms.info = {
        "label": row["name"],
        "label_xi": row["xi"],
        "label_weight": row["weight"],
        "label_use": row["use"],
    }
    return atoms  # type: ignore[no-any-return]


def _write(file: Path, structures: list[Atoms]) -> None:
    """Write structures as extended XYZ, with fixed atoms."""
    with replacing(file) as temporary:
        columns = ["symbols", "positions"]
        if structures[0].constraints:
            columns.append("move_mask")
        ase.io.write(temporary, structures, format="extxyz", columns=columns)


class _Label(NamedTuple):
    """A structure that has come back, in the order and at the positions of its snapshot."""

    row: dict[str, Any]
    positions: Array
    energy_eV: float
    forces: Array


def _matched(
    file: Path,
    structures: Sequence[Atoms],
    found: _Candidates,
    record: dict[str, Any],
    initial: Atoms,
) -> list[_Label]:
    """Return the labels in the order of time.

    A structure without the name of its snapshot is found by its positions.
    """
    rows = {row["name"]: row for row in record["labels"]}
    names = list(rows)
    places = np.array(_positions_of(found, list(rows.values())))
    labels: dict[str, _Label] = {}
    for k, atoms in enumerate(structures):
        where = f"{file}: structure {k + 1}"
        if not has_forces(atoms):
            raise UserError(f"{where} has no energy and forces; leave it out, or compute it.")
        turned = orient(atoms)
        if sorted(turned.symbols) != sorted(initial.symbols):
            raise UserError(f"{where} has other atoms than the run.")
        if not np.allclose(cell_of(turned), cell_of(initial), atol=1e-3):
            raise UserError(f"{where} has another cell than the run.")
        name = atoms.info.get("label")
        if name is not None and name not in rows:
            raise UserError(
                f"{where} ({name}) is not one of those that were chosen last; choose them again "
                "with the same number and seed."
            )
        options = range(len(names)) if name is None else [names.index(name)]
        by_species = [_distance(turned, initial, places[i]) for i in options]
        best = int(np.argmin([off for off, _ in by_species]))
        off, order = by_species[best]
        if off > _SAME_A:  # the atoms may have been sorted
            shuffled = [_reordered(turned, initial, places[i]) for i in options]
            best = int(np.argmin([far for far, _ in shuffled]))
            off, order = shuffled[best]
        best = options[best]
        if off > _SAME_A:
            raise UserError(
                f"{where} is no snapshot that was chosen: an atom is {off:.2g} angstrom from its "
                "position there. Compute the structures without relaxing them."
            )
        results = atoms.calc.results
        energy = results.get("free_energy", results["energy"])  # what the forces belong to
        labels[names[best]] = _Label(
            rows[names[best]],
            places[best],
            float(energy),
            np.asarray(turned.calc.results["forces"], dtype=float)[order],
        )
    rank = {name: k for k, name in enumerate(found.names)}
    return sorted(labels.values(), key=lambda label: rank[label.row["name"]])


def _distance(atoms: Atoms, initial: Atoms, places: Array) -> tuple[float, NDArray[np.int64]]:
    """Return the largest distance of an atom from its place, and the order of the atoms.

    Programs may sort atoms by element, and keep their order within each element.
    """
    order = np.arange(len(initial))
    if tuple(atoms.symbols) != tuple(initial.symbols):
        rank = np.argsort(np.argsort(initial.symbols, kind="stable"), kind="stable")
        order = np.argsort(atoms.symbols, kind="stable")[rank]
    off = nearest_images(atoms.positions[order] - places, cell_of(initial))
    return float(np.linalg.norm(off, axis=1).max()), order


def _reordered(atoms: Atoms, initial: Atoms, places: Array) -> tuple[float, NDArray[np.int64]]:
    """Return the same after the atoms of each element have been assigned to the places."""
    snapshot = initial.copy()
    snapshot.set_constraint()
    snapshot.positions = places
    first = _distance(atoms, initial, places)[1]
    order = first[find_meant_order(snapshot, atoms[first])]
    off = nearest_images(atoms.positions[order] - places, cell_of(initial))
    return float(np.linalg.norm(off, axis=1).max()), order


class _Difference(NamedTuple):
    """Reference minus potential of the run in a label: energy (eV) and forces (eV/angstrom)."""

    energy_eV: float
    forces: Array


def _differences(
    labels: Sequence[_Label],
    own: Sequence[tuple[float, Array]],
    file: Path,
    held: NDArray[np.int64],
) -> list[_Difference]:
    """Return the differences; refuse forces that cannot be those of the structures.

    Only differences of energies count, so that those of the first label are taken off. Programs may
    set the forces on fixed atoms to zero, and these do not count.
    """
    free = np.setdiff1d(np.arange(len(labels[0].positions)), held)
    theirs = np.concatenate([label.forces[free].ravel() for label in labels])
    ours = np.concatenate([forces[free].ravel() for _, forces in own])
    if not np.corrcoef(theirs, ours)[0, 1] > 0.5 or not 1 / 3 < theirs.std() / ours.std() < 3:
        raise UserError(
            f"{file}: the forces have little to do with those of the potential of the run "
            f"(correlation {np.corrcoef(theirs, ours)[0, 1]:.2f}, {theirs.std() / ours.std():.2g} "
            "times as large); check that they are in eV/angstrom and belong to these structures."
        )
    offset = labels[0].energy_eV - own[0][0]
    found = []
    for label, (energy, forces) in zip(labels, own, strict=True):
        difference = label.forces - forces
        difference[held] = 0.0
        found.append(_Difference(label.energy_eV - energy - offset, difference))
    return found


@dataclass(frozen=True, eq=False)
class _Learned:
    """The function g, from all labels but a fold of them: coefficients (folds, F + 1)."""

    basis: PairBasis
    coefficients: Array

    @classmethod
    def of(
        cls,
        labels: Sequence[_Label],
        differences: Sequence[_Difference],
        initial: Atoms,
        folds: NDArray[np.int64],
    ) -> tuple["_Learned", Array, list[Array]]:
        """Learn g; returns also its energies and forces in each label, from the other folds."""
        cell, held = cell_of(initial), held_atoms(initial)
        basis = PairBasis(tuple(initial.symbols), labels[0].positions, cell)
        energies = np.array([each.energy_eV for each in differences])
        forces = np.array([each.forces for each in differences])
        variances = np.array([energies.var(), np.mean(forces**2)])
        weights = 1.0 / np.maximum(variances, 1e-12) / np.array([1.0, forces[0].size])
        features = []
        sums: list[Sums | None] = [None] * _FOLDS
        for fold, label, each in zip(folds, labels, differences, strict=True):
            energy, force = basis.features(label.positions, cell)
            force[held] = 0.0
            features.append((energy, force))
            part = sums_of(energy, force, each.energy_eV, each.forces, weights)
            before = sums[fold]
            sums[fold] = part if before is None else before + part
        learned = []
        for fold in range(_FOLDS):
            rest = [part for k, part in enumerate(sums) if k != fold and part is not None]
            total = rest[0]
            for part in rest[1:]:
                total = total + part
            learned.append(total.solved())
        coefficients = np.array(learned)
        own_energies, own_forces = [], []
        for fold, (energy, force) in zip(folds, features, strict=True):
            own = coefficients[fold]
            own_energies.append(float(energy @ own[:-1] + own[-1]))
            own_forces.append(force @ own[:-1])
        return cls(basis, coefficients), np.array(own_energies), own_forces

    def evaluate(self, positions: Array, cell: Array) -> tuple[float, Array]:
        """Energy and forces in a structure, as a mean over the folds."""
        mean = self.coefficients.mean(axis=0)
        energy, forces = self.basis.features(positions, cell)
        return float(energy @ mean[:-1] + mean[-1]), forces @ mean[:-1]


def _corrected(
    found: _Candidates,
    initial: Atoms,
    labels: Sequence[_Label],
    differences: Sequence[_Difference],
    reporter: Reporter,
) -> dict[str, Any]:
    """Return what correction.json holds of the free energy."""
    cell = cell_of(initial)
    variable = found.variable
    chosen = variable.serials - 1
    folds = np.arange(len(labels)) * _FOLDS // len(labels)  # neighbours in time are in one fold
    learned, energies, forces = _Learned.of(labels, differences, initial, folds)

    def projected(positions: Array, force: Array) -> tuple[Array, Array, Array]:
        """xi, |grad xi| and -f.w of some structures."""
        u = variable.displacements(positions[:, chosen], cell)
        xi, term = meanforce.compute_instantaneous(variable, u, force[:, chosen], 0.0)
        gradient = variable.encoder_jacobian(variable.components(u))[:, 0]
        return xi, np.linalg.norm(gradient, axis=1), term

    samples, shares = [], []
    for label, each, energy, force in zip(labels, differences, energies, forces, strict=True):
        if label.row["use"] != _CORRECTION:
            continue
        where = label.positions[None]
        xi, gradnorm, of_reference = projected(where, each.forces[None])
        of_g = projected(where, force[None])[2]
        zero = np.zeros(1)
        samples.append(
            perturbation.Sample(
                xi,
                gradnorm,
                np.array([zero, [energy], [each.energy_eV]]),
                np.array([zero, of_g, of_reference]),
                label.row["weight"],
            )
        )
        shares.append((each.energy_eV, each.energy_eV - energy))
    blocks: list[perturbation.Sample] = []
    with reporter.task("snapshots of the run", len(found.names)) as update:
        done = 0
        parts = found.positions()
        for k, segment in enumerate(sampling.list_segments(found.iteration)):
            some = segment in found.wanted
            positions = next(parts) if some else np.zeros((0, len(initial), 3))
            g = np.zeros(len(positions))
            f = np.zeros(positions.shape)
            for i, structure in enumerate(positions):
                g[i], f[i] = learned.evaluate(structure, cell)
                done += 1
                update(done, "")
            xi, gradnorm, term = projected(positions, f) if len(g) else (g, g, g)
            weight = found.weight[found.block == k]
            blocks.append(
                perturbation.Sample(
                    xi,
                    gradnorm,
                    np.array([np.zeros(len(g)), g]),
                    np.array([np.zeros(len(g)), term]),
                    float(weight[0]) if len(weight) else 0.0,
                )
            )
    best = correction(found.curves, samples, blocks, found.walkers)
    return _as_dict(found, best, np.array(shares))


def _as_dict(found: _Candidates, best: Correction, shares: Array) -> dict[str, Any]:
    """Return what correction.json holds of the free energy."""
    result, nodes = found.result, found.curves.grid.nodes

    def of_run(name: str) -> freeenergy.Estimate:
        value, error = (result[f"{name}{end}_eV"] for end in ("", "_error"))
        return freeenergy.Estimate(
            np.nan if value is None else value, np.nan if error is None else error
        )

    def total(name: str, difference: freeenergy.Estimate) -> freeenergy.Estimate:
        before = of_run(name)
        return freeenergy.Estimate(
            before.value + difference.value, float(np.hypot(before.error, difference.error))
        )

    difference = best.best
    ways = [
        {
            "by": name,
            **as_json({"difference": way.flux_barrier, "delta_F_difference": way.delta_F}),
            "error_of_labels_eV": or_none(best.label_errors[name]),
            "trusted": best.trusts(name),
        }
        for name, way in best.ways.items()
    ]
    return {
        **as_json(
            {
                "flux_barrier": total("flux_barrier", difference.flux_barrier),
                "delta_F": total("delta_F", difference.delta_F),
                "before": of_run("flux_barrier"),
                "delta_F_before": of_run("delta_F"),
                "difference": difference.flux_barrier,
                "delta_F_difference": difference.delta_F,
            }
        ),
        "error_of_labels_eV": or_none(best.label_errors[best.by]),
        "by": best.by,
        "overlap": best.overlaps,
        "effective_labels": best.effective_labels,
        "effective_snapshots": best.effective_snapshots,
        "snapshots": len(found.names),
        "window": best.window,
        "spread_of_differences_eV": float(np.std(shares[:, 0], ddof=1)),
        "spread_not_learned_eV": float(np.std(shares[:, 1], ddof=1)),
        "ways": ways,
        "xi": nodes.tolist(),
        "along_eV": list(map(or_none, difference.along.tolist())),
        "along_error_eV": list(map(or_none, difference.along_error.tolist())),
        "note": None if best.overlaps else _note(best),
    }


def _note(found: Correction) -> str:
    """Why the correction is not reweighted, and what would help."""
    return (
        f"the labels cannot be reweighted: in one window of the CV they count as "
        f"{found.effective_labels:.0f} of {FEWEST_LABELS:.0f} that are needed, and the snapshots "
        f"as {found.effective_snapshots:.0f} of {perturbation.FEWEST:.0f}. The correction is "
        "therefore that of second order in the difference of the energies, whose error contains "
        "only the statistics. A potential that is trained on the labels, and a run with it, tell "
        "more"
    )
