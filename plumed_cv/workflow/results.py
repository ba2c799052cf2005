"""Results of a run: the barriers of an iteration, its course in time, and the answer."""

import json
import operator
import re
import shutil
from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from ase import Atoms
from scipy.stats import norm, t

import plumed_cv
from plumed_cv import freeenergy, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, replacing, write_text
from plumed_cv.config import Config, Sampling
from plumed_cv.cv import CollectiveVariable, energy, equivalence
from plumed_cv.figures import plot_profiles
from plumed_cv.paths.path import EnergyPath
from plumed_cv.sampling import guard
from plumed_cv.setup.plugin import babf_input
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array
from plumed_cv.workflow import checks, earlier, harmonic_theory
from plumed_cv.workflow.directory import RunDirectory

T = TypeVar("T")

# The results with an error bar: the beginning of their keys, and their names.
RESULTS = {"flux_barrier": "flux barrier", "barrier": "barrier", "delta_F": "delta F"}
# Results of an iteration that are part of the answer, in addition to energies, rates, temperatures.
_OF_THE_ANSWER = (
    *("estimator", "estimators", "estimators_agree", "dividing_surface", "steps"),
    *("populations", "populations_error", "crossings", "restarts", "outside_fraction", "note"),
    *("restarted_at", "profile_of", "pooled_snapshots"),
    *("similarity_worst", "similarity_at_surface", "similarity_floor"),
)
# Rate in the answer until `rate` has computed it.
UNKNOWN_RATE: dict[str, Any] = {
    "rate_per_s": None,
    "rate_error_factor": None,
    "reverse_rate_per_s": None,
    "reverse_rate_error_factor": None,
    "transmission": None,
    "transmission_error": None,
    "rate": None,
    "rate_note": None,
    "other_events": [],
}
MOST_BLOCKS = 60  # for errors; their time grows quadratically

# The estimators. The second one also uses the snapshots of earlier iterations.
MEAN_FORCE, POOLED = "mean force of the atoms", "mean force of the atoms in all iterations"
HISTOGRAM = "histogram"


class Sampled(NamedTuple):
    """Samples of an iteration: learned sums and printed values of each segment.

    Attributes
    ----------
    blocks
        Contribution of each segment to bABF's sums.
    mean_force
        Its sums of the mean force of the atoms, as for `freeenergy.profile`, or None.
    series
        The columns of COLVAR by name.
    earlier
        Contribution of earlier iterations to the mean force, or None.
    """

    blocks: list[freeenergy.State]
    mean_force: list[Array] | None
    series: dict[str, list[Array]]
    earlier: freeenergy.Earlier | None = None


def sampled(folder: Path) -> Sampled:
    """Return learned sums and printed values of the segments of an iteration.

    Parameters
    ----------
    folder
        The folder of an iteration.

    Raises
    ------
    UserError
        If it has no complete segment, or a file of one is damaged.
    """
    segments = sampling.segments(folder)
    if not segments:
        raise UserError(f"{folder}: contains no finished segment of a bABF run.")
    printed = []
    for segment in segments:
        with sampling.remedy(segment):
            printed.append(sampling.read_colvar(segment / "colvar"))
    series = {name: [part[name] for part in printed] for name in printed[0]}
    return Sampled(*sampling.learned(folder), series, earlier.read(folder))


def analyse(folder: Path) -> dict[str, Any]:
    """Write `fes.dat` of an iteration's folder and return its barriers with errors, eV."""
    found = sampled(folder)
    profile, result = analysed(found, sampling.segments_by_walker(folder))
    freeenergy.write_fes(folder / "fes.dat", profile)
    parts = sampling.records(sampling.segments(folder))
    departures = [part["departure"] for part in parts if "departure" in part]
    temperature = _temperature(found)
    return result | {
        "md_steps": sampling.steps_of(parts),
        "cv_temperature_K": _or_none(temperature.value),
        "cv_temperature_error_K": _or_none(temperature.error),
        "outside_fraction": sampling.share_discarded(parts),
        "restarts": len(departures),
        "restarted_at": departures,
    }


