"""Refusals of what a user gives, beside those in the tests of each subject."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from plumed_cv import cv, freeenergy
from plumed_cv.cli import app
from plumed_cv.common.errors import UserError
from plumed_cv.config import Config
from plumed_cv.cv import meanpath, pca, projection
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.engines.lammps_potential import potential_commands
from plumed_cv.events.catalogue import NAME, read_catalogue
from plumed_cv.paths.path import load_path
from plumed_cv.structures import check_end_states
from plumed_cv.structures.frame import displacements
from plumed_cv.structures.lammps_files import read
from plumed_cv.workflow.from_atoms import run_input
from tests.test_structures import carbide, dump_text

CELL = 6.0 * np.eye(3)
CORNERS = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.0, 1.6, 0.0], [0.0, 0.0, 1.7]])
SYSTEM = {"initial": "a.xyz", "final": "b.xyz", "temperature_K": 300.0}
ENGINE = {"name": "lammps", "potential": ["pair_style zero 3.0"]}


def crystal(**changes: Any) -> Atoms:
    atoms: Atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


def linear() -> CollectiveVariable:
    moved = CORNERS.copy()
    moved[0, 0] += 0.3
    return cv.linear(["Fe"] * 4, CELL, CORNERS, moved)


def command(*arguments: str | Path) -> None:
    app(list(map(str, arguments)), standalone_mode=False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"alignment": "best"}, "choose 'none' or 'optimal'"),
        ({"alignment": "optimal"}, "A reference for alignment must have no cell"),
        ({"drift": "left"}, "drift = 'left': choose 'removed' or 'kept'"),
        (
            {"alignment": "optimal", "reference_cell": np.zeros((3, 3)), "drift": "kept"},
            "rotates and moves structures, but fixed atoms hold them",
        ),
    ],
)
def test_variables_that_contradict_themselves(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(linear(), **changes)


def not_finite() -> None:
    data = np.zeros((20, 4, 3))
    data[3, 1, 2] = np.nan
    meanpath.fit(data, np.linspace(0.0, 1.0, 20), n_functions=3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (not_finite, "The displacements contain NaN or infinite values"),
        (lambda: pca.fit(np.ones((5, 4, 3)), 0), "0 principal components: ask for one or more"),
        (
            lambda: projection.select("1-5", ["Cu"] * 8, held=[2]),
            "atom 3 is fixed; leave it out",
        ),
    ],
)
def test_data_of_a_variable(wrong: Callable[[], object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        wrong()


@pytest.mark.parametrize(
    ("positions", "cell", "sentence"),
    [
        (CORNERS[:3], CELL, "has 3 atoms and the reference 4"),
        (CORNERS * np.nan, CELL, "positions contain NaN or infinite values"),
        (CORNERS, np.full((3, 3), np.inf), "must be three finite lattice vectors"),
        (CORNERS, np.ones((3, 3)), "has no volume; give independent lattice vectors"),
    ],
)
def test_a_displacement_frame(positions: Any, cell: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        displacements(positions, cell, CORNERS, CELL)


def test_end_states_in_different_cells() -> None:
    larger = crystal()
    larger.set_cell(1.001 * larger.cell, scale_atoms=True)
    with pytest.raises(UserError, match="have different cells; give both the same"):
        check_end_states(crystal(), larger)


def test_images_with_different_fixed_atoms(tmp_path: Path) -> None:
    images = [crystal(constraints=[FixAtoms([0, 1])]) for _ in range(3)]
    images[1].positions[0] += 0.1
    for image in images:
        forces = np.zeros_like(image.positions)
        image.calc = SinglePointCalculator(image, energy=0.0, forces=forces)
    ase.io.write(tmp_path / "band.traj", images)
    with pytest.raises(UserError, match="against image 0, as initial state"):
        load_path(tmp_path / "band.traj")


def test_damaged_dumps(tmp_path: Path) -> None:
    file = tmp_path / "a.dump"
    text = dump_text([carbide()], "id type element x y z")
    rows = text.splitlines()
    file.write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(UserError, match=f"a structure of {len(carbide())} atoms is incomplete"):
        read(file, "dump", 0, ["Si", "C"])
    silicon = next(k for k, row in enumerate(rows) if " Si " in row)
    rows[silicon] = rows[silicon].replace(" Si ", " C ")
    file.write_text("\n".join(rows) + "\n")
    with pytest.raises(UserError, match="type 1 is both"):
        read(file, "dump", 0, ["Si", "C"])


def test_potentials_without_a_style_or_an_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="have no pair_style line"):
        potential_commands(["pair_coeff * * Cu_u3.eam"], tmp_path, "metal")
    (tmp_path / "a.in").write_text("pair_style eam\ninclude b.in\n")
    (tmp_path / "b.in").write_text("include a.in\n")
    with pytest.raises(UserError, match=r"[ab]\.in: includes itself"):
        potential_commands(Path("a.in"), tmp_path, "metal")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is damaged .*; make the catalogue again"),
        ("[]", "is not a catalogue of plumed_cv"),
        (
            json.dumps({"format": "plumed_cv catalogue", "format_version": 1}),
            "is damaged .KeyError.*; make the catalogue again",
        ),
    ],
)
def test_damaged_catalogues(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_catalogue(tmp_path)


def test_a_changed_state(tmp_path: Path) -> None:
    """The numbers still fit together; only the checksum shows that one is another."""
    file = tmp_path / "babf.state"
    estimator = freeenergy.Estimator(freeenergy.Grid(0.0, 1.0, 10), 0.025)
    for x in np.linspace(0.05, 0.95, 40):
        estimator.learn(x)
    freeenergy.write_state(file, estimator.state)
    freeenergy.read_state(file)
    text = file.read_text()
    changed = re.sub(r"(#! SET kT 0\.02)5\S*", r"\g<1>6", text)
    assert changed != text
    file.write_text(changed)
    with pytest.raises(UserError, match="as its checksum shows; use an earlier copy"):
        freeenergy.read_state(file)


def test_mean_force_with_relu_and_a_configuration_without_a_directory() -> None:
    sections: dict[str, Any] = {"system": SYSTEM, "engine": ENGINE}
    with pytest.raises(ValueError, match="not possible with relu, whose gradient jumps"):
        Config(
            **sections, cv={"activation": "relu"}, sampling={"steps": 10_000, "mean_force": True}
        )
    with pytest.raises(UserError, match="this configuration needs the argument directory"):
        run_input(Config(**sections, sampling={"steps": 10_000}))


def test_outputs_that_exist(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "cu.cif", crystal())
    for arguments, sentence in (
        (("init", "vacancy-fe", tmp_path), "already exists; name another folder"),
        (("export", tmp_path, tmp_path), "already exists; give another name"),
        (
            (
                "jumps",
                tmp_path / "cu.cif",
                "--input",
                tmp_path / "a.toml",
                "--species",
                "Cu",
                "-o",
                tmp_path,
            ),
            "already exists; name another folder",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            command(*arguments)


def test_widths_that_are_no_numbers(tmp_path: Path) -> None:
    ends = ["--initial", str(tmp_path / "a.xyz"), "--final", str(tmp_path / "b.xyz")]
    with pytest.raises(UserError, match="--hidden wide: give widths such as 24,24"):
        command("train", tmp_path / "md.dcd", *ends, "--hidden", "wide")
