"""Runs and paths from ASE structures and calculators, without an input file."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from plumed_cv import input_file, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.common.progress import Callback, Log, Reporter
from plumed_cv.input_file import Config
from plumed_cv.paths.neb import find_minimum_energy_path
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures import check_end_states, orient, strip
from plumed_cv.workflow import procedure
from plumed_cv.workflow.answer import Result, read_result

# True for progress bars, or a function that is called with the name of the task, the amount of work
# done, the total amount (None if unknown) and a short note.
Progress = bool | Callable[[str, float, float | None, str], None]

_SAME_FORCES_EV_A = 1e-6  # largest difference between a calculator and its copy


def run(
    initial: Atoms,
    final: Atoms,
    *,
    temperature_K: float,
    directory: Path | str,
    calculator: Any = None,
    potential: Sequence[str] | None = None,
    progress: Progress = False,
    **sections: Mapping[str, Any],
) -> Result:
    """Learn the CV between two structures and compute its free energy profile, barrier and rate.

    If it is called again with the same arguments, it continues a stopped run, or returns the result
    of a finished run. The structures are kept in the directory.

    Parameters
    ----------
    initial, final
        End states: the same atoms in the same order and cell.
    temperature_K
        Temperature, K.
    directory
        The run directory; made if absent.
    calculator
        ASE calculator: a class, a function that makes one, `functools.partial` of these with
        keywords, a dotted name, or an instance that can be made again from its parameters. The
        dynamics runs in a process of its own, which imports the calculator by name. A function must
        therefore be in a module, not in the notebook.
    potential
        Instead of a calculator: LAMMPS commands for the potential, in units metal.
    progress
        True shows progress bars. A function is called with the name of the task, the amount of work
        done, the total amount (None if unknown) and a short note. Results are logged by `logging`,
        logger "plumed_cv", level INFO.
    sections
        Sections of the input file with their keys, for example `sampling={"steps": 50_000}`;
        `plumed-cv run --keys` lists them. `engine={"committee": [...]}` may contain calculators.

    Raises
    ------
    UserError
        If an argument is impossible, and as for `workflow.run`.
    """
    config = make_config(
        initial,
        final,
        temperature_K=temperature_K,
        directory=directory,
        calculator=calculator,
        potential=potential,
        **sections,
    )
    return run_input(config, directory, progress=progress)


def run_input(
    source: Config | Path | str,
    directory: Path | str | None = None,
    *,
    progress: Progress = False,
) -> Result:
    """Start or continue the run of an input file, like `plumed-cv run`.

    Parameters
    ----------
    source
        The input file (TOML), or the result of `load_config` or `make_config`.
    directory
        The run directory; by default `run` in the folder of the input file.
    progress
        As for `run`.

    Raises
    ------
    UserError
        As for `load_config` and `workflow.run`.
    """
    if isinstance(source, Config):
        config = source
        if directory is None:
            raise UserError("run_input: this configuration needs the argument directory.")
    else:
        config = input_file.load(source)
        directory = Path(source).parent / "run" if directory is None else directory
    procedure.run(config, directory, _reporter(progress))
    return read_result(directory)


def make_config(
    initial: Atoms,
    final: Atoms,
    *,
    temperature_K: float,
    directory: Path | str,
    calculator: Any = None,
    potential: Sequence[str] | None = None,
    **sections: Mapping[str, Any],
) -> Config:
    """Make the configuration of a run, and write its structures into the run directory.

    Parameters
    ----------
    initial, final, temperature_K, directory, calculator, potential, sections
        As for `run`.

    Raises
    ------
    UserError
        If an argument is impossible, the calculator cannot be made again from its name, or the
        directory contains other structures.
    """
    folder = Path(directory).absolute()
    content: dict[str, Any] = {name: dict(section) for name, section in sections.items()}
    content["engine"] = _engine(calculator, potential, content.get("engine"), initial)
    files = {"initial": folder / "initial.xyz", "final": folder / "final.xyz"}
    content["system"] = {
        **content.get("system", {}),
        **{name: str(file) for name, file in files.items()},
        "temperature_K": temperature_K,
    }
    config = input_file.validate(content, "make_config")
    check_end_states(initial, final)
    folder.mkdir(parents=True, exist_ok=True)
    for file, atoms in zip(files.values(), (initial, final), strict=True):
        _write(file, atoms)
    return config


def find_path(
    initial: Atoms,
    final: Atoms,
    *,
    calculator: Any = None,
    potential: Sequence[str] | None = None,
    engine: Mapping[str, Any] | None = None,
    n_images: int = 19,
    fmax_eV_A: float = 1e-3,
    progress: Callable[[float, str], None] = lambda fmax, stage: None,
) -> EnergyPath:
    """Relax two end states and find the minimum energy path between them.

    Parameters
    ----------
    initial, final, calculator, potential
        As for `run`.
    engine
        Instead of both: the section `engine` of the input file.
    n_images
        Number of images of the elastic band, including the end states.
    fmax_eV_A
        Largest remaining force on an atom, eV/angstrom.
    progress
        Called after every optimisation step with the largest force and the name of the stage.

    Raises
    ------
    UserError
        If an argument is impossible, and as for `paths.neb.find_minimum_energy_path`.
    """
    section = _engine(calculator, potential, engine, initial)
    content = {
        "system": {"initial": "initial", "final": "final", "temperature_K": 1.0},
        "engine": section,
    }
    config = input_file.validate(content, "find_path")
    start, end = orient(initial), orient(final)
    with sampling.open_engine(config, start) as opened:
        return find_minimum_energy_path(
            start, end, opened.calculator, n_images, fmax_eV_A, progress=progress
        )


def _reporter(progress: Progress) -> Reporter:
    if callable(progress):
        return Callback(progress)
    if not progress:
        return Log()
    from plumed_cv.common.bars import Bars

    return Bars()


def _engine(
    calculator: Any, potential: Sequence[str] | None, given: Mapping[str, Any] | None, atoms: Atoms
) -> dict[str, Any]:
    """The section `engine` of the input."""
    if (calculator is not None) + (potential is not None) + bool(given and "name" in given) != 1:
        raise UserError(
            "Give one of calculator (ASE), potential (LAMMPS commands) and engine (a section "
            "of the input file with its name)."
        )
    section: dict[str, Any] = {"directory": str(Path.cwd()), **(given or {})}
    section["committee"] = [
        member if isinstance(member, Mapping) else _ase(member, atoms)
        for member in section.get("committee", [])
    ]
    if potential is not None:
        section |= {"name": "lammps", "potential": list(potential)}
    if calculator is not None:
        section |= _ase(calculator, atoms)
    return section


def _ase(calculator: Any, atoms: Atoms) -> dict[str, Any]:
    """The keys of a section that names an ASE calculator."""
    name, arguments = _by_name(calculator, atoms)
    return {"name": "ase", "calculator": name, "arguments": arguments}


def _by_name(calculator: Any, atoms: Atoms) -> tuple[str, dict[str, Any]]:
    """Return dotted name and arguments that make a calculator in another process."""
    if isinstance(calculator, str):
        return calculator, {}
    arguments: dict[str, Any] = {}
    maker = calculator
    if isinstance(calculator, partial):
        if calculator.args:
            raise UserError("calculator: give functools.partial keywords, not positional arguments")
        maker, arguments = calculator.func, dict(calculator.keywords)
    elif not isinstance(calculator, type) and hasattr(calculator, "get_forces"):
        maker = type(calculator)
        arguments = dict(calculator.todict()) if hasattr(calculator, "todict") else {}
        _check_same(calculator, maker, arguments, atoms)
    if not callable(maker) or not hasattr(maker, "__qualname__"):
        raise UserError(
            f"calculator = {calculator!r}: is not an ASE calculator and makes none; give one."
        )
    module, name = maker.__module__, maker.__qualname__
    if module == "__main__" or "<" in name:
        raise UserError(
            f"calculator = {name}: is defined in the notebook or script itself, or in a function, "
            "but the process of the dynamics imports it by name; put it into a file of its own, "
            "such as potential.py, and import it from there."
        )
    try:
        json.dumps(arguments)
    except (TypeError, ValueError):
        raise UserError(
            f"calculator = {name}: its arguments {sorted(arguments)} must be numbers, texts, lists "
            "or dictionaries, which the run directory keeps; write a function in a module that "
            "makes the calculator."
        ) from None
    return f"{module}.{name}", arguments


def _check_same(calculator: Any, maker: type, arguments: dict[str, Any], atoms: Atoms) -> None:
    """Refuse an instance that cannot be made again from its parameters."""
    remedy = (
        f"give the class or functools.partial({maker.__name__}, ...) with the keywords that made it"
    )
    forces = []
    makers: tuple[Callable[[], Any], ...] = (lambda: calculator, partial(maker, **arguments))
    for make in makers:
        copy = atoms.copy()
        try:
            copy.calc = make()
            forces.append(copy.get_forces(apply_constraint=False))
        except Exception as error:  # calculators may raise any exception
            raise UserError(
                f"calculator = {maker.__name__}: cannot be made again from its parameters "
                f"({type(error).__name__}: {' '.join(str(error).split())}); {remedy}."
            ) from None
    if np.abs(forces[0] - forces[1]).max() > _SAME_FORCES_EV_A:
        raise UserError(
            f"calculator = {maker.__name__}: its copy from its parameters gives other forces; "
            f"{remedy}."
        )


def _write(file: Path, atoms: Atoms) -> None:
    """Write a structure, unless it exists."""
    text = io.StringIO()
    ase.io.write(text, strip(atoms), format="extxyz")
    if file.exists() and file.read_text(encoding="utf-8") != text.getvalue():
        raise UserError(f"{file}: contains another structure; name a new directory for this run.")
    write_text(file, text.getvalue())