class Estimated(NamedTuple):
    """Result of one estimator.

    Attributes
    ----------
    profile, flux
        Its profile and its flux.
    note
        Why the flux is unknown, or None.
    """

    profile: freeenergy.Profile
    flux: freeenergy.Flux
    note: str | None


def analysed(
    found: Sampled,
    walkers: Sequence[int] | None = None,
    states: tuple[float, float] = (0.0, 1.0),
) -> tuple[freeenergy.Profile, dict[str, Any]]:
    """Return the profile of the samples, and barriers, differences and rates by their keys.

    If there are forces on the atoms, all estimators are evaluated. The one with the smallest error
    of the flux barrier gives the answer. Earlier iterations count only if the mean force agrees
    with and without them.

    Parameters
    ----------
    found
        The samples. Without columns of COLVAR the flux is not computed.
    walkers
        Number of blocks of each walker, one walker after the other; by default one walker.
    states
        The CV in the reactant and in the product.

    Returns
    -------
    Profile, dict
        The results contain `estimator`, which gave them; `estimators`, the results of each one;
        `estimators_agree`, null if unknown; and `pooled_snapshots`, the number of earlier snapshots
        that count.
    """
    estimates = estimated(found, walkers, states)
    chosen = _most_precise(estimates)
    profile, flux, note = estimates[chosen]
    result: dict[str, Any] = barriers(profile)
    if found.series:
        result = as_json({"flux_barrier": flux.barrier}) | result  # it is the first key
        result |= as_json({"activation_free_energy": flux.activation}) | {
            "tst_rate_per_s": _or_none(flux.rate_per_s.value),
            "tst_rate_error_per_s": _or_none(flux.rate_per_s.error),
            "dividing_surface": _or_none(flux.surface),
            "steps": [_step(step) for step in flux.steps],
            "populations": [_or_none(share.value) for share in flux.populations],
            "populations_error": [_or_none(share.error) for share in flux.populations],
            "note": note,
        }
    return profile, result | as_json(
        {"histogram_barrier": estimates[HISTOGRAM].profile.barrier}
    ) | {
        "estimator": chosen,
        "estimators": {
            name: as_json({"flux_barrier": each.flux.barrier, "delta_F": each.profile.delta_F})
            for name, each in estimates.items()
        },
        "estimators_agree": _agree(list(estimates.values())),
        "pooled_snapshots": found.earlier.snapshots if found.earlier and chosen == POOLED else 0,
    }


def estimated(
    found: Sampled,
    walkers: Sequence[int] | None = None,
    states: tuple[float, float] = (0.0, 1.0),
) -> dict[str, Estimated]:
    """Return the result of each estimator by name; parameters as for `analysed`."""
    estimates = {HISTOGRAM: estimate(found, None, walkers, states)}
    if found.mean_force is not None:
        if found.earlier is not None:
            together = estimate(found, found.mean_force, walkers, states, found.earlier)
            estimates = {POOLED: together} | estimates
        estimates = {MEAN_FORCE: estimate(found, found.mean_force, walkers, states)} | estimates
    return estimates


def estimate(
    found: Sampled,
    mean_force: Sequence[Array] | None,
    walkers: Sequence[int] | None = None,
    states: tuple[float, float] = (0.0, 1.0),
    earlier: freeenergy.Earlier | None = None,
) -> Estimated:
    """What one estimator finds: by the mean force, with `earlier` or without, or the histogram.

    Parameters are those of `analysed` and `freeenergy.profile`.
    """
    unknown = freeenergy.Estimate(np.nan, np.nan)
    flux, note = freeenergy.Flux(unknown, unknown, unknown, np.nan), None
    if found.series:
        try:
            flux = _flux(found, mean_force, walkers, states, earlier)
        except UserError as error:  # the profile does not need the flux
            note = str(error)
    profile = freeenergy.profile(
        found.blocks, states, mean_force, walkers=walkers, basins=flux.basins, earlier=earlier
    )
    if mean_force is None and found.series:
        profile = profile.widened(of_few_crossings(found, walkers, states, flux))
    return Estimated(profile, flux, note)


