"""The collective variables of a run: training data, settings, and number of components.

torch is imported only where it is needed. This takes seconds, and a resumed run may not need it.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from plumed_cv import cv, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.common.files import read_json, write_text
from plumed_cv.common.progress import Reporter
from plumed_cv.common.threads import one_thread
from plumed_cv.cv import (
    CollectiveVariable,
    energy,
    equivalence,
    localisation,
    meanpath,
    pca,
    selection,
    symmetry,
)
from plumed_cv.cv.training import RECIPES, Training
from plumed_cv.engines import Engine
from plumed_cv.freeenergy import meanforce
from plumed_cv.input_file import Config
from plumed_cv.paths.noise import thermal_variance
from plumed_cv.paths.path import EnergyPath
from plumed_cv.sampling.folders import ATOMS
from plumed_cv.structures import cell_of, drift_of
from plumed_cv.structures.frame import Drift
from plumed_cv.structures.trajectory import read_displacements
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.mep import read_path

MOST_FALL = 0.05  # largest decrease of a CV along the path; a smaller one hardly matters


def training_of(
    config: Config | None,
    seed: int,
    recipe: str | None = None,
    n_latent: int | None = None,
    device: str | None = None,
) -> Training:
    """Settings of a training: a named recipe, otherwise those of the input, otherwise the default.

    Parameters
    ----------
    config
        The input, if there is one.
    seed
        Seed of weights and batches.
    recipe
        A name of `training.RECIPES`.
    n_latent, device
        Latent dimensions and device of the training; if not None, they replace those of the input.

    Raises
    ------
    UserError
        If there is no such recipe, or the settings contradict each other.
    """
    settings: dict[str, Any] = {"seed": seed, "n_latent": n_latent or 1, "device": device or "cpu"}
    if config is not None:
        settings["n_latent"] = n_latent or config.cv.latent
        settings["device"] = device or config.cv.device
    if recipe is not None:
        if recipe not in RECIPES:
            raise UserError(f"There is no recipe {recipe!r}; choose one of {', '.join(RECIPES)}.")
        return replace(RECIPES[recipe], **settings)
    if config is None:
        return replace(RECIPES["denoising"], **settings)
    given = {
        "hidden": tuple(config.cv.hidden) if config.cv.hidden else None,
        "activation": config.cv.activation,
        "tied": config.cv.tied,
        "subspace": config.cv.subspace,
        "functions": config.cv.functions,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    recipe = config.cv.recipe
    return replace(RECIPES[recipe], restarts=config.cv.restarts, **settings, **chosen)


def estimate_noise_variance(config: Config, path: EnergyPath, engine: Engine) -> float:
    """Variance of the noise on the path, A^2: the input's, or the initial state's."""
    if config.path.noise_A2 is not None:
        return config.path.noise_A2
    start = path.images[0]
    return thermal_variance(
        start.positions,
        path.held,
        lambda positions: engine.forces(positions, cell_of(start)),
        units.kB * config.system.temperature_K,
    )


def choose_atoms(
    config: Config, files: RunDirectory, path: EnergyPath, reporter: Reporter
) -> NDArray[np.int64]:
    """Choose the atoms of the CVs of a run, unless it has been done; return their serial numbers.

    They are written to a file with the rule and the share of the motion that they carry.

    Raises
    ------
    UserError
        As for `selection.choose_atoms`.
    """
    if not files.atoms.exists():
        found = selection.choose_atoms(path, config.cv.atoms)
        record = {
            "serials": found.serials.tolist(),
            "rule": found.rule,
            "share_of_motion": found.share,
        }
        write_text(files.atoms, json.dumps(record))
        reporter.say(selection.describe_choice(record, len(path.species)))
    return np.array(read_json(files.atoms)["serials"], dtype=np.int64)


@one_thread()
def write_first_cv(
    config: Config,
    files: RunDirectory,
    path: EnergyPath | None,
    ends: tuple[Atoms, Atoms],
    engine: Engine,
    reporter: Reporter,
) -> None:
    """Write cv-0 unless it exists, and choose the number of components from the noisy path.

    Parameters
    ----------
    config
        The input.
    files
        The run directory.
    path
        The minimum energy path; None for a molecule.
    ends
        The end states of the input, which are used if there is no path.
    engine
        Its forces give the stiffness of the initial state, unless the input gives the noise.
    reporter
        Receives the progress.

    Raises
    ------
    UserError
        If the end states are the same, the input asks for more components than possible, or a CV
        that is trained on the path does not rise along it.

    Notes
    -----
    If the linear CV does not rise along the path, a CV is trained on the path instead.
    """
    if files.cv(0).exists() and (path is None or files.components.exists()):
        return
    start, end = ends if path is None else (path.images[0], path.images[-1])
    species, cell = start.get_chemical_symbols(), cell_of(start)
    atoms: str | NDArray[np.int64]
    if path is not None:
        atoms = choose_atoms(config, files, path, reporter)
    else:
        assert isinstance(config.cv.atoms, str)
        atoms = "all" if config.cv.atoms == "auto" else config.cv.atoms
    first = cv.linear(
        species,
        cell,
        start.positions,
        end.positions,
        config.cv.alignment,
        atoms,
        drift_of(start),
    )
    if path is not None:
        check_components(config, path)
        rng = np.random.default_rng(config.iteration.seed)
        variance = estimate_noise_variance(config, path, engine)
        part = path.of_atoms(first.serials)
        n_structures = config.path.structures or localisation.structures_for(part, variance)
        samples = part.noisy_samples(n_structures, variance, rng)
        _choose_components(config, files, samples, first.drift, variance)
        fall = energy.measure_fall(path, first)
        if config.cv.start == "linear" and fall > MOST_FALL:
            reporter.say(
                f"The linear CV decreases by {fall:.2f} along the minimum energy path, so it does "
                "not distinguish all points of the path: the first CV is trained on it (cv.start "
                '= "path").'
            )
        if config.cv.start == "path" or fall > MOST_FALL:
            coordinate = np.linspace(0.0, 1.0, len(samples))
            first = _train(config, files, samples, coordinate, first, 0, reporter)
    first.save(files.cv(0))


@one_thread()
def train_on_snapshots(
    config: Config, files: RunDirectory, atoms: Atoms, n: int, reporter: Reporter
) -> None:
    """Write cv-n, trained on the samples of iteration n along cv-(n-1).

    Parameters
    ----------
    config
        The input.
    files
        The run directory.
    atoms
        All atoms of the snapshots; the collective variable may use some of them.
    n
        Number of the iteration.
    reporter
        Receives the progress.

    Raises
    ------
    UserError
        If the CV does not rise along the minimum energy path.
    """
    old = CollectiveVariable.load(files.cv(n - 1))
    data = _displacements(_sampled(files, n), old, atoms)
    if not files.components.exists():
        _choose_components(config, files, data, old.drift)
    xi = old.encode(old.components(data))[:, 0]
    _train(config, files, data, xi, old, n, reporter).save(files.cv(n))


@one_thread()
def compute_noise_floor(
    config: Config, files: RunDirectory, atoms: Atoms, n: int, reporter: Reporter
) -> float | None:
    """Mean of 1 - cos (Eq. 17) between two variables learned from independent samples.

    Two variables are trained in the same way as cv-n, each on half of the segments of iteration n
    (`GroupKFold`: no segment is in both halves), and compared along the path of cv-(n-1). Each has
    the noise of half of the data, and 1 - cos adds like a variance. The result is therefore twice
    that of two variables of all data. Nothing is written.

    Parameters
    ----------
    config, files, atoms, n, reporter
        As for `train_on_snapshots`.

    Returns
    -------
    float or None
        None if half of the data is too little for a training.
    """
    selection = require("sklearn.model_selection")  # importing it takes most of a second
    old = CollectiveVariable.load(files.cv(n - 1))
    segments = [_displacements([segment], old, atoms) for segment in _sampled(files, n)]
    if len(segments) < 2:
        return None
    data = np.concatenate(segments)
    xi = old.encode(old.components(data))[:, 0]
    group = np.repeat(np.arange(len(segments)), [len(segment) for segment in segments])
    folds = selection.GroupKFold(2).split(data, groups=group)
    halves = []
    try:
        for half, (_, chosen) in enumerate(folds, start=1):
            halves.append(_train(config, files, data[chosen], xi[chosen], old, n, reporter, half))
    except UserError:
        return None
    return 0.5 * equivalence.compare_isosurfaces(halves[0], halves[1], along=old).mean


def _sampled(files: RunDirectory, n: int) -> list[Path]:
    """Segments of iteration n that have structures."""
    parts = sampling.list_segments(files.iteration(n))
    return [part for part in parts if any(file.exists() for file in _structures(part))]


def _structures(segment: Path) -> tuple[Path, Path]:
    """Files with the structures of a segment: of the CV's atoms, and whole."""
    return segment / ATOMS, segment / "snapshots.dcd"


