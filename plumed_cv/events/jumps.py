"""From a crystal to a catalogue: the end states of all jumps of a defect, relaxed and checked."""

import os
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.data import atomic_numbers
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE, LBFGS

import plumed_cv
from plumed_cv import sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import needed
from plumed_cv.common.files import replacing, write_text
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.common.toml import as_toml
from plumed_cv.config import Config, Gromacs, checked
from plumed_cv.engines import Engine
from plumed_cv.events.catalogue import INPUT, Event, write_catalogue
from plumed_cv.events.network import (
    TOLERANCE_A,
    Crystal,
    Jump,
    Network,
    Sites,
    crystal_of,
    largest_holes,
    lattice_sites,
    network_of,
    sites_at,
)
from plumed_cv.paths import relax
from plumed_cv.rates.multiplicity import ENERGY_EV, multiplicity
from plumed_cv.structures import CLOSEST_A, cell_of, read_structures
from plumed_cv.structures.frame import Array, displacements

Defect = Literal["vacancy", "interstitial"]

WIDTH_A = 10.0  # smallest width of the supercell
KICK_A = 0.05  # standard deviation of the displacements before a state is relaxed
_ORTHORHOMBIC = 16  # first space group whose lattice is determined by lengths alone


@dataclass(frozen=True)
class Supercell:
    """A supercell of a crystal for one defect.

    Parameters
    ----------
    crystal
        The crystal.
    defect, species
        Kind and element of the defect.
    repeats
        Numbers of conventional cells along their vectors.
    """

    crystal: Crystal
    defect: Defect
    species: str
    repeats: tuple[int, int, int]

    @property
    def host(self) -> Atoms:
        """All atoms without the defect, those of its species last."""
        atoms: Atoms = self.crystal.conventional.repeat(self.repeats)
        order = np.argsort(np.array(atoms.symbols) == self.species, kind="stable")
        return atoms[order]

    def state(self, place: Array, other: Array) -> Atoms:
        """Return the unrelaxed structure with the defect at a site.

        The atom that jumps is the last one: the interstitial atom, or the atom that goes from
        `other` to `place` when the vacancy goes from `place` to `other`.

        Parameters
        ----------
        place, other
            The site of the defect, and that from or to which it jumps: Cartesian, shape (3,).
        """
        atoms = self.host
        if self.defect == "interstitial":
            atoms.append(self.species)
            atoms.positions[-1] = place
            atoms.wrap()
            return atoms
        inverse = np.linalg.inv(cell_of(atoms))

        def nearest(point: Array) -> int:
            apart = (atoms.positions - point) @ inverse
            return int(np.linalg.norm((apart - np.round(apart)) @ atoms.cell, axis=1).argmin())

        gone, mover = nearest(place), nearest(other)
        kept = [k for k in range(len(atoms)) if k not in (gone, mover)]
        return atoms[[*kept, mover]] if gone != mover else atoms[kept]


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
        As for `network.network_of`.
    width_A
        Smallest width of the supercell, angstrom.
    tolerance_A
        As for `network.crystal_of`.
    relax_cell
        Whether the cell of the crystal is relaxed first to zero stress.
    reporter
        Receives the progress.

    Returns
    -------
    dict
        The content of catalogue.json without the lists of jumps: `crystal`, `supercell`, `events`.

    Raises
    ------
    UserError
        If the crystal or the input cannot be used, a state is no minimum, or two states relax to
        the same one.
    """
    reporter = reporter or Log()
    needed("spglib")  # before anything else is done
    if output.exists():
        raise UserError(f"{output}: exists already; name another folder.")
    if sites and defect == "vacancy":
        raise UserError("--site: the sites of a vacancy are the atoms; leave this option out.")
    if species not in atomic_numbers:
        raise UserError(f"--species {species}: is not the symbol of an element.")
    content, config = read_template(template)
    atoms = read_structures(crystal_file, "-1:")[-1]
    try:
        crystal = crystal_of(atoms, tolerance_A)
        pressure = None
        if relax_cell:
            crystal = _relaxed_cell(crystal, config, tolerance_A, reporter)
        chosen = _sites(crystal, defect, species, sites)
    except UserError as error:
        raise UserError(f"{crystal_file}: {error}") from None
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
        relaxer = _Relaxer(engine, supercell, config, reporter)
        chosen, energies = relaxer.minima(chosen, drop=defect == "interstitial" and not sites)
        network = network_of(crystal, chosen, cutoff_A)
        with _new_folder(output) as folder:
            events = tuple(
                relaxer.event(network, jump, number, energies, content, folder, output)
                for number, jump in enumerate(network.jumps, 1)
            )
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
            write_catalogue(folder, network, events, about)
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
    return {**about, "events": rows}


def atoms_of(crystal: Crystal) -> list[dict[str, Any]]:
    """Element and fractional coordinates of each atom of the primitive cell, for a catalogue."""
    places = crystal.primitive.get_scaled_positions()
    return [
        {"element": element, "position": place.tolist()}
        for element, place in zip(crystal.primitive.symbols, places, strict=True)
    ]


def read_template(file: Path) -> tuple[dict[str, Any], Config]:
    """Read the input that all events have in common.

    Returns
    -------
    content, config
        Sections and keys, with the names of the end states of an event; and the same as a
        configuration whose engine finds its files.

    Raises
    ------
    UserError
        If the file cannot be read or used.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: is not valid TOML: {error}.") from None
    system = {**content.get("system", {}), "initial": "initial.xyz", "final": "final.xyz"}
    system.pop("reorder", None)
    content = {"system": system, **{k: v for k, v in content.items() if k != "system"}}
    if "file" in content.get("path", {}):
        raise UserError(f"{file}: path.file belongs to one event; remove it.")
    config = checked(content, file)
    if isinstance(config.engine, Gromacs):
        raise UserError(
            f"{file}: engine.name = 'gromacs' needs a topology for each structure; use lammps or "
            "ase."
        )
    if config.cv.alignment != "none":
        raise UserError(f"{file}: cv.alignment = 'optimal' is for molecules; remove it.")
    base = file.absolute().parent
    scheduler = config.sampling.scheduler
    if scheduler is not None and "://" not in scheduler:
        content["sampling"]["scheduler"] = str(base / scheduler)
    directory = base / (config.engine.directory or ".")
    content["engine"] = {**content["engine"], "directory": str(directory)}
    engine = config.engine.model_copy(update={"directory": directory})
    return content, config.model_copy(update={"engine": engine})


