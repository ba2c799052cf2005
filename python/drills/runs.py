"""The run that the drills end, restart and compare: a vacancy in a cell of 54 sites."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

# The vacancy, and the least that a path and a training take.
SYSTEM = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = 300.0
[engine]
potential = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
"""
QUICK = """
[path]
images = 7
fmax_eV_A = 0.02
structures = 500
[cv]
components = 5
"""
INPUT = f"""{SYSTEM}{QUICK}
[sampling]
steps = 8000
segments = 16
timestep_fs = 2.0
[iteration]
maximum = 2
tolerance = 1e-9
seed = 3
"""


def command(*arguments: str | Path) -> list[str]:
    """The command line of `plumed-cv`, by this Python."""
    return [sys.executable, "-m", "plumed_cv.cli", *map(str, arguments)]


def prepare(folder: Path) -> Path:
    """Write the end states and the input into a new folder; returns the input."""
    subprocess.run(command("init", "vacancy-fe", folder), check=True, stdout=subprocess.DEVNULL)
    build = folder / "build.py"
    build.write_text(build.read_text().replace(".repeat(4)", ".repeat(3)"))
    subprocess.run([sys.executable, build.name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (folder / "vacancy.toml").write_text(INPUT)
    return folder / "vacancy.toml"


def start(file: Path, run: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start `plumed-cv run` in its own process group, with its output in a file."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            command("run", file, "--dir", run),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def attempt(file: Path, run: Path) -> tuple[int, str]:
    """Run to the end; return the exit status and standard error."""
    done = subprocess.run(
        command("run", file, "--dir", run), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def is_a_sentence(text: str) -> bool:
    """Whether standard error ends with a message of plumed-cv and has no traceback."""
    lines = text.strip().splitlines() or [""]
    return lines[-1].startswith("plumed-cv: ") and "Traceback" not in text


def contents(run: Path) -> dict[str, Any]:
    """Results that must be equal bit for bit: all numbers except times and provenance."""
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


def reference(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The input, and the results of an undisturbed run."""
    example = folder / "example"
    file = example / "vacancy.toml"
    if not file.exists():
        shutil.rmtree(example, ignore_errors=True)
        prepare(example)
    run = folder / "undisturbed"
    shutil.rmtree(run, ignore_errors=True)
    status, said = attempt(file, run)
    if status != 0:
        sys.exit(said)
    return file, contents(run)


def _tensors(file: Path) -> dict[str, bytes]:
    return {key: array.tobytes() for key, array in load_file(file).items()}


def _without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            key: _without_times(value)
            for key, value in content.items()
            if not key.startswith("seconds")
        }
    return [_without_times(value) for value in content] if isinstance(content, list) else content
