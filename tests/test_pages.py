"""Every command and input of the pages, of `--help` and of the manuals of the actions, is run.

What a page shows is typed as it stands, in one folder, in the order of the pages, each line once.
Only the sizes are changed: the example is a crystal of 53 atoms, sampled for seconds. What cannot
be run says so in its page (tests/pages.py); the rest is typed by the tests of ELSEWHERE. The files
of plumed_inputs/ are run by tests/plumed/test_inputs.py.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import mdtraj
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

import plumed_cv
from plumed_cv import cli, cv, freeenergy, input_file, sampling
from plumed_cv.common.toml import as_toml
from plumed_cv.paths.path import load_path
from plumed_cv.structures import cell_of, read_structure
from tests import pages, vacancy
from tests.conftest import MakePlumed
from tests.engines.kits import script_output
from tests.plumed.autoencoder import step
from tests.test_tutorials import typed as in_a_shell

# What else types it, and a word that is found there.
ELSEWHERE = {
    "docs/library.md": ("tests/test_library.py", "library.md"),
    "docs/tutorial-vacancy.md": ("tests/test_tutorials.py", "commands(VACANCY)"),
    "docs/tutorial-own-defect.md": ("tests/test_tutorials.py", "commands(OWN_DEFECT)"),
    "docs/surfaces.md": ("tests/test_surfaces.py", "surfaces.md"),
    "docs/monolayers.md": ("tests/test_monolayer.py", "monolayers.md"),
    "docs/clusters.md": ("tests/test_clusters.py", "clusters.md"),
    "docs/dislocations.md": ("tests/test_dislocations.py", "dislocations.md"),
    "make test": (".ci/run", "make test"),
    "make cpp-tests": (".ci/run", "cpp-tests"),
    "python python/gromacs.py": ("Makefile", "python/gromacs.py"),
    "python python/drr.py": ("tests/plumed/test_inputs.py", "drr.py"),
    "python python/lammps_fix_plumed.py": ("tests/conftest.py", "lammps_fix_plumed.py"),
    "PLUMED_KERNEL=/opt/plumed/lib/libplumedKernel.so sh run.sh": (
        "tests/test_molecules.py",
        "elsewhere/run.sh",
    ),
    "plumed-cv init alanine": ("tests/test_molecules.py", "build.py"),
    "plumed-cv run alanine/alanine.toml": ("tests/test_molecules.py", "workflow.run(given"),
    "plumed-cv committee": ("tests/truth/test_committee.py", 'called("committee"'),
    "plumed-cv label": ("tests/truth/test_label.py", 'called("label"'),
    "import yaml": ("tests/test_exports.py", "diffusion.md"),
    "pair = OnsagerCalc": ("tests/test_exports.py", "diffusion.md"),
    "model.to_torchscript": ("tests/plumed/test_mlcolvar.py", "to_torchscript"),
}
# Named in the text, to be typed with an argument of the reader's.
_TYPED = (
    "run|path|train|energy|fes|sample|rate|committee|label|harmonic|jumps|discover|campaign"
    "|diffusion"
)
NAMES = rf"plumed-cv (?:{_TYPED})(?: --inputs-only)?"

# The whole procedure in seconds.
SHORT = {
    ".repeat(4)": ".repeat(3)",
    "images = 19": "images = 7\nfmax_eV_A = 0.02\nstructures = 500",
    "functions = 6": "functions = 6\ncomponents = 5",
    "steps = 150_000": "steps = 8000\nsegments = 8",
    "maximum = 5": "maximum = 2",
    "tolerance = 0.02": "tolerance = 1e-9",
}
MORE = {  # options that are added to a command, where the last one counts
    "energy": ["--structures", "500", "--components", "5"],
    "--inputs-only": ["--dir", "elsewhere"],
    "sample": ["--dir", "elsewhere"],
    "rate": ["--shots", "4"],
    "--error": ["--error", "0.5"],
    "jumps": ["--width", "8"],
    "discover": ["--confidence", "0.8"],
}


def is_elsewhere(line: str) -> bool:
    """Whether a line is left out, or typed by another test."""
    return line.startswith((*pages.left_out(), *ELSEWHERE))


def shell_lines() -> dict[str, Path]:
    """Every command that is to be typed here, and the first page that shows it."""
    found: dict[str, Path] = {}
    shown: list[tuple[Path, list[str]]] = []
    for page in pages.PAGES:
        if str(page.relative_to(pages.ROOT)) in ELSEWHERE:
            continue
        blocks = [block for block in pages.blocks(page) if block.kind == "shell"]
        lines = [line for block in blocks for line in pages.lines(block)]
        lines += [line for line in pages.quoted(page) if not re.fullmatch(NAMES, line)]
        shown.append((page, lines))
    help_ = [part for line in pages.examples() for part in line.split(" && ")]
    commands = re.findall(
        r"^\| `plumed-cv (\w+)", (pages.DOCS / "command-line.md").read_text(), re.M
    )
    help_ += [f"plumed-cv {name} --help" for name in commands]
    for page, lines in [*shown, (Path("--help"), help_)]:
        for line in lines:
            if not is_elsewhere(line):
                found.setdefault(line, page)
    return found


def shorten(file: Path, text: str, *names: str) -> None:
    """Write a file of the example in the sizes of a test."""
    for name in names:
        assert name in text
        text = text.replace(name, SHORT[name])
    file.write_text(text)


def make_files(folder: Path, demo: Path) -> None:
    """The reader's files: paths, trajectories and runs under the names of the pages."""
    path = load_path(demo / "run" / "path.xyz").images
    for name in ("neb.traj", "neb.xyz"):
        ase.io.write(folder / name, path)
    bare = [image.copy() for image in path]
    ase.io.write(folder / "images.xyz", bare)
    for number, image in enumerate(path):
        (folder / "neb" / f"{number:02d}").mkdir(parents=True)
        (folder / "neb" / f"{number:02d}" / "OUTCAR").write_text(outcar(image))
    for name in ("initial.xyz", "final.xyz", "vacancy.toml"):
        shutil.copy(demo / name, folder / name)
    shutil.copy(demo / "vacancy.toml", folder / "defect.toml")
    shutil.copytree(demo / "run", folder / "run")
    bulk("Fe", "bcc", a=2.8553).write(folder / "fe.cif")
    shutil.copy(demo / "run" / "cv.safetensors", folder)
    snapshots = sorted(demo.glob("run/iteration-2/segment-*/snapshots.dcd"))
    ends = [read_structure(demo / f"{name}.xyz") for name in ("initial", "final")]
    top = mdtraj.Topology()
    residue = top.add_residue("X", top.add_chain())
    for symbol in ends[0].symbols:
        top.add_atom(symbol, mdtraj.element.Element.getBySymbol(symbol), residue)
    mdtraj.load([str(file) for file in snapshots], top=top).save_dcd(str(folder / "md.dcd"))
    for name, atoms in zip(("a", "b"), ends, strict=True):
        atoms.write(folder / f"{name}.xyz", format="extxyz")

    molecule = ase.build.molecule("C60")
    other = molecule.copy()
    other.positions[:5] *= 1.3
    for name, atoms in (("a", molecule), ("b", other)):
        atoms.write(folder / f"{name}.pdb")
    rng = np.random.default_rng(1)
    xi = rng.uniform(size=(400, 1, 1))
    noisy = molecule.positions + xi * (other.positions - molecule.positions)
    noisy += rng.normal(scale=0.05, size=noisy.shape)
    with mdtraj.formats.XTCTrajectoryFile(str(folder / "md.xtc"), "w") as file:
        file.write((0.1 * noisy).astype(np.float32))

    states = sorted(demo.glob("run/iteration-1/segment-*/babf.state"))[-2:]
    axes = [freeenergy.Grid(-np.pi, np.pi, 12, periodic=True) for _ in range(2)]
    for number in range(2):  # independent runs, on one CV and on two
        for name in ("walker", "run"):
            (folder / f"{name}-{number}").mkdir()
        shutil.copy(states[number], folder / f"walker-{number}")
        estimator = freeenergy.Estimator(axes, 0.026, argument=("phi", "psi"))
        for point in rng.uniform(-np.pi, np.pi, size=(300, 2)):
            estimator.learn(point)
        freeenergy.write_state(folder / f"run-{number}" / "babf.state", estimator.state)


