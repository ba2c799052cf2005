"""A vacancy in a free monolayer, as in docs/monolayers.md."""

import json
from pathlib import Path

import pytest

from plumed_cv import workflow
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.input_file import load
from python import monolayer, worked_case
from tests import pages

PAGE = pages.DOCS / "monolayers.md"


def test_the_page_builds_the_structures_of_the_script(tmp_path: Path) -> None:
    pages.check_end_states(PAGE, tmp_path, monolayer.end_states())


def test_the_page_has_the_numbers_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    worked_case.show_crystal(json.loads(monolayer.DATA.read_text(encoding="utf-8")))
    pages.check_numbers(PAGE, capsys.readouterr().out, least=7)


def test_a_layer_that_buckles_is_no_minimum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the distance of the lowest energy the flat layer with a vacancy has unstable modes."""
    monkeypatch.setattr(monolayer, "NEIGHBOURS_A", 2.668)
    text = monolayer.INPUT.format(steps=1000).replace("images = 9", "images = 5")
    worked_case.prepare(tmp_path, monolayer.end_states(), text, "layer.toml")
    with pytest.raises(UserError, match=r"has \d+ unstable modes .* is not a minimum"):
        workflow.compute_harmonic(load(tmp_path / "layer.toml"), tmp_path / "harmonic")


@pytest.mark.slow
def test_a_run_of_a_layer(tmp_path: Path) -> None:
    """Flux barriers within five standard errors of harmonic theory: odds of one in a million."""
    found = monolayer.run(tmp_path, steps=60_000)
    for part in found["iterations"]:
        off = part["flux_barrier_eV"] - found["harmonic_flux_barrier_eV"]
        assert abs(off) < 5 * part["flux_barrier_error_eV"]
    assert found["multiplicity"] == 6
    variable = CollectiveVariable.load(tmp_path / "run" / "cv-1.safetensors")
    assert variable.drift == "removed"
    assert not variable.reference_cell[2].any()
