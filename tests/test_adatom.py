"""The adatom on Cu(100): hops in plain dynamics, and the rate of a run."""

import json
from pathlib import Path

import numpy as np
import pytest

from python.references import adatom
from python.references.hops import Found, find_hops, lasting

PAGE = adatom.DATA.parent / "surfaces.md"


def test_crossings_are_changes_of_the_place() -> None:
    places = np.array([0, 0, 1, 1, 1, 0, 4])
    assert adatom.find_crossings(places) == [(2, 0, 0, 1), (5, 0, 1, 0), (6, 0, 0, 4)]


def test_the_dynamics_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks and then a third give the same as three; the first is not counted."""
    monkeypatch.setattr(adatom, "BLOCK_STEPS", 500)
    for folder, lengths in (("once", (0.003,)), ("twice", (0.002, 0.003))):
        for ns in lengths:
            adatom.simulate(tmp_path / folder, 1, ns)
    found = []
    for folder in ("once", "twice"):
        with np.load(tmp_path / folder / "seed-1.npz") as saved:
            found.append(dict(saved))
    assert int(found[0]["blocks"]) == 4
    assert len(found[0]["places"]) == 300
    for key, value in found[0].items():
        np.testing.assert_array_equal(found[1][key], value)


def test_the_page_has_the_tables_of_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    adatom.show(json.loads(adatom.DATA.read_text(encoding="utf-8")))
    page = PAGE.read_text(encoding="utf-8")
    for line in capsys.readouterr().out.strip().splitlines():
        assert line in page


@pytest.mark.committed
def test_the_rate_is_that_of_the_hops() -> None:
    """Within three errors: odds of 1 in 370."""
    data = json.loads(adatom.DATA.read_text(encoding="utf-8"))
    frames, crossings = 0, []
    for part in data["dynamics"].values():
        crossings += [(frames + k, frames, a, b) for k, _, a, b in part["crossings"]]
        frames += part["frames"]
    every = Found(frames, 0.0, 0.0, crossings)
    counted = lasting(adatom.CASE, every, find_hops(adatom.CASE, every))
    run = data["run"]
    error = np.log(run["rate_error_factor"])
    off = np.log(run["rate_per_s"] / counted.per_s)
    assert abs(off) < 3.0 * np.hypot(error, counted.error_per_s / counted.per_s)
