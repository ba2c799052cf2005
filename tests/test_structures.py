"""Structures of users: ASE's indices, order of atoms, constraints, trajectories."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from scipy.spatial.transform import Rotation

from plumed_cv import cv, input_file, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.paths.neb import find_minimum_energy_path
from plumed_cv.paths.path import read_images
from plumed_cv.structures import (
    cell_of,
    check_range,
    find_meant_order,
    fix,
    held_atoms,
    is_oriented,
    orient,
    read_structure,
    read_structures,
)
from plumed_cv.structures.frame import displacements, nearest_images
from plumed_cv.structures.trajectory import read_displacements


def carbide(shear: float = 0.0) -> Atoms:
    """Silicon carbide, 64 atoms of two elements, displaced, in a cell that may be sheared."""
    atoms: Atoms = bulk("SiC", "zincblende", a=4.36, cubic=True) * (2, 2, 2)
    cell = atoms.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = 1.3 * shear, -0.7 * shear, 0.9 * shear
    atoms.set_cell(cell, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def test_an_index_as_ase_writes_it(tmp_path: Path) -> None:
    images = [bulk("Cu", cubic=True) for _ in range(6)]
    for number, image in enumerate(images):
        image.positions += number
    for name in ("cu.traj", "cu.xyz", "at@home.traj", "XDATCAR"):
        file = tmp_path / name
        ase.io.write(file, images)
        assert len(read_structures(file)) == 6
        assert len(read_structures(f"{file}@-2:")) == 2
        assert len(read_structures(Path(f"{file}@::2"))) == 3
        found = read_structure(f"{file}@1").positions - images[1].positions
        assert np.abs(found - np.rint(found / 3.61) * 3.61).max() < 1e-6
        with pytest.raises(UserError, match="contains no structure of that number"):
            read_structures(f"{file}@9:")
    with pytest.raises(UserError, match=r"none\.traj: the file does not exist"):
        read_structures(tmp_path / "none.traj@-9:")


def dump_text(frames: list[Atoms], columns: str = "id type x y z", seed: int = 3) -> str:
    """A dump as LAMMPS writes it: bounds of the tilted box, atoms in arbitrary order."""
    rng, text = np.random.default_rng(seed), ""
    kinds = list(dict.fromkeys(frames[0].symbols))
    for step, atoms in enumerate(frames):
        c = atoms.cell.array
        xy, xz, yz = c[1, 0], c[2, 0], c[2, 1]
        low = np.array([min(0, xy, xz, xy + xz), min(0, yz), 0])
        high = c.diagonal() + np.array([max(0, xy, xz, xy + xz), max(0, yz), 0])
        text += f"ITEM: TIMESTEP\n{step}\nITEM: NUMBER OF ATOMS\n{len(atoms)}\n"
        text += "ITEM: BOX BOUNDS xy xz yz pp pp pp\n"
        for row in zip(low + 1.5, high + 1.5, (xy, xz, yz), strict=True):  # an origin of its own
            text += " ".join(map(repr, map(float, row))) + "\n"
        text += f"ITEM: ATOMS {columns}\n"
        scaled = atoms.get_scaled_positions(wrap=False)
        for i in rng.permutation(len(atoms)):
            x, s = (atoms.positions[i] + 1.5).tolist(), scaled[i].tolist()
            values = {"id": i + 1, "type": kinds.index(atoms.symbols[i]) + 1, "element": "C"}
            values |= {"mol": 1, "fx": 0.1, "fy": 0.2, "fz": 0.3, "element": atoms.symbols[i]}
            for k, axis in enumerate("xyz"):
                values |= {axis: x[k], f"{axis}u": x[k], f"{axis}s": s[k]}
            text += " ".join(str(values[name]) for name in columns.split()) + "\n"
    return text


def vacancy(element: str = "Cu") -> tuple[Atoms, Atoms, int]:
    """Copper with a vacancy before and after a hop, and the number of the atom that hops."""
    crystal: Atoms = bulk(element, cubic=True, a=3.615) * (3, 3, 3)
    final = crystal.copy()
    middle = crystal.cell.array.sum(axis=0) / 3
    hole, near = np.linalg.norm(crystal.positions - middle, axis=1).argsort()[:2]
    final.positions[near] = crystal.positions[hole]
    del crystal[hole], final[hole]
    final.rattle(0.02, seed=5)
    return crystal, final, int(near - (near > hole))


def test_the_order_of_the_end_states() -> None:
    initial, final, hopper = vacancy()
    plain, rng = np.arange(len(initial)), np.random.default_rng(2)
    np.testing.assert_array_equal(find_meant_order(initial, final), plain)
    two, shuffled = plain.copy(), rng.permutation(plain)
    two[[10, hopper]] = two[[hopper, 10]]
    for order in (two, shuffled):
        changed = final[order]
        np.testing.assert_array_equal(order[find_meant_order(initial, changed)], plain)
        changed.wrap()
        np.testing.assert_array_equal(order[find_meant_order(initial, changed)], plain)
    drifted = final[two]
    drifted.positions += [5.0, -4.0, 12.0]
    drifted.wrap()
    np.testing.assert_array_equal(two[find_meant_order(initial, drifted)], plain)
    # Two of different elements that exchange places do so.
    initial.symbols[10] = final.symbols[10] = "Ni"
    final.positions[[10, 11]] = final.positions[[11, 10]]
    np.testing.assert_array_equal(find_meant_order(initial, final), plain)


def test_successive_moves_are_no_other_order() -> None:
    """Each atom takes the place of the one before it, along a straight line."""
    initial: Atoms = bulk("Cu", cubic=True, a=3.615) * (4, 4, 4)
    step = np.array([1.8075, 1.8075, 0.0])
    line = [int(np.linalg.norm(initial.positions - k * step, axis=1).argmin()) for k in range(4)]
    final = initial.copy()
    for a, b in zip(line[1:], line[:-1], strict=True):
        final.positions[a] = initial.positions[b]
    del initial[line[0]], final[line[0]]
    np.testing.assert_array_equal(find_meant_order(initial, final), np.arange(len(initial)))


def test_a_hop_over_half_of_the_cell() -> None:
    slab = fcc100("Al", (2, 2, 3), vacuum=6.0)
    add_adsorbate(slab, "Al", 1.7, "hollow")
    slab.pbc = True
    moved = slab.copy()
    moved.positions[-1, 0] += slab.cell[0, 0] / 2
    with pytest.raises(UserError, match=r"Atom 13 moves by 2\.6.*so repeat the structures along a"):
        check_range(slab, moved)
    large = [atoms * (2, 1, 1) for atoms in (slab, moved)]
    large[1].positions[-1] = large[0].positions[-1]
    check_range(*large)


INPUT = """
[system]
initial = "{initial}"
final = "{final}"
temperature_K = 300.0
{more}
[engine]
potential = ["pair_style eam/alloy", "pair_coeff * * Cu_mishin1.eam.alloy Cu"]
"""


def loaded(folder: Path, initial: str, final: str, more: str = "") -> input_file.Config:
    (folder / "in.toml").write_text(INPUT.format(initial=initial, final=final, more=more))
    return input_file.load(folder / "in.toml")


def test_another_order_is_refused_or_mended(tmp_path: Path) -> None:
    initial, final, _ = vacancy()
    order = np.arange(len(initial))
    order[[3, 8]] = order[[8, 3]]
    ase.io.write(tmp_path / "a.vasp", initial, direct=True)
    ase.io.write(tmp_path / "b.vasp", final[order], direct=True)
    with pytest.raises(
        UserError, match=r"list 2 atoms in another order: its atom 4 is at the position of atom 9"
    ):
        workflow.read_end_states(loaded(tmp_path, "a.vasp", "b.vasp"))
    said: list[str] = []
    mended = workflow.read_end_states(
        loaded(tmp_path, "a.vasp", "b.vasp", "reorder = true"), said.append
    )
    np.testing.assert_allclose(mended[1].positions, final.positions, atol=1e-9)
    assert said == ["Final state: 2 atoms were sorted into the order of the initial state."]
    kept = workflow.read_end_states(loaded(tmp_path, "a.vasp", "b.vasp", "reorder = false"))
    np.testing.assert_allclose(kept[1].positions, final.positions[order], atol=1e-9)
    final.positions = np.random.default_rng(1).uniform(0, 10.8, final.positions.shape)
    ase.io.write(tmp_path / "b.vasp", final, direct=True)
    with pytest.raises(UserError, match="there is no order of the final state"):
        workflow.read_end_states(loaded(tmp_path, "a.vasp", "b.vasp", "reorder = true"))


@pytest.mark.parametrize("name", ["held.traj", "held.vasp", "held.xyz", "serials.xyz"])
def test_fixed_atoms_of_every_source(tmp_path: Path, name: str) -> None:
    initial, final, _ = vacancy()
    final.positions[[0, 1]] = initial.positions[[0, 1]]
    final.positions += 0.3  # a drift, which fixed atoms do not have
    for file, atoms in ((name, initial), (f"final-{name}", final)):
        if name != "serials.xyz":
            atoms.set_constraint(FixAtoms([0, 1]))
        ase.io.write(tmp_path / file, atoms)
    key = 'fixed = "1-2"' if name == "serials.xyz" else ""
    first, last = workflow.read_end_states(loaded(tmp_path, name, f"final-{name}", key))
    np.testing.assert_array_equal(held_atoms(first), [0, 1])
    np.testing.assert_array_equal(held_atoms(last), [0, 1])
    np.testing.assert_array_equal(first.positions[:2], last.positions[:2])
    expected = displacements(final.positions - 0.3, first.cell.array, first.positions,
                             first.cell.array, "kept")  # fmt: skip
    found = displacements(last.positions, first.cell.array, first.positions,
                          first.cell.array, "kept")  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-6)
    images = [first, *(first.copy() for _ in range(2)), last]
    for image in images[1:3]:
        image.positions[2:] += 0.1
    ase.io.write(tmp_path / "path.xyz", images)
    for image in read_images(tmp_path / "path.xyz"):
        np.testing.assert_array_equal(held_atoms(image), [0, 1])


def test_other_constraints_and_other_fixed_atoms_are_refused(tmp_path: Path) -> None:
    initial, final, _ = vacancy()
    plane = [FixCartesian([0, 1], (True, False, False))]
    for held, sentence in (
        (plane, "a constraint FixCartesian; only atoms that are fixed along all directions"),
        ([FixAtoms([0, 1, 2])], "3 fixed atoms and the final state 2, or other atoms"),
        ([FixAtoms([0, 1])], "Atom 2 is fixed, but its position in the final state differs"),
    ):
        initial.set_constraint(held)
        final.set_constraint(FixAtoms([0, 1]))
        ase.io.write(tmp_path / "a.traj", initial)
        ase.io.write(tmp_path / "b.traj", final)
        with pytest.raises(UserError, match=sentence) as caught:
            workflow.run(loaded(tmp_path, "a.traj", "b.traj"), tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("serials", "sentence"),
    [("z<4", "give serial numbers and ranges"), ("5-2", "give serial numbers and ranges"),
     ("1-900", "the structure has the atoms 1 to"), ("0-3", "the structure has the atoms 1 to")],
)  # fmt: skip
def test_serials_of_fixed_atoms(serials: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fix(vacancy()[0], serials)


def test_images_in_tilted_and_partly_periodic_cells() -> None:
    """Against all images within a distance, of vectors that are longer than the cell."""
    rng = np.random.default_rng(5)
    tilted = np.array([[9.0, 0.0, 0.0], [22.0, 8.0, 0.0], [-13.0, 11.0, 10.0]])
    hexagonal = np.array([[3.0, 0.0, 0.0], [1.5, 1.5 * 3**0.5, 0.0], [0.0, 0.0, 0.0]])
    wire = np.array([[0.0, 0.0, 0.0], [1.0, 4.0, 0.5], [0.0, 0.0, 0.0]])
    for cell in (tilted, hexagonal, wire, np.zeros((3, 3))):
        vectors = rng.normal(scale=2.5, size=(200, 3))
        steps = np.array(list(np.ndindex(17, 17, 17))) - 8
        every = vectors[:, None] + (steps @ cell)[None]
        shortest = np.linalg.norm(every, axis=2).min(axis=1)
        found = nearest_images(vectors, cell)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), shortest, atol=1e-12)


def test_flips_and_rotations_are_told_from_strains() -> None:
    cell = np.array([[3.0, 0.0, 0.0], [1.4, 40.0, 0.0], [0.0, 0.0, 30.0]])
    positions = np.random.default_rng(1).uniform(0, 3, (4, 3))
    for strain in (0.2, -0.2, 0.01):
        grown = cell * (1.0 + strain)
        u = displacements(positions * (1.0 + strain), grown, positions, cell)
        np.testing.assert_allclose(u, 0.0, atol=1e-12)
    flipped = cell.copy()
    flipped[1, 0] -= 3.0
    turn = Rotation.from_rotvec([0.0, 0.0, 0.01]).as_matrix()
    for wrong in (flipped, cell @ turn, cell[[1, 0, 2]], 1.3 * cell):
        with pytest.raises(UserError, match="is not that of the reference"):
            displacements(positions, wrong, positions, cell)


def test_vacuum_of_any_height_and_any_box_change_nothing() -> None:
    slab = np.array([[9.0, 0.0, 0.0], [1.0, 8.0, 0.0], [0.0, 0.0, 0.0]])
    rng = np.random.default_rng(2)
    reference = rng.uniform(0, 8, (5, 3))
    moved = reference + rng.normal(scale=0.2, size=(5, 3))
    expected = displacements(moved, slab, reference, slab, "kept")
    np.testing.assert_allclose(expected, moved - reference, atol=1e-12)
    for height in (2.0, 30.0):
        box = slab + np.diag([0.0, 0.0, height])
        np.testing.assert_array_equal(displacements(moved, box, reference, slab, "kept"), expected)
    across = moved + [[10.0, 8.0, 0.0]] * 5
    np.testing.assert_allclose(
        displacements(across, slab, reference, slab, "kept"), expected, atol=1e-12
    )


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_orientation_of_slabs(missing: int) -> None:
    """Distances stay, the vector of the vacuum turns with the atoms, and engines accept it."""
    rng = np.random.default_rng(3)
    atoms = Atoms("Cu4", rng.uniform(0, 5, (4, 3)), cell=rng.normal(size=(3, 3)) + 5 * np.eye(3))
    atoms.pbc = np.arange(3) != missing
    turned = orient(atoms)
    assert is_oriented(cell_of(turned))
    assert not cell_of(turned)[missing].any()
    np.testing.assert_allclose(
        turned.get_all_distances(mic=True), atoms.get_all_distances(mic=True), atol=1e-9
    )
    np.testing.assert_allclose(turned.cell.lengths(), atoms.cell.lengths())


def test_a_hop_of_half_of_a_slab_is_refused_and_one_across_the_vacuum_is_not() -> None:
    slab = fcc100("Cu", (2, 2, 2), vacuum=3.0)
    add_adsorbate(slab, "Cu", 1.8, "hollow")
    slab.pbc = (True, True, False)
    final = slab.copy()
    final.positions[-1, 0] += slab.cell[0, 0] / 2
    with pytest.raises(UserError, match="nearly half of the cell"):
        check_range(slab, final)
    away = slab.copy()
    away.positions[-1, 2] += 5.0
    check_range(slab, away)


def test_held_atoms_stay_in_the_elastic_band() -> None:
    from ase.calculators.emt import EMT

    slab = fcc100("Cu", (3, 3, 2), vacuum=6.0)
    add_adsorbate(slab, "Cu", 1.8, "hollow")
    slab.pbc = True
    held = [atom.index for atom in slab if atom.tag == 2]
    slab.set_constraint(FixAtoms(held))
    final = slab.copy()
    final.positions[-1, 0] += slab.cell[0, 0] / 3
    path = find_minimum_energy_path(slab, final, EMT, n_images=5, fmax_eV_A=0.02)
    np.testing.assert_array_equal(path.held, held)
    for image in path.images:
        np.testing.assert_array_equal(image.positions[held], slab.positions[held])
        # All of the forces are kept: they add up to 0.
        np.testing.assert_allclose(
            image.get_forces(apply_constraint=False).sum(axis=0), 0, atol=1e-9
        )
    assert path.barrier == pytest.approx(path.energies[2])
    final.positions[held[0], 2] += 0.1
    with pytest.raises(UserError, match=r"Atom 1 is fixed, but .* differs by 0\.0"):
        find_minimum_energy_path(slab, final, EMT, n_images=5)
    final.set_constraint(FixAtoms(held[1:]))
    with pytest.raises(UserError, match="fix the same atoms in both"):
        find_minimum_energy_path(slab, final, EMT, n_images=5)
    slab.set_constraint(FixBondLength(0, 1))
    with pytest.raises(UserError, match="FixBondLength"):
        held_atoms(slab)


def test_all_bands_of_an_optimisation_are_not_one_path(tmp_path: Path) -> None:
    initial, final, _ = vacancy()
    file, bands = tmp_path / "neb.traj", []
    for iteration in range(4):
        for s in np.linspace(0, 1, 5):
            image = initial.copy()
            image.positions += s * (final.positions - initial.positions)
            image.positions[7] += 0.1 * iteration * s * (1 - s)
            image.calc = SinglePointCalculator(image, energy=s, forces=0 * image.positions)
            bands.append(image)
    ase.io.write(file, bands)
    with pytest.raises(UserError, match=r"contains 4 bands of 5 images.*neb\.traj@-5:"):
        read_images(file)
    images = read_images(f"{file}@-5:")
    assert len(images) == 5
    np.testing.assert_allclose(images[2].positions, bands[-3].positions, atol=1e-12)
    with pytest.raises(UserError, match="contains 2 bands of 5 images"):
        read_images(f"{file}@-10:")


FORMATS = ["md.traj", "md.xyz", "XDATCAR", "md.dump", "md.lammpstrj"]


@pytest.mark.parametrize("name", FORMATS)
def test_trajectories_of_ase_and_lammps(tmp_path: Path, name: str) -> None:
    start = carbide(0.6)
    frames = []
    for seed in range(5):
        frames.append(start.copy())
        frames[-1].rattle(0.1, seed=seed)
    variable = cv.linear(
        start.get_chemical_symbols(), start.cell.array, start.positions, frames[0].positions
    )
    moved = np.stack([atoms.positions - start.positions for atoms in frames])
    moved -= moved.mean(axis=1, keepdims=True)
    file = tmp_path / name
    if "XDATCAR" in name or "xyz" in name or ".traj" in name:
        ase.io.write(file, frames)
    else:
        file.write_text(dump_text(frames))
    np.testing.assert_allclose(read_displacements([file], variable), moved, atol=2e-6)
    np.testing.assert_allclose(
        read_displacements([file], variable, stride=2), moved[::2], atol=2e-6
    )
    last = read_displacements([f"{file}@-2:"], variable)
    np.testing.assert_allclose(last, moved[-2:], atol=2e-6)


def test_a_turned_trajectory_is_turned_as_the_end_states(tmp_path: Path) -> None:
    start = carbide(0.6)
    moved = start.copy()
    moved.rattle(0.1, seed=3)
    turned = [start.copy(), moved.copy()]
    for atoms in turned:
        atoms.rotate(40, (1, 2, 3), rotate_cell=True)
    ends = [orient(atoms) for atoms in turned]
    variable = cv.linear(
        start.get_chemical_symbols(), ends[0].cell.array, *(atoms.positions for atoms in ends)
    )
    ase.io.write(tmp_path / "md.traj", turned)
    u = read_displacements([tmp_path / "md.traj"], variable)
    expected = ends[1].positions - ends[0].positions
    np.testing.assert_allclose(u, [0 * expected, expected - expected.mean(axis=0)], atol=1e-6)


def test_trajectories_of_other_atoms_are_one_sentence(tmp_path: Path) -> None:
    start = carbide()
    variable = cv.linear(
        start.get_chemical_symbols(), start.cell.array, start.positions, carbide(0.1).positions
    )
    order = np.roll(np.arange(64), 1)
    ase.io.write(tmp_path / "md.traj", start[order])
    (tmp_path / "md.dump").write_text(dump_text([start[[1, 0, *range(2, 64)]]]))
    ase.io.write(tmp_path / "few.xyz", start[:10])
    (tmp_path / "md.none").write_text("not a trajectory")
    ase.io.write(tmp_path / "plain.xyz", start, format="xyz")  # without a cell
    for name, sentence in {
        "md.traj": "its atom 1 is C, but Si in the end states",
        "md.dump": "its atoms of type 2 are both C and Si",
        "few.xyz": "it has 10 atoms, but the end states have 64",
        "md.none": "the format of this trajectory is unknown",
        "plain.xyz": "but the structure has no lattice vector there",
        "none.traj@2:": "the trajectory does not exist",
        "md.dcd@2:": "give md.dcd and a stride",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
            read_displacements([tmp_path / name], variable)
        assert "\n" not in str(caught.value)
