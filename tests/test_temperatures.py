"""Runs at several temperatures: what each takes from another, files, and results."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units

from plumed_cv import input_file, report, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable, linear
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.rates import arrhenius
from plumed_cv.structures import cell_of
from plumed_cv.workflow.beginning import move_to_cell
from tests import vacancy
from tests.truth.models import MODELS, exact

KELVIN = (300.0, 450.0, 700.0)
PLANCK_EV_S = units._hplanck * units.J


def arrhenius_rates(energy_eV: float, prefactor_per_s: float) -> list[float]:
    return [prefactor_per_s * float(np.exp(-energy_eV / (units.kB * T))) for T in KELVIN]


def test_exact_rates_give_energy_enthalpy_and_entropy_back() -> None:
    found = arrhenius.fit(KELVIN, arrhenius_rates(0.62, 3e13), [1.05, 1.1, 1.2])
    assert found is not None
    assert not found.is_curved
    kT = units.kB * found.temperature_K
    assert kT == pytest.approx(1 / np.mean([1 / (units.kB * T) for T in KELVIN]))
    result = found.as_dict()
    assert result["activation_energy_eV"] == pytest.approx(0.62)
    assert result["prefactor_per_s"] == pytest.approx(3e13)
    # G = -kT ln(h k / kT) = 0.62 - kT ln(h nu / kT), S = -dG/dT, H = G + TS.
    assert result["activation_enthalpy_eV"] == pytest.approx(0.62 - kT)
    entropy = np.log(PLANCK_EV_S * 3e13 / kT) - 1.0
    assert result["activation_entropy_kB"] == pytest.approx(entropy)
    assert result["chi2"] == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(np.exp(found.ln_rate(np.array(KELVIN))), arrhenius_rates(0.62, 3e13))


def test_errors_are_those_of_many_noisy_sets() -> None:
    """2000 sets: their spread is known to 1.6 %, so that five errors are 8 %."""
    rng = np.random.default_rng(2)
    factors = [1.05, 1.1, 1.2, 1.3]
    kelvin = [*KELVIN, 900.0]
    exact_rates = np.array([1e13 * np.exp(-0.5 / (units.kB * T)) for T in kelvin])
    found = []
    for _ in range(2000):
        noisy = exact_rates * np.exp(rng.normal(size=4) * np.log(factors))
        fit = arrhenius.fit(kelvin, noisy.tolist(), factors)
        assert fit is not None
        if not fit.is_curved:
            found.append(fit.as_dict())
    assert 0.99 < len(found) / 2000 < 1.0  # curved by chance once in 370
    for key, error in (
        ("activation_energy_eV", "activation_energy_error_eV"),
        ("activation_enthalpy_eV", "activation_enthalpy_error_eV"),
        ("activation_entropy_kB", "activation_entropy_error_kB"),
    ):
        spread = np.std([each[key] for each in found])
        assert found[0][error] == pytest.approx(spread, rel=0.08)


def test_curvature_is_fitted_only_where_it_is_significant() -> None:
    beta = 1 / (units.kB * np.array(KELVIN))
    curved = np.exp(28.0 - 0.5 * beta + 0.5 * 0.004 * (beta - beta.mean()) ** 2)
    small = arrhenius.fit(KELVIN, curved.tolist(), [1.02] * 3)
    assert small is not None
    assert small.is_curved
    assert small.as_dict()["curvature_eV2"] == pytest.approx(0.004)
    assert small.activation_energy_eV == pytest.approx(0.5)
    large = arrhenius.fit(KELVIN, curved.tolist(), [1.5] * 3)
    assert large is not None
    assert not large.is_curved
    assert large.as_dict()["curvature_eV2"] is None
    assert arrhenius.fit([300.0], [1e3], [1.1]) is None


def test_rates_that_scatter_too_much_are_named() -> None:
    kelvin = [300.0, 400.0, 500.0, 600.0, 700.0, 800.0]
    rates = [1e12 * np.exp(-0.4 / (units.kB * T)) for T in kelvin]
    scattered = [k * f for k, f in zip(rates, (1.3, 0.8, 1.25, 0.8, 1.25, 0.9), strict=True)]
    fit = arrhenius.fit(kelvin, scattered, [1.05] * 6)
    assert fit is not None
    assert "scatter" in fit.as_dict()["note"]


@pytest.mark.parametrize(
    ("given", "kelvin", "several"),
    [("300", 300.0, ()), ("[500, 300.0]", 500.0, (500.0, 300.0)), ("[300]", 300.0, (300.0,))],
)
def test_temperatures_of_an_input(
    given: str, kelvin: float, several: Sequence[float], tmp_path: Path
) -> None:
    text = vacancy.INPUT.replace("temperature_K = 300.0", f"temperature_K = {given}")
    system = input_file.load(vacancy.write(tmp_path, text)).system
    assert (system.temperature_K, system.temperatures_K) == (kelvin, several)
    assert system.at(450.0).temperature_K == 450.0
    assert system.at(450.0).temperatures_K == ()


@pytest.mark.parametrize("given", ["[]", "[300, -5]", "[300, 300.0]", "[300, 'x']", "[inf]"])
def test_temperatures_that_are_none(given: str, tmp_path: Path) -> None:
    text = vacancy.INPUT.replace("temperature_K = 300.0", f"temperature_K = {given}")
    with pytest.raises(UserError, match="system: temperature_K = "):
        input_file.load(vacancy.write(tmp_path, text))


def series(folder: Path, name: str, kelvin: Sequence[float], iterations: int = 1) -> Path:
    """An input of a model system at several temperatures, without transmission coefficients."""
    file = MODELS[name].write(folder, seed=1)
    file.write_text(
        file.read_text()
        .replace("temperature_K = 300.0", f"temperature_K = {list(kelvin)}")
        .replace("maximum = 2", f"maximum = {iterations}\nminimum = {iterations}")
        .replace("tolerance = 1e-9", "tolerance = 0.02")
    )
    return file


def test_a_temperature_that_is_added_begins_from_the_one_before(
    plugin: Path, tmp_path: Path
) -> None:
    file = series(tmp_path / "model", "LAMMPS", [400.0])
    run = tmp_path / "model" / "run"
    first = workflow.run(input_file.load(file), run)
    assert [row["temperature_K"] for row in first["rates"]] == [400.0]
    assert first["fit"] is None
    before = (run / "400K" / "result.json").read_bytes()
    file.write_text(file.read_text().replace("[400.0]", "[400.0, 600.0]"))
    done = vacancy.called("run", file)
    assert done.returncode == 0, done.stderr
    assert "600 K: Starts from the CV, the profile and the path of 400 K" in done.stderr
    assert "activation enthalpy" in done.stdout
    assert json.loads(before) == json.loads((run / "400K" / "result.json").read_text())
    handed = json.loads((run / "600K" / "beginning.json").read_text())
    assert handed["from"] == "400K"
    assert (run / "600K" / "path.xyz").read_bytes() == (run / "400K" / "path.xyz").read_bytes()
    cvs = [
        CollectiveVariable.load(run / n) for n in ("400K/cv-1.safetensors", "600K/cv-0.safetensors")
    ]
    np.testing.assert_array_equal(cvs[0].pca_components, cvs[1].pca_components)
    prior = np.loadtxt(run / "600K" / "iteration-1" / "prior.dat")
    known = (prior[:, 0] > 0.1) & (prior[:, 0] < 0.9)
    assert 0.2 < np.ptp(prior[known, 1]) < 0.5  # eV: the barrier of the model
    assert not (run / "400K" / "iteration-1" / "prior.dat").exists()
    plumed_dat = (run / "600K" / "iteration-1" / "segment-000000" / "plumed.dat").read_text()
    assert "PRIOR=" in plumed_dat

    found = json.loads((run / "rates.json").read_text())
    with (run / "rates.csv").open() as text:
        rows = list(csv.DictReader(text))
    assert [row["temperature_K"] for row in rows] == ["400.0", "600.0"]
    for row, given in zip(rows, found["rates"], strict=True):
        assert float(row["rate_per_s"]) == given["rate_per_s"]
        result = json.loads((run / given["directory"] / "result.json").read_text())
        assert given["tst_rate_per_s"] == result["tst_rate_per_s"]
        assert given["flux_barrier_eV"] == result["flux_barrier_eV"]
    assert found["fit"]["degrees_of_freedom"] == 0
    assert (run / "arrhenius.png").stat().st_size > 5000
    page = (run / "report.html").read_text()
    assert 'href="600K/report.html"' in page
    assert "activation enthalpy" in page
    assert (run / "600K" / "report.html").exists()
    report.write(run, tmp_path / "elsewhere.html")
    assert 'href="model/run/600K/report.html"' in (tmp_path / "elsewhere.html").read_text()

    file.write_text(file.read_text().replace("[400.0, 600.0]", "400.0"))
    with pytest.raises(UserError, match="several temperatures"):
        workflow.run(input_file.load(file), run)
    file.write_text(file.read_text().replace("= 400.0", "= [400.0, 600.0]"))
    with pytest.raises(UserError, match=r"one temperature.*400K"):
        workflow.run(input_file.load(file), run / "400K")


def test_inputs_only_goes_through_the_temperatures(plugin: Path, tmp_path: Path) -> None:
    file = series(tmp_path / "model", "LAMMPS", [400.0, 600.0])
    file.write_text(file.read_text().replace("steps = 10000", "steps = 4000"))
    for kelvin in ("400K", "600K"):
        done = vacancy.called("run", file, "--inputs-only")
        assert done.returncode == 3, done.stderr
        assert f"{kelvin}/iteration-1/job.sh" in done.stdout
        done = vacancy.called("sample", file)
        assert done.returncode == 0, done.stderr
        assert list((file.parent / "run" / kelvin / "iteration-1").glob("segment-*"))


def result_of(kelvin: float, bound_per_s: float | None, **more: object) -> dict[str, object]:
    """A result.json as a run leaves it, with the rate of transition state theory."""
    return {
        "temperature_K": kelvin,
        "converged": True,
        "tst_rate_per_s": bound_per_s,
        "tst_rate_error_per_s": 1e3,
        "rate_error_factor": 1.2,
        "multiplicity": 8,
        **more,
    }


def with_results(root: Path, *results: dict[str, object]) -> None:
    kelvin = [result["temperature_K"] for result in results]
    (root / "temperatures.json").write_text(json.dumps({"temperatures_K": kelvin}))
    for result in results:
        folder = root / f"{result['temperature_K']:g}K"
        folder.mkdir(exist_ok=True)
        (folder / "result.json").write_text(json.dumps(result))


def test_the_rate_with_a_transmission_coefficient_is_taken_where_it_is_known(
    tmp_path: Path,
) -> None:
    """The rates are read from result.json alone."""
    with_results(
        tmp_path,
        result_of(300.0, 1e4, rate_per_s=2e3, transmission=0.2),
        result_of(600.0, 2e4, rate_per_s=None, transmission=None),
    )
    found = workflow.write_rates(tmp_path)
    cold, hot = found["rates"]
    assert (cold["rate_per_s"], cold["error_factor"], cold["transmission"]) == (2e3, 1.2, 0.2)
    assert cold["source"] == "transmission coefficient"
    assert (hot["rate_per_s"], hot["source"]) == (2e4, "transition state theory")
    # One line is through rates of one kind.
    assert found["fit"]["source"] == "transition state theory"
    slope = units.kB * np.log(2.0) / (1 / 300 - 1 / 600)
    assert found["fit"]["activation_energy_eV"] == pytest.approx(slope)


def test_a_temperature_without_a_rate_does_not_change_the_kind_of_the_fit(tmp_path: Path) -> None:
    """Exact rates at two temperatures, with different files at the third."""
    energy, prefactor = 0.4, 1e13
    exact_rates = [prefactor * np.exp(-energy / (units.kB * T)) for T in KELVIN]
    known = [result_of(T, 3.0 * k, rate_per_s=k) for T, k in zip(KELVIN, exact_rates, strict=True)]
    unknown = result_of(KELVIN[2], None, converged=False)
    with_results(tmp_path, known[0], known[1], unknown)
    fit = workflow.write_rates(tmp_path)["fit"]
    assert fit["source"] == "transmission coefficient"
    assert fit["activation_energy_eV"] == pytest.approx(energy)
    assert fit["prefactor_per_s"] == pytest.approx(prefactor)
    assert fit["note"] is None  # what has not converged is not in the fit
    with_results(tmp_path, known[0], known[1], known[2] | {"converged": False})
    fit = workflow.write_rates(tmp_path)["fit"]
    assert fit["activation_energy_eV"] == pytest.approx(energy)
    assert fit["note"] == "The fit contains runs that have not converged: 700 K."
    assert fit["note"] in workflow.fit_in_words(fit)


@pytest.mark.slow
def test_thermal_expansion_goes_with_the_temperature(plugin: Path, tmp_path: Path) -> None:
    text = vacancy.INPUT.replace(
        "temperature_K = 300.0", "temperature_K = [300.0, 500.0]\nexpansion = [1.2e-5, 1e-9]"
    )
    file = vacancy.write(tmp_path / "", text)
    workflow.run(input_file.load(file), tmp_path / "run")
    edge = vacancy.end_states()[0].cell.lengths()[0]
    for kelvin in (300.0, 500.0):
        path = load_path(tmp_path / "run" / f"{kelvin:g}K" / "path.xyz")
        stretch = 1 + 1.2e-5 * kelvin + 1e-9 * kelvin**2
        np.testing.assert_allclose(np.diag(path.cell), edge * stretch, rtol=1e-7)
        variable = CollectiveVariable.load(tmp_path / "run" / f"{kelvin:g}K" / "cv-0.safetensors")
        np.testing.assert_allclose(variable.reference_cell, path.cell, atol=1e-6)
        chosen = variable.serials - 1
        ends = np.stack([path.images[k].positions[chosen] for k in (0, -1)])
        np.testing.assert_allclose(variable.value(ends, path.cell)[:, 0], [0, 1], atol=1e-6)
        assert variable.kind == ("linear" if kelvin == 300.0 else "autoencoder")
    assert (tmp_path / "run" / "500K" / "beginning.json").exists()
    noise = [
        json.loads((tmp_path / "run" / f"{T}K" / "components.json").read_text())["noise_A2"]
        for T in (300, 500)
    ]
    assert noise[1] / noise[0] == pytest.approx(500 / 300)
    # Pictures of the same valley, relaxed in the larger cell.
    barriers = [load_path(tmp_path / "run" / f"{T}K" / "path.xyz").barrier for T in (300, 500)]
    assert barriers[0] != barriers[1]
    assert barriers[0] == pytest.approx(barriers[1], abs=0.05)


def stretched(ends: Sequence[Atoms], stretch: float) -> EnergyPath:
    images = [atoms.copy() for atoms in ends]
    for atoms in images:
        atoms.set_cell(atoms.cell * stretch, scale_atoms=True)
    return EnergyPath(tuple(images))


def test_a_variable_in_another_cell_sees_the_same_displacements() -> None:
    potential = MODELS["curved"].potential
    ends = [potential.state(s) for s in (0.0, potential.length)]
    cell = cell_of(ends[0])
    variable = linear(ends[0].get_chemical_symbols(), cell, ends[0].positions, ends[1].positions)
    assert move_to_cell(variable, stretched(ends, 1.0)) is variable
    moved = move_to_cell(variable, stretched(ends, 1.004))
    np.testing.assert_allclose(moved.reference_cell, 1.004 * cell)
    values = moved.value(np.stack([1.004 * end.positions for end in ends]), 1.004 * cell)
    np.testing.assert_allclose(values[:, 0], [0.0, 1.0], atol=1e-12)


@pytest.mark.slow
def test_enthalpy_and_entropy_of_a_model_are_exact_within_errors(
    plugin: Path, tmp_path: Path
) -> None:
    """Four errors each: one in 5000 sets of runs fails, and errors are known to a quarter."""
    kelvin = (300.0, 400.0, 550.0)
    file = series(tmp_path / "model", "asymmetric", kelvin, iterations=2)
    found = workflow.run(input_file.load(file), tmp_path / "model" / "run")
    assert [row["temperature_K"] for row in found["rates"]] == list(kelvin)
    rates = []
    for row in found["rates"]:
        variable = CollectiveVariable.load(
            tmp_path / "model" / "run" / row["directory"] / "cv.safetensors"
        )
        model = replace(MODELS["asymmetric"], temperature_K=row["temperature_K"])
        rates.append(exact(model, variable).tst_rate[0])
    factors = [row["error_factor"] for row in found["rates"]]
    assert max(factors) < 1.2
    expected = arrhenius.fit(kelvin, rates, factors)
    assert expected is not None
    assert found["fit"]["curvature_eV2"] is None
    for key, error in (
        ("activation_energy_eV", "activation_energy_error_eV"),
        ("activation_enthalpy_eV", "activation_enthalpy_error_eV"),
        ("activation_entropy_kB", "activation_entropy_error_kB"),
    ):
        off = found["fit"][key] - expected.as_dict()[key]
        assert abs(off) < 4 * found["fit"][error]
    assert found["fit"]["activation_energy_error_eV"] < 0.01
