"""Correlation factors of a tracer atom by vacancies with equal rates, for docs/diffusion.md.

Run as `python -m python.correlation_factors`; it takes a minute.
"""

import numpy as np
from ase import Atoms
from ase.build import bulk

from plumed_cv.events import (
    combine_rates,
    compute_correlation_factors,
    find_crystal,
    find_network,
    lattice_sites,
)

# Ishioka and Koiwa, Philos. Mag. A 37, 517 (1978).
EXACT = {
    "fcc": "0.78145",
    "bcc": "0.72719",
    "simple cubic": "0.65311",
    "diamond": "0.5",
    "hcp, ideal c/a, in the basal plane": "0.78120",
    "hcp, ideal c/a, along c": "0.78145",
}
CRYSTALS = {
    "fcc": bulk("Cu", "fcc", a=3.6),
    "bcc": bulk("Fe", "bcc", a=2.86),
    "simple cubic": bulk("Po", "sc", a=3.3),
    "diamond": bulk("Si", "diamond", a=5.4),
    "hcp, ideal c/a": bulk("Mg", "hcp", a=3.2, c=3.2 * (8 / 3) ** 0.5),
}


def factors(atoms: Atoms) -> list[float]:
    """Return the factors along x and z of a crystal of one element."""
    found = find_crystal(atoms)
    network = find_network(found, lattice_sites(found, str(atoms.symbols[0])))
    rates = [1.0] * len(network.jumps)
    matrix = compute_correlation_factors(network, combine_rates(network, rates, [0.0]))
    return [float(x) for x in np.diag(matrix)[[0, 2]]]


def main() -> None:
    """Print the table."""
    print("| lattice | here | exact |\n| --- | --- | --- |")
    for name, atoms in CRYSTALS.items():
        values = factors(atoms)
        rows = {name: values[0]}
        if name.startswith("hcp"):
            rows = {f"{name}, in the basal plane": values[0], f"{name}, along c": values[1]}
        for row, value in rows.items():
            print(f"| {row} | {value:.5f} | {EXACT[row]} |")


if __name__ == "__main__":
    main()
