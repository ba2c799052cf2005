"""Builds and finds the plugin with the actions, and writes plumed.dat."""

import hashlib
import importlib.util
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import missing
from plumed_cv.common.files import fresh_dir, locked
from plumed_cv.common.progress import log
from plumed_cv.setup.kernel import Plumed, data_dir, find_plumed
from plumed_cv.setup.tools import LIBRARY_SUFFIX, cxx_compiler, find_tool, n_cores, output_of


def build_plugin(plumed: Plumed | None = None, *, torch: bool = False) -> Path:
    """Return the shared library with the actions; build it if it is not in the cache.

    One build is kept for each combination of C++ sources, PLUMED kernel, compiler and, for
    TORCH_CV, torch. Processes that ask at the same time wait for the first one.

    Parameters
    ----------
    plumed
        The PLUMED to build against; `find_plumed()` by default.
    torch
        Whether to return the library with TORCH_CV, which needs the torch of this Python
        environment, instead of the library with AUTOENCODER and BABF, which does not.

    Raises
    ------
    UserError
        If the compiler, CMake, PLUMED's headers or torch are missing, or if compiling fails. The
        message then names the log.
    """
    plumed = plumed or find_plumed()
    sources = source_dir()
    compiler = cxx_compiler()
    plugins = data_dir() / "plugins"
    plugins.mkdir(exist_ok=True)
    torch_dir = find_torch() if torch else None
    home = plugins / _plugin_key(plumed, sources, compiler, torch_dir)
    with locked(plugins / f"{home.name}.lock"):
        if not home.is_dir():
            if plumed.include_dir is None:
                raise UserError(
                    f"{plumed.kernel}: PLUMED's headers (plumed/core/Action.h) are not installed "
                    "with it; install its development files, or set PLUMED_KERNEL to a PLUMED "
                    "that has them"
                )
            log.info("The PLUMED plugin is compiled: a minute or two, once for this PLUMED.")
            _compile_plugin(home, plumed, plumed.include_dir, sources, compiler, torch_dir)
    return home / f"libplumed_cv{'_torch' if torch else ''}{LIBRARY_SUFFIX}"


def find_torch() -> Path:
    """Return the folder of this environment's torch package, which contains libtorch.

    torch is not imported: this takes seconds, and the process of an engine must not import it.

    Raises
    ------
    UserError
        If torch is not installed.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise missing("torch")
    return Path(found.origin).resolve().parent


def babf_input(
    plugin: Path,
    model: Path,
    *,
    temperature_K: float,
    ramp: int,
    state_out: Path,
    state_stride: int,
    colvar: Path,
    colvar_stride: int,
    state_in: Path | None = None,
    prior: Path | None = None,
    grid: tuple[float, float, int] = (0.0, 1.0, 100),
    kappa_eV: float | None = None,
    tau: float | None = None,
    deviation_limit_A: float | None = None,
    atom_limit_A: float | None = None,
    learn_from_fs: float | None = None,
    walkers: tuple[int, int, Path] | None = None,
) -> str:
    """Return a plumed.dat that biases a learned collective variable with bABF.

    Units are angstrom, eV and fs. The printed columns are `ae.node-0`, `ae.dev` and `ae.maxdev`
    (angstrom), `ae.gradnorm` (1/angstrom), `ae.invmass` (1/(angstrom^2 mass)), `ae.temp` (K),
    `b.bias` (eV) and `b.zeta`.

    Parameters
    ----------
    plugin
        The library of `build_plugin`.
    model
        File of the collective variable.
    temperature_K
        Temperature of the dynamics, K.
    ramp
        N of the weights min(1, s/N) of Eq. 12; 0 for uniform weights.
    state_out, state_stride
        File for the sums of the estimator, and steps between writing it.
    colvar, colvar_stride
        File for the printed columns, and steps between its lines.
    state_in
        State file from which the run starts.
    prior
        Profile file from which the run starts.
    grid
        Lower and upper end of the nodes, and the number of intervals between them.
    kappa_eV
        Spring constant of the extended variable, eV; kT/dz^2 by default.
    tau
        Weight of the prior, in samples; the default of the action if None.
    deviation_limit_A
        Stop the run when `ae.dev` exceeds this value (Eq. 21), angstrom.
    atom_limit_A
        Stop the run when `ae.maxdev` exceeds this value, angstrom.
    learn_from_fs
        The bias acts from the start but learns only from this time on, fs.
    walkers
        Number of walkers that share the estimate, number of this walker (from 0), and their folder.
    """
    lower, upper, bins = grid
    babf: dict[str, object] = {
        "ARG": "ae.node-0",
        "TEMP": temperature_K,
        "GRID_MIN": lower,
        "GRID_MAX": upper,
        "GRID_BIN": bins,
        "RAMP": ramp,
        "KAPPA": kappa_eV,
        "TAU": tau,
        "PRIOR": prior,
        "STATE_RFILE": state_in,
        "STATE_WFILE": state_out,
        "STATE_WSTRIDE": state_stride,
        "UPDATE_FROM": learn_from_fs,
    }
    if walkers is not None:
        babf |= dict(zip(("WALKERS_N", "WALKERS_ID", "WALKERS_DIR"), walkers, strict=True))
    columns = "ae.node-0,ae.dev,ae.maxdev,ae.gradnorm,ae.invmass,ae.temp,b.bias,b.zeta"
    printed = {"ARG": columns, "FILE": colvar, "STRIDE": colvar_stride, "FMT": "%.12g"}
    lines = [
        "UNITS LENGTH=A ENERGY=eV TIME=fs",
        _action("LOAD", {"FILE": plugin}),
        _action("ae: AUTOENCODER", {"MODEL": model, "MAXDEV_STRIDE": colvar_stride}),
        _action("b: BABF", babf),
        _action("PRINT", printed),
    ]
    for name, limit_A in (("dev", deviation_limit_A), ("maxdev", atom_limit_A)):
        if limit_A is not None:
            guard = {
                "ARG": f"ae.{name}",
                "BASIN_LL1": limit_A,
                "BASIN_UL1": 1e9,
                "STRIDE": colvar_stride,
                "FILE": f"guard.{name}",
            }
            lines.append(_action("COMMITTOR", guard))
    return "\n".join(lines) + "\n"


def source_dir() -> Path:
    """Return the folder of the C++ sources, in the installed package or in the repository.

    Raises
    ------
    UserError
        If it does not exist.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "cpp", package.parent / "cpp"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise UserError(f"{package / 'cpp'}: the C++ sources are missing; install plumed_cv again")


