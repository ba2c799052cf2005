"""Finds PLUMED's kernel, or installs one if there is none.

PyPI's `plumed` package contains only the bindings, which load a kernel, `libplumedKernel.so`. The
user's own PLUMED always comes first. If there is none, a wheel with a complete relocatable PLUMED
is unpacked into the data folder of this project, outside of all Python environments.
"""

import contextlib
import mmap
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import fresh_dir, locked
from plumed_cv.common.progress import log
from plumed_cv.setup.tools import LIBRARY_SUFFIX, output_of

KERNEL_PACKAGE = "hillclimber"
KERNEL_PACKAGE_VERSION = "0.1.8"
_WHEEL_SHA256 = "e59d3ce2aa79d771ab92346ef1aeede0114b58c393ea9d7b664cd64df1d05740"
OLDEST_PLUMED = (2, 9)

OPTIMISED, WHEEL = "optimised kernel built by plumed-cv", "kernel wheel"  # `Plumed.source` of ours

_OTHER_KERNELS = (
    "install PLUMED 2.9 or newer (`conda install -c conda-forge plumed`), set PLUMED_KERNEL to a "
    "libplumedKernel.so, or build one by `plumed-cv plumed --optimised`"
)

KERNEL_NAME = f"libplumedKernel{LIBRARY_SUFFIX}"
_LIBRARY_PATH = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"


@dataclass(frozen=True)
class Plumed:
    """One installed PLUMED.

    Attributes
    ----------
    kernel
        The shared library that the bindings and the engines load.
    root
        PLUMED's own folder (scripts, patches), or None if there is none next to the kernel.
    include_dir
        The folder that contains `plumed/core/Action.h`, or None without headers. In an
        installation with a program suffix, `plumed` is the name of the program.
    executable
        The `plumed` program, or None.
    version
        The long version, for example "2.11.0-dev", or "unknown".
    optimised
        False if the kernel was compiled without optimisation, according to its own text.
    mpi
        Whether it was built with MPI, which an engine on several ranks needs.
    source
        Where it was found, for messages.
    """

    kernel: Path
    root: Path | None
    include_dir: Path | None
    executable: Path | None
    version: str
    optimised: bool
    mpi: bool
    source: str

    def environment(self) -> dict[str, str]:
        """Return the variables with which a process can load this kernel and run its `plumed`."""
        variables = {"PLUMED_KERNEL": str(self.kernel)}
        if self.root is not None:
            variables["PLUMED_ROOT"] = str(self.root)
        library_dir = self.kernel.parent
        # A folder with its own C++ runtime (of the system or of conda) is left to the programs that
        # know it. In front of all others, it would change what compilers and programs load.
        if not list(library_dir.glob("libstdc++.*")):
            others = [
                part
                for part in os.environ.get(_LIBRARY_PATH, "").split(os.pathsep)
                if part and part != str(library_dir)
            ]
            variables[_LIBRARY_PATH] = os.pathsep.join([str(library_dir), *others])
        return variables

    def activate(self) -> None:
        """Set the variables of `environment` for this process and its child processes."""
        os.environ.update(self.environment())


