"""A hop of an adatom on a slab with fixed layers, as in docs/surfaces.md, and its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io import read

from plumed_cv import input_file, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable, symmetry
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.rates.multiplicity import count_equivalent_events
from plumed_cv.structures import cell_of, drift_of, held_atoms
from plumed_cv.structures.frame import displacements
from plumed_cv.workflow.mep import check_partial_rotation, check_rotation
from python import surfaces
from tests import pages

PAGE = pages.DOCS / "surfaces.md"
SHORT = (
    surfaces.INPUT.format(steps=30_000, temperature_K=500.0)
    + "\n[path]\nimages = 9\n\n[iteration]\nmaximum = 2\n\n[rate]\nenabled = false\n"
)


def test_the_page_builds_the_structures_of_the_script(tmp_path: Path) -> None:
    pages.check_end_states(PAGE, tmp_path, surfaces.end_states())
    _, expected = surfaces.end_states("exchange")
    found = read(tmp_path / "exchange.xyz")
    assert isinstance(found, Atoms)
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-7)


def test_the_page_has_the_numbers_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    surfaces.show(json.loads(surfaces.DATA.read_text(encoding="utf-8")))
    pages.check_numbers(PAGE, capsys.readouterr().out, least=20)


def test_four_equivalent_hops() -> None:
    """With and without vacuum in a periodic cell; fixed atoms are mapped onto fixed ones."""
    initial, final = surfaces.end_states()
    assert count_equivalent_events(initial, final).events == 4
    for atoms in (initial, final):
        atoms.pbc = True
    assert count_equivalent_events(initial, final).events == 4
    fewer = np.delete(held_atoms(initial), 1)  # an atom that is not below the adatom is free
    for atoms in (initial, final):
        atoms.set_constraint(FixAtoms(fewer))
    assert count_equivalent_events(initial, final).events < 4


def test_operations_of_the_path_keep_the_fixed_atoms() -> None:
    initial, final = surfaces.end_states()
    middle = initial.copy()
    middle.positions = 0.5 * (initial.positions + final.positions)
    middle.positions[-1, 2] += 0.5
    path = EnergyPath((initial, middle, final))
    assert path.drift == "kept"
    found = symmetry.find_path_operations(path)
    assert len(found) == 4  # two mirror planes
    for operation in found:
        assert set(operation.image[path.held]) == set(path.held)
        np.testing.assert_allclose(operation.offset[path.held], 0.0, atol=1e-9)


@pytest.mark.parametrize("periodic", [0, 1])
def test_what_rotates_freely_is_refused(tmp_path: Path, periodic: int) -> None:
    initial, final = surfaces.end_states()
    text = surfaces.INPUT.format(steps=1000, temperature_K=500.0)
    (tmp_path / "surface.toml").write_text(text)
    for held, sentence in (([0, 1], "rotates"), ([0, 1, 2], None)):
        for name, atoms in (("initial", initial), ("final", final)):
            atoms.pbc = [True] * periodic + [False] * (3 - periodic)
            atoms.set_constraint(FixAtoms(held))
            atoms.write(tmp_path / f"{name}.xyz")
        given = input_file.load(tmp_path / "surface.toml")
        if sentence is None:
            check_rotation(given, initial)
            continue
        with pytest.raises(UserError, match="would change with the rotation") as caught:
            workflow.run(given, tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert ("alignment" in str(caught.value)) == (periodic == 0)


@pytest.mark.parametrize(
    ("periodic", "held", "remedy"),
    [
        (1, [], "fix at least three atoms."),
        (1, [0, 1], "fix at least three atoms."),
        (0, [0], "fix at least three atoms, or none."),
        (0, [], None),
        (1, [0, 1, 2], None),
        (2, [], None),
    ],
)
def test_harmonic_theory_refuses_a_rotation_that_it_cannot_remove(
    tmp_path: Path, periodic: int, held: list[int], remedy: str | None
) -> None:
    """It is refused before the path is computed."""
    initial, final = surfaces.end_states()
    (tmp_path / "surface.toml").write_text(surfaces.INPUT.format(steps=1000, temperature_K=500.0))
    for name, atoms in (("initial", initial), ("final", final)):
        atoms.pbc = [True] * periodic + [False] * (3 - periodic)
        atoms.set_constraint(FixAtoms(held) if held else None)
        atoms.write(tmp_path / f"{name}.xyz")
    if remedy is None:
        check_partial_rotation(initial)
        return
    with pytest.raises(UserError, match="cannot remove this rotation") as caught:
        workflow.compute_harmonic(input_file.load(tmp_path / "surface.toml"), tmp_path / "harmonic")
    assert str(caught.value).endswith(remedy)
    assert not (tmp_path / "harmonic" / "path.xyz").exists()


@pytest.mark.slow
def test_an_exchange_with_an_atom_of_the_surface(tmp_path: Path) -> None:
    """Flux barriers within five standard errors of harmonic theory, at a temperature where this is
    right to 2 %: odds of one in a million. Both atoms move, and the CV depends on both."""
    text = SHORT.replace("500.0", "300.0")
    found = surfaces.run_event(tmp_path, "exchange", text)
    for part in found["iterations"]:
        off = part["flux_barrier_eV"] - found["harmonic_flux_barrier_eV"]
        assert abs(off) < 5 * part["flux_barrier_error_eV"]
    assert found["multiplicity"] == 4
    initial, final = surfaces.end_states("exchange")
    step = np.linalg.norm(final.positions - initial.positions, axis=1)
    assert set(np.flatnonzero(step > 1.0) + 1) <= set(
        CollectiveVariable.load(tmp_path / "run" / "cv-1.safetensors").serials
    )


@pytest.mark.slow
def test_a_run_with_fixed_layers(tmp_path: Path) -> None:
    """Flux barriers within five standard errors of harmonic theory: odds of one in a million."""
    found = surfaces.run_event(tmp_path, "hop", SHORT)
    parts = found["iterations"]
    assert isinstance(parts, list)
    for part in parts:
        off = part["flux_barrier_eV"] - found["harmonic_flux_barrier_eV"]
        assert abs(off) < 5 * part["flux_barrier_error_eV"]
    assert found["multiplicity"] == 4
    path = load_path(tmp_path / "run" / "path.xyz")
    held = path.held
    assert len(held) == 32
    for image in path.images[1:]:
        np.testing.assert_array_equal(image.positions[held], path.images[0].positions[held])
    for number in (0, 1):
        variable = CollectiveVariable.load(tmp_path / "run" / f"cv-{number}.safetensors")
        assert variable.drift == "kept"
        assert not set(variable.serials - 1) & set(held)
        assert not variable.reference_cell[2].any()
    initial, _ = surfaces.end_states()
    cell = cell_of(initial)
    first = path.images[0].positions
    u = displacements(first, cell, initial.positions, cell, drift_of(initial))
    np.testing.assert_allclose(u[held], 0.0, atol=1e-7)
    # A run that is started again does nothing and gives the same.
    again = workflow.run(input_file.load(tmp_path / "surface.toml"), tmp_path / "run")
    assert again["flux_barrier_eV"] == parts[-1]["flux_barrier_eV"]