def _displacements(
    segments: list[Path], old: CollectiveVariable, atoms: Atoms
) -> NDArray[np.float32]:
    """Displacements of all structures of the given segments, shape (M, N, 3), angstrom."""
    cell, species = cell_of(atoms), atoms.get_chemical_symbols()
    parts = []
    for segment in segments:
        of_atoms, whole = _structures(segment)
        if of_atoms.exists():
            with sampling.remedy(segment):
                positions, _ = meanforce.read_atoms(of_atoms, old.n_atoms)
            parts.append(old.displacements(positions, cell).astype(np.float32))
        else:
            parts.append(read_displacements([whole], old, cell, species=species))
    return np.concatenate(parts)


def choose_functions(config: Config, path: EnergyPath | None) -> int | None:
    """Number of polynomials of the mean path at finite temperature, from the input or the length.

    None for a molecule, which has no path.
    """
    if config.cv.functions is not None or path is None:
        return config.cv.functions
    steps = np.linalg.norm(np.diff(path.displacements, axis=0), axis=(1, 2))
    return meanpath.functions_for(float(steps.sum()))


def check_components(config: Config, path: EnergyPath | None = None) -> None:
    """Refuse an input that asks for more principal components than the mean path will have.

    Parameters
    ----------
    config
        The input.
    path
        The minimum energy path, from which `cv.functions` follows if it is absent in the input. If
        None, an input is refused only if it gives both, or belongs to a molecule.

    Raises
    ------
    UserError
        If the input asks for too many, and as for `training_of`.
    """
    wanted = config.cv.components
    if wanted is None or (
        path is None and config.cv.functions is None and config.cv.alignment == "none"
    ):
        return
    training = replace(training_of(config, 0), functions=choose_functions(config, path))
    if (most := training.limited(wanted)) < wanted:
        raise UserError(
            f"cv.components = {wanted}: the mean path has {most}; set cv.functions = {wanted + 1} "
            "or more, or remove components."
        )


