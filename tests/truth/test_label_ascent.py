"""Structures in which a committee disagrees most, where they are known by a formula."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms

from plumed_cv.cv import linear
from plumed_cv.engines import Engine
from plumed_cv.engines.ase import AseEngine
from plumed_cv.structures import cell_of
from plumed_cv.workflow.label_ascent import Disagreement, ascend
from tests.truth import landscape
from tests.truth.test_committee import KT, WELL, variable


def engine(name: str) -> AseEngine:
    return AseEngine(
        "landscape.OnLandscape",
        WELL.reference,
        arguments={"name": name},
        directory=Path(landscape.__file__).parent,
    )


@pytest.fixture(scope="module")
def calculator() -> Iterator[Disagreement]:
    """The curved landscape, and one with a third of its stiffness."""
    with ExitStack() as stack:
        engines: list[Engine] = [
            stack.enter_context(engine(name)) for name in ("three atoms, curved", "softer")
        ]
        yield Disagreement(engines, WELL.state(0.0), KT)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_an_ascent_ends_at_the_distance_of_the_formula(
    calculator: Disagreement, share: float
) -> None:
    """k r^2/2 - kT ln r^4 has its minimum at r^2 = 4 kT/k, in the plane where it began."""
    s = np.array(share * WELL.length)
    y = WELL.centre(s) + np.random.default_rng(1).normal(scale=0.1, size=len(WELL.basis) - 1)
    start = WELL.positions(np.concatenate([s[None], y]))
    cv, cell = variable(), cell_of(WELL.reference)
    found, atoms = ascend(calculator, WELL.state(0.0), start, cv)
    np.testing.assert_allclose(cv.value(atoms.positions, cell), cv.value(start, cell), atol=1e-9)
    z = WELL.basis @ (atoms.positions - WELL.positions(np.zeros(len(WELL.basis)))).ravel()
    k = float(WELL.stiffness_at(s))
    square = np.sum((z[1:] - WELL.centre(s)) ** 2)
    assert square == pytest.approx(4.0 * KT / k, rel=0.02)
    assert found["deviation_eV"] == pytest.approx(k / 3.0 * square / 2**0.5, rel=1e-6)


def test_forces_are_the_slopes_of_the_energy(calculator: Disagreement) -> None:
    atoms = WELL.state(0.4 * WELL.length)
    atoms.positions += np.random.default_rng(2).normal(scale=0.1, size=atoms.positions.shape)
    atoms.calc = calculator
    forces, h = atoms.get_forces(), 1e-5
    for atom, axis in ((0, 0), (1, 2), (2, 1)):
        energies = []
        for sign in (1.0, -1.0):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * h
            moved.calc = calculator
            energies.append(moved.get_potential_energy())
        assert forces[atom, axis] == pytest.approx(-np.subtract(*energies) / (2 * h), abs=1e-5)


def test_fixed_atoms_stay() -> None:
    """As in a run, they are not in the CV."""
    initial: Atoms = bulk("Cu", cubic=True).repeat(2)
    final = initial.positions.copy()
    final[0, 0] += 1.0
    held = np.arange(16, 32)
    initial.set_constraint(FixAtoms(held))
    cell = cell_of(initial)
    ends = (initial.positions, final)
    cv = linear(list(initial.symbols), cell, *ends, atoms="1-16", drift="kept")
    start = 0.5 * (initial.positions + final)
    start += np.random.default_rng(3).normal(scale=0.05, size=start.shape)
    names = ("emt.EMT", "morse.MorsePotential")
    with ExitStack() as stack:
        engines: list[Engine] = [
            stack.enter_context(AseEngine(f"ase.calculators.{name}", initial)) for name in names
        ]
        found, atoms = ascend(Disagreement(engines, initial, 0.1), initial, start, cv)
    np.testing.assert_array_equal(atoms.positions[held], start[held])
    assert np.abs(atoms.positions - start).max() > 0.01
    assert found["deviation_eV"] != found["deviation_before_eV"]
    value = [cv.value(x[:16], cell)[0] for x in (start, atoms.positions)]
    assert value[0] == pytest.approx(value[1], abs=1e-9)
