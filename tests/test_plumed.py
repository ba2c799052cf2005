"""Finding PLUMED, the plugin's cache, the kernels of our own, and plumed.dat."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumed_cv import kernel as kernel_module
from plumed_cv import tools
from plumed_cv.cv import random_model
from plumed_cv.doctor import doctor
from plumed_cv.errors import UserError
from plumed_cv.kernel import Plumed, find_plumed
from plumed_cv.plumed import _plugin_key, babf_input, build_plugin

REPOSITORY = Path(__file__).parents[1]

# A project of one line, in place of ours where only the building is tested.
CMAKE_PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(small CXX)
add_library(plumed_cv MODULE small.cpp)
"""

# What PLUMED's own build system shows of itself to build_optimised_kernel. The last object waits
# for as long as there is a file `hold`.
CONFIGURE = """#!/bin/sh
for argument in "$@"; do case $argument in --prefix=*) prefix=${argument#--prefix=};; esac; done
echo "once" >> configured.txt
sed "s|@prefix@|$prefix|" Makefile.in > Makefile
"""
MAKEFILE = """
objects = a.o b.o c.o d.o e.o f.o g.o h.o
lib: libplumedKernel.so
%.o: %.cpp
\t@echo "compiling " $<
\t@echo $< >> compiled.txt
\t@if test $< = h.cpp; then while test -e hold; do sleep 0.02; done; fi
\t@g++ -fPIC -c $< -o $@
libplumedKernel.so: $(objects)
\tg++ -shared $(objects) -o $@
install: lib
\tmkdir -p $(DESTDIR)@prefix@/lib/plumed
\tcp libplumedKernel.so $(DESTDIR)@prefix@/lib
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return an empty data folder, with nothing in the environment that leads to a PLUMED."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "bash", "env", "pkg-config", "g++", "as", "ld"):
        if path := shutil.which(name):
            (programs / name).symlink_to(path)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("PLUMED_CV_HOME", str(home))
    monkeypatch.setenv("PKG_CONFIG_LIBDIR", str(tmp_path / "pkgconfig"))
    for name in ("PLUMED_KERNEL", "PLUMED_ROOT", "PLUMED_INCLUDEDIR", "CONDA_PREFIX", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PKG_CONFIG_PATH", raising=False)
    return home


def install_at(prefix: Path, real: Plumed) -> Path:
    """Lay out a PLUMED under `prefix` from links to a real one; return its kernel."""
    (prefix / "bin").mkdir(parents=True)
    # The folder as a whole: a kernel finds its own libraries from where it lies.
    (prefix / "lib").symlink_to(real.kernel.parent)
    if real.include_dir is not None:
        (prefix / "include").symlink_to(real.include_dir)
    if real.executable is not None:
        program = prefix / "bin" / "plumed"
        program.write_text(
            "#!/bin/sh\n"
            f"export LD_LIBRARY_PATH={real.kernel.parent} PLUMED_ROOT={prefix}/lib/plumed\n"
            f'PLUMED_INCLUDEDIR={prefix}/include exec {real.executable} "$@"\n'
        )
        program.chmod(0o755)
    return prefix / "lib" / real.kernel.name


def test_order_of_discovery(
    bare: Path, plumed_installation: Plumed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = {}
    for name in ("variable", "path", "conda", "pkgconf"):
        places[name] = install_at(tmp_path / name, plumed_installation)
    optimised = install_at(bare / "plumed-optimised", plumed_installation)
    version = kernel_module.KERNEL_PACKAGE_VERSION
    wheel = install_at(
        bare / f"kernel-{version}" / "plumed" / "_lib",
        plumed_installation,
    )
    monkeypatch.setenv("PLUMED_KERNEL", str(places["variable"]))
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{tmp_path / 'path' / 'bin'}{os.pathsep}{path}")
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    description = tmp_path / "pkgconfig" / "plumed.pc"
    description.parent.mkdir()
    description.write_text(
        f"libdir={tmp_path}/pkgconf/lib\nName: plumed\nDescription: PLUMED\nVersion: 2.11\nLibs:\n"
    )

    def found() -> tuple[Path, str]:
        plumed = find_plumed(install=False)
        assert plumed.version == plumed_installation.version
        assert plumed.optimised == plumed_installation.optimised
        assert plumed.include_dir == plumed.kernel.parents[1] / "include"
        assert plumed.root == plumed.kernel.parent / "plumed"
        assert plumed.executable == plumed.kernel.parents[1] / "bin" / "plumed"
        return plumed.kernel, plumed.source

    assert found() == (places["variable"], "PLUMED_KERNEL")
    monkeypatch.delenv("PLUMED_KERNEL")
    assert found() == (places["path"], "plumed on PATH")
    monkeypatch.setenv("PATH", path)
    assert found() == (places["conda"], "conda")
    monkeypatch.delenv("CONDA_PREFIX")
    if shutil.which("pkg-config"):
        assert found() == (places["pkgconf"], "pkg-config")
    description.unlink()
    assert found() == (optimised, "optimised kernel built by plumed-cv")
    shutil.rmtree(bare / "plumed-optimised")
    assert found() == (wheel, "kernel wheel")
    shutil.rmtree(bare / wheel.relative_to(bare).parts[0])
    with pytest.raises(UserError, match="no PLUMED was found"):
        find_plumed(install=False)


def test_kernel_that_cannot_be_fetched_is_one_sentence(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(bare))
    with pytest.raises(UserError, match=r"No matching distribution.*PLUMED_KERNEL"):
        find_plumed()
    assert not [path for path in bare.iterdir() if path.is_dir()]


def test_missing_kernel(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLUMED_KERNEL", str(tmp_path / "libplumedKernel.so"))
    with pytest.raises(UserError, match=r"PLUMED_KERNEL=.*libplumedKernel\.so: there is no such"):
        find_plumed()


@pytest.mark.parametrize("content", ["text", "truncated"])
def test_kernel_that_does_not_load(
    bare: Path,
    plumed_installation: Plumed,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: str,
) -> None:
    kernel = tmp_path / "libplumedKernel.so"
    with plumed_installation.kernel.open("rb") as real:
        kernel.write_bytes(b"not a library\n" if content == "text" else real.read(100_000))
    monkeypatch.setenv("PLUMED_KERNEL", str(kernel))
    with pytest.raises(UserError, match=r"PLUMED_KERNEL=.*cannot be loaded \(.+\); set it to"):
        find_plumed()


def test_old_plumed_is_refused(
    bare: Path, plumed_installation: Plumed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel = tmp_path / "lib" / plumed_installation.kernel.name
    config = kernel.parent / "plumed" / "src" / "config" / "config.txt"
    config.parent.mkdir(parents=True)
    config.write_text("version short 2.8\nversion long 2.8.3\nversion git Unknown\n")
    kernel.symlink_to(plumed_installation.kernel)
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path))
    with pytest.raises(UserError, match=r"this PLUMED is 2\.8\.3 and plumed_cv needs 2\.9"):
        find_plumed()


@pytest.mark.parametrize(
    ("flags", "optimised"),
    [
        ("\nCXXFLAGS=-fPIC -Wall -std=c++17 -fopenmp\nCFLAGS=-O2\n", False),
        ("\nCXXFLAGS=-O3 -std=c++17 -fPIC\nX=1", True),
        ("\nCXXFLAGS=-std=c++17 -O\n", True),
        ("\nCXXFLAGS=-O2 -g -O0\n", False),
        ("\nCXXFLAGS=-Og -g\n", False),
        ("\nCXXFLAGS_NOOPENMP=-O2\nnothing that says it", True),
    ],
)
def test_optimisation_is_read_from_the_kernel(tmp_path: Path, flags: str, optimised: bool) -> None:
    kernel = tmp_path / "libplumedKernel.so"
    kernel.write_bytes(b"\x7fELF\0" * 100 + flags.encode() + b"\0" * 100)
    assert kernel_module._is_optimised(kernel, 0) == optimised


@pytest.mark.parametrize(
    ("datatype", "mpi"),
    [("NS_12MPI_DatatypeE", False), ("i", True), ("P15ompi_datatype_t", True)],
    ids=["none", "MPICH", "Open MPI"],
)
def test_mpi_is_read_from_the_kernel(tmp_path: Path, datatype: str, mpi: bool) -> None:
    kernel = tmp_path / "libplumedKernel.so"
    symbol = f"_ZN4PLMD12Communicator10getMPITypeIiEE{datatype}v"
    kernel.write_bytes(b"\x7fELF\0" * 100 + symbol.encode() + b"\0" * 100)
    assert kernel_module._has_mpi(kernel, 0) == mpi


def test_optimisation_agrees_with_what_plumed_says(plumed_installation: Plumed) -> None:
    if plumed_installation.executable is None:
        pytest.skip("this PLUMED has no `plumed` program")
    done = subprocess.run(
        [str(plumed_installation.executable), "--no-mpi", "config", "makefile_conf"],
        env={**os.environ, **plumed_installation.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    flags = next(line for line in done.stdout.splitlines() if line.startswith("CXXFLAGS="))
    assert plumed_installation.optimised == any(f" -O{level}" in f" {flags[9:]}" for level in "123")
    assert plumed_installation.mpi == ("-D__PLUMED_HAS_MPI=1" in done.stdout)


def test_the_environment_is_enough_to_run_plumed(plumed_installation: Plumed) -> None:
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    clean |= plumed_installation.environment()
    code = "import plumed; p = plumed.Plumed(); p.cmd('setNatoms', 1); p.cmd('init')"
    subprocess.run([sys.executable, "-c", code], env=clean, check=True, capture_output=True)
    if plumed_installation.executable is not None:
        command = [str(plumed_installation.executable), "--no-mpi", "info", "--long-version"]
        shown = subprocess.run(command, env=clean, check=True, capture_output=True, text=True)
        assert shown.stdout.strip() == plumed_installation.version


def test_the_plugin_is_built_once_and_loads(plumed_installation: Plumed, plugin: Path) -> None:
    before = plugin.stat().st_mtime_ns
    assert build_plugin(plumed_installation) == plugin
    assert plugin.stat().st_mtime_ns == before
    found = {finding.name: finding for finding in doctor()}
    assert not [finding for finding in found.values() if finding.required and not finding.ok]
    assert found["Plugin"].detail == str(plugin)
    assert found["PLUMED kernel"].ok == plumed_installation.optimised
    assert "--optimised" in found["PLUMED kernel"].remedy or plumed_installation.optimised


def test_the_plugin_refuses_another_kernel_than_its_own(
    plumed_installation: Plumed, plugin: Path, tmp_path: Path
) -> None:
    """The linker goes by the library's name alone: it would let any kernel take the plugin."""
    code = (
        "import sys, plumed; p = plumed.Plumed(kernel=sys.argv[1]); p.cmd('setNatoms', 1); "
        "p.cmd('setLogFile', '/dev/null'); p.cmd('init'); "
        f"p.cmd('readInputLine', 'LOAD FILE={plugin}'); "
        "p.cmd('readInputLine', 'x: POSITION ATOM=1'); p.cmd('readInputLine', 'b: BABF ARG=x.x "
        "TEMP=300 GRID_MIN=0 GRID_MAX=1 GRID_BIN=50 RAMP=0')"
    )
    (tmp_path / "moved").mkdir()
    (tmp_path / "other").mkdir()
    moved = tmp_path / "moved" / plumed_installation.kernel.name
    other = tmp_path / "other" / plumed_installation.kernel.name
    for kernel in (moved, other):
        shutil.copy(plumed_installation.kernel, kernel)
    with other.open("ab") as file:
        file.write(bytes(16))  # behind the end: the same PLUMED, but another file
    # A kernel from a wheel finds what it needs by its own place.
    linked = subprocess.run(
        ["ldd", plumed_installation.kernel], capture_output=True, text=True, check=True
    )
    folders = {str(Path(library).parent) for library in re.findall(r"=> (/\S+)", linked.stdout)}
    results = [
        subprocess.run(
            [sys.executable, "-c", code, str(kernel)],
            env=os.environ
            | plumed_installation.environment()
            | {"LD_LIBRARY_PATH": os.pathsep.join(sorted(folders))},
            capture_output=True,
            text=True,
            check=False,
        )
        for kernel in (plumed_installation.kernel, moved, other)
    ]
    assert [done.returncode for done in results] == [0, 0, 1], results
    sentence = results[2].stderr.strip().splitlines()[-1]
    assert f"was built for the PLUMED kernel {plumed_installation.kernel}" in sentence
    assert f"is loaded in another, {other}: LOAD the one" in sentence


