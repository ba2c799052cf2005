"""Refusals of what a user gives, beside those in the tests of each subject."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import mdtraj
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from plumed_cv import cv, figures, freeenergy, workflow
from plumed_cv.cli import app
from plumed_cv.common.errors import UserError
from plumed_cv.cv import autoencoder, learning, meanpath, pca, projection
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.cv.reconstruction import reconstruct
from plumed_cv.cv.torchscript import write_torchscript
from plumed_cv.cv.training import Training
from plumed_cv.engines.ase import AseEngine
from plumed_cv.engines.lammps_potential import element_types, potential_commands
from plumed_cv.engines.process import run_program
from plumed_cv.events.catalogue import NAME, read_catalogue, read_template
from plumed_cv.input_file import Config
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.rates.stationary import find_saddle
from plumed_cv.setup.kernel import data_dir
from plumed_cv.structures import check_end_states, read_structures
from plumed_cv.structures.frame import displacements
from plumed_cv.structures.lammps_files import read
from plumed_cv.structures.trajectory import read_displacements
from plumed_cv.workflow.committee import refusal
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.from_atoms import run_input
from plumed_cv.workflow.label_candidates import find_candidates
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
        ({"alignment": "optimal"}, "a reference for alignment has no cell; use"),
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
        (
            lambda: projection.select("some", ["Cu"] * 8),
            "atoms = 'some': give all, heavy, or serial numbers",
        ),
        (
            lambda: autoencoder.train(autoencoder.Examples(*np.ones((2, 9, 3))), Training()),
            "structures are all the same, so nothing can be learned",
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
        (CORNERS, np.full((3, 3), np.inf), "give three finite lattice vectors"),
        (CORNERS, np.ones((3, 3)), "has no volume; give independent lattice vectors"),
    ],
)
def test_a_displacement_frame(positions: Any, cell: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        displacements(positions, cell, CORNERS, CELL)


def test_end_states_in_different_cells() -> None:
    larger = crystal()
    larger.set_cell(1.001 * larger.cell, scale_atoms=True)
    with pytest.raises(
        UserError, match=r"lattice vectors differ by up to 0\.0\d+ A; give both the same"
    ):
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


def test_states_of_two_variables_have_no_profile(tmp_path: Path) -> None:
    axes = (freeenergy.Grid(0.0, 1.0, 8), freeenergy.Grid(0.0, 1.0, 8))
    estimator = freeenergy.Estimator(axes, 0.025)
    estimator.learn((0.5, 0.5))
    freeenergy.write_state(tmp_path / "babf.state", estimator.state)
    with pytest.raises(UserError, match=r"of two CVs; freeenergy\.estimate_surface takes them"):
        workflow.analyse_states(tmp_path / "babf.state")


def test_trajectories_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"md.dcd@5:: only files of ASE or LAMMPS .* give md.dcd"):
        read_displacements([f"{tmp_path / 'md.dcd'}@5:"], linear())
    with mdtraj.formats.DCDTrajectoryFile(str(tmp_path / "md.dcd"), "w") as written:
        written.write(np.zeros((2, 5, 3), np.float32), np.full((2, 3), 6.0), np.full((2, 3), 90.0))
    with pytest.raises(UserError, match=r"md\.dcd: it has 5 atoms, and 4 are expected"):
        read_displacements([tmp_path / "md.dcd"], linear())
    (tmp_path / "md.xyz").write_text("\n")
    with pytest.raises(UserError, match=r"md\.xyz: the trajectory contains no structure"):
        read_displacements([tmp_path / "md.xyz"], linear())


def test_forces_that_are_words(tmp_path: Path) -> None:
    file = tmp_path / "a.xyz"
    file.write_text(
        '1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=low pbc="F F F"\nCu 0 0 0 0 0 0\n'
    )
    with pytest.raises(UserError, match=r"contains energies, forces, .* that are not numbers"):
        read_structures(file)


def hilly(*energies_eV: float) -> EnergyPath:
    """A path of a copper atom in steps of 0.5 angstrom, without forces."""
    images = []
    for k, energy in enumerate(energies_eV):
        atoms = crystal()
        atoms.positions[0, 0] += 0.5 * k
        forces = np.zeros_like(atoms.positions)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        images.append(atoms)
    return EnergyPath(tuple(images), "up.xyz")


def test_paths_that_do_not_fit() -> None:
    path = hilly(0.0, 0.1, 0.2)
    with pytest.raises(UserError, match=r"up.xyz: has 32 atoms, so there is no atom 33"):
        path.of_atoms(np.array([1, 33]))
    with AseEngine("ase.calculators.emt.EMT", path.images[0]) as engine:
        with pytest.raises(UserError, match=r"up.xyz: the highest image is an end, .* two minima"):
            find_saddle(engine, path)
        with pytest.raises(UserError, match=r"is alone; give others in engine\.committee"):
            engine.deviations(path.images[0].positions[None], path.cell)
    for number, variance in ((1, 0.005), (1000, 0.0)):
        with pytest.raises(UserError, match="give two or more structures and a positive variance"):
            reconstruct(path, number, variance)


def test_variables_that_do_not_tell_the_states_apart() -> None:
    """A network whose weights are zero has one value for all structures."""
    model = linear()
    flat = [replace(layer, weight=np.zeros_like(layer.weight)) for layer in model.encoder]
    with pytest.raises(UserError, match="does not distinguish the end states; give it more"):
        learning.rescale(replace(model, encoder=tuple(flat)))


def test_a_slab_as_torchscript(tmp_path: Path) -> None:
    slab = np.diag([6.0, 6.0, 0.0])
    moved = CORNERS.copy()
    moved[0, 0] += 0.3
    model = cv.linear(["Fe"] * 4, slab, CORNERS, moved)
    with pytest.raises(UserError, match="periodic along a and b only cannot be exported"):
        write_torchscript(model, tmp_path / "cv.pt")
    assert not (tmp_path / "cv.pt").exists()


def test_files_and_programs_of_lammps(tmp_path: Path) -> None:
    (tmp_path / "cu.eam").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cu.eam: is not a text file; name the LAMMPS file"):
        potential_commands(Path("cu.eam"), tmp_path, "metal")
    with pytest.raises(UserError, match="lmp_of_nobody: cannot be started: No such file"):
        run_program([tmp_path / "lmp_of_nobody"], tmp_path)
    file = tmp_path / "a.data"
    file.write_text(
        "LAMMPS data file\n\n1 atoms\n1 atom types\n\n0 5 xlo xhi\n0 5 ylo yhi\n0 5 zlo zhi\n\n"
        "Atoms # charge\n\n1 1 0.0 0.0 0.0\n"
    )
    with pytest.raises(UserError, match=r"style is 'charge', but the lines .* do not fit it; corr"):
        read(file, "data", 0, ["Cu"])


def test_figures_of_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rates.gfi: the name of a figure must end in one of \..*"):
        figures.plot_arrhenius(tmp_path / "rates.gfi", [], None, "Rates")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "md.dcd", "--recipe", "soup", "-o", "cv"], "--recipe soup: the recipes are "),
        (["train", "md.dcd", "-o", "none/cv"], "none/cv: its folder does not exist; make it first"),
        (["harmonic", ".", "-o", "out"], "--output out: the results of a run are kept in the run"),
        (["label", ".", "--labels", "a.xyz", "-n", "9"], "--number: has no effect with --labels; "),
        (["label", ".", "--uncertain", "3", "--seed", "9"], "--seed: has no effect with --unc"),
        (["label", ".", "-n", "9"], "9 structures: a correction needs at least 20"),
        (["export", "cv.safetensors", "cv.pt"], "is a model file; --torch converts it"),
        (["energy", "a.xyz", "--noise", "0"], "--noise 0.0: the variance must be positive"),
        (["diffusion", ".", "--source", "guess"], "--source guess: choose transmission, tst, harm"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    linear().save("cv.safetensors")
    ends = ["--initial", "a.xyz", "--final", "b.xyz"] if arguments[0] == "train" else []
    with pytest.raises(UserError, match=sentence):
        command(*arguments, *ends)


def test_a_data_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLUMED_CV_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(UserError, match=r"file/home: this folder .* \(Not a directory\); set PLUM"):
        data_dir()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "a.toml: cannot be read: No such file"),
        ("[system", "a.toml: is not valid TOML: "),
        (
            '[system]\ntemperature_K = 300.0\n[engine]\nname = "gromacs"\n'
            'topology = "t"\nmdp = "m"\nstructure = "g"\n[sampling]\nsteps = 10000\n',
            "needs a topology for each structure; use lam",
        ),
        (
            '[system]\ntemperature_K = 300.0\n[engine]\npotential = ["pair_style zero 3.0"]\n'
            '[sampling]\nsteps = 10000\n[cv]\nalignment = "optimal"\n',
            "a.toml: cv.alignment = 'optimal' is for molecules; remove it",
        ),
    ],
)
def test_inputs_of_all_events(content: str | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_template(file)


def test_runs_whose_barrier_no_other_potential_can_correct(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    found: dict[str, Any] = {"flux_barrier_eV": None, "answer_iteration": 1}
    assert "the flux barrier is unknown" in str(refusal(files, found))
    found["flux_barrier_eV"] = 0.5
    linear().save(files.cv(0))
    assert refusal(files, found) is None
    replace(linear(), alignment="optimal", reference_cell=np.zeros((3, 3))).save(files.cv(0))
    assert "which is not known with cv.alignment or relu" in str(refusal(files, found))
    files.result.write_text(json.dumps(found))
    with pytest.raises(UserError, match="my-run: the error of the potential needs the mean force"):
        find_candidates(files, 100, "my-run")


def test_end_states_that_do_not_fit_are_named_by_their_files(tmp_path: Path) -> None:
    """The sentence has both files, the value and the remedy, whichever check refuses them."""
    whole, rng = crystal(), np.random.default_rng(1)
    hop = whole.copy()
    hop.positions[3] += [2.8, 0.0, 0.0]
    missing = whole[1:]
    other = whole.copy()
    other.symbols[4] = "Ni"
    swapped = whole.copy()
    swapped.positions[[2, 7]] = swapped.positions[[7, 2]]
    strained = whole.copy()
    strained.set_cell(1.01 * whole.cell, scale_atoms=True)
    whole.write(tmp_path / "a.xyz", format="extxyz")
    for final, value, remedy in (
        (hop, "nearly half of the cell, whose width", "repeat the structures along a"),
        (missing, "32 atoms and the final state 31", "give two structures of the same atoms"),
        (other, "Atom 5 is Cu in the initial and Ni", "write one of them again in the order"),
        (swapped, "atom 3 is at the position of atom 8", "set system.reorder = true"),
        (strained, "differ by up to 0.0722 A", "give both the same"),
    ):
        final.positions += 0.001 * rng.normal(size=final.positions.shape)
        final.write(tmp_path / "b.xyz", format="extxyz")
        ends = {"initial": tmp_path / "a.xyz", "final": tmp_path / "b.xyz"}
        config = Config.model_validate({"system": SYSTEM | ends, "engine": ENGINE})
        with pytest.raises(UserError) as caught:
            workflow.read_end_states(config)
        said = str(caught.value)
        assert said.startswith(f"{tmp_path / 'a.xyz'} and {tmp_path / 'b.xyz'}: ")
        assert value in said
        assert remedy in said


def test_an_element_that_the_potential_does_not_name() -> None:
    """The key is named only if it was given."""
    lines = ("pair_style eam/alloy", "pair_coeff * * NiAl.eam Ni Al")
    for species, begins in (
        (["Ni", "Al"], r"engine.species = \['Ni', 'Al'\]: "),
        (None, "the potential names the elements Ni, Al: "),
    ):
        with pytest.raises(UserError, match=f"{begins}the structure also contains Cu; .*species"):
            element_types(crystal(), species, lines)
