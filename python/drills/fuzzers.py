"""Runs libFuzzer on the C++ readers of files: cpp/tests/fuzz, built by clang.

A fuzzer damages files, keeps what reaches code that none before has reached, and goes on from
there. The checksums would stop all damage at the door, so the fuzzers, not the readers, make most
of them right again. The drill `fuzz` runs them for long.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

from plumed_cv.common.errors import UserError
from plumed_cv.cv import random_model
from plumed_cv.setup.tools import find_tool

CPP = Path(__file__).resolve().parents[2] / "cpp"
READERS = ("model", "state", "profile", "walkers")
LARGEST = 4096  # bytes of a file: more than all that the fuzzers begin with


def find_clang() -> str:
    """Return the path of a clang++ that has libFuzzer.

    Raises
    ------
    UserError
        If there is none.
    """
    for name in ("clang++", *(f"clang++-{version}" for version in range(25, 13, -1))):
        compiler = shutil.which(name)
        if compiler is None:
            continue
        code = 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }\n'
        command = [compiler, "-x", "c++", "-", "-o", "/dev/null", "-fsanitize=fuzzer,address"]
        done = subprocess.run(command, input=code, text=True, capture_output=True, check=False)
        if done.returncode == 0:
            return compiler
    raise UserError(
        "libFuzzer needs clang with its runtime; install Debian's clang and libclang-rt-dev"
    )


def build(folder: Path) -> None:
    """Build the fuzzers in a folder, and write the undamaged files with which they begin.

    Raises
    ------
    UserError
        If there is no clang with libFuzzer.
    """
    cmake, where = find_tool("cmake") or "cmake", folder / "build"
    compiler = f"-DCMAKE_CXX_COMPILER={find_clang()}"
    subprocess.run([cmake, "-S", CPP, "-B", where, "-DPLUMED_CV_FUZZ=ON", compiler], check=True)
    subprocess.run([cmake, "--build", where], check=True)
    subprocess.run([where / "seeds", folder / "seeds"], check=True)
    (folder / "seeds" / "model").mkdir(exist_ok=True)
    cell = np.array([[9.0, 0.0, 0.0], [1.0, 10.0, 0.0], [-1.0, 2.0, 11.0]])
    for n, (activation, n_latent, alignment) in enumerate(
        [
            *(("relu", 1, "none"), ("tanh", 2, "none"), ("silu", 1, "optimal")),
            *(("elu", 1, "none"), ("softplus", 2, "optimal"), ("sigmoid", 1, "none")),
        ]
    ):
        model = random_model(
            *(np.random.default_rng(n), 4, 2, (3,), n_latent, activation),
            cell=None if alignment == "optimal" else cell,
            alignment=alignment,
        )
        model.save(folder / "seeds" / "model" / activation)


def run(folder: Path, reader: str, *, cases: int = -1, seconds: int = 0) -> dict[str, int]:
    """Run a fuzzer that `build` has made in this folder.

    Parameters
    ----------
    folder
        The folder, which keeps what the fuzzer has found: a later run begins with it.
    reader
        One of READERS.
    cases
        How many files at most; as many as the time allows by default.
    seconds
        How long at most; 0 for no limit.

    Returns
    -------
    dict
        `cases`, how often a file was `read` and `refused` (states and profiles twice for each case,
        as of one CV and of two), `places` in the code that were reached, and `kept` files, which
        reached something new.

    Raises
    ------
    RuntimeError
        If a reader fails, with the end of what the fuzzer says; the file is in the folder.
    """
    corpus = folder / "corpus" / reader
    corpus.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")  # where walkers' files are quick
    environment = {"TMPDIR": str(memory)} if memory.is_dir() else {}
    done = subprocess.run(
        [
            *(folder / "build" / f"fuzz_{reader}", corpus, folder / "seeds" / reader, "-seed=1"),
            *(f"-runs={cases}", f"-max_total_time={seconds}", f"-max_len={LARGEST}"),
            *("-rss_limit_mb=4096", "-timeout=20", f"-artifact_prefix={folder}/{reader}-"),
        ],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"fuzz_{reader} found a case:\n{done.stderr[-5000:]}")
    found = {
        "cases": int(re.findall(r"^Done (\d+) runs", done.stderr, re.M)[-1]),
        "places": int(re.findall(r" cov: (\d+) ", done.stderr)[-1]),
        "kept": int(re.findall(r" corp: (\d+)/", done.stderr)[-1]),
    }
    read, refused = re.findall(r"^read (\d+), refused (\d+)", done.stderr, re.M)[-1]
    return found | {"read": int(read), "refused": int(refused)}