def test_doctor_tells_what_is_missing(bare: Path) -> None:
    (Path(os.environ["PATH"]) / "g++").unlink()
    found = {finding.name: finding for finding in doctor()}
    for name in ("C++ compiler", "PLUMED kernel"):
        assert not found[name].ok
        assert found[name].required
        assert found[name].remedy


def test_the_cache_key(plumed_installation: Plumed, tmp_path: Path) -> None:
    sources = tmp_path / "cpp"
    (sources / "core").mkdir(parents=True)
    (sources / "tests").mkdir()
    header = sources / "core" / "a.h"
    header.write_text("int a;\n")
    kernel = tmp_path / "libplumedKernel.so"
    shutil.copy2(plumed_installation.kernel, kernel)
    plumed = kernel_module.describe(kernel, "test")
    compiler = tools.cxx_compiler()

    def key() -> str:
        return _plugin_key(plumed, sources, compiler)

    first = key()
    assert key() == first
    (sources / "tests" / "test_a.cpp").write_text("int main() {}\n")
    assert key() == first
    header.write_text("int b;\n")
    second = key()
    assert second != first
    header.rename(sources / "core" / "b.h")
    third = key()
    assert third not in (first, second)
    os.utime(kernel, ns=(0, kernel.stat().st_mtime_ns + 1))
    fourth = key()
    assert fourth not in (first, second, third)
    other = tmp_path / "c++"
    other.write_text("#!/bin/sh\necho another compiler 1.0\n")
    other.chmod(0o755)
    fifth = _plugin_key(plumed, sources, str(other))
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "version.py").write_text("__version__ = '2.13.0'\n")
    sixth = _plugin_key(plumed, sources, compiler, torch)
    (torch / "version.py").write_text("__version__ = '2.14.0'\n")
    seventh = _plugin_key(plumed, sources, compiler, torch)
    assert len({first, second, third, fourth, fifth, sixth, seventh}) == 7


