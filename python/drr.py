"""Builds DRR, PLUMED's extended-system ABF, as a plugin for a kernel without this module.

    python python/drr.py

The script prints the path of the plugin. Write it in a line `LOAD FILE=` before the line with DRR.
If LD_PRELOAD is set to the path, `plumed` also has `drr_tool`. PLUMED builds this module only if it
finds the serialization library of boost, and the kernels that plumed-cv installs were built without
it. The script compiles the module from the source of these kernels (4 MB, downloaded once) in about
15 seconds.

Ends with status 1 and a sentence if something is missing.
"""

import subprocess
import sys
from pathlib import Path

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import fresh_dir, locked
from plumed_cv.setup.kernel import data_dir, find_plumed
from plumed_cv.setup.kernel_build import fetch_source
from plumed_cv.setup.tools import compile_library, cxx_compiler


def build() -> Path:
    """Return the plugin, building it if it is not in the cache.

    Raises
    ------
    UserError
        If PLUMED's headers, boost or a compiler is missing, if the source cannot be fetched or is
        not that of this PLUMED, or if it does not compile.
    """
    plumed = find_plumed()
    if plumed.include_dir is None:
        raise UserError(f"{plumed.kernel}: the headers of this PLUMED are not installed")
    compiler = cxx_compiler()
    _check_boost(compiler)
    home = data_dir() / "plumed-drr"
    with locked(home.with_name(f"{home.name}.lock")):
        source = _fetch(home)
    version = (source / "VERSION.txt").read_text().split()[-1]
    if plumed.version != version:
        raise UserError(
            f"{plumed.kernel}: is PLUMED {plumed.version} and the source of DRR here is of "
            f"{version}; build your PLUMED with boost, or use the one of `plumed-cv plumed`"
        )
    command: list[str | Path] = [
        *(compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-w"),
        "-D__PLUMED_HAS_BOOST_SERIALIZATION",
        *(f"-I{plumed.include_dir}", f"-I{plumed.include_dir / 'plumed'}"),
        *sorted(source.glob("*.cpp")),
        *(f"-L{plumed.kernel.parent}", f"-Wl,-rpath,{plumed.kernel.parent}", "-lplumedKernel"),
        "-lboost_serialization",
    ]
    try:
        return compile_library(command, home, "drr")
    except RuntimeError as error:
        complaint = next((line for line in str(error).splitlines() if "error" in line), "")
        raise UserError(f"PLUMED's DRR does not compile: {complaint}") from error


def _check_boost(compiler: str) -> None:
    code = "#include <boost/archive/binary_oarchive.hpp>\nint main() {}\n"
    command = [compiler, "-x", "c++", "-", "-o", "/dev/null", "-lboost_serialization"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(
            "DRR needs boost's serialization library with its headers; install Debian's package "
            "libboost-serialization-dev, or set CPATH and LIBRARY_PATH to where yours are"
        )


def _fetch(home: Path) -> Path:
    """Return the folder with the module's files and PLUMED's version, fetching them once."""
    source = home / "source"
    if not source.is_dir():
        with fresh_dir(home / "whole") as whole, fresh_dir(home / "partial") as made:
            fetch_source(whole)
            plumed = whole / "plumed2"
            for file in [*(plumed / "src" / "drr").glob("*"), plumed / "VERSION.txt"]:
                if file.suffix in (".cpp", ".h", ".txt"):
                    file.replace(made / file.name)
            made.replace(source)
    return source


if __name__ == "__main__":
    try:
        print(build())
    except UserError as error:
        sys.exit(str(error))
