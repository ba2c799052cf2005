"""Settings that are absent in the input and follow from the temperature, the path and the CV."""

import json
from typing import Any

import numpy as np
from ase import units

from plumed_cv import freeenergy
from plumed_cv.common.files import read_json, write_text
from plumed_cv.cv import CollectiveVariable, energy
from plumed_cv.input_file import Config, Sampling
from plumed_cv.sampling import guard
from plumed_cv.sampling.task import MARGIN
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.mep import read_path

LEAST_RISE_KT = 3.0  # of the profile, from a state to the end of the grid
OF_STATE = 0.1  # a state, not a basin between the states, is below this xi
WIDER = 2.0  # the next margin, relative to one at whose end the profile is lower


def with_defaults(config: Config, files: RunDirectory, n: int) -> Config:
    """Return the input with the grid and the guard of iteration n, which are kept in a file.

    Parameters
    ----------
    config
        The input.
    files
        The run directory, with cv-(n-1) and, except for a molecule, the path.
    n
        Number of the iteration.

    Returns
    -------
    Config
        The input with `sampling.margin` from `energy.compute_margins` (0.2 for a molecule) and
        `sampling.atom_deviation_limit_A` from `guard.choose_limit`, unless it gives them, and
        `sampling.model_deviation_limit` from `deviation.write_limit` instead of "auto".
    """
    file = files.iteration(n) / "defaults.json"
    kept: dict[str, Any] = read_json(file) if file.exists() else {}
    known = len(kept)
    if config.sampling.margin is None and "margin" not in kept:
        kept["needed"] = _needed(config, files, n - 1)
        kept["margin"] = _margins(config, files, n, kept["needed"])
    if config.sampling.atom_deviation_limit_A == "auto" and "atom_deviation_limit_A" not in kept:
        variable = CollectiveVariable.load(files.cv(n - 1))
        kept["atom_deviation_limit_A"] = atom_limit(config.sampling, files, variable) or "off"
    if len(kept) > known:
        file.parent.mkdir(exist_ok=True)
        write_text(file, json.dumps(kept))
    chosen: dict[str, Any] = {}
    if config.sampling.margin is None:
        chosen["margin"] = tuple(kept["margin"])
    if config.sampling.atom_deviation_limit_A == "auto":
        chosen["atom_deviation_limit_A"] = kept["atom_deviation_limit_A"]
    if config.sampling.model_deviation_limit == "auto":
        chosen["model_deviation_limit"] = read_json(files.deviation)["limit"]
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=chosen)})


def atom_limit(
    settings: Sampling, files: RunDirectory, variable: CollectiveVariable
) -> float | None:
    """Limit of the guard for a CV of a run, angstrom; None if there is no guard.

    Parameters
    ----------
    settings
        The sampling of the input.
    files
        The run directory, which contains the noise on the path.
    variable
        The collective variable.
    """
    noise_A2 = None
    if files.components.exists():
        noise_A2 = read_json(files.components).get("noise_A2")
    return guard.choose_limit(settings.atom_deviation_limit_A, variable, noise_A2)


def _margins(
    config: Config, files: RunDirectory, n: int, needed: tuple[float, float]
) -> tuple[float, float]:
    """Margins of the grid along cv-(n-1), rounded to thousandths."""
    if not files.path.exists():
        return MARGIN, MARGIN
    variable = CollectiveVariable.load(files.cv(n - 1))
    kT_eV = units.kB * config.system.temperature_K
    below, above = energy.compute_margins(read_path(files), variable, kT_eV, needed)
    return round(below, 3), round(above, 3)


def _needed(config: Config, files: RunDirectory, n: int) -> tuple[float, float]:
    """Margins that the iterations up to n have shown to be needed, in units of xi, or 0.

    A state may be wider on its far side than towards the barrier, and only the sampling shows it.
    """
    file, defaults = files.iteration(n) / "fes.dat", files.iteration(n) / "defaults.json"
    kept = read_json(defaults) if defaults.exists() else {}
    if not file.exists() or "margin" not in kept:
        return 0.0, 0.0
    profile = freeenergy.read_fes(file)
    needed = []
    for xi, A, margin, before in zip(
        (profile.xi, 1.0 - profile.xi[::-1]),
        (profile.A, profile.A[::-1]),
        kept["margin"],
        kept.get("needed", (0.0, 0.0)),
        strict=True,
    ):
        state = np.isfinite(A) & (xi < OF_STATE)
        # A[0] is unknown if nothing came to the end of the grid.
        rise = A[0] - A[state].min() if state.any() else np.nan
        is_low = rise < LEAST_RISE_KT * units.kB * config.system.temperature_K
        needed.append(WIDER * margin if is_low else before)
    return needed[0], needed[1]
