"""Builds an optimised kernel of PLUMED, from the source of the wheel or of any PLUMED release."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.common.files import fresh_dir, locked
from plumed_cv.setup.kernel import (
    KERNEL_NAME,
    KERNEL_PACKAGE,
    KERNEL_PACKAGE_VERSION,
    OLDEST_PLUMED,
    OPTIMISED,
    Plumed,
    describe,
    optimised_prefix,
)
from plumed_cv.setup.tools import cxx_compiler, find_tool, mpi_compiler, n_cores, output_of

# The source distribution of the kernel's package, which contains the whole source of PLUMED.
_SOURCE_SHA256 = "795022caa8954149877bcb812a1ec14eb013c67a92abf0d318c2a603dc0b5f22"
_SOURCE_OBJECTS = 561  # number of compiled files; only the progress bar depends on it
_SOURCE_SPACE = 500_000_000  # bytes for sources, objects and the result

# Runs a program with a lock. If the building process is killed, the next one waits until the
# remaining compilers have ended.
_WITH_LOCK = """
import subprocess, sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    sys.exit(subprocess.call(sys.argv[2:]))
"""


def build_optimised_kernel(
    progress: Progress | None = None, *, mpi: bool = False, source: Path | None = None
) -> Plumed:
    """Build PLUMED with -O3 into the data folder.

    This takes about ten minutes on two cores. A build that was stopped in any way is continued.
    From then on, `find_plumed` prefers the result to the wheel. A kernel with MPI is used only if
    PLUMED_KERNEL names it, because it needs its MPI wherever it is loaded.

    Parameters
    ----------
    progress
        A running rich progress display, which gets one bar.
    mpi
        Whether to build with the MPI whose `mpicxx` is found on PATH.
    source
        Sources of PLUMED: a folder, or an archive of a release (.tgz). If None, those in the
        package of the kernel wheel.

    Raises
    ------
    UserError
        If a compiler, make or disk space is missing, the sources cannot be fetched or are not those
        of PLUMED 2.9 or newer, `source` is given but a kernel has been built before, or a step
        fails. The message then names the log.
    """
    progress = progress or Progress(disable=True)
    prefix = optimised_prefix(mpi=mpi)
    with locked(prefix.with_name(f"{prefix.name}.lock")):
        if source is not None and prefix.is_dir():
            raise UserError(
                f"{prefix}: contains a kernel that was built before; remove this folder to build "
                f"{source} instead"
            )
        if not prefix.is_dir():
            compiler, make = (mpi_compiler() if mpi else cxx_compiler()), find_tool("make")
            if make is None:
                raise UserError("make is needed to build PLUMED and was not found: install make")
            build = prefix.with_name(f"{prefix.name}-build")
            build.mkdir(exist_ok=True)
            if not (build / "plumed2").is_dir():
                if shutil.disk_usage(build).free < _SOURCE_SPACE:
                    raise UserError(
                        f"{build}: building PLUMED needs {_SOURCE_SPACE // 10**6} MB of disk space "
                        "but there is less; make room or set PLUMED_CV_HOME to another disk"
                    )
                if source is None:
                    fetch_source(build)
                else:
                    _take_source(source, build)
            _make_kernel(build, prefix, compiler, make, progress, mpi=mpi)
            shutil.rmtree(build)
    return describe(prefix / "lib" / KERNEL_NAME, OPTIMISED)


def fetch_source(build: Path) -> None:
    """Put the sources of the installed kernels into the new folder `build`/plumed2.

    Raises
    ------
    UserError
        If the package index does not send them.
    """
    require("unearth")
    requirement = f"{KERNEL_PACKAGE}=={KERNEL_PACKAGE_VERSION}"
    # pip would build the package, including PLUMED, only to read its metadata.
    command = [sys.executable, "-m", "unearth", "--no-binary", "--download", str(build)]
    index = output_of([sys.executable, "-m", "pip", "config", "get", "global.index-url"])
    if index := os.environ.get("PIP_INDEX_URL", index):
        command += ["--index-url", index]
    archive = build / f"{KERNEL_PACKAGE}-{KERNEL_PACKAGE_VERSION}.tar.gz"
    done = subprocess.run(
        [*command, requirement], capture_output=True, text=True, check=False, cwd=build
    )
    if done.returncode != 0 or not archive.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(
            f"the sources of PLUMED ({requirement}, source distribution) cannot be fetched from "
            f"the package index ({lines[-1].strip() if lines else 'not found'})"
        )
    if hashlib.sha256(archive.read_bytes()).hexdigest() != _SOURCE_SHA256:
        archive.unlink()
        raise UserError(
            f"{archive.name}: the package index sent a different file than expected; try again"
        )
    with fresh_dir(build / "unpacking") as unpacking:
        shutil.unpack_archive(archive, unpacking)
        (unpacking / archive.name.removesuffix(".tar.gz") / "external" / "plumed2").replace(
            build / "plumed2"
        )


def _take_source(source: Path, build: Path) -> None:
    """Copy the user's sources of PLUMED into the new folder `build`/plumed2."""
    with fresh_dir(build / "unpacking") as unpacking:
        if source.is_dir():
            folder = unpacking / "plumed2"
            shutil.copytree(source, folder, symlinks=True, ignore=shutil.ignore_patterns(".git"))
        else:
            try:
                shutil.unpack_archive(source, unpacking)
            except (OSError, ValueError, shutil.ReadError) as error:
                raise UserError(f"{source}: is no archive of PLUMED's sources ({error})") from None
            folder = next((path.parent for path in unpacking.glob("*/configure")), unpacking)
        if not all((folder / name).is_file() for name in ("configure", "VERSION.txt")):
            raise UserError(
                f"{source}: contains no sources of PLUMED: configure or VERSION.txt is missing"
            )
        text = (folder / "VERSION.txt").read_text(encoding="utf-8")
        version = re.search(r"^(\d+)\.(\d+)", text, re.MULTILINE)
        if version is None or (int(version[1]), int(version[2])) < OLDEST_PLUMED:
            number = version[0] if version else "unknown"
            raise UserError(f"{source}: is PLUMED {number}, but plumed_cv needs 2.9 or newer")
        folder.replace(build / "plumed2")