def write_event(
    folder: Path, initial: Atoms, final: Atoms, content: dict[str, Any], output: Path
) -> None:
    """Write the folder of an event: its end states and its input.

    Parameters
    ----------
    folder
        The folder, which is made.
    initial, final
        The relaxed end states.
    content
        The input that all events have in common, as `read_template` returns it.
    output
        Where the folder will be, to which `engine.directory` is relative.
    """
    folder.mkdir(exist_ok=True)
    for state, word in ((initial, "initial"), (final, "final")):
        with replacing(folder / f"{word}.xyz") as temporary:
            state.write(temporary, format="extxyz")
    directory = os.path.relpath(content["engine"]["directory"], output.absolute())
    engine = {**content["engine"], "directory": Path(directory).as_posix()}
    write_text(folder / INPUT, as_toml({**content, "engine": engine}))


class _Relaxer:
    """Relaxes the states of a defect and checks what they relax to."""

    def __init__(
        self, engine: Engine, supercell: Supercell, config: Config, reporter: Reporter
    ) -> None:
        self._engine = engine
        self._supercell = supercell
        self._fmax = config.path.fmax_eV_A
        self._rng = np.random.default_rng(config.iteration.seed)
        self._reporter = reporter

    def minima(self, sites: Sites, *, drop: bool) -> tuple[Sites, list[float]]:
        """Return the sites at which the defect has a minimum, and the energy of each kind, eV.

        Parameters
        ----------
        sites
            The sites.
        drop
            Whether a kind that is no minimum is left out. Otherwise it is refused.
        """
        cell = self._supercell.crystal.cell
        kept, energies = [], []
        for kind in range(sites.number_of_kinds):
            number = int(np.flatnonzero(sites.kinds == kind)[0])
            place = sites.positions[number] @ cell
            ideal = self._supercell.state(place, place)
            limit = min(CLOSEST_A, 0.5 * _nearest(sites, number, cell))
            state, energy = self._relaxed(ideal, f"site {kind}")
            if (off := self._off(ideal, state, limit)) is None:
                kept.append(kind)
                energies.append(energy)
                continue
            where = np.round(sites.positions[number], 4).tolist()
            words = f"the {self._supercell.defect} at {where} is no minimum: {off}"
            if not drop:
                raise UserError(f"{words[0].upper()}{words[1:]}. Name other sites.")
            self._reporter.say(f"Left out: {words}.")
        if not kept:
            raise UserError(
                "The interstitial has no minimum at any of the largest holes; name its sites "
                "(--site)."
            )
        chosen = np.isin(sites.kinds, kept)
        renumbered = np.searchsorted(kept, sites.kinds[chosen])
        return Sites(sites.positions[chosen], renumbered.astype(np.int64)), energies

    def event(
        self,
        network: Network,
        jump: Jump,
        number: int,
        energies: Sequence[float],
        content: dict[str, Any],
        folder: Path,
        output: Path,
    ) -> Event:
        """Relax both ends of a jump, check them, and write the folder of the event."""
        name = f"{self._supercell.species}-{self._supercell.defect}-{number}"
        start = network.sites.positions[jump.initial[0]] @ network.cell
        places = (start, start + jump.steps[0])
        kinds = tuple(int(network.sites.kinds[end[0]]) for end in (jump.initial, jump.final))
        initial = self._supercell.state(*places)
        final = self._supercell.state(*places[::-1])
        if self._supercell.defect == "vacancy":  # the same atoms in the same order
            final = initial.copy()
            final.positions[-1] = places[0]
            final.wrap()
        relaxed, found_eV = [], []
        for ideal, kind, word in zip((initial, final), kinds, ("initial", "final"), strict=True):
            state, energy = self._relaxed(ideal, f"{name}, {word} state")
            limit = min(CLOSEST_A, 0.5 * jump.length_A)
            if off := self._off(ideal, state, limit):
                raise UserError(f"{name}: the {word} state is no minimum: {off}.")
            if abs(energy - energies[kind]) > ENERGY_EV:
                raise UserError(
                    f"{name}: the {word} state relaxes to an energy that differs by "
                    f"{energy - energies[kind]:+.4f} eV from that of an equivalent state, so there "
                    "are several minima at one site; name the sites of the stable ones (--site)."
                )
            relaxed.append(state)
            found_eV.append(energy)
        self._check_multiplicity(name, jump, relaxed[0], relaxed[1])
        write_event(folder / name, relaxed[0], relaxed[1], content, output / name)
        energy = 0.0 if kinds[0] == kinds[1] else found_eV[1] - found_eV[0]
        return Event(name, jump, (kinds[0], kinds[1]), energy)

    def _relaxed(self, ideal: Atoms, name: str) -> tuple[Atoms, float]:
        """Return the minimum near a structure and its energy, eV.

        The atoms are displaced at random first: a structure at a symmetric saddle point would stay
        there otherwise. The mean displacement of the minimum from the structure is zero.
        """
        state = ideal.copy()
        state.positions += self._rng.normal(scale=KICK_A, size=state.positions.shape)
        state.calc = self._engine.calculator()
        with self._reporter.task(f"relaxing {name}", None) as update:
            # Damped dynamics, unlike L-BFGS, does not converge to a saddle point.
            FIRE(state, logfile=None).run(fmax=max(self._fmax, 0.01), steps=2000)
            relax(
                state,
                self._fmax,
                name,
                progress=lambda fmax, stage: update(0, f"{fmax:.4f} eV/A"),
            )
        energy = float(state.get_potential_energy())
        cell = cell_of(ideal)
        step = displacements(state.positions, cell, ideal.positions, cell)
        minimum = ideal.copy()
        minimum.positions += step
        return minimum, energy

    def _off(self, ideal: Atoms, state: Atoms, limit_A: float) -> str | None:
        """Say which atom has left its place; None if none has."""
        cell = cell_of(ideal)
        far = np.linalg.norm(displacements(state.positions, cell, ideal.positions, cell), axis=1)
        if self._supercell.defect == "interstitial" and far[-1] > limit_A:
            return f"the {self._supercell.species} atom relaxes to a place {far[-1]:.2f} A away"
        atom = int(far.argmax())
        if far[atom] > CLOSEST_A:
            return f"an atom of {state.symbols[atom]} moves by {far[atom]:.2f} A"
        return None

    def _check_multiplicity(self, name: str, jump: Jump, initial: Atoms, final: Atoms) -> None:
        """Refuse states whose symmetry is not that of their sites in the crystal."""
        for start, end, number, word in (
            (initial, final, jump.multiplicity, "initial"),
            (final, initial, jump.reverse_multiplicity, "final"),
        ):
            found = multiplicity(start, end).events
            if found != number:
                raise UserError(
                    f"{name}: the relaxed {word} state has {found} equivalent jumps of this kind "
                    f"and its site in the crystal has {number}. Either the state breaks the "
                    "symmetry of the site, or the supercell is too small; try a larger --width."
                )


def _sites(
    crystal: Crystal, defect: Defect, species: str, given: Sequence[Sequence[float]]
) -> Sites:
    if defect == "vacancy":
        return lattice_sites(crystal, species)
    if not given:
        return largest_holes(crystal)
    return sites_at(crystal, [crystal.from_given(np.array(place)) for place in given])


def _nearest(sites: Sites, number: int, cell: Array) -> float:
    """Distance from a site to the nearest other one, or to its own nearest image, angstrom."""
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    apart = sites.positions - sites.positions[number]
    apart -= np.round(apart)
    lengths = np.linalg.norm((apart[:, None] + shifts) @ cell, axis=2)
    return float(lengths[lengths > 1e-6].min())


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
    return crystal_of(atoms, max(tolerance_A, 1e-3))


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
