"""What a run survives: kills, full disks, a clock that jumps, damaged files, many updates.

    python -m python.drills FOLDER DRILL [DRILL ...]    # do these in this folder, then print
    python -m python.drills                             # print from the committed data

The drills are `kills` (see --kills), `disk` (root alone may do it), `company`, `readers`, `core`,
`fuzz` (where clang is), `updates`, `memory` and `snapshots`. Results go to docs/robustness.json and
into the table of docs/robustness.md. The vacancy of the packaged example, in a crystal of 54
sites and sampled for seconds, stands for all runs. Minutes each; 100 kills take 15.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdtraj
import nlohmann_json
import numpy as np
from ase import Atoms

from plumed_cv import babf, config
from plumed_cv.cv import CollectiveVariable, random_model
from plumed_cv.engines import State
from plumed_cv.errors import UserError
from plumed_cv.files import write_text
from plumed_cv.kernel import cxx_compiler, tool
from plumed_cv.path import load_path, read_structure
from plumed_cv.plumed import build_plugin
from plumed_cv.trajectory import read_displacements
from python import fuzzers

DATA = Path(__file__).resolve().parent.parent / "docs" / "robustness.json"
CPP = Path(__file__).resolve().parent.parent / "cpp"

INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = 300.0
[engine]
potential = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
[path]
images = 7
fmax_eV_A = 0.02
structures = 500
[cv]
components = 5
[sampling]
steps = {steps}
segments = 16
timestep_fs = 2.0
[iteration]
maximum = 2
tolerance = 1e-9
seed = 3
"""

# Ways to end a process, and whether all that it has started gets the signal too.
ENDS = {
    "SIGKILL": (signal.SIGKILL, False),
    "SIGKILL to the group": (signal.SIGKILL, True),
    "SIGTERM": (signal.SIGTERM, False),
    "Ctrl-C": (signal.SIGINT, True),
}


def command(*arguments: str | Path) -> list[str]:
    """The command line of `plumed-cv`, by this Python."""
    return [sys.executable, "-m", "plumed_cv.cli", *map(str, arguments)]


