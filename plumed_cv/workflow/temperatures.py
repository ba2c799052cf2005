"""A run at several temperatures: one run for each, in folders of one directory.

    temperatures.json       the temperatures, in order
    300K/, 500K/, ...       run directories, as of runs at a single temperature
        beginning.json      results taken over from another one; not for the first
    rates.json, rates.csv   rates with errors, and the fit of ln k over 1/T
    arrhenius.png           the Arrhenius plot

A temperature starts from the last collective variable, the path and the profile (as the prior) of
the nearest finished temperature, nearest in 1/T. Therefore temperatures can be added later.
"""

import csv
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, replacing, write_text
from plumed_cv.common.numbers import with_error
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.figures import plot_arrhenius
from plumed_cv.input_file import Config
from plumed_cv.rates import arrhenius
from plumed_cv.rates.stationary import STEP_A
from plumed_cv.structures.frame import Array
from plumed_cv.workflow import harmonic_theory, procedure
from plumed_cv.workflow.directory import RunDirectory, claimed

COLUMNS = (
    *("event", "temperature_K", "rate_per_s", "error_factor", "transmission", "multiplicity"),
    *("flux_barrier_eV", "source"),
)


def run(
    config: Config,
    directory: Path | str,
    reporter: Reporter | None = None,
    *,
    inputs_only: bool = False,
    keep_going: bool = False,
) -> dict[str, Any]:
    """Start or continue the iterative procedure, at one temperature or at several.

    Parameters
    ----------
    config, directory, reporter, inputs_only
        As for `procedure.run`.
    keep_going
        Whether a temperature that fails is set aside, and the others are done. It does not apply to
        one temperature.

    Returns
    -------
    dict
        The result of `procedure.run`. For several temperatures, the contents of rates.json:
        `rates`, one row for each temperature, `fit`, and `failures`, the temperatures that were set
        aside and why. If the function returns before a sampling, also `directory`, the run
        directory of that temperature.

    Raises
    ------
    UserError
        As for `procedure.run`, or if the directory contains a run of the other kind.
    """
    reporter = reporter or Log()
    root = Path(directory).absolute()
    kelvin = config.system.temperatures_K
    _check_kind(root, bool(kelvin))
    if not kelvin:
        return procedure.run(config, root, reporter, inputs_only=inputs_only)
    with claimed(root):
        record = json.dumps({"temperatures_K": kelvin})
        write_text(RunDirectory(root).temperatures, record)
        failures = []
        for temperature_K in kelvin:
            spoken = _At(reporter, temperature_K)
            try:
                found = procedure.run(
                    _at(config, temperature_K),
                    folder_of(root, temperature_K),
                    spoken,
                    inputs_only=inputs_only,
                    before=_nearest(root, kelvin, temperature_K),
                )
            except UserError as error:
                if not keep_going:
                    raise
                failures.append({"temperature_K": temperature_K, "reason": str(error)})
                spoken.say(f"set aside: {error}")
                continue
            if "walkers" in found:
                return found | {"directory": str(folder_of(root, temperature_K))}
        if len(failures) == len(kelvin):
            raise UserError(str(failures[0]["reason"]))
        return write_rates(root, failures)


def sample(
    config: Config, directory: Path | str, walker: int = 0, reporter: Reporter | None = None
) -> None:
    """Do the share of one walker in a sampling before which `run` with `inputs_only` returned.

    Parameters
    ----------
    config, directory, walker, reporter
        As for `procedure.sample`. For several temperatures, the first unfinished one is sampled.

    Raises
    ------
    UserError
        As for `procedure.sample`.
    """
    root = Path(directory).absolute()
    kelvin = config.system.temperatures_K
    _check_kind(root, bool(kelvin))
    for temperature_K in kelvin:
        files = RunDirectory(folder_of(root, temperature_K))
        if not files.result.exists():
            procedure.sample(_at(config, temperature_K), files.root, walker, reporter)
            return
    procedure.sample(config, root, walker, reporter)