def data_dir() -> Path:
    """Return the folder of kernels and plugins: PLUMED_CV_HOME, or the user's data folder.

    Raises
    ------
    UserError
        If the folder cannot be made.
    """
    home = os.environ.get("PLUMED_CV_HOME")
    folder = Path(home).expanduser() if home else Path(platformdirs.user_data_dir("plumed_cv"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: this folder for PLUMED and the plugin cannot be made ({error.strerror}); "
            "set PLUMED_CV_HOME to a folder that can be written to"
        ) from error
    return folder.resolve()


def find_plumed(*, install: bool = True) -> Plumed:
    """Return the PLUMED to use, installing one into the data folder if there is none.

    The order is PLUMED_KERNEL, `plumed` on PATH, the active conda environment, pkg-config, the
    optimised kernel of `kernel_build`, and the kernel of the wheel in the data folder.

    Parameters
    ----------
    install
        Whether the wheel may be downloaded if nothing else is found.

    Raises
    ------
    UserError
        If PLUMED_KERNEL names a file that is missing or cannot be loaded, if the user's PLUMED
        is older than 2.9, or if nothing is found and nothing can be installed.
    """
    found = next(every_plumed(), None)
    if found is not None:
        return found
    if not install:
        raise UserError("no PLUMED was found: run `plumed-cv plumed` to install one")
    _install_wheel()
    return describe(_wheel_kernel(), WHEEL)


def every_plumed() -> Iterator[Plumed]:
    """Find every PLUMED of this machine, in the order of `find_plumed`, without installing one.

    Raises
    ------
    UserError
        As for `find_plumed`, when it reaches a wrong PLUMED.
    """
    for find in (_from_variable, _from_path, _from_conda, _from_pkg_config):
        own = find()
        if own is not None:
            yield own
    optimised = optimised_prefix() / "lib" / KERNEL_NAME
    if optimised.is_file():
        yield describe(optimised, OPTIMISED)
    if _wheel_kernel().is_file():
        yield describe(_wheel_kernel(), WHEEL)


def faster_kernel(plumed: Plumed) -> str:
    """Return the remedy for a kernel that was compiled without optimisation."""
    remedy = "run `plumed-cv plumed --optimised` once (10 to 20 minutes) to build a fast one"
    if plumed.source not in (OPTIMISED, WHEEL):
        remedy = "compile PLUMED with CXXFLAGS=-O3, or unset what selects it and " + remedy
    return remedy


def optimised_prefix(*, mpi: bool = False) -> Path:
    """Return the folder into which `kernel_build` installs."""
    return data_dir() / f"plumed-optimised{'-mpi' if mpi else ''}"


def _from_variable() -> Plumed | None:
    value = os.environ.get("PLUMED_KERNEL")
    if not value:
        return None
    kernel = Path(value).expanduser().absolute()
    if not kernel.is_file():
        raise UserError(
            f"PLUMED_KERNEL={value}: there is no such file; set it to a libplumedKernel.so or "
            "unset it"
        )
    complaint = _load_failure(kernel, kernel.stat().st_mtime_ns)
    if complaint:
        raise UserError(
            f"PLUMED_KERNEL={value}: the file cannot be loaded ({complaint}); set it to a working "
            "libplumedKernel.so or unset it"
        )
    root = os.environ.get("PLUMED_ROOT")
    return describe(kernel, "PLUMED_KERNEL", root=Path(root) if root else None)


def _from_path() -> Plumed | None:
    executable = shutil.which("plumed")
    if executable is None:
        return None
    root = output_of([executable, "--no-mpi", "info", "--root"]) or _root_in_script(executable)
    for kernel in _kernels_of(Path(root)) if root else ():
        if kernel.is_file():
            include = output_of([executable, "--no-mpi", "info", "--include-dir"])
            return describe(
                kernel,
                "plumed on PATH",
                root=Path(root),
                executable=Path(executable),
                include_dir=Path(include) if include else None,
            )
    raise UserError(
        f"{executable}: this PLUMED is on PATH and does not start, or has no {KERNEL_NAME}; repair "
        "it, remove its folder from PATH, or set PLUMED_KERNEL to the libplumedKernel.so to use"
    )


def _root_in_script(executable: str) -> str:
    """Return PLUMED's folder according to `plumed-config`; "" if it is not known.

    PLUMED writes this script for machines that cannot run the programs they compile.
    """
    script = Path(executable).with_name("plumed-config")
    try:
        text = script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    found = re.search(r'^export PLUMED_ROOT="\$\{PLUMED_ROOT-(.*)\}"$', text, re.MULTILINE)
    return found[1] if found else ""


def _kernels_of(root: Path) -> tuple[Path, Path]:
    """Return the places of the kernel: beside PLUMED's folder, and in a tree of sources."""
    return root.parent / KERNEL_NAME, root / "src" / "lib" / KERNEL_NAME


def _from_conda() -> Plumed | None:
    prefix = os.environ.get("CONDA_PREFIX")
    kernel = Path(prefix, "lib", KERNEL_NAME) if prefix else None
    return describe(kernel, "conda") if kernel and kernel.is_file() else None


def _from_pkg_config() -> Plumed | None:
    program = shutil.which("pkg-config")
    library_dir = output_of([program, "--variable=libdir", "plumed"]) if program else ""
    kernel = Path(library_dir, KERNEL_NAME) if library_dir else None
    return describe(kernel, "pkg-config") if kernel and kernel.is_file() else None


def describe(
    kernel: Path,
    source: str,
    *,
    root: Path | None = None,
    executable: Path | None = None,
    include_dir: Path | None = None,
) -> Plumed:
    """Complete the data of a kernel from the folders around it and from the file itself.

    Parameters
    ----------
    kernel
        The shared library.
    source
        Where it was found, for messages.
    root, executable, include_dir
        Known data of its PLUMED; see `Plumed`.

    Raises
    ------
    UserError
        If it is older than 2.9.
    """
    # A program with a suffix, such as plumed_mpi, has libplumed_mpiKernel.so.
    name = kernel.name.removeprefix("lib").removesuffix(f"Kernel{LIBRARY_SUFFIX}")
    prefixes = [folder for folder in kernel.parents[:3] if folder != Path("/")]
    roots = [kernel.parent / name, *kernel.parents[2:3]]  # installed, or a tree of sources
    if root is None:
        root = next((p for p in roots if (p / "src" / "config").is_dir()), None)
    if executable is None:
        programs = [kernel.parent / name, *(folder / "bin" / name for folder in prefixes)]
        executable = next((p for p in programs if p.is_file() and os.access(p, os.X_OK)), None)
    folders = [include_dir] if include_dir else []
    folders += [folder / "include" for folder in prefixes]
    headers = next((p for p in folders if (p / name / "core" / "Action.h").is_file()), None)
    found = Plumed(
        kernel=kernel,
        root=root,
        include_dir=headers,
        executable=executable,
        version="unknown",
        optimised=_is_optimised(kernel, kernel.stat().st_mtime_ns),
        mpi=_has_mpi(kernel, kernel.stat().st_mtime_ns),
        source=source,
    )
    version = _version(found)
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_PLUMED:
        raise UserError(
            f"{kernel}: this PLUMED is {version} and plumed_cv needs 2.9 or newer; set "
            "PLUMED_KERNEL to a newer libplumedKernel.so"
        )
    return replace(found, version=version)


def _version(plumed: Plumed) -> str:
    """Return the long version from PLUMED's folder or from the program, or "unknown"."""
    if plumed.root is not None:
        with contextlib.suppress(OSError):
            text = (plumed.root / "src" / "config" / "config.txt").read_text(encoding="utf-8")
            if recorded := re.search(r"^version long (\S+)", text, re.MULTILINE):
                return recorded[1]
    if plumed.executable is None:
        return "unknown"
    command = [str(plumed.executable), "--no-mpi", "info", "--long-version"]
    return output_of(command, plumed.environment()) or "unknown"


@lru_cache
def _is_optimised(kernel: Path, _modified: int) -> bool:
    """Whether a kernel was compiled with optimisation; True if it does not say.

    PLUMED compiles its Makefile.conf into the kernel as text, for `plumed config`. Reading it from
    the kernel needs no running program, and the result is true for this file.
    """
    with kernel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        flags = re.search(rb"\nCXXFLAGS=([ -~]*)", text)
        levels = re.findall(rb"(?<!\S)-O(\S*)", flags[1]) if flags else [b"?"]
    return bool(levels) and levels[-1] not in (b"0", b"g")


@lru_cache
def _has_mpi(kernel: Path, _modified: int) -> bool:
    """Whether a kernel was built with MPI: without MPI, PLUMED has a datatype of its own."""
    with kernel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return re.search(rb"Communicator10getMPITypeIiEE(?!NS_12MPI_Data)", text) is not None


@lru_cache
def _load_failure(kernel: Path, _modified: int) -> str:
    """Return why a library cannot be loaded, or "". This runs in another process."""
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(kernel)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1].removeprefix("OSError: ") if lines else f"signal {-done.returncode}"


