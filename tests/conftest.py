"""A real PLUMED and our plugin, found or built once for all tests."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from plumed_cv.common.errors import UserError
from plumed_cv.setup.kernel import Plumed, find_plumed
from plumed_cv.setup.plugin import build_plugin
from python.drills import runs
from tests import vacancy
from tests.browser import Browser, find_chromium, opened

MakePlumed = Callable[..., Any]

# A shell's background job ignores Ctrl-C, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have most slow tests, so that no process is left with one of them.

    A file is run by one process.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def unavailable(what: str) -> None:
    """End a test that lacks an engine or package: it fails in CI, and is skipped elsewhere."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def needed(module: str, package: str) -> None:
    """End a test if a Python package is missing. It is not imported: those with torch are slow."""
    if find_spec(module) is None:
        unavailable(f"There is no {module}: pip install {package}")


@pytest.fixture(scope="session")
def plumed_installation() -> Plumed:
    try:
        found = find_plumed()
    except UserError as error:
        unavailable(str(error))
        raise
    found.activate()
    return found


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


def built(plumed: Plumed, torch: bool) -> Path:
    """Build a plugin. A plugin that does not compile is a defect on every machine."""
    try:
        return build_plugin(plumed, torch=torch)
    except UserError as error:
        if "does not compile" in str(error):
            pytest.fail(str(error))
        unavailable(str(error))
        raise


@pytest.fixture(scope="session")
def plugin(plumed_installation: Plumed) -> Path:
    return built(plumed_installation, torch=False)


@pytest.fixture(scope="session")
def torch_plugin(plumed_installation: Plumed) -> Path:
    """The library with TORCH_CV."""
    return built(plumed_installation, torch=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser with an empty page."""
    program = find_chromium()
    if program is None:
        unavailable("There is no Chromium to show pages: apt-get install chromium")
    assert program is not None
    with opened(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="session")
def fix_plumed(plumed_installation: Plumed) -> Path:
    """LAMMPS's own `fix plumed`, as a LAMMPS plugin."""
    return built_fix_plumed(plumed_installation)


def built_fix_plumed(plumed: Plumed) -> Path:
    """The same for any PLUMED."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "python" / "lammps_fix_plumed.py")],
        env=os.environ | plumed.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and "Traceback" not in done.stderr:
        unavailable(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def example(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input folder, from the packaged example with a smaller crystal."""
    file = runs.prepare(tmp_path_factory.mktemp("example") / "vacancy")
    file.write_text(vacancy.INPUT)
    return file.parent


@pytest.fixture(scope="module")
def finished(example: Path) -> Path:
    """A run without interruption."""
    done = vacancy.command("run", example / "vacancy.toml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((example / "run" / "result.json").read_text())
    return example / "run"


@pytest.fixture(scope="session")
def start_plumed(plumed_installation: Plumed, plugin: Path) -> MakePlumed:
    """Return what `make_plumed` does, with the log's path as first argument.

    For fixtures that outlive a test.
    """
    import plumed

    def start(
        log: Path,
        n_atoms: int,
        lines: str = "",
        *,
        units: str = "UNITS LENGTH=A ENERGY=eV TIME=fs",
        timestep_ps: float = 0.001,
        kT: float | None = None,  # kJ/mol, as an engine in PLUMED's own units passes it
        restart: bool = False,
    ) -> Any:
        handle = plumed.Plumed(kernel=str(plumed_installation.kernel))
        handle.cmd("setMDEngine", "test")
        handle.cmd("setNatoms", n_atoms)
        handle.cmd("setTimestep", timestep_ps)
        if kT is not None:
            handle.cmd("setKbT", kT)
        if restart:
            handle.cmd("setRestart", 1)
        handle.cmd("setLogFile", str(log))
        handle.cmd("init")
        for line in [units, f"LOAD FILE={plugin}", *lines.splitlines()]:
            if line.strip():
                handle.cmd("readInputLine", line)
        return handle

    return start


@pytest.fixture
def make_plumed(start_plumed: MakePlumed, tmp_path: Path) -> MakePlumed:
    """Return a function that starts PLUMED for `n_atoms` atoms with our plugin loaded.

    `make_plumed(n_atoms, lines, timestep_ps=..., kT=...)` returns the `plumed.Plumed` object. The
    lines are read after `UNITS LENGTH=A ENERGY=eV TIME=fs` and LOAD, unless `units` says other.
    The log goes to `plumed.log` in the test's `tmp_path`.
    """

    def make(n_atoms: int, lines: str = "", *, log: str = "plumed.log", **options: Any) -> Any:
        return start_plumed(tmp_path / log, n_atoms, lines, **options)

    return make