def _flux(
    found: Sampled,
    mean_force: Sequence[Array] | None,
    walkers: Sequence[int] | None,
    states: tuple[float, float],
    earlier: freeenergy.Earlier | None = None,
) -> freeenergy.Flux:
    xi, gradnorm, invmass = (
        found.series[f"ae.{name}"] for name in ("node-0", "gradnorm", "invmass")
    )
    flux = freeenergy.flux(
        found.blocks,
        xi,
        gradnorm,
        invmass,
        states,
        mean_force,
        walkers=walkers,
        earlier=earlier,
    )
    if mean_force is None:
        return flux.widened(of_few_crossings(found, walkers, states, flux))
    return flux


def of_few_crossings(
    found: Sampled,
    walkers: Sequence[int] | None,
    states: tuple[float, float],
    flux: freeenergy.Flux,
) -> float:
    """Factor by which the errors of a histogram must exceed those of the jackknife.

    Each crossing, and each further walker, gives one independent value of the difference between
    the two states. An error estimated from n + 1 independent values is itself uncertain:
    deviations in units of this error follow Student's t with n degrees of freedom. With the
    factor, 95 of 100 deviations are smaller than twice the error.

    Parameters
    ----------
    found, walkers, states
        As for `analysed`.
    flux
        The flux of the histogram, with the minima of reactant and product.

    Returns
    -------
    float
        NaN if there are fewer than two values, because the error is then unknown.
    """
    walkers = [len(found.blocks)] if walkers is None else list(walkers)
    ends = (flux.steps[0].reactant, flux.steps[-1].product) if flux.steps else states
    values = crossings(found.series["ae.node-0"], walkers, ends) + len(walkers) - 1
    return float(t.ppf(0.975, values - 1) / norm.ppf(0.975)) if values > 1 else np.nan


def _most_precise(estimates: dict[str, Estimated]) -> str:
    """The estimator with the smallest error of the flux barrier; the first one if none is known.

    It is never that of all iterations if it disagrees with the iteration's own mean force.
    """
    errors = {name: each.flux.barrier.error for name, each in estimates.items()}
    known = [name for name, error in errors.items() if np.isfinite(error)]
    if POOLED in known:
        own = [estimates[MEAN_FORCE], estimates[POOLED]]
        if MEAN_FORCE not in known or not _agree(own):
            known.remove(POOLED)
    return min(known, key=errors.__getitem__) if known else next(iter(estimates))


def _agree(estimates: Sequence[Estimated]) -> bool | None:
    """Whether flux barriers and differences of all pairs of estimators agree; None if unknown.

    Unknown values of a pair are not compared. The others agree within three times the larger of the
    two errors. Both estimates come from the same trajectory, so their difference has a smaller
    error than that of independent ones, which is the root of the sum of squares.
    """
    verdicts = []
    for pair in combinations(estimates, 2):
        for one, other in (
            [each.flux.barrier for each in pair],
            [each.profile.delta_F for each in pair],
        ):
            off, limit = abs(one.value - other.value), 3.0 * max(one.error, other.error)
            if np.isfinite([off, limit]).all():
                verdicts.append(bool(off < limit))
    return all(verdicts) if verdicts else None


def _step(step: freeenergy.Step) -> dict[str, float | None]:
    """Return one barrier between two basins for result.json."""
    result: dict[str, float | None] = {
        "reactant_xi": step.reactant,
        "product_xi": step.product,
        "surface": step.surface,
    }
    for way, barrier, rate in (
        ("", step.flux_barrier, step.rate_per_s),
        ("reverse_", step.reverse_flux_barrier, step.reverse_rate_per_s),
    ):
        result |= as_json({f"{way}flux_barrier": barrier})
        result |= {
            f"{way}rate_per_s": _or_none(rate.value),
            f"{way}rate_error_per_s": _or_none(rate.error),
        }
    return result


