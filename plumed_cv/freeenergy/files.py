"""State and profile files of the action BABF, and those that Python writes for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import units
from numpy.typing import ArrayLike

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.common.tables import checksum, read_table
from plumed_cv.freeenergy.barriers import barrier_and_delta_F, difference_of
from plumed_cv.freeenergy.basins import find
from plumed_cv.freeenergy.estimator import NATURAL, State
from plumed_cv.freeenergy.grids import Grid, at_all_nodes
from plumed_cv.freeenergy.jackknife import Estimate
from plumed_cv.freeenergy.profiles import Profile
from plumed_cv.freeenergy.sums import smooth_profile
from plumed_cv.freeenergy.surfaces import Surface
from plumed_cv.structures.frame import Array

_MOST_BINS = 10_000_000

_ENERGY_UNITS = {
    "eV": 1.0,
    "kj/mol": units.kJ / units.mol,
    "kcal/mol": units.kcal / units.mol,
    "j/mol": 1e-3 * units.kJ / units.mol,
    "Ha": units.Ha,
}


def read_state(path: Path | str) -> State:
    """Read a state file of the action BABF or of `write_state`.

    Energies are converted to eV. Those of a run with UNITS NATURAL have no value in eV: they remain
    as they are, and the state's `energy_unit` is "natural".

    Raises
    ------
    UserError
        If it is missing, foreign, truncated or damaged, or its energy unit is unknown.
    """
    return _read_state(path)[0]


def read_last_step(path: Path | str) -> int | None:
    """The engine's number of the last step in a state; None for a sum of states.

    Raises
    ------
    UserError
        As for `read_state`.
    """
    return _read_state(path)[1].last_step()


def _read_state(path: Path | str) -> tuple[State, "_Header"]:
    fields, header, rows = _read_table(path)
    if header.text("action") != "BABF_state" or header.text("format_version") != "1":
        raise UserError(f"{path}: is not a state file of BABF in format version 1")
    arguments, axes = header.axes(fields)
    d, nodes = len(axes), _nodes(axes)
    expected = [*arguments, *_state_fields(arguments)]
    if d == 1 and fields == expected[:-1]:  # of a version whose bias always followed from the sums
        expected.pop()
    if fields != expected or len(rows) != nodes.shape[1]:
        raise UserError(
            f"{path}: has {len(rows)} rows of {' '.join(fields)} where {nodes.shape[1]} rows of "
            f"{' '.join(expected)} belong, so it is not complete; take an earlier copy"
        )
    sums, prior = rows[:, d : 3 * d + 2].T.copy(), rows[:, 3 * d + 2 : 4 * d + 2].T.copy()
    slack = 1e-6 * np.array([[axis.spacing] for axis in axes])
    in_place = bool((np.abs(rows[:, :d].T - nodes) <= slack).all())
    if not np.isfinite(rows).all() or (sums[[0, 1 + d]] < 0).any() or not in_place:
        raise UserError(
            f"{path}: has a number that no run writes (NaN, infinite, negative weight or wrong "
            "node), so the file is damaged"
        )
    header.check_unchanged()
    unit, energy = header.energy_unit()
    sums[1 : 1 + d] *= energy
    state = State(
        arguments=arguments,
        axes=axes,
        kT_eV=header.number("kT") * energy,
        kappas_eV=tuple(header.number(_of("kappa", name, d)) * energy for name in arguments),
        tau=header.number("tau"),
        ramp=header.number("ramp"),
        prior=energy * (prior[0] if d == 1 else prior),
        steps=header.whole("steps"),
        sums=sums,
        energy_unit=unit,
        length_unit=header.constants.get("length_unit", ""),
    )
    return state, header


def write_state(path: Path | str, state: State) -> None:
    """Write a state file for `read_state` and, in its energy unit, for the action's STATE_RFILE."""
    d = len(state.axes)
    constants = {
        "action": "BABF_state",
        "format_version": "1",
        "energy_unit": state.energy_unit,
        "kT": _number(state.kT_eV),
        **({"length_unit": state.length_unit} if state.length_unit else {}),
        **{
            _of("kappa", name, d): _number(kappa)
            for name, kappa in zip(state.arguments, state.kappas_eV, strict=True)
        },
        "tau": _number(state.tau),
        "ramp": _number(state.ramp),
        "steps": str(state.steps),
        "solved": str(state.steps),
        **_grid_constants(state.axes, state.arguments),
    }
    rests = np.zeros_like(state.sums)
    columns = [*_nodes(state.axes), *state.sums, *np.atleast_2d(state.prior), *rests]
    columns.append(state.energy())
    fields = [*state.arguments, *_state_fields(state.arguments)]
    _write_table(path, fields, constants, columns)


