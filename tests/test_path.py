"""Paths: samples with noise, files, and bands of others."""

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Log
from plumed_cv.engines.ase import AseEngine
from plumed_cv.paths.neb import find_minimum_energy_path, with_forces
from plumed_cv.paths.path import EnergyPath, files_of_band, load_path, read_images
from plumed_cv.structures import check_end_states
from plumed_cv.workflow.mep import complete, warnings_of
from tests.valleys import CurvedValley, pair, relaxed_path


@pytest.fixture(scope="module")
def valley() -> EnergyPath:
    return relaxed_path()


def test_a_folder_of_vasp_is_a_band(tmp_path: Path) -> None:
    """00/POSCAR, 01/CONTCAR, ...: what is empty is not read, nor other folders."""
    for number in range(11):
        folder = tmp_path / f"{number:02d}"
        folder.mkdir()
        image = pair(0.1 * number, 0.0, 0.0)
        image.cell, image.pbc = [12.0, 12.0, 12.0], True
        for name in ("POSCAR", "CONTCAR") if number == 1 else ("POSCAR",):
            image.positions[1, 2] = 0.3 if name == "CONTCAR" else 0.0
            image.write(folder / name, format="vasp")
        (folder / "OUTCAR").touch()
    (tmp_path / "old").mkdir()
    images = read_images(tmp_path)
    moves = np.array([image.positions[1] - image.positions[0] for image in images])
    np.testing.assert_allclose(moves[:, 0], 5 + 0.1 * np.arange(11), atol=1e-6)
    np.testing.assert_allclose(moves[:2, 2], [0.0, 0.3], atol=1e-6)
    (tmp_path / "02" / "POSCAR").unlink()
    with pytest.raises(UserError, match="02: has no OUTCAR, CONTCAR or POSCAR"):
        files_of_band(tmp_path)
    with pytest.raises(UserError, match="without the folders 00, 01"):
        read_images(tmp_path / "old")


def of_energies(energies: list[float]) -> EnergyPath:
    images = [pair(0.1 * k, 0.0, 0.0) for k in range(len(energies))]
    for image, energy in zip(images, energies, strict=True):
        image.calc = SinglePointCalculator(image, energy=energy, forces=np.zeros((2, 3)))
    return EnergyPath(tuple(images))


def test_states_in_which_the_system_does_not_stay_are_named() -> None:
    """At 300 K, kT is 0.026 eV; steps with a minimum between them are no reason for a warning."""
    steps = [0.0, 0.1, 0.2, 0.12, 0.2, 0.1, 0.0]
    assert warnings_of(of_energies(steps), 300.0, "path.xyz") == []
    (deep,) = warnings_of(of_energies([0.0, 0.15, -0.8, -1.5, -0.7, 0.1, 0.0]), 900.0, "path.xyz")
    assert "structure 4 of the path has an energy 1.50 eV below both end states" in deep
    assert "path.xyz@3" in deep
    (shallow,) = warnings_of(of_energies([0.0, 0.1, 0.15, 0.14, 0.13]), 300.0, "path.xyz")
    assert "the final state is left over a barrier of 0.020 eV, which is 0.8 kT" in shallow
    both = warnings_of(of_energies([0.0, 0.04, 0.0]), 300.0, "path.xyz")
    assert [warning.split()[2] for warning in both] == ["initial", "final"]


