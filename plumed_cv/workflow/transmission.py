"""The rate of a finished run, by the transmission coefficients of its dividing surfaces.

All files are in the folder `rate` of the iteration that gives the answer: surfaces.json, the shots
from each surface in step-k.json, and other-k.xyz, the minima that trajectories reached after they
left the process. A file is either complete or absent. Shots are made in batches, and existing shots
are reused.
"""

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from plumed_cv import freeenergy, rates, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json
from plumed_cv.common.numbers import error_of_factor, scientific
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.engines import Engine
from plumed_cv.input_file import Config
from plumed_cv.workflow import provenance
from plumed_cv.workflow.directory import RunDirectory, claimed
from plumed_cv.workflow.mep import read_end_states
from plumed_cv.workflow.shooting import Stage

LARGEST_FRICTION = 0.1  # times the time step: with more friction, crossings would be missed


def compute_rate(
    directory: Path | str,
    reporter: Reporter | None = None,
    *,
    error: float | None = None,
    shots: int | None = None,
    surface: float | None = None,
) -> dict[str, Any]:
    """Compute the rate of a run that has ended, whether it has converged or not.

    Parameters
    ----------
    directory
        The run directory.
    reporter
        Receives the progress.
    error, shots
        If not None, they replace `rate.error` and `rate.shots` of the input.
    surface
        Another dividing surface. The rate through it must equal the rate of the step whose basins
        it separates. The result is not written into result.json.

    Returns
    -------
    The contents of result.json. For another surface, `rate_per_s`, `transmission`, `tst_rate_per_s`
    through it, and more.

    Raises
    ------
    UserError
        If the run has not ended, its rate of transition state theory is unknown, the input cannot
        be read again, or there is no transmission coefficient (`refusal`).
    """
    files, config = provenance.read_finished_run(directory)
    settings = {"error": error, "shots": shots}
    given = {key: value for key, value in settings.items() if value is not None}
    config = config.model_copy(update={"rate": config.rate.model_copy(update=given)})
    if reason := refusal(config):
        raise UserError(f"{directory}: {reason}.")
    result = read_json(files.result)
    if not _has_surfaces(result):
        raise UserError(
            f"{directory}: the rate of transition state theory is unknown, so there is no dividing "
            "surface to start from. See the checks in report.html."
        )
    initial = read_end_states(config)[0]
    with claimed(files.root), sampling.open_engine(config, initial) as engine:
        provenance.check_same_input(files.root, config)
        stage = Stage(config, files, initial, result, engine, reporter or Log())
        if surface is not None:
            return stage.through(surface)
        return stage.complete()


def complete(
    config: Config,
    files: RunDirectory,
    engine: Engine,
    initial: Atoms,
    result: dict[str, Any],
    reporter: Reporter,
) -> dict[str, Any]:
    """Add the rate to the result of a converged run, and write it into result.json.

    If there is no rate, `rate_note` of the result gives the reason. A run that has not converged,
    or for which `rate.enabled` is false, keeps the rate of the shots that exist for its
    settings.

    Parameters
    ----------
    config, files, engine
        The input, the run directory and the open engine.
    initial
        The initial state.
    result
        The contents of result.json.
    reporter
        Receives the progress.
    """
    note, shots = refusal(config), 0
    if note is None and _has_surfaces(result):
        shots = Stage(config, files, initial, result, engine, reporter).count_shots()
    if not config.rate.enabled and not shots:
        return result
    if note is None and not (config.rate.enabled and result["converged"]):
        if shots:
            fewer = config.rate.model_copy(update={"shots": shots})
            config = config.model_copy(update={"rate": fewer})
        else:
            note = "the run has not converged; 'plumed-cv rate' computes the rate nevertheless"
    elif note is None and not _has_surfaces(result):
        note = "the rate of transition state theory is unknown"
    if note is None:
        try:
            return Stage(config, files, initial, result, engine, reporter).complete()
        except rates.NoShotsError as error:
            note = str(error)
    result = result | {"rate_note": note}
    files.write_result(result)
    if config.rate.enabled:
        reporter.say(f"No transmission coefficient: {note}.")
    return result


def _has_surfaces(result: dict[str, Any]) -> bool:
    """Whether transition state theory gives the rate of the whole and of every step."""
    rates_per_s = [
        result.get("tst_rate_per_s"),
        *(s["rate_per_s"] for s in result.get("steps", [])),
    ]
    return None not in rates_per_s


def refusal(config: Config) -> str | None:
    """Return why an input has no transmission coefficient, or None if it has one."""
    if config.engine.name == "gromacs":
        return (
            "engine.name = 'gromacs': with GROMACS, trajectories cannot be started from given "
            "velocities, so there is no transmission coefficient; the rate of transition state "
            "theory is an upper bound"
        )
    if config.sampling.thermostat == "brownian":
        return (
            "sampling.thermostat = 'brownian': Brownian dynamics has no velocities, so there is no "
            "transmission coefficient; sample with 'langevin' in a new directory"
        )
    turns = 1e-3 * config.sampling.friction_per_ps * config.sampling.timestep_fs
    if config.rate.dynamics == "langevin" and turns > LARGEST_FRICTION:
        return (
            f"rate.dynamics = 'langevin': with sampling.friction_per_ps = "
            f"{config.sampling.friction_per_ps:g} a trajectory crosses the surface several times "
            "within one time step; use rate.dynamics = 'nve'"
        )
    if biases := config.sampling.extra_biases:
        return (
            f"sampling.plumed: the profile contains the energy of {biases[0]}, but the dynamics of "
            "a transmission coefficient would not"
        )
    return None


def in_words(result: dict[str, Any]) -> str:
    """Return rate and transmission coefficient in one sentence."""
    rate = result["rate_per_s"]
    error = error_of_factor(rate, result["rate_error_factor"])
    value, of_value = (
        np.nan if number is None else number
        for number in (result["transmission"], result["transmission_error"])
    )
    kappa = freeenergy.Estimate(value, of_value, "")
    return f"Rate {scientific(rate, error, '1/s')}, transmission coefficient {kappa}."
