"""Diffusion coefficients from a CIF by harmonic rates, for docs/diffusion.md.

    python -m python.crystals RUNS     # all cases, a minute each, then the table
    python -m python.crystals          # the table from docs/crystals.json

Each case is what `plumed-cv jumps`, `plumed-cv campaign --harmonic` and `plumed-cv diffusion` do
with the CIF of a perfect crystal. The potentials are those that come with LAMMPS. The lattice
constants are those of the minimum of the energy or, where plain dynamics is compared, of the
dynamics. Its coefficients are those of `references/diffusion.py`, from the data of docs/hops.json
and docs/flux.json. The time is that of all three commands on one core.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.build import bulk

from plumed_cv import events, workflow
from plumed_cv.common.files import read_json, write_text
from python.references import defects, diffusion, flux, hops

DATA = Path(__file__).resolve().parents[1] / "docs" / "crystals.json"
LAGS_PS = (2, 10)


@dataclass(frozen=True)
class Case:
    """A crystal, a defect and temperatures.

    Attributes
    ----------
    defect
        In words.
    element, structure, lattice_A
        The crystal; without a lattice constant the cell is relaxed from that of ASE.
    potential
        LAMMPS's lines.
    temperatures_K
        The temperatures.
    interstitial
        Its element; a vacancy if None.
    """

    defect: str
    element: str
    structure: str
    lattice_A: float | None
    potential: tuple[str, str]
    temperatures_K: tuple[float, ...]
    interstitial: str | None = None


def _alloy(file: str, *elements: str) -> tuple[str, str]:
    return ("pair_style eam/alloy", f"pair_coeff * * {file} {' '.join(elements)}")


def _same_as(case: defects.Case, temperatures_K: tuple[float, ...]) -> Case:
    """The crystal of plain dynamics."""
    lines = (case.potential[0], case.potential[1])
    words = (case.what, case.element, case.structure, case.lattice_A, lines, temperatures_K)
    return Case(*words, interstitial=case.interstitial)


CASES = {
    "W": Case(
        *("vacancy in W (W_zhou)", "W", "bcc", None, _alloy("W_zhou.eam.alloy", "W")),
        (1500.0, 2000.0, 2500.0),
    ),
    "Cu": Case(
        *("vacancy in Cu (Cu_mishin1)", "Cu", "fcc", None, _alloy("Cu_mishin1.eam.alloy", "Cu")),
        (700.0, 1000.0, 1300.0),
    ),
    "Cu-1000K": _same_as(defects.CASES["cu-1000K"], (1000.0,)),
    "Fe-1000K": _same_as(defects.CASES["fe-1000K"], (1000.0,)),
    "H-in-Ni": _same_as(flux.CASES["h-in-ni-500K"], (500.0,)),
}


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Make the catalogue, the harmonic rates and the coefficients of a case; return the answer."""
    folder.mkdir(parents=True)
    crystal, given = folder / "crystal.cif", folder / "input.toml"
    bulk(case.element, case.structure, a=case.lattice_A, cubic=True).write(crystal)
    write_text(
        given,
        f"[system]\ntemperature_K = {list(case.temperatures_K)}\n"
        f"[engine]\npotential = {json.dumps(case.potential)}\n",
    )
    started = time.monotonic()
    catalogue = folder / "catalogue"
    events.find_jumps(
        crystal,
        given,
        catalogue,
        defect="vacancy" if case.interstitial is None else "interstitial",
        species=case.interstitial or case.element,
        relax_cell=case.lattice_A is None,
    )
    workflow.run_campaign(catalogue, harmonic=True)
    found = workflow.compute_diffusion(catalogue)
    seconds = round(time.monotonic() - started)
    about = events.read_catalogue(catalogue).about
    return {
        "lattice_A": about["crystal"]["conventional_cell_A"][0][0],
        "supercell": about["supercell"],
        "seconds": seconds,
        "rows": [
            {key: row[key] for key in ("temperature_K", "D_m2_per_s", "rates")}
            for row in found["temperatures"]
        ],
    }


def in_plain_dynamics() -> dict[str, tuple[float, float]]:
    """Coefficients of the same defects in plain dynamics, and their errors, 1e-9 m^2/s."""
    data = read_json(flux.DATA)
    copper = hops.read()["cu-1000K"]
    every = {
        "Fe-1000K": (flux.CASES["fe-1000K"], *flux.joined("fe-1000K", data["fe-1000K"]["plain"])),
        "Cu-1000K": (
            *(defects.CASES["cu-1000K"], copper),
            hops.find_hops(defects.CASES["cu-1000K"], copper),
        ),
        "H-in-Ni": (
            flux.CASES["h-in-ni-500K"],
            *flux.joined("h-in-ni-500K", data["h-in-ni-500K"]["plain"]),
        ),
    }
    found = {}
    for name, (case, whole, jumps) in every.items():
        places = diffusion.displacements(case, whole, jumps)[1][:, None]
        found[name] = diffusion.ratio(diffusion.coefficients(places, LAGS_PS))
    return found


def print_table(data: dict[str, Any]) -> None:
    """Print a row for each case and temperature."""
    print(
        "| crystal from a CIF | a (Å) | T (K) | k (1/s) | D, harmonic (m²/s) "
        "| D, plain dynamics (m²/s) | time (s) |"
    )
    print("|" + " --- |" * 7)
    plain = in_plain_dynamics()
    for name, found in data.items():
        for number, row in enumerate(found["rows"]):
            cells = [
                *(CASES[name].defect.partition(",")[0], f"{found['lattice_A']:.3f}"),
                f"{row['temperature_K']:g}",
                f"{row['rates'][0]['rate_per_s']:.2e}",
                f"{row['D_m2_per_s']:.2e}",
                "" if name not in plain else _words(*plain[name]),
                "" if number else str(found["seconds"]),
            ]
            print("| " + " | ".join(cells) + " |")


def _words(value: float, error: float) -> str:
    power = int(f"{value * 1e-9:e}".partition("e")[2])
    return f"({value * 1e-9 / 10.0**power:.2f} ± {error * 1e-9 / 10.0**power:.2f})e{power}"


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs, made if absent")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    given = parser.parse_args()
    data = read_json(DATA) if DATA.exists() else {}
    if given.runs is not None:
        for name in given.cases:
            data[name] = run(CASES[name], given.runs / name)
            write_text(DATA, json.dumps(data, indent=1) + "\n")
    print_table({name: data[name] for name in CASES if name in data})


if __name__ == "__main__":
    main()
