"""The iterative procedure of Sec. 2.4 (Fig. 4): sample, train, compare, repeat.

Everything lives in a run directory, in files that are whole or absent, so that a run that was
killed goes on where its files end:

    input.json              the input it was started with
    provenance.json         input, versions and machine of every start
    path.xyz, path.json     the minimum energy path, and what it took; none of a molecule
    components.json         number of principal components, and what it was chosen by
    cv-0.safetensors        the first collective variable; cv-n is trained in iteration n
    training-n.json         losses and variances of that training
    iteration-n/            the bABF run along cv-(n-1); with several walkers see `sampling`
        segment-kkk/        a part of it: plumed.dat, snapshots.dcd, colvar, babf.state, end.npz
        fes.dat             free energy profile
        result.json         barriers, and the similarity of cv-n to cv-(n-1)
    result.json, fes.dat, profiles.png, cv.safetensors, plumed.dat     the answer
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ase.io
import numpy as np
from ase import Atoms
from filelock import FileLock, Timeout

import plumed_cv
from plumed_cv import babf, convergence, cv, pca, provenance, sampling, symmetry
from plumed_cv.config import Config, Iteration, Sampling
from plumed_cv.cv import CollectiveVariable
from plumed_cv.energy import (
    SCREE,
    Localisation,
    Reconstruction,
    number_of_components,
    reconstruct,
)
from plumed_cv.engines import Engine, State
from plumed_cv.errors import UserError
from plumed_cv.figures import (
    plot_energy_profiles,
    plot_fve,
    plot_localisation,
    plot_profiles,
)
from plumed_cv.files import read_json, replacing, write_text
from plumed_cv.kernel import find_plumed
from plumed_cv.path import (
    EnergyPath,
    Files,
    cell_of,
    check_end_states,
    has_forces,
    load_path,
    minimum_energy_path,
    name_of,
    oriented,
    read_images,
    read_structure,
    with_forces,
)
from plumed_cv.plumed import babf_input, build_plugin
from plumed_cv.sampling import Update
from plumed_cv.trajectory import read_displacements

if TYPE_CHECKING:
    from plumed_cv.autoencoder import Training

NOISE_A2_PER_K = 0.005 / 300.0  # thermal variance of a coordinate in iron (Sec. 3.2)

# The results with an error bar, by the beginning of their keys, and how they are called.
RESULTS = {"barrier": "barrier", "flux_barrier": "flux barrier", "delta_F": "A(1)-A(0)"}


class Reporter(Protocol):
    """Who is told how the run goes."""

    def say(self, text: str) -> None:
        """Tell a result."""

    def task(self, name: str, total: float | None) -> AbstractContextManager[Update]:
        """Show the progress of one task until the block ends."""


class Silent:
    """A reporter that tells nobody."""

    def say(self, text: str) -> None:
        """Tell nobody."""

    def task(self, name: str, total: float | None) -> AbstractContextManager[Update]:
        """Show nothing."""
        return nullcontext(lambda done, note: None)


@dataclass(frozen=True)
class RunDirectory:
    """Names of the files of a run."""

    root: Path

    def cv(self, n: int) -> Path:
        """Model file of the collective variable xi^(n)."""
        return self.root / f"cv-{n}.safetensors"

    def training(self, n: int) -> Path:
        """What the training of xi^(n) was like."""
        return self.root / f"training-{n}.json"

    def iteration(self, n: int) -> Path:
        """Folder of the bABF run along xi^(n-1)."""
        return self.root / f"iteration-{n}"

    @property
    def path(self) -> Path:
        """The minimum energy path."""
        return self.root / "path.xyz"

    @property
    def components(self) -> Path:
        """The number of principal components, and what it was chosen by."""
        return self.root / "components.json"

    @property
    def provenance(self) -> Path:
        """With what it was computed."""
        return self.root / "provenance.json"

    @property
    def result(self) -> Path:
        """The answer."""
        return self.root / "result.json"


def run(
    config: Config,
    directory: Path | str,
    reporter: Reporter | None = None,
    *,
    inputs_only: bool = False,
) -> dict[str, Any]:
    """Run the iterative procedure, or go on with it.

    Parameters
    ----------
    config
        The input.
    directory
        The run directory; made if absent.
    reporter
        Is told how it goes.
    inputs_only
        Write what the next sampling begins with and return before it; `sample` does it, here or
        elsewhere, and `run` goes on from what there is then.

    Returns
    -------
    dict
        What `result.json` holds: `barrier_eV`, `delta_F_eV` and `flux_barrier_eV` with their
        `..._error_eV`, `converged`, `similarity`, `md_steps`, `iterations`, and more. If it has
        returned before a sampling: `iteration`, and `walkers`, the numbers of those to run.

    Raises
    ------
    UserError
        If the input does not fit, a file was damaged, another run works in the directory, or the
        directory holds a run with another input.
    """
    reporter = reporter or Silent()
    files = RunDirectory(Path(directory).absolute())
    initial, final = end_states(config)
    with _claimed(files.root), sampling.open_engine(config, initial) as engine:
        provenance.check_same_input(files.root, config)
        plumed = find_plumed()
        plugin = build_plugin(plumed)
        provenance.record(files.provenance, config, plumed, plugin)
        path = None
        if config.cv.alignment == "none":
            path = _stage_path(config, files, engine, initial, final, reporter)
        _stage_first_cv(config, files, path, (initial, final), reporter)
        iterations: list[dict[str, Any]] = []
        for n in range(1, config.iteration.maximum + 1):
            if inputs_only and not (files.iteration(n) / "result.json").exists():
                files.iteration(n).mkdir(exist_ok=True)
                waiting = sampling.prepare(_orders(config, files, n, plugin))
                if waiting:
                    return {"iteration": n, "walkers": [order.walker for order in waiting]}
            result = _stage_iteration(config, files, n, engine, plugin, initial, reporter)
            iterations.append(result)
            if _stopped_by(config.iteration, iterations) is not None:
                break
        return _finish(config, files, path, initial, plugin, iterations, reporter)


def sample(
    config: Config, directory: Path | str, walker: int = 0, reporter: Reporter | None = None
) -> None:
    """Do one walker's share of the sampling that `run` with `inputs_only` has returned before.

    Raises
    ------
    UserError
        If there is nothing to sample, another process works on it, or as for `run`.
    """
    reporter = reporter or Silent()
    files = RunDirectory(Path(directory).absolute())
    numbers = range(1, config.iteration.maximum + 1)
    open_ones = [n for n in numbers if not (files.iteration(n) / "result.json").exists()]
    if not (open_ones and files.iteration(open_ones[0]).is_dir()):
        raise UserError(
            f"{files.root}: there is nothing to sample; 'plumed-cv run --inputs-only' prepares it."
        )
    provenance.check_same_input(files.root, config)
    n = open_ones[0]
    orders = _orders(config, files, n, build_plugin(find_plumed()))
    if not 0 <= walker < len(orders):
        raise UserError(f"--walker {walker}: sampling.walkers = {len(orders)}, counted from 0.")
    order = orders[walker]
    with (
        sampling.open_engine(config, order.atoms) as engine,
        reporter.task(f"iteration {n}: bABF sampling", order.steps) as update,
    ):
        sampling.run_walker(order, engine, update)


def _stopped_by(limits: Iteration, iterations: list[dict[str, Any]]) -> str | None:
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


def end_states(config: Config) -> tuple[Atoms, Atoms]:
    """The initial and the final structure of the input, checked against each other."""
    if config.path.file is not None:
        images = read_images(config.path.file)
        return images[0], images[-1]
    assert config.system.initial is not None
    assert config.system.final is not None
    initial = oriented(read_structure(config.system.initial))
    final = oriented(read_structure(config.system.final))
    check_end_states(initial, final)
    powers = config.system.temperature_K ** np.arange(1.0, 1.0 + len(config.system.expansion))
    stretch = 1.0 + float(powers @ config.system.expansion)
    if not 0.9 < stretch < 1.1:
        raise UserError(
            f"system.expansion = {config.system.expansion}: the cell would be {stretch:.3g} times "
            "as long; give the coefficients of T, T^2, ... in 1/K, 1/K^2, ..."
        )
    for atoms in (initial, final):
        atoms.set_cell(atoms.cell * stretch, scale_atoms=True)
    return initial, final


def find_path(config: Config, output: Path, reporter: Reporter | None = None) -> EnergyPath:
    """Find the minimum energy path of the input, or read it, and write it as extended XYZ.

    Raises
    ------
    UserError
        If the input is of a molecule, or as for `path.minimum_energy_path`.
    """
    if config.cv.alignment != "none":
        raise UserError(
            "cv.alignment = 'optimal': no minimum energy path is sought for molecules; 'plumed-cv "
            "run' needs none."
        )
    initial, final = end_states(config)
    with sampling.open_engine(config, initial) as engine:
        return _find_path(config, output, engine, initial, final, reporter or Silent())


def energy(
    source: Config | Files,
    output: Path,
    *,
    n_structures: int | None = None,
    noise_A2: float | None = None,
    n_components: int | None = None,
    recipe: str | None = None,
    use_symmetry: bool | None = None,
    seed: int | None = None,
    engine: Config | None = None,
    reporter: Reporter | None = None,
) -> Reconstruction:
    """Get the energy along a path back by an autoencoder (Sec. 4.1) and write what was found.

    Parameters
    ----------
    source
        An input, whose path is read or found; or the files of the path's images.
    output
        Folder, made if absent, for energy.json, path.xyz, cv.safetensors, the pictures
        profiles.png, fve.png and localisation.png, and localisation.xyz: the end states with a
        column var_D, the amplitude of each atom in the components (Eq. 3, angstrom).
    n_structures, noise_A2, n_components, seed
        As for `energy.reconstruct`; the input's, or that function's own, if None.
    use_symmetry
        As for `energy.reconstruct`; as the input says, or true, if None.
    recipe
        A name of `autoencoder.RECIPES`; the input's training, or the default, if None.
    engine
        An input whose engine computes energies and forces that the files lack.
    reporter
        Is told how it goes.

    Raises
    ------
    UserError
        If the input or the images do not fit, or the folder cannot be written to.
    """
    reporter = reporter or Silent()
    _make_folder(output)
    if isinstance(source, Config):
        config = source
        seed = config.iteration.seed if seed is None else seed
        n_structures = n_structures or config.path.structures
        noise_A2 = noise_A2 or _noise(config)
        n_components = n_components or config.cv.components
        path = find_path(config, output / "path.xyz", reporter)
        training = _training(config, seed, recipe)
        use_symmetry = config.cv.symmetry if use_symmetry is None else use_symmetry
    else:
        seed = seed or 0
        if engine is None:
            path = load_path(source, reporter.say)
        else:
            images = read_images(source, reporter.say)
            with sampling.open_engine(engine, images[0]) as opened:
                path = _complete(images, name_of(source), opened, reporter)
        path.save(output / "path.xyz")
        training = _training(None, seed, recipe)
    with reporter.task("learning from the noisy path", training.n_epochs) as update:
        found = reconstruct(
            path,
            n_structures or 20_000,
            noise_A2 or 0.005,
            n_components,
            training,
            seed,
            lambda done, total, stage: update(done, stage),
            use_symmetry is not False,
        )
    found.variable.save(output / "cv.safetensors")
    plot_energy_profiles(output / "profiles.png", found)
    plot_fve(output / "fve.png", [(f"{len(path.species)} atoms", found)])
    plot_localisation(output / "localisation.png", found)
    write_localisation(output / "localisation.xyz", found.path, found.localisation)
    write_text(output / "energy.json", json.dumps(found.as_dict(), indent=1, allow_nan=False))
    return found


def blocks_of(folder: Path) -> tuple[list[babf.State], dict[str, list[np.ndarray]]]:
    """What each segment of an iteration added to the sums, and what it printed.

    Parameters
    ----------
    folder
        The folder of an iteration.

    Returns
    -------
    tuple
        The blocks, and by their names the columns of COLVAR, a series for every block.

    Raises
    ------
    UserError
        If it has no whole segment, or a file of one is damaged.
    """
    segments = sampling.segments(folder)
    if not segments:
        raise UserError(f"{folder}: holds no finished segment of a bABF run.")
    printed = [_read_colvar(segment / "colvar") for segment in segments]
    return sampling.blocks(folder), {name: [part[name] for part in printed] for name in printed[0]}


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


def _stage_path(
    config: Config,
    files: RunDirectory,
    engine: Engine,
    initial: Atoms,
    final: Atoms,
    reporter: Reporter,
) -> EnergyPath:
    if not files.path.exists():
        started = time.perf_counter()
        _find_path(config, files.path, engine, initial, final, reporter)
        taken = {"seconds": time.perf_counter() - started}
        write_text(files.root / "path.json", json.dumps(taken))
    return load_path(files.path)  # rounded as the file is, so that a resumed run is the same


def _complete(images: list[Atoms], name: str, engine: Engine, reporter: Reporter) -> EnergyPath:
    """A path of images, with energies and forces from the engine where they are missing."""
    missing = sum(not has_forces(image) for image in images)
    if missing:
        with reporter.task("energies and forces", len(images)) as update:
            images = with_forces(images, engine.calculator, lambda done: update(done, ""))
        reporter.say(f"{name}: energies and forces of {missing} images are the engine's.")
    return EnergyPath(tuple(images), name)


def _find_path(
    config: Config, output: Path, engine: Engine, initial: Atoms, final: Atoms, reporter: Reporter
) -> EnergyPath:
    if config.path.file is not None:
        images = read_images(config.path.file, reporter.say)
        path = _complete(images, name_of(config.path.file), engine, reporter)
        path.save(output)
        return path
    with reporter.task("minimum energy path", None) as update:
        path = minimum_energy_path(
            initial,
            final,
            engine.calculator,
            n_images=config.path.images,
            fmax_eV_A=config.path.fmax_eV_A,
            progress=lambda fmax, stage: update(0, f"{stage}, {fmax:.4f} eV/A"),
        )
    path.save(output)
    reporter.say(
        f"Minimum energy path at 0 K: barrier {path.barrier:.4f} eV, "
        f"end point {path.energies[-1]:+.4f} eV ({output.name})"
    )
    return path


def _stage_first_cv(
    config: Config,
    files: RunDirectory,
    path: EnergyPath | None,
    ends: tuple[Atoms, Atoms],
    reporter: Reporter,
) -> None:
    """Write cv-0 unless it is there, and choose the number of components by the noisy path."""
    if files.cv(0).exists() and (path is None or files.components.exists()):
        return
    if path is None:
        species = ends[0].get_chemical_symbols()
        serials = cv.select(config.cv.atoms, species)
        start, end = (atoms.positions[serials - 1] for atoms in ends)
        chosen = [species[serial - 1] for serial in serials]
        molecule = cv.linear(chosen, cell_of(ends[0]), start, end, "optimal", serials)
        molecule.save(files.cv(0))
        return
    rng = np.random.default_rng(config.iteration.seed)
    samples = path.noisy_samples(config.path.structures, _noise(config), rng)
    _choose_components(config, files, samples)
    first = cv.linear(path.species, path.cell, path.images[0].positions, path.images[-1].positions)
    if config.cv.start == "path":
        coordinate = np.linspace(0.0, 1.0, len(samples))
        first = _train(config, files, samples, coordinate, first, 0, reporter)
    first.save(files.cv(0))


def _choose_components(config: Config, files: RunDirectory, samples: np.ndarray) -> None:
    """Write the number of principal components D for structures like these."""
    write_text(files.components, json.dumps(_number_of_components(config, samples)))


def _number_of_components(config: Config, samples: np.ndarray) -> dict[str, Any]:
    """D of the input, or by the elbow (Sec. 2.2), which then is returned too."""
    n_structures, n_atoms, _ = samples.shape
    # Translations are no components, nor rotations with alignment.
    rigid = 3 if config.cv.alignment == "none" else 6
    most = min(n_structures - 1, 3 * n_atoms - rigid)
    if config.cv.components is not None:
        if config.cv.components > most:
            raise UserError(
                f"cv.components = {config.cv.components}: {n_atoms} atoms and "
                f"{n_structures} structures have at most {most}."
            )
        return {"components": config.cv.components}
    scree = pca.fit(samples, min(SCREE, most), config.iteration.seed)
    elbow = pca.elbow(scree.fraction_of_variance)
    wanted = number_of_components(elbow, n_structures, n_atoms, _training(config, 0))
    return {
        "components": min(wanted, most),
        "elbow": elbow,
        "fraction_of_variance": scree.fraction_of_variance.tolist(),
    }


def _noise(config: Config) -> float:
    """Variance of the noise on the path, A^2."""
    return config.path.noise_A2 or NOISE_A2_PER_K * config.system.temperature_K


def _stage_iteration(
    config: Config,
    files: RunDirectory,
    n: int,
    engine: Engine,
    plugin: Path,
    atoms: Atoms,
    reporter: Reporter,
) -> dict[str, Any]:
    """Sample along cv-(n-1), train cv-n, compare the two; returns the iteration's results."""
    folder = files.iteration(n)
    if (folder / "result.json").exists():
        return read_json(folder / "result.json")
    folder.mkdir(exist_ok=True)
    old = CollectiveVariable.load(files.cv(n - 1))
    seconds_sampling = _sample(config, files, n, engine, plugin, reporter)
    result = analyse(folder)
    if result["barrier_eV"] is None:
        raise UserError(
            f"{folder}: its {result['md_steps']} steps did not reach both end states, so there is "
            "no barrier; raise sampling.steps, in a new directory."
        )
    if not files.cv(n).exists():
        snapshots = [segment / "snapshots.dcd" for segment in sampling.segments(folder)]
        data = read_displacements(
            snapshots, old, cell_of(atoms), species=atoms.get_chemical_symbols()
        )
        if not files.components.exists():
            _choose_components(config, files, data)
        xi = old.encode(old.components(data))[:, 0]
        new = _train(config, files, data, xi, old, n, reporter)
        new.save(files.cv(n))
    new = CollectiveVariable.load(files.cv(n))
    result |= {
        "iteration": n,
        "cv": files.cv(n - 1).name,
        "kind": old.kind,
        "similarity": convergence.similarity(new, old),
        "seconds_sampling": seconds_sampling,
    }
    write_text(folder / "result.json", json.dumps(result, indent=2, allow_nan=False))
    if result["note"]:
        reporter.say(f"Iteration {n}: {result['note']}")
    reporter.say(
        f"Iteration {n} ({old.kind} CV): {summary(result)}; "
        f"1 - cos to the next CV {result['similarity']:.3f}"
    )
    return result


