"""Finds a Python of another version, or unpacks that of a newer Debian; requires apt-get.

    python python/debian_python.py 3.14

The script prints the path of the program. Without a Python of that version on this machine, it puts
Debian's packages, with Python's headers and the C library that they were linked with, into the data
folder of this project, once. It installs nothing and needs no root rights. The tests of the wheel
(`tests/test_install.py`) use it; it has no pip of its own, so make an environment by
`PROGRAM -m venv --without-pip` and fill it by `pip --python`.

Ends with status 1 and a sentence if something is missing.
"""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from plumed_cv.common.errors import UserError
from plumed_cv.setup.kernel import data_dir
from python import debian

SUITES = {"3.13": "trixie", "3.14": "forky"}  # Debian 13, 14


def find(version: str) -> Path | None:
    """Return a Python of pyenv, on PATH, or that this script has unpacked, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for program in sorted(pyenv.glob(f"{version}.*/bin/python")):
        return program
    if found := shutil.which(f"python{version}"):
        return Path(found)
    unpacked = _home(version) / _program(version)
    return unpacked if unpacked.is_file() else None


def install(version: str) -> Path:
    """Return a Python of a version, unpacking it if there is none.

    Raises
    ------
    UserError
        If no Debian is known that has it, or it cannot be fetched.
    """
    if found := find(version):
        return found
    if version not in SUITES:
        known = ", ".join(SUITES)
        raise UserError(f"no Debian with Python {version} is known here, only with {known}")

    def move_header(root: Path) -> None:
        """Put the header of this architecture where a compiler finds it without an option."""
        headers = f"include/python{version}/pyconfig.h"
        architecture = f"include/{debian.triplet()}/python{version}/pyconfig.h"
        (root / "usr" / architecture).replace(root / "usr" / headers)

    program = _program(version)
    packages = [f"python{version}", f"libpython{version}-dev"]
    debian.unpack(SUITES[version], packages, _home(version), {program: program}, move_header)
    return _home(version) / program


def _home(version: str) -> Path:
    return data_dir() / f"python-{version}"


def _program(version: str) -> str:
    """Return the path of the program; Python finds its modules from there."""
    return f"usr/bin/python{version}"


if __name__ == "__main__":
    try:
        print(install(*sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
