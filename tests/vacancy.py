"""A vacancy that hops in 53 atoms of iron, for tests that need a complete input."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from ase import Atoms
from ase.build import bulk

from plumed_cv import cli
from python.drills import runs

SYSTEM = runs.SYSTEM  # what all inputs begin with; a test adds the sections that it is about
QUICK = runs.QUICK  # a path and a CV, for those that are about what comes later


# So many that a run arrives at the other state whatever its course: of 2000 steps one in twenty
# does not, of 6000 none in forty. Were it waiting alone, one in 10^5 of 8000 would not.
STEPS = 8000
INPUT = f"""{SYSTEM}{QUICK}
[sampling]
steps = {STEPS}
segments = 8
timestep_fs = 2.0
[iteration]
maximum = 2
tolerance = 1e-9
seed = 3
"""


def end_states() -> tuple[Atoms, Atoms]:
    """The vacancy before and after the first atom has moved into it."""
    initial: Atoms = bulk("Fe", "bcc", a=2.8553, cubic=True).repeat(3)
    hole = initial.positions[0].copy()
    del initial[0]
    final = initial.copy()
    final.positions[0] = hole
    return initial, final


def write(folder: Path, text: str, name: str = "vacancy.toml") -> Path:
    """Write an input and the end states into a folder; returns the input."""
    for atoms, file in zip(end_states(), ("initial.xyz", "final.xyz"), strict=True):
        atoms.write(folder / file, format="extxyz")
    (folder / name).write_text(text)
    return folder / name


def command(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `plumed-cv` to its end."""
    line = [sys.executable, "-m", "plumed_cv.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def called(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which saves the import in tests of many mistakes."""
    words = ["plumed-cv", *map(str, arguments)]
    out, said = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(said),
    ):
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess(words, status, out.getvalue(), said.getvalue())
