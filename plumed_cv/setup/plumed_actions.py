"""The actions in a PLUMED input."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ase import units

from plumed_cv.common.errors import UserError

# PLUMED actions that apply forces: those of the modules bias, opes, ves, drr, eds, fisst, funnel,
# isdb, logmfd and maze, an input within the input (PLUMED), and those of plumed_cv.
_BIASES = {
    *("ABMD", "BABF", "BAIES", "BIASVALUE", "CALIBER", "DRR", "EDS", "EMMI", "EMMIVOX"),
    *("EXTENDED_LAGRANGIAN", "EXTERNAL", "FISST", "FUNNEL", "LOGMFD", "LOWER_WALLS", "LWALLS"),
    *("MAXENT", "METAD", "METAINFERENCE", "MOVINGRESTRAINT", "PBMETAD", "PLUMED", "RESCALE"),
    *("RESTRAINT", "SHADOW", "UPPER_WALLS", "UWALLS", "VES_DELTA_F", "VES_LINEAR_EXPANSION"),
}
_KINDS_OF_BIASES = ("MAZE_", "OPES_")
_SCORE = "DOSCORE"  # a flag with which observables of the module isdb apply forces

_LENGTHS_NM = {"nm": 1.0, "A": 0.1, "um": 1e3, "Bohr": 0.1 * units.Bohr}
_MASSES_AMU = {"amu": 1.0}


class Action(NamedTuple):
    """An action of a PLUMED input: its name, and the other words of its line without the label."""

    name: str
    words: tuple[str, ...]


def actions_of(plumed_dat: str) -> Iterator[Action]:
    """The actions of an input in order, without those of included files.

    The label may be `label:` or `LABEL=label`, and an action may take several lines (`...`).
    """
    for words in _lines(plumed_dat):
        if words[0].endswith(":"):
            del words[0]
        # The name is the first word that is not a keyword with a value.
        name = next((word for word in words if "=" not in word), None)
        if name is not None:
            words.remove(name)
            yield Action(name, tuple(words))
        if name == "ENDPLUMED":
            return


def biases_of(plumed_dat: str) -> Iterator[str]:
    """The names of the actions of an input that apply forces, in order."""
    for action in actions_of(plumed_dat):
        if (
            action.name.removesuffix("_SCALAR") in _BIASES
            or action.name.startswith(_KINDS_OF_BIASES)
            or _SCORE in action.words
        ):
            yield action.name


def all_actions(plumed_dat: str, folder: Path) -> Iterator[Action]:
    """The actions of an input and of the files that it includes, as far as these can be read.

    The actions of a file that is included several times are returned once.

    Parameters
    ----------
    plumed_dat
        The text of the input.
    folder
        Where PLUMED runs: relative names of included files begin there.
    """
    read: set[str] = set()

    def expanded(text: str) -> Iterator[Action]:
        for action in actions_of(text):
            yield action
            if action.name != "INCLUDE":
                continue
            for word in action.words:
                key, _, name = word.partition("=")
                if key != "FILE" or name in read:
                    continue
                read.add(name)
                try:
                    more = (folder / name).read_text(encoding="utf-8", errors="replace")
                except OSError:
                    continue  # PLUMED reports it
                yield from expanded(more)

    return expanded(plumed_dat)


def units_of(plumed_dat: str, folder: Path) -> tuple[float, float] | None:
    """Return the units of length (angstrom) and mass (amu) of an input.

    Parameters are those of `all_actions`.

    Returns
    -------
    tuple or None
        None for UNITS NATURAL, whose units have no size.

    Raises
    ------
    UserError
        If PLUMED does not know a unit either.
    """
    given = {"LENGTH": "nm", "MASS": "amu"}
    for action in all_actions(plumed_dat, folder):
        if action.name == "UNITS":
            if "NATURAL" in action.words:
                return None
            given |= dict(word.split("=", 1) for word in action.words if "=" in word)
    return length_in_angstrom(given["LENGTH"]), _size(given["MASS"], _MASSES_AMU)


def length_in_angstrom(unit: str) -> float:
    """Return PLUMED's unit of length, a name or a number of nm, in angstrom.

    Raises
    ------
    UserError
        If it is neither.
    """
    return 10.0 * _size(unit, _LENGTHS_NM)


def _size(unit: str, names: dict[str, float]) -> float:
    """Return the size of a unit, a name or a number, in the first of the named units."""
    try:
        return names[unit] if unit in names else float(unit)
    except ValueError:
        known = ", ".join(names)
        raise UserError(
            f"UNITS: {unit} is none of PLUMED's units {known} and no number; correct plumed.dat"
        ) from None


def _lines(plumed_dat: str) -> Iterator[list[str]]:
    """The words of each line without comments; lines that `...` joins are one."""
    joined: list[str] | None = None
    for line in plumed_dat.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        if joined is None and words[-1] == "...":
            joined = words[:-1]
        elif joined is None:
            yield words
        elif words[0] != "...":
            joined += words
        else:
            if joined:
                yield joined
            joined = None
    if joined:
        yield joined
