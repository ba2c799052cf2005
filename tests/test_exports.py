"""Rates in the formats of other codes give the same diffusion coefficients when read back."""

import csv
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms, units

from plumed_cv import workflow
from plumed_cv.common.errors import UserError
from plumed_cv.events import Network, Walk, compute_diffusivity
from tests import pages, vacancy
from tests.test_diffusion import BCC, FCC, HCP, catalogue, interstitials, row, vacancies, with_rates
from tests.test_jumps import NI3AL

KELVIN = 800.0
KT = units.kB * KELVIN


def exported(folder: Path, network: Network, defect: str, atoms: Atoms) -> dict[str, Any]:
    """Write a catalogue, rates and exports; return the row of diffusion.json."""
    catalogue(folder, network, defect, [2e-5], atoms)
    rows = []
    for k, jump in enumerate(network.jumps):
        a, b = network.sites.kinds[[jump.initial[0], jump.final[0]]]
        difference = {"delta_F_eV": 0.7 * KT * (b - a), "delta_F_error_eV": 0.02} if a != b else {}
        rows.append(row(f"e{k}", KELVIN, 3e9 / (1 + k), 1.1 + 0.1 * k, **difference))
    found = workflow.compute_diffusion(with_rates(folder, rows), export=folder / "fe-rates")
    (only,) = found["temperatures"]
    return dict(only)


@pytest.mark.parametrize(
    ("atoms", "defect"), [(HCP, "interstitial"), (FCC, "interstitial"), (HCP, "vacancy")]
)
def test_the_list_of_jumps_is_the_network(atoms: Atoms, defect: str, tmp_path: Path) -> None:
    """The populations follow from the rates alone, and with them the coefficient."""
    network = vacancies(atoms) if defect == "vacancy" else interstitials(atoms)
    found = exported(tmp_path, network, defect, atoms)
    with (tmp_path / "fe-rates" / "jumps.csv").open() as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "fe-rates" / "jumps.json").read_text())
    assert [{key: str(value) for key, value in each.items()} for each in content["jumps"]] == rows
    sites = len(content["sites"])
    ends = np.array([[int(each["initial_site"]), int(each["final_site"])] for each in rows])
    rates = np.array([float(each["rate_per_s"]) for each in rows])
    steps = np.array([[float(each[f"{x}_A"]) for x in "xyz"] for each in rows])
    matrix = np.zeros((sites, sites))
    np.add.at(matrix, (ends[:, 1], ends[:, 0]), rates)
    matrix -= np.diag(matrix.sum(axis=0))
    populations = np.linalg.svd(matrix)[2][-1]
    populations /= populations.sum()
    weights = np.exp(-np.array(content["temperatures"][0]["free_energies_kT"]))
    np.testing.assert_allclose(populations, weights / weights.sum(), rtol=1e-9)
    tensor = compute_diffusivity(
        Walk(ends[:, 0], ends[:, 1], steps, populations[ends[:, 0]] * rates, populations)
    )
    np.testing.assert_allclose(1e-20 * tensor, found["D_tensor_m2_per_s"], atol=1e-9 * 1e-10)
    # Each vector leads from a site to a site, in the expanded cell.
    cell = np.array(content["temperatures"][0]["cell_A"])
    assert cell[0] == pytest.approx((1 + 2e-5 * KELVIN) * network.cell[0])
    places = np.array([site["position"] for site in content["sites"]])
    across = places[ends[:, 0]] + steps @ np.linalg.inv(cell) - places[ends[:, 1]]
    np.testing.assert_allclose(across, np.round(across), atol=1e-9)
    for name in {each["event"] for each in rows}:
        own = [each for each in rows if each["event"] == name]
        per_site = sum(each["initial_site"] == own[0]["initial_site"] for each in own)
        assert {each["multiplicity"] for each in own} == {str(per_site)}
        assert {each["source"] for each in own} == {"transmission coefficient"}
        expected = np.log(1.1 + 0.1 * int(name[1]))
        if name.endswith("-reverse"):
            expected = np.hypot(expected, 0.02 / KT)
        assert np.log(float(own[0]["error_factor"])) == pytest.approx(expected)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads the two tags of onsager's files without onsager."""


_Loader.add_constructor(
    "!numpy.ndarray", lambda loader, node: np.array(loader.construct_sequence(node, deep=True))
)
_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)),
)


