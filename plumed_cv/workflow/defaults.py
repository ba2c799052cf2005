"""Settings that are absent in the input and follow from the temperature, the path and the CV."""

import json
from typing import Any

from ase import units

from plumed_cv.common.files import read_json, write_text
from plumed_cv.config import Config, Sampling
from plumed_cv.cv import CollectiveVariable, energy
from plumed_cv.sampling import guard
from plumed_cv.sampling.task import MARGIN
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.mep import path_of


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
        The input with `sampling.margin` from `energy.margins` (0.2 for a molecule) and
        `sampling.atom_deviation_limit_A` from `guard.limit`, unless it gives them.
    """
    file = files.iteration(n) / "defaults.json"
    kept: dict[str, Any] = read_json(file) if file.exists() else {}
    known = len(kept)
    if config.sampling.margin is None and "margin" not in kept:
        kept["margin"] = _margins(config, files, n)
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
    return guard.limit(settings.atom_deviation_limit_A, variable, noise_A2)


def _margins(config: Config, files: RunDirectory, n: int) -> tuple[float, float]:
    """Margins of the grid along cv-(n-1), rounded to thousandths."""
    if not files.path.exists():
        return MARGIN, MARGIN
    variable = CollectiveVariable.load(files.cv(n - 1))
    kT_eV = units.kB * config.system.temperature_K
    below, above = energy.margins(path_of(files), variable, kT_eV)
    return round(below, 3), round(above, 3)
