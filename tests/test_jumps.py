"""Jumps of vacancies and interstitials: numbers that were counted by hand."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS
from ase.spacegroup import crystal

from plumed_cv import input_file, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.common.toml import as_toml
from plumed_cv.events import (
    Sites,
    find_crystal,
    find_jumps,
    find_largest_holes,
    find_network,
    lattice_sites,
    read_catalogue,
    sites_at,
)
from plumed_cv.events.network import Crystal
from plumed_cv.structures import cell_of, read_structure
from tests import vacancy

BCC = bulk("Fe", "bcc", a=2.86)
FCC = bulk("Cu", "fcc", a=3.6)
HCP = bulk("Mg", "hcp", a=3.2, c=5.2)
NI3AL = crystal(
    ["Ni", "Al"], [(0, 0.5, 0.5), (0, 0, 0)], spacegroup=221, cellpar=[3.57] * 3 + [90] * 3
)
MakeSites = Callable[[Crystal], Sites]


def of(species: str) -> MakeSites:
    return lambda found: lattice_sites(found, species)


def at(*places: tuple[float, float, float]) -> MakeSites:
    return lambda found: sites_at(found, [found.from_given(np.array(place)) for place in places])


# Each jump: length in lattice constants a, jumps from the initial and from the final site.
CASES = [
    (BCC, of("Fe"), [(0.75**0.5, 8, 8)]),
    (FCC, of("Cu"), [(0.5**0.5, 12, 12)]),
    (HCP, of("Mg"), [((1 / 3 + (5.2 / 6.4) ** 2) ** 0.5, 6, 6), (1.0, 6, 6)]),
    (bulk("Si", "diamond", a=5.43), of("Si"), [(0.1875**0.5, 4, 4)]),
    (NI3AL, of("Ni"), [(0.5**0.5, 8, 8)]),  # on the sublattice; four more neighbours are Al
    (NI3AL, of("Al"), [(1.0, 6, 6)]),
    (FCC, find_largest_holes, [(0.1875**0.5, 8, 4)]),  # octahedral to tetrahedral
    (bulk("Cu", "fcc", a=3.6, cubic=True), at((0.5, 0.5, 0.5), (0.25,) * 3), [(0.1875**0.5, 8, 4)]),
    (bulk("Cu", "fcc", a=3.6, cubic=True), at((0.5, 0.5, 0.5)), [(0.5**0.5, 12, 12)]),
    (BCC, find_largest_holes, [(0.125**0.5, 4, 4)]),  # between tetrahedral sites
    (bulk("Fe", cubic=True, a=2.86), at((0.5, 0.5, 0.0)), [(0.5, 4, 4)]),  # octahedral
]


@pytest.mark.parametrize(("atoms", "sites", "expected"), CASES)
def test_jumps_and_their_numbers(
    atoms: Atoms, sites: MakeSites, expected: list[tuple[float, int, int]]
) -> None:
    rng = np.random.default_rng(1)
    turned = atoms.repeat((1, 2, 1))  # another cell, turned and shifted, not quite exact
    if sites in (find_largest_holes, *[case[1] for case in CASES[:6]]):
        turned.positions += [0.4, 0.3, 0.2]
        turned.positions += rng.uniform(-5e-4, 5e-4, size=turned.positions.shape)
        turned.rotate(40, (1, 2, 3), rotate_cell=True)
        atoms = turned
    found = find_crystal(atoms)
    network = find_network(found, sites(found))
    a = found.conventional.cell.lengths()[0]
    assert network.directions == 3
    numbers = [(jump.multiplicity, jump.reverse_multiplicity) for jump in network.jumps]
    assert numbers == [case[1:] for case in expected]
    for jump, (length, *_) in zip(network.jumps, expected, strict=True):
        np.testing.assert_allclose(np.linalg.norm(jump.steps, axis=1), length * a, rtol=2e-3)
        assert len(jump.initial) == jump.multiplicity * len(set(jump.initial.tolist()))


def test_kinds_of_sites_and_detailed_balance_of_their_numbers() -> None:
    """The numbers of jumps between two kinds are equal in both directions."""
    found = find_crystal(FCC)
    network = find_network(found, find_largest_holes(found))
    assert [int((network.sites.kinds == kind).sum()) for kind in (0, 1)] == [1, 2]
    (jump,) = network.jumps
    assert not jump.reverse_is_own
    assert set(network.sites.kinds[jump.initial]) == {0}
    assert set(network.sites.kinds[jump.final]) == {1}
    assert len(jump.initial) == 1 * jump.multiplicity == 2 * jump.reverse_multiplicity


def test_longer_jumps_and_jumps_over_a_site() -> None:
    found = find_crystal(BCC)
    sites = lattice_sites(found, "Fe")
    network = find_network(found, sites, cutoff_A=5.8)
    lengths = [round(jump.length_A / 2.86, 3) for jump in network.jumps]
    # a sqrt(3) and 2a lead over another site.
    assert lengths == [0.866, 1.0, 1.414, 1.658]
    assert [jump.multiplicity for jump in network.jumps] == [8, 6, 12, 24]


def test_networks_that_are_refused() -> None:
    found = find_crystal(BCC)
    sites = lattice_sites(found, "Fe")
    with pytest.raises(UserError, match=r"no jump of up to 1\.00 A"):
        find_network(found, sites, cutoff_A=1.0)
    with pytest.raises(UserError, match="has no atom of Cu; its elements are Fe"):
        lattice_sites(found, "Cu")
    found = find_crystal(HCP)  # two tetrahedral sites are close together, octahedral ones far away
    with pytest.raises(UserError, match="do not connect all kinds of sites"):
        find_network(found, find_largest_holes(found), cutoff_A=1.5)


def test_layers_conduct_along_two_directions() -> None:
    layers = Atoms("C2", [(0, 0, 0), (0, 1.42, 0)], pbc=True)
    layers.set_cell([[2.46, 0, 0], [-1.23, 2.1304, 0], [0, 0, 6.7]])
    found = find_crystal(layers)
    sites = lattice_sites(found, "C")
    assert find_network(found, sites, cutoff_A=1.5).directions == 2
    assert find_network(found, sites).directions == 3


def test_crystals_that_are_refused() -> None:
    slab = BCC.copy()
    slab.pbc = (True, True, False)
    with pytest.raises(UserError, match="not periodic along all three"):
        find_crystal(slab)
    half = BCC.copy()
    half.info["occupancy"] = {"0": {"Fe": 0.5, "Cr": 0.5}}
    with pytest.raises(UserError, match="occupied in part"):
        find_crystal(half)
    twice = Atoms("Fe2", [(0, 0, 0), (0, 0, 1e-6)], cell=[2.8] * 3, pbc=True)
    with pytest.raises(UserError, match="no space group"):
        find_crystal(twice)


# --- the catalogue, with a relaxed crystal ---

EMT_INPUT = """
[system]
temperature_K = [500.0, 700.0]
[engine]
name = "ase"
calculator = "ase.calculators.emt.EMT"
[path]
images = 7
fmax_eV_A = 0.01
[sampling]
steps = 2000
segments = 8
"""


def copper() -> Atoms:
    """Copper at the lattice constant of ASE's effective medium theory."""
    atoms = bulk("Cu", "fcc", a=3.6)
    atoms.calc = EMT()
    LBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4)  # type: ignore[arg-type]
    atoms.calc = None
    return atoms


