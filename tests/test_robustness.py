"""Failures around a run: damaged files, a full disk, a second process, bad physics.

The drills of python/drills/, shortened; docs/robustness.md says what they found at length.
"""

import ast
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import plumed_cv
from plumed_cv import cv
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing
from plumed_cv.cv import CollectiveVariable, autoencoder, learning, random_model
from plumed_cv.cv.autoencoder import Examples
from plumed_cv.cv.training import RECIPES, Training
from plumed_cv.freeenergy import estimate_profile
from plumed_cv.structures import read_structure
from plumed_cv.structures.trajectory import read_displacements
from plumed_cv.workflow.directory import claimed
from python.drills import directory, endurance, files, fuzzers, runs
from tests.frozen import KT, WIDE, Frozen, double_well

CELL = np.array([[9.0, 0.0, 0.0], [1.0, 10.0, 0.0], [-1.0, 2.0, 11.0]])


@pytest.fixture(scope="module")
def example(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.prepare(tmp_path_factory.mktemp("drills") / "example")


@pytest.fixture(scope="module")
def finished(example: Path) -> Path:
    """An undisturbed run."""
    run = example.parent / "run"
    status, said = runs.attempt(example, run)
    assert status == 0, said
    return run


@pytest.mark.parametrize(
    "name",
    ["model", "state", "profile", "start of a segment", "structure", "path", "trajectory", "input"],
)
def test_damaged_files_are_refused_or_harmless(
    example: Path, finished: Path, tmp_path: Path, name: str
) -> None:
    reader = files.all_readers(finished, example)[name]
    counts = files.damage(reader, 60, tmp_path, seed=2)
    assert counts["broken"] == 0, counts
    assert counts["refused"] > 0
    if reader.is_checked:
        assert counts["otherwise"] == 0, counts


def test_of_two_runs_in_one_directory_one_works(example: Path, finished: Path) -> None:
    run, log = example.parent / "two", example.parent / "two.log"
    first = runs.start(example, run, log)
    while first.poll() is None and not (run / "provenance.json").exists():
        time.sleep(0.01)
    status, said = runs.attempt(example, run)
    if first.poll() is None or status != 0:  # else the first had ended before
        assert "another run is at work" in said
    assert first.wait() == 0, log.read_text()
    assert runs.contents(run) == runs.contents(finished)


def test_a_run_removes_what_was_left_half_written_and_nothing_else(tmp_path: Path) -> None:
    segment = tmp_path / "iteration-1" / "unfinished-segment-000003"
    segment.mkdir(parents=True)
    stale = [
        tmp_path / ".cv-1-ab_3defg.safetensors",
        tmp_path / "iteration-1" / ".fes-0aaaaaaa.dat",
    ]
    kept = [tmp_path / ".my-notes.txt", tmp_path / ".git-ignored", tmp_path / "cv-1.safetensors"]
    for file in (*stale, *kept):
        file.touch()
    with replacing(segment / "end.npz") as temporary:  # as `plumed-cv sample` does elsewhere
        temporary.write_text("the end")
        with claimed(tmp_path):
            pass
    assert (segment / "end.npz").read_text() == "the end"
    assert not any(file.exists() for file in stale)
    assert all(file.exists() for file in kept)


def test_results_depend_neither_on_threads_nor_on_the_day(example: Path, finished: Path) -> None:
    run = example.parent / "threads"
    done = subprocess.run(
        runs.command("run", example, "--dir", run),
        env=os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert runs.contents(run) == runs.contents(finished)


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_the_run_goes_on(
    example: Path, finished: Path, tmp_path: Path
) -> None:
    try:
        with directory.small_disk(tmp_path / "disk", 100):
            pass
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a small disk")
    found = directory.fill_disk(example, runs.contents(finished), tmp_path / "disk", 500)
    assert found["times_full"] > 1
    assert found["not_one_sentence"] == 0, found["what_was_said_then"]
    assert not found["differs"]
    assert found["read_only_new_is_one_sentence"]


@pytest.mark.slow
def test_fuzzers_find_nothing(tmp_path: Path) -> None:
    try:
        fuzzers.build(tmp_path)
    except UserError as error:
        pytest.skip(str(error))
    for reader in fuzzers.READERS:
        counts = fuzzers.run(tmp_path, reader, seconds=10)
        assert counts["cases"] > 100, reader
        assert counts["read"] > 0, reader
        assert counts["refused"] > 0, reader


def test_nothing_decides_by_the_time_of_day() -> None:
    """The clock may jump: time.time and datetime.now are for records alone."""
    records = {"provenance.py"}
    for file in Path(plumed_cv.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                wall = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}
                assert called not in wall or file.name in records, (file, called)


def test_no_code_comes_from_data() -> None:
    """No pickle, eval or shell: files contain numbers and names only, except TorchScript."""
    root = Path(plumed_cv.__file__).parent
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
                assert not names & {"pickle", "dill", "joblib", "shelve", "marshal"}, file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "os.system", "os.popen", "torch.load"), file
                for word in node.keywords:
                    if word.arg in ("shell", "allow_pickle"):
                        assert ast.unparse(word.value) == "False", (file, called)


def test_dynamics_that_explode_are_a_sentence_and_keep_what_was_before(example: Path) -> None:
    """LAMMPS loses atoms because the time step is far too long."""
    file = example.with_name("hasty.toml")
    file.write_text(example.read_text().replace("timestep_fs = 2.0", "timestep_fs = 300.0"))
    run = example.parent / "hasty"
    times = []
    for _ in range(2):
        status, said = runs.attempt(file, run)
        assert status == 1
        assert runs.is_a_sentence(said)
        assert "flew apart; shorten the time step" in said
        times.append([(run / n).stat().st_mtime_ns for n in ("path.xyz", "cv-0.safetensors")])
    assert times[0] == times[1]
    assert not list(run.rglob("segment-*/segment.json"))


def test_an_atom_that_jumps_a_lattice_vector_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    model = random_model(rng, 8, 3, (4,), cell=CELL)
    r = model.reference_positions + rng.normal(scale=0.1, size=(8, 3))
    jumped = r + rng.integers(-2, 3, size=(8, 3)) @ CELL
    np.testing.assert_allclose(model.value(jumped, CELL), model.value(r, CELL), rtol=1e-11)
    np.testing.assert_allclose(model.gradient(jumped, CELL), model.gradient(r, CELL), atol=1e-11)


def test_atoms_that_jump_in_a_trajectory_change_nothing(
    example: Path, finished: Path, tmp_path: Path
) -> None:
    """A trajectory of an engine that moves atoms back into the cell."""
    rng = np.random.default_rng(4)
    variable = CollectiveVariable.load(finished / "cv-0.safetensors")
    cell, positions = variable.reference_cell, variable.reference_positions
    moved = positions + rng.normal(scale=0.1, size=(20, *positions.shape))
    jumps = rng.integers(-1, 2, size=moved.shape) @ cell
    shape = {"cell_lengths": np.tile(np.diag(cell), (20, 1)), "cell_angles": np.full((20, 3), 90.0)}
    for name, x in (("whole", moved), ("jumps", moved + jumps)):
        with mdtraj.formats.DCDTrajectoryFile(str(tmp_path / f"{name}.dcd"), "w") as stream:
            stream.write(x.astype(np.float32), **shape)
    whole, jumping = (
        read_displacements([tmp_path / f"{n}.dcd"], variable) for n in ("whole", "jumps")
    )
    np.testing.assert_allclose(jumping, whole, atol=1e-5)


def test_a_barrier_of_fifty_kt() -> None:
    """Without noise the profile is exact, though densities differ by 1e21."""
    U = double_well(50.0)
    found = estimate_profile([Frozen(WIDE, U, lambda x: 0.9 * U(x)).exact()])
    # The grid's error is that of U'': 2.5 times that of 20 kT.
    assert found.barrier.value == pytest.approx(50.0 * KT, abs=0.04 * KT)
    assert found.delta_F.value == pytest.approx(0.0, abs=1e-6 * KT)
    # Without a bias nothing is known of the barrier, and nothing is claimed.
    blind = Frozen(WIDE, U, lambda x: np.zeros_like(x))
    rng = np.random.default_rng(5)
    blocks = [blind.state(blind.sample(rng, 2000)) for _ in range(10)]
    unknown = estimate_profile(blocks)
    assert np.isnan(unknown.barrier.value) or unknown.barrier.error > 1.0 * KT


def test_a_component_without_variance_is_harmless() -> None:
    rng = np.random.default_rng(2)
    x = np.linspace(-1, 1, 300)
    data = np.stack([x, x**2, np.zeros(300)], axis=1) + 1e-3 * rng.normal(size=(300, 3))
    data[:, 2] = 0.25
    network = autoencoder.train(Examples(data, data), Training(schedule=((1e-2, 30),)))
    assert np.isfinite(network.losses).all()


READ = """
import resource, sys
from pathlib import Path
from plumed_cv.cv import CollectiveVariable
from plumed_cv.structures.trajectory import read_displacements
variable = CollectiveVariable.load(Path(sys.argv[1]))
read_displacements([sys.argv[3]], variable)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
u = read_displacements([sys.argv[2]], variable)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / u.nbytes)
"""


def test_a_long_trajectory_takes_its_size_in_memory_and_says_nothing(
    example: Path, tmp_path: Path
) -> None:
    ends = [read_structure(example.parent / f"{name}.xyz") for name in ("initial", "final")]
    long, short = tmp_path / "long.dcd", tmp_path / "short.dcd"
    endurance.write_trajectory(long, (ends[0], ends[1]), 100_000)
    endurance.write_trajectory(short, (ends[0], ends[1]), 2000)
    model, first = tmp_path / "cv.safetensors", ends[0]
    symbols, places = first.get_chemical_symbols(), (atoms.positions for atoms in ends)
    cv.linear(symbols, first.cell.array, *places).save(model)
    names = map(str, (model, long, short))
    # With what C code prints in a buffer, as for most users.
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    line = [sys.executable, "-c", READ, *names]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=buffered)
    # One line: mdtraj's reader talks, but not on standard output. In memory: the displacements,
    # 64 MB, and a tenth for the piece that is read.
    assert float(done.stdout) < 1.3


