"""Reading and checking an input file, and the list of its keys."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import (
    BaseModel,
    ValidationError,
)

from plumed_cv.common.errors import UserError
from plumed_cv.common.toml import value_in_toml
from plumed_cv.input_file.engines import ENGINES, EngineSection, first_mistake
from plumed_cv.input_file.sections import Config


def validate(content: dict[str, Any], source: Path | str) -> Config:
    """Make a configuration of the sections and keys of an input file.

    Parameters
    ----------
    content
        Keys and values by section.
    source
        What messages call it: the name of the file.

    Raises
    ------
    UserError
        If there is an unknown key or an impossible value: the first one is named, with what would
        do.
    """
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {first_mistake(error)}.") from None


def load(path: Path | str) -> Config:
    """Read and check an input file.

    Raises
    ------
    UserError
        If the file is missing or is not TOML, and as for `validate`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: the input file does not exist.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid TOML: {error}.") from None
    config = validate(content, path)
    folder = path.resolve().parent
    engine = config.engine.model_copy(
        update={"directory": folder / (config.engine.directory or ".")}
    )
    ends = {"initial": config.system.initial, "final": config.system.final}
    system = config.system.model_copy(
        update={name: folder / end for name, end in ends.items() if end is not None}
    )
    images = config.path.file
    if isinstance(images, list):
        images = [folder / image for image in images]
    elif images is not None:
        images = folder / images
        if images.is_dir():
            from plumed_cv.paths.path import files_of_band  # SciPy takes a while

            images = files_of_band(images)
    section = config.path.model_copy(update={"file": images})
    scheduler = config.sampling.scheduler
    if scheduler is not None and "://" not in scheduler:
        scheduler = str(folder / scheduler)
    sampling = config.sampling.model_copy(update={"scheduler": scheduler})
    return config.model_copy(
        update={"system": system, "engine": engine, "path": section, "sampling": sampling}
    )


def describe_keys() -> Iterator[tuple[str, str, str]]:
    """Yield all keys of the input file: name, default as in TOML, meaning with unit.

    The default is "required" if there is none, and "absent" if a missing key has its own meaning.
    """
    for section, field in Config.model_fields.items():
        if section == "engine":
            yield "engine.name", '"lammps"', "the engine: lammps, gromacs, ase or torch-sim"
            yield from _keys("engine", EngineSection)
            for engine in ENGINES:
                for key, default, meaning in _keys("engine", engine):
                    if key not in ("engine.name", "engine.directory", "engine.committee"):
                        (name,) = get_args(engine.model_fields["name"].annotation)
                        yield f"{key} ({name})", default, meaning
            continue
        section_model = field.annotation
        assert isinstance(section_model, type)
        assert issubclass(section_model, BaseModel)
        yield from _keys(section, section_model)


def _keys(section: str, model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    for name, key in model.model_fields.items():
        if key.exclude:
            continue
        default = "absent"
        if key.is_required():
            default = "required"
        elif key.default is not None:
            default = value_in_toml(key.default)
        yield f"{section}.{name}", default, key.description or ""