def _train(
    config: Config,
    files: RunDirectory,
    displacements: np.ndarray,
    coordinate: np.ndarray,
    variable: CollectiveVariable,
    n: int,
    reporter: Reporter,
    half: int | None = None,
) -> CollectiveVariable:
    """Train cv-n on displacements at values of the path parameter or of cv-(n-1).

    For a half of the data, 1 or 2, no record is written.
    """
    from plumed_cv.cv import learning

    # The halves also have initial weights of their own, which are part of the noise.
    training = training_of(config, config.iteration.seed + n + 1000 * (half or 0))
    path = read_path(files) if files.path.exists() else None
    if n > 0:
        training = replace(training, functions=choose_functions(config, path))
    n_components = int(read_json(files.components)["components"])
    at_rest = n == 0  # structures of the path, not of the dynamics
    started = time.perf_counter()
    of = "" if half is None else f" on half {half} of the data"
    with reporter.task(f"training cv-{n}{of}", training.n_epochs) as update:
        learned, principal, network = learning.learn(
            displacements,
            variable,
            training.limited(n_components, at_rest),
            training,
            lambda epoch, epochs, loss: update(epoch, f"error {loss**0.5:.4f} A"),
            {"iteration": n, "temperature_K": config.system.temperature_K},
            coordinate,
            symmetry.find_path_operations(path, variable.serials)
            if config.cv.symmetry and path is not None
            else (),
            through_ends=at_rest,
        )
    if half is not None:
        return learned
    record = {
        "structures": len(displacements),
        "functions": training.functions or meanpath.functions_at_rest(len(displacements)),
        "seconds": time.perf_counter() - started,
        "variances_A2": principal.variances.tolist(),
        "total_variance_A2": principal.total_variance,
        "losses_A2": network.losses.tolist(),
        "misalignment": network.misalignment,
    }
    write_text(files.training(n), json.dumps(record))
    if path is not None:
        fall = energy.measure_fall(path, learned)
        if fall > MOST_FALL:
            raise UserError(
                f"{files.root}: cv-{n}, which was just trained, decreases by {fall:.2f} along the "
                f"minimum energy path, more than {MOST_FALL:g}, so a profile along it would not be "
                "of this process; "
                + ("raise path.structures" if at_rest else "sample longer (sampling.steps)")
                + ", or use more cv.components and cv.functions, in a new directory."
            )
    return learned


def _choose_components(
    config: Config,
    files: RunDirectory,
    samples: np.ndarray,
    drift: Drift,
    noise_A2: float | None = None,
) -> None:
    """Write the number of principal components D for structures like these, and their noise."""
    found = _number_of_components(config, samples, drift)
    if noise_A2 is not None:
        found["noise_A2"] = noise_A2
    write_text(files.components, json.dumps(found))


def _number_of_components(config: Config, samples: np.ndarray, drift: Drift) -> dict[str, Any]:
    """D of the input, or D with the elbow from which it follows (Sec. 2.2)."""
    aligned = config.cv.alignment != "none"
    if config.cv.components is not None:
        most = pca.most_components(samples, aligned=aligned, drift=drift)
        if config.cv.components > most:
            n_structures, n_atoms, _ = samples.shape
            raise UserError(
                f"cv.components = {config.cv.components}: {n_atoms} atoms and "
                f"{n_structures} structures have at most {most}."
            )
        return {"components": config.cv.components}
    scree = pca.choose_components(samples, config.iteration.seed, aligned=aligned, drift=drift)
    return {
        "components": scree.n_components,
        "elbow": scree.elbow,
        "fraction_of_variance": scree.fraction_of_variance.tolist(),
    }