def outcar(image: Atoms) -> str:
    """The part of VASP's OUTCAR that ASE reads, for one element."""
    (symbol,) = set(image.symbols)
    cell = "\n".join(" ".join(f"{x:.9f}" for x in row) for row in image.cell.array)
    rows = np.hstack([image.positions, image.get_forces()])
    atoms = "\n".join(" ".join(f"{x:.9f}" for x in row) for row in rows)
    energy = image.get_potential_energy()
    return f""" POTCAR:    PAW_PBE {symbol} 06Sep2000
 POTCAR:    PAW_PBE {symbol} 06Sep2000
   ISPIN  =      1    spin polarized calculation?
   ions per type =              {len(image)}
 Iteration    1(   1)
      direct lattice vectors                 reciprocal lattice vectors
{cell}
 POSITION                                       TOTAL-FORCE (eV/Angst)
 ---------------------------------------------------------------------
{atoms}
 ---------------------------------------------------------------------
  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =  {energy:.9f} eV

  energy  without entropy=  {energy:.9f}  energy(sigma->0) =  {energy:.9f}
"""


class Desk:
    """A folder in which lines are typed."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        monkeypatch.chdir(folder)

    def type(self, line: str) -> str:
        """Run a line in a shell and return its standard output."""
        if "completion" in line:  # asks what shell it is started by
            line = f"bash -c {shlex.quote(f'{line} && true')}"
        if not line.startswith("plumed-cv "):
            done = in_a_shell(line, self.folder)
            assert done.returncode == 0, (line, done.stderr)
            return done.stdout
        command, _, filter_ = line.partition(" | ")
        words = shlex.split(re.sub(r" 2> \S+$", "", command))[1:]
        words = [file for word in words for file in _glob(word) or [word]]
        words += next((more for word, more in MORE.items() if word in words), [])
        self.monkeypatch.setattr(sys, "argv", ["plumed-cv", *words])
        self.capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        said = self.capsys.readouterr()
        assert status == (3 if "--inputs-only" in words else 0), (line, said.err)
        for option, value in pairwise(words):
            assert option not in ("-o", "--picture") or Path(value).exists(), line
        if filter_:
            (key,) = re.findall(r"^jq \.(\w+)$", filter_)
            return str(json.loads(said.out)[key])
        return said.out


def _glob(word: str) -> list[str]:
    return sorted(map(str, Path().glob(word))) if re.search(r"[*?]", word) else []


@pytest.mark.slow
def test_commands(
    tmp_path: Path,
    plugin: Path,
    torch_plugin: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    desk = Desk(tmp_path, monkeypatch, capsys)
    monkeypatch.setenv("HOME", str(tmp_path))  # where completion is installed
    page = pages.blocks(pages.DOCS / "input.md")
    (whole,) = [block.text for block in page if block.kind == "toml"]
    lines = [line for line in shell_lines() if not is_script(line)]
    assert len(lines) > 40
    for line in lines:
        desk.type(line)
        if line == "plumed-cv init vacancy-fe demo":
            demo = tmp_path / "demo"
            build, *sizes = SHORT
            shorten(demo / "build.py", (demo / "build.py").read_text(), build)
            subprocess.run([sys.executable, "build.py"], cwd=demo, check=True)
            shorten(demo / "vacancy.toml", whole, *sizes)
        elif line == "plumed-cv run demo/vacancy.toml":
            make_files(tmp_path, tmp_path / "demo")
    readme = pages.blocks(pages.ROOT / "README.md")
    (script,) = [block.text for block in readme if block.kind == "python"]
    exec(compile(script, "README.md", "exec"), {})


SCRIPTS = """
import json, runpy, sys
sys.path.insert(0, "")
for words in json.load(sys.stdin):
    print("#", *words, flush=True)
    sys.argv = words[words[0] == "-m":]
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
    sys.stdout.flush()
