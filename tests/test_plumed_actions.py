"""The actions in a PLUMED input."""

from pathlib import Path

import pytest

from plumed_cv.common.errors import UserError
from plumed_cv.setup.plumed_actions import Action, actions_of, all_actions, units_of

INPUT = """
# METAD in a comment
UNITS LENGTH=A ENERGY=eV
d: DISTANCE ATOMS=1,2 # comment
LABEL=w UPPER_WALLS ARG=d
wall: LOWER_WALLS ...
  ARG=d AT=3.0 # comment
  KAPPA=1.0
... wall
INCLUDE FILE=more.dat
ENDPLUMED
RESTRAINT ARG=d
"""


def test_actions_of_an_input() -> None:
    assert list(actions_of(INPUT)) == [
        Action("UNITS", ("LENGTH=A", "ENERGY=eV")),
        Action("DISTANCE", ("ATOMS=1,2",)),
        Action("UPPER_WALLS", ("LABEL=w", "ARG=d")),
        Action("LOWER_WALLS", ("ARG=d", "AT=3.0", "KAPPA=1.0")),
        Action("INCLUDE", ("FILE=more.dat",)),
        Action("ENDPLUMED", ()),
    ]


def test_actions_of_included_files(tmp_path: Path) -> None:
    (tmp_path / "more.dat").write_text(
        "e: ENERGY\nINCLUDE FILE=absent.dat\nINCLUDE FILE=more.dat\n"
    )
    names = [action.name for action in all_actions(INPUT, tmp_path)]
    assert names == [
        *("UNITS", "DISTANCE", "UPPER_WALLS", "LOWER_WALLS", "INCLUDE"),
        *("ENERGY", "INCLUDE", "INCLUDE", "ENDPLUMED"),
    ]


def test_units_of_an_input(tmp_path: Path) -> None:
    assert units_of("d: DISTANCE ATOMS=1,2\n", tmp_path) == (10.0, 1.0)
    assert units_of("UNITS ENERGY=eV LENGTH=A\n", tmp_path) == (1.0, 1.0)
    assert units_of("UNITS ...\n  MASS=3 LENGTH=0.5\n...\n", tmp_path) == (5.0, 3.0)
    assert units_of("UNITS NATURAL\n", tmp_path) is None
    (tmp_path / "units.dat").write_text("UNITS LENGTH=um\n")
    assert units_of("INCLUDE FILE=units.dat\n", tmp_path) == (1e4, 1.0)
    with pytest.raises(UserError, match="UNITS: angstrom is none of PLUMED's units nm, A, um"):
        units_of("UNITS LENGTH=angstrom\n", tmp_path)
