"""Counting hops: the definitions, and rates from walks whose rates are known."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from plumed_cv.events import (
    combine_rates,
    compute_diffusivity,
    find_crystal,
    find_network,
    sites_at,
)
from plumed_cv.events.diffusion import _of_tracer
from python.references import defects, diffusion, hops, plain_dynamics
from python.references.hops import Found, Hop

IRON = defects.CASES["fe-1000K"]


def vacancy_walk(k_per_s: float, ns: float, back: float) -> Found:
    """Crossings of a vacancy in iron that moves with a rate k to each of its eight neighbours.

    After a share `back` of its hops the atom also makes an excursion: 0.3 ps later it goes back
    to where it came from, and after another 0.3 ps it returns.
    """
    rng = np.random.default_rng(4)
    sites, edge = IRON.sites(), IRON.edge_A
    atom_on = {int(site): atom for atom, site in enumerate(IRON.start()[1])}
    vacant, time_fs = 0, 0.0
    crossings: list[tuple[int, int, int, int]] = []
    while True:
        time_fs += rng.exponential(1e15 / (8 * k_per_s))
        if time_fs > ns * 1e6 - 1000.0:
            return Found(round(ns * 1e6 / plain_dynamics.FRAME_FS), 1000.0, 1.0, sorted(crossings))
        off = sites - sites[vacant]
        off -= edge * np.round(off / edge)
        near = np.flatnonzero(
            np.abs(np.linalg.norm(off, axis=1) - IRON.lattice_A * 0.75**0.5) < 0.1
        )
        site = int(rng.choice(near))
        atom = atom_on.pop(site)
        frame = round(time_fs / plain_dynamics.FRAME_FS)
        crossings.append((frame, atom, site, vacant))
        if rng.random() < back:
            crossings += [(frame + 30, atom, vacant, site), (frame + 60, atom, site, vacant)]
            time_fs += 600.0
        atom_on[vacant], vacant = atom, site


def test_a_hop_stays_for_200_fs_and_is_undone_by_its_reverse() -> None:
    crossings = [
        (10, 3, 4, 5),  # stays for 190 fs
        (29, 3, 5, 4),
        (100, 3, 4, 5),  # stays for 200 fs, then back for good
        (120, 3, 5, 4),
        (300, 3, 4, 5),  # 2 ps until it comes back
        (500, 3, 5, 4),
        (505, 7, 8, 4),  # another atom
        (990, 7, 4, 8),  # the data end 100 fs later
    ]
    found = hops.find_hops(IRON, Found(1000, 1000.0, 1.0, crossings))
    assert found == [
        Hop(1000.0, 3, 4, 5),
        Hop(1200.0, 3, 5, 4),
        Hop(3000.0, 3, 4, 5),
        Hop(5000.0, 3, 5, 4),
        Hop(5050.0, 7, 8, 4),
    ]
    assert hops.undone(found).tolist() == [True, True, False, False, False]
    assert hops.undone(found, 2000.0).tolist() == [True, True, True, True, False]


def test_three_hops_back_and_forth_are_one() -> None:
    found = [Hop(1000.0, 1, 0, 5), Hop(1500.0, 1, 5, 0), Hop(2000.0, 1, 0, 5)]
    assert hops.undone(found).tolist() == [True, True, False]


def test_rates_of_independent_hops_are_the_one_rate() -> None:
    """Four errors of some thousand hops: odds of one in 15 000 for each of four numbers."""
    k = 1e10
    data = vacancy_walk(k, 20.0, 0.0)
    every = hops.find_hops(IRON, data)
    # A second hop of the same atom within 200 fs hides the first: 1 - exp(-k 0.2 ps) is 0.002.
    for found in (
        hops.rate(IRON, data, np.array([hop.time_fs for hop in every])),
        hops.lasting(IRON, data, every),
        hops.tail(IRON, data, every),
        hops.spread(IRON, data, every),
    ):
        assert found is not None
        assert found.number > 800
        assert found.error_per_s < 0.06 * k
        assert found.per_s == pytest.approx(k, abs=4 * found.error_per_s)


def test_hops_undone_at_once_are_in_one_rate_only() -> None:
    """Each excursion adds two hops and takes time from others. Four errors, as above."""
    k, back = 1e10, 0.3
    data = vacancy_walk(k, 20.0, back)
    every = hops.find_hops(IRON, data)
    slower = k / (1.0 + 8 * k * back * 600e-15)
    everything = hops.rate(IRON, data, np.array([hop.time_fs for hop in every]))
    for found, expected in (
        (everything, slower * (1.0 + 2 * back)),
        (hops.lasting(IRON, data, every), slower),
        (hops.tail(IRON, data, every), k),
        (hops.spread(IRON, data, every), slower),
    ):
        assert found is not None
        assert found.per_s == pytest.approx(expected, abs=4 * found.error_per_s)


def test_sites_follow_the_crystal_and_see_a_hop() -> None:
    _, home = IRON.start()
    sites = plain_dynamics.Sites(IRON, home, np.zeros(3))
    rng = np.random.default_rng(2)
    start = IRON.sites()[home]
    for shift in ([0.0, 0.0, 0.0], [3.0, -4.0, 5.0], [9.0, 1.0, -30.0]):  # it may jump as well
        positions = start + shift + 0.15 * rng.standard_normal(start.shape)
        assert sites.update(positions % IRON.edge_A) == []
    neighbour = int(np.argmin(np.linalg.norm(start - IRON.lattice_A / 2, axis=1)))
    positions[neighbour] -= 0.55 * IRON.lattice_A
    assert sites.update(positions) == [(neighbour, int(home[neighbour]), 0)]


@pytest.mark.slow
def test_a_run_that_goes_on_is_that_of_one_go(tmp_path: Path) -> None:
    """Plain dynamics in LAMMPS, and a temperature: 10 ps of 127 atoms have an error of 40 K."""
    for folder, parts in (("once", (0.02,)), ("twice", (0.01, 0.02))):
        (tmp_path / folder).mkdir()
        for ns in parts:
            code = (
                "from pathlib import Path; from python.references import hops; name = 'fe-1000K'; "
                f"hops.run(name, hops.CASES[name], Path({str(tmp_path / folder)!r}), {ns})"
            )
            subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    once, twice = (dict(np.load(tmp_path / f / "fe-1000K.npz")) for f in ("once", "twice"))
    assert set(once) == set(twice)
    for name, values in once.items():
        assert np.array_equal(values, twice[name])
    assert 700.0 < once["temperatures_K"].mean() < 1300.0


def test_the_page_has_the_tables_of_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    hops.print_tables(hops.read())
    page = (hops.DATA.parent / "hops.md").read_text(encoding="utf-8")
    for line in capsys.readouterr().out.strip().splitlines():
        assert line in page


def test_atoms_of_a_random_walk() -> None:
    """In the cell of 128 sites, the factor decreases from 1 to its exact value.

    The factor is that of the network of a bcc crystal in its cubic cell of two sites.
    """
    ordered = find_crystal(bulk("FeAl", "cesiumchloride", a=2.9))
    network = find_network(ordered, sites_at(ordered, [np.zeros(3), np.full(3, 0.5)]), cutoff_A=2.6)
    found = combine_rates(network, [1.0], [0.0, 0.0])
    exact = np.trace(_of_tracer(network, found, 4)) / np.trace(compute_diffusivity(found))
    assert diffusion.walked((20_000, 40_000), 1.4e10) == pytest.approx(exact, abs=1e-5)
    assert diffusion.walked((0, 1), 1e6) == pytest.approx(1.0, abs=1e-4)


def test_diffusion_of_a_simulated_walk() -> None:
    """Jumps at random times. Five errors of each number: one in a million."""
    k_per_s = 2e10
    found = vacancy_walk(k_per_s, 20.0, 0.0)
    atoms, vacancy = diffusion.displacements(IRON, found, hops.find_hops(IRON, found, 0.0))
    for lags in ((2, 10), (20, 50)):
        of_vacancy = diffusion.coefficients(vacancy[:, None], lags)
        value, error = diffusion.ratio(diffusion.coefficients(atoms, lags), of_vacancy)
        assert abs(value - diffusion.walked(lags, k_per_s)) < 5 * error < 0.3
        value, error = diffusion.ratio(of_vacancy)
        D = 8 * hops.hop_A(IRON) ** 2 * k_per_s / 6 * 1e-11  # 1e-9 m^2/s
        assert abs(value - D) < 5 * error < 0.4 * D
