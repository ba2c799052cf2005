"""From a crystal to a catalogue: the end states of all jumps of a defect, relaxed and checked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import atomic_numbers
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

import plumed_cv
from plumed_cv import sampling
from plumed_cv.common.errors import UserError, naming
from plumed_cv.common.extras import require
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.events.catalogue import read_template, write_catalogue
from plumed_cv.events.network import (
    TOLERANCE_A,
    Crystal,
    Sites,
    find_crystal,
    find_largest_holes,
    find_network,
    lattice_sites,
    sites_at,
)
from plumed_cv.events.pairs import find_farthest, find_pairs
from plumed_cv.events.solutes import relax_pairs
from plumed_cv.events.states import Defect, Relaxer, Supercell
from plumed_cv.input_file import Config
from plumed_cv.structures import cell_of, read_structures

WIDTH_A = 10.0  # smallest width of the supercell
_ORTHORHOMBIC = 16  # first space group whose lattice is determined by lengths alone


def find_jumps(
    crystal_file: Path,
    template: Path,
    output: Path,
    *,
    species: str,
    defect: Defect = "vacancy",
    sites: Sequence[Sequence[float]] = (),
    cutoff_A: float | None = None,
    width_A: float = WIDTH_A,
    tolerance_A: float = TOLERANCE_A,
    relax_cell: bool = False,
    solute: str | None = None,
    solute_range_A: float | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Find the distinct jumps of a defect and write the catalogue.

    Parameters
    ----------
    crystal_file
        Structure of the crystal without the defect.
    template
        Input file with the engine, the temperatures and all else that the events have in common.
        Its end states, if it names any, are not used.
    output
        New folder for the catalogue.
    species
        Element of the vacancy, or of the interstitial atom.
    defect
        Kind of the defect.
    sites
        Sites of the interstitial atom, fractional coordinates of the given cell, one of each kind.
        If empty, the largest holes of the crystal.
    cutoff_A
        As for `network.find_network`.
    width_A
        Smallest width of the supercell, angstrom.
    tolerance_A
        As for `network.find_crystal`.
    relax_cell
        Whether the cell of the crystal is relaxed first to zero stress.
    solute
        Element of a solute atom on a site of the vacancy: the jumps near it are found as well.
    solute_range_A
        As for `pairs.find_pairs`.
    reporter
        Receives the progress.

    Returns
    -------
    dict
        The content of catalogue.json without the lists of jumps: `crystal`, `supercell`, `events`,
        and with a solute `pair_energies_eV`.

    Raises
    ------
    UserError
        If the crystal or the input cannot be used, a state is no minimum, or two states relax to
        the same one.
    """
    reporter = reporter or Log()
    require("spglib")  # before anything else is done
    if output.exists():
        raise UserError(f"{output}: already exists; name another folder.")
    if sites and defect == "vacancy":
        raise UserError("--site: the sites of a vacancy are the atoms; leave this option out.")
    if species not in atomic_numbers:
        raise UserError(f"--species {species}: is not the symbol of an element.")
    _check_solute(solute, solute_range_A, species, defect)
    content, config = read_template(template)
    atoms = read_structures(crystal_file, "-1:")[-1]
    with naming(crystal_file):
        crystal = find_crystal(atoms, tolerance_A)
        pressure = None
        if relax_cell:
            crystal = _relaxed_cell(crystal, config, tolerance_A, reporter)
        chosen = _sites(crystal, defect, species, sites)
        pairs = None
        if solute is not None:
            network = find_network(crystal, chosen, cutoff_A)
            pairs = find_pairs(crystal, network, solute, solute_range_A)
            # The solute has one nearest image.
            width_A = max(width_A, 2.02 * find_farthest(network, pairs))
    repeats = _repeats(crystal, width_A)
    supercell = Supercell(crystal, defect, species, repeats)
    pressure = _pressure(supercell.host, config)
    reporter.say(
        f"{crystal_file.name}: {crystal.space_group}; supercell of {len(supercell.host)} atoms, "
        f"{' x '.join(map(str, repeats))} conventional cells; pressure of the crystal "
        f"{pressure:+.2f} GPa{'' if abs(pressure) < 0.1 else ' (--relax-cell removes it)'}."
    )
    first = supercell.state(chosen.positions[0] @ crystal.cell, chosen.positions[0] @ crystal.cell)
    with sampling.open_engine(config, first) as engine:
        relaxer = Relaxer(engine, supercell, config, reporter)
        chosen, energies = relaxer.minima(chosen, drop=defect == "interstitial" and not sites)
        network = find_network(crystal, chosen, cutoff_A)
        with _new_folder(output) as folder:
            events = [
                relaxer.event(network, jump, number, energies, content, folder, output)
                for number, jump in enumerate(network.jumps, 1)
            ]
            if pairs is not None:
                pairs, near = relax_pairs(
                    pairs,
                    network,
                    supercell,
                    energies[0],
                    partial(_open_relaxer, supercell, config, reporter),
                    reporter,
                    content,
                    folder,
                    output,
                )
                events += near
            about = {
                "written_by": f"plumed_cv {plumed_cv.__version__}",
                "defect": defect,
                "species": species,
                "crystal": {
                    "file": crystal_file.name,
                    "space_group": crystal.space_group,
                    "formula": crystal.primitive.get_chemical_formula(),
                    "conventional_cell_A": crystal.conventional.cell.array.tolist(),
                    "atoms": atoms_of(crystal),
                    "pressure_GPa": pressure,
                    "cell_relaxed": relax_cell,
                },
                "supercell": {"repeats": list(repeats), "atoms": len(first)},
                "site_kinds": [
                    {"sites": int((chosen.kinds == kind).sum()), "energy_eV": energies[kind]}
                    for kind in range(chosen.number_of_kinds)
                ],
                "directions": network.directions,
                "expansion": config.system.expansion,
            }
            write_catalogue(folder, network, events, about, pairs=pairs)
    rows = [
        {
            "id": event.id,
            "initial_site": event.kinds[0],
            "final_site": event.kinds[1],
            "length_A": event.jump.length_A,
            "multiplicity": event.jump.multiplicity,
            "reverse_multiplicity": event.jump.reverse_multiplicity,
            "energy_eV": event.energy_eV,
        }
        for event in events
    ]
    if pairs is not None:
        about["solute"] = pairs.solute
        about["pair_energies_eV"] = pairs.energies_eV[1:].tolist()
    return {**about, "events": rows}


