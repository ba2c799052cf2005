"""The energy along a path at 0 K from a collective variable: `plumed-cv energy`."""

import json
from pathlib import Path

from plumed_cv import sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.cv.reconstruction import VARIANCE_A2, Reconstruction, reconstruct
from plumed_cv.figures import plot_energy_profiles, plot_fve, plot_localisation
from plumed_cv.input_file import Config
from plumed_cv.paths.path import Files, load_path, name_of, read_images
from plumed_cv.workflow.learning import estimate_noise_variance, training_of
from plumed_cv.workflow.mep import complete, find_path, read_end_states, types_of


def reproduce_energy(
    source: Config | Files,
    output: Path,
    *,
    n_structures: int | None = None,
    noise_A2: float | None = None,
    n_components: int | None = None,
    recipe: str | None = None,
    n_latent: int | None = None,
    device: str | None = None,
    use_symmetry: bool | None = None,
    atoms: str | float = "all",
    seed: int | None = None,
    engine: Config | None = None,
    reporter: Reporter | None = None,
) -> Reconstruction:
    """Reproduce the energy along a path by an autoencoder (Sec. 4.1) and write the results.

    Parameters
    ----------
    source
        An input, whose path is read or computed; or the files of the images of a path.
    output
        Folder, made if absent, for energy.json, path.xyz, cv.safetensors, the figures profiles.png,
        fve.png and localisation.png, and localisation.xyz: the end states with a column var_D, the
        amplitude of each atom in the components (Eq. 3, angstrom).
    n_structures, noise_A2, n_components, seed
        As for `reconstruct`; if None, those of the input or the defaults of that function.
    use_symmetry
        As for `reconstruct`; if None, that of the input, or true.
    atoms
        As for `reconstruct`. The atoms that take part are found among these.
    recipe
        A name in `training.RECIPES`; if None, the training of the input, or the default.
    n_latent, device
        Latent dimensions and device of the training; if None, those of the input, or 1 and "cpu".
    engine
        An input whose engine computes energies and forces of all images if some are missing.
    reporter
        Receives the progress.

    Raises
    ------
    UserError
        If the input or the images are unsuitable, or the folder cannot be written to.
    """
    reporter = reporter or Log()
    _make_folder(output)
    if isinstance(source, Config):
        config = source
        seed = config.iteration.seed if seed is None else seed
        n_structures = n_structures or config.path.structures
        n_components = n_components or config.cv.components
        with sampling.open_engine(config, read_end_states(config)[0]) as opened:
            path = find_path(config, output / "path.xyz", reporter, opened)
            noise_A2 = noise_A2 or estimate_noise_variance(config, path, opened)
        training = training_of(config, seed, recipe, n_latent, device)
        use_symmetry = config.cv.symmetry if use_symmetry is None else use_symmetry
    else:
        seed = seed or 0
        if engine is None:
            path = load_path(source, reporter.say)
        else:
            images = read_images(source, reporter.say, types_of(engine))
            with sampling.open_engine(engine, images[0]) as opened:
                path = complete(images, name_of(source), opened, reporter)
        path.save(output / "path.xyz")
        training = training_of(None, seed, recipe, n_latent, device)
    with reporter.task("learning from the noisy path", training.n_epochs) as update:
        found = reconstruct(
            path,
            n_structures,
            noise_A2 or VARIANCE_A2,
            n_components,
            training,
            seed,
            lambda done, total, stage: update(done, stage),
            use_symmetry is not False,
            atoms,
        )
    found.variable.save(output / "cv.safetensors")
    plot_energy_profiles(output / "profiles.png", found)
    plot_fve(output / "fve.png", [(f"{len(path.species)} atoms", found)])
    plot_localisation(output / "localisation.png", found)
    ends = path.of_atoms(found.selection.serials).images[:: len(path.images) - 1]
    found.localisation.write(output / "localisation.xyz", ends)
    write_text(output / "energy.json", json.dumps(found.as_dict(), indent=1, allow_nan=False))
    return found


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be used as a folder: {error.strerror}.") from None
