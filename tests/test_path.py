"""Minimum energy path: an analytic one, samples with noise, and files."""

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Log
from plumed_cv.engines.ase import AseEngine
from plumed_cv.paths import neb
from plumed_cv.paths.neb import minimum_energy_path, noise_of_forces, with_forces
from plumed_cv.paths.path import EnergyPath, files_of_band, load_path, read_images
from plumed_cv.structures import check_end_states
from plumed_cv.workflow.mep import complete, warnings_of

CURVATURE, HEIGHT, SPRING, LOWER = 0.6, 0.5, 3.0, 0.6


class CurvedValley(Calculator):
    """Two atoms whose separation (x, y, z) has a double well along the arc y = c (1 - x^2).

    The path from (-1, 0, 0) to (1, 0, 0) has its saddle point at (0, c, 0), HEIGHT eV up.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        x, y, z = atoms.positions[1] - atoms.positions[0] - [5.0, 0.0, 0.0]
        off = y - CURVATURE * (1 - x**2)
        energy = HEIGHT * (1 - x**2) ** 2 + 0.5 * SPRING * (off**2 + z**2)
        slope = np.array(
            [-4 * HEIGHT * x * (1 - x**2) + SPRING * off * 2 * CURVATURE * x, SPRING * off]
        )
        gradient = np.array([*slope, SPRING * z])
        self.results = {"energy": energy, "forces": np.stack([gradient, -gradient])}


class TwoValleys(Calculator):
    """As `CurvedValley`, but with two paths: between them, on the straight line, is a ridge.

    At x = 0 the energy is HEIGHT - LOWER y^2 + y^4, so both saddle points are LOWER^2/4 below it.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        x, y, z = atoms.positions[1] - atoms.positions[0] - [5.0, 0.0, 0.0]
        stiff = 0.5 * SPRING * x**2 - LOWER * (1 - x**2)
        energy = HEIGHT * (1 - x**2) ** 2 + stiff * y**2 + y**4 + 0.5 * SPRING * z**2
        along = -4 * HEIGHT * x * (1 - x**2) + (SPRING + 2 * LOWER) * x * y**2
        gradient = np.array([along, 2 * stiff * y + 4 * y**3, SPRING * z])
        self.results = {"energy": energy, "forces": np.stack([gradient, -gradient])}


class NoisyValley(CurvedValley):
    """The valley with forces that are rounded badly: an error that depends on every digit of y."""

    noise = 1e-4  # eV/A

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        phase = 1e8 * (atoms.positions[1] - atoms.positions[0])
        error = self.noise * 2**0.5 * np.sin(phase)
        self.results["forces"] = self.results["forces"] + np.stack([-error, error])


class VeryNoisyValley(NoisyValley):
    noise = 0.1


