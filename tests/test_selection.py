"""The atoms of a collective variable: those that a process needs, whatever their order."""

from collections.abc import Sequence

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from plumed_cv import cv
from plumed_cv.common.errors import UserError
from plumed_cv.cv import energy, selection, symmetry
from plumed_cv.paths.path import EnergyPath

A = 2.9  # lattice parameter, angstrom


def hop(
    repeat: int = 4,
    order: Sequence[int] | None = None,
    held: Sequence[int] = (),
    decay: float = 6.0,
) -> EnergyPath:
    """A vacancy's hop, of atom 1, in bcc iron: the others are pushed aside, and move back as one.

    The motion back decreases with a power of the distance. The energy is that of a cosine, and the
    forces are its gradient along the path.
    """
    crystal = bulk("Fe", "bcc", a=A, cubic=True).repeat(repeat)
    neighbour = int(np.argsort(crystal.get_distances(0, range(len(crystal)), mic=True))[1])
    step = crystal.get_distance(neighbour, 0, mic=True, vector=True)
    del crystal[0]
    first = neighbour - 1
    middle = crystal.positions[first] + 0.5 * step
    away = crystal.positions - middle
    away -= np.rint(away / crystal.cell.lengths()) * crystal.cell.lengths()
    recoil = (away**2).sum(axis=1) ** (-decay / 2)
    recoil[first] = 0.0
    recoil /= -recoil.sum()
    images = []
    for s in np.linspace(0.0, 1.0, 11):
        atoms = crystal.copy()
        atoms.positions[first] += s * step
        atoms.positions += (s - 0.5) * recoil[:, None] * step
        away = atoms.get_distances(first, range(len(atoms)), mic=True, vector=True)
        squares = np.maximum((away**2).sum(axis=1), 1.0)[:, None]
        push = 0.3 * away / squares**2 * np.sin(np.pi * s) ** 2
        push[first] = 0.0
        atoms.positions += push
        images.append(atoms)
    order = list(range(len(crystal))) if order is None else list(order)
    turned = [image[order] for image in images]
    u = EnergyPath(tuple(turned)).displacements
    path = []
    for k, atoms in enumerate(turned):
        s = k / (len(turned) - 1)
        value = np.sin(np.pi * s) ** 2
        tangent = u[min(k + 1, 10)] - u[max(k - 1, 0)]
        tangent /= min(k + 1, 10) - max(k - 1, 0)
        slope = 0.1 * np.pi * np.sin(2 * np.pi * s)
        forces = -slope * tangent / np.sum(tangent**2)
        atoms.calc = SinglePointCalculator(atoms, energy=value, forces=forces)
        atoms.set_constraint(FixAtoms(list(held)) if held else None)
        path.append(atoms)
    return EnergyPath(tuple(path))


def mover(path: EnergyPath) -> int:
    return int(np.linalg.norm(path.displacements[-1], axis=1).argmax())


def test_the_neighbours_of_the_jump_at_both_ends_belong_to_it() -> None:
    path = hop()
    found = selection.choose_atoms(path, "auto")
    chosen = set((found.serials - 1).tolist())
    atom = mover(path)
    assert atom in chosen
    for image in (path.images[0], path.images[-1]):
        near = np.flatnonzero(image.get_distances(atom, range(len(image)), mic=True) < 1.05 * A)
        assert set(near.tolist()) <= chosen
    # Two shells of both sites of a bcc crystal, of which they share six atoms, without the sites.
    assert len(chosen) == 1 + 2 * 13 - 6
    assert found.share >= selection.SHARE
    assert "move most" in found.rule


def test_the_choice_does_not_depend_on_the_order_or_the_size() -> None:
    path = hop()
    order = np.random.default_rng(0).permutation(len(path.species))
    mixed = hop(order=order.tolist())
    one, other = (selection.choose_atoms(each, "auto") for each in (path, mixed))
    assert sorted(order[other.serials - 1] + 1) == one.serials.tolist()
    assert other.share == pytest.approx(one.share, abs=1e-9)
    assert len(selection.choose_atoms(hop(6), "auto").serials) == len(one.serials)


def test_a_field_that_reaches_far_needs_more_atoms() -> None:
    """Fewer than all atoms, and no more than the share requires."""
    path = hop(6, decay=2.0)
    found = selection.choose_atoms(path, "auto")
    assert 21 < len(found.serials) < 0.2 * len(path.species)
    assert selection.SHARE <= found.share < 0.99
    assert "as many others" in found.rule