def test_rates_in_the_input_of_onsager(tmp_path: Path) -> None:
    """PrefactorT / Prefactor are the rates of the list, for every jump and its vector."""
    exported(tmp_path, interstitials(HCP), "interstitial", HCP)
    folder = tmp_path / "fe-rates"
    data = yaml.load((folder / f"onsager-{KELVIN:g}K.yaml").read_text(), _Loader)
    kinds = {site: kind for kind, sites in enumerate(data["sitelist"]) for site in sites}
    assert data["chemistry"] == ["Mg", "X interstitial"]
    assert [len(places) for places in data["basis"]] == [2, len(kinds)]
    assert not any(data["Energy"] + data["EnergyT"])
    theirs = sorted(
        (i, j, *np.round(step, 9), pytest.approx(preT / data["Prefactor"][kinds[i]]))
        for jumps, preT in zip(data["jumpnetwork"], data["PrefactorT"], strict=True)
        for (i, j), step in jumps
    )
    ours = sorted(
        (
            each["initial_site"],
            each["final_site"],
            *(round(each[f"{x}_A"], 9) for x in "xyz"),
            each["rate_per_s"],
        )
        for each in json.loads((folder / "jumps.json").read_text())["jumps"]
    )
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other


def load_onsager() -> tuple[Any, Any]:
    """Return the modules OnsagerCalc and crystal of onsager; without it, CI fails."""
    if "CI" in os.environ:
        return import_module("onsager.OnsagerCalc"), import_module("onsager.crystal")
    reason = "there is no onsager: pip install onsager"
    calculator = pytest.importorskip("onsager.OnsagerCalc", reason=reason)
    return calculator, pytest.importorskip("onsager.crystal", reason=reason)


def read_by_onsager(folder: Path, monkeypatch: pytest.MonkeyPatch, blocks: int) -> dict[str, Any]:
    """Run the first blocks of Python of docs/diffusion.md; return their variables."""
    load_onsager()
    monkeypatch.chdir(folder)
    return pages.execute_python(pages.DOCS / "diffusion.md", blocks)


@pytest.mark.parametrize("atoms", [HCP, FCC, BCC])
def test_onsager_finds_the_same_for_an_interstitial(
    atoms: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = exported(tmp_path, interstitials(atoms), "interstitial", atoms)
    found = read_by_onsager(tmp_path, monkeypatch, 1)
    expected = np.array(row["D_tensor_m2_per_s"])
    np.testing.assert_allclose(1e-20 * found["D"], expected, atol=1e-6 * expected.max())


@pytest.mark.parametrize("atoms", [BCC, HCP, NI3AL])
def test_onsager_finds_the_same_for_a_vacancy(
    atoms: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The correlation factors agree too; onsager computes them from the Green function."""
    row = exported(tmp_path, vacancies(atoms), "vacancy", atoms)
    found = read_by_onsager(tmp_path, monkeypatch, 2)
    expected = np.array(row["D_tensor_m2_per_s"])
    for name in ("D", "D_vacancy"):
        np.testing.assert_allclose(1e-20 * found[name], expected, atol=1e-6 * expected.max())
    factors = np.diag(found["D_tracer"]) / np.diag(found["D_vacancy"])
    np.testing.assert_allclose(factors, row["correlation_factors"], atol=1e-4)


def test_command(tmp_path: Path) -> None:
    exported(tmp_path, vacancies(BCC), "vacancy", BCC)
    done = vacancy.called("diffusion", tmp_path, "--export", tmp_path / "new" / "rates")
    assert "jumps.csv" in done.stdout
    names = {file.name for file in (tmp_path / "new" / "rates").iterdir()}
    assert names == {"jumps.csv", "jumps.json", "onsager-800K.yaml"}
    again = vacancy.called("diffusion", tmp_path, "--export", tmp_path / "rates.json")
    assert again.returncode == 1
    assert "name a folder" in again.stderr


def test_a_catalogue_without_the_atoms(tmp_path: Path) -> None:
    catalogue(tmp_path, vacancies(BCC), "vacancy")
    with_rates(tmp_path, [row("e0", KELVIN, 1e9, 1.1)])
    with pytest.raises(UserError, match="does not have the atoms of the crystal"):
        workflow.compute_diffusion(tmp_path, export=tmp_path / "out")