@pytest.mark.parametrize("recipe", RECIPES)
def test_three_snapshots_or_the_same_again_and_again_are_too_few(recipe: str) -> None:
    rng = np.random.default_rng(3)
    reference = rng.uniform(0, 9, size=(10, 3))
    line = cv.linear(["Fe"] * 10, 9 * np.eye(3), reference, reference + np.eye(10, 3))
    three = rng.normal(scale=0.1, size=(3, 10, 3))
    with pytest.raises(UserError, match=r"not 3; sample longer|need more than 3 structures"):
        learning.learn(three, line, 4, RECIPES[recipe])
    with pytest.raises(UserError, match=r"at one position|do not differ|all the same"):
        learning.learn(np.tile(three[:1], (500, 1, 1)), line, 4, RECIPES[recipe])


def test_threads_change_no_bit_of_a_training() -> None:
    """Sizes at which libraries use several threads, for matrix products and the network."""
    rng = np.random.default_rng(6)
    u = rng.normal(scale=0.1, size=(4000, 120, 3)).astype(np.float32)
    u[:, 0] += rng.uniform(size=(4000, 1))
    reference = rng.uniform(0, 20, size=(120, 3))
    line = cv.linear(["Fe"] * 120, 20 * np.eye(3), reference, reference + np.eye(120)[0][:, None])
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            for recipe in RECIPES.values():
                training = replace(recipe, schedule=((0.01, 2),))
                learned = learning.learn(u, line, 5, training)[0]
                arrays = [learned.pca_mean, learned.pca_components]
                arrays += [layer.weight for layer in (*learned.encoder, *learned.decoder)]
                found.append(arrays)
    for one, two in zip(found[: len(RECIPES)], found[len(RECIPES) :], strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
