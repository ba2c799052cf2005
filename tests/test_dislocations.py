"""The glide of a screw dislocation, as in docs/dislocations.md."""

import json
from pathlib import Path

import pytest

from plumed_cv.paths.path import load_path
from python.zero_kelvin import systems
from tests import pages
from tests.test_tutorials import changed, typed

PAGE = pages.DOCS / "dislocations.md"


def test_the_page_builds_the_structures_of_the_script(tmp_path: Path) -> None:
    pages.check_end_states(PAGE, tmp_path, systems.screw_dislocations()[:2])


@pytest.mark.slow
def test_the_energy_along_a_variable_of_few_atoms(tmp_path: Path) -> None:
    """The command of the page, with 630 atoms."""
    for name, atoms in zip(("initial", "final"), systems.screw_dislocations(7, 5), strict=False):
        atoms.write(tmp_path / f"{name}.xyz")
    (block,) = [block for block in pages.blocks(PAGE) if block.kind == "toml"]
    shorter = ("images = 29", "images = 9\nfmax_eV_A = 0.005")
    (tmp_path / "dislocation.toml").write_text(changed(block.text, shorter))
    (line,) = [
        line
        for block in pages.blocks(PAGE)
        if block.kind == "shell"
        for line in pages.lines(block)
        if line.startswith("plumed-cv energy")
    ]
    done = typed(f"{line} --structures 2000 --components 8", tmp_path)
    assert done.returncode == 0, done.stderr
    path = load_path(tmp_path / "energy" / "path.xyz")
    found = json.loads((tmp_path / "energy" / "energy.json").read_text())
    assert 0.005 < path.barrier < 0.05
    assert found["cv_atoms"] < 0.8 * len(path.species)
    assert found["cv_share_of_motion"] >= 0.98