def write_fes(path: Path | str, profile: Profile) -> None:
    """Write a profile in its energy unit as a PLUMED text file for PRIOR, `read_fes` and NumPy."""
    constants = {
        "action": "BABF_fes",
        "energy_unit": profile.energy_unit,
        "kT": _number(profile.kT_eV),
        "reactant": _number(profile.states[0]),
        "product": _number(profile.states[1]),
        "barrier": _number(profile.barrier.value),
        "barrier_error": _number(profile.barrier.error),
        "delta_F": _number(profile.delta_F.value),
        "delta_F_error": _number(profile.delta_F.error),
        "A1_minus_A0": _number(profile.A1_minus_A0.value),
        "A1_minus_A0_error": _number(profile.A1_minus_A0.error),
        **_grid_constants([profile.grid], [profile.argument]),
    }
    columns = {
        profile.argument: profile.xi,
        "A_k": profile.A_k,
        "A": profile.A,
        "A_k_error": profile.A_k_error,
        "A_error": profile.A_error,
        "count": profile.count,
    }
    _write_table(path, list(columns), constants, list(columns.values()))


def write_prior(path: Path | str, grid: Grid, xi: ArrayLike, A_eV: ArrayLike) -> None:
    """Write a profile for the action's PRIOR from its values anywhere along the CV.

    Parameters
    ----------
    path
        The file.
    grid
        The action's grid; beyond the ends of `xi` the profile is constant.
    xi, A_eV
        Positions in any order, and free energies there, eV, (m,) each.
    """
    x, y = np.asarray(xi, dtype=float), np.asarray(A_eV, dtype=float)
    order = np.argsort(x)
    A = np.interp(grid.nodes, x[order], y[order])
    constants = {"energy_unit": "eV", **_grid_constants([grid], ["xi"])}
    _write_table(path, ["xi", "A_k"], constants, [grid.nodes, A])


def read_fes(path: Path | str) -> Profile:
    """Read a profile written by `write_fes`, or by the action's FES_FILE, which has no errors.

    Energies are those of `read_state`.

    Raises
    ------
    UserError
        If the file is missing, foreign or truncated, or its energy unit is unknown.
    """
    fields, header, rows = _read_table(path)
    grid = header.grid(fields[0])
    missing = {"A_k", "A", "count"} - set(fields)
    if header.text("action") != "BABF_fes" or missing or len(rows) != len(grid.nodes):
        raise UserError(f"{path}: is not a complete profile written by plumed_cv or BABF")
    header.check_unchanged()
    columns = dict(zip(fields, rows.T, strict=True))
    unit, energy = header.energy_unit()
    unknown = np.full(len(rows), np.nan)
    states = (header.number("reactant", 0.0), header.number("product", 1.0))
    A, kT = columns["A"] * energy, header.number("kT") * energy
    smooth = smooth_profile(grid, A, states)
    barrier, delta_F = barrier_and_delta_F(A, smooth, find(grid, smooth, states, kT), kT)

    def estimate(name: str, computed: float) -> Estimate:
        # Files without A1_minus_A0 are older, and delta_F there means A1_minus_A0.
        if name == "delta_F" and "A1_minus_A0" not in header.constants:
            return Estimate(computed, np.nan, unit)
        value, error = header.number(name, computed), header.number(f"{name}_error", np.nan)
        return Estimate(value, error, unit)

    return Profile(
        argument=fields[0],
        grid=grid,
        kT_eV=kT,
        states=states,
        A_k=columns["A_k"] * energy,
        A=A,
        A_k_error=columns.get("A_k_error", unknown) * energy,
        A_error=columns.get("A_error", unknown) * energy,
        count=columns["count"],
        barrier=estimate("barrier", barrier),
        delta_F=estimate("delta_F", delta_F),
        A1_minus_A0=estimate("A1_minus_A0", difference_of(grid, smooth, states)),
        energy_unit=unit,
    )


