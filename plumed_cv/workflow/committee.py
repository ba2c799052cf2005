"""The error of the potential: barriers of other potentials from the snapshots of a run.

The potentials of `engine.committee` compute energies and forces of some snapshots of the iteration
that gives the answer. Its folder `committee` has a file for each potential, potential-k.npz, with
one value for each snapshot; k = 0 is the potential of the run. A value is computed once.
"""

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from plumed_cv import freeenergy, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, replacing
from plumed_cv.common.numbers import energy_in_words
from plumed_cv.common.progress import Log, Reporter, Update
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import Engine, deviation
from plumed_cv.freeenergy import meanforce, perturbation
from plumed_cv.input_file import Config
from plumed_cv.structures import cell_of
from plumed_cv.workflow import provenance
from plumed_cv.workflow.directory import RunDirectory, claimed
from plumed_cv.workflow.estimates import evaluate_estimators
from plumed_cv.workflow.keys import as_json, or_none
from plumed_cv.workflow.marks import Compared, describe_marks, mark_snapshots
from plumed_cv.workflow.mep import read_end_states
from plumed_cv.workflow.samples import Sampled, read_samples

SNAPSHOTS = 4000  # by default
_SAVE_S = 10.0  # time after which new values are written
_GOLDEN = 0.5 * (5**0.5 - 1)


def compute_committee(
    directory: Path | str,
    reporter: Reporter | None = None,
    *,
    snapshots: int | None = None,
    deviation_limit: float | None = None,
) -> dict[str, Any]:
    """Compute the committee of a run that has ended, whether it has converged or not.

    Parameters
    ----------
    directory
        The run directory.
    reporter
        Receives the progress.
    snapshots
        Number of snapshots; `SNAPSHOTS` if None. More are used if they have been computed.
    deviation_limit
        Model deviation beyond which snapshots are marked, eV/angstrom; that of the input or of the
        reactant if None.

    Returns
    -------
    The contents of result.json.

    Raises
    ------
    UserError
        If the run has not ended, its input has no committee, a potential refuses a structure, or
        the result cannot be had from snapshots (`refusal`).
    """
    files, config = provenance.read_finished_run(directory)
    if not config.engine.committee:
        raise UserError(
            f"{directory}: there is no engine.committee in the input of the last start; add it and "
            "run again, which samples nothing anew."
        )
    result = read_json(files.result)
    if reason := refusal(files, result):
        raise UserError(f"{directory}: {reason}.")
    initial = read_end_states(config)[0]
    with claimed(files.root), sampling.open_engine(config, initial) as engine:
        provenance.check_same_input(files.root, config)
        if deviation_limit is not None:
            limited = config.sampling.model_copy(update={"model_deviation_limit": deviation_limit})
            config = config.model_copy(update={"sampling": limited})
        return _complete(config, files, engine, initial, result, reporter or Log(), snapshots)


def complete(
    config: Config,
    files: RunDirectory,
    engine: Engine,
    initial: Atoms,
    result: dict[str, Any],
    reporter: Reporter,
) -> dict[str, Any]:
    """Add the committee to the result of a converged run, and write it into result.json.

    If there is none, `committee_note` of the result gives the reason. A run that has not converged
    uses only values that exist.

    Parameters
    ----------
    config, files, engine
        The input, the run directory and the open engine of the run.
    initial
        The initial state.
    result
        The contents of result.json.
    reporter
        Receives the progress.
    """
    if not config.engine.committee:
        return result
    note = refusal(files, result)
    if note is None and not result["converged"] and not _folder(files, result).exists():
        note = (
            "the run has not converged; 'plumed-cv committee' computes the error of the potential "
            "nevertheless"
        )
    if note is None:
        return _complete(config, files, engine, initial, result, reporter, None)
    result = result | {"committee_note": note}
    files.write_result(result)
    reporter.say(f"No error of the potential: {note}.")
    return result


def refusal(files: RunDirectory, result: dict[str, Any]) -> str | None:
    """Return why a run gives no committee, or None if it gives one."""
    if result.get("flux_barrier_eV") is None:
        return "the flux barrier is unknown, so there is nothing that potentials could differ in"
    variable = CollectiveVariable.load(files.cv(result["answer_iteration"] - 1))
    if not meanforce.is_known(variable):
        return (
            "the error of the potential needs the mean force of the atoms, which is not known with "
            "cv.alignment or relu"
        )
    return None


