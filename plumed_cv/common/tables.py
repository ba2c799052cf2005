"""PLUMED's text files: a table with the names of its columns, and constants."""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError

_CHECKSUM_LINE = re.compile(r"^#! SET checksum .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Table:
    """Content of a file.

    Attributes
    ----------
    fields
        Names of the columns.
    constants
        Values of the `#! SET` lines by their names.
    rows
        Shape (M, number of columns).
    changed
        Whether the file has a checksum and is not as it was written.
    """

    fields: list[str]
    constants: dict[str, str]
    rows: NDArray[np.float64]
    changed: bool

    @property
    def columns(self) -> dict[str, NDArray[np.float64]]:
        """The columns by their names, shape (M,) each."""
        return dict(zip(self.fields, self.rows.T, strict=True))


def read_table(path: Path | str) -> Table:
    """Read a file of PLUMED's text format.

    Raises
    ------
    UserError
        If it is missing, cut short or damaged, or has another format.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file") from error
    if text and not text.endswith("\n"):
        raise UserError(
            f"{path}: ends in the middle of a line, so it is not complete; take an earlier copy"
        )
    fields: list[str] = []
    constants: dict[str, str] = {}
    rows: list[list[float]] = []
    if any(ord(sign) < 32 and not sign.isspace() for sign in text):
        raise UserError(f"{path}: contains bytes that are not text; take an earlier copy")
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if words[:2] == ["#!", "FIELDS"]:
            if rows and words[2:] != fields:
                raise UserError(
                    f"{path}: line {number} names other columns than those of the rows before it; "
                    "give a file with one table"
                )
            fields = words[2:]
        elif words[:2] == ["#!", "SET"] and len(words) == 4:
            constants[words[2]] = words[3]
        elif words and not words[0].startswith("#"):
            try:
                rows.append([float(word) for word in words])
            except ValueError as error:
                raise UserError(
                    f"{path}: line {number} is not a row of numbers; take an earlier copy"
                ) from error
            if fields and len(words) != len(fields):
                raise UserError(
                    f"{path}: line {number} has {len(words)} numbers for the {len(fields)} names "
                    "of its '#! FIELDS' line; take an earlier copy"
                )
    if not fields:
        raise UserError(f"{path}: has no '#! FIELDS' line, so it is not a PLUMED text file")
    found = checksum(_CHECKSUM_LINE.sub("", text, count=1))
    changed = constants.get("checksum", found) != found
    return Table(fields, constants, np.array(rows, float).reshape(-1, len(fields)), changed)


def checksum(text: str) -> str:
    """CRC-32 of a file without the line that holds it."""
    return f"{zlib.crc32(text.encode()):08x}"
