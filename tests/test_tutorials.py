"""The tutorials of the documentation, each as a reader does it: every command, in a fresh folder.

The runs have few steps, because the tests check files and not numbers.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from plumed_cv.engines.lammps_potential import package_potentials
from tests import vacancy
from tests.pages import DOCS, blocks, lines

VACANCY = DOCS / "tutorial-vacancy.md"
OWN_DEFECT = DOCS / "tutorial-own-defect.md"

# Few steps, and the least that a path and a training take.
SHORT = """
[path]
images = 7
structures = 500
[cv]
components = 5
[iteration]
minimum = 1
maximum = 1
"""


def commands(page: Path) -> list[str]:
    """The lines that a reader types, in their order."""
    return [line for block in blocks(page) if block.kind == "shell" for line in lines(block)]


def inputs(page: Path) -> list[str]:
    """The TOML blocks of a page."""
    return [block.text for block in blocks(page) if block.kind == "toml"]


def typed(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Type a command into a shell."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def changed(text: str, *pairs: tuple[str, str]) -> str:
    """A text with lines of it replaced, each of which is there."""
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.mark.slow
def test_ten_minutes_with_a_vacancy(plugin: Path, tmp_path: Path) -> None:
    shown_lines = commands(VACANCY)
    assert [line.split()[1] for line in shown_lines] == ["init", "run", "run", "export", "fes"]
    for line in shown_lines:
        if line.startswith("plumed-cv fes"):  # two runs elsewhere, which are over
            states = sorted((tmp_path / "demo" / "run").glob("iteration-1/segment-*/babf.state"))
            for walker, state in zip(("walker-0", "walker-1"), states[-2:], strict=True):
                (tmp_path / walker).mkdir()
                (tmp_path / walker / "babf.state").write_bytes(state.read_bytes())
        done = typed(line, tmp_path)
        assert done.returncode == 0, (line, done.stderr)
        if line.startswith("plumed-cv init"):
            assert {"vacancy.toml", "build.py", "initial.xyz", "final.xyz"} <= {
                file.name for file in (tmp_path / "demo").iterdir()
            }
            file = tmp_path / "demo" / "vacancy.toml"
            whole = tomllib.loads(file.read_text())
            for section, keys in tomllib.loads(inputs(VACANCY)[0]).items():  # shown as it is
                assert keys.items() <= whole[section].items()
            shorter = (("150_000", "8000"), ("images = 19", "images = 7\nstructures = 500"),
                       ("maximum = 5", "minimum = 1\nmaximum = 1"))  # fmt: skip
            file.write_text(changed(file.read_text(), *shorter) + "\n[cv]\ncomponents = 5\n")
        elif line.endswith("--keys"):
            assert "sampling.friction_per_ps" in done.stdout
    for name in ("report.html", "fes.dat"):
        assert (tmp_path / "demo" / "run" / name).stat().st_size > 1000
    header = (tmp_path / "demo" / "run" / "fes.dat").read_text().split("\n", 1)[0]
    assert header.split()[3:5] == ["A_k", "A"]
    shown = next(block.text for block in blocks(VACANCY) if block.kind == "plumed")
    written = (tmp_path / "production" / "plumed.dat").read_text()
    # The run had fewer steps than the page's, and so another learned CV with margins of its own.
    numbers = [rf"(?<={key}=)[-.\d]+" for key in ("RAMP", "GRID_MIN", "GRID_MAX", "GRID_BIN")]
    numbers += [r"(?<=KAPPA=)[.\d]+", r"(?<=BASIN_LL1=)[.\d]+"]
    for own in (r"(?<=LOAD FILE=).*(?=/libplumed_cv\.so)", *numbers):
        written, shown = re.sub(own, "", written), re.sub(own, "", shown)
    assert shown == written
    assert (tmp_path / "fes.png").stat().st_size > 10_000


@pytest.mark.slow
def test_your_own_defect(plugin: Path, tmp_path: Path) -> None:
    before, after = vacancy.end_states()
    before.write(tmp_path / "before.xyz")
    after.write(tmp_path / "after.xyz")
    potential = Path((os.environ | package_potentials())["LAMMPS_POTENTIALS"]) / "Fe_mm.eam.fs"
    (tmp_path / "potential.eam.fs").write_bytes(potential.read_bytes())
    whole, _, short_run = inputs(OWN_DEFECT)
    page = OWN_DEFECT.read_text(encoding="utf-8")
    file = tmp_path / "defect.toml"
    file.write_text(whole + SHORT)
    at_zero, trial, last = commands(OWN_DEFECT)

    done = typed(at_zero, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "localised" in done.stdout
    for row in ("PCA, D = 5", "AE+PCA"):
        assert row in done.stdout
    for name in ("profiles.png", "localisation.xyz"):
        assert f"`{name}`" in page
        assert (tmp_path / "at-zero" / name).stat().st_size > 1000

    file.write_text(whole + SHORT + short_run)
    done = typed(trial, tmp_path)
    assert done.returncode == 0 or "did not reach both end states" in done.stderr, done.stderr
    pieces = sorted((tmp_path / "trial" / "iteration-1").glob("segment-*/colvar"))
    assert pieces
    fields = pieces[0].read_text().split("\n", 1)[0].split()[2:]
    deviation = np.loadtxt(pieces[-1])[:, fields.index("ae.dev")]
    assert 0.1 < deviation.mean() < 2.5  # thermal motion, in angstrom

    chosen = ["atom_deviation_limit_A = 1.5", "timestep_fs = 2.0", "margin = 0.1", "ramp = 0.2"]
    chosen += ["friction_per_ps = 1.0", "steps = 6000"]
    for key in chosen:
        assert f"sampling.{key.split()[0]}" in page
    file.write_text(whole + SHORT + "[sampling]\n" + "\n".join(chosen) + "\n")
    done = typed(last, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "At 300 K: flux barrier" in done.stdout
    assert (tmp_path / "run" / "report.html").exists()
