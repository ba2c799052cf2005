"""Any ASE calculator as an engine. It runs in a process of its own (`ase_process`).

ASE's own `Plumed` calculator is not used: its default kT is 1 eV, and it counts every calculation
as a step.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from plumed_cv.engines.ase_plumed import PlumedFiles
from plumed_cv.engines.ase_process import HELD, AseWorker
from plumed_cv.engines.engine import Engine, Followed, Seen
from plumed_cv.engines.plumed_input import write_plumed_input
from plumed_cv.engines.process import Child
from plumed_cv.engines.segments import (
    Dynamics,
    Segment,
    SegmentResult,
    State,
)
from plumed_cv.setup.kernel import Plumed, find_plumed
from plumed_cv.structures.frame import Array


class AseEngine(Engine):
    """An ASE calculator in a process of its own.

    Parameters
    ----------
    calculator
        Dotted name of a calculator class, or of a function that returns a calculator, for example
        "ase.calculators.emt.EMT". It is imported, never evaluated.
    atoms
        The atoms: species, cell, periodic boundaries, masses, initial charges and magnetic moments.
    arguments
        Arguments of the class or function.
    members
        Other calculators, each as its dotted name, arguments and directory. With them the model
        deviation is the disagreement of all.
    uncertainty
        Key of the calculator's `results` with its own uncertainty, a number or an array whose
        largest value counts. It is then the model deviation.
    batch
        Number of structures that are evaluated in one call. If it is larger than 1, the calculator
        has the method `calculate_batch` (`batches`), and several segments run together.
    directory
        Folder of relative file names in the arguments and of the user's modules; the working
        directory by default.
    plumed
        The PLUMED to use; by default `kernel.find_plumed()`, at the first run with PLUMED.

    Raises
    ------
    UserError
        If the calculator cannot be imported or made, or gives no energy and forces for the atoms.
    """

    def __init__(
        self,
        calculator: str,
        atoms: Atoms,
        *,
        arguments: Mapping[str, Any] | None = None,
        members: Sequence[tuple[str, Mapping[str, Any], Path | str]] = (),
        uncertainty: str | None = None,
        batch: int = 1,
        directory: Path | str = ".",
        plumed: Plumed | None = None,
    ) -> None:
        super().__init__(atoms)
        bare = atoms.copy()
        bare.set_constraint()
        bare.arrays[HELD] = np.isin(np.arange(len(atoms)), self.held)
        self._plumed = plumed
        self.batch = batch
        self._child = Child(
            AseWorker,
            calculator,
            dict(arguments or {}),
            Path(directory).absolute(),
            bare,
            [(name, dict(given), Path(folder).absolute()) for name, given, folder in members],
            uncertainty,
            batch,
        )
        self._masses: Array = self._child.ask("describe")["masses"]  # wrong input is refused here

    @property
    def masses(self) -> Array:
        """Mass of each atom in amu, shape (N,)."""
        return self._masses

    def evaluate(self, positions: Array, cell: Array) -> tuple[float, Array, Array]:
        """Return energy (eV), forces (eV/angstrom, (N, 3)) and stress (eV/angstrom^3, (6,)).

        The energy is the one that belongs to the forces (ASE's `free_energy`) if the calculator has
        it. The stress is nan if the calculator has none.
        """
        state = State(positions, cell)
        return self._child.ask("evaluate", state.positions, state.cell)  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Reset the calculator, if it has this method of ASE. Its files stay."""
        self._child.ask("forget")

    def evaluate_all(self, positions: Array, cell: Array) -> tuple[Array, Array]:
        """Return energies (eV, (M,)) and forces (eV/angstrom, (M, N, 3)) of structures.

        They are evaluated together if the engine has a batch.
        """
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        return self._child.ask("evaluate_all", positions, cell)  # type: ignore[no-any-return]

    def deviations(self, positions: Array, cell: Array) -> Array:
        """Return the model deviation of structures in a cell, (M, N, 3): shape (M,).

        Raises
        ------
        UserError
            If there are no other calculators and no uncertainty, or a calculator refuses.
        """
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        return self._child.ask("deviations", positions, cell)  # type: ignore[no-any-return]

    def run(self, segment: Segment, progress: Callable[[int], None] | None = None) -> SegmentResult:
        """Run molecular dynamics; log.ase has step, temperature (K) and potential energy (eV).

        PLUMED receives the positions unwrapped. Brownian dynamics ends without velocities.
        """
        return self._run([segment], progress)[0]

    def run_all(
        self, segments: Sequence[Segment], progress: Callable[[int], None] | None = None
    ) -> list[SegmentResult]:
        """Run segments: together if the engine has a batch, each with a PLUMED of its own."""
        if self.batch == 1:
            return super().run_all(segments, progress)
        return self._run(segments, progress)

    def _run(
        self, segments: Sequence[Segment], progress: Callable[[int], None] | None
    ) -> list[SegmentResult]:
        for segment in segments:
            self._check_segment(segment)
        plumed = [self._write_plumed(segment) for segment in segments]
        results: list[SegmentResult] = self._child.ask("run", segments, plumed, progress=progress)
        return results

    def _write_plumed(self, segment: Segment) -> PlumedFiles | None:
        if segment.plumed is None:
            return None
        if self._plumed is None:
            self._plumed = find_plumed()
        log = segment.directory.absolute() / "plumed.log"
        input_file = write_plumed_input(segment)[0]
        return PlumedFiles(input_file, log, self._plumed.kernel, self._plumed.environment())

    def follow(
        self, start: State, dynamics: Dynamics, n_steps: int, seed: int, observer: Seen
    ) -> Followed[Seen]:
        """Run molecular dynamics until an observer stops it, in the calculator's process."""
        found: list[Followed[Seen]] = self._child.ask(
            "follow", [start], dynamics, n_steps, [seed], [observer]
        )
        return found[0]

    def follow_all(
        self,
        starts: Sequence[State],
        dynamics: Dynamics,
        n_steps: int,
        seeds: Sequence[int],
        observers: Sequence[Seen],
    ) -> list[Followed[Seen]]:
        """Run trajectories until observers stop them: together if the engine has a batch."""
        if self.batch == 1:
            return super().follow_all(starts, dynamics, n_steps, seeds, observers)
        found: list[Followed[Seen]] = self._child.ask(
            "follow", starts, dynamics, n_steps, seeds, observers
        )
        return found

    def close(self) -> None:
        """End the calculator's process; the next use of the engine starts a new one."""
        self._child.close()