@pytest.fixture(scope="module")
def of_copper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copper")
    copper().write(folder / "cu.cif")
    (folder / "cu.toml").write_text(EMT_INPUT)
    find_jumps(folder / "cu.cif", folder / "cu.toml", folder / "cat", species="Cu", width_A=7.0)
    return folder / "cat"


def test_catalogue_of_a_vacancy(of_copper: Path) -> None:
    found = read_catalogue(of_copper)
    (event,) = found.events
    assert (event.id, event.kinds, event.energy_eV) == ("Cu-vacancy-1", (0, 0), 0.0)
    assert (event.jump.multiplicity, event.is_symmetric) == (12, True)
    content = json.loads((of_copper / "catalogue.json").read_text())
    assert abs(content["crystal"]["pressure_GPa"]) < 0.05
    assert content["events"][0]["multiplicity"] == 12
    ends = [read_structure(of_copper / "Cu-vacancy-1" / f"{n}.xyz") for n in ("initial", "final")]
    assert [len(atoms) for atoms in ends] == [31, 31]
    step = ends[1].positions - ends[0].positions
    inverse = np.linalg.inv(cell_of(ends[0]))
    step -= np.round(step @ inverse) @ cell_of(ends[0])
    far = np.linalg.norm(step, axis=1)
    # The last atom moves opposite to the vacancy, and no other one changes places.
    assert far[-1] == pytest.approx(event.jump.length_A, rel=0.05)
    assert far[:-1].max() < 0.3
    cosine = -step[-1] @ found.network.jumps[0].steps[0] / (far[-1] * event.jump.length_A)
    assert cosine == pytest.approx(1.0, abs=1e-3)
    for atoms in ends:
        atoms.calc = EMT()
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.01