def _action(name: str, keywords: Mapping[str, object]) -> str:
    """Return one line of PLUMED input, without keywords whose value is None."""
    words = [name]
    for keyword, value in keywords.items():
        text = str(value)
        if re.search(r"[{}#\n]", text):
            raise UserError(
                f"{text}: braces, '#' and line ends are not allowed in a plumed.dat; use "
                "another name"
            )
        if value is not None:
            words.append(f"{keyword}={{{text}}}" if " " in text else f"{keyword}={text}")
    return " ".join(words)


def _plugin_key(plumed: Plumed, sources: Path, compiler: str, torch_dir: Path | None = None) -> str:
    digest = hashlib.sha256()
    for path in sorted(sources.rglob("*")):
        if path.is_file() and "tests" not in path.relative_to(sources).parts:
            digest.update(f"{path.relative_to(sources)}\0".encode())
            digest.update(path.read_bytes())
    kernel = plumed.kernel.resolve()
    status = kernel.stat()
    identity = [plumed.kernel, kernel, status.st_size, status.st_mtime_ns, plumed.version]
    identity += [plumed.include_dir, compiler, output_of([compiler, "--version"])]
    identity += [os.environ.get(name) for name in ("CXXFLAGS", "LDFLAGS")]  # CMake reads them
    if torch_dir is not None:
        identity += [torch_dir, (torch_dir / "version.py").read_text(encoding="utf-8")]
    digest.update("\0".join(map(str, identity)).encode())
    return digest.hexdigest()[:16]


def _compile_plugin(
    home: Path,
    plumed: Plumed,
    include_dir: Path,
    sources: Path,
    compiler: str,
    torch_dir: Path | None,
) -> None:
    cmake = find_tool("cmake")
    if cmake is None:
        raise UserError(
            "cmake is needed to build the plugin and was not found: pip install 'plumed_cv[plumed]'"
        )
    messages = home.with_suffix(".log")
    with fresh_dir(home.with_suffix(".partial")) as temporary:
        build = temporary / "build"
        configure = [
            *(cmake, "-S", str(sources), "-B", str(build)),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_CXX_COMPILER={compiler}",
            f"-DPLUMED_KERNEL={plumed.kernel}",
            f"-DPLUMED_INCLUDE_DIR={include_dir}",
        ]
        if torch_dir is not None:
            configure.append(f"-DPLUMED_CV_TORCH={torch_dir}")
        ninja = find_tool("ninja")
        if ninja is not None:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        elif find_tool("make") is None:
            raise UserError(
                "ninja or make is needed to build the plugin and neither was found: "
                "pip install 'plumed_cv[plumed]'"
            )
        compile_ = [cmake, "--build", str(build), "--parallel", str(n_cores())]
        with messages.open("w", encoding="utf-8") as output:
            for command in (configure, compile_):
                if _logged(command, output.fileno()) != 0:
                    raise UserError(
                        f"the plugin does not compile against {plumed.kernel}; the compiler's "
                        f"messages are in {messages}"
                    )
        made = temporary / "made"
        made.mkdir()
        for library in build.glob(f"*{LIBRARY_SUFFIX}"):
            library.replace(made / library.name)
        made.replace(home)
    messages.unlink()


def _logged(command: Sequence[str], output: int) -> int:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
    ).returncode
