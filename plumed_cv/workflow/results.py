"""Results of a run: values of each iteration, and the answer in result.json."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike

import plumed_cv
from plumed_cv import freeenergy, sampling
from plumed_cv.common.files import read_json, replacing, write_text
from plumed_cv.cv import CollectiveVariable, energy, equivalence
from plumed_cv.figures import plot_profiles
from plumed_cv.input_file import Config
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures import cell_of
from plumed_cv.workflow import harmonic_theory
from plumed_cv.workflow.defaults import atom_limit
from plumed_cv.workflow.deviation import find_stops
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.estimates import analyse_course, analyse_samples
from plumed_cv.workflow.keys import minima_of, or_none, points_to_compare, surfaces_of
from plumed_cv.workflow.production import production_input
from plumed_cv.workflow.samples import estimate_temperature, read_samples
from plumed_cv.workflow.verdict import judge

# The results with an error bar: the beginning of their keys, and their names.
RESULTS = {"flux_barrier": "flux barrier", "barrier": "barrier", "delta_F": "delta F"}
# Results of an iteration that are part of the answer, in addition to energies, rates, temperatures.
_OF_THE_ANSWER = (
    *("estimator", "estimators", "estimators_agree", "dividing_surface", "steps"),
    *("populations", "populations_error", "crossings", "restarts", "outside_fraction", "note"),
    "depths_kT",
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
# The error of the potential in the answer until `committee` has computed it.
UNKNOWN_COMMITTEE: dict[str, Any] = {
    "model_error_eV": None,
    "model_error_error_eV": None,
    "committee": None,
    "committee_note": None,
}


def analyse(folder: Path) -> dict[str, Any]:
    """Write `fes.dat` of an iteration's folder and return its barriers with errors, eV."""
    found = read_samples(folder)
    profile, result = analyse_samples(found, sampling.count_segments(folder))
    freeenergy.write_fes(folder / "fes.dat", profile)
    parts = sampling.read_records(sampling.list_segments(folder))
    departures = [part["departure"] for part in parts if "departure" in part]
    temperature = estimate_temperature(found)
    return result | {
        "md_steps": sampling.count_steps(parts),
        "cv_temperature_K": or_none(temperature.value),
        "cv_temperature_error_K": or_none(temperature.error),
        "outside_fraction": sampling.share_discarded(parts),
        "restarts": len(departures),
        "restarted_at": departures,
        "model_deviation_stops": find_stops(departures),
    }


def drop_constrained(
    result: dict[str, Any], constrained: ArrayLike, serials: ArrayLike
) -> dict[str, Any]:
    """Return the result of an iteration without what constraints make wrong.

    `invmass` and `temp` of AUTOENCODER contain the masses of free atoms. An atom whose distance to
    another one is a constant moves as if it were heavier, so they are too large: by up to 40 % for
    a CV that contains the hydrogen atoms of bonds with constraints.

    Parameters
    ----------
    result
        The result as `analyse` returns it.
    constrained
        Atoms with constraints, from 0.
    serials
        Atoms of the CV, from 1.
    """
    number = len(np.intersect1d(np.asarray(serials) - 1, constrained))
    if number == 0:
        return result
    sentence = (
        f"{number} of the {np.size(serials)} atoms of the collective variable have constraints, so "
        "its kinetic temperature and the rate of transition state theory are unknown; set "
        "constraints = none in the .mdp and a shorter sampling.timestep_fs, or choose a collective "
        "variable of atoms without constraints (cv.atoms), in a new directory"
    )
    unknown = dict.fromkeys(
        ("tst_rate_per_s", "tst_rate_error_per_s", "cv_temperature_K", "cv_temperature_error_K")
    )
    rates = dict.fromkeys(
        f"{way}rate{error}_per_s" for way in ("", "reverse_") for error in ("", "_error")
    )
    notes = [note for note in (result.get("note"), sentence) if note]
    return (
        result
        | unknown
        | {
            "steps": [step | rates for step in result["steps"]],
            "note": "; ".join(notes),
        }
    )


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
    if "crossings" not in result:
        walkers = sampling.count_segments(folder)
        result = result | analyse_course(read_samples(folder), walkers, result)
    if "flanks" not in result:
        profile = freeenergy.read_fes(folder / "fes.dat")
        result = result | {"flanks": list(find_flanks(profile, surfaces_of(result)))}
    if "similarity_worst" not in result and files.cv(n).exists():
        new, old = (CollectiveVariable.load(files.cv(k)) for k in (n, n - 1))
        found = equivalence.compare_isosurfaces(new, old, **points_to_compare(result))
        result = result | {
            "similarity": found.mean,
            "similarity_worst": found.worst,
            "similarity_at_surface": found.at_surface,
        }
    return result