def compare_harmonic(
    directory: Path | str,
    reporter: Reporter | None = None,
    *,
    temperatures_K: Sequence[float] = (),
    step_A: float = STEP_A,
) -> dict[str, Any]:
    """Compute the harmonic rate of a run at one or several temperatures and compare it.

    Parameters
    ----------
    directory
        The run directory, with a minimum energy path.
    reporter
        Receives the progress.
    temperatures_K
        Temperatures of the rates, in addition to the temperature of the run.
    step_A
        As for `harmonic_theory.compute_harmonic`.

    Returns
    -------
    dict
        The contents of harmonic.json; for several temperatures, of the first, with the rates of
        all.

    Raises
    ------
    UserError
        As for `harmonic_theory.compute_harmonic`, or if the directory is not that of a run with a
        path.
    """
    reporter = reporter or Log()
    root = Path(directory).absolute()
    if not is_series(root):
        return harmonic_theory.compute_for_run(
            root, reporter, temperatures_K=temperatures_K, step_A=step_A
        )
    found: list[dict[str, Any]] = []
    done: list[RunDirectory] = []
    for temperature_K, place in iterate_runs(root):
        files = RunDirectory(place)
        if not files.path.exists():
            continue
        for other in done:  # if the cell is the same, so are the path and the Hessians
            if other.path.read_bytes() == files.path.read_bytes():
                files.harmonic.mkdir(exist_ok=True)
                for file in other.harmonic.glob("hessian-*.npz"):
                    with replacing(files.harmonic / file.name) as temporary:
                        shutil.copyfile(file, temporary)
                break
        spoken = _At(reporter, temperature_K)
        found.append(
            harmonic_theory.compute_for_run(
                place, spoken, temperatures_K=temperatures_K, step_A=step_A
            )
        )
        done.append(files)
    if not found:
        raise UserError(f"{root}: no temperature has a minimum energy path yet; run it first.")
    if any(files.result.exists() for files in done):
        write_rates(root)
    rows = {row["temperature_K"]: row for each in found for row in each["rates"]}
    return found[0] | {"rates": [rows[kelvin] for kelvin in sorted(rows)]}


def describe_anharmonicity(directory: Path | str) -> list[str]:
    """Return one sentence a temperature on anharmonicity, if harmonic theory is available."""
    root = Path(directory).absolute()
    places = [place for _, place in iterate_runs(root)] if is_series(root) else [root]
    results = [read_json(file) for place in places if (file := place / "result.json").exists()]
    return [found["harmonic"]["sentence"] for found in results if found.get("harmonic")]


def folder_of(root: Path, temperature_K: float) -> Path:
    """The run directory of a temperature."""
    return root / f"{temperature_K:g}K"


def is_series(root: Path) -> bool:
    """Return whether a directory belongs to a run at several temperatures."""
    return RunDirectory(root).temperatures.exists()


def iterate_runs(root: Path) -> Iterator[tuple[float, Path]]:
    """Yield the temperatures of a run, in order, and their run directories."""
    for temperature_K in read_json(RunDirectory(root).temperatures)["temperatures_K"]:
        yield float(temperature_K), folder_of(root, temperature_K)


