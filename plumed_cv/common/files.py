"""Files that are either complete or absent: written to a temporary name, then renamed; locks."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from plumed_cv.common.errors import UserError

_REMEDY = "remove it and run again: its content is then computed again."


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block succeeds.

    Parameters
    ----------
    path
        The file to create or replace. The temporary file has the same suffix, because some
        writers choose the format by the suffix.

    Raises
    ------
    UserError
        If the folder does not exist or cannot be written to.
    """
    path = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as written:  # Windows syncs only what it may write
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")  # on Windows, too


class _Content(dict[str, Any]):
    """An object of a JSON file: a missing key is an error that names the file."""

    file: Path
    remedy: str

    def __or__(self, other: Any) -> Any:
        """Return the object with other keys, which names the file as well."""
        return _named(super().__or__(other), self.file, self.remedy)

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.file}: has no key {key!r}, so it is damaged; {self.remedy}")


def read_json(path: Path, remedy: str = _REMEDY) -> dict[str, Any]:
    """Read a JSON file of a run.

    Parameters
    ----------
    path
        The file.
    remedy
        What to do if it is damaged: the end of the sentence.

    Returns
    -------
    dict
        If a key is missing in it, or in an object in it, looking it up raises a UserError.

    Raises
    ------
    UserError
        If it is missing or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error}); {remedy}") from None
    return parse_json(text, path, remedy)


def parse_json(text: str, path: Path, remedy: str = _REMEDY) -> dict[str, Any]:
    """As `read_json`, but for a part of the file."""
    try:
        content = json.loads(text, object_hook=lambda found: _named(found, path, remedy))
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); {remedy}") from None
    if not isinstance(content, _Content):
        raise UserError(f"{path}: is damaged (it is not an object of JSON); {remedy}")
    return content


def _named(content: dict[str, Any], path: Path, remedy: str) -> _Content:
    found = _Content(content)
    found.file, found.remedy = path, remedy
    return found


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_of_named(values: Any, folder: Path) -> dict[str, str]:
    """SHA-256 of the files that words of nested dictionaries and lists name, by these words.

    A dotted name such as `potential.make` names the Python module `potential.py` if this exists in
    the folder; then the key is the name of this file.

    Parameters
    ----------
    values
        The values of an input, for example those of its engine.
    folder
        To which the names are relative.
    """
    words = [word for text in _texts(values) for word in text.split()]
    words += [module for word in words if (module := module_of(word))]
    named = {word: folder / word for word in words if (folder / word).is_file()}
    return {word: sha256(file) for word, file in named.items()}


def module_of(name: str) -> str:
    """File of the module in a dotted name such as `potential.make`; empty for other words."""
    *module, last = name.split(".")
    if not module or not all(part.isidentifier() for part in (*module, last)):
        return ""
    return f"{'/'.join(module)}.py"


def _texts(values: Any) -> Iterator[str]:
    """All strings in nested dictionaries and lists."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _texts(value)


@contextmanager
def locked(path: Path, timeout_s: float = -1.0) -> Iterator[None]:
    """Hold a lock until the block or the process ends in any way.

    Parameters
    ----------
    path
        The lock file.
    timeout_s
        How long to wait for another process that holds the lock, s. Negative: without limit.

    Raises
    ------
    TimeoutError
        If another process still holds the lock after this time.
    """
    with FileLock(path, timeout=timeout_s):
        yield


@contextmanager
def fresh_dir(path: Path) -> Iterator[Path]:
    """Make an empty folder and remove it at the end. Remains of a killed process are removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