def test_inputs_of_a_catalogue_are_inputs(of_copper: Path) -> None:
    found = read_catalogue(of_copper)
    settings = found.config(found.events[0])
    assert settings.system.temperatures_K == (500.0, 700.0)
    assert settings.system.initial == (of_copper / "Cu-vacancy-1" / "initial.xyz").resolve()
    assert settings.sampling.steps == 2000
    assert settings.engine.directory is not None
    assert settings.engine.directory.resolve() == of_copper.parent.resolve()
    ends = workflow.read_end_states(settings)  # checks their order, range and cells
    assert [len(atoms) for atoms in ends] == [31, 31]


def test_octahedral_and_tetrahedral_interstitials(tmp_path: Path) -> None:
    """In a Lennard-Jones crystal, both interstitial sites of fcc are minima of a small atom."""
    (tmp_path / "small.py").write_text(SMALL)
    bulk("Ar", "fcc", a=5.26, cubic=True).write(tmp_path / "POSCAR", format="vasp")
    (tmp_path / "he.toml").write_text(EMT_INPUT.replace("ase.calculators.emt.EMT", "small.Small"))
    found = find_jumps(
        tmp_path / "POSCAR",
        tmp_path / "he.toml",
        tmp_path / "cat",
        species="He",
        defect="interstitial",
        relax_cell=True,
        width_A=10.0,
    )
    (event,) = found["events"]
    assert (event["multiplicity"], event["reverse_multiplicity"]) == (8, 4)
    assert (event["initial_site"], event["final_site"]) == (0, 1)
    lower, upper = (kind["energy_eV"] for kind in found["site_kinds"])
    assert event["energy_eV"] == pytest.approx(upper - lower, abs=1e-3)
    assert abs(found["crystal"]["pressure_GPa"]) < 0.01
    again = read_catalogue(tmp_path / "cat")
    assert again.network.jumps[0].steps.shape == (8, 3)
    np.testing.assert_allclose(again.network.cell, np.array(again.about["cell_A"]))


# Mixed by the rule of Lorentz and Berthelot; the small atom fits into both holes.
SMALL = """
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list

class Small(Calculator):
    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, j, d, D = neighbor_list("ijdD", self.atoms, 6.0)
        size = np.where(self.atoms.numbers == 18, 3.4, 1.2)
        sigma = 0.5 * (size[i] + size[j])
        x = (sigma / d) ** 6
        shift = (sigma / 6.0) ** 6
        e = 4 * 0.01 * (x * x - x - shift * shift + shift)
        f = 4 * 0.01 * (12 * x * x - 6 * x) / d**2
        pull = f[:, None] * D
        forces = np.zeros((len(self.atoms), 3))
        np.add.at(forces, i, -pull)
        stress = -0.5 * np.einsum("ka,kb->ab", pull, D) / self.atoms.get_volume()
        self.results = {
            "energy": 0.5 * e.sum(), "free_energy": 0.5 * e.sum(), "forces": forces,
            "stress": stress.ravel()[[0, 4, 8, 5, 2, 1]],
        }
"""


def test_an_interstitial_that_leaves_its_site_is_refused(tmp_path: Path) -> None:
    """The given point is no site; the atom relaxes to an interstitial site."""
    (tmp_path / "small.py").write_text(SMALL)
    bulk("Ar", "fcc", a=5.2, cubic=True).write(tmp_path / "ar.cif")
    (tmp_path / "he.toml").write_text(EMT_INPUT.replace("ase.calculators.emt.EMT", "small.Small"))
    done = vacancy.called(
        *("jumps", tmp_path / "ar.cif", "-i", tmp_path / "he.toml", "--species", "He"),
        *("--interstitial", "-o", tmp_path / "cat", "--site", "0.375,0.375,0.375"),
    )
    assert done.returncode == 1
    assert "is not at a minimum: the He atom relaxes to a place" in done.stderr
    assert not (tmp_path / "cat").exists()


