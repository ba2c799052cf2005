"""Content of a run directory for the report, of a finished or an unfinished run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv import freeenergy, sampling, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json
from plumed_cv.cv import CollectiveVariable, energy, equivalence
from plumed_cv.cv.localisation import Localisation
from plumed_cv.cv.pca import PrincipalComponents
from plumed_cv.freeenergy.jackknife import FEWEST_BLOCKS
from plumed_cv.input_file import Iteration, Sampling
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.structures.frame import Array
from plumed_cv.workflow import provenance

MOST_POINTS = 16  # largest number of points of the convergence of the barrier


@dataclass(frozen=True)
class Part:
    """One iteration, finished or not.

    Attributes
    ----------
    number
        Number of the iteration, from 1.
    variable
        The sampled collective variable.
    result, fes
        Content of its result.json and fes.dat; None if it has not ended.
    found
        Learned sums and printed values of its segments, in the order of `sampling.list_segments`.
    records
        The segments' records.
    walkers
        Number of segments of each walker.
    """

    number: int
    variable: CollectiveVariable
    result: dict[str, Any] | None
    fes: freeenergy.Profile | None
    found: workflow.Sampled
    records: Sequence[dict[str, Any]]
    walkers: Sequence[int]

    @property
    def label(self) -> str:
        """Number and kind of CV."""
        unfinished = "" if self.result else ", not ended"
        return f"{self.number} ({self.variable.kind} CV{unfinished})"

    @property
    def xi(self) -> Sequence[Array]:
        """The collective variable, a series for each segment."""
        return self.found.series["ae.node-0"]

    @cached_property
    def _so_far(self) -> tuple[freeenergy.Profile, dict[str, Any]]:
        """Profile and results of the samples so far."""
        profile, result = workflow.analyse_samples(self.found, self.walkers)
        return profile, result | workflow.analyse_course(self.found, self.walkers, result)

    @property
    def profile(self) -> freeenergy.Profile:
        """The free energy profile."""
        return self.fes or self._so_far[0]

    @property
    def numbers(self) -> dict[str, Any]:
        """Its result; for an unfinished iteration, the result so far."""
        return self._so_far[1] if self.result is None else self.result

    @property
    def restarts(self) -> int:
        """Number of restarts by the guard."""
        return sum(bool(record["stopped"]) for record in self.records)

    @property
    def steps(self) -> int:
        """Number of sampled steps."""
        return sampling.count_steps(self.records)

    @property
    def seconds(self) -> float:
        """Time of the slowest walker."""
        ends = np.cumsum(self.walkers)
        parts = np.split(np.array([record["seconds"] for record in self.records]), ends[:-1])
        return float(max(part.sum() for part in parts))

    def convergence(self) -> tuple[Array, list[freeenergy.Estimate]]:
        """Numbers of steps, and the flux barriers from them, with errors."""
        longest = max(self.walkers)
        fewest = min(-(-FEWEST_BLOCKS // len(self.walkers)), longest)
        firsts = np.unique(np.linspace(fewest, longest, MOST_POINTS).round().astype(int))
        steps, estimates = [], []
        for first in firsts:
            chosen = [walker[:first] for walker in self._by_walker()]
            barrier = workflow.estimate_flux_barrier(
                self.found, chosen, self.numbers.get("estimator")
            )
            if np.isfinite(barrier.value):
                records = [self.records[k] for walker in chosen for k in walker]
                steps.append(sampling.count_steps(records))
                estimates.append(barrier)
        return np.array(steps), estimates

    def history(self) -> tuple[Array, Array, Array, list[tuple[float, float]]]:
        """Step, CV and deviation of all printed values, and the stops by the guard."""
        steps, stops, done = [], [], 0
        deviations = self.found.series["ae.dev"]
        for xi, deviation, record in zip(self.xi, deviations, self.records, strict=True):
            n = record["n_steps"]
            steps.append(done + n * np.arange(1, len(xi) + 1) / len(xi))
            done += n
            if record["stopped"]:
                left = record.get("departure", {}).get("deviation_A")
                stops.append((float(done), float(deviation[-1] if left is None else left)))
        return np.concatenate(steps), np.concatenate(self.xi), np.concatenate(deviations), stops

    def _by_walker(self) -> Iterator[range]:
        """Segments of each walker."""
        start = 0
        for number in self.walkers:
            yield range(start, start + number)
            start += number


@dataclass(frozen=True)
class Run:
    """A run directory."""

    files: workflow.RunDirectory
    given: dict[str, Any]
    starts: list[dict[str, Any]]
    result: dict[str, Any] | None
    path: EnergyPath | None
    variables: list[CollectiveVariable]
    trainings: dict[int, dict[str, Any]]
    components: dict[str, Any]
    parts: list[Part]

    @property
    def settings(self) -> Sampling:
        """The requested sampling."""
        return Sampling(**self.given["sampling"])

    @property
    def limits(self) -> Iteration:
        """Limits of the procedure at the last start."""
        said = self.starts[-1]["input"]["iteration"] if self.starts else self.given["iteration"]
        return Iteration(**said)

    @property
    def kelvin(self) -> float:
        """The temperature."""
        return float(self.given["system"]["temperature_K"])

    @property
    def ended(self) -> bool:
        """Whether there is an answer from all samples."""
        return self.result is not None and len(self.result["iterations"]) == len(self.parts)

    @cached_property
    def judged(self) -> dict[str, Any]:
        """The verdict in result.json; it is computed if missing, or if the run is unfinished.

        `answer_iteration`, `answer_because`, `checks`, `converged`, `stopped_by` and `advice`.
        """
        if self.ended and self.result is not None and "checks" in self.result:
            return self.result
        given = (self.limits, self.settings, self.kelvin)
        if done := [part.numbers for part in self.parts if part.result]:
            return workflow.judge(self.files, done, *given).as_dict(len(done), self.limits)
        found = []
        if self.parts:
            related = workflow.related_by_symmetry(self.files)
            found = workflow.check_sampling(self.parts[-1].numbers, *given, related)
        verdict = workflow.Verdict(len(self.parts), "no iteration has ended", found)
        return verdict.as_dict(0, self.limits)

    @property
    def answer(self) -> Part | None:
        """The iteration whose numbers are shown first."""
        return self.parts[self.judged["answer_iteration"] - 1] if self.parts else None

    def similarities(self) -> list[tuple[str, Array]]:
        """1 - cos between successive CVs along the path of the older one (Eq. 16)."""
        found = []
        for n in range(1, len(self.variables)):
            cosine = equivalence.gradient_alignment(self.variables[n], self.variables[n - 1])
            found.append((f"CV {n} and CV {n - 1}", 1.0 - cosine))
        return found

    def along_path(self, variable: CollectiveVariable) -> Array:
        """Values of a collective variable in the images of the minimum energy path, shape (K,)."""
        assert self.path is not None
        return energy.values_at_images(self.path, variable)

    def localisation(self) -> tuple[CollectiveVariable, Localisation] | None:
        """Atoms that take part, from the newest CV that was trained on sampled structures."""
        trained = [n for n in self.trainings if 0 < n < len(self.variables)]
        trained = trained or [n for n in self.trainings if n < len(self.variables)]
        if not trained:
            return None
        n = max(trained)
        variable, record = self.variables[n], self.trainings[n]
        principal = PrincipalComponents(
            variable.pca_mean,
            variable.pca_components,
            np.array(record["variances_A2"]),
            record["total_variance_A2"],
        )
        u = variable.path(np.linspace(0.0, 1.0, 101)[:, None])
        motion = ((u - u.mean(axis=0)) ** 2).sum(axis=2).mean(axis=0)
        thermal = principal.total_variance - float(principal.variances.sum())
        noise = (max(thermal, 0.0) / (3 * variable.n_atoms)) ** 0.5
        return variable, Localisation(principal.localisation, noise, motion)


def read(directory: Path) -> Run:
    """Read a run directory.

    Raises
    ------
    UserError
        If it is not a run directory, or a file in it is damaged.
    """
    files = workflow.RunDirectory(directory.absolute())
    if not (files.root / "input.json").exists():
        raise UserError(
            f"{directory}: is not the directory of a run, because it contains no input.json; name "
            "another one."
        )
    variables: list[CollectiveVariable] = []
    while files.cv(len(variables)).exists():
        variables.append(CollectiveVariable.load(files.cv(len(variables))))
    parts: list[Part] = []
    for variable in variables:
        part = _part(files, len(parts) + 1, variable)
        if part is None:
            break
        parts.append(part)
    return Run(
        files=files,
        given=read_json(files.root / "input.json"),
        starts=provenance.read(files.provenance),
        result=json_of(files.result),
        path=load_path(files.path) if files.path.exists() else None,
        variables=variables,
        trainings={
            n: record
            for n in range(len(variables))
            if (record := json_of(files.training(n))) is not None
        },
        components=json_of(files.components) or {},
        parts=parts,
    )


def _part(files: workflow.RunDirectory, n: int, variable: CollectiveVariable) -> Part | None:
    folder = files.iteration(n)
    segments = sampling.list_segments(folder)
    if not segments:
        return None
    result = json_of(folder / "result.json")
    return Part(
        number=n,
        variable=variable,
        result=None if result is None else workflow.complete(files, n, result),
        fes=freeenergy.read_fes(folder / "fes.dat") if result else None,
        found=workflow.read_samples(folder),
        records=sampling.read_records(segments),
        walkers=sampling.count_segments(folder),
    )


def json_of(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None if there is none."""
    return read_json(path) if path.exists() else None
