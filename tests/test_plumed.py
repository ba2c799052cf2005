"""The plugin, its cache, and plumed.dat."""

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

from plumed_cv.common.errors import UserError
from plumed_cv.cv import random_model
from plumed_cv.doctor import examine
from plumed_cv.setup import kernel as kernel_module
from plumed_cv.setup import tools
from plumed_cv.setup.kernel import Plumed
from plumed_cv.setup.plugin import _plugin_key, babf_input, build_plugin
from tests.conftest import install_at

REPOSITORY = Path(__file__).parents[1]

# A project of one line, in place of ours where only the building is tested.
CMAKE_PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(small CXX)
add_library(plumed_cv MODULE small.cpp)
"""


def test_the_plugin_is_built_once_and_loads(plumed_installation: Plumed, plugin: Path) -> None:
    before = plugin.stat().st_mtime_ns
    assert build_plugin(plumed_installation) == plugin
    assert plugin.stat().st_mtime_ns == before
    found = {finding.name: finding for finding in examine()}
    assert not [finding for finding in found.values() if finding.required and not finding.ok]
    assert found["Plugin"].detail == str(plugin)
    assert found["PLUMED kernel"].ok == plumed_installation.optimised
    assert "--optimised" in found["PLUMED kernel"].remedy or plumed_installation.optimised


FAST_MATH = "-Ofast -ffast-math -funsafe-math-optimizations -ffinite-math-only"


def test_fast_math_in_the_users_flags_changes_nothing(tmp_path: Path) -> None:
    """Modules of computing centres set -ffast-math, with which a periodic BABF had no force."""
    build = tmp_path / "build"
    for command in (
        [
            *(tools.find_tool("cmake") or "cmake", "-S", REPOSITORY / "cpp", "-B", build),
            *("-DPLUMED_CV_TESTS=ON", f"-DCMAKE_CXX_COMPILER={tools.cxx_compiler()}"),
        ],
        [tools.find_tool("cmake") or "cmake", "--build", build, "--target", "test_arithmetic"],
        [build / "test_arithmetic"],
    ):
        done = subprocess.run(
            list(map(str, command)),
            env=os.environ | {"CXXFLAGS": FAST_MATH},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("flag", FAST_MATH.split())
def test_who_compiles_by_hand_with_fast_math_is_told(flag: str) -> None:
    """If CMake does not choose the options, the headers refuse to compile with these."""
    header = REPOSITORY / "cpp" / "core" / "vector_math.h"
    done = subprocess.run(
        [tools.cxx_compiler(), "-std=c++17", flag, "-fsyntax-only", "-x", "c++", str(header)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "compile without -ffast-math" in done.stderr


def test_the_plugin_refuses_another_kernel_than_its_own(
    plumed_installation: Plumed, plugin: Path, tmp_path: Path
) -> None:
    """The linker compares only the name of the library, so any kernel would fit the plugin."""
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
    found = {finding.name: finding for finding in examine()}
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


BUILD = "from plumed_cv.setup.plugin import build_plugin; print(build_plugin())"


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
            "UserError: cmake is needed to build the plugin and was not found: "
            "pip install 'plumed_cv[plumed]'"
        )
    )


def test_no_headers(bare: Path, plumed_installation: Plumed, tmp_path: Path) -> None:
    kernel = install_at(tmp_path / "headless", plumed_installation)
    (tmp_path / "headless" / "include").unlink()
    with pytest.raises(UserError, match=r"PLUMED's headers .* are not installed"):
        build_plugin(kernel_module.describe(kernel, "test"))


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
        "ae: AUTOENCODER MODEL={my cv.safetensors} MAXDEV_STRIDE=10",
        "b: BABF ARG=ae.node-0 TEMP=300.0 GRID_MIN=-0.1 GRID_MAX=1.1 GRID_BIN=120 RAMP=1000 "
        "PRIOR=fes.dat STATE_WFILE=STATE STATE_WSTRIDE=500",
        "PRINT ARG=ae.node-0,ae.dev,ae.maxdev,ae.gradnorm,ae.invmass,ae.temp,b.bias,b.zeta "
        "FILE=COLVAR STRIDE=10 FMT=%.12g",
    ]


@pytest.mark.parametrize("name", ["a#b", "a{b", "a}b", "a\nb"])
def test_names_that_plumed_cannot_read(name: str) -> None:
    with pytest.raises(UserError, match=r"are not allowed in a plumed\.dat"):
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
        "ae.maxdev",
        "ae.gradnorm",
        "ae.invmass",
        "ae.temp",
        "b.bias",
        "b.zeta",
    ]
    printed = np.array(lines[-1].split(), dtype=float)
    assert printed[1] == pytest.approx(cv.value(positions, box)[0], rel=1e-10)
    assert printed[2] == pytest.approx(cv.deviation(positions, box), rel=1e-8)
    assert (folder / "STATE").is_file()
