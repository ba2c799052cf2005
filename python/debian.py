"""Unpacks packages of a Debian suite into a folder, to be used without installing them.

The packages come with the C library that they were linked with. Its loader starts their programs,
so this machine's Debian may be older. No root rights are needed. For scripts of this folder.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.setup.kernel import data_dir

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "etc", "var")
_LOADERS = {  # by Debian's name of the architecture
    "amd64": ("x86_64-linux-gnu", "usr/lib64/ld-linux-x86-64.so.2"),
    "arm64": ("aarch64-linux-gnu", "usr/lib/ld-linux-aarch64.so.1"),
}
# By the name under which a program is called, Python finds its environment and GROMACS its data.
_LAUNCHER = """#!/bin/sh
root={home}
lib=$root/usr/lib/{triplet}
lib=$lib:$lib/blas:$lib/lapack
exec "$root/{loader}" --argv0 "{called}" --library-path "$lib" "{started}" "$@"
"""


def triplet() -> str:
    """Return the name of this machine's architecture in Debian's folders of libraries."""
    return _architecture()[0]


def unpack(
    suite: str,
    packages: list[str],
    home: Path,
    launchers: dict[str, str],
    change: Callable[[Path], None] = lambda root: None,
) -> None:
    """Fill a folder with packages and all that they depend on, down to the C library, once.

    Parameters
    ----------
    suite
        Name of the Debian, such as "trixie".
    packages
        Their names.
    home
        The folder, in the data folder of this project.
    launchers
        For each script that starts a program, its path in `home`: the path of the program in the
        packages. If the two are the same, the program gets the suffix `.program`, and it is called
        by the name of the script.
    change
        What else to do with the unpacked folder.

    Raises
    ------
    UserError
        If apt-get or Debian's keys are missing, or the packages cannot be fetched.
    """
    if home.is_dir():
        return
    wanted = packages[0]
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is needed to fetch {wanted}; use a Debian, or another source")
    if not KEYRING.is_file():
        raise UserError(f"{KEYRING}: missing; install Debian's package debian-archive-keyring")
    libraries, loader = _architecture()
    with tempfile.TemporaryDirectory(dir=data_dir(), prefix=f"{wanted}-") as temporary:
        work = Path(temporary)
        root = work / suite
        root.mkdir()
        for package in _download(work, suite, packages):
            _output("dpkg-deb", "--extract", str(package), str(root))
        _tidy(root)
        change(root)
        for script, program in launchers.items():
            called = started = f"$root/{program}"
            if script == program:
                (root / program).rename(root / f"{program}.program")
                called, started = "$0", f"$root/{program}.program"
            text = _LAUNCHER.format(
                home=home, triplet=libraries, loader=loader, called=called, started=started
            )
            write_text(root / script, text)
            (root / script).chmod(0o755)
        try:
            root.rename(home)
        except OSError:
            if not home.is_dir():  # or else another process was faster
                raise


def _architecture() -> tuple[str, str]:
    """Return the name of the folder of libraries, and the path of the loader."""
    architecture = _output("dpkg", "--print-architecture").strip()
    if architecture not in _LOADERS:
        raise UserError(f"packages of Debian for {architecture} cannot be started here")
    return _LOADERS[architecture]


def _download(work: Path, suite: str, packages: list[str]) -> list[Path]:
    """Fetch the packages and all that they depend on."""
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "archives" / "partial").mkdir(parents=True)
    (work / "status").touch()  # nothing counts as installed
    (work / "sources.list").write_text(
        f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n"
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
    _output(*apt, "install", "--yes", "--no-install-recommends", "--download-only", *packages)
    return sorted((work / "archives").glob("*.deb"))


def _tidy(root: Path) -> None:
    """Merge /lib into usr/lib, as newer Debians do, and remove files that are not needed."""
    for name in ("lib", "lib64"):
        folder = root / name
        if folder.is_dir() and not folder.is_symlink():
            shutil.copytree(folder, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder)
    for name in _NOT_NEEDED:
        shutil.rmtree(root / name, ignore_errors=True)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"Debian's packages cannot be fetched: {command[0]}: {last}")
    return done.stdout