"""


def test_scripts_print_the_tables_of_their_pages(tmp_path: Path) -> None:
    """Scripts print tables from the committed data; in a copy, because some draw figures."""
    for name in ("python", "docs", "tests"):
        shutil.copytree(pages.ROOT / name, tmp_path / name)
    shutil.copy(pages.ROOT / "README.md", tmp_path)
    shown = {line: page for line, page in shell_lines().items() if is_script(line)}
    assert len(shown) > 8
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS],
        input=json.dumps([shlex.split(line)[1:] for line in shown]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = re.split(r"^# .*\n", done.stdout, flags=re.MULTILINE)[1:]
    for (line, page), words in zip(shown.items(), printed, strict=True):
        text = page.read_text(encoding="utf-8")
        rows = [row for row in words.splitlines() if re.search(r"^\||\+-", row)]
        assert rows, line
        for row in rows:
            assert row in text, line


def is_script(line: str) -> bool:
    """Whether a line starts a script of this repository."""
    return re.match(r"python (-m )?python\b", line) is not None


def shown_lines() -> Iterator[str]:
    """Everything that a mark may exclude."""
    for block in pages.all_blocks():
        yield from pages.lines(block)
    for page in pages.PAGES:
        yield from pages.quoted(page)


@pytest.mark.parametrize("command", pages.left_out())
def test_what_is_not_run_is_there(command: str) -> None:
    assert any(line.startswith(command) for line in shown_lines())


@pytest.mark.parametrize("what", ELSEWHERE)
def test_what_is_run_elsewhere(what: str) -> None:
    file, word = ELSEWHERE[what]
    assert word in (pages.ROOT / file).read_text(encoding="utf-8")
    assert (pages.ROOT / what).is_file() or any(line.startswith(what) for line in shown_lines())


def test_every_block_is_of_a_kind_that_is_run() -> None:
    for block in pages.all_blocks():
        assert block.kind in ("toml", "plumed", "shell", "python", "text"), block
        name = str(block.page.relative_to(pages.ROOT))
        if block.kind == "python" and name not in (*ELSEWHERE, "README.md"):
            assert is_elsewhere(block.text), block


def example() -> dict[str, Any]:
    file = pages.ROOT / "plumed_cv" / "examples" / "vacancy-fe" / "vacancy.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def whole(block: pages.Block) -> dict[str, Any]:
    """The input of a block; without [system] and [engine], it is added to the example's."""
    given = tomllib.loads(block.text)
    if block.text.startswith("program = "):
        given = {"engine": example()["engine"] | given}
    if {"system", "engine"} <= given.keys():
        return given
    added = example()
    if "file" in given.get("path", {}):
        del added["system"]["initial"], added["system"]["final"]
    if "engine" in given:
        added["engine"] = {}
    for section, keys in given.items():
        added[section] = added.get(section, {}) | keys
    return added


