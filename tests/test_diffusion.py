"""Diffusion coefficients against formulae, exact correlation factors and simulated walks."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk

from plumed_cv import workflow
from plumed_cv.common.errors import UserError
from plumed_cv.events import (
    Jump,
    Network,
    Sites,
    Walk,
    combine_rates,
    compute_correlation_factors,
    compute_diffusivity,
    find_crystal,
    find_largest_holes,
    find_network,
    lattice_sites,
)
from plumed_cv.events.catalogue import Event, write_catalogue
from plumed_cv.events.diffusion import _of_tracer
from plumed_cv.events.jumps import atoms_of
from plumed_cv.structures.frame import Array
from tests import vacancy
from tests.test_jumps import NI3AL

FCC = bulk("Cu", "fcc", a=3.6)
BCC = bulk("Fe", "bcc", a=2.86)
HCP = bulk("Mg", "hcp", a=3.2, c=5.2)


def vacancies(atoms: Atoms) -> Network:
    found = find_crystal(atoms)
    return find_network(found, lattice_sites(found, atoms.get_chemical_symbols()[0]))


def interstitials(atoms: Atoms) -> Network:
    found = find_crystal(atoms)
    return find_network(found, find_largest_holes(found))


# Exact factors: Ishioka and Koiwa, Philos. Mag. A 37, 517 (1978).
@pytest.mark.parametrize(
    ("atoms", "neighbours", "length_A", "factor"),
    [
        (FCC, 12, 3.6 / 2**0.5, 0.781451),
        (BCC, 8, 2.86 * 0.75**0.5, 0.727194),
        (bulk("Po", "sc", a=3.3), 6, 3.3, 0.653109),
        (bulk("Si", "diamond", a=5.4), 4, 5.4 * 0.1875**0.5, 0.5),
    ],
)
def test_cubic_lattices(atoms: Atoms, neighbours: int, length_A: float, factor: float) -> None:
    """D = z d^2 k / 6, and the correlation factor of a tracer."""
    network = vacancies(atoms)
    found = combine_rates(network, [3.0], [0.0])
    expected = neighbours * length_A**2 * 3.0 / 6.0
    np.testing.assert_allclose(
        compute_diffusivity(found), expected * np.eye(3), atol=1e-9 * expected
    )
    np.testing.assert_allclose(
        compute_correlation_factors(network, found), factor * np.eye(3), atol=3e-6
    )


def simple_cubic(edge: int) -> Network:
    """A simple cubic lattice whose cell has edge^3 sites."""
    points = np.indices((edge,) * 3).reshape(3, -1).T
    steps = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
    initial = np.repeat(np.arange(len(points)), len(steps))
    ends = (points[:, None] + steps) % edge
    final = np.ravel_multi_index(tuple(ends.reshape(-1, 3).T), (edge,) * 3)
    jump = Jump(initial, final, np.tile(3.0 * steps, (len(points), 1)), True)
    sites = Sites(points / edge, np.zeros(len(points), dtype=int))
    return Network(3.0 * edge * np.eye(3), sites, (jump,))


@pytest.mark.parametrize("edge", [1, 3])
def test_a_cell_of_many_sites_has_the_factor_of_the_primitive_one(edge: int) -> None:
    """Two periodic cells of at least 27 sites differ; 1728 atoms are exact to 3e-5."""
    network = simple_cubic(edge)
    factors = compute_correlation_factors(network, combine_rates(network, [1.0], [0.0]))
    np.testing.assert_allclose(factors, 0.653109 * np.eye(3), atol=5e-5)


def test_hcp_with_equal_rates() -> None:
    """Close-packed, from the same paper: in the basal plane and along c."""
    network = vacancies(bulk("Mg", "hcp", a=3.2, c=3.2 * (8 / 3) ** 0.5))
    factors = compute_correlation_factors(
        network, combine_rates(network, [1.0] * len(network.jumps), [0.0])
    )
    np.testing.assert_allclose(np.diag(factors), [0.781205, 0.781205, 0.781451], atol=3e-6)


def test_sublattice_of_an_ordered_alloy() -> None:
    """Ni in L1_2 Ni3Al: Koiwa and Ishioka (1983), doi:10.1080/01418618308234882."""
    found = find_crystal(NI3AL)
    network = find_network(found, lattice_sites(found, "Ni"))
    factors = compute_correlation_factors(network, combine_rates(network, [1.0], [0.0]))
    np.testing.assert_allclose(factors, 0.688916 * np.eye(3), atol=2e-5)


def test_hcp_with_two_rates() -> None:
    """Half the sum of k x^2 over the neighbours, by hand."""
    network = vacancies(HCP)
    a, c, out, within = 3.2, 5.2, 2.0, 5.0
    tensor = compute_diffusivity(combine_rates(network, [out, within], [0.0]))
    # Out of plane: 6 jumps of (a/sqrt(3), c/2); in the plane: 6 of a.
    across = 0.5 * 6 * out * (c / 2) ** 2
    along = 0.5 * 6 * (0.5 * out * a**2 / 3 + 0.5 * within * a**2)
    np.testing.assert_allclose(tensor, np.diag([along, along, across]), rtol=1e-9, atol=1e-9)


def test_octahedral_and_tetrahedral_sites() -> None:
    """D = 8 p_o k d^2 / 3 for jumps between an octahedral and two tetrahedral sites a cell."""
    network = interstitials(FCC)
    k, energy = 2.5, 1.7
    found = combine_rates(network, [k], [0.0, energy])
    octahedral = 1.0 / (1.0 + 2.0 * np.exp(-energy))
    np.testing.assert_allclose(found.populations[0], octahedral)
    expected = 8.0 * octahedral * k * 0.1875 * 3.6**2 / 3.0
    np.testing.assert_allclose(compute_diffusivity(found), expected * np.eye(3), atol=1e-9)


def test_dead_ends_and_bottlenecks() -> None:
    """Pairs of sites in hcp: an infinitely fast jump within a pair adds nothing to D along c.

    The tetrahedral pair along c is then one site, whose position does not matter.
    """
    network = interstitials(HCP)
    assert [jump.length_A for jump in network.jumps] == pytest.approx([1.3, 1.96], abs=0.02)
    slow, fast, faster = (
        compute_diffusivity(combine_rates(network, [rate, 1.0], [0.0, 0.5]))
        for rate in (0.0, 1e4, 1e8)
    )
    np.testing.assert_allclose(fast, faster, rtol=1e-3, atol=1e-9)
    assert slow[2, 2] < faster[2, 2]
    moved = Sites(network.sites.positions.copy(), network.sites.kinds)
    moved.positions[network.sites.kinds == 0] += [0.1, -0.2, 0.05]  # of all octahedral sites
    jumps = tuple(
        type(jump)(
            jump.initial,
            jump.final,
            jump.steps
            + ((moved.positions - network.sites.positions) @ network.cell)[jump.final]
            - ((moved.positions - network.sites.positions) @ network.cell)[jump.initial],
            jump.reverse_is_own,
        )
        for jump in network.jumps
    )
    shifted = compute_diffusivity(
        combine_rates(Network(network.cell, moved, jumps), [3.0, 1.0], [0.0, 0.5])
    )
    given = compute_diffusivity(combine_rates(network, [3.0, 1.0], [0.0, 0.5]))
    np.testing.assert_allclose(shifted, given, atol=1e-9)  # D does not depend on the positions


def simulated(found: Walk, walkers: int, times: Sequence[float], seed: int) -> Array:
    """Displacements of independent walkers from equilibrium at some times, (times, walkers, 3)."""
    rng = np.random.default_rng(seed)
    sites = len(found.populations)
    lists = [np.flatnonzero(found.initial == site) for site in range(sites)]
    rates = [found.flux[each] / found.populations[site] for site, each in enumerate(lists)]
    totals = np.array([each.sum() for each in rates])
    at = rng.choice(sites, size=walkers, p=found.populations)
    x, clock = np.zeros((walkers, 3)), np.zeros(walkers)
    kept = np.zeros((len(times), walkers, 3))
    while (clock < times[-1]).any():
        before = clock.copy()
        clock += rng.exponential(1.0 / totals[at])
        for k, time in enumerate(times):
            kept[k][(before <= time) & (clock > time)] = x[(before <= time) & (clock > time)]
        begin = at.copy()
        for site in range(sites):
            here = np.flatnonzero(begin == site)
            chosen = rng.choice(lists[site], size=len(here), p=rates[site] / totals[site])
            x[here] += found.steps[chosen]
            at[here] = found.final[chosen]
    return kept


@pytest.mark.parametrize(
    ("network", "rates", "energies"),
    [
        (interstitials(HCP), [3.0, 1.0], [0.0, 0.5]),
        (interstitials(FCC), [1.0], [0.0, -1.0]),
        (vacancies(HCP), [1.0, 2.0], [0.0]),
    ],
)
def test_kinetic_monte_carlo(network: Network, rates: list[float], energies: list[float]) -> None:
    """Mean square displacements between two times. Four errors of three axes: one in 5000."""
    found = combine_rates(network, rates, energies)
    times = np.array([4.0, 16.0])
    x = simulated(found, 40_000, times.tolist(), seed=1)
    groups = x.reshape(2, 40, 1000, 3)
    squares = (groups**2).mean(axis=2)
    slopes = (squares[1] - squares[0]) / (2.0 * (times[1] - times[0]))
    mean, error = slopes.mean(axis=0), slopes.std(axis=0, ddof=1) / 40**0.5
    expected = np.diag(compute_diffusivity(found))
    assert (error < 0.02 * expected).all()
    assert (np.abs(mean - expected) < 4.0 * error).all()


def test_a_tracer_in_kinetic_monte_carlo() -> None:
    """One vacancy among 54 sites of hcp, two rates: four errors of three axes, one in 5000."""
    network = vacancies(HCP)
    found = combine_rates(network, [1.0, 4.0], [0.0])
    size, sites = 3, 2
    places = network.sites.positions
    hops = np.round(
        found.steps @ np.linalg.inv(network.cell) - (places[found.final] - places[found.initial])
    ).astype(int)
    rng = np.random.default_rng(5)
    lists = [np.flatnonzero(found.initial == site) for site in range(sites)]
    shares = [found.flux[each] / found.flux[each].sum() for each in lists]
    jumps = 400_000
    drawn = [rng.choice(lists[site], size=jumps, p=shares[site]) for site in range(sites)]
    total = found.flux[lists[0]].sum() / found.populations[0]
    atom_at = np.arange(sites * size**3).reshape(sites, size, size, size)
    x = np.zeros((atom_at.size, 3))
    here: tuple[int, ...] = (0, 0, 0, 0)
    hole = atom_at[here]
    records = [x.copy()]
    for k in range(jumps):
        arrow = drawn[here[0]][k]
        there = (int(found.final[arrow]), *((np.array(here[1:]) + hops[arrow]) % size).tolist())
        atom = atom_at[there]
        x[atom] -= found.steps[arrow]
        atom_at[here], atom_at[there] = atom, hole
        here = there
        if (k + 1) % 2000 == 0:
            records.append(x.copy())
    walked = np.delete(np.diff(records, axis=0), hole, axis=1)  # windows, atoms, axes
    squares = (walked**2).mean(axis=1) / (2.0 * 2000 / total)
    groups = squares.reshape(20, -1, 3).mean(axis=1)
    mean, error = groups.mean(axis=0), groups.std(axis=0, ddof=1) / 20**0.5
    # Within a window of 40 jumps an atom has not forgotten its first: this adds a few per cent.
    expected = np.diag(_of_tracer(network, found, size)) / (sites * size**3 - 1)
    assert (error < 0.05 * expected).all()
    assert (np.abs(mean - expected) < 4.0 * error + 0.03 * expected).all()


def test_layers_have_no_factor() -> None:
    layers = Atoms("C2", [(0, 0, 0), (0, 1.42, 0)], pbc=True)
    layers.set_cell([[2.46, 0, 0], [-1.23, 2.1304, 0], [0, 0, 6.7]])
    found = find_crystal(layers)
    network = find_network(found, lattice_sites(found, "C"), cutoff_A=1.5)
    with pytest.raises(UserError, match="does not move along all three directions"):
        compute_correlation_factors(network, combine_rates(network, [1.0], [0.0]))


# --- from rates.json ---


def catalogue(
    folder: Path,
    network: Network,
    defect: str,
    expansion: Sequence[float] = (),
    atoms: Atoms | None = None,
) -> Path:
    """Write a catalogue without the end states, which are not needed here."""
    kinds = network.sites.kinds
    events = [
        Event(f"e{k}", jump, (int(kinds[jump.initial[0]]), int(kinds[jump.final[0]])), 0.0)
        for k, jump in enumerate(network.jumps)
    ]
    crystal: dict[str, Any] = {"formula": "X"}
    if atoms is not None:
        crystal["atoms"] = atoms_of(find_crystal(atoms))
    about = {
        "defect": defect,
        "species": "X" if atoms is None or defect != "vacancy" else str(atoms.symbols[0]),
        "crystal": crystal,
        "directions": network.directions,
        "expansion": list(expansion),
    }
    write_catalogue(folder, network, events, about)
    return folder


def row(event: str, kelvin: float, rate: float, factor: float, **more: Any) -> dict[str, Any]:
    return {
        "event": event,
        "temperature_K": kelvin,
        "rate_per_s": rate,
        "error_factor": factor,
        "source": "transmission coefficient",
        "tst_rate_per_s": 2.0 * rate,
        "tst_error_factor": factor,
        "delta_F_eV": None,
        "delta_F_error_eV": None,
        "converged": True,
        **more,
    }


def with_rates(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "rates.json").write_text(json.dumps({"rates": rows, "failures": []}))
    return folder


def test_self_diffusion_in_fcc(tmp_path: Path) -> None:
    """D = f c a^2 k with a formation energy and entropy, in an expanded crystal."""
    catalogue(tmp_path, vacancies(FCC), "vacancy", expansion=[1e-5])
    kelvin = (600.0, 800.0, 1000.0)
    rates = [1e13 * np.exp(-0.7 / (units.kB * T)) for T in kelvin]
    with_rates(tmp_path, [row("e0", T, k, 1.1) for T, k in zip(kelvin, rates, strict=True)])
    formation = workflow.read_formation("1.2", 2.0)
    found = workflow.compute_diffusion(tmp_path, formation=formation)
    for T, k, each in zip(kelvin, rates, found["temperatures"], strict=True):
        own = 12 / 6 * (3.6e-10 * (1 + 1e-5 * T)) ** 2 / 2 * k
        c = np.exp(2.0 - 1.2 / (units.kB * T))
        assert each["D_m2_per_s"] == pytest.approx(own, rel=1e-9)
        assert each["error_factor"] == pytest.approx(1.1, rel=1e-6)
        assert each["concentration"] == pytest.approx(c)
        assert each["D_tracer_m2_per_s"] == pytest.approx(0.781451 * c * own, rel=1e-5)
        assert each["tracer_error_factor"] == pytest.approx(1.1, rel=1e-6)
    assert found["fit"]["activation_energy_eV"] == pytest.approx(0.7, abs=0.01)
    assert found["tracer_fit"]["activation_energy_eV"] == pytest.approx(1.9, abs=0.01)
    with (tmp_path / "diffusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(each["temperature_K"]) for each in rows] == list(kelvin)
    assert float(rows[0]["D_xx_m2_per_s"]) == pytest.approx(float(rows[0]["D_m2_per_s"]))
    assert (tmp_path / "diffusion.png").stat().st_size > 5000


@pytest.mark.parametrize("defect", ["vacancy", "interstitial"])
def test_errors_are_those_of_many_sets(defect: str, tmp_path: Path) -> None:
    """500 sets of rates with noise: their spread is known to 3 %, so that five errors are 16 %."""
    network = vacancies(HCP) if defect == "vacancy" else interstitials(HCP)
    energies = [0.0] if defect == "vacancy" else [0.0, 0.6]
    kT = units.kB * 900.0
    factors, error = [1.1, 1.06], 0.05 * kT
    catalogue(tmp_path, network, defect)
    rows = [row(f"e{k}", 900.0, 2e9 / (k + 1), factors[k]) for k in range(2)]
    if defect == "interstitial":
        rows[1] |= {"delta_F_eV": 0.6 * kT, "delta_F_error_eV": error}
    with_rates(tmp_path, rows)
    (found,) = workflow.compute_diffusion(tmp_path)["temperatures"]
    rng = np.random.default_rng(3)
    values = []
    for _ in range(500):
        rates = [2e9 / (k + 1) * np.exp(rng.normal() * np.log(factors[k])) for k in range(2)]
        noisy = [0.0, *(e + rng.normal() * error / kT for e in energies[1:])]
        values.append(np.log(np.trace(compute_diffusivity(combine_rates(network, rates, noisy)))))
    assert np.log(found["error_factor"]) == pytest.approx(np.std(values), rel=0.16)


def test_each_event_has_the_best_rate(tmp_path: Path) -> None:
    """Rates have the transmission coefficient if known; harmonic rates are not mixed in."""
    catalogue(tmp_path, vacancies(HCP), "vacancy")
    harmonic = {"source": "harmonic", "tst_rate_per_s": None, "tst_error_factor": None}
    bound = {"source": "transition state theory", "tst_rate_per_s": 5.0, "tst_error_factor": 1.2}
    bound["rate_note"] = "the transmission coefficient is 0.000 ± 0.000 after 80 shots"
    rows = [
        *(row("e0", 600.0, 1.0, 1.1), row("e1", 600.0, 5.0, 1.2, **bound)),
        *(row("e0", 700.0, 1.0, 1.1), row("e1", 700.0, 3.0, 1.0, **harmonic)),
        *(row("e0", 700.0, 4.0, 1.0, **harmonic), row("e1", 800.0, 3.0, 1.1)),
        row("e0", 900.0, 3.0, 1.1, rate_note="7 % of the trajectories did not reach a basin"),
        row("e1", 900.0, 3.0, 1.1, converged=False),
    ]
    found = workflow.compute_diffusion(with_rates(tmp_path, rows))
    kinds = {each["temperature_K"]: each["source"] for each in found["temperatures"]}
    assert kinds == {
        600.0: "transmission coefficient and transition state theory",
        700.0: "harmonic",
        900.0: "transmission coefficient",
    }
    network = vacancies(HCP)
    for each, rates in zip(
        found["temperatures"], ([1.0, 5.0], [4.0, 3.0], [3.0, 3.0]), strict=True
    ):
        assert [each_rate["rate_per_s"] for each_rate in each["rates"]] == rates
        expected = np.trace(compute_diffusivity(combine_rates(network, rates, [0.0]))) / 3 * 1e-20
        assert each["D_m2_per_s"] == pytest.approx(expected)
    assert found["fit"] is None
    first = found["temperatures"][0]["rates"]
    assert [(rate["event"], rate["source"]) for rate in first] == [
        ("e0", "transmission coefficient"),
        ("e1", "transition state theory"),
    ]
    # D is linear in both rates, so each one's part of D times its error is its part of the error.
    parts = [
        np.trace(compute_diffusivity(combine_rates(network, one, [0.0])))
        for one in ([1, 0], [0, 5])
    ]
    squares = (np.array(parts) * np.log([1.1, 1.2])) ** 2
    shares = [rate["share_of_variance"] for rate in first]
    np.testing.assert_allclose(shares, squares / squares.sum(), rtol=1e-5)
    notes = " ".join(found["notes"])
    assert "600 K: no transmission coefficient with an error of e1" in notes
    assert "600 K: the rate of e1: the transmission coefficient is 0.000 ± 0.000" in notes
    assert "800 K is left out: no rate with an error of e0." in notes
    assert "900 K: not converged: the run of e1." in notes
    assert "900 K: the rate of e0: 7 % of the trajectories" in notes
    (bound,) = workflow.compute_diffusion(tmp_path, source="transition state theory")[
        "temperatures"
    ][:1]
    assert [rate["rate_per_s"] for rate in bound["rates"]] == [2.0, 5.0]
    with pytest.raises(UserError, match="there is no diffusion coefficient"):
        workflow.compute_diffusion(with_rates(tmp_path, rows[5:6]))


def test_free_energies_that_contradict_each_other(tmp_path: Path) -> None:
    """Three jumps between two kinds of sites: octahedral and tetrahedral ones, with long jumps."""
    found = find_crystal(FCC)
    network = find_network(found, find_largest_holes(found), cutoff_A=3.0)
    catalogue(tmp_path, network, "interstitial")
    across = [
        len(set(network.sites.kinds[[jump.initial[0], jump.final[0]]].tolist())) == 2
        for jump in network.jumps
    ]
    assert across.count(True) == 2
    rows = []
    for k, asymmetric in enumerate(across):
        difference = {"delta_F_eV": 0.1 * k, "delta_F_error_eV": 0.02} if asymmetric else {}
        rows.append(row(f"e{k}", 500.0, 1e9, 1.1, **difference))
    notes = workflow.compute_diffusion(with_rates(tmp_path, rows))["notes"]
    differ = 0.1 * (np.flatnonzero(across)[1] - np.flatnonzero(across)[0])
    assert differ >= 0.1
    assert any("contradict each other" in note for note in notes)


@pytest.mark.parametrize("unknown", ["delta_F_eV", "delta_F_error_eV"])
def test_a_difference_with_an_unknown_error_is_unknown(unknown: str, tmp_path: Path) -> None:
    """Mixed rates are not exact: the temperature is left out, or uses harmonic rates."""
    catalogue(tmp_path, interstitials(FCC), "interstitial")
    states = {"delta_F_eV": 0.1, "delta_F_error_eV": 0.02}
    rows = [row("e0", 500.0, 1e9, 1.1, **states), row("e0", 600.0, 1e9, 1.1, **states)]
    rows[1][unknown] = None
    found = workflow.compute_diffusion(with_rates(tmp_path, rows))
    assert [each["temperature_K"] for each in found["temperatures"]] == [500.0]
    assert (
        "600 K is left out: the difference of the free energies of the states" in found["notes"][0]
    )
    assert found["notes"][0].endswith("is unknown of e0.")
    rows.append(row("e0", 600.0, 1e9, 1.0, source="harmonic", **states | {"delta_F_error_eV": 0.0}))
    found = workflow.compute_diffusion(with_rates(tmp_path, rows))
    assert [each["source"] for each in found["temperatures"]] == [
        "transmission coefficient",
        "harmonic",
    ]


def test_formation_from_a_file(tmp_path: Path) -> None:
    catalogue(tmp_path, vacancies(BCC), "vacancy")
    with_rates(tmp_path, [row("e0", 500.0, 1e9, 1.1), row("e0", 600.0, 1e10, 1.1)])
    file = tmp_path / "formation.csv"
    file.write_text("temperature_K,free_energy_eV,error_eV\n500,1.5,0.01\n600,1.4,\n")
    first, second = workflow.compute_diffusion(
        tmp_path, formation=workflow.read_formation(str(file))
    )["temperatures"]
    assert first["concentration"] == pytest.approx(np.exp(-1.5 / (units.kB * 500)))
    error = np.hypot(np.log(1.1), 0.01 / (units.kB * 500))
    assert np.log(first["tracer_error_factor"]) == pytest.approx(error, rel=1e-4)
    assert second["tracer_error_factor"] == pytest.approx(1.1, rel=1e-4)
    file.write_text("temperature_K,free_energy_eV\n500,1.5\n")
    with pytest.raises(UserError, match="at 600 K is missing"):
        workflow.compute_diffusion(tmp_path, formation=workflow.read_formation(str(file)))
    for wrong, words in (("kelvin,energy\n500,1.5\n", "is not a CSV file"), ("", "is not a CSV")):
        file.write_text(wrong)
        with pytest.raises(UserError, match=words):
            workflow.read_formation(str(file))
    with pytest.raises(UserError, match="is no number, and no file"):
        workflow.read_formation(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "'plumed-cv campaign"),
        (["--source", "fast"], "choose transmission, tst, harmonic"),
        (["--formation-entropy", "2"], "needs --formation"),
        (["--formation", "1.2"], "does not depend on its concentration"),
    ],
)
def test_mistakes(options: list[str], words: str, tmp_path: Path) -> None:
    catalogue(tmp_path, interstitials(FCC), "interstitial")
    if "--formation" in options:
        with_rates(tmp_path, [])
    done = vacancy.called("diffusion", tmp_path, *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
