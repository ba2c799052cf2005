"""Finding PLUMED, and the properties of a kernel."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest
from uv import find_uv_bin

from plumed_cv.common.errors import UserError
from plumed_cv.setup import kernel as kernel_module
from plumed_cv.setup.kernel import Plumed, describe, every_plumed, find_plumed
from tests.conftest import install_at


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

    expected = [*places.values(), optimised, wheel]
    if not shutil.which("pkg-config"):
        expected.remove(places["pkgconf"])
    assert [plumed.kernel for plumed in every_plumed()] == expected

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


def tree_at(root: Path, real: Plumed) -> Path:
    """Lay out a PLUMED that was built in its tree of sources; return its kernel."""
    assert real.root is not None
    assert real.include_dir is not None
    (root / "src" / "lib").mkdir(parents=True)
    (root / "src" / "config").symlink_to(real.root / "src" / "config")
    (root / "src" / "include").symlink_to(real.include_dir)
    kernel = root / "src" / "lib" / real.kernel.name
    kernel.symlink_to(real.kernel)
    return kernel


def put_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path, programs: dict[str, str]) -> None:
    """Write scripts, and put their folder in front of PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_plumed_in_its_tree_of_sources(
    bare: Path, plumed_installation: Plumed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after `source sourceme.sh`: PATH, and the kernel alone."""
    root = tmp_path / "plumed2"
    kernel = tree_at(root, plumed_installation)
    answers = f'case "$3" in --root) echo {root}/;; *) echo {root}//src/include;; esac\n'
    put_on_path(monkeypatch, root / "src" / "lib", {"plumed": f"#!/bin/sh\n{answers}"})
    for found in (find_plumed(install=False), describe(kernel, "PLUMED_KERNEL")):
        assert found.kernel == kernel
        assert found.root == root
        assert found.include_dir == root / "src" / "include"
        assert found.executable == root / "src" / "lib" / "plumed"
        assert found.version == plumed_installation.version


def test_a_plumed_with_a_program_suffix(
    bare: Path, plumed_installation: Plumed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert plumed_installation.root is not None
    assert plumed_installation.include_dir is not None
    library = tmp_path / "lib"
    library.mkdir()
    kernel = library / plumed_installation.kernel.name.replace("Kernel", "_mpiKernel")
    kernel.symlink_to(plumed_installation.kernel)
    (library / "plumed_mpi").symlink_to(plumed_installation.root)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "plumed_mpi").symlink_to(plumed_installation.include_dir / "plumed")
    put_on_path(monkeypatch, tmp_path / "bin", {"plumed_mpi": "#!/bin/sh\n"})
    found = describe(kernel, "PLUMED_KERNEL")
    assert found.root == library / "plumed_mpi"
    assert found.include_dir == tmp_path / "include"
    assert found.executable == tmp_path / "bin" / "plumed_mpi"
    assert found.version == plumed_installation.version


def test_a_plumed_that_cannot_run_here_is_found_by_its_script(
    bare: Path, plumed_installation: Plumed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`plumed-config` cannot print the folder of PLUMED."""
    kernel = install_at(tmp_path / "cross", plumed_installation)
    script = f'#! /usr/bin/env bash\nexport PLUMED_ROOT="${{PLUMED_ROOT-{kernel.parent}/plumed}}"\n'
    foreign = {"plumed": "\x7fELF of another machine", "plumed-config": script}
    put_on_path(monkeypatch, tmp_path / "cross" / "bin", foreign)
    found = find_plumed(install=False)
    assert (found.kernel, found.source) == (kernel, "plumed on PATH")


def test_a_plumed_on_path_that_does_not_start_is_not_replaced(
    bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_on_path(monkeypatch, tmp_path / "bin", {"plumed": "#!/bin/sh\nexit 1\n"})
    with pytest.raises(UserError, match="bin/plumed: this PLUMED is on PATH and does not start"):
        find_plumed()


def test_kernel_that_cannot_be_fetched_is_one_sentence(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(bare))
    with pytest.raises(UserError, match=r"No matching distribution.*PLUMED_KERNEL"):
        find_plumed()
    assert not [path for path in bare.iterdir() if path.is_dir()]


def hide_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pip impossible to import, as in an environment that uv has made."""
    path = [entry for entry in sys.path if not Path(entry, "pip").is_dir()]
    monkeypatch.setattr(sys, "path", path)
    monkeypatch.delitem(sys.modules, "pip", raising=False)
    assert find_spec("pip") is None


@pytest.mark.parametrize(
    ("installer", "sentence"),
    [("pip", "DO NOT MATCH THE HASHES"), ("uv", r"Hash mismatch.*; install PLUMED 2\.9")],
)
def test_a_wheel_with_another_hash_is_refused(
    bare: Path, monkeypatch: pytest.MonkeyPatch, installer: str, sentence: str
) -> None:
    name = f"{kernel_module.KERNEL_PACKAGE}-{kernel_module.KERNEL_PACKAGE_VERSION}"
    wheel = bare.parent / "wheels" / f"{name}-py3-none-any.whl"
    wheel.parent.mkdir()
    with ZipFile(wheel, "w") as archive:
        facts = "Metadata-Version: 2.1\nName: hillclimber\nVersion: 0.1.8\n"
        archive.writestr(f"{name}.dist-info/METADATA", facts)
        archive.writestr(
            f"{name}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{name}.dist-info/RECORD", "")
    if installer == "uv":
        (bare.parent / "programs" / "uv").symlink_to(find_uv_bin())
        hide_pip(monkeypatch)
        monkeypatch.setenv("UV_CACHE_DIR", str(bare.parent / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    for variable in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.setenv(variable, str(wheel.parent))
    with pytest.raises(UserError, match=sentence):
        find_plumed()
    assert not [path for path in bare.iterdir() if path.is_dir()]


def test_neither_pip_nor_uv(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_pip(monkeypatch)
    with pytest.raises(UserError, match=r"neither pip nor uv is there.*PLUMED_KERNEL"):
        find_plumed()


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