def _make_kernel(
    build: Path,
    prefix: Path,
    compiler: str,
    make: str,
    progress: Progress,
    *,
    mpi: bool,
) -> None:
    """Configure, compile and install `build`/plumed2, as far as this is not done."""
    source = build / "plumed2"
    configured, compilers = build / "configured", build / "compilers.lock"
    bar = progress.add_task("Configuring PLUMED", total=_SOURCE_OBJECTS)
    # Flags for the processor of this machine (-march=native) would make a data folder on a shared
    # disk fail on other machines.
    settings = {"CXX": compiler, "CXXFLAGS": "-O3 -std=c++17 -fPIC"}
    configure = [
        *("./configure", f"--prefix={prefix}", "--disable-dependency-tracking"),
        # All modules, as in the wheel: OPES and others are not among PLUMED's defaults.
        *("--enable-modules=all", "--disable-python", "--disable-doc"),
        f"--{'enable' if mpi else 'disable'}-mpi",
        # OpenMP costs some microseconds per step, because PLUMED opens its parallel regions even
        # with one thread, and its threads would compete with those of the engine.
        "--disable-openmp",
        *(f"{name}={value}" for name, value in settings.items()),
    ]
    compile_ = [make, f"-j{n_cores()}", "lib"]
    with fresh_dir(build / "installed") as stage:
        install = [make, "install", f"DESTDIR={stage}"]
        with (build / "build.log").open("a", 1, encoding="utf-8") as log:

            def run(command: Sequence[str]) -> None:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _WITH_LOCK, str(compilers), *command],
                    cwd=source,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
                assert process.stdout is not None
                with process:
                    for line in process.stdout:
                        log.write(line)
                        if line.startswith("compiling "):
                            progress.advance(bar)
                if process.returncode != 0:
                    raise UserError(
                        f"PLUMED cannot be built (`{Path(command[0]).name}` failed); the messages "
                        f"are at the end of {log.name}"
                    )

            if not configured.exists():
                run(configure)
                # configure continues without an MPI that it cannot use.
                if mpi and "__PLUMED_HAS_MPI" not in (source / "Makefile.conf").read_text():
                    raise UserError(
                        f"{compiler}: PLUMED cannot be built with this MPI; the messages are in "
                        f"{log.name}"
                    )
                configured.touch()
            else:
                with locked(compilers):
                    _drop_unfinished(source)
                objects = sum(1 for _ in source.rglob("*.o"))
                progress.update(bar, completed=min(objects, _SOURCE_OBJECTS))
            progress.update(bar, description="Compiling PLUMED")
            run(compile_)
            progress.update(bar, description="Installing PLUMED")
            run(install)
        stage.joinpath(*prefix.parts[1:]).replace(prefix)
    progress.update(bar, description="PLUMED is built", completed=_SOURCE_OBJECTS)


def _drop_unfinished(source: Path) -> None:
    """Remove the last files of a killed build, which may be incomplete."""
    made = [path for pattern in ("*.o", "*.a", "*.so") for path in source.rglob(pattern)]
    made.sort(key=lambda path: path.stat().st_mtime_ns)
    for path in made[-2 * n_cores() :]:
        path.unlink()