def prepare(folder: Path, steps: int = 8000) -> Path:
    """Write the end states and the input into a new folder; returns the input."""
    subprocess.run(command("init", "vacancy-fe", folder), check=True, stdout=subprocess.DEVNULL)
    build = folder / "build.py"
    build.write_text(build.read_text().replace(".repeat(4)", ".repeat(3)"))
    subprocess.run([sys.executable, build.name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (folder / "vacancy.toml").write_text(INPUT.format(steps=steps))
    return folder / "vacancy.toml"


def start(file: Path, run: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start `plumed-cv run` in a process group of its own, with what it says in a file."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            command("run", file, "--dir", run),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def attempt(file: Path, run: Path) -> tuple[int, str]:
    """Run to the end; returns the exit status and what was said on standard error."""
    done = subprocess.run(
        command("run", file, "--dir", run), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def is_a_sentence(text: str) -> bool:
    """Whether the last line on standard error is plumed-cv's, and no traceback stands above it."""
    lines = text.strip().splitlines() or [""]
    return lines[-1].startswith("plumed-cv: ") and "Traceback" not in text


def contents(run: Path) -> dict[str, Any]:
    """What a run must end with, bit for bit: all files of numbers but times and provenance."""
    found: dict[str, Any] = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if file.name in ("babf.state", "colvar", "fes.dat", "path.xyz"):
            found[name] = file.read_bytes()
        elif file.suffix == ".dcd":
            found[name] = file.read_bytes()[264:]  # after the title, which has the date
        elif file.suffix == ".safetensors":
            found[name] = _tensors(file)
        elif file.suffix == ".json" and file.name not in ("path.json", "provenance.json"):
            found[name] = _without_times(json.loads(file.read_text()))
    return found


def stage(run: Path) -> str:
    """What a run is at, by the files that are there."""
    if not (run / "provenance.json").exists():
        return "before the start"
    for n, name in enumerate(("path.xyz", "cv-0.safetensors")):
        if not (run / name).exists():
            return ("minimum energy path", "first variable")[n]
    for n in (1, 2):
        folder = run / f"iteration-{n}"
        if not (folder / "result.json").exists():
            # fes.dat is written when the sampling has ended
            return "training" if (folder / "fes.dat").exists() else "sampling"
    return "the answer"


def kill_until(
    file: Path,
    whole: dict[str, Any],
    folder: Path,
    kills: int,
    longest: float,
    minutes: float = 60.0,
    seed: int = 1,
) -> dict[str, Any]:
    """Kill runs at random moments, go on with each until it is done, and compare.

    Parameters
    ----------
    file
        The input.
    whole
        `contents` of a run that was left alone.
    folder
        Where the runs go.
    kills
        How often to kill.
    longest
        Seconds between start and kill: random numbers up to it.
    minutes
        After so many no further kill.
    seed
        Of the moments and the ways.

    Returns
    -------
    dict
        Counts: kills by way and stage, runs, those whose files differ, starts that ended in an
        error of their own, interrupts that ended in a traceback.
    """
    rng = np.random.default_rng(seed)
    ways: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    runs, different, refused, tracebacks, leftovers = 0, 0, [], 0, 0
    end = time.monotonic() + 60.0 * minutes

    def more() -> bool:
        return sum(ways.values()) < kills and time.monotonic() < end

    while more():
        run, log = folder / f"run-{runs:03d}", folder / f"run-{runs:03d}.log"
        while True:
            moment, way = rng.uniform(0, longest), list(ENDS)[rng.integers(len(ENDS))]
            process = start(file, run, log)
            if more():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moment)
            else:
                process.wait()
            if process.poll() is not None:
                if process.returncode == 0:
                    break
                refused.append(log.read_text())
                if len(refused) > kills:
                    break
                time.sleep(1.0)
                continue
            number, group = ENDS[way]
            stages[stage(run)] += 1
            ways[way] += 1
            (os.killpg if group else os.kill)(process.pid, number)
            process.wait()
            tracebacks += way == "Ctrl-C" and "Traceback" in log.read_text()
            if rng.random() < 0.5 and run.exists():
                _scatter_times(run, rng)
        print(f"{sum(ways.values())} kills, {runs + 1} runs done", flush=True)
        different += contents(run) != whole
        leftovers += len(list(run.rglob("unfinished-*"))) + len(list(run.rglob(".*-*.*")))
        shutil.rmtree(run)
        runs += 1
    return {
        "kills": dict(ways),
        "stages": dict(stages),
        "runs": runs,
        "runs_that_differ": different,
        "restarts_refused": len(refused),
        "refusals": sorted({text.strip().splitlines()[-1] for text in refused if text.strip()}),
        "tracebacks_after_ctrl_c": tracebacks,
        "leftover_files": leftovers,
    }


def kills(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Kills at random moments over all stages; half of the times all files get a random age."""
    file, whole, seconds = _reference(folder)
    longest = 0.5 * seconds  # so that most starts are killed, and the last stages reached
    return kill_until(file, whole, folder, arguments.kills, longest, arguments.minutes) | {
        "seconds_undisturbed": round(seconds, 1)
    }


@contextlib.contextmanager
def small_disk(where: Path, kilobytes: int) -> Iterator[Callable[[str], None]]:
    """A disk of so many kB (tmpfs, for root alone), and a function that mounts it otherwise."""
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", where], check=True)
    try:
        yield lambda options: (
            subprocess.run(["mount", "-o", f"remount,{options}", where], check=True),
            None,
        )[1]
    finally:
        subprocess.run(["umount", where], check=True)


def fill_disk(file: Path, whole: dict[str, Any], where: Path, step_kB: int) -> dict[str, Any]:
    """A run on a disk that is full again and again, each time a little larger.

    Returns
    -------
    dict
        How often the disk was full, how often that was not said in one sentence, and whether the
        run's files differ in the end; and the same for a disk that cannot be written to.
    """
    size, full, silent = step_kB, 0, []
    with small_disk(where, size) as remount:
        run = where / "run"
        while True:
            status, said = attempt(file, run)
            if status == 0:
                break
            full += 1
            if not is_a_sentence(said):
                silent.append(said)
            size += step_kB
            remount(f"size={size}k")
        differs = contents(run) != whole
        remount(f"size={size}k,ro")
        status, said = attempt(file, run)
        read_only = "finished run is shown" if status == 0 else said.strip().splitlines()[-1]
        status, said = attempt(file, where / "another")
        new = status == 1 and is_a_sentence(said)
    return {
        "times_full": full,
        "last_kB": size,
        "not_one_sentence": len(silent),
        "what_was_said_then": silent,
        "differs": differs,
        "read_only_finished": _without_path(read_only, where),
        "read_only_new_is_one_sentence": new,
    }


def disk(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A run on a disk that is full time and again."""
    file, whole, _ = _reference(folder)
    return fill_disk(file, whole, folder / "disk", arguments.step_kB)


def company(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Several runs in one directory: one works, the others refuse."""
    file, whole, _ = _reference(folder)
    run, logs = folder / "company", [folder / f"company-{i}.log" for i in range(6)]
    processes = [start(file, run, log) for log in logs]
    statuses = [process.wait() for process in processes]
    texts = [log.read_text() for log in logs]
    refused = sum("another run is at work" in text and is_a_sentence(text) for text in texts)
    return {
        "started": len(logs),
        "done": statuses.count(0),
        "refused": refused,
        "differs": contents(run) != whole,
    }


@dataclass(frozen=True)
class Reader:
    """A reader of files, with a good file.

    Attributes
    ----------
    file
        The file.
    read
        Reads a file and returns what it holds, as arrays.
    is_checked
        Whether the file carries a checksum: then nothing else than what was written may come out.
    """

    file: Path
    read: Callable[[Path], list[Any]]
    is_checked: bool


def all_readers(run: Path, file: Path) -> dict[str, Reader]:
    """All readers of the package, with files of a finished run and its input."""
    segment = run / "iteration-1" / "segment-000000"
    frame = CollectiveVariable.load(run / "cv-0.safetensors")

    def model(path: Path) -> list[Any]:
        cv = CollectiveVariable.load(path)
        u = cv.end_displacements
        values, middle = cv.encode(cv.components(u)), cv.path(np.array([[0.3]]))
        return [cv.serials, cv.reference_positions, values, middle]

    def state(path: Path) -> list[Any]:
        found = babf.read_state(path)
        return [found.sums, found.prior, [found.kT_eV, found.tau, found.ramp, found.steps]]

    def profile(path: Path) -> list[Any]:
        found = babf.read_fes(path)
        return [found.xi, found.A, found.A_error, [found.barrier.value, found.delta_F.value]]

    def start_of_segment(path: Path) -> list[Any]:
        found = State.load(path)
        return [found.positions, found.cell]

    def structure(path: Path) -> list[Any]:
        return [read_structure(path).positions]

    def images(path: Path) -> list[Any]:
        return [load_path(path).energies]

    def trajectory(path: Path) -> list[Any]:
        return [read_displacements([path], frame, frame.reference_cell)]

    def settings(path: Path) -> list[Any]:
        return [[config.load(path).system.temperature_K]]

    return {
        "model": Reader(run / "cv-1.safetensors", model, True),
        "state": Reader(segment / "babf.state", state, True),
        "profile": Reader(run / "fes.dat", profile, True),
        "start of a segment": Reader(segment / "end.npz", start_of_segment, True),
        "structure": Reader(file.parent / "initial.xyz", structure, False),
        "path": Reader(run / "path.xyz", images, False),
        "trajectory": Reader(segment / "snapshots.dcd", trajectory, False),
        "input": Reader(file, settings, False),
    }


def spoil(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one place: cut it, or change, add, remove or repeat bytes there."""
    at = int(rng.integers(len(content)))
    if rng.random() < 0.5:
        at = int(rng.integers(min(1500, len(content))))  # headers
    length = int(rng.integers(1, 40))
    before, here, after = content[:at], content[at : at + length], content[at + length :]
    match rng.integers(8):
        case 0:
            return before
        case 1:
            return before + rng.bytes(1) + content[at + 1 :]
        case 2:
            return before + bytes([content[at] ^ (1 << rng.integers(8))]) + content[at + 1 :]
        case 3:
            return before + after
        case 4:
            return before + here + here + after
        case 5:
            return before + bytes(length) + after
        case 6:
            text = (b"nan", b"-inf", b"1e999", b"-1", b"99999999999999999999")[rng.integers(5)]
            return before + text + after
    digits = re.search(rb"[0-9]", content[at:])
    if digits is None:
        return before
    at += digits.start()
    return content[:at] + b"%d" % rng.integers(10) + content[at + 1 :]


def damage(reader: Reader, cases: int, where: Path, seed: int = 1) -> dict[str, Any]:
    """Read a file damaged in so many ways.

    Parameters
    ----------
    reader
        The reader.
    cases
        How many.
    where
        A folder for the damaged file.
    seed
        Of the damage.

    Returns
    -------
    dict
        How many were `refused` by a UserError, how many `read`, of these how many as something
        else than what was written (`otherwise`), and how many ended in another exception
        (`broken`, with the kinds in `exceptions`).
    """
    rng = np.random.default_rng(seed)
    good = reader.file.read_bytes()
    right = reader.read(reader.file)
    target = where / f"damaged{reader.file.suffix}"
    exceptions: Counter[str] = Counter()
    refused = read = otherwise = 0
    for _ in range(cases):
        target.write_bytes(spoil(good, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = reader.read(target)
        except UserError:
            refused += 1
            continue
        except Exception as error:  # what is looked for
            exceptions[f"{type(error).__name__}: {error}"[:150]] += 1
            continue
        read += 1
        same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(found, right, strict=True))
        otherwise += not same
    target.unlink()
    return {
        "cases": cases,
        "refused": refused,
        "read": read,
        "otherwise": otherwise,
        "checksum": reader.is_checked,
        "broken": sum(exceptions.values()),
        "exceptions": dict(exceptions),
    }


def readers(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Damaged files for the readers in Python."""
    file, _, _ = _reference(folder)
    each = all_readers(folder / "undisturbed", file)
    return {
        name: damage(reader, arguments.python_cases // len(each), folder)
        for name, reader in each.items()
    }


def core(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Damaged files for the C++ readers under sanitizers: cpp/tests/test_fuzz.cpp, at length."""
    text = _cpp_test(folder, "test_fuzz", {"PLUMED_CV_FUZZ_CASES": str(arguments.cases)})
    found = re.findall(r"^(\w[\w ,]*): (\d+) cases, (\d+) read, (\d+) refused$", text, re.M)
    return {
        "sanitizers": "address, undefined",
        "readers": {
            name: {"cases": int(cases), "read": int(read), "refused": int(refused)}
            for name, cases, read, refused in found
        },
    }


def updates(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The sums of many samples against their exact value: cpp/tests/test_drift.cpp, at length."""
    program = folder / "test_drift"
    flags = ["-std=c++17", "-O3", "-UNDEBUG", "-fopenmp-simd", "-fno-math-errno"]
    source = CPP / "tests" / "test_drift.cpp"
    subprocess.run([cxx_compiler() or "c++", *flags, source, "-o", program], check=True)
    environment = os.environ | {"PLUMED_CV_UPDATES": str(arguments.updates)}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) updates: largest relative error (\S+)", done.stdout)
    if done.returncode != 0 or found is None:
        sys.exit(done.stdout + done.stderr)
    return {"updates": int(found[1]), "largest_relative_error": float(found[2])}


def fuzz(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The C++ readers under libFuzzer and sanitizers, from nothing but whole files."""
    fuzzers.build(folder)
    counts = {}
    for reader in arguments.fuzz_readers:
        shutil.rmtree(folder / "corpus" / reader, ignore_errors=True)
        counts[reader] = fuzzers.run(folder, reader, cases=arguments.fuzz_cases)
    others: dict[str, Any] = json.loads(DATA.read_text()).get("fuzz", {})
    return others | counts


def memory(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Resident memory while AUTOENCODER and BABF work for long and write all their files."""
    model = random_model(np.random.default_rng(1), 8, 3, (4,))
    model.save(folder / "cv.safetensors")
    start, path = model.reference_positions, model.end_displacements
    wave = np.linspace(0.0, 1.0, 21)[:, None, None]
    cell = model.reference_cell
    xi = [model.value(start + u, cell)[0] for u in path[0] + wave * (path[1] - path[0])]
    low, high = min(xi) - 1.0, max(xi) + 1.0
    np.savez(folder / "ends.npz", ends=0.1 * (start + path))  # nm
    (folder / "plumed.dat").write_text(
        f"""UNITS LENGTH=A ENERGY=eV TIME=fs
LOAD FILE={build_plugin()}
ae: AUTOENCODER MODEL={folder}/cv.safetensors
b: BABF ...
  ARG=ae.node-0 TEMP=300 GRID_MIN={low} GRID_MAX={high} GRID_BIN=100 RAMP=1000
  FES_FILE={folder}/fes.dat FES_STRIDE=10000 STATE_WFILE={folder}/state STATE_WSTRIDE=10000
...
PRINT ARG=ae.*,b.* FILE={folder}/colvar STRIDE=100
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", _LONG_RUN, str(arguments.steps)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    resident = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    # What the first tenth takes, buffers of files among it, comes once.
    million = np.linspace(0.0, arguments.steps / 1e6, len(resident) + 1)[1:]
    later = slice(len(resident) // 10, None)
    slope = np.polyfit(million[later], resident[later], 1)[0]
    return {
        "steps": arguments.steps,
        "samples": len(resident),
        "resident_kB_after_each_tenth": resident[9::10],
        "slope_kB_per_million_steps": round(float(slope), 2),
    }


def write_trajectory(file: Path, ends: tuple[Atoms, Atoms], n: int, seed: int = 1) -> None:
    """Write n structures between two end states, with thermal noise, as a DCD file."""
    rng = np.random.default_rng(seed)
    start, end = (atoms.positions for atoms in ends)
    with mdtraj.formats.DCDTrajectoryFile(str(file), "w") as stream:
        for begin in range(0, n, 10_000):
            xi = rng.uniform(-0.1, 1.1, (min(10_000, n - begin), 1, 1))
            noise = rng.normal(scale=0.07, size=(len(xi), *start.shape))
            stream.write(
                (start + xi * (end - start) + noise).astype(np.float32),
                cell_lengths=np.tile(ends[0].cell.lengths(), (len(xi), 1)),
                cell_angles=np.tile(ends[0].cell.angles(), (len(xi), 1)),
            )


def snapshots(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on a trajectory of many structures: the memory that it takes, and the time."""
    file = folder / "example" / "vacancy.toml"
    if not file.exists():
        prepare(folder / "example")
    names = [file.parent / f"{name}.xyz" for name in ("initial", "final")]
    trajectory, model = folder / "many.dcd", folder / "many.safetensors"
    ends = (read_structure(names[0]), read_structure(names[1]))
    write_trajectory(trajectory, ends, arguments.structures)
    line = command("train", trajectory, "--initial", names[0], "--final", names[1], "-o", model)
    began = time.monotonic()
    process = subprocess.Popen([*line, "--components", "5"], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status != 0:
        sys.exit(f"the training ended with status {status}")
    trajectory.unlink()
    return {
        "structures": arguments.structures,
        "atoms": len(ends[0]),
        "displacements_kB": arguments.structures * len(ends[0]) * 12 // 1024,
        "peak_kB": used.ru_maxrss,
        "seconds": round(seconds),
    }


# Atoms that wander between two structures, with noise.
_LONG_RUN = """
import sys
from pathlib import Path
import numpy as np
from plumed_cv.kernel import find_plumed
find_plumed().activate()
import plumed
first, last = np.load("ends.npz")["ends"]
n = len(first)
handle = plumed.Plumed()
handle.cmd("setMDEngine", "drill")
handle.cmd("setNatoms", n)
handle.cmd("setTimestep", 0.001)
handle.cmd("setPlumedDat", "plumed.dat")
handle.cmd("setLogFile", "plumed.log")
handle.cmd("init")
steps = int(sys.argv[1])
positions, forces, masses = np.zeros((n, 3)), np.zeros((n, 3)), np.full(n, 55.8)
box, virial = np.zeros((3, 3)), np.zeros((3, 3))
noise = np.random.default_rng(1).normal(scale=0.002, size=(1009, n, 3))
for step in range(steps):
    s = 0.5 + 0.5 * np.sin(0.7 * step)
    positions[:] = first + s * (last - first) + noise[step % len(noise)]
    handle.cmd("setStep", step)
    for name, array in (("Positions", positions), ("Forces", forces), ("Masses", masses),
                        ("Box", box), ("Virial", virial)):
        handle.cmd("set" + name, array)
    handle.cmd("calc", None)
    if (step + 1) % (steps // 100) == 0:
        print(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0], flush=True)
"""


def _cpp_test(folder: Path, name: str, environment: dict[str, str]) -> str:
    build = folder / "cpp"
    subprocess.run(
        [
            *(tool("cmake") or "cmake", "-S", CPP, "-B", build, "-DPLUMED_CV_TESTS=ON"),
            f"-DNLOHMANN_INCLUDE_DIR={nlohmann_json.get_include()}",
        ],
        check=True,
    )
    subprocess.run([tool("cmake") or "cmake", "--build", build, "--target", name], check=True)
    done = subprocess.run(
        [build / name], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def _reference(folder: Path) -> tuple[Path, dict[str, Any], float]:
    """The input, what a run left alone ends with, and the seconds it takes."""
    example = folder / "example"
    file = example / "vacancy.toml"
    if not file.exists():
        shutil.rmtree(example, ignore_errors=True)
        prepare(example)
    run = folder / "undisturbed"
    shutil.rmtree(run, ignore_errors=True)
    began = time.monotonic()
    status, said = attempt(file, run)
    if status != 0:
        sys.exit(said)
    return file, contents(run), time.monotonic() - began


def _tensors(file: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {key: array.tobytes() for key, array in load_file(file).items()}


def _without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            key: _without_times(value)
            for key, value in content.items()
            if not key.startswith("seconds")
        }
    return [_without_times(value) for value in content] if isinstance(content, list) else content


def _without_path(text: str, folder: Path) -> str:
    return text.replace(str(folder), "...")


def _scatter_times(run: Path, rng: np.random.Generator) -> None:
    """Give all files a random age, as if the clock had jumped while they were written."""
    for file in run.rglob("*"):
        if file.is_file():
            moment = rng.uniform(0, 4e9)  # 1970 to 2096
            os.utime(file, (moment, moment))


DRILLS = {
    "kills": kills,
    "disk": disk,
    "company": company,
    "readers": readers,
    "core": core,
    "fuzz": fuzz,
    "updates": updates,
    "memory": memory,
    "snapshots": snapshots,
}


def table(found: dict[str, Any]) -> list[str]:
    """What the drills have found, as the lines of a Markdown table."""
    lines = ["| drill | how often | what came of it |", "|---|---|---|"]
    if "kills" in found:
        counts = found["kills"]
        for kind in ("kills", "stages"):
            ways = ", ".join(f"{name} {n}" for name, n in sorted(counts[kind].items()))
            lines.append(f"| {'by way' if kind == 'kills' else 'by stage'} | {ways} | |")
        lines.insert(
            -2,
            f"| kills | {sum(counts['kills'].values())} in {counts['runs']} runs | "
            f"{counts['runs_that_differ']} runs differ, {counts['restarts_refused']} starts "
            f"refused, {counts['tracebacks_after_ctrl_c']} tracebacks after Ctrl-C, "
            f"{counts['leftover_files']} files left over |",
        )
    if "disk" in found:
        counts = found["disk"]
        lines.append(
            f"| disk full | {counts['times_full']} times in one run | "
            f"{counts['not_one_sentence']} times not one sentence; the result "
            f"{'differs' if counts['differs'] else 'is the same'} |"
        )
    if "company" in found:
        counts = found["company"]
        lines.append(
            f"| runs in one directory | {counts['started']} at once | {counts['done']} done, "
            f"{counts['refused']} refused in a sentence |"
        )
    if "core" in found:
        for name, counts in found["core"]["readers"].items():
            lines.append(
                f"| C++: {name} | {counts['cases']:,} files | {counts['refused']:,} refused, "
                f"{counts['read']:,} read |"
            )
    for name, counts in found.get("fuzz", {}).items():
        lines.append(
            f"| libFuzzer: {name} | {counts['cases']:,} files | {counts['refused']:,} refused, "
            f"{counts['read']:,} read; {counts['places']:,} places in the code reached, "
            f"{counts['kept']:,} files kept that reached new ones |"
        )
    for name, counts in found.get("readers", {}).items():
        otherwise = f"{counts['otherwise']:,} as something else"
        lines.append(
            f"| Python: {name} | {counts['cases']:,} files | {counts['refused']:,} refused, "
            f"{counts['read']:,} read, {otherwise}; {counts['broken']} other exceptions |"
        )
    if "updates" in found:
        counts = found["updates"]
        lines.append(
            f"| updates of the sums | {counts['updates']:,} | largest relative error "
            f"{counts['largest_relative_error']:.1e} |"
        )
    if "memory" in found:
        tenths = found["memory"]["resident_kB_after_each_tenth"]
        lines.append(
            f"| steps of AUTOENCODER and BABF | {found['memory']['steps']:,} | resident memory "
            f"{tenths[0]:,} kB after the first tenth, {tenths[-1]:,} kB at the end; slope "
            f"{found['memory']['slope_kB_per_million_steps']} kB a million steps |"
        )
    if "snapshots" in found:
        counts = found["snapshots"]
        lines.append(
            f"| training on a trajectory | {counts['structures']:,} structures of "
            f"{counts['atoms']} atoms | {counts['peak_kB'] // 1024:,} MB at most, of which "
            f"{counts['displacements_kB'] // 1024:,} are the displacements; {counts['seconds']} s |"
        )
    return lines


def _show(found: dict[str, Any]) -> None:
    """Put the table into the page."""
    page = DATA.with_suffix(".md")
    before, _, rest = page.read_text(encoding="utf-8").partition("| drill |")
    _, _, after = rest.partition("\n\n")
    write_text(page, before + "\n".join(table(found)) + "\n\n" + after)


def main() -> None:
    """Do the drills that are named, and print what all of them have found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("drills", nargs="*", metavar="DRILL", help=", ".join(DRILLS))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0, help="of kills, at most")
    parser.add_argument("--cases", type=int, default=1_000_000, help="of the C++ readers")
    parser.add_argument("--fuzz_cases", type=int, default=1_000_000, help="of each C++ reader")
    parser.add_argument("--fuzz_readers", nargs="+", default=fuzzers.READERS, metavar="READER")
    parser.add_argument("--python_cases", type=int, default=10_000, help="of those in Python")
    parser.add_argument("--updates", type=int, default=100_000_000, help="of the sums")
    parser.add_argument("--steps", type=int, default=10_000_000, help="in which memory is watched")
    parser.add_argument("--structures", type=int, default=1_000_000, help="to train on")
    parser.add_argument("--step_kB", type=int, default=100, help="by which the full disk grows")
    arguments = parser.parse_args()
    for name in arguments.drills:
        if name not in DRILLS:
            parser.error(f"there is no drill {name}; choose of {', '.join(DRILLS)}")
    found = json.loads(DATA.read_text()) if DATA.exists() else {}
    if arguments.folder is not None:
        folder = arguments.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.drills:
            result = DRILLS[name](folder, arguments)
            found = json.loads(DATA.read_text()) | {name: result}  # others may have written since
            write_text(DATA, json.dumps(found, indent=1) + "\n")
            _show(found)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
