"""Unpacks GROMACS 2025.2 of Debian 13, which has the PLUMED interface; requires apt-get.

    python python/gromacs.py [--double]

The script prints the path of `gmx`, which later runs find by themselves. With `--double` it prints
the path of `gmx_d`, the version in double precision, which must be named in `[engine] program` or
in GMX. The script installs nothing and needs no root rights. It puts the packages, with the C
library that they were linked with, into the data folder of this project, once. If your system,
conda or cluster has GROMACS 2025 or newer, use that instead: it is built for your processor, and
that of Debian for any processor.

Ends with status 1 and a sentence if something is missing.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from plumed_cv.common.errors import UserError
from plumed_cv.engines.gromacs import unpacked_gromacs
from python import debian

SUITE = "trixie"
PROGRAMS = ("gmx", "gmx_d")


def install() -> Path:
    """Return the folder with `gmx` and `gmx_d`, filling it if it is not there.

    Raises
    ------
    UserError
        If apt-get or Debian's keys are missing, or the packages cannot be fetched.
    """
    home = unpacked_gromacs()
    launchers = {program: f"usr/bin/{program}" for program in PROGRAMS}
    debian.unpack(SUITE, ["gromacs"], home, launchers, _remove_mpi)
    return home


def _remove_mpi(root: Path) -> None:
    """Remove the programs with MPI: the package contains all four."""
    for pattern in ("usr/bin/gmx_mpi*", "usr/lib/*/libgromacs_mpi*"):
        for file in root.glob(pattern):
            file.unlink()


if __name__ == "__main__":
    try:
        print(install() / PROGRAMS["--double" in sys.argv[1:]])
    except UserError as error:
        sys.exit(str(error))
