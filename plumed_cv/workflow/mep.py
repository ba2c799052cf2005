"""The end states of an input, and the minimum energy path (MEP) between them."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
from ase import Atoms, units
from scipy.signal import find_peaks

from plumed_cv import sampling
from plumed_cv.common.errors import UserError, naming
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.engines import Engine
from plumed_cv.engines.lammps_potential import known_elements, names_atoms, potential_commands
from plumed_cv.input_file import Config, Lammps
from plumed_cv.paths.neb import find_minimum_energy_path, with_forces
from plumed_cv.paths.path import EnergyPath, load_path, name_of, read_images
from plumed_cv.structures import (
    CLOSEST_A,
    cell_of,
    check_end_states,
    check_held,
    check_order,
    check_range,
    drift_of,
    find_meant_order,
    fix,
    forget_moments,
    has_forces,
    held_atoms,
    hold,
    read_oriented,
    split_index,
)
from plumed_cv.structures.frame import displacements, in_words
from plumed_cv.structures.lammps_files import first_gap
from plumed_cv.workflow.directory import RunDirectory

LEAST_BARRIER_KT = 3.0  # an end state behind a lower barrier is named


def types_of(config: Config) -> Sequence[str] | None:
    """The elements of LAMMPS types 1, 2, ... according to the input; None if they are not given."""
    engine = config.engine
    if not isinstance(engine, Lammps):
        return None
    if engine.species is not None:
        return engine.species
    return known_elements(_commands(engine), ())


def _commands(engine: Lammps) -> tuple[str, ...]:
    """The commands of the potential."""
    return potential_commands(engine.potential, engine.directory or Path(), engine.units)


def read_end_states(
    config: Config, say: Callable[[str], None] = lambda text: None
) -> tuple[Atoms, Atoms]:
    """The initial and the final structure of the input, in the cell of its temperature.

    Parameters
    ----------
    config
        The input.
    say
        Called with a sentence about each change.

    Raises
    ------
    UserError
        If a file cannot be read, the two do not belong together, or one has constraints other than
        fixed atoms.
    """
    if config.path.file is not None:
        images = _images(config)
        with naming(name_of(config.path.file)):
            check_range(images[0], images[-1])
        return images[0], images[-1]
    assert config.system.initial is not None
    assert config.system.final is not None
    species = types_of(config)
    files = (config.system.initial, config.system.final)
    _check_numbers(config, files)
    initial, final = (
        read_oriented(file, species, config.system.fixed, moments=config.engine.may_use_moments)
        for file in files
    )
    names = f"{files[0]} and {files[1]}"
    with naming(names):
        check_end_states(initial, final)
    if config.cv.alignment == "none":  # a molecule may rotate, which moves all atoms
        if config.system.reorder:
            order = find_meant_order(initial, final)
            moved = int((order != np.arange(len(order))).sum())
            final = final[order]
            _check_mended(initial, final)
            say(f"Final state: {moved} atoms were sorted into the order of the initial state.")
        elif config.system.reorder is None:
            with naming(names):
                check_order(
                    initial,
                    final,
                    "set system.reorder = true to sort them into the order of the initial state, "
                    "or false if the atoms do exchange positions.",
                )
        with naming(names):
            check_range(initial, final)
        hold(final, initial)
    elif held_atoms(initial).size:
        raise UserError(
            "cv.alignment = 'optimal' fits a molecule that moves freely, but atoms are fixed; use "
            "cv.alignment = 'none'."
        )
    powers = config.system.temperature_K ** np.arange(1.0, 1.0 + len(config.system.expansion))
    stretch = 1.0 + float(powers @ config.system.expansion)
    if not 0.9 < stretch < 1.1:
        raise UserError(
            f"system.expansion = {config.system.expansion}: the cell would be {stretch:.3g} times "
            "as long; give the coefficients of T, T^2, ... in 1/K, 1/K^2, ..."
        )
    for atoms in (initial, final):
        atoms.positions *= stretch
        atoms.cell *= stretch
    return initial, final


def _images(config: Config, say: Callable[[str], None] = lambda text: None) -> list[Atoms]:
    """Return the images of the path of the input, with the fixed atoms of the input."""
    assert config.path.file is not None
    files = config.path.file
    _check_numbers(config, files if isinstance(files, list) else [files])
    images = read_images(config.path.file, say, types_of(config))
    if not config.engine.may_use_moments:
        for image in images:
            forget_moments(image)
    if config.system.fixed is not None:
        for image in images:
            with naming(f"system.fixed, {name_of(config.path.file)}"):
                fix(image, config.system.fixed)
                check_held(images[0], image)
            hold(image, images[0])
    return images


def _check_numbers(config: Config, files: Sequence[Path]) -> None:
    """Refuse LAMMPS files with gaps in the serial numbers, if the input uses such numbers.

    The atoms are sorted by them, and then have the numbers 1 to N.
    """
    uses = []
    if config.system.fixed is not None:
        uses.append("system.fixed")
    if isinstance(config.cv.atoms, str) and config.cv.atoms[:1].isdecimal():
        uses.append("cv.atoms")
    if config.sampling.plumed:
        uses.append("sampling.plumed")
    if isinstance(config.engine, Lammps):
        uses += [f"'{line}'" for line in _commands(config.engine) if names_atoms(line)]
    if not uses:
        return
    for file in files:
        gap = first_gap(split_index(file)[0])
        if gap is not None:
            raise UserError(
                f"{file}: its atom {gap[0]} has the serial number {gap[1]}, and {uses[0]} could "
                "mean either; number the atoms from 1 without gaps (reset_atoms id in LAMMPS) and "
                "adapt these numbers."
            )


def _check_mended(initial: Atoms, final: Atoms) -> None:
    """Refuse end states that are far from each other in any order."""
    cell = cell_of(initial)
    u = displacements(final.positions, cell, initial.positions, cell, drift_of(initial))
    far = int((np.linalg.norm(u, axis=1) > CLOSEST_A).sum())
    if 2 * far > len(initial):
        raise UserError(
            f"system.reorder = true: there is no order of the final state in which most atoms keep "
            f"their positions ({far} of {len(initial)} do not); build it from the initial state."
        )


def read_path(files: RunDirectory) -> EnergyPath:
    """Return the minimum energy path of a run directory; it is read once in a process.

    Raises
    ------
    UserError
        As for `load_path`.
    """
    return _loaded(files.path, files.path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _loaded(file: Path, changed: int) -> EnergyPath:
    """Read a path; `changed` is the time of the last change of its file."""
    return load_path(file)


def check_rotation(config: Config, initial: Atoms) -> None:
    """Refuse a structure that rotates freely, for a variable that changes with a rotation.

    Raises
    ------
    UserError
        If the structure is periodic along fewer than two directions, has fewer than three fixed
        atoms, and is not fitted to the initial state.
    """
    if config.cv.alignment != "none" or not _rotates(initial):
        return
    remedy = "fix at least three atoms"
    if not initial.pbc.any():
        remedy = "use cv.alignment = 'optimal', or " + remedy
    raise UserError(
        f"{_rotation(initial)}, and the collective variable would change with the rotation; "
        f"{remedy}."
    )


def check_partial_rotation(initial: Atoms) -> None:
    """Refuse a structure with a free rotation that harmonic theory cannot separate.

    The Hessian has no stiffness along a rotation. Only the rotations of a cluster or molecule
    without fixed atoms are removed from it.

    Raises
    ------
    UserError
        If the structure is a wire, or is not periodic and has one or two fixed atoms.
    """
    wire, fixed = bool(initial.pbc.any()), len(held_atoms(initial))
    if not _rotates(initial) or not (wire or fixed):
        return
    raise UserError(
        f"{_rotation(initial)}, and harmonic theory cannot remove this rotation from the "
        f"vibrations; fix at least three atoms{'' if wire else ', or none'}."
    )


def _rotates(initial: Atoms) -> bool:
    """Whether neither the cell nor fixed atoms hold the orientation of a structure."""
    return int(initial.pbc.sum()) < 2 and len(held_atoms(initial)) < 3


def _rotation(initial: Atoms) -> str:
    """Name the rotation of a structure that rotates freely."""
    what = "a wire rotates about its axis" if initial.pbc.any() else "a cluster or molecule rotates"
    return f"The structure is periodic along {in_words(initial.pbc)}: {what}"


def find_path(
    config: Config,
    output: Path,
    reporter: Reporter | None = None,
    engine: Engine | None = None,
    begin: EnergyPath | None = None,
) -> EnergyPath:
    """Find the minimum energy path of the input, or read it, and write it as extended XYZ.

    Atoms that are fixed in the end states do not move.

    Parameters
    ----------
    config
        The input.
    output
        The file.
    reporter
        Receives the progress.
    engine
        The engine of the input if it is open; opened here if None.
    begin
        As for `neb.find_minimum_energy_path`.

    Raises
    ------
    UserError
        If the input belongs to a molecule, and as for `neb.find_minimum_energy_path`.
    """
    if config.cv.alignment != "none":
        raise UserError(
            "cv.alignment = 'optimal': no minimum energy path is computed for molecules; "
            "'plumed-cv run' does not need one."
        )
    reporter = reporter or Log()
    initial, final = read_end_states(config, reporter.say)
    with nullcontext(engine) if engine else sampling.open_engine(config, initial) as engine:
        if config.path.file is not None:
            images = _images(config, reporter.say)
            path = complete(images, name_of(config.path.file), engine, reporter)
        else:
            with reporter.task("minimum energy path", None) as update:
                path = find_minimum_energy_path(
                    initial,
                    final,
                    engine.calculator,
                    n_images=config.path.images,
                    fmax_eV_A=config.path.fmax_eV_A,
                    progress=lambda fmax, stage: update(0, f"{stage}, {fmax:.4f} eV/A"),
                    begin=begin,
                    say=reporter.say,
                )
    path.save(output)
    name = "Minimum energy path" if config.path.file is None else "Path"
    reporter.say(
        f"{name} at 0 K: barrier {path.barrier:.4f} eV, end point {path.energies[-1]:+.4f} eV "
        f"({output.name})"
    )
    for warning in warnings_of(path, config.system.temperature_K, output.name):
        reporter.say(warning)
    return path


def warnings_of(path: EnergyPath, temperature_K: float, file: str) -> list[str]:
    """What in a path makes a rate between its ends meaningless, in sentences.

    Parameters
    ----------
    path
        The path.
    temperature_K
        Temperature of the rate.
    file
        Name of the file of the path.
    """
    energies, kT_eV = path.energies, units.kB * temperature_K
    lowest = int(energies.argmin())
    below = min(energies[0], energies[-1]) - energies[lowest]
    if below > kT_eV:
        return [
            f"Attention: structure {lowest + 1} of the path has an energy {below:.2f} eV below "
            "both end states, so the system does not stay in them. Use this structure "
            f"({file}@{lowest}) as an end state."
        ]
    tops, _ = find_peaks(energies, prominence=0.5 * kT_eV)
    first, last = (tops[0], tops[-1]) if len(tops) else (energies.argmax(),) * 2
    found = []
    for top, state, name in ((first, 0, "initial"), (last, -1, "final")):
        height = energies[top] - energies[state]
        if height < LEAST_BARRIER_KT * kT_eV:
            found.append(
                f"Attention: the {name} state is left over a barrier of {height:.3f} eV, which is "
                f"{height / kT_eV:.1f} kT at {temperature_K:g} K. Below {LEAST_BARRIER_KT:g} kT a "
                "system does not stay in a state long enough for a rate. Lower temperature_K, or "
                f"choose the next deeper minimum as the {name} state."
            )
    return found


def complete(images: list[Atoms], name: str, engine: Engine, reporter: Reporter) -> EnergyPath:
    """Return a path of images; if energies or forces are missing, all are those of the engine.

    Energies of two calculators cannot be compared.

    Parameters
    ----------
    images
        K structures of the same atoms.
    name
        Name of the images in messages.
    engine
        Computes energies and forces.
    reporter
        Receives a note about what was computed.
    """
    missing = sum(not has_forces(image) for image in images)
    if missing:
        with reporter.task("energies and forces", len(images)) as update:
            images = with_forces(images, engine.calculator, lambda done: update(done, ""))
        own = f", also those of the {len(images) - missing} that had their own"
        reporter.say(
            f"{name}: energies and forces of all {len(images)} images are the engine's"
            f"{own if missing < len(images) else ''}."
        )
    return EnergyPath(tuple(images), name)
