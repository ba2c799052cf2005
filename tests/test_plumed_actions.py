"""The actions in a PLUMED input."""

from pathlib import Path

from plumed_cv.setup.plumed_actions import Action, actions_of, all_actions

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
