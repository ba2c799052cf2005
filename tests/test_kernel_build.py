"""Building a kernel of our own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plumed_cv.setup import tools

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
    if tools.tool("mpicxx") is None:
        pytest.skip("there is no mpicxx: pip install mpich")
    # PLUMED's configure goes on without MPI.
    sentence = build_with("echo CPPFLAGS= > Makefile.conf", tmp_path, mpi=True)
    assert "mpicxx: PLUMED cannot be built with this MPI; the messages are in " in sentence
    assert Path(sentence.split()[-1]).is_file()