def printed_beside(states: Sequence[Path]) -> dict[str, list[Array]]:
    """Return the columns of the file `colvar` in the folder of each state file, by name.

    The result is empty unless every state has a folder of its own with a `colvar` that has the
    columns of an exported plumed.dat, in angstrom according to that plumed.dat.
    """
    folders = [state.parent for state in states]
    if len(set(map(Path.resolve, folders))) < len(folders):
        return {}
    for folder in folders:
        lines = folder / "plumed.dat"
        if not ((folder / "colvar").is_file() and lines.is_file()):
            return {}
        if not re.search(r"(?m)^UNITS LENGTH=A\b", lines.read_text(encoding="utf-8")):
            return {}
    printed = [sampling.read_colvar(folder / "colvar") for folder in folders]
    names = ("ae.node-0", "ae.gradnorm", "ae.invmass")
    if not all(name in part for part in printed for name in names):
        return {}
    return {name: [part[name] for part in printed] for name in names}


def complete(files: RunDirectory, n: int, result: dict[str, Any]) -> dict[str, Any]:
    """Add the values that the checks need to the result of iteration n, unless they exist.

    Parameters
    ----------
    files
        The run directory.
    n
        Number of the iteration.
    result
        Result of the iteration.

    Returns
    -------
    dict
        In addition `crossings`, `first_half_flux_barrier_eV` and `second_...` with errors, `flanks`
        (where the profile has risen by kT above reactant and product, as values of the CV) and, if
        the next CV has been learned, `similarity` to it, `similarity_worst`,
        `similarity_at_surface`.
    """
    folder = files.iteration(n)
    if "A1_minus_A0_eV" not in result:  # earlier versions called it delta_F
        of_points = {key: result.get(f"delta_F{key}") for key in ("_eV", "_error_eV")}
        result = result | {f"A1_minus_A0{key}": value for key, value in of_points.items()}
        result |= dict.fromkeys(("delta_F_eV", "delta_F_error_eV"))
    if "crossings" not in result:
        walkers = sampling.segments_by_walker(folder)
        result = result | course(sampled(folder), walkers, result)
    if "flanks" not in result:
        profile = freeenergy.read_fes(folder / "fes.dat")
        result = result | {"flanks": list(flanks(profile, result.get("dividing_surface")))}
    if "similarity_worst" not in result and files.cv(n).exists():
        new, old = (CollectiveVariable.load(files.cv(k)) for k in (n, n - 1))
        found = equivalence.difference(new, old, **checks.where(result))
        result = result | {
            "similarity": found.mean,
            "similarity_worst": found.worst,
            "similarity_at_surface": found.at_surface,
        }
    return result


def course(
    found: Sampled,
    walkers: Sequence[int],
    result: dict[str, Any],
) -> dict[str, Any]:
    """Return the course of an iteration: `crossings` and the flux barriers of both halves.

    Parameters
    ----------
    found
        Samples of the iteration.
    walkers
        Number of segments of each walker.
    result
        Result of the iteration: `estimator`, and `steps` with the minima of reactant and product.
    """
    steps = result.get("steps") or [{}]
    ends = (steps[0].get("reactant_xi", 0.0), steps[-1].get("product_xi", 1.0))
    own = np.split(np.arange(len(found.blocks)), np.cumsum(walkers)[:-1])
    halves = zip(*(np.array_split(segments, 2) for segments in own), strict=True)
    first, second = (flux_barrier(found, half, result.get("estimator")) for half in halves)
    return {
        "crossings": crossings(found.series["ae.node-0"], walkers, ends),
        **as_json({"first_half_flux_barrier": first, "second_half_flux_barrier": second}),
    }


