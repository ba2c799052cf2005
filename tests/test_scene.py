"""The picture of the atoms in a report."""

import json

import numpy as np
import pytest
from ase.build import bulk

from plumed_cv import cv
from plumed_cv.cv.localisation import Localisation
from plumed_cv.report import scene


@pytest.mark.parametrize(("repeat", "periodic"), [(3, True), (3, False), (7, True)])
def test_picture_turns_the_atoms_and_nothing_else(repeat: int, periodic: bool) -> None:
    """Distances stay, x is along the hop, the hop is at the origin, and atoms are complete."""
    crystal = bulk("Fe", "bcc", a=2.8553, cubic=True).repeat(repeat)
    hopped = crystal.copy()
    hop = np.array([0.9, 0.5, -0.3])
    first = 5  # at the border of the cell
    hopped.positions[first] += hop
    cell = crystal.cell.array if periodic else np.zeros((3, 3))
    variable = cv.linear(crystal.get_chemical_symbols(), cell, crystal.positions, hopped.positions)
    motion = np.zeros(len(crystal))
    motion[first] = 1.0
    found = Localisation(0.01 + motion, 0.07, motion)
    picture = scene.around_process(variable, found)
    n = min(len(crystal), scene.MOST_ATOMS)
    assert picture.frames.shape == (21, n, 3)
    assert len(picture.edges) == (12 if periodic and n == len(crystal) else 0)
    place = list(picture.atoms).index(first)
    assert picture.moving[place]
    way = picture.frames[-1, place] - picture.frames[0, place]
    expected = np.linalg.norm(hop) * (1 - 1 / len(crystal))  # less the mean over the atoms
    np.testing.assert_allclose(way, np.array([expected, 0.0, 0.0]), atol=1e-9)
    np.testing.assert_allclose(picture.frames[10, place], 0, atol=1e-9)
    if periodic:
        apart = crystal.get_distances(first, picture.atoms, mic=True)
    else:
        apart = np.linalg.norm(crystal.positions - crystal.positions[first], axis=1)
    shown = np.linalg.norm(picture.frames[0] - picture.frames[0, place], axis=1)
    near = shown < 0.4 * repeat * 2.8553 if periodic else shown > -1  # beyond, images are choices
    np.testing.assert_allclose(shown[near], apart[near], atol=0.02)
    assert json.dumps(picture.data())
    for across in (1, 2):
        assert str(picture.view(across, "as <seen>")).count("<circle") == n + 1
