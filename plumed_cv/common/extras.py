"""Optional packages, and the extras of plumed_cv that install them."""

import importlib
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from plumed_cv.common.errors import UserError

# For each module: the extra, and the purpose of the module.
EXTRAS = {
    "cmake": ("plumed", "building PLUMED's plugin"),
    "distributed": ("cluster", "sampling on a dask cluster"),
    "jinja2": ("report", "the report of a run"),
    "lammps": ("lammps", "dynamics by LAMMPS's library"),
    "markupsafe": ("report", "the report of a run"),
    "mdtraj": ("plumed", "reading and writing trajectories"),
    "ninja": ("plumed", "building PLUMED's plugin"),
    "pandas": ("notebook", "a table of results"),
    "plumed": ("plumed", "dynamics by ASE"),
    "sklearn": ("train", "learning a collective variable"),
    "spglib": ("events", "finding the symmetry of a crystal"),
    "torch": ("train", "training a network or using TorchScript"),
    "unearth": ("plumed", "building an optimised PLUMED"),
}


class MissingPackageError(UserError, ModuleNotFoundError):
    """A package that is not installed. The message names the extra that installs it."""


def missing(module: str) -> MissingPackageError:
    """Return the exception for a module of `EXTRAS` that cannot be imported."""
    extra, purpose = EXTRAS[module]
    return MissingPackageError(
        f"{purpose} needs the Python package {module}, which is not installed: "
        f"pip install 'plumed_cv[{extra}]'",
        name=module,
    )


def check_installed(*modules: str) -> None:
    """Refuse at once, for all of some modules of `EXTRAS`, what a command needs and cannot import.

    Raises
    ------
    MissingPackageError
        If some are not installed. The message names all of them.
    """
    absent = [module for module in modules if not is_installed(module)]
    if absent:
        raise MissingPackageError(
            f"this command needs Python packages that are not installed ({', '.join(absent)}): "
            f"{command_for(absent)}"
        )


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def command_for(modules: Iterable[str]) -> str:
    """Return the command that installs modules of `EXTRAS`."""
    extras = {EXTRAS[module][0] for module in modules}
    if extras == {extra for extra, _ in EXTRAS.values()}:
        return "pip install 'plumed_cv[all]'"
    if "lammps" in extras:
        extras.discard("plumed")  # is part of it
    return f"pip install 'plumed_cv[{','.join(sorted(extras))}]'"


def require(module: str) -> Any:
    """Import a module of `EXTRAS`, or of one of its packages, and return it.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:  # the package is installed but lacks one of its dependencies
            raise
        raise missing(package) from None
