"""What a run has found: the barriers of an iteration, when it has converged, and the answer."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

import plumed_cv
from plumed_cv import babf, sampling
from plumed_cv.config import Config, Iteration, Sampling
from plumed_cv.cv import CollectiveVariable
from plumed_cv.errors import UserError
from plumed_cv.figures import plot_profiles
from plumed_cv.files import read_json, replacing, write_text
from plumed_cv.frame import Array
from plumed_cv.path import EnergyPath
from plumed_cv.plumed import babf_input
from plumed_cv.progress import Reporter
from plumed_cv.structures import cell_of
from plumed_cv.workflow.directory import RunDirectory

# The results with an error bar, by the beginning of their keys, and how they are called.
RESULTS = {"flux_barrier": "flux barrier", "barrier": "barrier", "delta_F": "delta F"}

MEAN_FORCE, HISTOGRAM = "mean force of the atoms", "histogram"  # the estimators


class Sampled(NamedTuple):
    """What an iteration has sampled: of each segment what it learned and what it printed.

    Attributes
    ----------
    blocks
        What it added to bABF's sums.
    mean_force
        Its sums of the mean force of the atoms, as `babf.profile` takes them, or None.
    series
        The columns of COLVAR, by their names.
    """

    blocks: list[babf.State]
    mean_force: list[Array] | None
    series: dict[str, list[Array]]


def sampled(folder: Path) -> Sampled:
    """What the segments of an iteration learned and printed.

    Parameters
    ----------
    folder
        The folder of an iteration.

    Raises
    ------
    UserError
        If it has no whole segment, or a file of one is damaged.
    """
    segments = sampling.segments(folder)
    if not segments:
        raise UserError(f"{folder}: holds no finished segment of a bABF run.")
    printed = [_read_colvar(segment / "colvar") for segment in segments]
    series = {name: [part[name] for part in printed] for name in printed[0]}
    return Sampled(*sampling.learned(folder), series)


def analyse(folder: Path) -> dict[str, Any]:
    """Write `fes.dat` of an iteration's folder and return its barriers with errors, eV."""
    found = sampled(folder)
    profile, result = analysed(found, sampling.segments_by_walker(folder))
    babf.write_fes(folder / "fes.dat", profile)
    parts = sampling.records(sampling.segments(folder))
    xi, deviation = found.series["ae.node-0"], found.series["ae.dev"]
    guard = [
        {"xi": float(where[-1]), "deviation_A": float(distance[-1])}
        for part, where, distance in zip(parts, xi, deviation, strict=True)
        if part["stopped"]
    ]
    return result | {
        "md_steps": sampling.steps_of(parts),
        "restarts": len(guard),
        "restarted_at": guard,
    }


class Estimated(NamedTuple):
    """What one estimator finds.

    Attributes
    ----------
    profile, flux
        Its profile and its flux.
    note
        Why the flux is unknown, or None.
    """

    profile: babf.Profile
    flux: babf.Flux
    note: str | None


def analysed(
    found: Sampled,
    walkers: Sequence[int] | None = None,
    states: tuple[float, float] = (0.0, 1.0),
) -> tuple[babf.Profile, dict[str, Any]]:
    """The profile of what was sampled, and its barriers, differences and rates by their keys.

    Where there are forces on the atoms both estimators are asked, and the one that knows the flux
    barrier with the smaller error gives the answer.

    Parameters
    ----------
    found
        What was sampled. Without columns of COLVAR nothing is said of the flux.
    walkers
        Number of blocks of each walker, one walker after the other; all are of one by default.
    states
        The CV in the reactant and in the product.

    Returns
    -------
    Profile, dict
        Among the results `estimator`, which gave them; `estimators`, what each one finds; and
        `estimators_agree`, null where it is not known.
    """
    estimates = {HISTOGRAM: _estimated(found, None, walkers, states)}
    if found.mean_force is not None:
        estimates = {MEAN_FORCE: _estimated(found, found.mean_force, walkers, states)} | estimates
    chosen = _most_precise(estimates)
    profile, flux, note = estimates[chosen]
    result: dict[str, Any] = barriers(profile)
    if found.series:
        of_flux = {"flux_barrier": flux.barrier, "activation_free_energy": flux.activation}
        result |= as_json(of_flux) | {
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
    }


