"""Harmonic theory for an input or a run, and the number of equivalent events."""

import csv
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from plumed_cv import sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, replacing, write_text
from plumed_cv.common.numbers import NONE, error_of_factor, scientific, with_error
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.engines import Engine
from plumed_cv.input_file import Config
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.rates import harmonic as theory
from plumed_cv.rates import stationary
from plumed_cv.rates.multiplicity import (
    check_energies,
    count_equivalent_events,
    find_saddle_points,
)
from plumed_cv.structures import has_kinds_by_moment
from plumed_cv.workflow import provenance, saddle_points
from plumed_cv.workflow.directory import RunDirectory, claimed
from plumed_cv.workflow.keys import relative_populations
from plumed_cv.workflow.mep import check_partial_rotation, find_path, read_end_states, read_path

LARGEST_ERROR = 0.5  # largest relative error of a rate that is compared with the harmonic one
NEAR_KT = 3.0  # other maxima of the path within this many kT of the highest one are reported


def compute_harmonic(
    config: Config,
    folder: Path,
    *,
    path: Path | None = None,
    temperatures_K: Sequence[float] = (),
    step_A: float = stationary.STEP_A,
    reverse: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Start or continue the computation of the harmonic rate of an input; write the results.

    Parameters
    ----------
    config
        The input.
    folder
        Folder for harmonic.json, frequencies.csv (THz; imaginary ones negative), minimum.xyz,
        saddle.xyz (with the unstable mode as a column), the Hessians, and a record of the input
        (input.json). It is made if it is missing.
    path
        The minimum energy path; if None, it is computed and stored in the folder.
    temperatures_K
        Temperatures of the rates; the temperatures of the input if empty.
    step_A
        Displacement of a coordinate for the differences of forces, angstrom.
    reverse
        Whether the rate from the final to the initial state is computed too, which takes one more
        Hessian. It is `reverse` in harmonic.json.
    reporter
        Receives the progress.

    Returns
    -------
    dict
        The contents of harmonic.json.

    Raises
    ------
    UserError
        If no minimum or first-order saddle point is found, if the structure has a free
        rotation that cannot be removed, if a temperature has another cell, or if the folder
        contains results of another input.
    """
    reporter = reporter or Log()
    if config.cv.alignment != "none":
        raise UserError(
            "cv.alignment = 'optimal': harmonic theory needs a minimum energy path, which is not "
            "computed with this alignment. Remove the key for this command."
        )
    kelvin = tuple(temperatures_K) or config.system.temperatures_K
    kelvin = kelvin or (config.system.temperature_K,)
    check_one_cell(config, kelvin)
    check_partial_rotation(
        read_end_states(config)[0] if path is None else load_path(path).images[0]
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as a folder: {error.strerror}.") from None
    provenance.check_same_energies(folder, config, path)
    if path is None:
        path = folder / "path.xyz"
        if not path.exists():
            find_path(config, path, reporter)
    return _of_path(config, folder, path, kelvin, step_A, reporter, reverse)


def _of_path(
    config: Config,
    folder: Path,
    path: Path,
    temperatures_K: Sequence[float],
    step_A: float,
    reporter: Reporter,
    reverse: bool = False,
) -> dict[str, Any]:
    """Do what `harmonic` does, in an existing folder that belongs to the input, from its path."""
    found = load_path(path)
    masses = found.images[0].get_masses()
    with sampling.open_engine(config, found.images[0]) as engine:
        coordinates = 3 * (len(masses) - len(found.held))
        with reporter.task("harmonic theory: minimum", coordinates) as update:
            minimum = stationary.find_stationary_point(
                engine, found.images[0].positions, found.cell,
                step_A=step_A, update=update, folder=folder,
            )  # fmt: skip
        with reporter.task("harmonic theory: saddle point", coordinates) as update:
            saddle = stationary.find_saddle(
                engine, found, step_A=step_A, update=update, folder=folder
            )
        product = None
        if reverse:
            place = folder / "final"
            place.mkdir(exist_ok=True)
            with reporter.task("harmonic theory: final state", coordinates) as update:
                product = stationary.find_stationary_point(
                    engine, found.images[-1].positions, found.cell,
                    step_A=step_A, update=update, folder=place,
                )  # fmt: skip
    rate = theory.HarmonicTheory(minimum, saddle, masses)
    result = _as_dict(rate, found, temperatures_K) | {"step_A": step_A}
    if product is not None:
        back = _as_dict(theory.HarmonicTheory(product, saddle, masses), found, temperatures_K)
        names = ("barrier_eV", "prefactor_per_s", "prefactor_error_factor", "rates")
        result["reverse"] = {name: back[name] for name in names}
    _write(folder, rate, found)
    write_text(folder / "harmonic.json", json.dumps(result, indent=2, allow_nan=False))
    return result


def compute_for_run(
    directory: Path | str,
    reporter: Reporter | None = None,
    *,
    temperatures_K: Sequence[float] = (),
    step_A: float = stationary.STEP_A,
) -> dict[str, Any]:
    """Compute the harmonic rate of a run at one temperature, and compare it with the run's rate.

    Parameters
    ----------
    directory
        The run directory, with a minimum energy path.
    reporter, temperatures_K, step_A
        As for `harmonic`; the temperature of the run is always included.

    Returns
    -------
    dict
        The contents of harmonic.json in the folder `harmonic` of the run. The comparison is in
        result.json (`compare_with_run`).

    Raises
    ------
    UserError
        As for `harmonic`. Also if the directory is not that of a run with a path, or if its input
        cannot be read again.
    """
    files = RunDirectory(Path(directory).absolute())
    starts = provenance.read(files.provenance)
    if not starts or not files.path.exists():
        raise UserError(
            f"{directory}: is not the directory of a run with a minimum energy path; start the run "
            "first, or name its input."
        )
    config = Config.model_validate(starts[-1]["input"])
    with claimed(files.root):
        provenance.check_same_input(files.root, config)
        kelvin = sorted({config.system.temperature_K, *temperatures_K})
        check_one_cell(config, kelvin)
        files.harmonic.mkdir(exist_ok=True)
        found = _of_path(config, files.harmonic, files.path, kelvin, step_A, reporter or Log())
        if files.result.exists():
            result = read_json(files.result)
            result["harmonic"] = compare_with_run(files, result)
            files.write_result(result)
    return found


def check_one_cell(config: Config, temperatures_K: Sequence[float] = ()) -> None:
    """Refuse rates at several temperatures if each has its own cell.

    Parameters
    ----------
    config
        The input; its cell is that of `temperature_K`.
    temperatures_K
        Temperatures of the rates; the temperatures of the input if empty.

    Raises
    ------
    UserError
        If the thermal expansion gives one of them another cell.
    """
    own = config.system.temperature_K
    kelvin = tuple(temperatures_K) or config.system.temperatures_K
    if config.system.expansion and any(other != own for other in kelvin):
        raise UserError(
            "With system.expansion each temperature has its own cell, and the harmonic rates of "
            f"an input are those of one cell, at {own:g} K; give no other temperature, or no "
            "expansion."
        )


def _as_dict(
    rate: theory.HarmonicTheory, path: EnergyPath, temperatures_K: Sequence[float]
) -> dict[str, Any]:
    """Return the contents of harmonic.json."""
    notes = []
    rows = [rate.at(kelvin) for kelvin in temperatures_K]
    crossover = rate.crossover_temperature_K
    if any(row["wigner_factor"] is None for row in rows):
        notes.append(
            f"Wigner's factor and the quantum rate are not given below {crossover:.0f} K, the "
            "crossover temperature of tunnelling."
        )
    energies = path.energies
    top = int(energies.argmax())
    others = [
        k
        for k in range(1, len(energies) - 1)
        if k != top and energies[k] > max(energies[k - 1], energies[k + 1])
    ]
    near = NEAR_KT * units.kB * max(temperatures_K)
    high = sum(bool(energies[top] - energies[k] < near) for k in others)
    if high:
        notes.append(
            f"The path has {high} more {'maxima' if high > 1 else 'maximum'} within "
            f"{NEAR_KT:g} kT of the highest one. The harmonic rate is for the highest one only."
        )
    ends, equal = (path.images[0], path.images[-1]), 1
    with suppress(UserError):  # too many operations to try
        equal = len(find_saddle_points(*ends, rate.saddle.positions))
    if equal > 1:
        notes.append(
            f"The symmetry of the end states makes {equal} saddle points out of this one. The "
            f"rates are those over one of them; the rate of the event is {equal} times as high."
        )
    return {
        "barrier_eV": rate.barrier_eV,
        "equal_saddle_points": equal,
        "other_maxima": high,
        "zero_point_barrier_eV": rate.zero_point_barrier_eV,
        "prefactor_per_s": rate.prefactor_per_s,
        "prefactor_error_factor": rate.prefactor_error_factor,
        "imaginary_frequency_THz": rate.imaginary_frequency_THz,
        "crossover_temperature_K": crossover,
        "rates": rows,
        "notes": notes,
        "frequencies": "frequencies.csv",
    }


def _write(folder: Path, rate: theory.HarmonicTheory, path: EnergyPath) -> None:
    """Write the frequencies and both structures."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["mode", "minimum_THz", "saddle_THz"])
    columns = [x.frequencies_THz(rate.masses) for x in (rate.minimum, rate.saddle)]
    for number, row in enumerate(zip(*columns, strict=False), 1):
        table.writerow([number, *(f"{frequency:.6f}" for frequency in row)])
    write_text(folder / "frequencies.csv", text.getvalue())
    for name, point in (("minimum", rate.minimum), ("saddle", rate.saddle)):
        atoms: Atoms = path.images[0].copy()
        atoms.positions = point.positions
        atoms.calc = SinglePointCalculator(atoms, energy=point.energy_eV)
        if name == "saddle":
            mode = point.modes(rate.masses)[1][:, 0].reshape(-1, 3)
            free = np.setdiff1d(np.arange(len(atoms)), path.held)
            whole = np.zeros((len(atoms), 3))
            whole[free] = mode / np.sqrt(rate.masses[free])[:, None]
            atoms.set_array("unstable_mode", whole / np.linalg.norm(whole))
        with replacing(folder / f"{name}.xyz") as temporary:
            atoms.write(temporary, format="extxyz")


def compare_with_run(files: RunDirectory, result: dict[str, Any]) -> dict[str, Any] | None:
    """Compare harmonic theory with the results of a run, for result.json; None without both.

    Parameters
    ----------
    files
        The run directory.
    result
        The contents of result.json.

    Returns
    -------
    dict or None
        Barrier, prefactor and rate of harmonic theory at the temperature of the run.
        `tst_over_harmonic`, with its error, is the ratio of the run's rate of transition state
        theory to the harmonic rate. Both are rates through the surface with the highest flux
        barrier. `sentence` describes the ratio.
    """
    file = files.harmonic / "harmonic.json"
    if not file.exists():
        return None
    found = read_json(file)
    kelvin = result["temperature_K"]
    row = next((row for row in found["rates"] if row["temperature_K"] == kelvin), None)
    if row is None:
        return None
    ratio, error = _ratio(result, row["rate_per_s"])
    names = ("barrier_eV", "zero_point_barrier_eV", "prefactor_per_s", "imaginary_frequency_THz")
    return {
        **{name: found[name] for name in names},
        **{name: row[name] for name in row if name != "temperature_K"},
        "tst_over_harmonic": ratio,
        "tst_over_harmonic_error": error,
        "sentence": _anharmonicity(ratio, error, kelvin),
        "notes": found["notes"],
    }


def surface_rate(result: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return the rate through the surface with the highest flux barrier, and its error, 1/s.

    For a process in one step it is the rate of transition state theory. For several steps, the rate
    of the whole process contains all steps in series, and the rate of a step starts from its own
    basin.
    """
    steps = result.get("steps") or []
    if len(steps) < 2:
        return result.get("tst_rate_per_s"), result.get("tst_rate_error_per_s")
    populations = relative_populations(steps)
    if populations is None or None in [step["rate_per_s"] for step in steps]:
        return None, None
    value, error = min(
        (float(share * step["rate_per_s"]), float(share * (step["rate_error_per_s"] or np.nan)))
        for share, step in zip(populations, steps, strict=True)
    )
    return value, error if np.isfinite(error) else None


def _ratio(result: dict[str, Any], harmonic_per_s: float) -> tuple[float | None, float | None]:
    value, error = surface_rate(result)
    if value is None:
        return None, None
    return value / harmonic_per_s, None if error is None else error / harmonic_per_s


def _anharmonicity(ratio: float | None, error: float | None, kelvin: float) -> str:
    """Describe the ratio of the rates in a sentence."""
    if ratio is None or ratio <= 0:
        return (
            f"The run does not know its rate, so nothing is said of anharmonicity at {kelvin:g} K."
        )
    share = with_error(ratio, error, "").strip()
    words = (
        f"At {kelvin:g} K the rate through the dividing surface is {share} times the harmonic one"
    )
    if error is not None and error > LARGEST_ERROR * ratio:
        return f"{words}: this error is too large to see anharmonicity."
    if error is not None and abs(np.log(ratio)) < 2.0 * error / ratio:
        return f"{words}, which is 1 within two errors: no anharmonicity is seen."
    times, way = (ratio, "higher") if ratio > 1 else (1.0 / ratio, "lower")
    return f"{words}: anharmonicity makes it {times:.2g} times {way}."


def count_events(files: RunDirectory, engine: Engine) -> None:
    """Write the number of equivalent events into the run directory, unless it is known.

    Parameters
    ----------
    files
        The run directory.
    engine
        Computes the energies that check the symmetry.
    """
    if files.multiplicity.exists():
        return
    known: dict[str, Any] = dict.fromkeys(
        (
            *("multiplicity", "reverse_multiplicity", "multiplicity_tolerance_A"),
            *("multiplicity_note", "equal_saddle_points"),
        )
    )
    path = read_path(files) if files.path.exists() else None
    if path is None or not path.images[0].pbc.any():
        known["multiplicity_note"] = (
            "The number of equivalent events can be determined only for periodic structures with a "
            "minimum energy path."
        )
    else:
        images, top = path.images, int(path.energies.argmax())
        try:
            for name, start, end in (("", 0, -1), ("reverse_", -1, 0)):
                found = count_equivalent_events(images[start], images[end])
                check_energies(engine, images[start], found)
                known[f"{name}multiplicity"] = found.events
                known["multiplicity_tolerance_A"] = found.tolerance_A
            equal = len(find_saddle_points(images[0], images[-1], images[top].positions))
            known["equal_saddle_points"] = equal
            if has_kinds_by_moment(images[0]):
                known["multiplicity_note"] = (
                    "Atoms of one element have different initial magnetic moments. They count as "
                    "different atoms in the number of equivalent events; if the calculator does "
                    "not use the moments, remove them from the structures."
                )
        except UserError as reason:
            known["multiplicity_note"] = str(reason)
    write_text(files.multiplicity, json.dumps(known))


def equivalent_events(files: RunDirectory, result: dict[str, Any]) -> dict[str, Any]:
    """Return the number of equivalent events of a run and their total rate, for result.json.

    Parameters
    ----------
    files
        The run directory.
    result
        The contents of result.json, with the rate of one event.

    Returns
    -------
    dict
        `multiplicity`, `reverse_multiplicity` from the product, `multiplicity_tolerance_A`,
        `multiplicity_note`, `equal_saddle_points`, `crossed_saddle_points` (`saddle_points`),
        `escape_rate_per_s` and `escape_rate_error_per_s`; unknown ones are None.
    """
    known = read_json(files.multiplicity)
    known |= saddle_points.count_crossed(files, result | known)
    return known | escape_rate(result | known)


def escape_rate(result: dict[str, Any]) -> dict[str, float | None]:
    """Return the total rate of all equivalent events and its error, under the keys of result.json.

    It contains all equal saddle points of each event, if it is known which the dynamics crosses.

    Parameters
    ----------
    result
        The contents of result.json, with the rate of one event and `multiplicity`.
    """
    number, paths = result.get("multiplicity"), saddle_points.factor_of(result)
    total: dict[str, float | None] = dict.fromkeys(("escape_rate_per_s", "escape_rate_error_per_s"))
    if number is not None and paths is not None:
        for name, value in zip(total, rate_of(result)[:2], strict=True):
            total[name] = None if value is None else number * paths * value
    return total


def escape_in_words(result: dict[str, Any]) -> str | None:
    """Return the number of equivalent events and their total rate in words; None if unknown."""
    number = result.get("multiplicity")
    if number is None:
        return None
    rate, error = (result.get(f"escape_rate{of}_per_s") for of in ("", "_error"))
    total = scientific(rate, error, "1/s")
    source = "" if total == NONE else f" ({rate_of(result)[3]})"
    return (
        f"By the symmetry of the initial state {number} "
        f"{'event is' if number == 1 else 'events are'} equivalent: total escape rate "
        f"{total}{source}."
    )


def rate_of(result: dict[str, Any]) -> tuple[float | None, float | None, float | None, str]:
    """Return the rate of one event, 1/s: value, error, error as a factor, and source.

    The rate with the transmission coefficient is used if result.json contains it. Otherwise the
    rate is that of transition state theory, which is an upper bound.
    """
    rate = result.get("rate_per_s")
    if rate is not None and rate > 0:
        factor = result.get("rate_error_factor")
        return rate, error_of_factor(rate, factor), factor, "transmission coefficient"
    rate, error = result.get("tst_rate_per_s"), result.get("tst_rate_error_per_s")
    factor = None if not rate or error is None else float(np.exp(error / rate))
    return rate, error, factor, "transition state theory"