def crossings(
    xi: Sequence[Array],
    walkers: Sequence[int],
    states: tuple[float, float] = (0.0, 1.0),
) -> int:
    """Number of passages of walkers from one state to the other.

    After a segment that the guard ended, the next one starts a few snapshots before its end.

    Parameters
    ----------
    xi
        The series of each segment, one walker after the other.
    walkers
        Number of segments of each walker.
    states
        Minima of reactant and product. A state counts as visited within a tenth of their distance.
    """
    reactant, product = states
    number, first = 0, 0
    for segments in walkers:
        place = np.concatenate(xi[first : first + segments] or [np.zeros(0)])
        place = (place - reactant) / (product - reactant)
        visits = np.select([place < 0.1, place > 0.9], [-1, 1])
        number += int(np.count_nonzero(np.diff(visits[visits != 0])))
        first += segments
    return number


def flux_barrier(
    found: Sampled,
    by_walker: Sequence[Sequence[int]],
    estimator: str | None,
    states: tuple[float, float] = (0.0, 1.0),
) -> freeenergy.Estimate:
    """Return the flux barrier from some segments, in few blocks so that its error is fast.

    Parameters
    ----------
    found
        What was sampled.
    by_walker
        The numbers of the segments of each walker.
    estimator
        `MEAN_FORCE` or `POOLED`, if the mean force is to be taken: that of these segments alone.
        Earlier iterations would be the same in every part of a run, and hide that parts differ.
    states
        The CV in the reactant and in the product.

    Returns
    -------
    Estimate
        Unknown where there is none.
    """
    most = max(1, MOST_BLOCKS // max(1, len(by_walker)))
    split = [np.array_split(own, min(len(own), most)) for own in by_walker if len(own)]
    groups = [group for own in split for group in own]
    if not groups:
        return freeenergy.Estimate(np.nan, np.nan)

    def merged(parts: Sequence[T]) -> list[T]:
        return [reduce(operator.add, [parts[k] for k in group]) for group in groups]

    xi, gradnorm, invmass = (
        [np.concatenate([found.series[f"ae.{name}"][k] for k in group]) for group in groups]
        for name in ("node-0", "gradnorm", "invmass")
    )
    atoms = None
    if found.mean_force is not None and estimator in (MEAN_FORCE, POOLED):
        atoms = merged(found.mean_force)
    part = Sampled(
        merged(found.blocks),
        atoms,
        {"ae.node-0": xi, "ae.gradnorm": gradnorm, "ae.invmass": invmass},
    )
    try:
        return _flux(part, atoms, [len(own) for own in split], states).barrier
    except UserError:
        return freeenergy.Estimate(np.nan, np.nan)


def flanks(profile: freeenergy.Profile, surface: float | None) -> tuple[float, float]:
    """Where the profile has risen by kT above reactant and product, as values of the CV.

    Nearer to the minima an angle between isosurfaces costs less than kT. 0 and 1 where the
    dividing surface or the profile is not known.
    """
    if surface is None:
        return (0.0, 1.0)
    sides = (profile.xi <= surface, profile.xi >= surface)
    found = []
    for side, end, last in zip(sides, profile.states, (-1, 0), strict=True):
        known = side & np.isfinite(profile.A)
        bottom = np.min(profile.A[known], initial=np.inf)
        low = known & (profile.A - bottom <= profile.kT_eV)
        found.append(float(profile.xi[low][last]) if low.any() else end)
    return (found[0], found[1])


def _temperature(found: Sampled) -> freeenergy.Estimate:
    """Kinetic temperature along the collective variable and its error, K.

    Segments count as their samples do in the free energy: less while the bias is still rough.
    """
    of_segments, weights = [], []
    for block, series in zip(found.blocks, found.series.get("ae.temp", []), strict=False):
        known = series[np.isfinite(series)]
        if len(known) and block.sums[0].any():
            of_segments.append(float(known.mean()))
            weights.append(float(block.sums[0].sum()))
    if not weights:
        return freeenergy.Estimate(np.nan, np.nan)
    value = float(np.average(of_segments, weights=weights))
    independent = np.sum(weights) ** 2 / np.sum(np.square(weights))
    if independent < 2:
        return freeenergy.Estimate(value, np.nan)
    variance = np.average((np.array(of_segments) - value) ** 2, weights=weights)
    return freeenergy.Estimate(value, float((variance / (independent - 1)) ** 0.5))


def barriers(profile: freeenergy.Profile) -> dict[str, float | None]:
    """What a profile says without its flux, by the keys of results."""
    names = ("barrier", "delta_F", "A1_minus_A0")
    return as_json({name: getattr(profile, name) for name in names})


def as_json(estimates: dict[str, freeenergy.Estimate]) -> dict[str, float | None]:
    """Values and errors by name and unit, `barrier_eV`; what is not known is None."""
    result: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        for key, number in ((name, estimate.value), (f"{name}_error", estimate.error)):
            result[f"{key}_{estimate.unit}"] = _or_none(number)
    return result


def estimate_of(result: dict[str, Any], name: str) -> freeenergy.Estimate:
    """A value and its error by the beginning of their keys in result.json, in the unit of these."""
    unit = freeenergy.NATURAL if f"{name}_{freeenergy.NATURAL}" in result else "eV"
    value, error = (result.get(f"{name}{of}_{unit}") for of in ("", "_error"))
    value, error = (np.nan if number is None else number for number in (value, error))
    return freeenergy.Estimate(value, error, unit)


def in_words(result: dict[str, Any], name: str) -> str:
    """A result and its error in words, for example "0.612 ± 0.004 eV"."""
    return str(estimate_of(result, name))


def summary(result: dict[str, Any]) -> str:
    """Flux barrier if there is one, barrier, and the difference of the states, in words."""
    return ", ".join(
        f"{words} {in_words(result, name)}"
        for name, words in RESULTS.items()
        if f"{name}_eV" in result or f"{name}_{freeenergy.NATURAL}" in result
    )


def write_answer(
    config: Config,
    files: RunDirectory,
    path: EnergyPath | None,
    atoms: Atoms,
    plugin: Path,
    iterations: list[dict[str, Any]],
) -> dict[str, Any]:
    """Write the answer: result.json, fes.dat, profiles.png, cv.safetensors and plumed.dat.

    Parameters
    ----------
    config
        The input.
    files
        The run directory, with all iterations in it.
    path
        The minimum energy path; None of a molecule.
    atoms
        The initial state.
    plugin
        What plumed.dat loads.
    iterations
        What each iteration has found. `checks.judge` chooses the answer among them.

    Returns
    -------
    dict
        What result.json holds.
    """
    verdict = checks.judge(
        files, iterations, config.iteration, config.sampling, config.system.temperature_K
    )
    n = verdict.answer
    found = iterations[n - 1]
    result = {
        key: value
        for key, value in found.items()
        if key.endswith(("_eV", "_per_s", "_K")) or key in _OF_THE_ANSWER
    } | {
        **verdict.as_dict(len(iterations), config.iteration),
        "similarity": iterations[-1]["similarity"],
        "md_steps": sum(part["md_steps"] for part in iterations),
        "temperature_K": config.system.temperature_K,
        **UNKNOWN_RATE,
        "cell_A": cell_of(atoms).tolist(),
        "energy_barrier_0K_eV": None if path is None else path.barrier,
        "cv": "cv.safetensors",
        **atoms_of_cv(files),
        "plumed_cv": plumed_cv.__version__,
        "iterations": iterations,
    }
    result |= harmonic_theory.equivalent_events(files, result)
    result["harmonic"] = harmonic_theory.beside(files, result)
    answer = CollectiveVariable.load(files.cv(n - 1))
    answer.save(files.root / "cv.safetensors")
    with replacing(files.root / "fes.dat") as temporary:
        shutil.copyfile(files.iteration(n) / "fes.dat", temporary)
    sampling.copy_state(files.iteration(n), files.root / "babf.state")
    order = [k for k in range(1, len(iterations) + 1) if k != n]
    profiles = [
        (_label(iterations[k - 1]), freeenergy.read_fes(files.iteration(k) / "fes.dat"))
        for k in [*order, n]
    ]
    zero_kelvin = None
    if path is not None:
        zero_kelvin = (energy.at_images(path, answer), path.energies)
    plot_profiles(
        files.root / "profiles.png",
        profiles,
        f"{len(atoms)} atoms, {config.system.temperature_K:g} K",
        zero_kelvin,
        checks.surfaces_of(found),
        checks.minima_of(found),
    )
    state = freeenergy.read_state(files.root / "babf.state")
    production = _production_input(
        answer, config.system.temperature_K, config.sampling, plugin, state, goes_on=True
    )
    write_text(files.root / "plumed.dat", production)
    write_text(files.result, json.dumps(result, indent=2, allow_nan=False))
    return result


def atoms_of_cv(files: RunDirectory) -> dict[str, Any]:
    """Number of atoms of the CV, the rule by which they were chosen, and their share of the motion.

    Returns
    -------
    dict
        `cv_atoms`, `cv_atoms_rule` and `cv_share_of_motion`; the last two are None for a molecule,
        whose atoms the input gives.
    """
    known = read_json(files.atoms) if files.atoms.exists() else None
    if known is None:
        number = CollectiveVariable.load(files.cv(0)).n_atoms
        return {"cv_atoms": number, "cv_atoms_rule": None, "cv_share_of_motion": None}
    return {
        "cv_atoms": len(known["serials"]),
        "cv_atoms_rule": known["rule"],
        "cv_share_of_motion": known["share_of_motion"],
    }


def _label(part: dict[str, Any]) -> str:
    return f"{part['iteration']} ({part['kind']} CV): flux b. {in_words(part, 'flux_barrier')}"


def export(run_directory: Path, output: Path, plugin: Path) -> CollectiveVariable:
    """Write the CV of a run that has ended and a plumed.dat that samples it from the start.

    Parameters
    ----------
    run_directory
        The run directory.
    output
        New folder.
    plugin
        What plumed.dat loads.

    Returns
    -------
    CollectiveVariable
        The CV.

    Raises
    ------
    UserError
        If the directory contains no answer, or `output` exists.
    """
    files = RunDirectory(run_directory)
    if not files.result.exists():
        raise UserError(f"{run_directory}: is not the directory of a run that has ended.")
    given = read_json(files.root / "input.json")
    temperature_K, settings = given["system"]["temperature_K"], Sampling(**given["sampling"])
    variable = CollectiveVariable.load(files.root / "cv.safetensors")
    output.mkdir(parents=True)
    variable.save(output / "cv.safetensors")
    state = freeenergy.read_state(files.root / "babf.state")
    production = _production_input(variable, temperature_K, settings, plugin, state)
    write_text(output / "plumed.dat", production)
    return variable


def _production_input(
    variable: CollectiveVariable,
    temperature_K: float,
    settings: Sampling,
    plugin: Path,
    state: freeenergy.State,
    *,
    goes_on: bool = False,
) -> str:
    """The plumed.dat beside `cv.safetensors` that samples it as the run did, for any engine.

    It has the parameters of the run's state. It may start from that state, `babf.state`, which has
    its own weight of the prior.
    """
    parameters = sampling.Parameters.of_state(state)
    if not goes_on:
        parameters = parameters._replace(tau=None)
    lines = babf_input(
        plugin,
        Path("cv.safetensors"),
        temperature_K=temperature_K,
        **parameters._asdict(),
        state_in=Path("babf.state") if goes_on else None,
        state_out=Path("babf-new.state" if goes_on else "babf.state"),
        state_stride=10_000,
        colvar=Path("colvar"),
        colvar_stride=settings.snapshot_stride,
        deviation_limit_A=settings.deviation_limit_A,
        atom_limit_A=guard.limit(settings.atom_deviation_limit_A, variable),
    )
    return lines + settings.plumed


def _or_none(number: float) -> float | None:
    """The number, or None where it is NaN, which JSON does not have."""
    return number if np.isfinite(number) else None