def _estimated(
    found: Sampled,
    mean_force: Sequence[Array] | None,
    walkers: Sequence[int] | None,
    states: tuple[float, float],
) -> Estimated:
    unknown = babf.Estimate(np.nan, np.nan)
    flux, note = babf.Flux(unknown, unknown, unknown, np.nan), None
    if found.series:
        xi, gradnorm, invmass = (
            found.series[f"ae.{name}"] for name in ("node-0", "gradnorm", "invmass")
        )
        try:
            flux = babf.flux(
                found.blocks, xi, gradnorm, invmass, states, mean_force, walkers=walkers
            )
        except UserError as error:  # the profile stands without it
            note = str(error)
    profile = babf.profile(found.blocks, states, mean_force, walkers=walkers, basins=flux.basins)
    return Estimated(profile, flux, note)


def _most_precise(estimates: dict[str, Estimated]) -> str:
    """The estimator with the smallest error of the flux barrier; the first if none knows it."""
    errors = {name: each.flux.barrier.error for name, each in estimates.items()}
    known = [name for name, error in errors.items() if np.isfinite(error)]
    return min(known, key=errors.__getitem__) if known else next(iter(estimates))


def _agree(estimates: list[Estimated]) -> bool | None:
    """Whether flux barriers and differences of two estimators agree; None if not known.

    They agree within three times the larger of the two errors. Both estimates have the same
    trajectory, so their difference has a smaller error than that of independent ones, the root of
    the sum of squares.
    """
    if len(estimates) < 2:
        return None
    verdicts = []
    for one, other in (
        [each.flux.barrier for each in estimates],
        [each.profile.delta_F for each in estimates],
    ):
        off, limit = abs(one.value - other.value), 3.0 * max(one.error, other.error)
        verdicts.append(bool(off < limit) if np.isfinite([off, limit]).all() else None)
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _step(step: babf.Step) -> dict[str, float | None]:
    """One barrier between two basins as result.json has it."""
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


def stopped_by(limits: Iteration, iterations: list[dict[str, Any]]) -> str | None:
    """Which criterion the iterations so far fulfil, in words; None if they must go on."""
    last = iterations[-1]
    if len(iterations) < limits.minimum:
        return None
    if limits.criterion == "equivalence":
        return "equivalent CVs (Eq. 17)" if last["similarity"] < limits.tolerance else None
    pair = iterations[-2:]
    values = [part["flux_barrier_eV"] for part in pair]
    errors = [part["flux_barrier_error_eV"] for part in pair]
    if len(pair) < 2 or None in values or None in errors:
        return None
    agree = abs(values[1] - values[0]) < 2.0 * np.hypot(*errors)
    if agree and errors[1] < limits.barrier_tolerance_eV:
        return "flux barrier, the same as in the iteration before within two errors"
    return None


def barriers(profile: babf.Profile) -> dict[str, float | None]:
    """What a profile says without its flux, by the keys of results."""
    names = ("barrier", "delta_F", "A1_minus_A0")
    return as_json({name: getattr(profile, name) for name in names})


def as_json(estimates: dict[str, babf.Estimate]) -> dict[str, float | None]:
    """Values and errors by name, eV; what is not known is None."""
    result: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        for key, number in ((name, estimate.value), (f"{name}_error", estimate.error)):
            result[f"{key}_eV"] = _or_none(number)
    return result


def in_words(result: dict[str, Any], name: str) -> str:
    """A result and its error in words, for example "0.612 ± 0.004 eV"."""
    value, error = (result.get(f"{name}{of}_eV") for of in ("", "_error"))
    value, error = (np.nan if number is None else number for number in (value, error))
    return str(babf.Estimate(value, error))


def summary(result: dict[str, Any]) -> str:
    """Flux barrier if there is one, barrier, and the difference of the states, in words."""
    return ", ".join(
        f"{words} {in_words(result, name)}"
        for name, words in RESULTS.items()
        if f"{name}_eV" in result
    )