def find_flanks(profile: freeenergy.Profile, surfaces: Sequence[float]) -> tuple[float, float]:
    """Where the profile has risen by kT above reactant and product, as values of the CV.

    Nearer to the minima an angle between isosurfaces costs less than kT.

    Parameters
    ----------
    profile
        The profile.
    surfaces
        The dividing surfaces of all steps. The basin of the reactant is below the first one, and
        that of the product is above the last one.

    Returns
    -------
    float, float
        0 and 1 where no dividing surface, or the profile, is known.
    """
    if not surfaces:
        return (0.0, 1.0)
    sides = (profile.xi <= min(surfaces), profile.xi >= max(surfaces))
    found = []
    for side, end, last in zip(sides, profile.states, (-1, 0), strict=True):
        known = side & np.isfinite(profile.A)
        bottom = np.min(profile.A[known], initial=np.inf)
        low = known & (profile.A - bottom <= profile.kT_eV)
        found.append(float(profile.xi[low][last]) if low.any() else end)
    return (found[0], found[1])


def estimate_of(result: dict[str, Any], name: str) -> freeenergy.Estimate:
    """A value and its error by the beginning of their keys in result.json, in the unit of these."""
    unit = freeenergy.NATURAL if f"{name}_{freeenergy.NATURAL}" in result else "eV"
    value, error = (result.get(f"{name}{of}_{unit}") for of in ("", "_error"))
    value, error = (np.nan if number is None else number for number in (value, error))
    return freeenergy.Estimate(value, error, unit)


def in_words(result: dict[str, Any], name: str) -> str:
    """A result and its error in words, for example "0.612 ± 0.004 eV"."""
    return str(estimate_of(result, name))


def summarise(result: dict[str, Any]) -> str:
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
        What each iteration has found. `verdict.judge` chooses the answer among them.

    Returns
    -------
    dict
        What result.json holds.
    """
    verdict = judge(
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
        **UNKNOWN_COMMITTEE,
        "cell_A": cell_of(atoms).tolist(),
        "energy_barrier_0K_eV": None if path is None else path.barrier,
        "cv": "cv.safetensors",
        **atoms_of_cv(files),
        "plumed_cv": plumed_cv.__version__,
        "iterations": iterations,
    }
    result |= harmonic_theory.equivalent_events(files, result)
    result["harmonic"] = harmonic_theory.compare_with_run(files, result)
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
        zero_kelvin = (energy.values_at_images(path, answer), path.energies)
    plot_profiles(
        files.root / "profiles.png",
        profiles,
        f"{len(atoms)} atoms, {config.system.temperature_K:g} K",
        zero_kelvin,
        surfaces_of(found),
        minima_of(found),
    )
    state = freeenergy.read_state(files.root / "babf.state")
    production = production_input(
        config.system.temperature_K,
        config.sampling,
        atom_limit(config.sampling, files, answer),
        plugin,
        state,
        goes_on=True,
    )
    write_text(files.root / "plumed.dat", production)
    files.write_result(result)
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
