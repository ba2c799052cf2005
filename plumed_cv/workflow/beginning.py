"""Results that a run at one temperature passes to the next: path, CV and profile."""

import json
import shutil
from dataclasses import replace

import numpy as np
from ase import Atoms

from plumed_cv import freeenergy
from plumed_cv.common.files import read_json, replacing, write_text
from plumed_cv.common.progress import Reporter
from plumed_cv.cv import CollectiveVariable, energy
from plumed_cv.engines import Engine
from plumed_cv.input_file import Config
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array, complete_cell, displacements
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.learning import MOST_FALL
from plumed_cv.workflow.mep import find_path

SAME_CELL_A = 1e-6  # largest difference of two cells that count as equal, angstrom


def take_over(
    config: Config,
    files: RunDirectory,
    before: RunDirectory,
    initial: Atoms,
    engine: Engine,
    reporter: Reporter,
) -> None:
    """Start a run from the results at another temperature, unless it has started already.

    The last collective variable of the other run becomes cv-0, and the profile of its answer
    becomes the prior of the first iteration. Its path is reused; if the cell differs, the path is
    relaxed in the new cell.

    Parameters
    ----------
    config
        The input.
    files
        The run directory.
    before
        The directory of the other run, which has ended.
    initial
        The initial state of the input, in the cell of this temperature.
    engine
        Computes energies and forces.
    reporter
        Receives the progress.
    """
    if files.cv(0).exists():
        return
    cell = cell_of(initial)
    path = None
    if config.cv.alignment == "none":
        path = _path(config, files, before, cell, engine, reporter)
    found = read_json(before.result)
    variable = CollectiveVariable.load(before.cv(len(found["iterations"])))
    if path is not None:
        variable = move_to_cell(variable, path)
        if (fall := energy.measure_fall(path, variable)) > MOST_FALL:
            reporter.say(
                f"The CV of {before.root.name} decreases by {fall:.2f} along the minimum energy "
                "path in this cell, so this temperature starts with a new CV."
            )
            return
    n = int(found["answer_iteration"])
    profile = freeenergy.read_fes(before.iteration(n) / "fes.dat")
    known = np.isfinite(profile.A)
    along = CollectiveVariable.load(before.cv(n - 1)).path(profile.xi[known, None])
    handed = {
        "from": before.root.name,
        "temperature_K": found["temperature_K"],
        "cv": before.cv(len(found["iterations"])).name,
        "xi": variable.encode(variable.components(along))[:, 0].tolist(),
        "A_eV": profile.A[known].tolist(),
    }
    if before.components.exists():
        components = read_json(before.components)
        if "noise_A2" in components and config.path.noise_A2 is None:  # harmonic: as kT
            components["noise_A2"] *= config.system.temperature_K / found["temperature_K"]
        write_text(files.components, json.dumps(components))
    if before.atoms.exists():
        with replacing(files.atoms) as temporary:
            shutil.copyfile(before.atoms, temporary)
    write_text(files.beginning, json.dumps(handed))
    variable.save(files.cv(0))  # last: this file marks that the run has started
    reporter.say(
        f"Starts from the CV, the profile and the path of {found['temperature_K']:g} K "
        f"({before.root.name})."
    )


def move_to_cell(variable: CollectiveVariable, path: EnergyPath) -> CollectiveVariable:
    """Return a CV with the reference and the end states of the same path in another cell.

    It depends on the same displacements as before. It is shifted and scaled to be 0 and 1 in the
    new end states. If the cell is unchanged, the variable itself is returned.
    """
    cell = path.cell
    if np.allclose(cell, variable.reference_cell, rtol=0, atol=SAME_CELL_A):
        return variable
    reference, chosen = variable.reference_positions, variable.serials - 1
    if cell.any():
        reference = reference @ np.linalg.solve(
            complete_cell(variable.reference_cell), complete_cell(cell)
        )
    ends: Array = np.stack(
        [
            displacements(image.positions[chosen], cell, reference, cell, variable.drift)
            for image in (path.images[0], path.images[-1])
        ]
    )
    xi = variable.encode(variable.components(ends))
    shift = variable.latent_shift + xi[0] / variable.latent_scale
    return replace(
        variable,
        reference_positions=reference,
        reference_cell=cell,
        end_displacements=ends,
        latent_shift=shift,
        latent_scale=variable.latent_scale / (xi[1] - xi[0]),
    )


def _path(
    config: Config,
    files: RunDirectory,
    before: RunDirectory,
    cell: Array,
    engine: Engine,
    reporter: Reporter,
) -> EnergyPath:
    """Return the minimum energy path of the other run, relaxed again if the cell differs."""
    if not files.path.exists():
        old = load_path(before.path)
        if np.allclose(old.cell, cell, rtol=0, atol=SAME_CELL_A):
            with replacing(files.path) as temporary:
                shutil.copyfile(before.path, temporary)
        else:
            find_path(config, files.path, reporter, engine, begin=old)
    return load_path(files.path)
