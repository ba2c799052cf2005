"""What a run has found: the barriers of an iteration, when it has converged, and the answer."""

import json
import shutil
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
RESULTS = {"barrier": "barrier", "flux_barrier": "flux barrier", "delta_F": "A(1)-A(0)"}


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
    blocks, atoms, series = sampled(folder)
    profile = babf.profile(blocks, mean_force=atoms)
    babf.write_fes(folder / "fes.dat", profile)
    note = None
    xi, gradnorm, invmass = (series[f"ae.{name}"] for name in ("node-0", "gradnorm", "invmass"))
    try:
        flux = babf.flux(blocks, xi, gradnorm, invmass, mean_force=atoms)
    except UserError as error:  # the profile stands without it
        note = str(error)
        unknown = babf.Estimate(np.nan, np.nan)
        flux = babf.Flux(unknown, unknown, unknown, np.nan)
    from_flux = {"flux_barrier": flux.barrier, "activation_free_energy": flux.activation}
    parts = sampling.records(sampling.segments(folder))
    guard = [
        {"xi": float(where[-1]), "deviation_A": float(deviation[-1])}
        for part, where, deviation in zip(parts, xi, series["ae.dev"], strict=True)
        if part["stopped"]
    ]
    of_histogram = profile if atoms is None else babf.profile(blocks)
    return (
        barriers(profile)
        | as_json(from_flux)
        | as_json({"histogram_barrier": of_histogram.barrier})
        | {
            "estimator": "histogram" if atoms is None else "mean force of the atoms",
            "tst_rate_per_s": _or_none(flux.rate_per_s.value),
            "tst_rate_error_per_s": _or_none(flux.rate_per_s.error),
            "dividing_surface": _or_none(flux.surface),
            "note": note,
            "md_steps": sampling.steps_of(parts),
            "restarts": len(guard),
            "restarted_at": guard,
        }
    )


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
    """What a profile says without its flux: the barrier and A(1) - A(0), by the keys of results."""
    return as_json({"barrier": profile.barrier, "delta_F": profile.delta_F})


def as_json(estimates: dict[str, babf.Estimate]) -> dict[str, float | None]:
    """Values and errors by name, eV; what is not known is None."""
    result: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        for key, number in ((name, estimate.value), (f"{name}_error", estimate.error)):
            result[f"{key}_eV"] = _or_none(number)
    return result


def in_words(result: dict[str, Any], name: str) -> str:
    """A result and its error in words, for example "0.612 ± 0.004 eV"."""
    pair = (result[f"{name}_eV"], result[f"{name}_error_eV"])
    return str(babf.Estimate(*(np.nan if number is None else number for number in pair)))


def summary(result: dict[str, Any]) -> str:
    """Barrier, flux barrier if there is one, and A(1)-A(0), in words."""
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
        babf.read_state(files.root / "babf.state"),
        goes_on=True,
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
    state = babf.read_state(files.root / "babf.state")
    write_text(output / "plumed.dat", _production_input(temperature_K, settings, plugin, state))
    return variable


def _production_input(
    temperature_K: float,
    settings: Sampling,
    plugin: Path,
    state: babf.State,
    *,
    goes_on: bool = False,
) -> str:
    """The plumed.dat that samples `cv.safetensors` as the run did, for any engine.

    It has the grid of the run's state. It may start from that state, `babf.state`, which has its
    own weight of the prior.
    """
    settings = settings.model_copy(update={"margin": sampling.margin_of(state.grid)})
    lines = babf_input(
        plugin,
        Path("cv.safetensors"),
        temperature_K=temperature_K,
        ramp=sampling.ramp(settings),
        tau=state.tau if goes_on else None,
        grid=sampling.grid(settings),
        kappa_eV=settings.kappa_eV,
        state_in=Path("babf.state") if goes_on else None,
        state_out=Path("babf-new.state" if goes_on else "babf.state"),
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