def analyse(folder: Path) -> dict[str, Any]:
    """Write `fes.dat` of an iteration's folder and return its barriers with errors, eV."""
    blocks, series = blocks_of(folder)
    profile = babf.profile(blocks)
    babf.write_fes(folder / "fes.dat", profile)
    estimates = {"barrier": profile.barrier, "delta_F": profile.delta_F}
    note = None
    try:
        flux = babf.flux(blocks, series["ae.node-0"], series["ae.gradnorm"], series["ae.invmass"])
    except UserError as error:  # the profile stands without it
        note = str(error)
        unknown = babf.Estimate(np.nan, np.nan)
        flux = babf.Flux(unknown, unknown, unknown, np.nan)
    estimates |= {"flux_barrier": flux.barrier, "activation_free_energy": flux.activation}
    parts = [read_json(segment / "segment.json") for segment in sampling.segments(folder)]
    guard = [
        {"xi": float(xi[-1]), "deviation_A": float(deviation[-1])}
        for part, xi, deviation in zip(parts, series["ae.node-0"], series["ae.dev"], strict=True)
        if part["stopped"]
    ]
    return as_json(estimates) | {
        "tst_rate_per_s": _or_none(flux.rate_per_s.value),
        "tst_rate_error_per_s": _or_none(flux.rate_per_s.error),
        "dividing_surface": _or_none(flux.surface),
        "note": note,
        "md_steps": sum(part["n_steps"] for part in parts),
        "restarts": len(guard),
        "restarted_at": guard,
    }


