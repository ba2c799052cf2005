"""The atoms of a process as a figure: data for rotation on the page, and two fixed views."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap, to_hex

from plumed_cv.cv import CollectiveVariable
from plumed_cv.cv.localisation import Localisation
from plumed_cv.structures.frame import Array, complete_cell, nearest_images, periodic_directions

MOST_ATOMS = 500  # largest number of drawn atoms, those nearest to the process
_FRAMES = 21  # along the path, from xi = 0 to 1
_STILL_A = 0.02  # an atom that moves by less along the path is drawn at rest
_FAR_A = 0.3  # the path of an atom is drawn if it is longer than this
# From grey to red: visible on white and on black, and by the colour-blind.
_COLOURS = LinearSegmentedColormap.from_list("", ["#a3afba", "#d9a441", "#dc4a14"])
_SHADES = _COLOURS(np.linspace(0.0, 1.0, 256))


@dataclass(frozen=True)
class Scene:
    """Atoms around the process.

    Attributes
    ----------
    frames
        Positions on the path, shape (F, n, 3), angstrom. The most mobile atom moves along x, and
        the process is around the origin.
    atoms
        Numbers of the atoms, from 0, shape (n,).
    moving
        Whether they take part, shape (n,).
    shade
        Their colours, by amplitude.
    edges
        Edges of the cell, shape (12, 2, 3), or none.
    """

    frames: Array
    atoms: Array
    moving: Array
    shade: list[str]
    edges: Array

    def data(self) -> dict[str, Any]:
        """Return the data for the script of the page, for JSON."""
        at_rest = np.ptp(self.frames, axis=0).max(axis=1) < _STILL_A
        return {
            "radius": float(np.linalg.norm(self.frames[0], axis=1).max()),
            "edges": np.round(self.edges, 2).tolist(),
            "atoms": [
                {
                    "p": np.round(self.frames[: 1 if at_rest[k] else None, k], 3).tolist(),
                    "c": self.shade[k],
                    "m": bool(self.moving[k]),
                }
                for k in range(len(self.atoms))
            ],
        }

    def view(self, across: int, alt: str) -> Markup:
        """Return a fixed view as an `svg` element, with x to the right and the axis `across` up."""
        depth_axis = 3 - across
        middle = self.frames[0]
        order = np.argsort(middle[:, depth_axis] * (1 if across == 2 else -1))
        extent = float(np.abs(self.frames[:, :, [0, across]]).max()) + 1.0
        parts = []
        for a, b in self.edges[:, :, [0, across]]:
            parts.append(
                f'<line class="cell" x1="{a[0]:.2f}" y1="{-a[1]:.2f}" '
                f'x2="{b[0]:.2f}" y2="{-b[1]:.2f}"/>'
            )
        for k in order:
            way = self.frames[:, k][:, [0, across]]
            x, y = way[0]
            size, kind = (0.62, "moving") if self.moving[k] else (0.32, "resting")
            parts.append(
                f'<circle class="{kind}" cx="{x:.2f}" cy="{-y:.2f}" r="{size}" '
                f'fill="{self.shade[k]}"/>'
            )
        for k in order:
            way = self.frames[:, k][:, [0, across]]
            if np.linalg.norm(self.frames[-1, k] - self.frames[0, k]) > _FAR_A:
                points = " ".join(f"{x:.2f},{-y:.2f}" for x, y in way)
                parts.append(f'<polyline class="way" points="{points}"/>')
                parts.append(
                    f'<circle class="goal" cx="{way[-1, 0]:.2f}" cy="{-way[-1, 1]:.2f}" r="0.62"/>'
                )
        box = f"{-extent:.2f} {-extent:.2f} {2 * extent:.2f} {2 * extent:.2f}"
        head = Markup('<svg class="still" role="img" aria-label="{}" viewBox="{}">').format(
            alt, box
        )
        return head + Markup("".join(parts) + "</svg>")


def around_process(variable: CollectiveVariable, found: Localisation) -> Scene:
    """Return the atoms around the most mobile one, on the path of a collective variable.

    Parameters
    ----------
    variable
        A collective variable of one latent dimension.
    found
        The atoms that take part.
    """
    u = variable.path(np.linspace(0.0, 1.0, _FRAMES)[:, None])
    ways = np.linalg.norm(u[-1] - u[0], axis=1)
    first = int(np.argmax(ways))
    cell = variable.reference_cell
    periodic = bool(cell.any())
    relative = _around(variable, variable.reference_positions[first] + u[_FRAMES // 2, first])
    axes = _axes(u[-1, first] - u[0, first], complete_cell(cell))
    frames = (relative + u) @ axes.T
    distance = np.linalg.norm(frames[0], axis=1)
    nearest = np.argsort(distance)[:MOST_ATOMS]
    shown = np.unique(np.concatenate([nearest, np.flatnonzero(found.moving & (ways > _FAR_A))]))
    edges = np.zeros((0, 2, 3))
    if periodic and len(shown) == len(relative):
        edges = _edges(cell) @ axes.T
    amplitude = np.log(np.maximum(found.amplitude, 1e-6))
    low, high = np.log(_floor(found)), amplitude.max()
    share = np.clip((amplitude - low) / max(high - low, 1e-9), 0, 1)
    return Scene(
        frames=frames[:, shown],
        atoms=shown,
        moving=found.moving[shown],
        shade=[to_hex(_SHADES[int(255 * value)]) for value in share[shown]],
        edges=edges,
    )


def distances(variable: CollectiveVariable) -> Array:
    """Distance of each atom from the one that moves most along the path, shape (N,), angstrom."""
    u = variable.path(np.array([[0.0], [1.0]]))
    first = int(np.argmax(np.linalg.norm(u[1] - u[0], axis=1)))
    around = _around(variable, variable.reference_positions[first])
    return np.asarray(np.linalg.norm(around, axis=1))


def scale(found: Localisation) -> tuple[float, float, str]:
    """Amplitudes (angstrom) at both ends of the colour scale, and the scale as a CSS gradient."""
    stops = ", ".join(to_hex(colour) for colour in _SHADES[::51])
    return _floor(found), float(found.amplitude.max()), f"linear-gradient(to right, {stops})"


def _floor(found: Localisation) -> float:
    return float(max(found.amplitude.min(), 1e-3 * found.amplitude.max()))


def _around(variable: CollectiveVariable, centre: Array) -> Array:
    """The reference structure around a point, in the nearest images, shape (N, 3), angstrom."""
    relative = variable.reference_positions - centre
    return nearest_images(relative, variable.reference_cell)


def _axes(along: Array, frame: Array) -> Array:
    """Orthonormal rows: x along a vector, z near the axis of `frame` that is most across it."""
    x = along / max(float(np.linalg.norm(along)), 1e-12)
    if not x.any():
        x = np.array([1.0, 0.0, 0.0])
    directions = frame / np.linalg.norm(frame, axis=1, keepdims=True)
    z = directions[np.argmin(np.abs(directions @ x))]
    z = z - (z @ x) * x
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z])


def _edges(cell: Array) -> Array:
    """The edges of a cell around the origin, shape (E, 2, 3); 12, 4 or 1 by its periodicity."""
    found = []
    periodic = periodic_directions(cell)
    for axis in np.flatnonzero(periodic):
        others = [k for k in range(3) if k != axis]
        first, second = ((-0.5, 0.5) if periodic[k] else (0.0,) for k in others)
        for i in first:
            for j in second:
                start = i * cell[others[0]] + j * cell[others[1]] - 0.5 * cell[axis]
                found.append([start, start + cell[axis]])
    return np.array(found)
