"""What the guard stops and what it misses, in the hot vacancy of the packaged example.

    python -m python.references.guard RUNS                    # runs, or goes on, then the table
    python -m python.references.guard --run RUN               # classifies a run that is there
    python -m python.references.guard                         # the table from docs/guard.json

Each run is one iteration of the packaged example with its input but for the temperature and the
number of steps: bABF along the linear CV, the guard's default limit. Where atoms are is told by the
lattice sites that they are nearest to, of which the guard knows nothing. The sites follow the mean
displacement of the atoms. In the process one atom goes from its site to the vacant one; seven other
neighbours of the vacancy can do the same.

Stop
    The guard has ended a trajectory. Plain dynamics goes on from there, 3 ps without bias and
    guard:
        jump      the atom that left the path stays nearest to a foreign site for 200 fs
        attempt   it does not, but it was nearest to a foreign site when it was stopped
        false     neither
    A stop repeats the one before if the same atom left within 2 ps of it.
Undetected hop
    In the snapshots that count, an atom other than that of the process stays nearest to a foreign
    site for 200 fs.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv import sampling, workflow
from plumed_cv.common.files import read_json
from plumed_cv.engines import State
from plumed_cv.paths.path import load_path
from plumed_cv.structures.frame import Array
from python.references import hops

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
        self.case = hops.CASES["fe-1000K-nve"]
        self.assigned = self._nearest(initial)
        moved = np.flatnonzero(self.assigned != self._nearest(final))
        if len(moved) != 1:
            raise ValueError(f"{len(moved)} atoms have another site in the end state, not one")
        self.moving = int(moved[0])
        self._dynamics = hops.Dynamics(self.case)

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
        return np.einsum("ijk,ijk->ij", off, off).argmin(axis=1)

    def sites(self) -> hops.Sites:
        """All atoms on their sites."""
        return hops.Sites(self.case, self.assigned, np.zeros(3))

    def stop(self, left: State, atom: int) -> str:
        """What became of a configuration with velocities, which an atom's distance has ended."""
        assert left.velocities is not None
        if atom == self.moving:
            return "own atom"
        sites = self.sites()
        for _ in range(3):  # the drift is known better once the atoms are on their sites
            sites.update(left.positions)
        own = int(self.assigned[atom])
        crossings = [(0, atom, own, new)] if (new := int(sites.assigned[atom])) != own else []
        self._dynamics.place(left.positions, left.velocities)
        n = round(FOLLOWED_FS / hops.FRAME_FS)
        for i, positions in enumerate(self._dynamics.frames(1, length_fs=FOLLOWED_FS), 1):
            crossings += [(i, *found) for found in sites.update(positions) if found[0] == atom]
        if hops.hops(self.case, hops.Found(n, 0.0, 0.0, crossings)):
            return "jump"
        return "attempt" if crossings else "false"

    def undetected(self, snapshots: Sequence[Array], interval_fs: float) -> int:
        """Hops of other atoms than the process's in snapshots that follow one another."""
        sites = self.sites()
        every = round(interval_fs / hops.FRAME_FS)
        crossings = [
            (i * every, *found)
            for i, positions in enumerate(snapshots)
            for found in sites.update(positions)
            if found[0] != self.moving
        ]
        return len(hops.hops(self.case, hops.Found(len(snapshots) * every, 0.0, 0.0, crossings)))


def classify(run: Path, n: int = 1) -> dict[str, Any]:
    """What the guard did in iteration n of a run."""
    files = workflow.RunDirectory(run)
    path, settings = load_path(files.path), read_json(run / "input.json")
    vacancy = Vacancy(path.images[0].positions, path.images[-1].positions)
    dynamics = settings["sampling"]
    kinds: Counter[str] = Counter()
    repeated, before, since_fs, distances = 0, None, np.inf, []
    segments = sampling.segments(files.iteration(n))
    for segment, part in zip(segments, sampling.records(segments), strict=True):
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
        for positions in hops.read_frames(file)
    ]
    interval_fs = dynamics["snapshot_stride"] * dynamics["timestep_fs"]
    result = workflow.analyse(files.iteration(n))
    return {
        "temperature_K": settings["system"]["temperature_K"],
        "steps": sampling.steps_of(sampling.records(segments)),
        "stops": sum(kinds.values()),
        "repeated": repeated,
        "jumps": kinds["jump"],
        "attempts": kinds["attempt"],
        "false": kinds["false"],
        "of_own_atom": kinds["own atom"],
        "undetected": vacancy.undetected(trajectory, interval_fs),
        "restarted_from_A": float(np.median(distances)) if distances else None,
        "share_discarded": sampling.share_discarded(sampling.records(segments)),
    } | {
        name: result[name]
        for name in ("flux_barrier_eV", "flux_barrier_error_eV", "delta_F_eV", "delta_F_error_eV")
    }