def _check_solute(solute: str | None, range_A: float | None, species: str, defect: Defect) -> None:
    if solute is None:
        if range_A is not None:
            raise UserError("--solute-range: needs --solute, the element of the solute.")
        return
    if defect != "vacancy":
        raise UserError("--solute: is for a vacancy; leave out --interstitial.")
    if solute not in atomic_numbers:
        raise UserError(f"--solute {solute}: is not the symbol of an element.")
    if solute == species:
        raise UserError(f"--solute {solute}: is the element of the vacancy; name another one.")


@contextmanager
def _open_relaxer(
    supercell: Supercell, config: Config, reporter: Reporter, atoms: Atoms
) -> Iterator[Relaxer]:
    with sampling.open_engine(config, atoms) as engine:
        yield Relaxer(engine, supercell, config, reporter)


def atoms_of(crystal: Crystal) -> list[dict[str, Any]]:
    """Element and fractional coordinates of each atom of the primitive cell, for a catalogue."""
    places = crystal.primitive.get_scaled_positions()
    return [
        {"element": element, "position": place.tolist()}
        for element, place in zip(crystal.primitive.symbols, places, strict=True)
    ]


def _sites(
    crystal: Crystal, defect: Defect, species: str, given: Sequence[Sequence[float]]
) -> Sites:
    if defect == "vacancy":
        return lattice_sites(crystal, species)
    if not given:
        return find_largest_holes(crystal)
    return sites_at(crystal, [crystal.from_given(np.array(place)) for place in given])


def _repeats(crystal: Crystal, width_A: float) -> tuple[int, int, int]:
    """Numbers of conventional cells with which the supercell has at least a width."""
    inverse = np.linalg.inv(crystal.conventional.cell.array)
    widths = 1.0 / np.linalg.norm(inverse, axis=0)
    a, b, c = (int(n) for n in np.ceil(width_A / widths - 1e-6))
    return a, b, c


def _pressure(host: Atoms, config: Config) -> float:
    """Pressure of the perfect crystal, GPa."""
    with sampling.open_engine(config, host) as engine:
        stress = engine.evaluate(host.positions, cell_of(host))[2]
    return float(-stress[:3].mean() / units.GPa)


def _relaxed_cell(
    crystal: Crystal, config: Config, tolerance_A: float, reporter: Reporter
) -> Crystal:
    """Return the crystal at zero stress."""
    number = int(crystal.space_group.rpartition("(")[2].rstrip(")"))
    if number < _ORTHORHOMBIC:
        raise UserError(
            f"has the space group {crystal.space_group}; --relax-cell is for orthorhombic and "
            "higher lattices, so relax the cell yourself."
        )
    repeats = _repeats(crystal, WIDTH_A)
    atoms = crystal.conventional.repeat(repeats)
    with sampling.open_engine(config, atoms) as engine:
        atoms.calc = engine.calculator()
        cell = FrechetCellFilter(atoms, mask=[1, 1, 1, 0, 0, 0])
        with reporter.task("relaxing the cell of the crystal", None):
            if not LBFGS(cell, logfile=None).run(fmax=1e-3, steps=1000):  # type: ignore[arg-type]
                raise UserError("its cell does not relax in 1000 steps; relax it yourself.")
    atoms.calc = None
    return find_crystal(atoms, max(tolerance_A, 1e-3))


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yield a folder that becomes `output` when the block succeeds."""
    parent = output.absolute().parent
    if not parent.is_dir():
        raise UserError(f"{output}: its folder does not exist; make it first.")
    with TemporaryDirectory(prefix=".jumps-", dir=parent) as nearby:
        folder = Path(nearby) / output.name
        folder.mkdir()
        yield folder
        folder.rename(output)