def write_answer(
    config: Config,
    files: RunDirectory,
    path: EnergyPath | None,
    atoms: Atoms,
    plugin: Path,
    iterations: list[dict[str, Any]],
    reporter: Reporter,
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
        What each iteration has found, the last of which is the answer.
    reporter
        Is told the answer, and whether it has converged.

    Returns
    -------
    dict
        What result.json holds.
    """
    last = iterations[-1]
    n = last["iteration"]
    reached = stopped_by(config.iteration, iterations)
    result = {
        key: value
        for key, value in last.items()
        if key.endswith(("_eV", "_per_s"))
        or key in ("estimator", "similarity", "dividing_surface", "note")
    } | {
        "converged": reached is not None,
        "stopped_by": reached or "iteration limit",
        "md_steps": sum(part["md_steps"] for part in iterations),
        "temperature_K": config.system.temperature_K,
        "cell_A": cell_of(atoms).tolist(),
        "energy_barrier_0K_eV": None if path is None else path.barrier,
        "cv": "cv.safetensors",
        "plumed_cv": plumed_cv.__version__,
        "iterations": iterations,
    }
    answer = CollectiveVariable.load(files.cv(n - 1))
    answer.save(files.root / "cv.safetensors")
    with replacing(files.root / "fes.dat") as temporary:
        shutil.copyfile(files.iteration(n) / "fes.dat", temporary)
    sampling.copy_state(files.iteration(n), files.root / "babf.state")
    profiles = [
        (f"{k} ({part['kind']} CV)", babf.read_fes(files.iteration(k) / "fes.dat"))
        for k, part in enumerate(iterations, start=1)
    ]
    zero_kelvin = None
    if path is not None:
        along_path = answer.encode(answer.components(path.displacements))[:, 0]
        zero_kelvin = (along_path, path.energies)
    plot_profiles(
        files.root / "profiles.png",
        profiles,
        f"{len(atoms)} atoms, {config.system.temperature_K:g} K",
        zero_kelvin,
    )
    production = _production_input(
        config.system.temperature_K,
        config.sampling,
        plugin,
        Path("babf.state"),
        babf.read_state(files.root / "babf.state").tau,
    )
    write_text(files.root / "plumed.dat", production)
    write_text(files.result, json.dumps(result, indent=2, allow_nan=False))
    reporter.say(f"At {config.system.temperature_K:g} K: {summary(result)}")
    if reached is None:
        reporter.say(
            f"Not converged: after {n} iterations 1 - cos is {last['similarity']:.3f} (equivalent "
            f"below {config.iteration.tolerance:g}) and the flux barrier "
            f"{in_words(last, 'flux_barrier')}. Raise iteration.maximum and run again, or sample "
            "longer in a new directory."
        )
    return result


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
        If the directory holds no answer, or `output` exists.
    """
    files = RunDirectory(run_directory)
    if not files.result.exists():
        raise UserError(f"{run_directory}: is no directory of a run that has ended.")
    given = read_json(files.root / "input.json")
    temperature_K, settings = given["system"]["temperature_K"], Sampling(**given["sampling"])
    variable = CollectiveVariable.load(files.root / "cv.safetensors")
    output.mkdir(parents=True)
    variable.save(output / "cv.safetensors")
    write_text(output / "plumed.dat", _production_input(temperature_K, settings, plugin))
    return variable


def _production_input(
    temperature_K: float,
    settings: Sampling,
    plugin: Path,
    state_in: Path | None = None,
    tau: float | None = None,
) -> str:
    """The plumed.dat that samples `cv.safetensors` as the run did, for any engine.

    A state is gone on from with its own weight `tau` of the prior.
    """
    lines = babf_input(
        plugin,
        Path("cv.safetensors"),
        temperature_K=temperature_K,
        ramp=sampling.ramp(settings),
        tau=tau,
        grid=sampling.grid(settings),
        kappa_eV=settings.kappa_eV,
        state_in=state_in,
        state_out=Path("babf-new.state" if state_in else "babf.state"),
        state_stride=10_000,
        colvar=Path("colvar"),
        colvar_stride=settings.snapshot_stride,
    )
    return lines + settings.plumed


def _read_colvar(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open(encoding="utf-8") as file:
            names = file.readline().split()[2:]
            table = np.loadtxt(file, comments="#", ndmin=2)
        return dict(zip(names, table.T, strict=True))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a COLVAR file ({error}).") from None


def _or_none(number: float) -> float | None:
    """The number, or None where it is NaN, which JSON does not have."""
    return number if np.isfinite(number) else None
