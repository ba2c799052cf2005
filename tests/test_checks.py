"""Checks of an answer: each can pass, fail or be unknown; choice of the iteration."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from plumed_cv import cv, freeenergy, input_file
from plumed_cv.cv import equivalence, learning
from plumed_cv.cv.training import Training
from plumed_cv.paths.path import EnergyPath
from plumed_cv.workflow import (
    RunDirectory,
    Verdict,
    check_sampling,
    judge,
    related_by_symmetry,
    results,
)
from plumed_cv.workflow.results import drop_constrained
from plumed_cv.workflow.samples import count_crossings
from plumed_cv.workflow.verdict import check_variable, stopped_by
from tests import vacancy

KELVIN = 300.0  # kT is 26 meV, so an error of 13 meV is allowed
LIMITS = input_file.Iteration()
SETTINGS = input_file.Sampling(steps=100_000, deviation_limit_A=2.0)

GOOD: dict[str, Any] = {
    "flux_barrier_eV": 0.530,
    "flux_barrier_error_eV": 0.005,
    "first_half_flux_barrier_eV": 0.536,
    "first_half_flux_barrier_error_eV": 0.007,
    "second_half_flux_barrier_eV": 0.525,
    "second_half_flux_barrier_error_eV": 0.006,
    "barrier_eV": 0.565,
    "barrier_error_eV": 0.005,
    "delta_F_eV": 0.004,
    "delta_F_error_eV": 0.003,
    "A1_minus_A0_eV": -0.006,
    "A1_minus_A0_error_eV": 0.004,
    "estimators_agree": True,
    "estimators": {"histogram": {"flux_barrier_eV": 0.53, "flux_barrier_error_eV": 0.01}},
    "repetitions_agree": True,
    "repetitions": [{"flux_barrier_eV": 0.531, "flux_barrier_error_eV": 0.007}],
    "cv_temperature_K": 303.0,
    "cv_temperature_error_K": 2.0,
    "outside_fraction": 0.01,
    "crossings": 40,
    "restarts": 3,
    "dividing_surface": 0.5,
    "flanks": [0.1, 0.9],
    "depths_kT": [6.0, 20.0, 20.0, 5.0],
    "similarity": 0.011,
    "similarity_worst": 0.02,
    "similarity_at_surface": 0.008,
    "similarity_floor": None,
    "note": None,
}


def of(change: dict[str, Any], related: bool = True) -> Verdict:
    """The checks of an iteration that is good except for some numbers."""
    part = GOOD | change
    own = check_sampling(part, LIMITS, SETTINGS, KELVIN, related)
    return Verdict(1, "", [*own, check_variable(part, None, LIMITS, KELVIN)])


def test_a_good_iteration_passes_all() -> None:
    verdict = of({})
    assert [check.name for check in verdict.checks] == [
        *(
            "end states",
            "crossings",
            "flux barrier",
            "states",
            "halves",
            "estimators",
            "repetitions",
        ),
        *("symmetry of delta F", "symmetry of A(1) - A(0)"),
        *("temperature", "guard", "collective variable"),
    ]
    assert all(check.passed for check in verdict.checks)
    assert all(check.sentence.endswith(".") for check in verdict.checks)
    assert verdict.converged
    assert verdict.advice is None
    assert stopped_by(verdict, 1, LIMITS) is None  # only a guess was sampled
    assert stopped_by(verdict, 2, LIMITS) == "all checks passed"


FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no barrier": ({"barrier_eV": None}, "end states", "sampling.steps"),
    "one crossing": ({"crossings": 1}, "crossings", "sampling.steps to about 1,000,000"),
    "large error": (
        {"flux_barrier_error_eV": 0.58},
        "flux barrier",
        "sampling.steps to about 1,000,000",
    ),
    "twice the error": (
        {"flux_barrier_error_eV": 0.0259},
        "flux barrier",
        "sampling.steps to about 410,000",
    ),
    "no error": ({"flux_barrier_error_eV": None}, "flux barrier", "sampling.steps"),
    "no flux barrier": (
        {"flux_barrier_eV": None, "flux_barrier_error_eV": None},
        "flux barrier",
        "sampling.steps",
    ),
    "shallow product": (
        {"depths_kT": [6.0, 20.0, 1.3, 5.0]},
        "states",
        "deeper minimum as the final state",
    ),
    "low barrier behind the product": (
        {"depths_kT": [6.0, 20.0, 20.0, 1.3], "delta_F_eV": None},
        "states",
        "falls again behind the final state",
    ),
    "low barrier behind the reactant": (
        {"depths_kT": [1.3, 20.0, 20.0, 5.0]},
        "states",
        "falls again behind the initial state",
    ),
    "narrow product": (
        {"delta_F_eV": None, "note": "delta F is unknown: the product occupies 1.3 bins"},
        "states",
        "sampling.bins",
    ),
    "drift": ({"first_half_flux_barrier_eV": 0.553}, "halves", "sampling.steps"),
    "estimators": ({"estimators_agree": False}, "estimators", "sampling.steps"),
    "repetitions": ({"repetitions_agree": False}, "repetitions", "sampling.steps"),
    "populations": (
        {"delta_F_eV": 0.0091},
        "symmetry of delta F",
        "sampling.steps",
    ),
    "end points": ({"A1_minus_A0_eV": 0.014}, "symmetry of A(1) - A(0)", "sampling.steps"),
    "hot": ({"cv_temperature_K": 514.0}, "temperature", "friction_per_ps"),
    "a little hot": ({"cv_temperature_K": 310.0}, "temperature", "friction_per_ps"),
    "cold": ({"cv_temperature_K": 250.0}, "temperature", "timestep_fs"),
    "guard": ({"outside_fraction": 0.6}, "guard", "sampling.atom_deviation_limit_A"),
    "another CV": ({"similarity": 0.075}, "collective variable", "iteration.maximum"),
    "a right angle": ({"similarity_worst": 1.0}, "collective variable", "iteration.maximum"),
    "at the surface": (
        {"similarity_at_surface": 0.1},
        "collective variable",
        "iteration.maximum",
    ),
}


@pytest.mark.parametrize("what", FAILURES)
def test_each_check_can_fail(what: str) -> None:
    change, name, remedy = FAILURES[what]
    verdict = of(change)
    assert [check.name for check in verdict.failed] == [name]
    assert not verdict.converged
    assert remedy in str(verdict.advice)


@pytest.mark.parametrize("key", [key for key in GOOD if not key.startswith("flanks")])
def test_absent_keys_are_unknown(key: str) -> None:
    """No crash, and a check fails if its key must be known."""
    part = {name: value for name, value in GOOD.items() if name != key}
    own = check_sampling(part, LIMITS, SETTINGS, KELVIN, related=True)
    verdict = Verdict(1, "", [*own, check_variable(part, None, LIMITS, KELVIN)])
    needed = {"crossings", "flux_barrier_eV", "flux_barrier_error_eV", "barrier_eV", "similarity"}
    needed |= {"similarity_worst", "similarity_at_surface", "cv_temperature_error_K"}
    assert verdict.converged == (key not in needed)
    names = {check.name for check in check_sampling({}, LIMITS, SETTINGS, KELVIN, True)}
    assert names == {"end states", "crossings", "flux barrier"}


def test_constraints_make_rate_and_temperature_unknown() -> None:
    """Atoms 2 and 5 (from 0) have constraints; the CV has the atoms 3 and 7 (from 1)."""
    rates = {"rate_per_s": 1.0, "reverse_rate_per_s": 2.0, "surface": 0.5}
    part = GOOD | {"tst_rate_per_s": 1.0, "note": "a note", "steps": [rates]}
    changed = drop_constrained(part, [2, 5], [3, 7])
    assert changed["tst_rate_per_s"] is None
    assert changed["cv_temperature_K"] is None
    assert changed["steps"][0]["rate_per_s"] is changed["steps"][0]["reverse_rate_per_s"] is None
    assert changed["steps"][0]["surface"] == 0.5
    assert changed["note"].startswith(
        "a note; 1 of the 2 atoms of the collective variable have constraints"
    )
    assert "set constraints = none in the .mdp" in changed["note"]
    assert not any(check.name == "temperature" for check in of(changed).checks)
    assert drop_constrained(part, [0, 4], [3, 7]) == part


def test_what_is_not_asked_is_not_checked() -> None:
    unrelated = of({"delta_F_eV": 0.2, "A1_minus_A0_eV": 0.2}, related=False)
    assert unrelated.converged
    assert not any("symmetry" in check.name for check in unrelated.checks)
    assert not any(check.name == "guard" for check in of({"restarts": 0}).checks)


@pytest.mark.parametrize(
    "change",
    [
        {"cv_temperature_error_K": 26.0},
        {"cv_temperature_error_K": None},
        {"A1_minus_A0_error_eV": 0.06},
    ],
)
def test_errors_that_hide_a_violation_prevent_convergence(change: dict[str, float | None]) -> None:
    verdict = of(change)
    assert [check.passed for check in verdict.failed] == [None]
    assert not verdict.converged
    assert "Raise sampling.steps" in str(verdict.advice)


def test_steps_that_are_needed_make_the_temperature_known() -> None:
    """Twice the error that is allowed needs four times the steps."""
    assert "sampling.steps to about 400,000" in str(of({"cv_temperature_error_K": 50.0}).advice)
    assert of({"cv_temperature_error_K": 24.0}).converged


def test_remedy_of_a_cause_comes_alone() -> None:
    """The advice for a hot CV or a missing guard is neither more steps nor more iterations."""
    advice = of({"outside_fraction": 0.6, "crossings": 2, "similarity": 0.2}).advice
    assert advice is not None
    assert "guard" in advice
    assert "steps" not in advice
    assert "maximum" not in advice


def test_iterations_end_where_another_mends_nothing() -> None:
    for change in ({"similarity": 0.2}, {"flux_barrier_error_eV": 0.015}, {"crossings": 8}):
        assert stopped_by(of(change), 2, LIMITS) is None
    for change in ({"flux_barrier_error_eV": 0.1}, {"crossings": 2}, {"cv_temperature_K": 400.0}):
        said = stopped_by(of(change), 2, LIMITS)
        assert str(said).startswith("another iteration cannot correct the failed checks: ")


def test_a_state_without_a_barrier_needs_another_input() -> None:
    """A barrier of 0.04 eV is 1.5 kT: no grid has the whole basin, whatever the iteration."""
    note = "the grid begins at -0.3, only 1.2 kT above the minimum of the reactant"
    unknown = {"note": note, "flux_barrier_eV": None, "similarity_at_surface": None}
    low = of(unknown | {"barrier_eV": 0.04})
    assert "lower temperature_K" in str(low.advice)
    assert "iteration.maximum" not in str(low.advice)
    assert stopped_by(low, 2, LIMITS) is not None
    high = of(unknown | {"barrier_eV": 0.5})
    assert high.advice == "Set a larger sampling.margin in a new directory."
    assert stopped_by(high, 2, LIMITS) is None


def test_noise_floor_decides_where_the_tolerance_does_not() -> None:
    for floor, passes in ((None, False), (0.02, False), (0.03, True)):
        assert of({"similarity": 0.055, "similarity_floor": floor}).converged == passes
    noisy = of({"similarity": 0.3, "similarity_floor": 0.2, "similarity_worst": 0.6})
    assert not noisy.converged
    assert "raise sampling.steps" in str(noisy.advice)
    growing = check_variable({**GOOD, "similarity": 0.3}, {"similarity": 0.1}, LIMITS, KELVIN)
    assert "cv.functions = 4" in growing.remedy


def test_criterion_of_the_flux_barrier() -> None:
    limits = input_file.Iteration(criterion="barrier", barrier_tolerance_eV=0.01)
    far = {"similarity": 0.5, "similarity_worst": 1.0}

    def passed(before: dict[str, Any] | None) -> bool | None:
        return check_variable(GOOD | far, before, limits, KELVIN).passed

    assert passed(GOOD | {"flux_barrier_eV": 0.535})
    assert not passed(GOOD | {"flux_barrier_eV": 0.56})
    assert not passed(GOOD | {"flux_barrier_error_eV": None})
    assert not passed(None)
    assert not passed(GOOD | {"flux_barrier_eV": 0.25, "flux_barrier_error_eV": 0.20})
    assert not passed(GOOD | {"flux_barrier_error_eV": 0.011})  # the limit is the input's own
    assert passed(GOOD | {"flux_barrier_error_eV": 0.009})
    noisy = GOOD | far | {"flux_barrier_error_eV": 0.011}
    assert not check_variable(noisy, GOOD, limits, KELVIN).passed
    (error,) = [
        check
        for check in check_sampling(
            GOOD | {"flux_barrier_error_eV": 0.011}, limits, SETTINGS, KELVIN, related=False
        )
        if check.name == "flux barrier"
    ]
    assert error.passed is False  # 0.011 is more than the input's own limit


def line(direction: list[float]) -> cv.CollectiveVariable:
    """A CV of four atoms, along a hop of the first."""
    reference = np.random.default_rng(1).uniform(0, 20, size=(4, 3))
    final = reference.copy()
    final[0] += direction
    return cv.linear(["Fe"] * 4, np.diag([20.0] * 3), reference, final)


def test_the_answer_is_the_best_of_equivalent_iterations(tmp_path: Path) -> None:
    """The answer may be an earlier iteration if its CV is equivalent to the last one."""
    files = RunDirectory(tmp_path)
    for n, slope in enumerate((1.0, 0.05, 0.0, 0.02)):  # angles of 45, 3, 0 and 1 degrees
        line([1.0, slope, 0.0]).save(files.cv(n))
    parts = [GOOD | {"flux_barrier_error_eV": error} for error in (0.001, 0.002, 0.012)]
    verdict = judge(files, parts, LIMITS, SETTINGS, KELVIN)
    assert verdict.answer == 2
    assert verdict.converged
    assert "iterations 2, 3" in verdict.because
    worse = [parts[0], parts[1] | {"crossings": 3}, parts[2]]
    verdict = judge(files, worse, LIMITS, SETTINGS, KELVIN)
    assert verdict.answer == 3
    assert "only this iteration" in verdict.because
    last = [*parts[:2], parts[2] | {"flux_barrier_error_eV": 0.58}]
    assert judge(files, last, LIMITS, SETTINGS, KELVIN).answer == 2
    none = [part | {"similarity_worst": 1.0} for part in parts]
    verdict = judge(files, none, LIMITS, SETTINGS, KELVIN)
    assert verdict.answer == 3
    assert not verdict.converged


def test_a_right_angle_on_a_part_of_the_path_is_seen() -> None:
    """The mean does not show it: a network with two slopes against a straight line."""
    straight = line([1.0, 0.0, 0.0])
    x = straight.pca_components  # (1, 12), along the hop
    y = np.zeros((1, 12))
    y[0, [1, 4, 7, 10]] = np.array([3.0, -1.0, -1.0, -1.0]) / np.sqrt(12)  # across it
    length = np.linalg.norm(straight.end_displacements[1])
    width = 0.04 * length  # of the bend, which is at 0.8 of the path
    # f = x + 0.005 tanh((x - 0.8 L + 30 y) / width): the gradient turns to y where tanh rises.
    hidden = cv.Layer(
        np.array([[1e-4, 0.0], [1.0 / width, 30.0 / width]]), np.array([0.0, -0.8 * length / width])
    )
    bent = replace(
        straight,
        pca_components=np.concatenate([x, y]),
        encoder=(hidden, cv.Layer(np.array([[1e4, 0.005]]), np.zeros(1))),
        decoder=(cv.Layer(np.array([[1.0], [0.0]]), np.zeros(2)),),
        activation="tanh",
        kind="autoencoder",
    )
    found = equivalence.compare_isosurfaces(bent, straight, surfaces=[0.5], between=(0.05, 0.95))
    assert 0.02 < found.mean < 0.1  # which once was the whole limit
    assert found.worst > 0.6
    assert found.at_surface is not None
    assert found.at_surface < 0.01
    part = GOOD | {
        "similarity": found.mean,
        "similarity_floor": 1.0,
        "similarity_worst": found.worst,
        "similarity_at_surface": found.at_surface,
    }
    assert check_variable(part, None, LIMITS, KELVIN).passed is False
    elsewhere = equivalence.compare_isosurfaces(bent, straight, surfaces=[0.8], between=(0.05, 0.5))
    assert elsewhere.worst < 0.01
    assert elsewhere.at_surface == pytest.approx(found.worst)


def two_steps() -> freeenergy.Profile:
    """Wells at 0, 0.5 and 1 of the same depth; the second barrier is the higher one."""
    grid = freeenergy.Grid(-0.1, 1.1, 240)
    xi = grid.nodes
    A = np.where(xi > 0.5, 0.44, 0.40) * np.sin(2 * np.pi * xi) ** 2
    none, nothing = np.zeros_like(xi), freeenergy.Estimate(0.0, 0.0)
    kT = units.kB * KELVIN
    return freeenergy.Profile(
        *("ae.node-0", grid, kT, (0.0, 1.0), A, A, none, none, none + 1.0),
        *(nothing, nothing, nothing),
    )


def test_flanks_of_several_steps_enclose_all_barriers() -> None:
    """kT above the first and the last minimum: 0.4 sin(2 pi x)^2 = kT, by hand."""
    kT = units.kB * KELVIN
    low, high = results.find_flanks(two_steps(), [0.75, 0.25])
    assert low == pytest.approx(np.arcsin(np.sqrt(kT / 0.40)) / (2 * np.pi), abs=0.005)
    assert high == pytest.approx(1 - np.arcsin(np.sqrt(kT / 0.44)) / (2 * np.pi), abs=0.005)
    assert results.find_flanks(two_steps(), []) == (0.0, 1.0)


def test_halves_differ_twice_as_much_as_independent_data() -> None:
    """So half of their difference is what two trainings on all of the data differ by.

    The ratio of means over four pairs each has an error of 8 %: the bounds are 4 errors away.
    """
    rng = np.random.default_rng(0)
    reference = rng.uniform(0, 12, size=(20, 3))
    final = reference.copy()
    final[0] += [1.5, 0.5, 0.0]
    variable = cv.linear(["Fe"] * 20, np.diag([12.0] * 3), reference, final)
    bow = np.zeros((20, 3))
    bow[2, 2] = 0.6

    def structures() -> np.ndarray:
        s = rng.uniform(-0.1, 1.1, (300, 1, 1))
        u = s * variable.end_displacements[1] + 4 * s * (1 - s) * bow
        u += rng.normal(scale=0.3, size=u.shape)
        return np.asarray(u - u.mean(axis=1, keepdims=True))

    def learned(u: np.ndarray, seed: int) -> cv.CollectiveVariable:
        xi = variable.encode(variable.components(u))[:, 0]
        return learning.learn(u, variable, 5, Training(seed=seed), coordinate=xi)[0]

    halves, wholes = [], []
    for k in range(4):
        u, v = structures(), structures()
        wholes.append((learned(u, 4 * k), learned(v, 4 * k + 1)))
        halves.append((learned(u[::2], 4 * k + 2), learned(u[1::2], 4 * k + 3)))
    apart = [
        np.mean(
            [
                equivalence.compare_isosurfaces(one, other, along=variable).mean
                for one, other in pairs
            ]
        )
        for pairs in (halves, wholes)
    ]
    assert 1.4 < apart[0] / apart[1] < 2.9


def test_crossings_are_counted_between_the_minima() -> None:
    there, back = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.4, 0.0])
    halfway = np.array([0.0, 0.6, 0.0, 0.6])  # enough where the product is at 0.6
    assert count_crossings([there, back, there], [3]) == 3
    assert count_crossings([halfway], [1]) == 0
    assert count_crossings([halfway], [1], (0.0, 0.6)) == 3
    assert count_crossings([there, there], [2]) == 2  # the guard has set it back
    assert count_crossings([there[:2], there[2:], back[:0], back], [4]) == 2
    assert count_crossings([], [0]) == 0
    assert count_crossings([there, there], [1, 1]) == 2  # another walker


def path_of(initial: Atoms, final: Atoms, energies: list[float]) -> EnergyPath:
    """A straight path with given energies."""
    images = []
    for share, energy in zip(np.linspace(0, 1, len(energies)), energies, strict=True):
        image = initial.copy()
        image.positions += share * (final.positions - initial.positions)
        forces = np.zeros((len(image), 3))
        image.calc = SinglePointCalculator(image, energy=energy, forces=forces)
        images.append(image)
    return EnergyPath(tuple(images))


def test_equal_energies_alone_are_no_symmetry(tmp_path: Path) -> None:
    """The hop of a vacancy equals its reverse by symmetry; a third of the hop does not."""
    initial, final = vacancy.end_states()
    third = initial.copy()
    third.positions += 0.37 * (final.positions - initial.positions)
    cases = (
        (final, [0.0, 0.4, 0.6, 0.4, 0.0], True),
        (final, [0.0, 0.4, 0.6, 0.4, 0.1], False),
        (third, [0.0, 0.4, 0.6, 0.4, 0.0], False),
    )
    for k, (end, energies, related) in enumerate(cases):
        files = RunDirectory(tmp_path / str(k))
        files.root.mkdir()
        assert not related_by_symmetry(files)  # of a molecule: there is no path
        ends = (initial.positions, end.positions)
        symbols = initial.get_chemical_symbols()
        cv.linear(symbols, initial.cell.array, *ends).save(files.cv(0))
        path_of(initial, end, energies).save(files.path)
        assert related_by_symmetry(files) == related
