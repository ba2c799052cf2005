"""Events that the guard stops and misses in the hot vacancy of the packaged example.

    python -m python.references.guard RUNS                    # runs or continues, then the table
    python -m python.references.guard --run RUN               # of a run that is there
    python -m python.references.guard                         # the table from docs/guard.json

Each run is one iteration of the packaged example with its input but for the temperature and the
number of steps, 1e6 at 1000 K and at 1200 K: bABF along the linear CV, the guard's default limit.
With --run, iteration 1 of a run of the example is classified. Where atoms are is told by the
lattice sites that they are nearest to, of which the guard knows nothing. The sites follow the mean
displacement of the atoms. In the process one atom goes from its site to the vacant one; seven other
neighbours of the vacancy can do the same.

Stop
    The guard has ended a trajectory. Plain dynamics goes on from there, 3 ps without bias and
    guard:
        jump      the atom that left the path stays nearest to a foreign site for 200 fs
        attempt   it does not, but it was nearest to a foreign site, when stopped or later
        false     it was never nearest to a foreign site
    A stop repeats the one before if the same atom left within 2 ps of it.
Undetected hop
    In the snapshots that count, an atom other than that of the process stays nearest to a foreign
    site for 200 fs, and does not come back within 1 ps. One that does come back has been in the
    well between the two humps of its jump, within the limit.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv import sampling, workflow
from plumed_cv.common.files import read_json, write_text
from plumed_cv.engines import State
from plumed_cv.paths.path import load_path
from plumed_cv.structures.frame import Array
from python.references import defects, hops, plain_dynamics

DATA = Path(__file__).resolve().parents[2] / "docs" / "guard.json"

FOLLOWED_FS = 3000.0  # after a stop
REPEATED_FS = 2000.0


class Vacancy:
    """The sites of the example's crystal and the atoms on them.

    Parameters
    ----------
    initial, final
        Positions in the end states, (N, 3), angstrom.
    """

    def __init__(self, initial: Array, final: Array) -> None:
        # At constant energy: the thermostat has no part in where an atom goes in 3 ps.
        self.case = defects.CASES["fe-1000K-nve"]
        self.assigned = self._nearest(initial)
        moved = np.flatnonzero(self.assigned != self._nearest(final))
        if len(moved) != 1:
            raise ValueError(f"{len(moved)} atoms have another site in the end state, not one")
        self.moving = int(moved[0])
        self._dynamics = plain_dynamics.Dynamics(self.case)

    def distance(self, positions: Array, atom: int) -> float:
        """Distance of an atom from its site, angstrom."""
        sites = self.sites()
        sites.update(positions)
        off = positions[atom] - sites.drift_A - sites.positions[self.assigned[atom]]
        return float(np.linalg.norm(off - self.case.edge_A * np.round(off / self.case.edge_A)))

    def _nearest(self, positions: Array) -> NDArray[np.int64]:
        edge = self.case.edge_A
        off = positions[:, None] - self.case.sites()
        off -= edge * np.round(off / edge)
        return np.asarray(np.einsum("ijk,ijk->ij", off, off).argmin(axis=1))

    def sites(self) -> plain_dynamics.Sites:
        """All atoms on their sites."""
        return plain_dynamics.Sites(self.case, self.assigned, np.zeros(3))

    def stop(self, left: State, atom: int) -> str:
        """The end of a trajectory from a configuration at which the guard stopped a run."""
        assert left.velocities is not None
        if atom == self.moving:
            return "own atom"
        sites = self.sites()
        sites.update(left.positions)
        own = int(self.assigned[atom])
        crossings = [(0, atom, own, new)] if (new := int(sites.assigned[atom])) != own else []
        self._dynamics.place(left.positions, left.velocities)
        n = round(FOLLOWED_FS / plain_dynamics.FRAME_FS)
        for i, positions in enumerate(self._dynamics.frames(1, length_fs=FOLLOWED_FS), 1):
            crossings += [(i, *found) for found in sites.update(positions) if found[0] == atom]
        if hops.find_hops(self.case, hops.Found(n, 0.0, 0.0, crossings)):
            return "jump"
        return "attempt" if crossings else "false"

    def undetected(self, snapshots: Sequence[Array], interval_fs: float) -> tuple[int, int]:
        """Lasting and undone hops of other atoms than the process's in a series of snapshots."""
        sites = self.sites()
        every = round(interval_fs / plain_dynamics.FRAME_FS)
        crossings = [
            (i * every, *found)
            for i, positions in enumerate(snapshots)
            for found in sites.update(positions)
            if found[0] != self.moving
        ]
        found = hops.Found(len(snapshots) * every, 0.0, 0.0, crossings)
        back = hops.undone(hops.find_hops(self.case, found))
        return int((~back).sum()), int(back.sum()) // 2


