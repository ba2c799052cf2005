"""Run the regression tests of the PLUMED module with the plugin in place of the module.

    python python/plumed_regtests.py [NAME ...]            # rt-babf, ...: all by default
    python python/plumed_regtests.py --reset [NAME ...]    # write new references
    python python/plumed_regtests.py --inputs              # write trajectories and the model

The tests are in the form of PLUMED (cpp/plumed-module/regtest) and run by PLUMED's own scripts in
its source tree (python/plumed_module.py). Here each test runs in a temporary folder by the `plumed`
program, and its inputs load the plugin. A test fails if a file differs from its reference. Tests
with several processes need a PLUMED with MPI and are skipped without it.
"""

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from plumed_cv.common.errors import UserError
from plumed_cv.cv import random_model
from plumed_cv.setup.kernel import Plumed, find_plumed
from plumed_cv.setup.plugin import build_plugin

TESTS = Path(__file__).parents[1] / "cpp" / "plumed-module" / "regtest"

# What PLUMED's regtest/scripts/run does with a test of the type "driver".
SCRIPT = """
source ./config
for file in $extra_files; do cp "../$(basename "$file")" .; done
plumed="$PROGRAM"; run="$PROGRAM"
if ((${mpiprocs:-0} > 0)); then
  run="$MPIRUN -n $mpiprocs $PROGRAM"
else
  plumed="$PROGRAM --no-mpi"
  run="$plumed"
fi
if type -t plumed_regtest_before >/dev/null; then plumed_regtest_before || exit 1; fi
$run driver $arg > out 2> err || { cat out err; exit 1; }
if type -t plumed_regtest_after >/dev/null; then plumed_regtest_after; fi
"""


def main() -> None:
    """Run tests; exit with 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="tests; all by default")
    parser.add_argument("--reset", action="store_true", help="write new references")
    parser.add_argument("--inputs", action="store_true", help="write trajectories and the model")
    arguments = parser.parse_args()
    if arguments.inputs:
        write_inputs()
        return
    plumed = find_plumed()
    plugin = build_plugin(plumed)
    failed = 0
    for name in arguments.names or names():
        if processes(name) > 0 and not plumed.mpi:
            print(f"{name}: skipped, because this PLUMED has no MPI")
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = run(name, plumed, plugin, Path(folder))
            if arguments.reset:
                reset(name, made)
            differences = compare(name, made)
        failed += bool(differences)
        print(f"{name}: {'FAILED' if differences else 'passed'}", *differences, sep="\n")
    sys.exit(failed > 0)


def names() -> list[str]:
    """Return the names of all tests."""
    return sorted(path.parent.name for path in TESTS.glob("rt-*/config"))


def processes(name: str) -> int:
    """Return the number of MPI processes of a test; 0 without MPI."""
    found = re.search(r"^mpiprocs=(\d+)", (TESTS / name / "config").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def run(name: str, plumed: Plumed, plugin: Path, folder: Path) -> Path:
    """Run a test in a folder; return the folder with its files.

    Raises
    ------
    UserError
        If PLUMED has no program or ends with an error, which the message contains.
    """
    if plumed.executable is None:
        raise UserError(f"{plumed.kernel}: the program `plumed` is not installed with it")
    for path in TESTS.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    work = folder / "tmp"
    shutil.copytree(TESTS / name, work, ignore=shutil.ignore_patterns("*.reference", "Makefile"))
    text = (work / "plumed.dat").read_text()
    (work / "plumed.dat").write_text(f"LOAD FILE={plugin}\n{text}")
    variables = {"PROGRAM": str(plumed.executable)}
    variables["MPIRUN"] = str(Path(sys.executable).with_name("mpirun"))
    done = subprocess.run(
        ["bash", "-c", SCRIPT],
        cwd=work,
        env=os.environ | plumed.environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(f"{name}: {done.stdout}{done.stderr}")
    return work


def compare(name: str, made: Path) -> list[str]:
    """Return the differences from the references, line by line."""
    lines: list[str] = []
    references = sorted((TESTS / name).glob("*.reference"))
    if not references:
        lines.append(f"{name}: has no reference")
    for reference in references:
        path = made / reference.stem
        found = _lines(path) if path.is_file() else ["(no such file)"]
        lines += difflib.unified_diff(
            _lines(reference), found, str(reference), str(path), lineterm="", n=0
        )
    return lines


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; rounded zeros have no sign, as in PLUMED's fixzeroes.sh."""
    text = re.sub(r"(?<=[ \n])-(0\.0*)(?=[ \n])", r" \1", path.read_text())
    return text.splitlines()


def reset(name: str, made: Path) -> None:
    """Write the references of a test: the forces and the files of its input."""
    for old in (TESTS / name).glob("*.reference"):
        old.unlink()
    for pattern in ("COLVAR*", "fes*", "forces*", "steps"):
        for path in made.glob(pattern):
            (TESTS / name / f"{path.name}.reference").write_text(
                "\n".join(_lines(path)) + "\n", encoding="utf-8"
            )


def write_inputs() -> None:
    """Write the trajectories, and a model with random weights of four atoms and its trajectory."""
    s = np.arange(80)
    distance = 0.5 + 0.38 * np.sin(0.41 * s + np.sin(0.11 * s))
    angle = np.pi * np.sin(0.23 * s) ** 3 + 0.4 * np.cos(1.3 * s)
    zero = np.zeros(len(s))
    atoms = [(distance, zero, zero), (zero, zero, zero), (zero, zero, zero + 0.15)]
    atoms.append((0.1 * np.cos(angle), 0.1 * np.sin(angle), zero + 0.15))
    frames = np.moveaxis(np.array(atoms), 2, 0)
    box = np.diag([9.0, 9.0, 9.0])
    for name, part in {"trajectory": s, "first": s[:40], "second": s[40:]}.items():
        write_xyz(TESTS / f"{name}.xyz", frames[part], box)
    cell = np.array([[6.0, 0.0, 0.0], [0.5, 7.0, 0.0], [0.3, 0.2, 6.5]])
    rng = np.random.default_rng(4)
    model = random_model(rng, 4, 3, (4,), activation="tanh", cell=cell)
    model.save(TESTS / "model.safetensors")
    wave = np.sin(0.3 * s[:20, None, None] + rng.normal(scale=3, size=(4, 3)))
    write_xyz(TESTS / "path.xyz", model.reference_positions + 0.2 * wave, cell)


def write_xyz(path: Path, frames: NDArray[np.float64], box: NDArray[np.float64]) -> None:
    """Write a trajectory, (n, N, 3), in one box."""

    def line(numbers: NDArray[np.float64]) -> str:
        return " ".join(f"{number:.5f}" for number in numbers)

    head = f"{frames.shape[1]}\n{line(box.ravel())}\n"
    text = (head + "".join(f"X {line(atom)}\n" for atom in frame) for frame in frames)
    path.write_text("".join(text))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
