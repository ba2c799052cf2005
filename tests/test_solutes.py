"""Pairs of a solute and a vacancy: numbers counted by hand, formulae, onsager, a catalogue."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk

from plumed_cv import workflow
from plumed_cv.common.errors import UserError
from plumed_cv.events import (
    Network,
    combine_rates,
    compute_correlation_factors,
    compute_diffusivity,
    compute_solute_diffusivity,
    find_crystal,
    find_jumps,
    find_network,
    find_pairs,
    lattice_sites,
    read_catalogue,
)
from plumed_cv.events.catalogue import Event, write_catalogue
from plumed_cv.events.diffusion import FEW_STATES
from plumed_cv.events.pairs import Pairs
from plumed_cv.structures import cell_of, read_structure
from tests import vacancy
from tests.test_diffusion import row, with_rates
from tests.test_exports import load_onsager
from tests.test_jumps import EMT_INPUT

FCC = bulk("Cu", "fcc", a=3.6)
BCC = bulk("Fe", "bcc", a=2.86)
HCP = bulk("Mg", "hcp", a=3.2, c=5.2)
DIAMOND = bulk("Si", "diamond", a=5.43)
KELVIN = 600.0
KT = units.kB * KELVIN


def pairs_in(atoms: Atoms, range_A: float | None = None) -> tuple[Network, Pairs]:
    found = find_crystal(atoms)
    network = find_network(found, lattice_sites(found, atoms.get_chemical_symbols()[0]))
    return network, find_pairs(found, network, "X", range_A)


# Each class: kinds of both pairs, exchange, jumps from the initial and from the final pair.
@pytest.mark.parametrize(
    ("atoms", "range_A", "expected"),
    [
        # The seven dissociative jumps of the five-frequency model: 2, 4 and 1.
        (FCC, None, [(1, 1, True, 1, 1), (1, 1, False, 4, 4),
                     (1, 2, False, 2, 4), (1, 3, False, 4, 2), (1, 4, False, 1, 1)]),
        (BCC, None, [(1, 1, True, 1, 1), (1, 2, False, 3, 4), (1, 3, False, 3, 2),
                     (1, 4, False, 1, 1)]),
        # With the second neighbours; 2 to 4 is from <100> to <311>/2.
        (BCC, 2.9, [(1, 1, True, 1, 1), (1, 2, False, 3, 4), (1, 3, False, 3, 2),
                    (1, 5, False, 1, 1), (2, 4, False, 4, 1)]),
        (DIAMOND, None, [(1, 1, True, 1, 1), (1, 2, False, 3, 1)]),
    ],
)  # fmt: skip
def test_jumps_near_a_solute(
    atoms: Atoms, range_A: float | None, expected: list[tuple[int, ...]]
) -> None:
    _, pairs = pairs_in(atoms, range_A)
    found = [
        (*pairs.kinds_of(jump), jump.exchanges, jump.multiplicity, jump.reverse_multiplicity)
        for jump in pairs.jumps
    ]
    assert found == expected
    assert pairs.references == (pairs.number_of_kinds,)


def test_all_jumps_from_near_pairs_are_in_a_class() -> None:
    """In hcp, each of the 12 nearest pairs has 12 jumps, one of them the exchange."""
    _, pairs = pairs_in(HCP)
    ways = [
        (tuple(state), tuple(np.round(step, 6)), jump.exchanges)
        for jump in pairs.jumps
        for initial, _, steps in jump.iterate_ways()
        for state, step in zip(initial.tolist(), steps, strict=True)
    ]
    assert len(ways) == len(set(ways))
    near = {tuple(state) for state in pairs.states[pairs.kinds <= 2].tolist()}
    assert len(near) == 2 * 12
    for state in near:
        own = [exchanges for begin, _, exchanges in ways if begin == state]
        assert (len(own), sum(own)) == (12, 1)


@pytest.mark.parametrize(
    ("w0", "w1", "w2", "w3", "w4"),
    [
        (1.0, 0.2, 100.0, 3.0, 0.1),
        (1.0, 5.0, 0.1, 2.0, 7.0),
        (2.0, 1.0, 5.0, 0.5, 3.0),
        (1.0, 1.0, 1e6, 0.1, 10.0),
    ],
)
def test_five_frequencies(w0: float, w1: float, w2: float, w3: float, w4: float) -> None:
    """The correlation factor of M. Koiwa and S. Ishioka, Philos. Mag. A 47, 927 (1983)."""
    network, pairs = pairs_in(FCC)
    x = w4 / w0
    returns = (10 * x**4 + 180.3122 * x**3 + 924.3303 * x**2 + 1338.0577 * x) / (
        2 * x**4 + 40.1478 * x**3 + 253.3 * x**2 + 595.9725 * x + 435.2839
    )
    escape = w3 * (7.0 - returns) / 2.0
    factor = (w1 + escape) / (w1 + w2 + escape)
    tensor, uncorrelated = compute_solute_diffusivity(
        network,
        combine_rates(network, [w0], [0.0]),
        pairs,
        [w2, w1, w3, w3, w3],
        [0.0, -np.log(w4 / w3), 0.0, 0.0, 0.0],
    )
    # 12 exchanges of length d from the pairs, whose population is w4/w3 that of far ones.
    expected = 12 * w2 * (w4 / w3) * 3.6**2 / 2 / 6
    np.testing.assert_allclose(uncorrelated, expected * np.eye(3), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(
        tensor, factor * expected * np.eye(3), rtol=1e-6, atol=1e-9 * factor * expected
    )


def test_few_states_are_enough_for_derivatives() -> None:
    """Also with a range that is longer than half of the smallest cell."""
    for atoms, range_A in ((FCC, 5.2), (BCC, 2.9), (HCP, None)):
        network, pairs = pairs_in(atoms, range_A)
        rng = np.random.default_rng(1)
        walk = combine_rates(network, rng.uniform(0.5, 2.0, len(network.jumps)), [0.0])
        rates = rng.uniform(0.2, 3.0, len(pairs.jumps))
        energies = np.append(0.0, rng.uniform(-0.5, 0.5, pairs.number_of_kinds))
        few, many = (
            compute_solute_diffusivity(network, walk, pairs, rates, energies, states)[0]
            for states in (FEW_STATES, (4_000, 12_000))
        )
        np.testing.assert_allclose(few, many, atol=1e-3 * many.max())


@pytest.mark.parametrize("atoms", [FCC, BCC, HCP, DIAMOND])
def test_a_solute_that_is_no_other_atom_is_a_tracer(atoms: Atoms) -> None:
    network, pairs = pairs_in(atoms)
    rates = [1.0 + 0.7 * k for k in range(len(network.jumps))]
    walk = combine_rates(network, rates, [0.0])
    lengths = np.array([jump.length_A for jump in network.jumps])
    near = [rates[int(np.abs(lengths - each.length_A).argmin())] for each in pairs.jumps]
    tensor, _ = compute_solute_diffusivity(
        network, walk, pairs, near, np.zeros(pairs.number_of_kinds + 1)
    )
    expected = compute_correlation_factors(network, walk) @ compute_diffusivity(walk)
    np.testing.assert_allclose(tensor, expected, rtol=1e-6, atol=1e-6 * expected.max())


@pytest.mark.parametrize("atoms", [FCC, BCC])
def test_onsager_finds_the_same(atoms: Atoms) -> None:
    """All rates and energies at random; onsager has the Green function of an infinite crystal."""
    calculator, crystals = load_onsager()
    network, pairs = pairs_in(atoms)
    rng = np.random.default_rng(3)
    rates = rng.uniform(0.2, 3.0, len(pairs.jumps))
    energies = np.concatenate([[0.0], rng.uniform(-1.0, 0.5, pairs.number_of_kinds)])
    (bulk_jump,) = network.jumps
    tensor, _ = compute_solute_diffusivity(
        network, combine_rates(network, [1.3], [0.0]), pairs, rates, energies
    )
    jumps = [((0, 0), step) for step in bulk_jump.steps]
    cell = crystals.Crystal(network.cell.T, [list(network.sites.positions)])
    theirs = calculator.VacancyMediated(cell, 0, [[0]], [jumps], 2)
    kinds = dict(zip(map(tuple, pairs.states.tolist()), pairs.kinds.tolist(), strict=True))

    def state(number: int) -> tuple[int, ...]:
        pair = theirs.kinetic.states[number]
        return pair.i, pair.j, *map(int, pair.R)

    def energy(of: tuple[int, ...]) -> float:
        return float(energies[kinds.get(of, 0)])

    ways = {
        (*begin, *end): rate * np.exp(-energy(tuple(begin)))
        for jump, rate in zip(pairs.jumps, rates, strict=True)
        for initial, final, _ in jump.iterate_ways()
        for begin, end in zip(initial.tolist(), final.tolist(), strict=True)
        if not jump.exchanges
    }
    stars = [theirs.thermo.states[star[0]] for star in theirs.thermo.stars]
    given = {
        **{name: np.ones(1) for name in ("preV", "preS")},
        **{name: np.zeros(1) for name in ("eneV", "eneS", "eneT0", "eneT2")},
        "preT0": np.array([1.3]),
        "preSV": np.exp([-energy((s.i, s.j, *map(int, s.R))) for s in stars]),
        "eneSV": np.zeros(len(stars)),
        "eneT1": np.zeros(len(theirs.om1_jn)),
        "preT2": np.array([rates[0] * np.exp(-energies[1])]),
    }
    preT1 = []
    for (begin, end), _ in (jumps[0] for jumps in theirs.om1_jn):
        a, b = state(begin), state(end)
        preT1.append(ways.get((*a, *b), 1.3 * np.exp(-0.5 * (energy(a) + energy(b)))))
    given["preT1"] = np.array(preT1)
    _, L_ss, _, _ = theirs.Lij(*theirs.preene2betafree(1.0, **given))
    np.testing.assert_allclose(tensor, L_ss, rtol=1e-6, atol=1e-6 * L_ss.max())


# --- from rates.json to the coefficient ---


def with_solute(folder: Path, energies_eV: Sequence[float]) -> tuple[Network, Pairs]:
    """Write a catalogue of copper with a solute, without the end states."""
    network, pairs = pairs_in(FCC)
    pairs = replace(pairs, solute="Ag", energies_eV=np.array([0.0, *energies_eV]))
    events = [Event("Cu-vacancy-1", network.jumps[0], (0, 0), 0.0)]
    events += [
        Event(f"near-{k}", jump, pairs.kinds_of(jump), 0.0) for k, jump in enumerate(pairs.jumps)
    ]
    about = {
        "defect": "vacancy",
        "species": "Cu",
        "crystal": {"formula": "Cu"},
        "directions": 3,
        "expansion": [],
    }
    write_catalogue(folder, network, events, about, pairs=pairs)
    return network, pairs


def rates_of(
    w0: float, near: Sequence[float], differences_eV: Sequence[float], error: float = 0.02
) -> list[dict[str, Any]]:
    """Rows of rates.json: jumps from the nearest pair to the others have differences."""
    rows = [row("Cu-vacancy-1", KELVIN, w0, 1.05)]
    for k, rate in enumerate(near):
        more = {"delta_F_eV": differences_eV[k - 2], "delta_F_error_eV": error} if k > 1 else {}
        rows.append(row(f"near-{k}", KELVIN, rate, 1.1, **more))
    return rows


def test_coefficient_of_a_solute(tmp_path: Path) -> None:
    """The free energies are those of the runs, up to that of the farthest pair."""
    network, pairs = with_solute(tmp_path, [-0.1, 0.0, 0.0, 0.01])
    near, differences = [3e9, 1e9, 4e8, 5e8, 6e8], [0.1, 0.09, 0.11]
    with_rates(tmp_path, rates_of(2e9, near, differences))
    found = workflow.compute_diffusion(tmp_path, formation=workflow.read_formation("0.9", 1.5))
    (only,) = found["temperatures"]
    F = (0.01 - 0.11 + np.array([0.0, 0.1, 0.09, 0.11])) / KT
    walk = combine_rates(network, [2e9], [0.0])
    tensor, uncorrelated = compute_solute_diffusivity(network, walk, pairs, near, [0.0, *F])
    concentration = np.exp(-0.9 / KT + 1.5)
    D = np.trace(tensor) / 3 * 1e-20 * concentration
    assert only["D_solute_m2_per_s"] == pytest.approx(D, rel=1e-6, abs=0)
    assert only["solute_correlation_factor"] == pytest.approx(tensor[0, 0] / uncorrelated[0, 0])
    assert only["concentration"] == pytest.approx(concentration)
    assert only["solute_to_tracer"] == pytest.approx(D / only["D_tracer_m2_per_s"], rel=1e-6)
    # The vacancy alone has nothing to do with the solute.
    assert only["D_m2_per_s"] == pytest.approx(12 * 2e9 * 3.6**2 / 2 / 6 * 1e-20, rel=1e-9, abs=0)
    assert found["solute"] == "Ag"
    assert found["notes"] == []


def test_errors_of_the_coefficient_of_a_solute(tmp_path: Path) -> None:
    """As the spread of coefficients from rates and differences that scatter by their errors."""
    network, pairs = with_solute(tmp_path, [-0.1, 0.0, 0.0, 0.0])
    near, differences = np.array([3e9, 1e9, 4e8, 5e8, 6e8]), np.array([0.1, 0.1, 0.1])
    with_rates(tmp_path, rates_of(2e9, near.tolist(), differences.tolist()))
    (only,) = workflow.compute_diffusion(tmp_path)["temperatures"]
    assert only["D_solute_m2_per_s"] is None  # no free energy of formation
    rng = np.random.default_rng(5)
    spread, ratios = [], []
    for _ in range(200):
        w0 = 2e9 * np.exp(rng.normal(scale=np.log(1.05)))
        w = near * np.exp(rng.normal(scale=np.log(1.1), size=5))
        dF = (differences + rng.normal(scale=0.02, size=3)) / KT
        F = [0.0, -dF[2], dF[0] - dF[2], dF[1] - dF[2], 0.0]
        walk = combine_rates(network, [w0], [0.0])
        tensor = compute_solute_diffusivity(network, walk, pairs, w, F, FEW_STATES)[0]
        spread.append(np.log(np.trace(tensor)))
        ratios.append(spread[-1] - np.log(w0))
    # The standard deviation of 200 numbers is known to 5 %: five of these.
    assert np.log(only["solute_error_factor"]) == pytest.approx(np.std(spread), rel=0.25)
    assert np.log(only["solute_to_tracer_error_factor"]) == pytest.approx(np.std(ratios), rel=0.25)
    shares = [rate["share_of_variance"] for rate in only["rates"]]
    assert 0.0 < sum(shares) < 1.0  # the rest comes from the free energies


def test_a_farthest_pair_with_an_energy_is_named(tmp_path: Path) -> None:
    with_solute(tmp_path, [-0.1, 0.0, 0.0, 0.05])
    with_rates(tmp_path, rates_of(2e9, [3e9, 1e9, 4e8, 5e8, 6e8], [0.1, 0.1, 0.1]))
    done = vacancy.called("diffusion", tmp_path)
    words = " ".join(done.stdout.split())
    assert "the farthest pair of the Ag atom and a vacancy has an energy of +0.050 eV" in words
    assert "of the variance of D of Ag comes from the rate of" in words
    again = vacancy.called("diffusion", tmp_path, "--export", tmp_path / "new")
    assert again.returncode == 1
    assert "export a catalogue of the vacancy alone" in again.stderr
    assert not (tmp_path / "new").exists()


def test_damaged_pairs(tmp_path: Path) -> None:
    with_solute(tmp_path, [0.0] * 4)
    file = tmp_path / "catalogue.json"
    whole = file.read_text()
    read_catalogue(tmp_path)

    def refused(content: dict[str, Any], sentence: str) -> None:
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=f"json: {sentence}; make the catalogue again"):
            read_catalogue(tmp_path)

    content = json.loads(whole)
    refused({**content, "events": []}, "has no events, or two with the same id")
    twice = [content["events"][0]] * 2
    refused({**content, "events": twice}, "has no events, or two with the same id")
    late = [*content["events"][1:], content["events"][0]]
    refused({**content, "events": late}, "has jumps near the solute before those far from it")
    for each in content["pairs"]:
        each["kind"] += 1
    refused(content, "has kinds of pairs that are not numbered from 1")
    content = json.loads(whole)
    content["events"][0]["jumps"][0][1] = 7
    refused(content, "event Cu-vacancy-1 has jumps between sites that do not exist")
    content = json.loads(whole)
    content["events"][1]["pair_jumps"][0][1] = [0, 0, 9, 9, 9]
    refused(content, "event near-0 has jumps between pairs that do not exist")
    content["pairs"][0]["states"][0] = [0, 5, 0, 0, 1]
    refused(content, "has pairs on sites that do not exist")


def test_a_solute_needs_sites_of_one_kind() -> None:
    """Graphite has two kinds of sites: with and without an atom above."""
    layers = Atoms("C4", [(0, 0, 0), (0, 1.42, 0), (0, 0, 3.35), (0, -1.42, 3.35)], pbc=True)
    layers.set_cell([[2.46, 0, 0], [-1.23, 2.1304, 0], [0, 0, 6.7]])
    with pytest.raises(UserError, match="has sites of several kinds; a solute is possible only"):
        pairs_in(layers)


# --- the command ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--solute", "Xx"], "is not the symbol of an element"),
        (["--solute", "Cu"], "is the element of the vacancy"),
        (["--solute", "Ag", "--interstitial"], "leave out --interstitial"),
        (["--solute-range", "3"], "needs --solute"),
        (["--solute", "Ag", "--solute-range", "1"], "must be at least the length of a jump"),
    ],
)
def test_mistakes(options: list[str], words: str, tmp_path: Path) -> None:
    FCC.write(tmp_path / "cu.cif")
    (tmp_path / "cu.toml").write_text(EMT_INPUT)
    files = ("jumps", tmp_path / "cu.cif", "-i", tmp_path / "cu.toml", "-o", tmp_path / "cat")
    done = vacancy.called(*files, "--species", "Cu", *options)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "cat").exists()


ALUMINIUM_INPUT = """
[system]
temperature_K = 600.0
[engine]
potential = ["pair_style adp", "pair_coeff * * AlCu.adp Al Cu"]
"""


@pytest.mark.slow
def test_catalogue_with_a_solute(tmp_path: Path) -> None:
    bulk("Al", "fcc", a=4.05).write(tmp_path / "al.cif")
    (tmp_path / "al-cu.toml").write_text(ALUMINIUM_INPUT)
    made = find_jumps(
        tmp_path / "al.cif", tmp_path / "al-cu.toml", tmp_path / "cat", species="Al", solute="Cu"
    )
    assert made["supercell"]["repeats"] == [3, 3, 3]  # wide enough for the fourth neighbours
    check_catalogue(tmp_path / "cat")


def check_catalogue(folder: Path) -> None:
    """Compare the states of all events with their kinds and energies."""
    found = read_catalogue(folder)
    assert found.pairs is not None
    names = ["Al-vacancy-1", "Cu-exchange-1", *(f"Cu-pair-{k}" for k in range(1, 5))]
    assert [event.id for event in found.events] == names
    assert [event.kinds for event in found.events] == [
        *((0, 0), (1, 1), (1, 1), (1, 2), (1, 3), (1, 4)),
    ]
    energies = found.pairs.energies_eV
    for event in found.events:
        ends = [read_structure(found.folder(event) / f"{n}.xyz") for n in ("initial", "final")]
        copper = [atoms.symbols == "Cu" for atoms in ends]
        assert [each.sum() for each in copper] == [int(event.id != "Al-vacancy-1")] * 2
        assert (copper[0] == copper[1]).all()
        inverse = np.linalg.inv(cell_of(ends[0]))
        step = ends[1].positions - ends[0].positions
        step -= np.round(step @ inverse) @ cell_of(ends[0])
        far = np.linalg.norm(step, axis=1)
        # One atom jumps: the solute in an exchange, and else an atom of the crystal.
        assert far.max() == pytest.approx(event.jump.length_A, rel=0.2)  # both ends relax
        assert np.sort(far)[-2] < 0.4
        assert ends[0].symbols[far.argmax()] == ("Cu" if "exchange" in event.id else "Al")
        begin, end = event.kinds
        assert event.energy_eV == pytest.approx(energies[end] - energies[begin], abs=2e-3)
    # The nearest pair is bound; the others do not differ by more than 3 meV (docs/diffusion.md).
    assert energies[1] < -0.03
    assert np.ptp(energies[2:]) < 0.003
