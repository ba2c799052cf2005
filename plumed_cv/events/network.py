"""Sites of a defect in a crystal, and the jumps between them that differ by symmetry.

The crystal is brought into the standard setting of its space group by spglib. All fractional
coordinates here are those of its primitive cell. Sites that the space group maps onto each other
are of one kind. Jumps that it maps onto each other are one class, and so is the reverse of a jump
if the space group maps the jump onto it. Lengths are in angstrom.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray
from scipy.spatial import Voronoi

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.structures import CLOSEST_A
from plumed_cv.structures.frame import Array

Ints = NDArray[np.int64]

TOLERANCE_A = 0.01  # of positions in the file of a crystal
SAME_SHELL = 1.1  # jumps up to this many times the shortest length that conducts are one shell
LARGEST_HOLES = 0.8  # holes smaller than this fraction of the largest one are no sites
_FARTHEST_A = 8.0  # no network needs longer jumps
_SAME_A = 0.05  # sites closer than this are one


@dataclass(frozen=True)
class Crystal:
    """A crystal in the standard setting of its space group.

    Attributes
    ----------
    conventional
        The conventional cell: the first vector along x, the second in the xy plane.
    primitive
        A primitive cell with the same orientation and origin.
    space_group
        Symbol and number.
    rotations, translations
        The operations of the space group, x -> W x + t in fractional coordinates of the primitive
        cell: shapes (n, 3, 3), integers, and (n, 3).
    setting
        Matrix and shift from fractional coordinates of the given cell to those of the conventional
        cell: shapes (3, 3) and (3,).
    """

    conventional: Atoms
    primitive: Atoms
    space_group: str
    rotations: Ints
    translations: Array
    setting: tuple[Array, Array]

    @property
    def cell(self) -> Array:
        """Vectors of the primitive cell as rows, shape (3, 3)."""
        return np.asarray(self.primitive.cell.array)

    def from_given(self, fractional: Array) -> Array:
        """Convert fractional coordinates of the given cell, (..., 3), to the primitive cell."""
        matrix, shift = self.setting
        cartesian = (np.asarray(fractional) @ matrix.T + shift) @ self.conventional.cell.array
        return np.asarray(cartesian @ np.linalg.inv(self.cell))

    def images(self, fractional: Array) -> Array:
        """Return the positions that the space group makes of one, in the primitive cell, (m, 3)."""
        found: list[Array] = []
        for place in self.rotations @ fractional + self.translations:
            if not any(_apart(place, other, self.cell) < _SAME_A for other in found):
                found.append(np.abs(place - np.floor(place + 1e-9)))  # not -0.0
        return np.array(found)


def find_crystal(atoms: Atoms, tolerance_A: float = TOLERANCE_A) -> Crystal:
    """Find the space group of a crystal.

    Parameters
    ----------
    atoms
        Any cell of the crystal, periodic along all directions.
    tolerance_A
        Largest distance of an atom from the position that the symmetry gives it.

    Raises
    ------
    UserError
        If the structure is not periodic, has partially occupied sites, or if spglib finds no space
        group.
    """
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise UserError("is not periodic along all three directions; give a crystal.")
    occupied = atoms.info.get("occupancy") or {}
    for site in occupied.values():
        if len(site) > 1 or min(site.values(), default=1.0) < 1.0:
            raise UserError(
                f"has a site that is occupied in part ({site}); give an ordered crystal."
            )
    given = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    found = _spglib("get_symmetry_dataset", given, tolerance_A)
    whole = (found.std_lattice, found.std_positions, found.std_types)
    cell, positions, numbers = _spglib(
        "standardize_cell", whole, tolerance_A, to_primitive=True, no_idealize=True
    )
    symmetry = _spglib("get_symmetry", (cell, positions, numbers), tolerance_A)
    return Crystal(
        conventional=Atoms(
            numbers=whole[2], scaled_positions=whole[1], cell=np.tril(whole[0]), pbc=True
        ),
        primitive=Atoms(numbers=numbers, scaled_positions=positions, cell=cell, pbc=True),
        space_group=f"{found.international} ({found.number})",
        rotations=np.asarray(symmetry["rotations"], dtype=np.int64),
        translations=np.asarray(symmetry["translations"], dtype=np.float64),
        setting=(np.asarray(found.transformation_matrix), np.asarray(found.origin_shift)),
    )


@dataclass(frozen=True)
class Sites:
    """Sites of a defect in the primitive cell.

    Attributes
    ----------
    positions
        Fractional coordinates, shape (n, 3).
    kinds
        Number of the kind of each site, from 0, shape (n,).
    """

    positions: Array
    kinds: Ints

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def number_of_kinds(self) -> int:
        """Number of kinds."""
        return int(self.kinds.max()) + 1


def sites_at(crystal: Crystal, seeds: Sequence[Array]) -> Sites:
    """Return all sites that are equivalent to the given ones.

    Parameters
    ----------
    crystal
        The crystal.
    seeds
        One position of each kind, shape (3,). Positions that are equivalent are of one kind.
    """
    positions: list[Array] = []
    kinds: list[int] = []
    for seed in seeds:
        if any(_apart(seed, other, crystal.cell) < _SAME_A for other in positions):
            continue
        images = crystal.images(seed)
        kinds += [kinds[-1] + 1 if kinds else 0] * len(images)
        positions += list(images)
    return Sites(np.array(positions), np.array(kinds, dtype=np.int64))


def lattice_sites(crystal: Crystal, species: str) -> Sites:
    """Return the positions of all atoms of an element, which its vacancies can have.

    Raises
    ------
    UserError
        If the crystal has no such atom.
    """
    chosen = [symbol == species for symbol in crystal.primitive.symbols]
    if not any(chosen):
        held = ", ".join(sorted(set(crystal.primitive.symbols)))
        raise UserError(f"has no atom of {species}; its elements are {held}.")
    return sites_at(crystal, list(crystal.primitive.get_scaled_positions()[chosen]))


def find_largest_holes(crystal: Crystal) -> Sites:
    """Return the positions that are farthest from all atoms: vertices of the Voronoi polyhedra.

    Holes are given from the largest to the smallest. Those whose distance to the nearest atom is
    below `LARGEST_HOLES` of that of the largest one are left out. A position between two larger
    holes is no vertex, such as the octahedral one of a bcc crystal.
    """
    cell = crystal.cell
    widths = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    repeats = np.ceil(10.0 / widths).astype(int)
    axes = [np.arange(-n, n + 1) for n in repeats]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    atoms = (crystal.primitive.get_scaled_positions()[:, None] + shifts).reshape(-1, 3) @ cell
    vertices = Voronoi(atoms).vertices
    places = vertices @ np.linalg.inv(cell)
    inside = ((places > -1e-6) & (places < 1 - 1e-6)).all(axis=1)
    places, vertices = places[inside], vertices[inside]
    radii = np.linalg.norm(vertices[:, None] - atoms, axis=2).min(axis=1)
    order = [k for k in np.argsort(-radii, kind="stable") if radii[k] > LARGEST_HOLES * radii.max()]
    return sites_at(crystal, [places[k] for k in order])


@dataclass(frozen=True)
class JumpClass:
    """All jumps of one class between states, each a number or a row of numbers.

    Attributes
    ----------
    initial, final
        States of each jump, shape (m,) or (m, numbers). The first one represents the class.
    steps
        Vector of the defect in each, shape (m, 3), angstrom.
    reverse_is_own
        Whether the reverse of each jump belongs to the class. If not, the reverse jumps have a rate
        of their own and are not listed.
    """

    initial: Ints
    final: Ints
    steps: Array
    reverse_is_own: bool

    @property
    def length_A(self) -> float:  # noqa: N802
        """Length of each jump, angstrom."""
        return float(np.linalg.norm(self.steps[0]))

    @property
    def multiplicity(self) -> int:
        """Number of jumps of this class from one state."""
        return _count_first(self.initial)

    @property
    def reverse_multiplicity(self) -> int:
        """Number of reverse jumps from one final state."""
        return _count_first(self.final)

    def iterate_ways(self) -> Iterator[tuple[Ints, Ints, Array]]:
        """Yield initial states, final states and vectors, forward and then reverse ones."""
        yield self.initial, self.final, self.steps
        if not self.reverse_is_own:
            yield self.final, self.initial, -self.steps


def _count_first(states: Ints) -> int:
    """Number of states that are equal to the first one."""
    return int((states == states[0]).reshape(len(states), -1).all(axis=1).sum())


@dataclass(frozen=True)
class Jump(JumpClass):
    """All jumps of one class: the states are the numbers of the sites, shape (m,)."""


@dataclass(frozen=True)
class Network:
    """A defect that jumps between sites of a crystal.

    Attributes
    ----------
    cell
        Vectors of the primitive cell as rows, shape (3, 3), angstrom.
    sites
        The sites in it.
    jumps
        One for each class, from the shortest to the longest.
    """

    cell: Array
    sites: Sites
    jumps: tuple[Jump, ...]

    def __post_init__(self) -> None:
        """Refuse kinds of sites that no jump connects: their populations would be unknown."""
        group = np.arange(self.sites.number_of_kinds)
        for jump in self.jumps:
            a, b = (group[self.sites.kinds[ends[0]]] for ends in (jump.initial, jump.final))
            group[group == b] = a
        if len(set(group.tolist())) > 1:
            raise UserError(
                "The jumps do not connect all kinds of sites with each other; allow longer jumps "
                "(--cutoff) or name fewer sites (--site)."
            )

    @property
    def directions(self) -> int:
        """Number of independent directions along which the defect can move without limit."""
        first = [(jump.initial, jump.final, jump.steps) for jump in self.jumps]
        bonds = (np.concatenate(parts) for parts in zip(*first, strict=True))
        return _percolates(self.cell, self.sites.positions, *bonds)


def find_network(crystal: Crystal, sites: Sites, cutoff_A: float | None = None) -> Network:
    """Find the jumps between sites.

    A jump that passes within 0.6 angstrom of another site is left out, because it is a sequence of
    two shorter ones.

    Parameters
    ----------
    crystal, sites
        The crystal and the sites of the defect.
    cutoff_A
        Length of the longest jump, angstrom. By default it is `SAME_SHELL` times the smallest
        length with which the defect can move along all three directions.

    Raises
    ------
    UserError
        If there are no jumps, or if they do not connect all kinds of sites.
    """
    limit = _FARTHEST_A if cutoff_A is None else cutoff_A
    atoms = Atoms(
        symbols=["H"] * len(sites), scaled_positions=sites.positions, cell=crystal.cell, pbc=True
    )
    i, j, steps, shifts = neighbor_list("ijDS", atoms, limit)
    lengths = np.linalg.norm(steps, axis=1)
    direct = ~_passes_a_site(i, steps)
    if cutoff_A is None:
        limit = _conducting(crystal.cell, sites, i[direct], j[direct], steps[direct]) * SAME_SHELL
    chosen = direct & (lengths < limit + 1e-6)
    if not chosen.any():
        raise UserError(
            f"There is no jump of up to {limit:.2f} A between the sites; the shortest distance of "
            f"two is {lengths.min():.2f} A." if len(lengths) else
            f"There is no jump of up to {limit:.2f} A between the sites; allow longer ones."
        )  # fmt: skip
    order = np.argsort(lengths[chosen].round(4), kind="stable")
    classes = _classes(
        crystal, sites, i[chosen][order], j[chosen][order], shifts[chosen][order].astype(np.int64)
    )
    return Network(crystal.cell, sites, tuple(classes))


def find_images(crystal: Crystal, sites: Sites) -> tuple[list[Ints], list[Ints]]:
    """Return the image of each site by each operation of the space group.

    Returns
    -------
    images, cells
        For each operation the number of the image of each site, shape (n,), and the cell that it is
        in, shape (n, 3).
    """
    images, cells = [], []
    for rotation, translation in zip(crystal.rotations, crystal.translations, strict=True):
        places = sites.positions @ rotation.T + translation
        apart = places[:, None] - sites.positions
        apart -= np.round(apart)
        number = np.linalg.norm(apart @ crystal.cell, axis=2).argmin(axis=1)
        images.append(number)
        cells.append(np.round(places - sites.positions[number]).astype(np.int64))
    return images, cells


def _classes(crystal: Crystal, sites: Sites, i: Ints, j: Ints, shifts: Ints) -> Iterator[Jump]:
    """Yield the classes of the jumps from site i to site j in another cell."""
    images, cells = find_images(crystal, sites)
    left = dict.fromkeys(zip(i.tolist(), j.tolist(), map(tuple, shifts.tolist()), strict=True))
    while left:
        a, b, shift = next(iter(left))
        found: dict[tuple[int, int, tuple[int, ...]], None] = {}
        for rotation, image, cell in zip(crystal.rotations, images, cells, strict=True):
            moved = rotation @ np.array(shift) + cell[b] - cell[a]
            found[int(image[a]), int(image[b]), tuple(moved.tolist())] = None
        back = (b, a, tuple(-n for n in shift))
        own = back in found
        for begin, end, by in list(found):
            left.pop((begin, end, by), None)
            left.pop((end, begin, tuple(-n for n in by)), None)
        starts = np.array([key[0] for key in found])
        ends = np.array([key[1] for key in found])
        by_cells = np.array([key[2] for key in found])
        across = sites.positions[ends] + by_cells - sites.positions[starts]
        yield Jump(starts, ends, across @ crystal.cell, own)


def _conducting(cell: Array, sites: Sites, i: Ints, j: Ints, steps: Array) -> float:
    """Smallest length of the longest jump with which the defect moves along three directions."""
    lengths = np.linalg.norm(steps, axis=1)
    shells = np.unique(lengths.round(3))
    for shell in [*(0.5 * (a + b) for a, b in pairwise(shells)), *shells[-1:]]:
        near = lengths < shell + 1e-3
        if _percolates(cell, sites.positions, i[near], j[near], steps[near]) == 3:
            return float(lengths[near].max())
    raise UserError(
        f"Jumps of up to {_FARTHEST_A:g} A do not carry the defect along all three directions; "
        "name more sites (--site) or set the length of the longest jump (--cutoff)."
    )


def _percolates(cell: Array, positions: Array, i: Ints, j: Ints, steps: Array) -> int:
    """Smallest number of directions in which any site is connected with its own images."""
    shifts = np.round(
        steps @ np.linalg.inv(cell) - (positions[j] - positions[i])
    ).astype(np.int64)  # fmt: skip
    neighbours: list[list[tuple[int, Ints]]] = [[] for _ in positions]
    for a, b, shift in zip(i.tolist(), j.tolist(), shifts, strict=True):
        neighbours[a].append((b, shift))
        neighbours[b].append((a, -shift))
    reached: dict[int, Ints] = {}
    fewest = 3
    for start in range(len(positions)):
        if start in reached:
            continue
        reached[start] = np.zeros(3, dtype=np.int64)
        waiting, loops = [start], [np.zeros(3, dtype=np.int64)]
        while waiting:
            at = waiting.pop()
            for other, shift in neighbours[at]:
                there = reached[at] + shift
                if other in reached:
                    loops.append(there - reached[other])
                else:
                    reached[other] = there
                    waiting.append(other)
        fewest = min(fewest, int(np.linalg.matrix_rank(np.array(loops))))
    return fewest


def _passes_a_site(i: Ints, steps: Array) -> NDArray[np.bool_]:
    """Whether each jump from site i passes within `CLOSEST_A` of another site on its way."""
    passes = np.zeros(len(i), dtype=bool)
    for k, (start, step) in enumerate(zip(i, steps, strict=True)):
        others = steps[i == start]
        length = np.linalg.norm(step)
        along = others @ step / length
        across = np.linalg.norm(others - along[:, None] * step / length, axis=1)
        # The ends of the jump do not count, nor do sites beside an end.
        between = (along > 0.25 * length) & (along < 0.75 * length)
        passes[k] = bool((between & (across < CLOSEST_A)).any())
    return passes


def _spglib(name: str, cell: tuple[Array, Array, Any], tolerance_A: float, **options: bool) -> Any:
    """Call a function of spglib. Where it fails, versions return None, warn of this, or raise."""
    spglib = require("spglib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            found = getattr(spglib, name)(cell, symprec=tolerance_A, **options)
        except Exception as error:
            if not type(error).__module__.startswith("spglib"):
                raise
            found = None
    if found is None:
        raise UserError(
            f"spglib finds no space group with a tolerance of {tolerance_A:g} A; check that no "
            "two atoms are at the same place, or set --tolerance."
        )
    return found


def _apart(a: Array, b: Array, cell: Array) -> float:
    """Distance of two positions given by fractional coordinates, angstrom."""
    difference = a - b
    return float(np.linalg.norm((difference - np.round(difference)) @ cell))