INPUTS = [block for block in pages.all_blocks() if block.kind == "toml"]


@pytest.mark.parametrize("block", INPUTS, ids=lambda block: block.page.name)
def test_inputs(block: pages.Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every input is loaded, and every engine that is set up computes forces."""
    file = tmp_path / "input.toml"
    file.write_text(as_toml(whole(block)), encoding="utf-8")
    settings = input_file.load(file)
    if "[engine]" not in block.text or "[system]" in block.text:
        return  # whole inputs are run, by the commands beside them
    make_engine_files(settings.engine, tmp_path, monkeypatch)
    atoms = read_structure(tmp_path / "atoms.xyz")
    with sampling.open_engine(settings, atoms) as engine:
        energy, forces, _ = engine.evaluate(atoms.positions, cell_of(atoms))
    assert np.isfinite(energy)
    assert np.abs(forces).max() > 0.01


def make_engine_files(
    engine: input_file.Lammps | input_file.Gromacs | input_file.Ase | input_file.TorchSim,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Write what an engine of the pages needs, and atoms for it."""
    rng = np.random.default_rng(1)
    if isinstance(engine, input_file.Gromacs):
        monkeypatch.setenv("GMX", script_output("gromacs.py"))
        with resources.as_file(resources.files(plumed_cv) / "examples" / "alanine") as source:
            shutil.copytree(source, folder, dirs_exist_ok=True)
        subprocess.run([sys.executable, "build.py"], cwd=folder, check=True)
        shutil.move(folder / "md.mdp", folder / "run.mdp")
        shutil.copy(folder / "initial.xyz", folder / "atoms.xyz")
        return
    if isinstance(engine, input_file.CalculatorSection):
        atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    elif engine.units == "real":
        atoms = molecule("CH4", vacuum=5.0, pbc=True)
    elif engine.species is not None:
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)
    else:
        atoms = vacancy.end_states()[0]
    atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
    atoms.write(folder / "atoms.xyz", format="extxyz")


