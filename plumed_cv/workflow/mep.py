"""The end states of an input, and the minimum energy path (MEP) between them."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
from ase import Atoms

from plumed_cv import sampling
from plumed_cv.config import Config
from plumed_cv.engines import Engine
from plumed_cv.errors import UserError
from plumed_cv.neb import minimum_energy_path, with_forces
from plumed_cv.path import EnergyPath, name_of, read_images
from plumed_cv.progress import Reporter, Silent
from plumed_cv.structures import check_end_states, has_forces, oriented, read_structure


def end_states(config: Config) -> tuple[Atoms, Atoms]:
    """The initial and the final structure of the input, in the cell of its temperature.

    Raises
    ------
    UserError
        If a file cannot be read, or the two do not fit each other.
    """
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


def find_path(
    config: Config,
    output: Path,
    reporter: Reporter | None = None,
    engine: Engine | None = None,
) -> EnergyPath:
    """Find the minimum energy path of the input, or read it, and write it as extended XYZ.

    Parameters
    ----------
    config
        The input.
    output
        The file.
    reporter
        Is told how it goes.
    engine
        The engine of the input where it is open; opened here if None.

    Raises
    ------
    UserError
        If the input is of a molecule, or as for `neb.minimum_energy_path`.
    """
    if config.cv.alignment != "none":
        raise UserError(
            "cv.alignment = 'optimal': no minimum energy path is sought for molecules; 'plumed-cv "
            "run' needs none."
        )
    reporter = reporter or Silent()
    initial, final = end_states(config)
    with nullcontext(engine) if engine else sampling.open_engine(config, initial) as engine:
        if config.path.file is not None:
            images = read_images(config.path.file, reporter.say)
            path = complete(images, name_of(config.path.file), engine, reporter)
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


def complete(images: list[Atoms], name: str, engine: Engine, reporter: Reporter) -> EnergyPath:
    """A path of images, with energies and forces from the engine where they are missing.

    Parameters
    ----------
    images
        K structures of the same atoms.
    name
        What sentences to the user call them.
    engine
        Computes what is missing.
    reporter
        Is told how many that were.
    """
    missing = sum(not has_forces(image) for image in images)
    if missing:
        with reporter.task("energies and forces", len(images)) as update:
            images = with_forces(images, engine.calculator, lambda done: update(done, ""))
        reporter.say(f"{name}: energies and forces of {missing} images are the engine's.")
    return EnergyPath(tuple(images), name)
