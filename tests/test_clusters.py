"""A hop of an atom on a free cluster, as in docs/clusters.md."""

import json
from pathlib import Path

import numpy as np
import pytest

from plumed_cv.cv import CollectiveVariable
from python import clusters
from tests import pages

PAGE = pages.DOCS / "clusters.md"


def test_the_page_builds_the_structures_of_the_script(tmp_path: Path) -> None:
    pages.check_end_states(PAGE, tmp_path, clusters.end_states())


def test_the_page_has_the_numbers_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    clusters.show(json.loads(clusters.DATA.read_text(encoding="utf-8")))
    pages.check_numbers(PAGE, capsys.readouterr().out, least=9)


@pytest.mark.slow
def test_a_run_of_a_free_cluster(tmp_path: Path) -> None:
    """Flux barriers within five standard errors of harmonic theory: odds of one in a million."""
    found = clusters.run(tmp_path)
    assert found["barrier_0K_eV"] == pytest.approx(0.308, abs=1e-3)
    for part in found["iterations"]:
        off = part["flux_barrier_eV"] - found["harmonic_flux_barrier_eV"]
        assert abs(off) < 5 * part["flux_barrier_error_eV"]
        # The two states are equal by symmetry.
        assert abs(part["delta_F_eV"]) < 5 * part["delta_F_error_eV"]
    ends = [atoms.positions for atoms in clusters.end_states()]
    rng = np.random.default_rng(1)
    variable = CollectiveVariable.load(tmp_path / "run" / "cv-1.safetensors")
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.linalg.det(turn)  # no reflection
    for positions in ends:
        turned = positions @ turn.T + 3.0
        np.testing.assert_allclose(
            variable.value(turned, np.zeros((3, 3))),
            variable.value(positions, np.zeros((3, 3))),
            atol=1e-9,
        )