def classify(run: Path, n: int = 1) -> dict[str, Any]:
    """Actions of the guard in iteration n of a run."""
    files = workflow.RunDirectory(run)
    path, settings = load_path(files.path), read_json(run / "input.json")
    vacancy = Vacancy(path.images[0].positions, path.images[-1].positions)
    dynamics = settings["sampling"]
    kinds: Counter[str] = Counter()
    repeated, before, since_fs, distances = 0, None, np.inf, []
    segments = sampling.list_segments(files.iteration(n))
    for segment, part in zip(segments, sampling.read_records(segments), strict=True):
        since_fs += part["n_steps"] * dynamics["timestep_fs"]
        if not part["stopped"]:
            continue
        atom = part["departure"]["atom"] - 1
        left, end = (State.load(segment / f"{name}.npz") for name in ("left", "end"))
        kinds[vacancy.stop(left, atom)] += 1
        repeated += atom == before and since_fs < REPEATED_FS
        before, since_fs = atom, 0.0
        distances.append(vacancy.distance(end.positions, atom))
    trajectory = [
        positions
        for segment in segments
        if (file := segment / "snapshots.dcd").exists()
        for positions in plain_dynamics.read_frames(file)
    ]
    interval_fs = dynamics["snapshot_stride"] * dynamics["timestep_fs"]
    undetected, undone = vacancy.undetected(trajectory, interval_fs)
    result = workflow.analyse(files.iteration(n))
    return {
        "temperature_K": settings["system"]["temperature_K"],
        "steps": sampling.count_steps(sampling.read_records(segments)),
        "stops": sum(kinds.values()),
        "repeated": repeated,
        "jumps": kinds["jump"],
        "attempts": kinds["attempt"],
        "false": kinds["false"],
        "of_own_atom": kinds["own atom"],
        "undetected": undetected,
        "undone": undone,
        "restarted_from_A": float(np.median(distances)) if distances else None,
        "share_discarded": sampling.share_discarded(sampling.read_records(segments)),
    } | {
        name: result[name]
        for name in ("flux_barrier_eV", "flux_barrier_error_eV", "delta_F_eV", "delta_F_error_eV")
    }


def run(folder: Path, temperature_K: float, steps: int) -> None:
    """Run one iteration of the example, or go on with it.

    Parameters
    ----------
    folder
        Of the example; the run directory is the folder `run` in it.
    temperature_K, steps
        Instead of the example's.
    """
    line = [sys.executable, "-m", "plumed_cv.cli"]
    if not folder.exists():
        subprocess.run([*line, "init", "vacancy-fe", str(folder)], check=True)
    file = folder / "vacancy.toml"
    text = re.sub(r"temperature_K = [\d.]+", f"temperature_K = {temperature_K}", file.read_text())
    text = re.sub(r"steps = [\d_]+", f"steps = {steps}", text)
    write_text(file, re.sub(r"(minimum = 1\n)?maximum = \d+", "minimum = 1\nmaximum = 1", text))
    subprocess.run([*line, "run", str(file)], check=True)


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """Print a row for each run."""
    print(
        "| run | T (K) | steps | stops | repeated | jumps | attempts | false | undetected hops ",
        end="",
    )
    print("| undone | continues at (Å) | discarded | flux barrier (eV) | delta F (eV) |")
    print("|" + " --- |" * 14)
    for name, row in rows.items():
        start = row["restarted_from_A"]
        cells = [
            name,
            f"{row['temperature_K']:.0f}",
            row["steps"],
            *(row[key] for key in ("stops", "repeated", "jumps", "attempts", "false")),
            *(row[key] for key in ("undetected", "undone")),
            "" if start is None else f"{start:.2f}",
            f"{row['share_discarded']:.1%}",
            *(
                f"{row[f'{key}_eV']:.3f} ± {row[f'{key}_error_eV']:.3f}"
                for key in ("flux_barrier", "delta_F")
            ),
        ]
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Run what is missing, classify it and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs, made if absent")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1000.0, 1200.0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--run", type=Path, help="a run directory of the example")
    parser.add_argument("--name", help="of its row in the table, the temperature by default")
    arguments = parser.parse_args()
    rows = read_json(DATA) if DATA.exists() else {}
    found = [] if arguments.run is None else [arguments.run]
    if arguments.runs is not None:
        for temperature_K in arguments.temperatures:
            folder = arguments.runs / f"{temperature_K:.0f}K"
            run(folder, temperature_K, arguments.steps)
            found.append(folder / "run")
    for directory in found:
        row = classify(directory)
        rows[arguments.name or f"{row['temperature_K']:.0f} K"] = row
        write_text(DATA, json.dumps(rows, indent=1) + "\n")
    print_table(rows)


if __name__ == "__main__":
    main()
