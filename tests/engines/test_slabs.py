"""Slabs and fixed atoms in every engine that has them: forces, held atoms, temperature."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.constraints import FixAtoms

from plumed_cv.common.errors import UserError
from plumed_cv.cv import linear
from plumed_cv.engines import Dynamics, Segment, State, Thermostat
from plumed_cv.structures import cell_of
from plumed_cv.structures.trajectory import read_all_positions
from tests.engines.kits import EPSILON, PLUMED_UNITS, Kit, columns, crystal, reference


def slab() -> Atoms:
    """The crystal, periodic along two directions, with fixed atoms below."""
    atoms = crystal()
    normal = np.cross(*atoms.cell.array[:2])
    height = atoms.positions @ normal
    atoms.pbc = (True, True, False)
    atoms.set_constraint(FixAtoms(np.argsort(height)[:30]))
    return atoms


@pytest.mark.parametrize("thermostat", ["langevin", "brownian", "none"])
def test_a_slab_with_fixed_atoms(
    tmp_path: Path, plugin: Path, kit: Kit, thermostat: Thermostat
) -> None:
    atoms = slab()
    held = atoms.constraints[0].index
    if kit.clusters is None:
        with pytest.raises(UserError, match="along all directions"):
            kit.make(atoms, EPSILON, tmp_path)
        whole = crystal()
        whole.set_constraint(FixAtoms(held))
        with pytest.raises(UserError, match="30 atoms are fixed"):
            kit.make(whole, EPSILON, tmp_path)
        return
    (tmp_path / "engine").mkdir()
    with kit.make(atoms, EPSILON, tmp_path / "engine") as engine:
        start = State.of(atoms)
        # The images of the atoms along the surface have no effect.
        far = start.positions + np.outer(np.arange(len(atoms)) % 3 - 1, atoms.cell.array[0])
        for positions in (start.positions, far):
            energy, forces, _ = engine.evaluate(positions, start.cell)
            expected = reference(atoms)
            assert energy == pytest.approx(expected[0], rel=kit.digits)
            np.testing.assert_allclose(forces, expected[1], atol=kit.digits)
        final = atoms.copy()
        free = np.setdiff1d(np.arange(len(atoms)), held)
        final.positions[free] += np.random.default_rng(4).normal(scale=0.3, size=(len(free), 3))
        variable = linear(
            atoms.get_chemical_symbols(), cell_of(atoms), atoms.positions, final.positions,
            atoms=free + 1, drift="kept",
        )  # fmt: skip
        variable.save(tmp_path / "cv.safetensors")
        plumed = PLUMED_UNITS + (
            f"LOAD FILE={plugin}\nae: AUTOENCODER MODEL=cv.safetensors\n"
            "PRINT ARG=ae.node-0 FILE=colvar STRIDE=10\n"
        )
        moving = State(start.positions, start.cell, np.full((len(atoms), 3), 1e-3))
        friction = 1000.0 if thermostat == "brownian" else 5.0
        dynamics = Dynamics(60.0, 2.0, thermostat, friction)
        result = engine.run(Segment(tmp_path, moving, dynamics, 100, 1, plumed, snapshot_stride=10))
    np.testing.assert_array_equal(result.end.positions[held], start.positions[held])
    assert (result.end.positions[free] != start.positions[free]).any(axis=1).all()
    if result.end.velocities is not None and thermostat != "brownian":
        assert not result.end.velocities[held].any()
    assert result.snapshots is not None
    frames = read_all_positions(result.snapshots)
    np.testing.assert_allclose(
        frames[:, held], np.broadcast_to(start.positions[held], (10, 30, 3)), atol=1e-5
    )
    # PLUMED's variable is that of Python, whatever box the engine has above the surface.
    xi = variable.value(frames[:, free], start.cell)[:, 0]
    np.testing.assert_allclose(columns(tmp_path / "colvar")[-10:, 1], xi, atol=2e-5)


def test_temperature_of_free_atoms(tmp_path: Path, kit: Kit) -> None:
    """Atoms without forces: exact variances after the thermostat has forgotten the start.

    The temperature has a standard error of 4.7 %; five of them are one in a million.
    """
    if kit.clusters is None:
        pytest.skip("does not hold atoms")
    places = 9.0 * np.array(list(np.ndindex(20, 10, 2)))
    atoms = Atoms("ArKr" * 200, places + 4.5, cell=[180.0, 90.0, 0.0], pbc=(True, True, False))
    atoms.set_constraint(FixAtoms(range(0, 400, 4)))
    held = np.arange(0, 400, 4)
    free = np.setdiff1d(np.arange(400), held)
    at_rest = State(atoms.positions, cell_of(atoms), np.zeros((400, 3)))
    (tmp_path / "engine").mkdir()
    with kit.make(atoms, 0.0, tmp_path / "engine") as engine:
        masses = engine.masses
        dynamics = Dynamics(300.0, 2.0, "langevin", 20.0)
        result = engine.run(Segment(tmp_path, at_rest, dynamics, 300, 1, snapshot_stride=0))
    velocities = result.end.velocities
    assert velocities is not None
    assert not velocities[held].any()
    kinetic = float((masses[free, None] * velocities[free] ** 2).sum()) / units.fs**2
    kelvin = kinetic / (3 * len(free) * units.kB)
    assert abs(kelvin / 300.0 - 1.0) < 5 * (2 / (3 * len(free))) ** 0.5
    log = tmp_path / "log.lammps"
    if log.exists():
        rows = [line.split() for line in log.read_text().splitlines()]
        printed = [float(row[1]) for row in rows if len(row) == 3 and row[0] == "300"]
        assert printed == pytest.approx([kelvin], rel=1e-4)
