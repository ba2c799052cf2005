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

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.engines.gromacs import unpacked_gromacs
from plumed_cv.setup.kernel import data_dir

SUITE = "trixie"
PROGRAMS = ("gmx", "gmx_d")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# The C library of the package starts its program, so that this machine's may be older.
LAUNCHER = """#!/bin/sh
root={root}
lib=$root/usr/lib/{triplet}
exec "$root{loader}" --library-path "$lib:$lib/blas:$lib/lapack" "$root/usr/bin/{program}" "$@"
"""
LOADERS = {  # by Debian's name of the architecture
    "amd64": ("x86_64-linux-gnu", "/usr/lib64/ld-linux-x86-64.so.2"),
    "arm64": ("aarch64-linux-gnu", "/usr/lib/ld-linux-aarch64.so.1"),
}


def install() -> Path:
    """Return the folder with `gmx` and `gmx_d`, filling it if it is not there.

    Raises
    ------
    UserError
        If apt-get or Debian's keys are missing, or the packages cannot be fetched.
    """
    home = unpacked_gromacs()
    if home.is_dir():
        return home
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is needed to fetch GROMACS; use a Debian, or conda's GROMACS")
    if not KEYRING.is_file():
        raise UserError(f"{KEYRING}: missing; install Debian's package debian-archive-keyring")
    architecture = _output("dpkg", "--print-architecture").strip()
    if architecture not in LOADERS:
        raise UserError(f"no GROMACS for {architecture} is known here; use conda's")
    with tempfile.TemporaryDirectory(dir=data_dir(), prefix="gromacs-") as temporary:
        work = Path(temporary)
        root = work / SUITE
        root.mkdir()
        for package in _download(work):
            _output("dpkg-deb", "--extract", str(package), str(root))
        _tidy(root)
        triplet, loader = LOADERS[architecture]
        for program in PROGRAMS:
            launcher = root / program
            text = LAUNCHER.format(root=home, triplet=triplet, loader=loader, program=program)
            write_text(launcher, text)
            launcher.chmod(0o755)
        try:
            root.rename(home)
        except OSError:
            if not home.is_dir():  # or else another process was faster
                raise
    return home


def _download(work: Path) -> list[Path]:
    """Fetch the packages that GROMACS needs, down to the C library."""
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "archives" / "partial").mkdir(parents=True)
    (work / "status").touch()  # nothing counts as installed
    (work / "sources.list").write_text(
        f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {SUITE} main\n"
    )
    options = [
        f"Dir::Etc::SourceList={work / 'sources.list'}",
        "Dir::Etc::SourceParts=-",
        f"Dir::State={work}",
        f"Dir::State::Lists={work / 'lists'}",
        f"Dir::State::Status={work / 'status'}",
        f"Dir::Cache={work}",
        "APT::Sandbox::User=",
        "Debug::NoLocking=1",
    ]
    apt = ["apt-get", "--quiet=2", *(word for option in options for word in ("-o", option))]
    _output(*apt, "update")
    _output(*apt, "install", "--yes", "--no-install-recommends", "--download-only", "gromacs")
    return sorted((work / "archives").glob("*.deb"))


def _tidy(root: Path) -> None:
    """Merge /lib into usr/lib, as newer Debians do, and remove files that are not needed."""
    for name in ("lib", "lib64"):
        folder = root / name
        if folder.is_dir() and not folder.is_symlink():
            shutil.copytree(folder, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder)
    for name in ("usr/share/doc", "usr/share/man", "usr/share/locale", "etc", "var"):
        shutil.rmtree(root / name, ignore_errors=True)
    for pattern in ("usr/bin/gmx_mpi*", "usr/lib/*/libgromacs_mpi*"):  # the package holds all four
        for file in root.glob(pattern):
            file.unlink()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"GROMACS cannot be fetched: {command[0]}: {last}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(install() / PROGRAMS["--double" in sys.argv[1:]])
    except UserError as error:
        sys.exit(str(error))
