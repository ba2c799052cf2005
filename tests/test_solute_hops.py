"""Jumps of a vacancy near a solute that are counted in plain dynamics."""

from collections import Counter

import numpy as np
import pytest

from python.references import solute_hops
from python.references.hops import Found
from python.references.solute_hops import CASE, EXCHANGE, PAIRS, SITES, pair_of


def test_pairs_are_neighbours_of_an_fcc_site() -> None:
    """A site has 12, 6, 24 and 12 neighbours at the first four distances."""
    sites = CASE.sites()
    numbers = [pair_of(site - sites[0]) for site in sites[1:]]
    assert [numbers.count(pair) for pair in range(1, PAIRS + 1)] == list(SITES[1:])


def test_hops_are_counted_by_the_pairs_before_and_after() -> None:
    """The vacancy goes to a neighbour of the solute, changes places with it, and goes away."""
    sites, (elements, home) = CASE.sites(), CASE.start()
    solute = len(elements) - 1
    place = int(home[solute])

    def near(site: int, pair: int, *others: tuple[int, int]) -> int:
        """A site at the first distance from one that is a pair with the solute on other sites."""
        return next(
            k
            for k in range(len(sites))
            if pair_of(sites[k] - sites[site]) == 1
            and pair_of(sites[k] - sites[place]) == pair
            and all(pair_of(sites[k] - sites[other]) == number for other, number in others)
        )

    first = near(place, 1)
    beside = near(first, 1)
    far = near(beside, 3)
    atoms = {int(site): atom for atom, site in enumerate(home)}
    vacancy, crossings = 0, []
    # The vacancy comes to `first` in one long hop, goes on to `beside` and `far` and back, changes
    # places with the solute, and at last an atom goes and returns within 1 ps.
    for frame, site in ((100, first), (300, beside), (600, far), (1000, beside), (1500, place)):
        atom = atoms.pop(site)
        crossings.append((frame, atom, site, vacancy))
        atoms[vacancy] = atom
        vacancy = site
    back = near(vacancy, 1, (beside, 1))
    atom = atoms[back]
    crossings += [(1700, atom, back, vacancy), (1730, atom, vacancy, back)]
    times, numbers = solute_hops.count(Found(2000, 0.0, 0.0, crossings))
    start = pair_of(sites[0] - sites[place])
    assert numbers == Counter([f"{start} 1", "1 1", "1 3", "3 1", EXCHANGE])
    expected = np.zeros(PAIRS + 1)
    expected[start] += 1000.0
    expected[1] += 2000.0 + 3000.0 + 5000.0 + 5000.0
    expected[3] += 4000.0
    np.testing.assert_allclose(times, expected)


def test_a_hop_that_does_not_lead_into_the_vacancy_is_an_error() -> None:
    crossings = [(100, 5, int(CASE.start()[1][5]), 0), (400, 9, int(CASE.start()[1][9]), 0)]
    with pytest.raises(RuntimeError, match="does not lead into the vacancy"):
        solute_hops.count(Found(1000, 0.0, 0.0, crossings))