@pytest.fixture
def small_package(tmp_path: Path) -> Path:
    """Return a copy of the package whose C++ sources are a project of one line."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__")  # other processes write there
    shutil.copytree(REPOSITORY / "plumed_cv", copy / "plumed_cv", ignore=ignored)
    (copy / "cpp").mkdir()
    (copy / "cpp" / "CMakeLists.txt").write_text(CMAKE_PROJECT)
    (copy / "cpp" / "small.cpp").write_text('extern "C" int answer() { return 42; }\n')
    return copy


BUILD = "from plumed_cv.plumed import build_plugin; print(build_plugin())"


def test_two_processes_build_once(
    plumed_installation: Plumed, small_package: Path, tmp_path: Path
) -> None:
    compiler = tmp_path / "counting-g++"
    compiler.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *small.cpp) echo one >> {tmp_path}/count; sleep 1;; esac\n'
        f'exec {tools.cxx_compiler()} "$@"\n'
    )
    compiler.chmod(0o755)
    home = tmp_path / "home"
    environment = os.environ | {
        "PYTHONPATH": str(small_package),
        "PLUMED_CV_HOME": str(home),
        "CXX": str(compiler),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    results = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], results
    assert results[0][0] == results[1][0]
    library = Path(results[0][0].strip())
    assert library.is_file()
    assert (tmp_path / "count").read_text() == "one\n"
    kept = sorted(path.suffix for path in (home / "plugins").iterdir())
    assert kept == ["", ".lock"]


def test_a_killed_build_leaves_nothing_in_the_way(
    plumed_installation: Plumed, small_package: Path, tmp_path: Path
) -> None:
    slow = tmp_path / "slow-g++"
    slow.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *small.cpp) touch {tmp_path}/begun; sleep 3;; esac\n'
        f'exec {tools.cxx_compiler()} "$@"\n'
    )
    slow.chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": str(small_package),
        "PLUMED_CV_HOME": str(tmp_path / "home"),
        "CXX": str(slow),
    }
    command = [sys.executable, "-c", BUILD]
    first = subprocess.Popen(command, env=environment, cwd=tmp_path)
    while not (tmp_path / "begun").exists():
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_file()


def test_a_source_that_does_not_compile(
    plumed_installation: Plumed, small_package: Path, tmp_path: Path
) -> None:
    (small_package / "cpp" / "small.cpp").write_text("int answer( { return nonsense; }\n")
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        env=os.environ
        | {"PYTHONPATH": str(small_package), "PLUMED_CV_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    sentence = done.stderr.strip().splitlines()[-1]
    assert "UserError: the plugin does not compile against" in sentence
    log = Path(sentence.split()[-1])
    assert "nonsense" in log.read_text()


def test_no_compiler(
    bare: Path, plumed_installation: Plumed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="CXX=no-such-compiler: there is no such compiler"):
        build_plugin(plumed_installation)
    monkeypatch.delenv("CXX")
    (Path(os.environ["PATH"]) / "g++").unlink()
    with pytest.raises(UserError, match=r"a C\+\+ compiler is needed .*: install g\+\+"):
        build_plugin(plumed_installation)


def test_no_cmake(bare: Path, plumed_installation: Plumed, tmp_path: Path) -> None:
    # An environment with no scripts of its own, and the packages of this one.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    packages = sysconfig.get_path("purelib")
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", BUILD],
        env=os.environ
        | plumed_installation.environment()
        | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{packages}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith(
            "UserError: cmake is needed to build the plugin and was not found: pip install cmake"
        )
    )


def test_no_headers(bare: Path, plumed_installation: Plumed, tmp_path: Path) -> None:
    kernel = install_at(tmp_path / "headless", plumed_installation)
    (tmp_path / "headless" / "include").unlink()
    with pytest.raises(UserError, match=r"PLUMED's headers .* are not installed"):
        build_plugin(kernel_module.describe(kernel, "test"))


def test_a_kernel_build_goes_on_after_a_kill(tmp_path: Path) -> None:
    home = tmp_path / "home"
    source = home / "plumed-optimised-build" / "plumed2"
    source.mkdir(parents=True)
    (source / "configure").write_text(CONFIGURE)
    (source / "configure").chmod(0o755)
    (source / "Makefile.in").write_text(MAKEFILE)
    for name in "abcdefgh":
        (source / f"{name}.cpp").write_text(f"int {name}() {{ return 1; }}\n")
    command = [
        sys.executable,
        "-c",
        "from plumed_cv.kernel_build import build_optimised_kernel as b; print(b().kernel)",
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PLUMED_CV_HOME": str(home)}
    (source / "hold").touch()
    first = subprocess.Popen(command, env=environment)
    compiled = source / "compiled.txt"
    while not compiled.exists() or "h.cpp" not in compiled.read_text():
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (home / "plumed-optimised").exists()
    (source / "hold").unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kernel = home / "plumed-optimised" / "lib" / "libplumedKernel.so"
    assert Path(done.stdout.strip()) == kernel
    assert kernel.is_file()
    assert sorted(path.name for path in home.iterdir()) == [
        "plumed-optimised",
        "plumed-optimised.lock",
    ]


def build_with(configure: str, home: Path, mpi: bool) -> str:
    """Build a kernel where PLUMED's `configure` is a script; return the last line of the error."""
    source = home / f"plumed-optimised{'-mpi' if mpi else ''}-build" / "plumed2"
    source.mkdir(parents=True)
    (source / "configure").write_text(f"#!/bin/sh\n{configure}\n")
    (source / "configure").chmod(0o755)
    done = run_python(
        f"from plumed_cv.kernel_build import build_optimised_kernel as b; b(mpi={mpi})",
        PLUMED_CV_HOME=str(home),
    )
    return done.stderr.strip().splitlines()[-1]