@dataclass
class _Values:
    """What one potential says of snapshots, by their names.

    Attributes
    ----------
    potential
        The potential as text.
    rows
        For each snapshot xi, |grad xi| (1/angstrom), energy (eV), term of the mean force (eV).
    forces
        For each snapshot the forces on the atoms of the variable, (n, 3), eV/angstrom.
    """

    potential: str
    rows: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    forces: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, potential: str) -> "_Values":
        """Read a file, without the values of another potential."""
        if not file.exists():
            return cls(potential)
        try:
            with np.load(file) as content:
                # Files of earlier versions have no forces.
                if str(content["potential"]) != potential or "forces" not in content:
                    return cls(potential)
                names, rows = content["snapshots"].tolist(), content["values"].tolist()
                forces = dict(zip(names, content["forces"], strict=True))
        except Exception as error:  # NumPy has many for a damaged file
            raise UserError(
                f"{file}: cannot be read ({error}); remove it and run again: its values are then "
                "computed again."
            ) from None
        return cls(potential, dict(zip(names, map(tuple, rows), strict=True)), forces)

    def write(self, file: Path) -> None:
        """Write a file that `read` reads."""
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(
                stream,
                potential=np.array(self.potential),
                snapshots=np.array(list(self.rows)),
                values=np.array(list(self.rows.values())).reshape(-1, 4),
                forces=np.array(list(self.forces.values()), dtype=np.float32),
            )


def _folder(files: RunDirectory, result: dict[str, Any]) -> Path:
    return files.iteration(result["answer_iteration"]) / "committee"


def _complete(
    config: Config,
    files: RunDirectory,
    engine: Engine,
    initial: Atoms,
    result: dict[str, Any],
    reporter: Reporter,
    snapshots: int | None,
) -> dict[str, Any]:
    """Compute what is missing, and write the result."""
    folder, iteration = _folder(files, result), files.iteration(result["answer_iteration"])
    folder.mkdir(exist_ok=True)
    variable = CollectiveVariable.load(files.cv(result["answer_iteration"] - 1))
    configs = list_potentials(config)
    stores = [folder / f"potential-{k}.npz" for k in range(len(configs))]
    values = [
        _Values.read(store, provenance.potential_of(each))
        for store, each in zip(stores, configs, strict=True)
    ]
    segments = sampling.list_segments(iteration)
    wanted = choose_snapshots(segments, max(snapshots or SNAPSHOTS, len(values[0].rows)))
    for k, (store, each, own) in enumerate(zip(stores, configs, values, strict=True)):
        name = "potential of the run" if k == 0 else f"committee member {k}"
        missing = {
            segment: rest
            for segment, frames in wanted.items()
            if (rest := [i for i in frames if name_snapshot(iteration, segment, i) not in own.rows])
        }
        if not missing:
            continue
        number = sum(map(len, missing.values()))
        with reporter.task(f"{name}: forces in snapshots", number) as update:
            computer = _Computer(variable, initial, config.system.temperature_K, iteration)
            if k == 0:
                computer.complete(own, missing, engine, store, update)
            else:
                with sampling.open_engine(each, initial) as other:
                    computer.complete(own, missing, other, store, update)
    found = _estimated(files, result, values, wanted)
    marks = mark_snapshots(config, folder, found)
    words = [_words(config, table) for table in ({}, *config.engine.committee)]
    result = result | _as_dict(result, found, words, files)
    result["committee"] |= {"model_deviation": marks}
    files.write_result(result)
    reporter.say(in_words(result))
    reporter.say(describe_marks(result["committee"]["model_deviation"]))
    return result


def list_potentials(config: Config) -> list[Config]:
    """Return the input with the potential of the run alone, and with that of each member."""
    alone = config.engine.model_copy(update={"committee": []})
    return [config.model_copy(update={"engine": each}) for each in (alone, *config.engine.members)]


