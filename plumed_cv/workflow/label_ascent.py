"""Structures around the path in which a committee disagrees most.

A structure helps a model most if it is likely and the potentials disagree there. With the energy E
of the run's potential and the variance s^2 of the energies of all potentials, each relative to its
own in the initial state, this is a maximum of

    -E / kT + ln s^2,

the logarithm of the probability times the variance (Schwalbe-Koda, Tan and Gomez-Bombarelli, Nat.
Commun. 12, 5104 (2021), who use the variance of the forces). The variance of the energies has a
gradient that needs only forces, so that any calculator will do. The CV of a structure is kept:
otherwise all would end in the basins.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import FIRE

from plumed_cv import sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import Engine
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array
from plumed_cv.workflow import provenance
from plumed_cv.workflow.committee import list_potentials
from plumed_cv.workflow.label_candidates import Candidates, find_candidates, read_positions_of
from plumed_cv.workflow.label_structures import TRAINING, make_structure, write_structures
from plumed_cv.workflow.mep import read_end_states

CANDIDATES = 8000  # snapshots from which the starts are chosen
STEPS = 200  # of an ascent, at most
_FMAX_EV_A = 0.01  # an ascent ends below this force
_SAME_EV = 1e-6  # standard deviation of energies that agree


class Disagreement(Calculator):
    """The energy E - kT ln s^2, whose minima are what the ascent looks for.

    Parameters
    ----------
    engines
        The potential of the run, and the other ones.
    initial
        The structure in which all energies are zero.
    kT_eV
        Temperature.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as in ASE

    def __init__(self, engines: Sequence[Engine], initial: Atoms, kT_eV: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._engines, self._kT = engines, kT_eV
        self._zeros = self._evaluate(initial)[0]

    def _evaluate(self, atoms: Atoms) -> tuple[Array, Array]:
        """Energies (M,) and forces (M, N, 3) of all potentials."""
        found = [engine.evaluate(atoms.positions, cell_of(atoms)) for engine in self._engines]
        return np.array([each[0] for each in found]), np.array([each[1] for each in found])

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`, also with `deviation`, the standard deviation s (eV)."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        assert self.atoms is not None
        energies, forces = self._evaluate(self.atoms)
        energies = energies - self._zeros
        off = energies - energies.mean()
        variance = float(off @ off) / (len(off) - 1)
        slope = -2.0 * np.tensordot(off, forces, 1) / (len(off) - 1)  # of the variance
        floor = max(variance, _SAME_EV**2)
        self.results = {
            "energy": float(energies[0]) - self._kT * np.log(floor),
            "forces": forces[0] + self._kT * slope / floor,
            "deviation": variance**0.5,
            "above_initial": float(energies[0]),
        }


class SameValue:
    """A constraint of ASE that keeps the value of a collective variable."""

    def __init__(self, variable: CollectiveVariable, atoms: Atoms) -> None:
        self._variable, self._chosen, self._cell = variable, variable.serials - 1, cell_of(atoms)
        self._value = self._find(atoms.positions)

    def _find(self, positions: Array) -> float:
        return float(self._variable.value(positions[self._chosen], self._cell)[0])

    def _gradient(self, positions: Array) -> Array:
        return np.asarray(self._variable.gradient(positions[self._chosen], self._cell)[0])

    def adjust_positions(self, atoms: Atoms, new: Array) -> None:
        """Move the new positions back along the gradient."""
        for _ in range(3):  # Newton's method
            gradient = self._gradient(new)
            off = self._find(new) - self._value
            new[self._chosen] -= off * gradient / np.sum(gradient**2)

    def adjust_forces(self, atoms: Atoms, forces: Array) -> None:
        """Remove the component along the gradient."""
        gradient = self._gradient(atoms.positions)
        along = np.sum(gradient * forces[self._chosen]) / np.sum(gradient**2)
        forces[self._chosen] -= along * gradient

    def get_removed_dof(self, atoms: Atoms) -> int:
        """Return the number of degrees of freedom that it takes."""
        return 1


def find_uncertain(
    directory: Path | str,
    number: int,
    output: Path | str,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Write structures around the path in which the committee disagrees most for their energy.

    They are for training alone: they are no sample of the run, so the barrier cannot be corrected
    by them.

    Parameters
    ----------
    directory
        A finished run with a committee.
    number
        Number of ascents. They start from snapshots that are evenly spread along the CV.
    output
        The file, extended XYZ.
    reporter
        Receives the progress.

    Returns
    -------
    For each structure its name, `xi`, `above_initial_eV` (energy of the run's potential above that
    of the initial state), and `deviation_eV` and `deviation_before_eV`, the standard deviation of
    the energies at the end and at the start of the ascent.

    Raises
    ------
    UserError
        If the run has no committee, or as for `label.choose`.
    """
    reporter = reporter or Log()
    files, config = provenance.read_finished_run(directory)
    if not config.engine.members:
        raise UserError(
            f"{directory}: there is no engine.committee in the input, so nothing disagrees; name "
            "other potentials there, and run again."
        )
    provenance.check_same_input(files.root, config)
    found = find_candidates(files, CANDIDATES, directory)
    initial = read_end_states(config)[0]
    starts = _choose_starts(found, cell_of(initial), number)
    rows, structures = [], []
    with ExitStack() as stack:
        engines = [
            stack.enter_context(sampling.open_engine(each, initial))
            for each in list_potentials(config)
        ]
        calculator = Disagreement(engines, initial, units.kB * config.system.temperature_K)
        with reporter.task("disagreement of the committee: ascent", number) as update:
            for k, (positions, xi) in enumerate(starts):
                found_row, atoms = ascend(calculator, initial, positions, found.variable)
                row = {"name": f"ascent:{k + 1}", "xi": xi, "weight": 0.0, "use": TRAINING}
                rows.append(row | found_row)
                structures.append(make_structure(initial, atoms.positions, row))
                update(k + 1, "")
    write_structures(Path(output), structures)
    before, after = (
        float(np.median([row[key] for row in rows]))
        for key in ("deviation_before_eV", "deviation_eV")
    )
    reporter.say(
        f"{output}: {number} structures for training. The standard deviation of the energies of "
        f"the potentials is {after:.3f} eV (median), and {before:.3f} eV in the snapshots from "
        "which the ascents started."
    )
    return rows


def _choose_starts(found: Candidates, cell: Array, number: int) -> list[tuple[Array, float]]:
    """Positions and xi of snapshots that are evenly spread from the first minimum to the last."""
    basins, nodes = found.curves.basins, found.curves.grid.nodes
    xi = found.variable.encode(found.components(cell))[:, 0]
    first, last = nodes[basins.minima[0]], nodes[basins.minima[-1]]
    nearest = [int(abs(xi - at).argmin()) for at in np.linspace(first, last, number)]
    rows = [{"name": found.names[k]} for k in nearest]
    places = read_positions_of(found, rows)
    return [(place, float(xi[k])) for place, k in zip(places, nearest, strict=True)]


def ascend(
    calculator: Disagreement, initial: Atoms, positions: Array, variable: CollectiveVariable
) -> tuple[dict[str, float], Atoms]:
    """Climb from a structure.

    Parameters
    ----------
    calculator
        The energy whose minimum is looked for.
    initial
        Its elements, cell and fixed atoms.
    positions
        Where the ascent starts, (N, 3), angstrom.
    variable
        Its value is kept.

    Returns
    -------
    `above_initial_eV`, `deviation_eV` and `deviation_before_eV` of `find_uncertain`, and the
    structure at the end.
    """
    atoms = initial.copy()
    atoms.set_positions(positions, apply_constraint=False)
    atoms.set_constraint([*initial.constraints, SameValue(variable, atoms)])
    atoms.calc = calculator
    atoms.get_potential_energy()
    before = calculator.results["deviation"]
    FIRE(atoms, logfile=None).run(fmax=_FMAX_EV_A, steps=STEPS)
    atoms.get_potential_energy()
    return {
        "above_initial_eV": calculator.results["above_initial"],
        "deviation_eV": calculator.results["deviation"],
        "deviation_before_eV": before,
    }, atoms
