"""Damaged files, for the readers in Python and in C++."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv import freeenergy, input_file
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import State
from plumed_cv.paths.path import load_path
from plumed_cv.setup.tools import find_tool
from plumed_cv.structures import read_structure
from plumed_cv.structures.trajectory import read_displacements
from python.drills import fuzzers
from python.drills.fuzzers import CPP
from python.drills.runs import reference
from python.drills.table import DATA


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
    linear = CollectiveVariable.load(run / "cv-0.safetensors")

    def model(path: Path) -> list[Any]:
        cv = CollectiveVariable.load(path)
        u = cv.end_displacements
        values, middle = cv.encode(cv.components(u)), cv.path(np.array([[0.3]]))
        return [cv.serials, cv.reference_positions, values, middle]

    def state(path: Path) -> list[Any]:
        found = freeenergy.read_state(path)
        return [found.sums, found.prior, [found.kT_eV, found.tau, found.ramp, found.steps]]

    def profile(path: Path) -> list[Any]:
        found = freeenergy.read_fes(path)
        return [found.xi, found.A, found.A_error, [found.barrier.value, found.delta_F.value]]

    def start_of_segment(path: Path) -> list[Any]:
        found = State.load(path)
        return [found.positions, found.cell]

    def structure(path: Path) -> list[Any]:
        return [read_structure(path).positions]

    def images(path: Path) -> list[Any]:
        return [load_path(path).energies]

    everyone = load_path(run / "path.xyz").species

    def trajectory(path: Path) -> list[Any]:
        return [read_displacements([path], linear, linear.reference_cell, species=everyone)]

    def settings(path: Path) -> list[Any]:
        return [[input_file.load(path).system.temperature_K]]

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
    """Read many damaged copies of a file.

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
    file, _ = reference(folder)
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


def fuzz(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The C++ readers under libFuzzer and sanitizers, from undamaged files."""
    fuzzers.build(folder)
    counts = {}
    for reader in arguments.fuzz_readers:
        shutil.rmtree(folder / "corpus" / reader, ignore_errors=True)
        counts[reader] = fuzzers.run(folder, reader, cases=arguments.fuzz_cases)
        print(f"{reader}: {counts[reader]}", flush=True)  # should another fail, or be cut short
    others: dict[str, Any] = json.loads(DATA.read_text()).get("fuzz", {})
    return others | counts


def _cpp_test(folder: Path, name: str, environment: dict[str, str]) -> str:
    build = folder / "cpp"
    subprocess.run(
        [find_tool("cmake") or "cmake", "-S", CPP, "-B", build, "-DPLUMED_CV_TESTS=ON"], check=True
    )
    subprocess.run([find_tool("cmake") or "cmake", "--build", build, "--target", name], check=True)
    done = subprocess.run(
        [build / name], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return done.stdout