def test_noise_has_its_variance_and_keeps_centre_and_tangent(valley: EnergyPath) -> None:
    variance, n = 0.005, 20_000
    samples = valley.noisy_samples(n, variance, np.random.default_rng(1)).astype(np.float64)
    at = np.linspace(0, 1, n)
    noise = samples - valley.spline(at)
    np.testing.assert_allclose(noise.mean(axis=1), 0, atol=1e-6)
    tangent = valley.spline.derivative()(at)
    tangent /= np.linalg.norm(tangent, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(np.sum(noise * tangent, axis=(1, 2)), 0, atol=1e-6)
    # Of 6 coordinates 2 are left; relative error sqrt(2 / 2n) = 0.7 %, five of them allowed:
    # odds of failing below 1e-6.
    assert np.sum(noise**2) / n == pytest.approx(2 * variance, rel=0.035)


def test_file_keeps_energies_and_forces(valley: EnergyPath, tmp_path: Path) -> None:
    file = tmp_path / "path.xyz"
    valley.save(file)
    read = load_path(file)
    np.testing.assert_allclose(read.energies, valley.energies, atol=1e-7)
    np.testing.assert_allclose(read.displacements, valley.displacements, atol=1e-7)
    assert read.species == ("H", "H")


def test_paths_that_are_none(valley: EnergyPath, tmp_path: Path) -> None:
    file = tmp_path / "path.xyz"
    with pytest.raises(UserError, match="does not exist"):
        load_path(file)
    file.write_text("not a structure")
    with pytest.raises(UserError, match="ASE cannot read"):
        load_path(file)
    ase.io.write(file, list(valley.images[:2]))
    with pytest.raises(UserError, match="give three images or more"):
        load_path(file)
    ase.io.write(file, [pair(0, 0, 0)] * 3)
    with pytest.raises(UserError, match="contains 1 different structures"):
        load_path(file)
    ase.io.write(file, [pair(x, 0, 0) for x in range(3)])
    with pytest.raises(UserError, match="image 0 has no energy"):
        load_path(file)
    other = Atoms("HO", positions=[[0, 0, 0], [5, 0, 0]])
    other.calc = SinglePointCalculator(other, energy=0.0, forces=np.zeros((2, 3)))
    ase.io.write(file, [*valley.images[:3], other])
    with pytest.raises(UserError, match="image 3 has other atoms"):
        load_path(file)


def test_end_states_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="2 atoms and the final state 3"):
        check_end_states(pair(0, 0, 0), Atoms("H3", positions=np.eye(3)))
    with pytest.raises(UserError, match="Atom 2 is H in the initial and O"):
        check_end_states(pair(0, 0, 0), Atoms("HO", positions=np.eye(3)[:2]))
    boxed = pair(0, 0, 0)
    boxed.set_cell([9, 9, 9])
    boxed.pbc = True
    with pytest.raises(UserError, match="different cells"):
        check_end_states(boxed, pair(0, 0, 0))
    with pytest.raises(UserError, match="relax to the same structure"):
        find_minimum_energy_path(pair(-0.9, 0.1, 0), pair(-0.8, 0, 0), CurvedValley, 7)
    with pytest.raises(UserError, match="did not converge"):
        find_minimum_energy_path(pair(-0.9, 0.1, 0), pair(0.8, 0, 0), CurvedValley, 7, max_steps=2)


def crystal_path(n_images: int = 6) -> list[Atoms]:
    """A vacancy's hop in a triclinic, turned supercell of two species, with made-up forces."""
    rng = np.random.default_rng(7)
    atoms = make_supercell(bulk("Fe", a=2.87), 4 * np.eye(3))
    atoms.symbols[::3] = "Cr"
    hole = atoms.positions[0].copy()
    del atoms[0]
    atoms.rotate(33, (1, 2, 3), rotate_cell=True)
    atoms.rattle(0.05, seed=3)
    hole = np.linalg.solve(bulk("Fe", a=2.87).cell.array, hole) @ atoms.cell.array / 4
    shifts = hole - atoms.positions
    shifts -= np.rint(shifts @ np.linalg.inv(atoms.cell.array)) @ atoms.cell.array
    hopper = int(np.linalg.norm(shifts, axis=1).argmin())
    images = []
    for s in np.linspace(0, 1, n_images):
        image = atoms.copy()
        image.positions[hopper] += s * shifts[hopper]
        forces = rng.normal(size=image.positions.shape)
        image.calc = SinglePointCalculator(image, energy=rng.normal(), forces=forces)
        images.append(image)
    return images