def as_json(estimates: dict[str, babf.Estimate]) -> dict[str, float | None]:
    """Values and errors by name, eV; what is not known is None."""
    result: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        for key, number in ((name, estimate.value), (f"{name}_error", estimate.error)):
            result[f"{key}_eV"] = _or_none(number)
    return result


def _or_none(number: float) -> float | None:
    """The number, or None where it is NaN, which JSON does not have."""
    return number if np.isfinite(number) else None


def _sample(
    config: Config,
    files: RunDirectory,
    n: int,
    engine: Engine,
    plugin: Path,
    reporter: Reporter,
) -> float:
    """Run what is missing of the bABF run of iteration n; returns its seconds."""
    orders = _orders(config, files, n, plugin)
    with reporter.task(f"iteration {n}: bABF sampling", config.sampling.steps) as update:
        return sampling.sample(orders, engine, update)


def _orders(config: Config, files: RunDirectory, n: int, plugin: Path) -> list[sampling.Order]:
    """What each walker has to do in iteration n."""
    atoms = end_states(config)[0]
    start = State.of(load_path(files.path).images[0] if files.path.exists() else atoms)
    prior = _prior(config, files, n)
    folder = files.iteration(n)
    return [
        sampling.Order(config, atoms, start, files.cv(n - 1), plugin, n, folder, walker, prior)
        for walker in range(config.sampling.walkers)
    ]