def write_surface(path: Path | str, surface: Surface) -> None:
    """Write a free energy on two CVs as a PLUMED text file, like those of `sum_hills`.

    Energies are in the unit of the surface. The first CV varies fastest, and an empty line follows
    each of its rows. PRIOR, `read_surface`, gnuplot and NumPy read it.
    """
    constants = {
        "action": "BABF_fes",
        "energy_unit": surface.energy_unit,
        "kT": _number(surface.kT_eV),
        **_grid_constants(surface.axes, surface.arguments),
    }
    names = [*surface.arguments, "A_k", "A", "A_k_error", "A_error", "count"]
    columns = [
        *surface.points,
        *(surface.A_k, surface.A, surface.A_k_error, surface.A_error, surface.count),
    ]
    _write_table(path, names, constants, columns, rows_between_blanks=len(surface.axes[0].nodes))


def read_surface(path: Path | str) -> Surface:
    """Read a file of `write_surface`, or of the action's FES_FILE, which has no errors.

    Energies are those of `read_state`.

    Raises
    ------
    UserError
        If the file is missing, foreign, truncated, has one CV, or its energy unit is unknown.
    """
    fields, header, rows = _read_table(path)
    arguments, axes = header.axes(fields)
    missing = {"A_k", "A", "count"} - set(fields)
    whole = header.text("action") == "BABF_fes" and not missing
    if not whole or len(axes) != 2 or len(rows) != _nodes(axes).shape[1]:
        raise UserError(f"{path}: is not a complete free energy on two CVs of plumed_cv or BABF")
    header.check_unchanged()
    columns = dict(zip(fields, rows.T, strict=True))
    unit, energy = header.energy_unit()
    unknown = np.full(len(rows), np.nan)
    return Surface(
        arguments=arguments,
        axes=axes,
        kT_eV=header.number("kT") * energy,
        A_k=columns["A_k"] * energy,
        A=columns["A"] * energy,
        A_k_error=columns.get("A_k_error", unknown) * energy,
        A_error=columns.get("A_error", unknown) * energy,
        count=columns["count"],
        energy_unit=unit,
    )


def _of(quantity: str, argument: str, dimensions: int) -> str:
    """Return the column name of a quantity of one CV, with the name of the CV if there are more."""
    return quantity if dimensions == 1 else f"{quantity}_{argument}"


def _state_fields(arguments: Sequence[str]) -> list[str]:
    def of_each(quantity: str) -> list[str]:
        return [_of(quantity, name, len(arguments)) for name in arguments]

    sums = ["weight", *of_each("force"), "count", *of_each("offset")]
    # The rests contain rounding errors of the sums, below the last digit here.
    fields = [*sums, *of_each("prior"), *(f"{name}_rest" for name in sums)]
    return [*fields, "A"]


def _nodes(axes: Sequence[Grid]) -> Array:
    """Return the nodes, (d, n), the first CV varies fastest."""
    return at_all_nodes([axis.nodes for axis in axes])


def _grid_constants(axes: Sequence[Grid], arguments: Sequence[str]) -> dict[str, str]:
    constants: dict[str, str] = {}
    for grid, argument in zip(axes, arguments, strict=True):
        constants |= {
            f"min_{argument}": _number(grid.minimum),
            f"max_{argument}": _number(grid.maximum),
            f"nbins_{argument}": str(grid.bins),
            f"periodic_{argument}": "true" if grid.periodic else "false",
        }
    return constants


def _number(value: float) -> str:
    return "NAN" if np.isnan(value) else f"{value:.17g}"  # as PLUMED spells it