def write_rates(root: Path, failures: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Write rates.json, rates.csv and arrhenius.png from the available results.

    Parameters
    ----------
    root
        Directory of a run at several temperatures.
    failures
        Temperatures that were set aside; those of rates.json if None.

    Returns
    -------
    dict
        The contents of rates.json.
    """
    root = root.absolute()
    event = root.name if root.name != "run" else root.parent.name
    rows = [  # in order of temperature
        _row(event, read_json(path / "result.json"))
        for _, path in sorted(iterate_runs(root))
        if (path / "result.json").exists()
    ]
    file = root / "rates.json"
    if failures is None:
        failures = read_json(file).get("failures", []) if file.exists() else []
    result = {
        "event": event,
        "rates": rows,
        "failures": list(failures),
        "fit": _fit_as_dict(rows),
        "units": {
            "temperature_K": "K",
            "rate_per_s": "1/s",
            "error_factor": "the rate is within this factor, one standard error",
            "flux_barrier_eV": "eV",
            "activation_entropy_kB": "Boltzmann's constant",
        },
    }
    write_text(file, json.dumps(result, indent=2, allow_nan=False))
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(root / "rates.csv", text.getvalue())
    plot_arrhenius(root / "arrhenius.png", rows, make_curve(rows), event)
    return result


def fit_in_words(fit: dict[str, Any] | None) -> list[str]:
    """Return the fit of rates.json in sentences."""
    if fit is None:
        return ["Activation enthalpy and entropy need rates with errors at two temperatures."]
    energy, enthalpy = (
        with_error(fit[f"activation_{name}_eV"], fit[f"activation_{name}_error_eV"])
        for name in ("energy", "enthalpy")
    )
    entropy = with_error(fit["activation_entropy_kB"], fit["activation_entropy_error_kB"], "k")
    words = [
        f"At {fit['temperature_K']:.0f} K ({fit['source']}): activation energy {energy} and "
        f"prefactor {fit['prefactor_per_s']:.2g} 1/s (Arrhenius, within a factor "
        f"{fit['prefactor_error_factor']:.2f}); activation enthalpy {enthalpy}, entropy {entropy} "
        "(Eyring)."
    ]
    if fit["curvature_eV2"] is not None:
        curvature = with_error(fit["curvature_eV2"], fit["curvature_error_eV2"], "eV²")
        words.append(
            f"The plot is curved: the second derivative of ln k with respect to 1/kT is "
            f"{curvature}, more than three standard errors."
        )
    if fit["note"]:
        words.append(fit["note"])
    return words


def make_curve(rows: Sequence[dict[str, Any]]) -> tuple[Array, Array] | None:
    """Return the fit of rates.json as `figures.draw_arrhenius` needs it; None without a fit."""
    fit, _, _ = _fit(rows)
    if fit is None:
        return None
    kelvin = [row["temperature_K"] for row in rows]
    inverse = np.linspace(1.0 / max(kelvin), 1.0 / min(kelvin), 200)
    return 1.0 / inverse, np.exp(fit.ln_rate(1.0 / inverse))


def _nearest(root: Path, kelvin: Sequence[float], temperature_K: float) -> RunDirectory | None:
    """The run that has ended at the nearest other temperature, in 1/T; None if none has."""
    others = sorted(kelvin, key=lambda other: abs(1.0 / other - 1.0 / temperature_K))
    places = (RunDirectory(folder_of(root, other)) for other in others if other != temperature_K)
    return next((files for files in places if files.result.exists()), None)


def _row(event: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one temperature in rates.json."""
    rate, _, factor, source = harmonic_theory.rate_of(result)
    bound, bound_error = result.get("tst_rate_per_s"), result.get("tst_rate_error_per_s")
    beside = result.get("harmonic") or {}
    return {
        "event": event,
        "temperature_K": result["temperature_K"],
        "rate_per_s": rate,
        "error_factor": factor,
        "transmission": result.get("transmission"),
        "rate_note": result.get("rate_note"),
        "multiplicity": result.get("multiplicity"),
        "flux_barrier_eV": result.get("flux_barrier_eV"),
        "flux_barrier_error_eV": result.get("flux_barrier_error_eV"),
        "source": source,
        "tst_rate_per_s": bound,
        "tst_error_factor": harmonic_theory.rate_of(
            {"tst_rate_per_s": bound, "tst_rate_error_per_s": bound_error}
        )[2],
        "escape_rate_per_s": result.get("escape_rate_per_s"),
        "harmonic_rate_per_s": beside.get("rate_per_s"),
        "converged": result["converged"],
        "directory": f"{result['temperature_K']:g}K",
    }


def _fit_as_dict(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the fit for rates.json; its note names the temperatures that have not converged."""
    fit, source, known = _fit(rows)
    if fit is None:
        return None
    found = {"source": source, **fit.as_dict()}
    notes = [found["note"]] if found["note"] else []
    if unsure := [f"{row['temperature_K']:g} K" for row in known if not row["converged"]]:
        notes.append(f"The fit contains runs that have not converged: {', '.join(unsure)}.")
    return found | {"note": " ".join(notes) or None}


def _fit(
    rows: Sequence[dict[str, Any]],
) -> tuple[arrhenius.ArrheniusFit | None, str, list[dict[str, Any]]]:
    """Fit the rates of the best source that is available at every temperature with a rate.

    Returns
    -------
    ArrheniusFit or None
        None if fewer than two temperatures have a rate with an error.
    str, list
        The source, and the rows that the fit contains.
    """
    rate, factor = "rate_per_s", "error_factor"
    known = _known(rows, rate, factor)
    same = {row["source"] for row in known}
    if len(same) == 1:
        source = str(*same)
    else:
        rate, factor, source = "tst_rate_per_s", "tst_error_factor", "transition state theory"
        known = _known(rows, rate, factor)
    found = arrhenius.fit(
        *([row[name] for row in known] for name in ("temperature_K", rate, factor))
    )
    return found, source, known


def _known(rows: Sequence[dict[str, Any]], rate: str, factor: str) -> list[dict[str, Any]]:
    """Return the rows with a rate and an error of it, by the names of their columns."""
    return [row for row in rows if row[rate] and row[factor] and row[factor] > 1.0]


def _at(config: Config, temperature_K: float) -> Config:
    return config.model_copy(update={"system": config.system.at(temperature_K)})


def _check_kind(root: Path, several: bool) -> None:
    """Refuse several temperatures in the directory of a run at one, and the reverse."""
    if several and (root / "input.json").exists():
        given = read_json(root / "input.json")["system"]["temperature_K"]
        raise UserError(
            f"{root}: contains a run at one temperature; name a new directory. (To use that run as "
            f"one of several, move its directory to {given:g}K in the new one.)"
        )
    if not several and is_series(root):
        raise UserError(
            f"{root}: contains a run at several temperatures; give their list as "
            "system.temperature_K, or name a new directory."
        )


class _At:
    """A reporter that begins every message with the temperature."""

    def __init__(self, reporter: Reporter, temperature_K: float) -> None:
        self._reporter, self._name = reporter, f"{temperature_K:g} K"

    def say(self, text: str) -> None:
        """Report a result."""
        self._reporter.say(f"{self._name}: {text}")

    def task(self, name: str, total: float | None) -> Any:
        """Show the progress of one task until the block ends."""
        return self._reporter.task(f"{self._name}: {name}", total)
