"""Makes a calculator of ASE from its name, in its own process, and asks it for its results."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from plumed_cv.common.errors import UserError
from plumed_cv.structures.frame import Array


def enter(directory: Path) -> None:
    """Make a folder that of relative file names and of the user's modules."""
    os.chdir(directory)
    if str(directory) not in sys.path:
        sys.path.append(str(directory))


def make_calculator(name: str, arguments: Mapping[str, Any]) -> Calculator:
    """Import the object `name` and call it.

    Raises
    ------
    UserError
        If it cannot be imported or called, or makes no calculator.
    """
    calculator: Calculator = make(
        name, arguments, "engine.calculator", "a calculator class, such as ase.calculators.emt.EMT"
    )
    if not hasattr(calculator, "get_forces") or not hasattr(calculator, "results"):
        raise UserError(
            f"engine.calculator = {name!r}: is not an ASE calculator; name a class such as "
            "ase.calculators.emt.EMT, or a function that makes a calculator"
        )
    return calculator


def make(name: str, arguments: Mapping[str, Any], key: str, what: str) -> Any:
    """Import an object and call it.

    Parameters
    ----------
    name
        Its dotted name.
    arguments
        Its arguments.
    key
        The key of the input that has the name.
    what
        The kind of object that the key names, for messages.

    Raises
    ------
    UserError
        If it cannot be imported or called.
    """
    module, _, attribute = name.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key} = {name!r}: cannot be imported ({words(error)}); give the dotted name of "
            f"{what}, and install its package"
        ) from error
    try:
        return factory(**arguments)
    except UserError:
        raise
    except Exception as error:  # calculators may raise any exception
        raise UserError(
            f"{name}: cannot be made ({words(error)}); correct engine.arguments = {dict(arguments)}"
        ) from error


def forces_of(name: str, atoms: Atoms) -> Array:
    """Return the forces of a structure by its calculator, (N, 3), eV/angstrom.

    Raises
    ------
    UserError
        If the calculator refuses; `name` is its name.
    """
    try:
        return np.array(atoms.get_forces(apply_constraint=False), dtype=np.float64)
    except Exception as error:  # calculators may raise any exception
        raise UserError(f"{name}: gives no forces ({words(error)}); use another one") from error


def evaluate_batch(
    name: str, calculator: Any, structures: Sequence[Atoms], labels: Sequence[str]
) -> tuple[Array, Array]:
    """Return energies (eV, (M,)) and forces (eV/angstrom, (M, N, 3)) of structures in one call.

    Parameters
    ----------
    name
        Name of the calculator.
    calculator
        It has the method `calculate_batch` (see `batches`).
    structures
        M structures of the same N atoms.
    labels
        What messages call each structure.

    Raises
    ------
    UserError
        If the calculator refuses, or its results do not have these shapes. If it refuses, the
        message says for which structures it does so alone.
    """
    try:
        energies, forces = calculator.calculate_batch(structures)
        found = np.array(energies, dtype=np.float64), np.array(forces, dtype=np.float64)
    except Exception as error:  # calculators may raise any exception
        which, remedy = _find_refused(calculator, structures, labels)
        raise UserError(
            f"{name}: calculate_batch fails for {which} ({words(error)}); {remedy}"
        ) from error
    wanted = (len(structures),), (len(structures), len(structures[0]), 3)
    if (found[0].shape, found[1].shape) != wanted:
        raise UserError(
            f"{name}: calculate_batch returns energies and forces of the shapes {found[0].shape} "
            f"and {found[1].shape}, but {wanted[0]} and {wanted[1]} are needed; correct it, or set "
            "engine.batch = 1"
        )
    return found


def _find_refused(
    calculator: Any, structures: Sequence[Atoms], labels: Sequence[str]
) -> tuple[str, str]:
    """Return which structures of a batch a calculator refuses, in words, and the remedy."""
    remedy = "correct it, or set engine.batch = 1"
    if len(structures) == 1:
        return labels[0], remedy
    refused = []
    for atoms, label in zip(structures, labels, strict=True):
        try:
            calculator.calculate_batch([atoms])
        except Exception:  # calculators may raise any exception
            refused.append(label)
    if not refused:  # the usual reason is too little memory
        return f"{len(structures)} structures together, but for none alone", (
            "give a smaller engine.batch, or correct it"
        )
    if len(refused) == len(structures):
        return f"each of {len(structures)} structures", remedy
    return ", ".join(refused), remedy


def words(error: Exception) -> str:
    """Return the kind and the text of an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