@dataclass(frozen=True)
class _Header:
    path: Path | str
    constants: dict[str, str]
    changed: bool  # whether the file was changed according to its checksum

    def check_unchanged(self) -> None:
        """Refuse a changed file; readers call it after all other checks."""
        if self.changed:
            raise UserError(
                f"{self.path}: was changed or damaged after it was written, as its checksum shows; "
                "use an earlier copy, or remove the line '#! SET checksum' after a wanted change"
            )

    def text(self, name: str) -> str:
        if name not in self.constants:
            raise UserError(
                f"{self.path}: its header has no '#! SET {name}', so it is not a whole file of "
                "BABF; take an earlier copy"
            )
        return self.constants[name]

    def number(self, name: str, default: float | None = None) -> float:
        if default is not None and name not in self.constants:
            return default
        try:
            return float(self.text(name))
        except ValueError as error:
            raise UserError(
                f"{self.path}: {name}={self.text(name)} is not a number; take an earlier copy"
            ) from error

    def whole(self, name: str) -> int:
        """Return a number of steps."""
        steps = self.number(name)
        if not (steps >= 0 and np.isfinite(steps) and steps == int(steps)):
            raise UserError(
                f"{self.path}: {name}={self.text(name)} is not a number of steps; take an earlier "
                "copy"
            )
        return int(steps)

    def last_step(self) -> int | None:
        return self.whole("md_step") if "md_step" in self.constants else None

    def axes(self, fields: Sequence[str]) -> tuple[tuple[str, ...], tuple[Grid, ...]]:
        """Return the CVs, which are the first columns, and the nodes along each."""
        d = 2 if len(fields) > 1 and f"nbins_{fields[1]}" in self.constants else 1
        return tuple(fields[:d]), tuple(self.grid(argument) for argument in fields[:d])

    def grid(self, argument: str) -> Grid:
        bins = self.number(f"nbins_{argument}")
        minimum, maximum = self.number(f"min_{argument}"), self.number(f"max_{argument}")
        finite = np.isfinite([bins, minimum, maximum, maximum - minimum]).all()
        if not (finite and 2 <= bins <= _MOST_BINS and bins == int(bins) and maximum > minimum):
            raise UserError(
                f"{self.path}: has a grid of {bins:g} bins from {minimum} to {maximum}, which is "
                "not possible; take an earlier copy"
            )
        periodic = self.text(f"periodic_{argument}") == "true"
        return Grid(minimum, maximum, int(bins), periodic)

    def energy_unit(self) -> tuple[str, float]:
        """Return the unit in which energies are returned, and the file's unit in it."""
        name = self.text("energy_unit")
        if name == NATURAL:
            return NATURAL, 1.0
        if name in _ENERGY_UNITS:
            return "eV", _ENERGY_UNITS[name]
        try:
            return "eV", float(name) * _ENERGY_UNITS["kj/mol"]
        except ValueError as error:
            raise UserError(
                f"{self.path}: energy_unit={name} is none of {', '.join(_ENERGY_UNITS)}, {NATURAL} "
                "or a number of kJ/mol; correct this line of its header"
            ) from error


def _read_table(path: Path | str) -> tuple[list[str], "_Header", Array]:
    table = read_table(path)
    return table.fields, _Header(path, table.constants, table.changed), table.rows


def _write_table(
    path: Path | str,
    fields: list[str],
    constants: dict[str, str],
    columns: Sequence[Array],
    rows_between_blanks: int | None = None,
) -> None:
    lines = ["#! FIELDS " + " ".join(fields)]
    lines += [f"#! SET {name} {value}" for name, value in constants.items()]
    header = len(lines)
    for i, row in enumerate(zip(*columns, strict=True)):
        if rows_between_blanks and i and i % rows_between_blanks == 0:
            lines.append("")
        lines.append(" " + " ".join(map(_number, row)))
    of_text = checksum("\n".join(lines) + "\n")
    lines.insert(header, f"#! SET checksum {of_text}")
    write_text(path, "\n".join(lines) + "\n")
