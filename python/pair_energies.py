"""Energies of a solute and a vacancy in supercells of several sizes, for docs/diffusion.md.

    python -m python.pair_energies      # a few minutes of one core

The energies are those of copper and a vacancy in aluminium (AlCu.adp, the lattice constant of the
potential), relaxed, relative to both far from each other. In a periodic supercell they differ from
those of one pair by a term that is proportional to the inverse number of sites. The last row has
the limit, by a linear fit to all sizes.
"""

import tempfile
from pathlib import Path

import numpy as np
from ase.build import bulk

from plumed_cv import events
from plumed_cv.common.files import write_text

LATTICE_A = 4.05
WIDTHS_A = (12.0, 16.0, 20.0)
INPUT = """
[system]
temperature_K = 600.0
[engine]
potential = ["pair_style adp", "pair_coeff * * AlCu.adp Al Cu"]
"""


def main() -> None:
    """Relax the pairs in each size and print the table."""
    sites, energies = [], []
    with tempfile.TemporaryDirectory() as nearby:
        folder = Path(nearby)
        bulk("Al", "fcc", a=LATTICE_A).write(folder / "al.cif")
        write_text(folder / "al-cu.toml", INPUT)
        for width in WIDTHS_A:
            found = events.find_jumps(
                *(folder / "al.cif", folder / "al-cu.toml", folder / f"{width:g}"),
                species="Al",
                solute="Cu",
                width_A=width,
            )
            sites.append(found["supercell"]["atoms"] + 1)
            energies.append(found["pair_energies_eV"])
    fits = np.polyfit(1.0 / np.array(sites), np.array(energies), 1)
    kinds = range(1, len(energies[0]) + 1)
    print("| sites | " + " | ".join(f"pair {kind} (eV)" for kind in kinds) + " |")
    print("|" + " --- |" * (1 + len(energies[0])))
    for name, row in [*zip(map(str, sites), energies, strict=True), ("limit", fits[1].tolist())]:
        print(f"| {name} | " + " | ".join(f"{energy:+.3f}" for energy in row) + " |")


if __name__ == "__main__":
    main()
