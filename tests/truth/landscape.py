"""Potentials whose free energies are known: a few atoms in a well along one curve.

    V = V1(s) + k(s)/2 sum_j (y_j - c_j(s))^2

s, y_1, ..., y_m are the atoms' displacements along orthonormal directions, without their mean
displacement. At a temperature, s has the density exp(-V1(s)/kT) k(s)^(-m/2), and every y_j is
Gaussian around c_j(s): averages of any function of the atoms follow by quadrature over s and the
Gaussians.

The engine's process imports this module, so it needs NumPy, SciPy and ASE alone. Lengths are in
angstrom, energies in eV. N atoms, n = 3N - 3 = 1 + m coordinates z = (s, y).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline, PPoly
from scipy.linalg import null_space

Array = NDArray[np.float64]

CELL_A = 24.0
SPACING_A = 6.0  # between atoms, so that none comes near another

# c(s) and its derivative, both (..., b), of s (...): the first b coordinates y bend.
Curve = tuple[Callable[[Array], Array], Callable[[Array], Array]]


def arc(length: float, height: float) -> Curve:
    """The path deviates from the line by `height` half-way."""
    w = np.pi / length
    return (
        lambda s: height * np.sin(w * s)[..., None],
        lambda s: height * w * np.cos(w * s)[..., None],
    )


# Rows of equal parts and right angles: the first is the direction in which four jumps add up.
_HADAMARD = 0.5 * np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])


def staircase(jump: float, rounding: float) -> Curve:
    """Four jumps, each of another atom: at right angles to each other, with rounded corners.

    The coordinates of the jumps q_1, ..., q_4 go from 0 to `jump` one after the other; s is half of
    their sum, c the other rows of the Hadamard matrix.
    """
    corners = 0.5 * jump * np.arange(1, 4)

    def parts(s: Array) -> Array:
        beyond = rounding * np.logaddexp(0.0, (s[..., None] - corners) / rounding)
        edges = np.concatenate([s[..., None], beyond, np.zeros_like(s)[..., None]], axis=-1)
        return np.asarray(2.0 * (edges[..., :-1] - edges[..., 1:]))

    def slopes(s: Array) -> Array:
        past = 0.5 * (1.0 + np.tanh(0.5 * (s[..., None] - corners) / rounding))
        ones = np.ones_like(s)[..., None]
        edges = np.concatenate([ones, past, 0.0 * ones], axis=-1)
        return np.asarray(2.0 * (edges[..., :-1] - edges[..., 1:]))

    return (lambda s: parts(s) @ _HADAMARD[1:].T, lambda s: slopes(s) @ _HADAMARD[1:].T)


def wells(points: list[tuple[float, float]]) -> PPoly:
    """V1 with these minima and maxima (s, V1) in turn, cubic between them, parabolas beyond."""
    s, V = np.array(points).T
    return _smooth(s, V, 3.0 * np.abs(np.diff(V)[[0, -1]]) / np.diff(s)[[0, -1]] ** 2)


def levels(points: list[tuple[float, float]]) -> PPoly:
    """A function that goes from one of these values to the next, and stays at the last."""
    s, values = np.array(points).T
    return _smooth(s, values, np.zeros(2))


def quartic(length: float, height: float) -> PPoly:
    """V1 of two equal wells: 16 h t^2 (1 - t)^2 with t = s/length."""
    t = np.array([1.0, -2.0, 1.0, 0.0, 0.0]) * 16.0 * height
    return PPoly((t / length ** np.arange(4, -1, -1))[:, None], [0.0, length])


def _smooth(s: Array, values: Array, bends: Array) -> PPoly:
    """Zero slopes at the points; half of the second derivatives beyond the first and the last."""
    inner = CubicHermiteSpline(s, values, np.zeros_like(values))
    # A piece is a polynomial from its left end on, so the one on the left begins far out.
    far = 10.0 * (s[-1] - s[0])
    left = [0.0, bends[0], -2.0 * bends[0] * far, values[0] + bends[0] * far**2]
    right = [0.0, bends[1], 0.0, values[-1]]
    coefficients = np.column_stack([left, inner.c, right])
    return PPoly(coefficients, np.concatenate([[s[0] - far], s, [s[-1] + far]]))


_STRAIGHT: Curve = (lambda s: np.zeros((*s.shape, 0)), lambda s: np.zeros((*s.shape, 0)))
_NONE = levels([(0, 0), (1, 0)])


@dataclass(frozen=True)
class Landscape:
    """A potential.

    Attributes
    ----------
    species
        Chemical symbols, (N,).
    directions
        What s and the b coordinates y that bend displace, (1 + b, N, 3); made free of a common
        displacement and normalised.
    energy_along
        V1.
    length
        s of the final state; that of the initial one is 0.
    stiffness
        k in the initial state, eV/angstrom^2.
    log_softness
        -ln k(s), zero in the initial state: states and barriers differ in entropy too.
    curve
        c of the b coordinates y that bend; it is zero for the others."""

    species: tuple[str, ...]
    directions: Array
    energy_along: PPoly
    length: float
    stiffness: float = 3.0
    log_softness: PPoly = _NONE
    curve: Curve = _STRAIGHT

    @cached_property
    def reference(self) -> Atoms:
        """Where all displacements are zero."""
        corners = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)])
        positions = 0.25 * CELL_A + SPACING_A * corners[: len(self.species)]
        return Atoms(list(self.species), positions, cell=[CELL_A] * 3, pbc=True)

    @cached_property
    def basis(self) -> Array:
        """Orthonormal directions of s, y_1, y_2, ..., (n, 3N)."""
        shift = np.tile(np.eye(3), len(self.species))
        given = self.directions - self.directions.mean(axis=1, keepdims=True)
        given = given.reshape(len(given), -1)
        given /= np.linalg.norm(given, axis=1)[:, None]
        if not np.allclose(given @ given.T, np.eye(len(given))):
            raise ValueError("the directions are not at right angles")
        return np.asarray(np.concatenate([given, null_space(np.concatenate([given, shift])).T]))

    def stiffness_at(self, s: Array) -> Array:
        """k(s), eV/angstrom^2."""
        return np.asarray(self.stiffness * np.exp(-self.log_softness(s)))

    def centre(self, s: Array) -> Array:
        """c(s) of all coordinates y, (..., n - 1)."""
        first = self.curve[0](s)
        rest = np.zeros((*s.shape, len(self.basis) - 1 - first.shape[-1]))
        return np.concatenate([first, rest], axis=-1)

    def positions(self, z: Array) -> Array:
        """Positions of the atoms at coordinates (..., n): (..., N, 3)."""
        moved = (z @ self.basis).reshape(*z.shape[:-1], -1, 3)
        return np.asarray(self._origin + moved)

    def state(self, s: float) -> Atoms:
        """The structure on the curve."""
        atoms = self.reference.copy()
        where = np.array(s)
        z = np.concatenate([where[None], self.centre(where)])
        atoms.positions = self.positions(z)
        return atoms  # type: ignore[no-any-return]

    def energy_and_forces(self, positions: Array) -> tuple[float, Array]:
        """V and the forces, (N, 3)."""
        z = self.basis @ (positions - self._origin).ravel()
        s = z[:1]
        c, bend = self.curve[0](s)[0], self.curve[1](s)[0]
        off = z[1:].copy()
        off[: len(c)] -= c
        k, half = float(self.stiffness_at(s)[0]), 0.5 * float(off @ off)
        along = float(self._slope(s)[0]) - k * float(off[: len(c)] @ bend)
        along -= k * float(self._softening(s)[0]) * half
        gradient = np.concatenate([[along], k * off])
        energy = float(self.energy_along(s)[0]) + k * half
        return energy, -(gradient @ self.basis).reshape(-1, 3)

    @cached_property
    def _softening(self) -> PPoly:
        return self.log_softness.derivative()

    @cached_property
    def _origin(self) -> Array:
        return np.array(self.reference.positions)

    @cached_property
    def _slope(self) -> PPoly:
        return self.energy_along.derivative()


class OnLandscape(Calculator):
    """The ASE calculator of a landscape, by its name in `LANDSCAPES`."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as in ASE

    def __init__(self, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._landscape = LANDSCAPES[name]
        self._positions = np.zeros(0)

    def get_property(self, name: str, atoms: Any = None, allow_calculation: bool = True) -> Any:
        """Compute energy and forces without copying the atoms at every step, as ASE would."""
        if not self.results or not np.array_equal(self._positions, atoms.positions):
            self._positions = atoms.positions.copy()
            energy, forces = self._landscape.energy_and_forces(self._positions)
            self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        return self.results[name]


def _hop(n_atoms: int, axis: int) -> Array:
    """One atom hops past the others along an axis."""
    direction = np.zeros((n_atoms, 3))
    direction[0, axis] = 1.0
    return direction


def _four() -> Array:
    """Atoms 1 to 4 jump along x, each with one of the atoms 5 to 8 going back."""
    pairs = np.zeros((4, 8, 3))
    for k in range(4):
        pairs[k, k, 0], pairs[k, k + 4, 0] = 0.5**0.5, -(0.5**0.5)
    return np.asarray(np.einsum("jk,kia->jia", _HADAMARD, pairs))


_L = 2.5
_JUMP = 1.5
_ALUMINIUM = ("Al",) * 4
_ONE = _hop(4, 0)[None]
_LOOSE_TOP = levels([(0, 0), (0.5 * _L, 0.3), (_L, 0)])
_LOOSE_END = levels([(0, 0), (_L, 0.3)])

LANDSCAPES = {
    "symmetric": Landscape(
        _ALUMINIUM, _ONE, wells([(0, 0), (0.5 * _L, 0.35), (_L, 0)]), _L, log_softness=_LOOSE_TOP
    ),
    "asymmetric": Landscape(
        _ALUMINIUM,
        _ONE,
        wells([(0, 0), (0.45 * _L, 0.35), (_L, 0.15)]),
        _L,
        log_softness=_LOOSE_END,
    ),
    "three wells": Landscape(
        _ALUMINIUM,
        _ONE,
        wells([(0, 0), (0.22 * _L, 0.2), (0.5 * _L, 0.05), (0.76 * _L, 0.32), (_L, 0.03)]),
        _L,
        log_softness=_LOOSE_END,
    ),
    "curved": Landscape(
        _ALUMINIUM,
        np.array([_hop(4, 0), _hop(4, 1)]),
        wells([(0, 0), (0.5 * _L, 0.35), (_L, 0.1)]),
        _L,
        curve=arc(_L, 0.6),
    ),
    "four jumps": Landscape(
        ("Li",) * 8,
        _four(),
        wells([(0.25 * _JUMP * k, 0.2 * (k % 2)) for k in range(9)]),
        2 * _JUMP,
        stiffness=6.0,
        curve=staircase(_JUMP, 0.04),
    ),
    "two masses": Landscape(
        ("H", "Fe", "Fe", "Fe"),
        np.array([[[1.0, 0, 0], [-0.4, 0, 0], [-0.3, 0, 0], [-0.3, 0, 0]]]),
        wells([(0, 0), (0.5 * _L, 0.35), (_L, 0)]),
        _L,
        log_softness=_LOOSE_TOP,
    ),
    "hot": Landscape(  # 5 kT at 1000 K
        _ALUMINIUM, _ONE, wells([(0, 0), (0.5 * _L, 0.431), (_L, 0)]), _L, log_softness=_LOOSE_TOP
    ),
    "three atoms": Landscape(_ALUMINIUM[:3], _hop(3, 0)[None], quartic(_L, 0.35), _L),
    "three atoms, curved": Landscape(
        _ALUMINIUM[:3],
        np.array([_hop(3, 0), _hop(3, 1)]),
        quartic(_L, 0.35),
        _L,
        curve=arc(_L, 0.6),
    ),
}

# Potentials that differ from "three atoms, curved" in one respect each: a committee.
_CURVED = LANDSCAPES["three atoms, curved"]
MEMBERS = {
    "higher": replace(_CURVED, energy_along=wells([(0, 0), (0.52 * _L, 0.4), (_L, 0.03)])),
    "looser": replace(_CURVED, log_softness=levels([(0, 0), (0.5 * _L, 0.3), (_L, 0.1)])),
    "straighter": replace(_CURVED, curve=arc(_L, 0.55)),
    "softer": replace(_CURVED, stiffness=1.0),
}
LANDSCAPES |= MEMBERS

# Models of it that are wrong in one place, and nearly right in the reactant.
LANDSCAPES["wrong at the product"] = replace(
    _CURVED, stiffness=3.1, log_softness=levels([(0.6 * _L, 0), (0.9 * _L, 1.0)])
)
LANDSCAPES["stiffer top"] = replace(
    _CURVED,
    stiffness=3.1,
    log_softness=levels([(0.2 * _L, 0), (0.5 * _L, -0.5), (0.8 * _L, 0)]),
)


def lammps_commands(name: str) -> list[str]:
    """The landscapes of three atoms as commands of LAMMPS, by formulas of the atoms' places.

    With u the displacements without their mean, p = (2, -1, -1)/sqrt(6), s = p.u_x and y_1 = p.u_y,
    V = V1(s) + k/2 (|u|^2 - s^2 - y_1^2 + (y_1 - c(s))^2).
    """
    landscape = LANDSCAPES[name]
    L, k, bow = landscape.length, landscape.stiffness, 0.6 if name == "three atoms, curved" else 0.0
    lines = ["pair_style zero 3.0", "pair_coeff * *"]
    places = landscape.reference.positions - landscape.reference.positions.mean(axis=0)
    for atom, place in enumerate(places, 1):
        lines.append(f"group atom{atom} id {atom}")
        lines += [
            # LAMMPS takes its centres of mass of unwrapped atoms; here all have one mass.
            f"variable u{x}{atom} equal xcm(atom{atom},{x})-xcm(all,{x})-({place[axis]})"
            for axis, x in enumerate("xyz")
        ]
    square = "+".join(f"v_u{x}{atom}^2" for atom in (1, 2, 3) for x in "xyz")
    lines += [
        "variable s equal sqrt(1.5)*v_ux1",
        f"variable t equal v_s/{L}",
        "variable first equal sqrt(1.5)*v_uy1",
        f"variable c equal {bow}*sin(PI*v_t)",
        f"variable bend equal {bow}*PI/{L}*cos(PI*v_t)",
        f"variable V atom (id==1)*(5.6*v_t^2*(1-v_t)^2+{0.5 * k}*({square}"
        "-v_s^2-v_first^2+(v_first-v_c)^2))",
        # The gradient along s and y_1 less that of k/2 |u|^2.
        f"variable Gs equal 11.2/{L}*v_t*(1-v_t)*(1-2*v_t)-{k}*(v_s+(v_first-v_c)*v_bend)",
        f"variable Gy equal -{k}*v_c",
    ]
    # Atom 1 has the whole energy. Every fix must count, so those of the others have none.
    lines.append("variable none atom 0.0")
    for atom, weight in ((1, 2), (2, -1), (3, -1)):
        lines += [
            f"variable fx{atom} equal -{k}*v_ux{atom}-({weight})/sqrt(6)*v_Gs",
            f"variable fy{atom} equal -{k}*v_uy{atom}-({weight})/sqrt(6)*v_Gy",
            f"variable fz{atom} equal -{k}*v_uz{atom}",
            f"fix on{atom} atom{atom} addforce v_fx{atom} v_fy{atom} v_fz{atom} "
            f"energy v_{'V' if atom == 1 else 'none'}",
            f"fix_modify on{atom} energy yes",
        ]
    return lines