def changed(images: list[Atoms], number: int, **arrays: Any) -> list[Atoms]:
    """The images with positions, cell or results of one of them changed."""
    copy = images[number].copy()
    results = dict(images[number].calc.results)
    for name, value in arrays.items():
        if name in results:
            results[name] = value
        elif name == "cell":
            copy.set_cell(value)
        else:
            copy.positions = value
    copy.calc = SinglePointCalculator(copy, **results)
    return [*images[:number], copy, *images[number + 1 :]]


def reordered(images: list[Atoms], number: int, order: np.ndarray) -> list[Atoms]:
    copy = images[number][order]
    results = images[number].calc.results
    copy.calc = SinglePointCalculator(
        copy, energy=results["energy"], forces=results["forces"][order]
    )
    return [*images[:number], copy, *images[number + 1 :]]


def test_any_orientation_border_and_drift(tmp_path: Path) -> None:
    images = crystal_path()
    file = tmp_path / "path.traj"
    ase.io.write(file, images)
    said: list[str] = []
    plain = load_path(file, said.append)
    assert ["rotated" in sentence for sentence in said] == [True]
    assert not np.triu(plain.cell, 1).any()
    # Turned together: lengths and work stay.
    steps = np.stack([image.positions - images[0].positions for image in images])
    steps -= steps.mean(axis=1, keepdims=True)
    forces = np.stack([image.get_forces() for image in images])
    forces -= forces.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.einsum("kni,kni->k", plain.displacements, plain.forces),
        np.einsum("kni,kni->k", steps, forces),
        atol=1e-10,
    )
    np.testing.assert_allclose(
        np.linalg.norm(plain.displacements, axis=2), np.linalg.norm(steps, axis=2), atol=1e-10
    )
    rng = np.random.default_rng(2)
    for image in images[1:]:
        image.positions += rng.uniform(-20, 20, size=3)
        image.positions += rng.integers(-2, 3, size=(len(image), 3)) @ image.cell.array
        image.calc = SinglePointCalculator(image, **image.calc.results)
    ase.io.write(file, images)
    np.testing.assert_allclose(load_path(file).displacements, plain.displacements, atol=1e-9)


def test_several_files_of_which_the_last_structure_counts(tmp_path: Path) -> None:
    images = crystal_path(5)
    files = [tmp_path / f"{number:02d}.xyz" for number in range(5)]
    for number, file in enumerate(files):
        ase.io.write(file, [images[0], images[number]])
    together = tmp_path / "path.xyz"
    ase.io.write(together, images)
    one, several = load_path(together), load_path(files)
    np.testing.assert_allclose(one.displacements, several.displacements, atol=1e-7)
    np.testing.assert_allclose(one.energies, several.energies, atol=1e-7)
    ase.io.write(files[2], images[2][1:])
    with pytest.raises(UserError, match=r"02.xyz: image 2 has 62 atoms and image 0 has 63"):
        load_path(files)


def test_fixed_atoms_keep_their_forces(tmp_path: Path) -> None:
    images = crystal_path()
    forces = images[2].get_forces()
    for image in images:
        image.set_constraint(FixAtoms(range(10)))
    file = tmp_path / "path.traj"
    ase.io.write(file, images)
    read = load_path(file).forces[2]
    expected = np.linalg.norm(forces, axis=1)  # their mean acts on what holds the fixed atoms
    np.testing.assert_allclose(np.linalg.norm(read, axis=1), expected, atol=1e-10)


def test_repeated_images_are_left_out(tmp_path: Path) -> None:
    images = crystal_path()
    file = tmp_path / "path.traj"
    ase.io.write(file, [images[0], *images, images[-1]])
    said: list[str] = []
    path = load_path(file, said.append)
    assert "2 of 8 images are repeated" in said[-1]
    assert len(path.images) == 6
    assert np.isfinite(path.spline(np.linspace(0, 1, 50))).all()


