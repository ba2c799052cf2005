"""The model file of a collective variable: named arrays and texts with a checksum, without code.

The format is safetensors. CONTRIBUTING.md lists the arrays and texts.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing

FORMAT = "plumed_cv collective variable"
FORMAT_VERSION = "1"


class Content(NamedTuple):
    """Content of a model file, and whether it was changed according to its checksum."""

    tensors: dict[str, NDArray[Any]]
    metadata: dict[str, str]
    changed: bool


def write(
    path: Path | str, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write a model file; format, version and checksum are added to the metadata.

    Raises
    ------
    UserError
        If the file cannot be written.
    """
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    texts = {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata}
    texts["checksum"] = _checksum(whole, texts)
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary, texts)
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be written ({error}).") from None


def read(path: Path | str) -> Content:
    """Read a model file, with or without a checksum.

    Raises
    ------
    UserError
        If it is missing, truncated, foreign or of another version.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(
                    f"{path}: is not a model file of plumed_cv; 'plumed-cv train' and 'plumed-cv "
                    "export' write one."
                )
            if metadata.get("format_version") != FORMAT_VERSION:
                raise UserError(
                    f"{path}: has format version {metadata.get('format_version')}; this "
                    f"plumed_cv reads version {FORMAT_VERSION}. Train or export it again."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: the model file does not exist; correct its name.") from None
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: is truncated or not a safetensors file ({error}); train or export it again."
        ) from None
    found = _checksum(tensors, metadata)
    return Content(tensors, metadata, metadata.get("checksum", found) != found)


def _checksum(tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> str:
    """CRC-32 of all arrays and metadata by name, without the metadata `checksum`."""
    sum_ = 0
    for name, tensor in sorted(tensors.items()):
        kind = tensor.dtype.kind.upper() + str(8 * tensor.itemsize)
        described = f"{'BOOL' if kind == 'B8' else kind}[{','.join(map(str, tensor.shape))}]"
        sum_ = zlib.crc32(f"{name} {described}\n".encode(), sum_)
        sum_ = zlib.crc32(tensor.tobytes(), sum_)
    for name, text in sorted(metadata.items()):
        if name != "checksum":
            sum_ = zlib.crc32(f"{name} {text}\n".encode(), sum_)
    return f"{sum_:08x}"