LEFT_TO_THE_READER = {  # by a fragment
    "ae": "AUTOENCODER MODEL=cv.safetensors",
    "phi": "TORSION ATOMS=5,7,9,15",
    "psi": "TORSION ATOMS=7,9,15,17",
}
PLUMED = [block for block in pages.all_blocks() if block.kind == "plumed"]


class Two(torch.nn.Module):
    """A CV with two numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.sum(), (x * x).sum()])


@pytest.mark.parametrize("block", PLUMED, ids=lambda block: block.page.name)
def test_plumed_inputs(
    block: pages.Block,
    make_plumed: MakePlumed,
    torch_plugin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PLUMED reads every input of the pages and of the actions' comments, and does three steps."""
    crystal = bulk("Fe", cubic=True, a=2.8553) * (4, 4, 4)
    initial, final = crystal[1:], crystal[1:]
    final.positions[0] = crystal.positions[0]
    (tmp_path / "shared").mkdir()
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    cell = initial.cell.array
    cv.linear(initial.symbols, cell, initial.positions, final.positions).save(
        folder / "cv.safetensors"
    )
    torch.jit.script(Two()).save("model.pt")
    nodes = "".join(f"{0.2 + i / 120} 0.0\n" for i in range(121))
    Path("fes.dat").write_text(f"#! FIELDS d A_k\n{nodes}")

    text = re.sub(r"FILE=\S*libplumed_cv_torch\.so", f"FILE={torch_plugin}", block.text)
    text = re.sub(r"LOAD FILE=\S*libplumed_cv\.so", "", text)  # is there already
    text = text.replace("DEVICE=cuda", "DEVICE=cpu")
    if "TORCH_CV" in text and str(torch_plugin) not in text:
        text = f"LOAD FILE={torch_plugin}\n{text}"
    for name, line in LEFT_TO_THE_READER.items():
        if re.search(rf"\b{name}\b", text) and f"{name}:" not in text:
            text = f"{name}: {line}\n{text}"
    handle = make_plumed(2 * len(initial), "", units="")
    handle.cmd("readInputLines", text)
    rng = np.random.default_rng(1)
    for number in range(3):
        twice = np.tile(initial.positions, (2, 1))
        step(handle, number, twice + rng.normal(scale=0.02, size=twice.shape), cell)
    handle.finalize()
    written = set(re.findall(r"(?<!LOAD )(?<!RFILE=)\b(?:FES_|STATE_W)?FILE=(\S+)", text))
    assert all((folder / name).exists() for name in written)