def choose_snapshots(segments: Sequence[Path], number: int) -> dict[Path, list[int]]:
    """Return evenly spread snapshots of segments: their numbers in each.

    More snapshots include fewer ones: in the order of the fractional parts of multiples of the
    golden section, any first part of all snapshots is spread evenly in time.
    """
    from plumed_cv.structures.trajectory import count_structures  # importing mdtraj takes a second

    every = [
        (segment, i)
        for segment in segments
        if (segment / "snapshots.dcd").exists()
        for i in range(count_structures(segment / "snapshots.dcd"))
    ]
    first = np.argsort((np.arange(len(every)) * _GOLDEN) % 1.0, kind="stable")[:number]
    found: dict[Path, list[int]] = {}
    for k in np.sort(first).tolist():
        segment, i = every[k]
        found.setdefault(segment, []).append(i)
    return found


def name_segment(iteration: Path, segment: Path) -> str:
    """Name of a segment in its iteration."""
    return segment.relative_to(iteration).as_posix()


def name_snapshot(iteration: Path, segment: Path, i: int) -> str:
    """Name of a snapshot."""
    return f"{name_segment(iteration, segment)}:{i}"


@dataclass
class _Computer:
    """Computes values of snapshots by a potential."""

    variable: CollectiveVariable
    initial: Atoms
    temperature_K: float
    iteration: Path

    def complete(
        self,
        own: _Values,
        missing: dict[Path, list[int]],
        engine: Engine,
        store: Path,
        update: Update,
    ) -> None:
        """Compute missing values, and write them from time to time."""
        from plumed_cv.structures.trajectory import read_all_positions

        cell, done, written = cell_of(self.initial), 0, time.monotonic()
        try:
            for segment, frames in missing.items():
                positions = read_all_positions(segment / "snapshots.dcd")
                for begin in range(0, len(frames), engine.batch):
                    part = frames[begin : begin + engine.batch]
                    found = engine.evaluate_all(positions[part], cell)
                    for i, energy, forces in zip(part, *found, strict=True):
                        name = name_snapshot(self.iteration, segment, i)
                        own.rows[name] = self._row(positions[i], cell, float(energy), forces)
                        own.forces[name] = forces[self.variable.serials - 1].astype(np.float32)
                    done += len(part)
                    update(done, "")
                    if time.monotonic() > written + _SAVE_S:
                        own.write(store)
                        written = time.monotonic()
        finally:
            own.write(store)

    def _row(
        self, positions: Any, cell: Any, energy: float, forces: Any
    ) -> tuple[float, float, float, float]:
        variable = self.variable
        chosen = variable.serials - 1
        u = variable.displacements(positions[None, chosen], cell)
        kT_eV = units.kB * self.temperature_K
        xi, force = meanforce.compute_instantaneous(variable, u, forces[None, chosen], kT_eV)
        gradient = variable.encoder_jacobian(variable.components(u))[0, 0]
        return float(xi[0]), float(np.linalg.norm(gradient)), energy, float(force[0])


def _estimated(
    files: RunDirectory,
    result: dict[str, Any],
    values: Sequence[_Values],
    wanted: dict[Path, list[int]],
) -> Compared:
    """Return the committee, and what it was found from."""
    iteration = files.iteration(result["answer_iteration"])
    data, walkers = read_samples(iteration), sampling.count_segments(iteration)
    curves = estimate_curves(iteration, result, data, walkers)
    samples, deviations, every_name = [], [], []
    for segment, block in zip(sampling.list_segments(iteration), data.blocks, strict=True):
        names = [name_snapshot(iteration, segment, i) for i in wanted.get(segment, [])]
        rows = np.array([[own.rows[name] for name in names] for own in values])
        rows = rows.reshape(len(values), len(names), 4)
        every_name.append(names)
        forces = (np.array([own.forces[name] for own in values]) for name in names)
        deviations.append(np.array(list(map(deviation.compute_deviation, forces))))
        samples.append(
            perturbation.Sample(
                xi=rows[0, :, 0],
                gradnorm=rows[0, :, 1],
                energy_eV=rows[:, :, 2],
                mean_force_eV=rows[:, :, 3],
                weight=float(block.sums[2].sum() / max(1, block.steps)),
            )
        )
    committee = perturbation.compare_potentials(curves, samples, walkers)
    return Compared(committee, curves, samples, deviations, every_name, walkers)