def _wheel_prefix() -> Path:
    return data_dir() / f"kernel-{KERNEL_PACKAGE_VERSION}"


def _wheel_kernel() -> Path:
    return _wheel_prefix() / "plumed" / "_lib" / "lib" / KERNEL_NAME


def _installer() -> list[str]:
    """Return the start of the command that installs packages: uv makes environments without pip."""
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "pip"]
    raise UserError(
        "no PLUMED was found, and neither pip nor uv is there to install its kernel; "
        f"run `python -m ensurepip`, {_OTHER_KERNELS}"
    )


def _install_wheel() -> None:
    target = _wheel_prefix()
    with locked(target.with_name(f"{target.name}.lock")):
        if target.is_dir():
            return
        log.info("No PLUMED was found: a kernel from a wheel is downloaded, once for this machine.")
        with fresh_dir(target.with_name(f"{target.name}.partial")) as temporary:
            # pip accepts hashes only from such files.
            requirement = temporary / "requirement.txt"
            requirement.write_text(
                f"{KERNEL_PACKAGE}=={KERNEL_PACKAGE_VERSION} --hash=sha256:{_WHEEL_SHA256}\n",
                encoding="utf-8",
            )
            # Only the kernel is used, so the wheel for one Python version serves all others.
            done = subprocess.run(
                [
                    *(*_installer(), "install", "--quiet", "--no-deps"),
                    *("--only-binary", ":all:", "--python-version", "3.11", "--target"),
                    *(str(temporary / "wheel"), "--require-hashes", "--requirement"),
                    str(requirement),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                lines = [line for line in done.stderr.splitlines() if line.strip()]
                if lines and lines[0].startswith("error"):  # uv explains it in several lines
                    lines = [" ".join(done.stderr.split())]
                lines = [line for line in lines if line.startswith("ERROR")] or lines
                raise UserError(
                    "no PLUMED was found and its kernel cannot be installed "
                    f"({lines[-1].strip() if lines else 'no message'}); {_OTHER_KERNELS}"
                )
            (temporary / "wheel").replace(target)
