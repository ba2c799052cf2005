"""Settings that are absent in the input and follow from the temperature, the path and the CV."""

import json
from typing import Any

from ase import units

from plumed_cv.common.files import read_json, write_text
from plumed_cv.config import Config
from plumed_cv.cv import CollectiveVariable, energy
from plumed_cv.sampling.task import MARGIN
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.mep import path_of


def with_grid(config: Config, files: RunDirectory, n: int) -> Config:
    """Return the input with the margins of iteration n's grid, which are kept in a file.

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
        The input itself if it gives the margin; otherwise the input with `sampling.margin` from
        `energy.margins`, or 0.2 for a molecule.
    """
    if config.sampling.margin is not None:
        return config
    file = files.iteration(n) / "grid.json"
    if file.exists():
        margins = read_json(file)["margin"]
    else:
        margins = _margins(config, files, n)
        file.parent.mkdir(exist_ok=True)
        write_text(file, json.dumps({"margin": margins}))
    settings: dict[str, Any] = {"margin": tuple(margins)}
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=settings)})


def _margins(config: Config, files: RunDirectory, n: int) -> tuple[float, float]:
    """Margins of the grid along cv-(n-1), rounded to thousandths."""
    if not files.path.exists():
        return MARGIN, MARGIN
    variable = CollectiveVariable.load(files.cv(n - 1))
    kT_eV = units.kB * config.system.temperature_K
    below, above = energy.margins(path_of(files), variable, kT_eV)
    return round(below, 3), round(above, 3)
