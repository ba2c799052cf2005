"""Use from Python: the blocks of docs/library.md, and the representation of objects."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumed_cv import freeenergy
from plumed_cv.cv.energy import EnergyProfile
from plumed_cv.cv.localisation import Localisation
from plumed_cv.cv.pca import PrincipalComponents
from tests import vacancy

PAGE = Path(__file__).parents[1] / "docs" / "library.md"


def test_the_page_runs(
    plugin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for atoms, file in zip(vacancy.end_states(), ("initial.xyz", "final.xyz"), strict=True):
        atoms.write(tmp_path / file, format="extxyz")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 13
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["halfway"].shape == (27, 3)
    assert names["gradient"].shape == (1, 27, 3)
    assert names["xi"].shape == (len(names["components"]), 1)
    np.testing.assert_array_equal(names["nodes"]["A_error_eV"], names["A_error"])
    (barrier,) = names["iterations"]["barrier_eV"]
    assert barrier == pytest.approx(names["result"].barrier.value)
    assert names["analysis"].barrier.value > 0.0
    assert names["profile"].barrier.value == pytest.approx(barrier)
    assert (tmp_path / "own.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    for words in ("CollectiveVariable(", "Analysis(", "Rate(", "Reconstruction(", "Convergence("):
        assert words in shown
    assert max(len(line) for line in shown.splitlines()) < 260


def test_objects_are_short_at_a_prompt() -> None:
    state = freeenergy.Estimator(freeenergy.Grid(-0.2, 1.2, 140), 0.02585).state
    assert repr(state) == "State(xi from -0.2 to 1.2; 0 samples at kT = 0.0259 eV)"
    assert repr(freeenergy.Estimate(0.5661, 0.0081)) == "Estimate(0.566 ± 0.008 eV)"
    flat = EnergyProfile(np.linspace(0, 1, 5), np.array([0, 0.3, 0.6, 0.2, -0.1]))
    assert repr(flat) == "EnergyProfile(barrier 0.6000 eV, end point -0.1000 eV)"
    found = Localisation(np.array([0.9, 0.02]), 0.07, np.array([0.9, 0.1]))
    assert repr(found) == "Localisation(localised: 90 % of the motion on 1 of 2 atoms)"
    modes = PrincipalComponents(np.zeros(6), np.eye(2, 6), np.array([0.5, 0.25]), 1.0)
    assert repr(modes) == "PrincipalComponents(2 of 6 coordinates, 75.0 % of the variance)"
