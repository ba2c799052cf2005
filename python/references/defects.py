"""Defects in cubic crystals whose hops are counted in plain dynamics."""

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from ase import Atoms
from ase.build import bulk
from numpy.typing import NDArray

from plumed_cv.structures.frame import Array
from python.zero_kelvin import systems

Thermostat = Literal["csvr", "nve", "langevin"]


@dataclass(frozen=True)
class Case:
    """A defect in a cubic crystal.

    Attributes
    ----------
    what
        In words.
    structure, lattice_A, repeats
        The crystal, its lattice parameter, and cubic cells along each side.
    element, potential
        Of the host, and LAMMPS's lines.
    temperature_K, timestep_fs, thermostat
        The dynamics.
    neighbours
        Sites that one hop leads to, and all of which are equivalent.
    interstitial
        An atom on octahedral and tetrahedral sites of an fcc crystal; a vacancy if None.
    """

    what: str
    structure: Literal["bcc", "fcc"]
    lattice_A: float
    repeats: int
    element: str
    potential: tuple[str, ...]
    temperature_K: float
    neighbours: int
    timestep_fs: float = 2.0
    thermostat: Thermostat = "csvr"
    interstitial: str | None = None

    @property
    def edge_A(self) -> float:  # noqa: N802
        """Edge of the cubic cell, angstrom."""
        return self.repeats * self.lattice_A

    def host(self) -> Atoms:
        """The perfect crystal."""
        cell = bulk(self.element, self.structure, a=self.lattice_A, cubic=True)
        return cast(Atoms, cell.repeat(self.repeats))

    def sites(self) -> Array:
        """Positions of all sites, (M, 3), angstrom; the sites of the host are first."""
        host: Array = self.host().positions
        if self.interstitial is None:
            return host
        a = self.lattice_A
        octahedral = host + np.array([a / 2, 0.0, 0.0])
        tetrahedral = [host + np.array([a, a, s * a]) / 4 for s in (1, -1)]
        return np.asarray(np.concatenate([host, octahedral, *tetrahedral]) % self.edge_A)

    def start(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Element and site of each atom, (N,): all of the host but the first, or one more."""
        n = len(self.host())
        if self.interstitial is None:
            return (self.element,) * (n - 1), np.arange(1, n, dtype=np.int64)
        return (*(self.element,) * n, self.interstitial), np.arange(n + 1, dtype=np.int64)

    def positions(self) -> Array:
        """Positions of the atoms at the beginning, (N, 3), angstrom."""
        places: Array = self.sites()[self.start()[1]]
        return places

    def end_states(self) -> tuple[Atoms, Atoms]:
        """The states before and after a hop to the nearest site, not relaxed."""
        elements, home = self.start()
        initial = Atoms(elements, self.sites()[home], cell=[self.edge_A] * 3, pbc=True)
        final = initial.copy()
        if self.interstitial is None:
            hole = self.sites()[0]
            off = final.positions - hole
            off -= self.edge_A * np.round(off / self.edge_A)
            final.positions[int(np.einsum("ij,ij->i", off, off).argmin())] = hole
        else:
            final.positions[-1] += self.lattice_A / 4
        return initial, final


@dataclass(frozen=True)
class Dumbbell(Case):
    """Two atoms share a site of a bcc crystal, one on each side of it along [110].

    A hop of one of them to one of its two nearest sites on its side of the site is a jump of the
    dumbbell, which can lie along two directions after it: 8 equivalent jumps.
    """

    def start(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Element and site of each atom, (N,): one more than the host has, on the first site."""
        n = len(self.host())
        return (self.element,) * (n + 1), np.append(np.arange(n, dtype=np.int64), 0)

    def positions(self) -> Array:
        """Positions of the atoms at the beginning, (N, 3), angstrom."""
        places = super().positions()
        half = 0.27 * self.lattice_A * np.array([1.0, 1.0, 0.0])
        places[0] += half
        places[-1] -= half
        return places

    def end_states(self) -> tuple[Atoms, Atoms]:
        """The states before and after a jump to a nearest site, not relaxed."""
        return systems.dumbbell()


@dataclass(frozen=True)
class NearSolute(Case):
    """A vacancy in a crystal that has one atom of another element, the last one."""

    solute: str = ""

    def start(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Element and site of each atom, (N,): all of the host but the first."""
        elements, home = super().start()
        return (*elements[:-1], self.solute), home


def _dumbbell(temperature_K: float) -> Case:
    """The dumbbell of docs/other-processes.md, at the lattice parameter of 0 K."""
    lines = ("pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe")
    words = "<110> dumbbell in Fe (Fe_mm)"
    return Dumbbell(words, "bcc", systems.LATTICE_A, 4, "Fe", lines, temperature_K, 8)


def _iron(temperature_K: float, thermostat: Thermostat = "csvr") -> Case:
    """The vacancy of the packaged example, in its cell, which is the same at all temperatures."""
    lines = ("pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe")
    words = "vacancy in Fe (Fe_mm)"
    return Case(words, "bcc", 11.5412 / 4, 4, "Fe", lines, temperature_K, 8, thermostat=thermostat)


CASES = {
    "fe-1000K": _iron(1000.0),
    "fe-1000K-nve": _iron(1000.0, "nve"),
    "fe-1000K-langevin": _iron(1000.0, "langevin"),
    "fe-850K": _iron(850.0),
    "fe-700K": _iron(700.0),
    "fe-dumbbell-500K": _dumbbell(500.0),
    "fe-dumbbell-400K": _dumbbell(400.0),
    "cu-1000K": Case(
        "vacancy in Cu (Cu_mishin1)",
        "fcc",
        3.68,
        3,
        "Cu",
        ("pair_style eam/alloy", "pair_coeff * * Cu_mishin1.eam.alloy Cu"),
        1000.0,
        12,
    ),
    "al-850K": Case(
        "vacancy in Al (Al_mm)",
        "fcc",
        4.10,
        3,
        "Al",
        ("pair_style eam/fs", "pair_coeff * * Al_mm.eam.fs Al"),
        850.0,
        12,
    ),
    "h-in-ni-700K": Case(
        "H in Ni (NiAlH_jea), octahedral to tetrahedral",
        "fcc",
        3.52,
        3,
        "Ni",
        ("pair_style eam/alloy", "pair_coeff * * NiAlH_jea.eam.alloy Ni H"),
        700.0,
        8,
        timestep_fs=1.0,
        interstitial="H",
    ),
}