def estimate_curves(
    iteration: Path, result: dict[str, Any], data: Sampled, walkers: Sequence[int]
) -> perturbation.Curves:
    """Return the profile and the flux of the answer of a run."""
    answer = evaluate_estimators(data, walkers)[result["estimator"]]
    if answer.flux.basins is None or answer.flux.F is None:
        raise UserError(f"{iteration}: its samples give no flux barrier; see its result.json.")
    profile = answer.profile
    return perturbation.Curves(
        profile.grid, profile.kT_eV, profile.A, answer.flux.F, answer.flux.basins
    )


def _words(config: Config, table: dict[str, Any]) -> str:
    """A potential in a few words: what the input says of it."""
    section = config.engine.model_dump(mode="json")
    keys = [key for key in table if key != "name"] or ["potential", "calculator", "arguments"]
    parts = []
    for key in keys:
        value = table.get(key, section.get(key))
        if isinstance(value, list):
            parts.append("; ".join(map(str, value)))
        elif isinstance(value, dict):
            parts += [f"{name} = {each}" for name, each in value.items()]
        elif value is not None:
            parts.append(str(value))
    return textwrap.shorten(", ".join(parts), 70, placeholder=" ...")


def _as_dict(
    result: dict[str, Any],
    found: Compared,
    words: Sequence[str],
    files: RunDirectory,
) -> dict[str, Any]:
    """Return what result.json holds of the committee."""
    committee, curves = found.committee, found.curves
    sampling_error = result["flux_barrier_error_eV"]
    members: list[dict[str, Any]] = []
    for number, (member, name) in enumerate(zip(committee.members, words[1:], strict=True), 1):
        difference = member.best.flux_barrier
        total = np.hypot(np.nan if sampling_error is None else sampling_error, difference.error)
        members.append(
            {
                "potential": name,
                **as_json(
                    {
                        "flux_barrier": freeenergy.Estimate(
                            result["flux_barrier_eV"] + difference.value, float(total)
                        ),
                        "difference": difference,
                        "delta_F_difference": member.best.delta_F,
                        "same_structures": member.same_structures.flux_barrier,
                        "second_order": member.second_order.flux_barrier,
                    }
                ),
                **as_json(
                    {
                        "reweighted": member.reweighted.flux_barrier
                        if member.overlaps
                        else freeenergy.Estimate(np.nan, np.nan)
                    }
                ),
                "effective_snapshots": member.effective,
                "effective_share": member.share,
                "by": "reweighting" if member.overlaps else "second order",
                "note": None if member.overlaps else _note(number, member, files),
                "along_eV": list(map(or_none, member.best.along.tolist())),
                "along_error_eV": list(map(or_none, member.best.along_error.tolist())),
            }
        )
    basins = curves.basins
    between = basins.along.order[basins.minima[0] : basins.minima[-1] + 1]
    spread = np.nan_to_num(committee.along)
    worst = between[int(np.argmax(spread[between]))]
    return {
        **as_json({"model_error": committee.spread}),
        "committee_note": None,
        "committee": {
            "potential": words[0],
            "snapshots": committee.snapshots,
            "members": members,
            "disagree_most_at_xi": float(curves.grid.nodes[worst]),
            "disagreement_eV": float(spread[worst]),
            "xi": curves.grid.nodes.tolist(),
            "spread_eV": list(map(or_none, committee.along.tolist())),
        },
    }


def _note(number: int, member: perturbation.Member, files: RunDirectory) -> str:
    """Why a member is not reweighted, and what would help."""
    return (
        f"committee member {number} cannot be reweighted: in one window of the CV its snapshots "
        f"count as {member.effective:.0f}, {100 * min(1.0, member.share):.0f} % of those that are "
        f"there, and {perturbation.FEWEST:.0f} are needed. Its barrier is therefore that of "
        "second order in the difference of the energies, whose error contains only the "
        f"statistics. More snapshots ('plumed-cv committee "
        f"{files.root.name} --snapshots'), or a run with this potential, tells more"
    )


def in_words(result: dict[str, Any]) -> str:
    """The error of the potential in a sentence."""
    found = result["committee"]
    number = len(found["members"]) + 1
    return (
        f"Error of the potential: {energy_in_words(result, 'model_error', 'eV')}, the standard "
        f"deviation of the flux barriers of {number} potentials in {found['snapshots']:,} "
        f"snapshots. Their profiles differ most at xi = {found['disagree_most_at_xi']:.2f}, by "
        f"{found['disagreement_eV']:.3f} eV."
    )