def _prior(config: Config, files: RunDirectory, n: int) -> Path | None:
    """Write the profile that the bias of iteration n starts from, if there is one."""
    kind, target = config.sampling.prior, files.iteration(n) / "prior.dat"
    if kind == "none" or (kind == "previous" and n == 1):
        return None
    if not target.exists():
        variable = CollectiveVariable.load(files.cv(n - 1))
        if kind == "energy":
            path = load_path(files.path)
            displacements, A = path.displacements, path.energies - path.energies[0]
        else:
            profile = babf.read_fes(files.iteration(n - 1) / "fes.dat")
            known = np.isfinite(profile.A)
            before = CollectiveVariable.load(files.cv(n - 2))
            displacements, A = before.path(profile.xi[known, None]), profile.A[known]
        xi = variable.encode(variable.components(displacements))[:, 0]
        babf.write_prior(target, babf.Grid(*sampling.grid(config.sampling)), xi, A)
    return target


def _train(
    config: Config,
    files: RunDirectory,
    displacements: np.ndarray,
    coordinate: np.ndarray,
    frame: CollectiveVariable,
    n: int,
    reporter: Reporter,
) -> CollectiveVariable:
    """Train cv-n on displacements at values of the path parameter or of cv-(n-1)."""
    # Here as in _training.
    from plumed_cv import autoencoder

    training = _training(config, config.iteration.seed + n)
    n_components = int(read_json(files.components)["components"])
    symmetric = config.cv.symmetry and files.path.exists()
    started = time.perf_counter()
    with reporter.task(f"training cv-{n}", training.n_epochs) as update:
        learned, principal, network = autoencoder.learn(
            displacements,
            frame,
            n_components,
            training,
            lambda epoch, epochs, loss: update(epoch, f"error {loss**0.5:.4f} A"),
            {"iteration": n, "temperature_K": config.system.temperature_K},
            coordinate,
            symmetry.of_path(load_path(files.path), frame) if symmetric else (),
            through_ends=n == 0,  # structures of the path, not of the dynamics
        )
    record = {
        "structures": len(displacements),
        "seconds": time.perf_counter() - started,
        "variances_A2": principal.variances.tolist(),
        "total_variance_A2": principal.total_variance,
        "losses_A2": network.losses.tolist(),
        "misalignment": network.misalignment,
    }
    write_text(files.training(n), json.dumps(record))
    return learned


