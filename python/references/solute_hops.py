"""Jumps of a vacancy near a solute, counted in plain dynamics, and the rates of a campaign.

    python -m python.references.solute_hops dynamics RUNS --seed 1 --ns 40
    python -m python.references.solute_hops collect RUNS CATALOGUE   # writes docs/solute-hops.json
    python -m python.references.solute_hops                          # prints the tables

One vacancy and one atom of aluminium in 108 sites of nickel at 1200 K, in the cell and with the
potential of the catalogue of `crystals` (Al-in-Ni). Hops are those of `hops`; a hop that is undone
within 1 ps does not count. The state before and after a hop is the distance of the vacancy from the
solute: pairs 1 to 4, or far. The rate of one jump is the number of hops of its kind divided by the
time in the state before it and by the number of equivalent jumps. Errors are those of counting.

The populations of the pairs give the differences of their free energies.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import units

from plumed_cv.common.files import read_json, write_text
from plumed_cv.common.numbers import error_of_factor, scientific, with_error
from plumed_cv.events import read_catalogue
from plumed_cv.structures.frame import Array
from python.references import hops
from python.references.defects import NearSolute
from python.references.plain_dynamics import BLOCK_FS, FRAME_FS

DATA = Path(__file__).resolve().parents[2] / "docs" / "solute-hops.json"
CASE = NearSolute(
    "vacancy near Al in Ni (NiAlH_jea)",
    "fcc",
    3.52,
    3,
    "Ni",
    ("pair_style eam/alloy", "pair_coeff * * NiAlH_jea.eam.alloy Ni Al"),
    1200.0,
    12,
    solute="Al",
)
PAIRS = 4  # pairs of vacancy and solute that are told apart; 0 is all others
SITES = (0, 12, 6, 24, 12)  # of the vacancy around the solute, for each pair
EXCHANGE = "exchange"


def pair_of(offset: Array) -> int:
    """Number of the pair of a vacancy at an offset (3,) from the solute, angstrom; 0 if far."""
    edge = CASE.edge_A
    apart = np.linalg.norm(offset - edge * np.round(offset / edge))
    number = round(float(2.0 * (apart / CASE.lattice_A) ** 2))  # distances are a sqrt(n / 2)
    return number if 1 <= number <= PAIRS else 0


def count(found: hops.Found) -> tuple[Array, Counter[str]]:
    """Count lasting hops by their kind, and the time in each state.

    Returns
    -------
    times_fs, numbers
        Time in each state, shape (PAIRS + 1,), fs, and the number of hops of each kind, for
        example "1 2" from pair 1 to pair 2 and "exchange".
    """
    sites, (elements, home) = CASE.sites(), CASE.start()
    solute = len(elements) - 1
    place = int(home[solute])
    every = hops.find_hops(CASE, found)
    kept = [hop for hop, back in zip(every, hops.undone(every), strict=True) if not back]
    times, numbers, before = np.zeros(PAIRS + 1), Counter[str](), 0.0
    vacancy = kept[0].end
    for hop in kept:
        state = pair_of(sites[vacancy] - sites[place])
        times[state] += hop.time_fs - before
        before = hop.time_fs
        if hop.end != vacancy:
            raise RuntimeError(f"The hop at {hop.time_fs:g} fs does not lead into the vacancy.")
        vacancy = hop.start
        if hop.atom == solute:
            place = hop.end
            numbers[EXCHANGE] += 1
        else:
            numbers[f"{state} {pair_of(sites[vacancy] - sites[place])}"] += 1
    times[pair_of(sites[vacancy] - sites[place])] += found.frames * FRAME_FS - before
    return times, numbers


def collect(folder: Path, catalogue: Path) -> None:
    """Write counts of the dynamics and rates of the catalogue into docs/solute-hops.json."""
    times, numbers, kelvin = np.zeros(PAIRS + 1), Counter[str](), []
    for file in sorted(folder.glob("seed-*.npz")):
        with np.load(file) as saved:
            T, crossings = saved["temperatures_K"], saved["crossings"].tolist()
        frames = len(T) * round(BLOCK_FS / FRAME_FS)
        found = hops.Found(frames, 0.0, 0.0, [tuple(row) for row in crossings])
        own = count(found)
        times += own[0]
        numbers += own[1]
        kelvin += T.tolist()
    rates = read_json(catalogue / "rates.json")["rates"]
    keys = (
        *("event", "source", "rate_per_s", "error_factor", "multiplicity", "reverse_rate_per_s"),
        *("reverse_error_factor", "reverse_multiplicity", "delta_F_eV", "delta_F_error_eV"),
    )
    kinds = {event.id: event.kinds for event in read_catalogue(catalogue).events}
    data = {
        "temperature_K": float(np.mean(kelvin)),
        "times_fs": times.tolist(),
        "numbers": dict(sorted(numbers.items())),
        "rates": [
            {key: row[key] for key in keys} | {"kinds": list(kinds[row["event"]])}
            for row in rates
            if row["temperature_K"] == CASE.temperature_K
        ],
    }
    write_text(DATA, json.dumps(data, indent=1) + "\n")


class Compared(NamedTuple):
    """A kind of jump: its event, number of hops, and rate of one jump and its error, 1/s.

    `by` has the rate in the catalogue and its error by source.
    """

    event: str
    kind: str
    number: int
    rate: float
    error: float
    by: dict[str, tuple[float, float]]


def compare_rates(data: dict[str, Any]) -> list[Compared]:
    """Compare the rates of the jumps from near pairs, and of those that lead to pair 1."""
    found: dict[tuple[str, str], Compared] = {}
    for row in data["rates"]:
        start, end = row["kinds"]
        ways = [("", start, end, row["multiplicity"])]
        if start != end:
            ways.append(("reverse_", end, start, row["reverse_multiplicity"]))
        for prefix, before, after, jumps in ways:
            if before == 0:  # many sites that are no pairs
                continue
            kind = EXCHANGE if EXCHANGE in row["event"] else f"{before} {after}"
            number = data["numbers"].get(kind, 0)
            rate = number / (data["times_fs"][before] * 1e-15 * jumps)
            error = rate / max(number, 1) ** 0.5
            new = Compared(row["event"], kind, number, rate, error, {})
            of_run = row[f"{prefix}rate_per_s"]
            of_error = error_of_factor(of_run, row[f"{prefix}error_factor"])
            by = found.setdefault((row["event"], kind), new).by
            by[row["source"]] = (of_run, of_error or np.nan)
    return list(found.values())


def free_energies(data: dict[str, Any]) -> list[tuple[int, float, float]]:
    """Pairs 2 to 4, their free energies relative to pair 1 by populations, and errors, eV."""
    times = np.array(data["times_fs"])
    kT = units.kB * CASE.temperature_K
    visits = np.zeros(PAIRS + 1)  # the populations are known to as many visits
    for kind, number in data["numbers"].items():
        if kind != EXCHANGE:
            start, end = map(int, kind.split())
            visits[start] += number * (start != end)
    rows = []
    for pair in range(2, PAIRS + 1):
        F = -kT * np.log(times[pair] / SITES[pair] * SITES[1] / times[1])
        rows.append((pair, float(F), float(kT * np.sqrt(1 / visits[pair] + 1 / visits[1]))))
    return rows


def print_tables(data: dict[str, Any]) -> None:
    """Print rates and free energies."""
    ns = sum(data["times_fs"]) * 1e-6
    print(f"{ns:.1f} ns of plain dynamics at {data['temperature_K']:.0f} K\n")
    print("| event | from pair, to pair | hops | counted (1/s) | runs (1/s) | harmonic (1/s) |")
    print("|" + " --- |" * 6)
    for each in compare_rates(data):
        cells = [each.event, each.kind.replace(" ", ", "), str(each.number)]
        cells.append(scientific(each.rate, each.error, "").strip())
        cells.append(scientific(*each.by["transmission coefficient"], "").strip())
        print("| " + " | ".join([*cells, f"{each.by['harmonic'][0]:.2e}"]) + " |")
    print("\n| pair | sites | F - F of pair 1, populations (eV) | runs (eV) |")
    print("|" + " --- |" * 4)
    of_runs = {
        row["kinds"][1]: (row["delta_F_eV"], row["delta_F_error_eV"])
        for row in data["rates"]
        if row["source"] == "transmission coefficient" and row["kinds"][0] == 1
    }
    for pair, F, error in free_energies(data):
        print(f"| {pair} | {SITES[pair]} | {with_error(F, error, '').strip()} ", end="")
        value, of_value = of_runs[pair]
        print(f"| {with_error(value, of_value, '').strip()} |")


def main() -> None:
    """Run what is asked for, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", nargs="?", choices=["dynamics", "collect"])
    parser.add_argument("runs", nargs="?", type=Path, help="folder of the dynamics")
    parser.add_argument("catalogue", nargs="?", type=Path, help="of `crystals`, for collect")
    parser.add_argument("--seed", type=int, default=1, help="of the dynamics, 1")
    parser.add_argument("--ns", type=float, default=40.0, help="length of the dynamics, 40 ns")
    given = parser.parse_args()
    if given.task == "dynamics":
        given.runs.mkdir(parents=True, exist_ok=True)
        hops.run(f"seed-{given.seed}", CASE, given.runs, given.ns)
        return
    if given.task == "collect":
        collect(given.runs, given.catalogue)
    print_tables(read_json(DATA))


if __name__ == "__main__":
    main()
