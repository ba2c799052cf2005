"""PLUMED in LAMMPS's library: the Python side of cpp/engines/lammps_bridge.cpp."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv.common.errors import UserError
from plumed_cv.engines.engine import exploded
from plumed_cv.engines.lammps_units import Units
from plumed_cv.engines.plumed_input import plumed_sentence
from plumed_cv.engines.segments import Record
from plumed_cv.structures.frame import Array


@dataclass(frozen=True)
class PlumedRun:
    """The coupling of PLUMED to a run.

    Attributes
    ----------
    input_file, log_file
        PLUMED's input and log.
    kernel
        PLUMED's shared library.
    environment
        Environment variables that it needs.
    bridge
        Our library for `fix external`, or None for LAMMPS's own `fix plumed`.
    plugin
        A LAMMPS plugin with `fix plumed`, or None.
    kt
        Temperature times Boltzmann's constant in eV.
    count_start
        Whether actions update on the first step.
    needs_energy
        Whether the input uses the potential energy.
    record
        Atoms whose positions and forces the bridge records, or None.
    record_file
        The file of the records.
    """

    input_file: Path
    log_file: Path
    kernel: Path
    environment: dict[str, str]
    bridge: Path | None
    plugin: Path | None
    kt: float
    count_start: bool
    needs_energy: bool
    record: Record | None
    record_file: Path


class _Settings(ctypes.Structure):
    """Mirror of plumed_cv_lammps_settings in cpp/engines/lammps_bridge.cpp."""

    _fields_ = (
        ("lammps", ctypes.c_void_p),
        ("extract_atom", ctypes.c_void_p),
        ("force_timeout", ctypes.c_void_p),
        ("potential_energy", ctypes.c_void_p),
        ("kernel", ctypes.c_char_p),
        ("plumed_dat", ctypes.c_char_p),
        ("log_file", ctypes.c_char_p),
        ("masses", ctypes.c_void_p),
        ("charges", ctypes.c_void_p),
        ("box", ctypes.c_void_p),
        ("energy_unit", ctypes.c_double),
        ("time_unit", ctypes.c_double),
        ("timestep", ctypes.c_double),
        ("kt", ctypes.c_double),
        ("first_step", ctypes.c_int64),
        ("natoms", ctypes.c_int),
        ("count_start", ctypes.c_int),
        ("n_recorded", ctypes.c_int),
        ("record_stride", ctypes.c_int),
        ("recorded", ctypes.c_void_p),
        ("record_file", ctypes.c_char_p),
    )


class Bridge:
    """PLUMED, called by LAMMPS's `fix external` without Python in between.

    Parameters
    ----------
    lammps
        LAMMPS, an instance of its Python class.
    fix
        Name of its `fix external`.
    plumed
        The coupling of PLUMED.
    masses, charges
        Masses in amu and charges in e, shape (N,) each.
    box
        Lattice vectors as rows, shape (3, 3), angstrom; zeros without periodic boundaries.
    units
        Units of LAMMPS.
    timestep_fs
        Time step, fs.
    first_step
        Number of the step at the start.

    Raises
    ------
    UserError
        If PLUMED refuses its input.
    """

    def __init__(
        self,
        lammps: Any,
        fix: str,
        plumed: PlumedRun,
        masses: Array,
        charges: Array,
        box: Array,
        units: Units,
        timestep_fs: float,
        first_step: int,
    ) -> None:
        library = ctypes.CDLL(str(plumed.bridge))
        library.plumed_cv_lammps_open.restype = ctypes.c_void_p
        library.plumed_cv_lammps_error.restype = ctypes.c_char_p
        for name in ("error", "stopped", "close"):
            getattr(library, f"plumed_cv_lammps_{name}").argtypes = [ctypes.c_void_p]
        self._library = library
        self._input_file = plumed.input_file
        serials = np.ones(0) if plumed.record is None else plumed.record.serials
        recorded = np.ascontiguousarray(serials - 1, dtype=np.int64)
        self._keep = (masses, charges, np.ascontiguousarray(box), recorded)
        self._energy = _energy_function(lammps) if plumed.needs_energy else None
        settings = _Settings(
            lammps=lammps.lmp.value,
            extract_atom=_address(lammps.lib.lammps_extract_atom),
            force_timeout=_address(lammps.lib.lammps_force_timeout),
            potential_energy=_address(self._energy) if self._energy else None,
            kernel=str(plumed.kernel).encode(),
            plumed_dat=str(plumed.input_file).encode(),
            log_file=str(plumed.log_file).encode(),
            masses=masses.ctypes.data,
            charges=charges.ctypes.data,
            box=self._keep[2].ctypes.data,
            energy_unit=units.energy_eV,
            time_unit=units.time_ps,
            timestep=units.time(timestep_fs),
            kt=plumed.kt / units.energy_eV,
            first_step=first_step,
            natoms=len(masses),
            count_start=int(plumed.count_start),
            n_recorded=len(recorded),
            record_stride=0 if plumed.record is None else plumed.record.stride,
            recorded=recorded.ctypes.data,
            record_file=str(plumed.record_file).encode(),
        )
        self._bridge = library.plumed_cv_lammps_open(ctypes.byref(settings))
        if not self._bridge:
            self._refuse(library.plumed_cv_lammps_error(None))
        attach = lammps.lib.lammps_set_fix_external_callback
        attach.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]
        step = _address(library.plumed_cv_lammps_step)
        attach(lammps.lmp, fix.encode(), step, self._bridge)

    def finish(self) -> bool:
        """End PLUMED; raise its error, if any, or return whether it stopped the run."""
        message = self._library.plumed_cv_lammps_error(self._bridge)
        if message:
            self._refuse(message)
        stopped = bool(self._library.plumed_cv_lammps_stopped(self._bridge))
        self._library.plumed_cv_lammps_close(self._bridge)
        return stopped

    def _refuse(self, message: bytes) -> None:
        if message == b"lost atoms":
            raise UserError(exploded("LAMMPS"))
        raise UserError(f"{self._input_file}: {plumed_sentence(message.decode(errors='replace'))}")


def _energy_function(lammps: Any) -> Any:
    """Return a C function that returns the potential energy and requests it for the next step."""
    library = lammps.lib
    library.lammps_extract_compute.restype = ctypes.POINTER(ctypes.c_double)
    following = ctypes.c_int64()

    def energy(handle: int, step: int) -> float:
        pointer = library.lammps_extract_compute(handle, b"thermo_pe", 0, 0)
        following.value = step + 1
        library.lammps_addstep_compute_all(ctypes.c_void_p(handle), ctypes.byref(following))
        return float(pointer[0])

    return ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p, ctypes.c_int64)(energy)


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