def _training(config: Config | None, seed: int, recipe: str | None = None) -> "Training":
    """How networks are trained: by a named recipe, else the input's way, else the default."""
    # Here, because torch takes seconds to import and a resumed run may not need it.
    from plumed_cv.autoencoder import RECIPES, Training, lasting

    if recipe is not None:
        if recipe not in RECIPES:
            raise UserError(f"There is no recipe {recipe!r}; choose one of {', '.join(RECIPES)}.")
        return replace(RECIPES[recipe], seed=seed)
    if config is None:
        return Training(seed=seed)
    given = {
        "hidden": tuple(config.cv.hidden) if config.cv.hidden else None,
        "activation": config.cv.activation,
        "tied": config.cv.tied,
        "subspace": config.cv.subspace,
        "functions": config.cv.functions,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    recipe = config.cv.recipe
    if config.cv.epochs:
        chosen["schedule"] = lasting(RECIPES[recipe].schedule, config.cv.epochs)
    return replace(RECIPES[recipe], restarts=config.cv.restarts, seed=seed, **chosen)


def write_localisation(output: Path, path: EnergyPath, localisation: Localisation) -> None:
    """Write the end states of a path with each atom's var_D, for OVITO (extended XYZ)."""
    ends = [path.images[0].copy(), path.images[-1].copy()]
    for atoms in ends:
        atoms.arrays["var_D"] = localisation.amplitude
    with replacing(output) as temporary:
        columns = ["symbols", "positions", "var_D"]
        ase.io.write(temporary, ends, format="extxyz", columns=columns)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be used as a folder: {error.strerror}.") from None


def _finish(
    config: Config,
    files: RunDirectory,
    path: EnergyPath | None,
    atoms: Atoms,
    plugin: Path,
    iterations: list[dict[str, Any]],
    reporter: Reporter,
) -> dict[str, Any]:
    """Write the answer: result.json, fes.dat, profiles.png, cv.safetensors and plumed.dat."""
    last = iterations[-1]
    n = last["iteration"]
    stopped_by = _stopped_by(config.iteration, iterations)
    converged = stopped_by is not None
    result = {
        key: value
        for key, value in last.items()
        if key.endswith(("_eV", "_per_s")) or key in ("similarity", "dividing_surface", "note")
    } | {
        "converged": converged,
        "stopped_by": stopped_by or "iteration limit",
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
        Path("babf.state"),
        babf.read_state(files.root / "babf.state").tau,
    )
    write_text(files.root / "plumed.dat", production)
    write_text(files.result, json.dumps(result, indent=2, allow_nan=False))
    reporter.say(f"At {config.system.temperature_K:g} K: {summary(result)}")
    if not converged:
        reporter.say(
            f"Not converged: after {n} iterations 1 - cos is {last['similarity']:.3f} (equivalent "
            f"below {config.iteration.tolerance:g}) and the flux barrier "
            f"{in_words(last, 'flux_barrier')}. Raise iteration.maximum and run again, or sample "
            "longer in a new directory."
        )
    return result


def export(run_directory: Path, output: Path, plugin: Path) -> CollectiveVariable:
    """Write the CV of a run that has ended and a plumed.dat that samples it from the start.

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
    write_text(output / "plumed.dat", _production_input(temperature_K, settings, plugin))
    return variable


def _production_input(
    temperature_K: float,
    settings: Sampling,
    plugin: Path,
    state_in: Path | None = None,
    tau: float | None = None,
) -> str:
    """The plumed.dat that samples `cv.safetensors` as the run did, for any engine.

    A state is gone on from with its own weight `tau` of the prior.
    """
    lines = babf_input(
        plugin,
        Path("cv.safetensors"),
        temperature_K=temperature_K,
        ramp=sampling.ramp(settings),
        tau=tau,
        grid=sampling.grid(settings),
        kappa_eV=settings.kappa_eV,
        state_in=state_in,
        state_out=Path("babf-new.state" if state_in else "babf.state"),
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


@contextmanager
def _claimed(root: Path) -> Iterator[None]:
    """Make the run directory and keep other runs out of it."""
    lock = FileLock(root / ".lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{root}: another run is at work in this directory.") from None
    except OSError as error:
        raise UserError(f"{root}: cannot be used as a run directory: {error.strerror}.") from None
    try:
        for stale in root.rglob(".*-*.*"):  # what a killed process was writing
            if stale.is_file():
                stale.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