@pytest.mark.parametrize("atoms", ["auto", 3.0, 4.4, 6.0])
def test_the_choice_has_the_symmetry_of_the_path(atoms: str | float) -> None:
    path = hop()
    found = selection.choose_atoms(path, atoms)
    every = symmetry.find_path_operations(path)
    own = symmetry.find_path_operations(path, found.serials)
    assert len(own) == len(every) == 12
    part = path.of_atoms(found.serials)
    for operation in own:
        end = operation.turn(part.displacements[-1]) + operation.offset
        np.testing.assert_allclose(
            end, part.displacements[0 if operation.reverses else -1], atol=1e-6
        )


def test_more_atoms_carry_more_of_the_motion() -> None:
    path = hop()
    found = [selection.choose_atoms(path, radius) for radius in (3.0, 4.4, 6.0)]
    found.append(selection.choose_atoms(path, "all"))
    shares = [each.share for each in found]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert [len(each.serials) for each in found] == sorted({len(each.serials) for each in found})


def test_a_process_of_all_atoms_has_them_all() -> None:
    images = []
    crystal = bulk("Cu", "fcc", a=3.6, cubic=True).repeat(2)
    upper = crystal.positions[:, 2] > 3.0
    for s in np.linspace(0.0, 1.0, 9):  # two halves glide along each other
        atoms = crystal.copy()
        atoms.positions[upper] += [1.2 * s, 0.0, 0.0]
        force = np.where(upper[:, None], [np.cos(np.pi * s), 0.0, 0.0], 0.0)
        atoms.calc = SinglePointCalculator(atoms, energy=np.sin(np.pi * s), forces=force)
        images.append(atoms)
    path = EnergyPath(tuple(images))
    assert len(selection.choose_atoms(path, "auto").serials) == len(crystal)


def test_fixed_atoms_are_never_chosen() -> None:
    free = selection.choose_atoms(hop(), "auto").serials
    held = [int(serial) - 1 for serial in free if serial - 1 != mover(hop())][:3]
    path = hop(held=held)
    for atoms in ("auto", "all", 5.0):
        assert not np.intersect1d(selection.choose_atoms(path, atoms).serials - 1, held).size
    with pytest.raises(UserError, match=f"atom {held[0] + 1} is fixed"):
        selection.choose_atoms(path, f"{held[0] + 1},50,60")


@pytest.mark.parametrize(
    ("atoms", "sentence"),
    [("1-400", "from 1 to 127"), (0.5, "give more atoms"), ("light", "give all, heavy")],
)
def test_what_cannot_be_chosen(atoms: str | float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        selection.choose_atoms(hop(), atoms)


def test_far_atoms_do_not_describe_the_process() -> None:
    path = hop()
    far = np.argsort(np.linalg.norm(path.displacements, axis=2).max(axis=0))[:10] + 1
    with pytest.raises(UserError, match="do not describe the process"):
        selection.choose_atoms(path, ",".join(map(str, sorted(far.tolist()))))


def test_atoms_across_the_border_of_a_skew_cell() -> None:
    path = hop()
    skew = []
    for image in path.images:
        atoms = image.copy()
        cell = atoms.cell.array.copy()
        cell[1] += cell[0]
        cell[2] -= cell[1]
        atoms.set_cell(cell)
        atoms.positions += [1.3, -2.0, 30.0]
        atoms.calc = SinglePointCalculator(atoms, **image.calc.results)
        skew.append(atoms)
    found = selection.choose_atoms(EnergyPath(tuple(skew)), "auto")
    assert found.serials.tolist() == selection.choose_atoms(path, "auto").serials.tolist()


def test_energy_along_a_variable_of_some_atoms() -> None:
    """On a straight path, the linear CVs of some and of all atoms give the same energy."""
    line = []
    whole = hop()
    for k, image in enumerate(whole.images):
        atoms = Atoms(image)
        atoms.positions = whole.images[0].positions + whole.displacements[-1] * k / 10
        atoms.calc = SinglePointCalculator(atoms, **image.calc.results)
        line.append(atoms)
    path = EnergyPath(tuple(line))
    found = selection.choose_atoms(path, 4.4)
    ends = (path.images[0].positions, path.images[-1].positions)
    every = energy.along_path(path)
    for serials in (found.serials, np.arange(1, 128)):
        model = cv.linear(path.species, path.cell, *ends, atoms=serials)
        along = energy.along_variable(path, model)
        np.testing.assert_allclose(along.energy, every.energy, atol=1e-9)
        np.testing.assert_allclose(
            energy.values_at_images(path, model), np.arange(11) / 10, atol=1e-9
        )
