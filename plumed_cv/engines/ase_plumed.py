"""PLUMED in the process of an ASE calculator, by PLUMED's Python bindings."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.engines.plumed_input import NESTED, VACUUM_A, plumed_sentence
from plumed_cv.engines.segments import Segment
from plumed_cv.structures.frame import Array, pad_cell

_EV_IN_KJ_MOL = 96.48530749925792  # PLUMED's value


@dataclass(frozen=True)
class PlumedFiles:
    """Input and output files of PLUMED, the kernel, and its environment variables."""

    input_file: Path
    log_file: Path
    kernel: Path
    environment: dict[str, str]


class Coupling:
    """PLUMED through its bindings; a process may have several."""

    def __init__(self, files: PlumedFiles, segment: Segment, masses: Array, charges: Array) -> None:
        os.environ.update(files.environment)
        plumed = require("plumed")  # finds the kernel through the environment
        self._file = files.input_file
        # Relative names in PLUMED's input are relative to the folder of the segment, and another
        # trajectory of this process may have changed the working directory.
        self._folder = segment.directory.absolute()
        os.chdir(self._folder)
        self._masses, self._charges = masses, charges
        # PLUMED knows only periodicity along all directions or none.
        self._cell = np.ascontiguousarray(segment.start.cell)
        if self._cell.any():
            self._cell = pad_cell(self._cell, segment.start.positions, VACUUM_A)
        self._stop = np.zeros(1, dtype=np.intc)
        self._energy_needed = np.zeros(1, dtype=np.intc)
        self._energy: NDArray[np.float64] = np.zeros(1)
        try:
            self._plumed = plumed.Plumed(kernel=str(files.kernel))
            for key, value in (
                ("setMDEnergyUnits", _EV_IN_KJ_MOL),
                ("setMDLengthUnits", 0.1),
                ("setMDTimeUnits", 0.001),
                ("setMDEngine", "ASE"),
                ("setNatoms", len(masses)),
                ("setTimestep", float(segment.dynamics.timestep_fs)),
                ("setKbT", float(units.kB * segment.dynamics.temperature_K)),
                ("setNoVirial", None),  # the cell is constant
                ("setPlumedDat", str(files.input_file)),
                ("setLogFile", str(files.log_file)),
                ("init", None),
            ):
                self._cmd(key, value)
        except Exception as error:
            raise self._refusal(error) from error

    @property
    def stopped(self) -> bool:
        """Whether an action (COMMITTOR) has asked to stop the run."""
        return bool(self._stop[0])

    def add(
        self,
        forces: Array,
        positions: Array,
        step: int,
        counts: bool,
        energy: Callable[[], float],
    ) -> None:
        """Add the bias to the forces, which are scaled by a bias on ENERGY."""
        positions = np.ascontiguousarray(positions)
        os.chdir(self._folder)
        try:
            self._cmd("setStep", step)
            self._cmd("setPositions", positions)
            self._cmd("setForces", forces)
            self._cmd("setMasses", self._masses)
            self._cmd("setCharges", self._charges)
            self._cmd("setBox", self._cell)
            self._cmd("setStopFlag", self._stop)
            self._cmd("prepareCalc")
            self._cmd("isEnergyNeeded", self._energy_needed)
            if self._energy_needed[0]:
                self._energy[0] = energy()
                self._cmd("setEnergy", self._energy)
            self._cmd("performCalc" if counts else "performCalcNoUpdate")
        except Exception as error:
            raise self._refusal(error) from error

    def close(self) -> None:
        """End PLUMED, which then flushes and closes its files."""
        os.chdir(self._folder)
        self._plumed.finalize()

    def _cmd(self, key: str, value: Any = None) -> None:
        self._plumed.cmd(key) if value is None else self._plumed.cmd(key, value)

    def _refusal(self, error: Exception) -> Exception:
        if isinstance(error, UserError):
            return error
        messages, cause = [str(error)], error.__cause__
        while cause is not None:
            messages.insert(0, str(cause))
            cause = cause.__cause__
        return UserError(f"{self._file}: {plumed_sentence(NESTED.join(messages))}")