def test_a_failing_kernel_build_names_its_log(tmp_path: Path) -> None:
    sentence = build_with("echo no working compiler >&2\nexit 1", tmp_path, mpi=False)
    assert "UserError: PLUMED cannot be built (`configure` failed)" in sentence
    assert "no working compiler" in Path(sentence.split()[-1]).read_text()


def test_a_kernel_build_with_an_mpi_that_does_not_work(tmp_path: Path) -> None:
    if tools.tool("mpicxx") is None:
        pytest.skip("there is no mpicxx: pip install mpich")
    # PLUMED's configure goes on without MPI.
    sentence = build_with("echo CPPFLAGS= > Makefile.conf", tmp_path, mpi=True)
    assert "mpicxx: PLUMED cannot be built with this MPI; the messages are in " in sentence
    assert Path(sentence.split()[-1]).is_file()


def test_plumed_dat_as_written(tmp_path: Path) -> None:
    text = babf_input(
        Path("/p/plumed_cv.so"),
        Path("my cv.safetensors"),
        temperature_K=300.0,
        ramp=1000,
        state_out=Path("STATE"),
        state_stride=500,
        colvar=Path("COLVAR"),
        colvar_stride=10,
        prior=Path("fes.dat"),
        grid=(-0.1, 1.1, 120),
    )
    assert text.splitlines() == [
        "UNITS LENGTH=A ENERGY=eV TIME=fs",
        "LOAD FILE=/p/plumed_cv.so",
        "ae: AUTOENCODER MODEL={my cv.safetensors}",
        "b: BABF ARG=ae.node-0 TEMP=300.0 GRID_MIN=-0.1 GRID_MAX=1.1 GRID_BIN=120 RAMP=1000 "
        "PRIOR=fes.dat STATE_WFILE=STATE STATE_WSTRIDE=500",
        "PRINT ARG=ae.node-0,ae.dev,ae.gradnorm,ae.invmass,b.bias,b.zeta FILE=COLVAR STRIDE=10 "
        "FMT=%.12g",
    ]


