"""Diffusion coefficients from a CIF, for docs/diffusion.md.

    python -m python.crystals RUNS     # all cases, a minute to half an hour each, then the tables
    python -m python.crystals          # the tables from docs/crystals.json

Each case is what `plumed-cv jumps`, `plumed-cv campaign --harmonic` and `plumed-cv diffusion` do
with the CIF of a perfect crystal; some are also done by `plumed-cv campaign`, with anharmonicity
and recrossing. The potentials are those that come with LAMMPS. The lattice
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
from plumed_cv.common.numbers import error_of_factor, scientific, with_error
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
    solute
        Element of an atom near which the vacancy jumps.
    timestep_fs
        Time step of the runs with anharmonicity; there are none if it is None.
    """

    defect: str
    element: str
    structure: str
    lattice_A: float | None
    potential: tuple[str, str]
    temperatures_K: tuple[float, ...]
    interstitial: str | None = None
    solute: str | None = None
    timestep_fs: float | None = None


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
    "H-in-Ni-500K": _same_as(flux.CASES["h-in-ni-500K"], (500.0,)),
    "H-in-Ni-700K": _same_as(flux.CASES["h-in-ni-700K"], (700.0,)),
    "H-in-Ni-900K": _same_as(flux.CASES["h-in-ni-900K"], (900.0,)),
    "Al-in-Ni": Case(
        *("vacancy near Al in Ni (NiAlH_jea)", "Ni", "fcc", 3.52),
        *(_alloy("NiAlH_jea.eam.alloy", "Ni", "Al"), (1200.0,)),
        solute="Al",
        timestep_fs=2.0,
    ),
}


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Make the catalogue, the harmonic rates and the coefficients of a case; return the answer."""
    folder.mkdir(parents=True)
    crystal, given = folder / "crystal.cif", folder / "input.toml"
    bulk(case.element, case.structure, a=case.lattice_A, cubic=True).write(crystal)
    write_text(
        given,
        f"[system]\ntemperature_K = {list(case.temperatures_K)}\n"
        f"[engine]\npotential = {json.dumps(case.potential)}\n"
        + (f"[sampling]\ntimestep_fs = {case.timestep_fs}\n" if case.timestep_fs else ""),
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
        solute=case.solute,
    )
    workflow.run_campaign(catalogue, harmonic=True)
    rows = _rows(catalogue)
    seconds = time.monotonic() - started
    about = events.read_catalogue(catalogue).about
    found = {
        "lattice_A": about["crystal"]["conventional_cell_A"][0][0],
        "supercell": about["supercell"],
        "seconds": round(seconds),
        "rows": rows,
    }
    if case.timestep_fs is not None:
        workflow.run_campaign(catalogue)
        found |= {"run_rows": _rows(catalogue)}
        found |= {"run_seconds": round(time.monotonic() - started - seconds)}
    return found


def _rows(catalogue: Path) -> list[dict[str, Any]]:
    keys = (
        *("temperature_K", "D_m2_per_s", "error_factor", "rates", "source", "converged"),
        *("solute_correlation_factor", "solute_to_tracer", "solute_to_tracer_error_factor"),
    )
    rows = workflow.compute_diffusion(catalogue)["temperatures"]
    return [{key: row[key] for key in keys if row.get(key) is not None} for row in rows]


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
    }
    for T in (500, 700, 900):
        ours, name = f"H-in-Ni-{T}K", f"h-in-ni-{T}K"
        every[ours] = (flux.CASES[name], *flux.joined(name, data[name]["plain"]))
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
        if CASES[name].solute is not None:
            continue
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


def print_solutes(data: dict[str, Any]) -> None:
    """Print two rows for each solute: by harmonic rates, and by runs."""
    print("\n| solute from a CIF | T (K) | rates | k of the exchange (1/s) ", end="")
    print("| correlation factor | D solute / D tracer | time (s) |")
    print("|" + " --- |" * 7)
    for name, found in data.items():
        if CASES[name].solute is None:
            continue
        for words, rows, seconds in (
            ("harmonic", found["rows"], found["seconds"]),
            ("runs", found["run_rows"], found["run_seconds"]),
        ):
            (row,) = rows
            (exchange,) = (each for each in row["rates"] if "-exchange-" in each["event"])
            k, factor = exchange["rate_per_s"], exchange["error_factor"]
            ratio, of_ratio = row["solute_to_tracer"], row["solute_to_tracer_error_factor"]
            cells = [
                *(CASES[name].defect, f"{row['temperature_K']:g}", words),
                f"{k:.2e}"
                if words == "harmonic"
                else scientific(k, error_of_factor(k, factor), ""),
                f"{row['solute_correlation_factor']:.3f}",
                f"{ratio:.2f}"
                if words == "harmonic"
                else with_error(ratio, error_of_factor(ratio, of_ratio), ""),
                str(seconds),
            ]
            print("| " + " | ".join(cell.strip() for cell in cells) + " |")


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
    data = {name: data[name] for name in CASES if name in data}
    for show in (print_table, print_solutes):
        show(data)


if __name__ == "__main__":
    main()
