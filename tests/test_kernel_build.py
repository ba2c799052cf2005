"""Building a PLUMED kernel."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plumed_cv.common.errors import UserError
from plumed_cv.setup import kernel_build, tools
from plumed_cv.setup.kernel import every_plumed

REPOSITORY = Path(__file__).parents[1]

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


def make_source(folder: Path, version: str = "2.10.0") -> None:
    """Make a folder with the files of PLUMED's sources that the build reads."""
    folder.mkdir(parents=True)
    (folder / "configure").write_text(CONFIGURE)
    (folder / "configure").chmod(0o755)
    (folder / "Makefile.in").write_text(MAKEFILE)
    (folder / "VERSION.txt").write_text(f"# Should be in the form\n# 2.X.Y\n{version}\n")
    for name in "abcdefgh":
        (folder / f"{name}.cpp").write_text(f"int {name}() {{ return 1; }}\n")


def test_a_kernel_build_goes_on_after_a_kill(tmp_path: Path) -> None:
    home = tmp_path / "home"
    source = home / "plumed-optimised-build" / "plumed2"
    make_source(source)
    command = [
        sys.executable,
        "-c",
        "from plumed_cv.setup.kernel_build import build_optimised_kernel as b; print(b().kernel)",
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


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty data folder."""
    monkeypatch.setenv("PLUMED_CV_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("archived", [False, True])
def test_a_kernel_is_built_from_a_release(home: Path, tmp_path: Path, archived: bool) -> None:
    source = tmp_path / "releases" / "plumed-2.10.0"
    make_source(source)
    if archived:
        source = Path(shutil.make_archive(str(source), "gztar", source.parent, source.name))
    found = kernel_build.build_optimised_kernel(source=source)
    assert found.kernel == home / "plumed-optimised" / "lib" / "libplumedKernel.so"
    assert found.kernel in [plumed.kernel for plumed in every_plumed()]
    with pytest.raises(UserError, match=r"remove this folder to build .*plumed-2\.10\.0"):
        kernel_build.build_optimised_kernel(source=source)


def test_sources_that_are_none_of_plumed(home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_source(tmp_path / "old", "2.8.3")
    (tmp_path / "damaged.tgz").write_bytes(b"not an archive")
    for name, words in {
        "empty": "contains no sources of PLUMED",
        "old": r"is PLUMED 2\.8, but plumed_cv needs 2\.9",
        "damaged.tgz": "is no archive of PLUMED's sources",
        "missing.tgz": "is no archive of PLUMED's sources",
    }.items():
        with pytest.raises(UserError, match=f"{name}: {words}"):
            kernel_build.build_optimised_kernel(source=tmp_path / name)
    assert not list(home.rglob("plumed2"))


def build_with(configure: str, home: Path, mpi: bool) -> str:
    """Build a kernel where PLUMED's `configure` is a script; return the last line of the error."""
    source = home / f"plumed-optimised{'-mpi' if mpi else ''}-build" / "plumed2"
    source.mkdir(parents=True)
    (source / "configure").write_text(f"#!/bin/sh\n{configure}\n")
    (source / "configure").chmod(0o755)
    done = run_python(
        f"from plumed_cv.setup.kernel_build import build_optimised_kernel as b; b(mpi={mpi})",
        PLUMED_CV_HOME=str(home),
    )
    return done.stderr.strip().splitlines()[-1]


def test_a_failing_kernel_build_names_its_log(tmp_path: Path) -> None:
    sentence = build_with("echo no working compiler >&2\nexit 1", tmp_path, mpi=False)
    assert "UserError: PLUMED cannot be built (`configure` failed)" in sentence
    assert "no working compiler" in Path(sentence.split()[-1]).read_text()


def test_a_kernel_build_with_an_mpi_that_does_not_work(tmp_path: Path) -> None:
    if tools.find_tool("mpicxx") is None:
        pytest.skip("there is no mpicxx: pip install mpich")
    # PLUMED's configure goes on without MPI.
    sentence = build_with("echo CPPFLAGS= > Makefile.conf", tmp_path, mpi=True)
    assert "mpicxx: PLUMED cannot be built with this MPI; the messages are in " in sentence
    assert Path(sentence.split()[-1]).is_file()
