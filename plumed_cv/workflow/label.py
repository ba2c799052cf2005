"""Structures to compute with a better method, and the correction of the barrier by them.

The folder `labels` of a run has

    selection.json    the structures that were chosen, with their inclusion probabilities
    correction.json   the correction, once they have come back

A label is a structure with the energy and the forces of the reference. Its name is that of a
snapshot, `segment-000003:17`.

`label_candidates` has the snapshots and what decides which are chosen, `label_structures` writes
structures and finds the snapshots of those that come back, and `label_correction` makes the free
energy of the reference of them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv import sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, write_text
from plumed_cv.common.numbers import energy_in_words
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.freeenergy.spreading import choose_farthest, choose_spread, compute_probabilities
from plumed_cv.structures import cell_of, held_atoms, read_structures
from plumed_cv.workflow import provenance
from plumed_cv.workflow.committee import name_segment
from plumed_cv.workflow.directory import claimed
from plumed_cv.workflow.label_candidates import (
    compute_points,
    compute_sizes,
    find_candidates,
    measure_disagreement,
    read_positions_of,
)
from plumed_cv.workflow.label_correction import estimate_reference, find_differences
from plumed_cv.workflow.label_structures import (
    CORRECTION,
    TRAINING,
    make_structure,
    match_labels,
    write_structures,
)
from plumed_cv.workflow.mep import read_end_states

LABELS = 100  # by default
CANDIDATES = 8000  # snapshots from which labels are chosen, and in which g is evaluated
FEWEST = 20  # labels of a correction


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
        If the run has not ended, its result cannot be corrected (`committee.refusal`), or it has
        fewer snapshots than structures to choose.
    """
    if number < FEWEST:
        raise UserError(f"{number} structures: a correction needs at least {FEWEST}.")
    reporter = reporter or Log()
    files, config = provenance.read_finished_run(directory)
    with claimed(files.root):
        provenance.check_same_input(files.root, config)
        found = find_candidates(files, CANDIDATES, directory)
        if len(found.names) < FEWEST:
            raise UserError(
                f"{directory}: iteration {found.result['answer_iteration']} has "
                f"{len(found.names)} whole snapshots, and at least {FEWEST} are needed."
            )
        initial = read_end_states(config)[0]
        x = found.components(cell_of(initial))
        xi = found.variable.encode(x)[:, 0]
        disagreement = measure_disagreement(found, xi)
        sizes = compute_sizes(found, xi) * (0.5 + 0.5 * disagreement)
        if number > (possible := np.count_nonzero(sizes)):
            raise UserError(
                f"{directory}: has {possible:,} snapshots to choose from, which are fewer than "
                f"{number:,}; give a smaller number."
            )
        probability = compute_probabilities(sizes, number)
        points = compute_points(found, xi, x, number)
        rng = np.random.default_rng(seed)
        chosen = choose_spread(points, probability, rng)
        weights = np.where((found.weight > 0) & (sizes > 0), disagreement, 0.0)
        weights[chosen] = 0.0
        more = choose_farthest(points, chosen, weights, training)
        uses = [(int(k), CORRECTION) for k in chosen] + [(int(k), TRAINING) for k in more]
        rows: list[dict[str, Any]] = [
            {
                "name": found.names[k],
                "xi": float(xi[k]),
                "probability": float(probability[k]),
                "weight": float(found.weight[k] / probability[k]) if use == CORRECTION else 0.0,
                "use": use,
            }
            for k, use in uses
        ]
        record = {
            "iteration": found.result["answer_iteration"],
            "seed": seed,
            "candidates": len(found.names),
            "segments": [name_segment(found.iteration, part) for part in found.segments],
            "by_disagreement": bool(np.ptp(disagreement) > 0),
            "labels": rows,
        }
        structures = [
            make_structure(initial, positions, row)
            for positions, row in zip(read_positions_of(found, rows), rows, strict=True)
        ]
        write_structures(Path(output), structures)
        files.selection.parent.mkdir(exist_ok=True)
        if not files.selection.exists() or read_json(files.selection) != record:
            files.correction.unlink(missing_ok=True)  # of other structures
        write_text(files.selection, json.dumps(record, indent=2, allow_nan=False))
    places = [float(xi[k]) for k, _ in uses]
    reporter.say(
        f"{output}: {len(chosen)} structures for the correction"
        + (f" and {len(more)} more for training" if training else "")
        + f", from xi = {min(places):.2f} to {max(places):.2f}, out of {len(found.names):,} "
        "snapshots."
    )
    return record


def read_selection(file: Path, directory: Path | str) -> dict[str, Any]:
    """Read which snapshots were chosen.

    Raises
    ------
    UserError
        If the file is not one that `choose` has written.
    """
    remedy = f"choose new structures: 'plumed-cv label {directory}' writes this file."
    record = read_json(file, remedy)
    kinds: dict[str, type] = {"iteration": int, "candidates": int, "segments": list, "labels": list}
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            raise UserError(f"{file}: {key} is missing or of another kind; {remedy}")
    of_label: dict[str, type | tuple[type, ...]] = {
        "name": str,
        "xi": (int, float),
        "weight": (int, float),
        "use": str,
    }
    for number, row in enumerate(record["labels"], start=1):
        for key, allowed in of_label.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), allowed):
                raise UserError(
                    f"{file}: label {number} has no {key}, or one of another kind; {remedy}"
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
    if not files.selection.exists():
        raise UserError(
            f"{directory}: no structures have been chosen; 'plumed-cv label {directory}' does so."
        )
    record = read_selection(files.selection, directory)
    with claimed(files.root):
        provenance.check_same_input(files.root, config)
        found = find_candidates(files, record["candidates"], directory, record["segments"])
        if record["iteration"] != found.result["answer_iteration"]:
            raise UserError(
                f"{directory}: the labels belong to iteration {record['iteration']}, but the "
                f"answer is now that of iteration {found.result['answer_iteration']}; choose new "
                "ones."
            )
        if not {row["name"] for row in record["labels"]} <= set(found.names):
            raise UserError(
                f"{directory}: snapshots that were chosen are no longer there; choose new ones."
            )
        initial = read_end_states(config)[0]
        back = match_labels(Path(labels), read_structures(labels), found, record, initial)
        usable = [label for label in back if label.row["use"] == CORRECTION]
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
        differences = find_differences(back, own, Path(labels), held_atoms(initial))
        result = estimate_reference(found, initial, back, differences, reporter)
        result |= {
            "labels": len(usable),
            "chosen": sum(row["use"] == CORRECTION for row in record["labels"]),
            "training": len(back) - len(usable),
        }
        write_text(files.correction, json.dumps(result, indent=2, allow_nan=False))
    return result


def in_words(result: dict[str, Any]) -> str:
    """The corrected barrier in a sentence."""
    return (
        f"Flux barrier of the reference: {energy_in_words(result, 'flux_barrier', 'eV')}, from "
        f"{result['labels']} labels by {result['by']}; the potential of the run gives "
        f"{energy_in_words(result, 'before', 'eV')}."
    )