def test_images_that_do_not_fit_are_named(tmp_path: Path) -> None:
    images = crystal_path()
    file = tmp_path / "path.traj"
    n = len(images[0])
    positions, forces = images[3].positions, images[3].get_forces()
    iron = np.flatnonzero(images[0].symbols == "Fe")
    swapped, shuffled, species = np.arange(n), np.arange(n), np.arange(n)
    swapped[iron[[4, 9]]] = iron[[9, 4]]
    shuffled[iron] = np.random.default_rng(1).permutation(iron)
    species[[iron[0], 2]] = [2, iron[0]]
    nan = np.full_like(positions, np.nan)
    cell = images[0].cell.array
    drifted = [image.copy() for image in images]
    exchange = rf"image 3 has .*: atom {iron[4] + 1} is at the position of atom {iron[9] + 1}"
    mistakes = [
        (reordered(images, 3, swapped), exchange),
        (reordered(images, 3, shuffled), "image 3 has the atoms in another order"),
        (reordered(images, 3, species), "image 3 has the atoms in another order than image 0"),
        (changed(images, 2, cell=1.01 * cell), "image 2 has another cell"),
        (changed(images, 2, positions=nan), "image 2 contains positions that are not finite"),
        (changed(images, 2, forces=nan), "image 2 has an energy or a force that is not finite"),
        (changed(images, 2, energy=np.nan), "image 2 has an energy or a force"),
    ]
    drift = np.array([3.0, 2.0, 1.0])
    for image in drifted[3:]:
        image.positions += drift
        image.calc = SinglePointCalculator(image, energy=0.0, forces=forces)
    mistakes.append((reordered(drifted, 3, swapped), "image 3 has the atoms in another order"))
    far = np.zeros_like(positions)
    far[5] = 0.2 * cell[0]
    walking = [image.copy() for image in images]
    for k, image in enumerate(walking):
        image.positions += k * far
    mistakes.append((walking, "image 3: atom 6 has moved by half of the cell"))
    left = [image.copy() for image in images]
    for image in left:
        image.set_cell(image.cell.array[[1, 0, 2]])
    mistakes.append((left, "image 0: the cell vectors are left-handed"))
    slab = [image.copy() for image in images]
    slab[1].pbc = (True, True, False)
    mistakes.append((slab, "image 1 has another cell than image 0"))
    fixed = [image.copy() for image in images]
    fixed[1].set_constraint(FixAtoms([0]))
    mistakes.append((fixed, "The initial state has 0 fixed atoms and the final state 1"))
    for wrong, sentence in mistakes:
        ase.io.write(file, wrong)
        with pytest.raises(UserError, match=sentence) as caught:
            load_path(file)
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)


def test_all_energies_are_of_one_calculator(valley: EnergyPath) -> None:
    """Two images lack energies, and those of the others have another zero."""
    images = [image.copy() for image in valley.images]
    for image, own in list(zip(images, valley.images, strict=True))[2:]:
        results = {"energy": own.get_potential_energy() - 239_256.0, "forces": own.get_forces()}
        image.calc = SinglePointCalculator(image, **results)
    said: list[str] = []
    reporter = Log()
    reporter.say = said.append  # type: ignore[method-assign, assignment]
    here = Path(__file__).parents[1]
    with AseEngine("tests.test_path.CurvedValley", images[0], directory=here) as engine:
        path = complete(images, "mine.traj", engine, reporter)
        np.testing.assert_allclose(path.energies, valley.energies, atol=1e-9)
        assert len(said) == 1
        assert "all 15 images are the engine's, also those of the 13" in said[0]
        whole = complete(images[2:], "mine.traj", engine, reporter)
        assert whole.images[0].get_potential_energy() < -239_000
    assert len(said) == 1


def test_missing_forces_are_computed(valley: EnergyPath, tmp_path: Path) -> None:
    file = tmp_path / "path.xyz"
    ase.io.write(file, [image.copy() for image in valley.images])
    complete = EnergyPath(tuple(with_forces(read_images(file), CurvedValley)))
    np.testing.assert_allclose(complete.energies, valley.energies, atol=1e-6)
    np.testing.assert_allclose(complete.forces, valley.forces, atol=1e-5)
