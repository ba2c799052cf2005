"""Hops counted in plain molecular dynamics: rates without any theory.

    python -m python.references.hops RUNS                     # all cases, a nanosecond each
    python -m python.references.hops RUNS --cases fe-1000K --ns 4
    python -m python.references.hops                          # the tables from docs/hops.json

There is no bias and no collective variable. LAMMPS makes the steps, in this process; a run that was
stopped goes on from its last 10 ps, and so does one that shall be longer. What is counted:

Crossing
    The lattice site that is nearest to an atom changes. Every 10 fs each atom is assigned to its
    nearest site; the sites drift with the mean displacement of the host's atoms from theirs.
Hop
    A crossing after which the atom stays nearest to its new site for 200 fs without interruption.
    Its time is that of the crossing.
Undone hop
    A hop that the same atom reverses, by a hop, within t = 1 ps. Both are undone.
Rate per direction
    A number of hops over the time and over the number of equivalent neighbours (8 and 12 for
    vacancies in bcc and fcc crystals).

One rate constant can mean several numbers, and each is given:

k_hops
    From all hops.
k_lasting
    From hops that were not undone, over 1 - 2 k_lasting t: of independent hops a share k t is
    reversed by chance. Transition state theory's rate times a transmission coefficient should give
    it, if trajectories are followed for a picosecond.
k_tail
    From the hops that come more than 2 ps after the one before, over the time that is spent more
    than 2 ps after a hop: the exponential tail of the distribution of waiting times. It counts
    how often a state in equilibrium is left, whether or not the system comes back.
k_spread
    From the mean square displacement of the vacancy, whose slope is z k d^2 for hops of length d
    between z neighbours if hops are independent. Returns cancel by themselves, however late.

Errors are the larger of the square root of the numbers counted and the jackknife over 20 blocks
(k_spread has the jackknife only). Times are those of the dynamics after 10 ps of equilibration.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import units
from numpy.typing import NDArray

from plumed_cv.common.files import replacing, write_text
from plumed_cv.engines import draw_velocities
from plumed_cv.structures.frame import Array
from python.references.defects import CASES, Case
from python.references.plain_dynamics import (
    BLOCK_FS,
    EQUILIBRATION_BLOCKS,
    FRAME_FS,
    Dynamics,
    Sites,
)

DATA = Path(__file__).resolve().parents[2] / "docs" / "hops.json"

RESIDENCE_FS = 200.0
RETURN_FS = 1000.0
TAIL_FS = 2000.0
LAGS_FS = (2000.0, 10_000.0)  # between which the slope of the mean square displacement is taken
BLOCKS = 20  # of the jackknife


class Hop(NamedTuple):
    """A hop: its time in fs, its atom, and the sites it leads from and to."""

    time_fs: float
    atom: int
    start: int
    end: int


@dataclass(frozen=True)
class Found:
    """Results of the dynamics of a case.

    Attributes
    ----------
    frames
        Number of frames.
    temperature_K, temperature_error_K
        Mean kinetic temperature and its error.
    crossings
        Frame, atom, old and new site of each crossing, in order of time.
    """

    frames: int
    temperature_K: float
    temperature_error_K: float
    crossings: list[tuple[int, int, int, int]]


def run(name: str, case: Case, folder: Path, ns: float) -> None:
    """Run a case for some nanoseconds, and write the results after each block.

    Parameters
    ----------
    name
        Of the case, on which the random numbers depend.
    case
        What is simulated.
    folder
        Of the runs; the case's file in it is what the run goes on from.
    ns
        Length, ns.
    """
    file = folder / f"{name}.npz"
    dynamics = Dynamics(case)
    _, home = case.start()
    if file.exists():
        with np.load(file) as saved:
            data = dict(saved)
    else:
        data = {
            "positions": case.positions(),
            "assigned": home,
            "drift_A": np.zeros(3),
            "blocks": np.array(0),
        }
        # At rest on its sites a crystal loses half of its kinetic energy to the potential at once.
        data["velocities"] = _velocities(name, dynamics, 0, 2.0)
        data |= {"crossings": np.zeros((0, 4), dtype=int), "temperatures_K": np.zeros(0)}
    sites = Sites(case, data["assigned"], data["drift_A"])
    wanted = EQUILIBRATION_BLOCKS + round(ns * 1e6 / BLOCK_FS)
    frames = round(BLOCK_FS / FRAME_FS)
    while (k := int(data["blocks"])) < wanted:
        counts = k >= EQUILIBRATION_BLOCKS
        if counts and case.thermostat == "nve":
            data["velocities"] = _velocities(name, dynamics, k, 1.0)
        dynamics.place(data["positions"], data["velocities"])
        first = (k - EQUILIBRATION_BLOCKS) * frames
        found = [
            (first + i, *crossing)
            for i, positions in enumerate(dynamics.frames(_seed(name, k), counts), 1)
            for crossing in sites.update(positions)
        ]
        data["positions"], data["velocities"] = dynamics.read()
        data["assigned"], data["drift_A"] = sites.assigned, sites.drift_A
        data["blocks"] = np.array(k + 1)
        if counts:
            data["crossings"] = np.array([*data["crossings"].tolist(), *found], dtype=int)
            data["crossings"] = data["crossings"].reshape(-1, 4)
            kinetic = np.sum(dynamics.masses[:, None] * (data["velocities"] / units.fs) ** 2)
            T = kinetic / (units.kB * (3 * len(dynamics.masses) - 3))
            data["temperatures_K"] = np.append(data["temperatures_K"], T)
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **data)


def _seed(name: str, block: int) -> int:
    """A seed of LAMMPS for a block of a case."""
    return int(np.random.SeedSequence([*name.encode(), block]).generate_state(1)[0]) % 900_000 + 1


def _velocities(name: str, dynamics: Dynamics, block: int, share: float) -> Array:
    """Velocities (N, 3), angstrom/fs, with a share of the thermal kinetic energy."""
    rng = np.random.default_rng(_seed(name, block))
    return draw_velocities(rng, dynamics.masses, share * dynamics.case.temperature_K)


def find_hops(case: Case, found: Found, residence_fs: float = RESIDENCE_FS) -> list[Hop]:
    """The hops among the crossings, in order of time; `residence_fs` is that of the definition."""
    needed = residence_fs / FRAME_FS
    home: dict[int, int] = {}
    by_atom: dict[int, list[tuple[int, int]]] = {}
    for frame, atom, old, new in found.crossings:
        home.setdefault(atom, old)
        by_atom.setdefault(atom, []).append((frame, new))
    hops = []
    for atom, visits in by_atom.items():
        ends = [*(frame for frame, _ in visits[1:]), found.frames]
        for (frame, site), end in zip(visits, ends, strict=True):
            if end - frame >= needed and site != home[atom]:
                hops.append(Hop(frame * FRAME_FS, atom, home[atom], site))
                home[atom] = site
    return sorted(hops)


def undone(hops: Sequence[Hop], return_fs: float = RETURN_FS) -> NDArray[np.bool_]:
    """Whether each hop is reversed within a time or reverses another one; shape (M,)."""
    marked = np.zeros(len(hops), dtype=bool)
    before: dict[int, int] = {}  # of each atom its last hop
    for k, hop in enumerate(hops):
        j = before.get(hop.atom)
        if j is not None and not marked[j] and hop.time_fs - hops[j].time_fs <= return_fs:
            marked[[j, k]] = (hops[j].start, hops[j].end) == (hop.end, hop.start)
        before[hop.atom] = k
    return marked


@dataclass(frozen=True)
class Rate:
    """A rate per direction and its error, 1/s, and the number of counted hops."""

    per_s: float
    error_per_s: float
    number: int

    def __str__(self) -> str:
        if not self.number:
            return "none"
        power = int(np.floor(np.log10(self.per_s)))
        value, error = (x / 10.0**power for x in (self.per_s, self.error_per_s))
        return f"({value:.2f} ± {error:.2f})e{power} ({self.number})"


def rate(case: Case, found: Found, times_fs: Array, spent_fs: Array | None = None) -> Rate:
    """The rate per direction of events.

    Parameters
    ----------
    case, found
        The dynamics.
    times_fs
        Times of the events, (n,).
    spent_fs
        Time in each block of the jackknife during which they could happen, (BLOCKS,); all of it
        by default.
    """
    edges = np.linspace(0.0, found.frames * FRAME_FS, BLOCKS + 1)
    counts = np.histogram(times_fs, edges)[0].astype(float)
    spent = np.diff(edges) if spent_fs is None else spent_fs
    value, error = _ratio(counts, spent)
    n = len(times_fs)
    unit = 1e15 / case.neighbours
    return Rate(unit * value, unit * max(error, value / max(n, 1) ** 0.5), n)


def lasting(case: Case, found: Found, hops: Sequence[Hop], return_fs: float = RETURN_FS) -> Rate:
    """The rate of hops that are not undone within a time, corrected for returns by chance."""
    back = undone(hops, return_fs)
    plain = rate(case, found, np.array([hop.time_fs for hop in hops])[~back])
    by_chance = 2.0 * plain.per_s * return_fs * 1e-15
    return Rate(
        plain.per_s / (1.0 - by_chance), plain.error_per_s / (1.0 - by_chance), plain.number
    )


def tail(case: Case, found: Found, hops: Sequence[Hop], since_fs: float = TAIL_FS) -> Rate:
    """The rate of hops that come later than this after the one before."""
    return hazard(case, found, hops, since_fs, np.inf)


def hazard(case: Case, found: Found, hops: Sequence[Hop], since_fs: float, until_fs: float) -> Rate:
    """The rate of hops whose distance from the hop before lies in an interval, fs."""
    times = np.array([hop.time_fs for hop in hops])
    gaps = np.diff(times)
    last = found.frames * FRAME_FS
    ends = np.append(times[1:], last)
    edges = np.linspace(0.0, last, BLOCKS + 1)
    # Time at these distances: from since_fs after each hop until the next hop or until_fs.
    begin = times + since_fs
    end = np.minimum(ends, times + until_fs)
    cut = np.clip(end[:, None], edges[:-1], edges[1:]) - np.clip(
        begin[:, None], edges[:-1], edges[1:]
    )
    spent = np.maximum(cut, 0.0)[end > begin].sum(axis=0)
    within = (gaps >= since_fs) & (gaps < until_fs)
    return rate(case, found, times[1:][within], spent)


def spread(case: Case, found: Found, hops: Sequence[Hop]) -> Rate | None:
    """The rate from the mean square displacement of a vacancy; None for an interstitial."""
    if case.interstitial is not None or not hops:
        return None
    moves = np.array([vector(case, hop) for hop in hops])
    frames = np.array([round(hop.time_fs / FRAME_FS) for hop in hops])
    steps = np.zeros((found.frames + 1, 3))
    np.add.at(steps, frames, moves)
    places = np.cumsum(steps, axis=0)
    short, long = (round(lag / FRAME_FS) for lag in LAGS_FS)
    origins = np.arange(len(places) - long)
    squares = [
        np.sum((places[lag:][origins] - places[origins]) ** 2, axis=1) for lag in (short, long)
    ]
    blocks = np.array_split(squares[1] - squares[0], BLOCKS)
    length_A2 = hop_A(case) ** 2
    unit = 1e15 / (case.neighbours * length_A2 * (LAGS_FS[1] - LAGS_FS[0]))
    value, error = _ratio(np.array([b.sum() for b in blocks]), np.array([len(b) for b in blocks]))
    return Rate(unit * value, unit * error, len(hops))


def _ratio(numerators: Array, denominators: Array) -> tuple[float, float]:
    """Ratio of two sums over blocks, and its jackknife error."""
    total, weight = numerators.sum(), denominators.sum()
    without = (total - numerators) / (weight - denominators)
    n = len(numerators)
    return float(total / weight), float(np.sqrt((n - 1) * np.var(without)))


def vector(case: Case, hop: Hop) -> Array:
    """Displacement of the atom in a hop, (3,), angstrom."""
    sites, edge = case.sites(), case.edge_A
    step = sites[hop.end] - sites[hop.start]
    return np.asarray(step - edge * np.round(step / edge))


def hop_A(case: Case) -> float:  # noqa: N802
    """Length of the counted hops, angstrom."""
    if case.interstitial is not None:
        return case.lattice_A * 3**0.5 / 4
    return case.lattice_A * (3**0.5 / 2 if case.structure == "bcc" else 0.5**0.5)


def read() -> dict[str, Found]:
    """Content of docs/hops.json by case, in the order of `CASES`."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    return {
        name: Found(
            data[name]["frames"],
            data[name]["temperature_K"],
            data[name]["temperature_error_K"],
            [tuple(row) for row in data[name]["crossings"]],
        )
        for name in CASES
        if name in data
    }


