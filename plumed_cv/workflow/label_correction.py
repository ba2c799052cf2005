"""The free energy of the reference, from the difference between labels and the run's potential."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from plumed_cv import freeenergy
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Reporter
from plumed_cv.freeenergy import meanforce, perturbation
from plumed_cv.freeenergy.labelled import FEWEST_LABELS, Correction, estimate_correction
from plumed_cv.structures import cell_of, held_atoms
from plumed_cv.structures.frame import Array
from plumed_cv.structures.pairs import PairBasis, Sums, add_up
from plumed_cv.workflow.keys import as_json, or_none
from plumed_cv.workflow.label_candidates import Candidates
from plumed_cv.workflow.label_structures import CORRECTION, Label

_FOLDS = 5  # g of a label does not know this label


class Difference(NamedTuple):
    """Reference minus potential of the run in a label: energy (eV) and forces (eV/angstrom)."""

    energy_eV: float
    forces: Array


def find_differences(
    labels: Sequence[Label],
    own: Sequence[tuple[float, Array]],
    file: Path,
    held: NDArray[np.int64],
) -> list[Difference]:
    """Return the differences between labels and the potential of the run.

    Only differences of energies count, so that those of the first label are taken off. Programs may
    set the forces on fixed atoms to zero, and these do not count.

    Parameters
    ----------
    labels
        The labels.
    own
        Energy (eV) and forces (N, 3), eV/angstrom, of the potential of the run in each.
    file
        The file of the labels, for messages.
    held
        Numbers of the fixed atoms.

    Raises
    ------
    UserError
        If energies or forces cannot be those of the structures, or have other units.
    """
    free = np.setdiff1d(np.arange(len(labels[0].positions)), held)
    theirs = np.concatenate([label.forces[free].ravel() for label in labels])
    ours = np.concatenate([forces[free].ravel() for _, forces in own])
    _refuse_unlike(file, "forces", "eV/angstrom", theirs, ours)
    theirs = np.array([label.energy_eV for label in labels])
    ours = np.array([energy for energy, _ in own])
    _refuse_unlike(file, "energies", "eV for the whole structure", theirs, ours)
    offset = labels[0].energy_eV - own[0][0]
    found = []
    for label, (energy, forces) in zip(labels, own, strict=True):
        difference = label.forces - forces
        difference[held] = 0.0
        found.append(Difference(label.energy_eV - energy - offset, difference))
    return found


def _refuse_unlike(file: Path, name: str, unit: str, theirs: Array, ours: Array) -> None:
    """Refuse values that have little to do with those of the potential of the run."""
    ratio = float(theirs.std() / ours.std())
    like = float(np.corrcoef(theirs, ours)[0, 1]) if ratio > 0 else 0.0
    if not like > 0.5 or not 1 / 3 < ratio < 3:
        raise UserError(
            f"{file}: the {name} have little to do with those of the potential of the run "
            f"(correlation {like:.2f}, variation {ratio:.2g} times as large); check that they are "
            f"in {unit} and belong to these structures."
        )


@dataclass(frozen=True, eq=False)
class Learned:
    """The function g: for each fold of the labels, learned from all labels of the others.

    Attributes
    ----------
    basis
        The functions that g is a sum of.
    coefficients
        Their coefficients, (folds, F + 1).
    """

    basis: PairBasis
    coefficients: Array

    @classmethod
    def of(
        cls,
        labels: Sequence[Label],
        differences: Sequence[Difference],
        initial: Atoms,
        folds: NDArray[np.int64],
    ) -> tuple["Learned", Array, list[Array]]:
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
            part = add_up(energy, force, each.energy_eV, each.forces, weights)
            before = sums[fold]
            sums[fold] = part if before is None else before + part
        learned = []
        for fold in range(_FOLDS):
            rest = [part for k, part in enumerate(sums) if k != fold and part is not None]
            learned.append(sum(rest[1:], rest[0]).solved())
        coefficients = np.array(learned)
        own_energies, own_forces = [], []
        for fold, (energy, force) in zip(folds, features, strict=True):
            own = coefficients[fold]
            own_energies.append(float(energy @ own[:-1] + own[-1]))
            own_forces.append(force @ own[:-1])
        return cls(basis, coefficients), np.array(own_energies), own_forces

    def evaluate(self, positions: Array, cell: Array) -> tuple[float, Array]:
        """Energy (eV) and forces (N, 3), eV/angstrom, in a structure: a mean over the folds."""
        mean = self.coefficients.mean(axis=0)
        energy, forces = self.basis.features(positions, cell)
        return float(energy @ mean[:-1] + mean[-1]), forces @ mean[:-1]


def estimate_reference(
    found: Candidates,
    initial: Atoms,
    labels: Sequence[Label],
    differences: Sequence[Difference],
    reporter: Reporter,
) -> dict[str, Any]:
    """Return the free energy of the reference, as correction.json has it.

    Parameters
    ----------
    found
        The snapshots of the run.
    initial
        The initial state.
    labels, differences
        The labels, and the reference minus the potential of the run in each.
    reporter
        Receives the progress.
    """
    cell = cell_of(initial)
    variable = found.variable
    chosen = variable.serials - 1
    folds = np.arange(len(labels)) * _FOLDS // len(labels)  # neighbours in time are in one fold
    learned, energies, forces = Learned.of(labels, differences, initial, folds)

    def projected(positions: Array, force: Array) -> tuple[Array, Array, Array]:
        """xi, |grad xi| and -f.w of some structures."""
        u = variable.displacements(positions[:, chosen], cell)
        xi, term = meanforce.compute_instantaneous(variable, u, force[:, chosen], 0.0)
        gradient = variable.encoder_jacobian(variable.components(u))[:, 0]
        return xi, np.linalg.norm(gradient, axis=1), term

    samples, shares = [], []
    for label, each, energy, force in zip(labels, differences, energies, forces, strict=True):
        if label.row["use"] != CORRECTION:
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
        for k, segment in enumerate(found.segments):
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
    best = estimate_correction(found.curves, samples, blocks, found.walkers)
    return _as_dict(found, best, np.array(shares))


def _as_dict(found: Candidates, best: Correction, shares: Array) -> dict[str, Any]:
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
        "only the statistics. For a better answer, train a potential on the labels and start a run "
        "with it"
    )