@pytest.mark.parametrize("name", ["a#b", "a{b", "a}b", "a\nb"])
def test_names_that_plumed_cannot_read(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot stand in a plumed\.dat"):
        babf_input(
            Path("plugin.so"),
            Path(name),
            temperature_K=300.0,
            ramp=0,
            state_out=Path("STATE"),
            state_stride=1,
            colvar=Path("COLVAR"),
            colvar_stride=1,
        )


def test_plumed_runs_what_is_written(
    make_plumed: Callable[..., Any], plugin: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    cv = random_model(rng, n_atoms=5, n_components=3, hidden=(4,), cell=4.0 * np.eye(3))
    folder = tmp_path / "a folder"
    folder.mkdir()
    cv.save(folder / "cv.safetensors")
    text = babf_input(
        plugin,
        folder / "cv.safetensors",
        temperature_K=300.0,
        ramp=100,
        grid=(-5.0, 5.0, 50),
        state_out=folder / "STATE",
        state_stride=2,
        colvar=folder / "COLVAR",
        colvar_stride=1,
    )
    units, _load, *actions = text.splitlines()
    handle = make_plumed(5, "\n".join(actions), units=units)
    positions = cv.reference_positions + 0.05 * rng.standard_normal((5, 3))
    box = np.array(cv.reference_cell)
    masses, forces, virial = np.ones(5), np.zeros((5, 3)), np.zeros((3, 3))
    for step in range(5):
        handle.cmd("setStep", step)
        # Plain bindings take kJ/mol, nm and ps.
        for name, value in (
            ("setPositions", positions / 10),
            ("setBox", box / 10),
            ("setMasses", masses),
            ("setForces", forces),
            ("setVirial", virial),
        ):
            handle.cmd(name, np.ascontiguousarray(value))
        handle.cmd("calc")
    handle.finalize()
    lines = (folder / "COLVAR").read_text().splitlines()
    assert lines[0].split()[3:] == [
        "ae.node-0",
        "ae.dev",
        "ae.gradnorm",
        "ae.invmass",
        "b.bias",
        "b.zeta",
    ]
    printed = np.array(lines[-1].split(), dtype=float)
    assert printed[1] == pytest.approx(cv.value(positions, box)[0], rel=1e-10)
    assert printed[2] == pytest.approx(cv.deviation(positions, box), rel=1e-8)
    assert (folder / "STATE").is_file()