class Tethered(Calculator):
    """Atom 1 moves in a double well along x, all others are on springs to places in space."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        moved = atoms.positions - tethered(0.0).positions
        moved -= 12.0 * np.round(moved / 12.0)
        (x, y, z), off = moved[0], moved[1:]
        forces = np.empty((len(atoms), 3))
        forces[0] = [4 * HEIGHT * x * (1 - x**2), -SPRING * y, -SPRING * z]
        forces[1:] = -SPRING * off
        energy = HEIGHT * (1 - x**2) ** 2
        energy += 0.5 * SPRING * (y**2 + z**2 + np.sum(off**2))
        self.results = {"energy": energy, "forces": forces}


def tethered(x: float) -> Atoms:
    """Atom 1 at a place in a cell of 12 A, and eleven others."""
    others = [[3 + 3 * i, 3 * j, 3 * k] for i in (0, 1) for j in (0, 1, 2) for k in (0, 1)][:11]
    return Atoms("H12", positions=[[x, 0, 0], *others], cell=[12, 12, 12], pbc=True)


def pair(x: float, y: float, z: float) -> Atoms:
    return Atoms("H2", positions=[[0, 0, 0], [5 + x, y, z]])


@pytest.fixture(scope="module")
def valley() -> EnergyPath:
    return minimum_energy_path(pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1), CurvedValley, 15)


def test_noise_of_the_forces_sets_the_tolerance(valley: EnergyPath) -> None:
    """Forces that never fall below 1e-4 eV/A, as in single precision: the path is as good."""
    said: list[str] = []
    ends = pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1)
    path = minimum_energy_path(*ends, NoisyValley, 15, say=said.append)
    assert path.barrier == pytest.approx(valley.barrier, abs=1e-4)
    assert len(said) == 1
    assert "have a noise of" in said[0]
    assert "instead of 0.001 eV/A" in said[0]
    said.clear()
    minimum_energy_path(*ends, CurvedValley, 15, say=said.append)
    assert not said
    with pytest.raises(UserError, match="compute them in double precision"):
        minimum_energy_path(*ends, VeryNoisyValley, 15)


def test_noise_of_forces_is_measured() -> None:
    """Of three independent components, within a factor of four in five structures."""
    for k in range(5):
        state = pair(-0.9 + 0.1 * k, 0.1, 0.1)
        noise = noise_of_forces(state, NoisyValley())  # type: ignore[no-untyped-call]
        assert 0.25 < noise / NoisyValley.noise < 4.0
        assert noise_of_forces(state, CurvedValley()) < 1e-8  # type: ignore[no-untyped-call]


def test_in_an_external_field_the_states_stay_where_they_are() -> None:
    """If it drifted by 1/6 A, the final state would have 0.4 eV in the springs."""
    final = tethered(0.9)
    final.positions += [12.0, 0.0, 0.0]  # a lattice vector is no other place
    path = minimum_energy_path(tethered(-0.9), final, Tethered, 15)
    assert path.barrier == pytest.approx(HEIGHT, abs=1e-4)
    np.testing.assert_allclose(path.images[-1].positions, tethered(1.0).positions, atol=1e-3)
    for image in path.images:
        again = image.copy()
        again.calc = Tethered()  # type: ignore[no-untyped-call]
        assert again.get_potential_energy() == pytest.approx(image.get_potential_energy())
        np.testing.assert_allclose(image.positions[1:], tethered(0.0).positions[1:], atol=1e-3)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_band_leaves_the_ridge_between_two_symmetric_paths(fixed: bool) -> None:
    """Along the straight line between the states there is no force to either side."""
    initial, final = pair(-1.0, 0.0, 0.0), pair(1.0, 0.0, 0.0)
    if fixed:
        for state in (initial, final):
            state.set_constraint(FixAtoms([0]))
    path = minimum_energy_path(initial, final, TwoValleys, 15)
    assert path.barrier == pytest.approx(HEIGHT - LOWER**2 / 4, abs=1e-5)
    saddle = path.images[7].positions[1] - path.images[7].positions[0] - [5, 0, 0]
    np.testing.assert_allclose(np.abs(saddle), [0, (LOWER / 2) ** 0.5, 0], atol=1e-3)


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


def test_barrier_and_shape_are_the_analytic_ones(valley: EnergyPath) -> None:
    assert valley.barrier == pytest.approx(HEIGHT, abs=1e-5)
    assert valley.energies[[0, -1]] == pytest.approx([0, 0], abs=1e-5)
    top = valley.images[int(np.argmax(valley.energies))]
    saddle = top.positions[1] - top.positions[0] - [5, 0, 0]
    np.testing.assert_allclose(saddle, [0, CURVATURE, 0], atol=1e-3)
    # On a minimum energy path the forces are along the path.
    tangents = valley.spline.derivative()(valley.arc_length)
    tangents /= np.linalg.norm(tangents, axis=(1, 2), keepdims=True)
    forces = np.stack([image.get_forces() for image in valley.images])
    along = np.sum(forces * tangents, axis=(1, 2), keepdims=True) * tangents
    # Between knots 0.2 A apart the spline's tangent is off by some hundredths of a radian.
    assert np.abs(forces - along).max() < 0.1 * np.abs(along).max()


@pytest.mark.parametrize("n_images", [15, 61])
def test_images_stay_evenly_spaced_on_both_sides_of_the_top(n_images: int) -> None:
    path = minimum_energy_path(pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1), CurvedValley, n_images)
    steps = np.diff(path.arc_length)
    top = int(np.argmax(path.energies))
    for side in (steps[:top], steps[top:]):
        np.testing.assert_allclose(side, side.mean(), rtol=0.2)


def test_a_straight_first_guess_leads_to_the_same_path(valley: EnergyPath) -> None:
    ends = pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1)
    straight = minimum_energy_path(*ends, CurvedValley, 15, interpolation="linear")
    np.testing.assert_allclose(straight.energies, valley.energies, atol=2e-3)
    assert straight.barrier == pytest.approx(valley.barrier, abs=1e-5)


def test_in_a_large_system_atoms_are_kept_apart_where_they_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interstitial whose straight line passes close to an atom, in 251 atoms."""

    def band() -> list[Atoms]:
        crystal = bulk("Fe", "bcc", a=2.87, cubic=True).repeat(5)
        place = crystal.positions[124] + [0.0, 0.5, 0.3]
        images = []
        for x in np.linspace(-1.4, 1.4, 7):
            images.append(crystal + Atoms("Fe", positions=[place + np.array([x, 0.0, 0.0])]))
        return images

    straight, every, some = band(), band(), band()
    neb._keep_apart(every)
    monkeypatch.setattr(neb, "_MOST_APART", 100)
    neb._keep_apart(some)
    near = neb._around_the_motion(some[0], some[-1])
    assert len(near) <= 100
    far = np.setdiff1d(np.arange(251), near)
    for line, one, other in zip(straight, every, some, strict=True):
        np.testing.assert_array_equal(other.positions[far], line.positions[far])
        np.testing.assert_allclose(other.positions[near], one.positions[near], atol=0.1)
    moved = np.linalg.norm(some[3].positions - straight[3].positions, axis=1)
    assert moved.max() > 0.1


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
    with pytest.raises(UserError, match="three or more"):
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
        minimum_energy_path(pair(-0.9, 0.1, 0), pair(-0.8, 0, 0), CurvedValley, 7)
    with pytest.raises(UserError, match="did not converge"):
        minimum_energy_path(pair(-0.9, 0.1, 0), pair(0.8, 0, 0), CurvedValley, 7, max_steps=2)


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