def collect(folder: Path) -> None:
    """Write the present results of the runs in a folder into docs/hops.json."""
    data = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    for name, case in CASES.items():
        if not (file := folder / f"{name}.npz").exists():
            continue
        with np.load(file) as saved:
            temperatures, crossings = saved["temperatures_K"], saved["crossings"]
        if len(temperatures) < 2:
            continue
        data[name] = {
            "what": case.what,
            "temperature_K": round(float(temperatures.mean()), 1),
            "temperature_error_K": round(
                float(temperatures.std(ddof=1)) / len(temperatures) ** 0.5, 1
            ),
            "frames": len(temperatures) * round(BLOCK_FS / FRAME_FS),
            "crossings": crossings.tolist(),
        }
    text = json.dumps(data, separators=(",", ":"))
    write_text(DATA, text.replace('},"', '},\n"').replace("]],", "]],\n") + "\n")


def print_tables(found: dict[str, Found]) -> None:
    """Print rates, their dependence on the definition of a hop, and waiting times."""
    print(
        "| case | time (ns) | T (K) | hops | undone within 1 ps | k_hops (1/s) | k_lasting (1/s) ",
        end="",
    )
    print("| k_tail (1/s) | k_spread (1/s) |")
    print("|" + " --- |" * 9)
    of_cases = {name: find_counted_hops(CASES[name], data) for name, data in found.items()}
    for name, data in found.items():
        case, (all_hops, others) = CASES[name], of_cases[name]
        back = undone(all_hops)
        times = np.array([hop.time_fs for hop in all_hops])
        cells = [
            name,
            f"{data.frames * FRAME_FS * 1e-6:.2f}",
            f"{data.temperature_K:.1f} ± {data.temperature_error_K:.1f}",
            f"{len(all_hops)}" + (f" (and {others} other{'s' * (others > 1)})" if others else ""),
            f"{back.mean():.0%}" if len(back) else "",
            rate(case, data, times),
            lasting(case, data, all_hops),
            tail(case, data, all_hops),
            spread(case, data, all_hops) or "",
        ]
        print("| " + " | ".join(map(str, cells)) + " |")
    print("\n| case | hops of 100 fs | of 200 fs | of 400 fs ", end="")
    print("| lasting 0.5 ps | 1 ps | 2 ps | 4 ps |")
    print("|" + " --- |" * 8)
    for name, data in found.items():
        case = CASES[name]
        row = [name]
        for residence_fs in (100.0, 200.0, 400.0):
            times = np.array([h.time_fs for h in find_counted_hops(case, data, residence_fs)[0]])
            row.append(str(rate(case, data, times)))
        all_hops = of_cases[name][0]
        for return_fs in (500.0, 1000.0, 2000.0, 4000.0):
            row.append(str(lasting(case, data, all_hops, return_fs)))
        print("| " + " | ".join(row) + " |")
    bounds = [200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, np.inf]
    names = [f"{a * 1e-3:g} to {b * 1e-3:g} ps" for a, b in itertools.pairwise(bounds[:-1])]
    print("\n| case | " + " | ".join([*names, "later"]) + " |")
    print("|" + " --- |" * (len(bounds)))
    for name, data in found.items():
        ages = [
            str(hazard(CASES[name], data, of_cases[name][0], a, b))
            for a, b in itertools.pairwise(bounds)
        ]
        print(f"| {name} | " + " | ".join(ages) + " |")


def find_counted_hops(
    case: Case, found: Found, residence_fs: float = RESIDENCE_FS
) -> tuple[list[Hop], int]:
    """The hops to an equivalent neighbour, and the number of all others."""
    every = find_hops(case, found, residence_fs)
    length_A = hop_A(case)
    wanted = [
        hop for hop in every if abs(np.linalg.norm(vector(case, hop)) - length_A) < 0.01 * length_A
    ]
    return wanted, len(every) - len(wanted)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs, made if absent")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--ns", type=float, default=1.0, help="nanoseconds of each case, 1")
    arguments = parser.parse_args()
    if arguments.runs is not None:
        arguments.runs.mkdir(parents=True, exist_ok=True)
        for name in arguments.cases:
            run(name, CASES[name], arguments.runs, arguments.ns)
        collect(arguments.runs)
    print_tables(read())


if __name__ == "__main__":
    main()