@pytest.mark.slow
def test_an_atom_that_is_too_large_for_all_holes_is_refused(tmp_path: Path) -> None:
    """One more atom of the crystal itself pushes its neighbours away."""
    (tmp_path / "small.py").write_text(SMALL)
    bulk("Ar", "fcc", a=5.26, cubic=True).write(tmp_path / "ar.cif")
    text = EMT_INPUT.replace("ase.calculators.emt.EMT", "small.Small")
    (tmp_path / "ar.toml").write_text(text.replace("0.01", "0.05"))
    with pytest.raises(UserError, match=r"no minimum at any of the largest holes; name its sites"):
        find_jumps(
            tmp_path / "ar.cif", tmp_path / "ar.toml", tmp_path / "cat", species="Ar",
            defect="interstitial", width_A=5.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, ["--species", "Xx"], "is not the symbol of an element"),
        ({}, ["--species", "Fe"], "has no atom of Fe; its elements are Cu"),
        ({}, ["--species", "Cu", "--site", "0,0,0"], "the sites of a vacancy are the atoms"),
        ({}, ["--species", "Cu", "--interstitial", "--site", "0,0"], "give three numbers"),
        ({"path": {"file": "x.xyz"}}, ["--species", "Cu"], "path.file belongs to one event"),
        ({"cv": {"alignment": "optimal"}}, ["--species", "Cu"], "is for molecules"),
        ({"system": {}}, ["--species", "Cu"], "system.temperature_K is missing"),
    ],
)
def test_mistakes(
    change: dict[str, dict[str, Any]], options: list[str], words: str, tmp_path: Path
) -> None:
    FCC.write(tmp_path / "cu.cif")
    content: dict[str, dict[str, Any]] = {
        "system": {"temperature_K": 500.0},
        "engine": {"name": "ase", "calculator": "ase.calculators.emt.EMT"},
    }
    (tmp_path / "cu.toml").write_text(as_toml({**content, **change}))
    files = ("jumps", tmp_path / "cu.cif", "-i", tmp_path / "cu.toml", "-o", tmp_path / "cat")
    done = vacancy.called(*files, *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "cat").exists()


def test_cells_and_folders_that_cannot_be_used(tmp_path: Path) -> None:
    """A monoclinic cell is not relaxed; the folder of the catalogue must be possible."""
    (tmp_path / "cu.toml").write_text(EMT_INPUT)
    FCC.write(tmp_path / "cu.cif")
    skew = bulk("Cu", cubic=True, a=3.6)
    skew.set_cell([3.6, 3.7, 3.8, 90, 97, 90], scale_atoms=True)
    skew.write(tmp_path / "skew.cif")
    with pytest.raises(UserError, match=r"skew.cif: has the space group .* relax the cell"):
        find_jumps(
            tmp_path / "skew.cif", tmp_path / "cu.toml", tmp_path / "cat", species="Cu",
            relax_cell=True,
        )  # fmt: skip
    with pytest.raises(UserError, match="none/cat: its folder does not exist; make it first"):
        find_jumps(
            tmp_path / "cu.cif", tmp_path / "cu.toml", tmp_path / "none" / "cat", species="Cu"
        )


def test_a_folder_that_exists_is_not_touched(of_copper: Path) -> None:
    before = (of_copper / "catalogue.json").read_bytes()
    folder = of_copper.parent
    with pytest.raises(UserError, match="already exists"):
        find_jumps(folder / "cu.cif", folder / "cu.toml", of_copper, species="Cu")
    assert (of_copper / "catalogue.json").read_bytes() == before


def test_damaged_catalogues(of_copper: Path, tmp_path: Path) -> None:
    text = (of_copper / "catalogue.json").read_text()
    file = tmp_path / "catalogue.json"
    with pytest.raises(UserError, match="'plumed-cv jumps' writes a catalogue"):
        read_catalogue(tmp_path)
    for broken, words in (
        (text[:200], "is damaged"),
        ("{}", "is not a catalogue"),
        (text.replace('"format_version": 1', '"format_version": 2'), "format version 2"),
        (text.replace('"sites": [', '"places": ['), "is damaged"),
    ):
        file.write_text(broken)
        with pytest.raises(UserError, match=words):
            read_catalogue(tmp_path)


def test_toml_is_read_back(tmp_path: Path) -> None:
    content: dict[str, dict[str, Any]] = {
        "system": {"temperature_K": [300.0, 1e-7], "initial": 'a "b" \\ é\x7f\n.xyz'},
        "engine": {"name": "ase", "calculator": "x.Y", "arguments": {"a b": [1, True], "c": "d"}},
    }
    assert tomllib.loads(as_toml(content)) == content
    assert input_file.validate(
        {**content, "system": {**content["system"], "final": "b.xyz"}}, "test"
    ).system.temperatures_K == (300.0, 1e-7)


def test_lennard_jones_of_ase_is_that_of_the_test() -> None:
    """The potential written above, against ASE's, for one species."""
    namespace: dict[str, object] = {}
    exec(SMALL, namespace)
    atoms = bulk("Ar", "fcc", a=5.2, cubic=True).repeat(3)
    atoms.positions += np.random.default_rng(1).normal(scale=0.1, size=(len(atoms), 3))
    other = atoms.copy()
    atoms.calc = namespace["Small"]()  # type: ignore[operator]
    other.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=6.0)
    np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), atol=1e-10)
    np.testing.assert_allclose(atoms.get_stress(), other.get_stress(), atol=1e-12)
    assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy())
