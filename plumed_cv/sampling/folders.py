"""The folders of an iteration: whole segments, what they have learned, and what their names are."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv import babf, meanforce
from plumed_cv.errors import UserError
from plumed_cv.files import read_json, replacing
from plumed_cv.frame import Array

MEAN_FORCE = "mean-force.dat"  # of a segment, where it is computed


def segments(folder: Path) -> list[Path]:
    """The whole segments of an iteration, in order, one walker after the other."""
    return [segment for home in homes(folder) for segment in segments_of(home)]


def segments_by_walker(folder: Path) -> list[int]:
    """Number of whole segments of each walker of an iteration, in the order of `segments`."""
    return [number for home in homes(folder) if (number := len(segments_of(home)))]


def records(segments: Sequence[Path]) -> list[dict[str, Any]]:
    """What is recorded of whole segments: `n_steps`, `stopped` (by the guard) and `seconds`.

    Raises
    ------
    UserError
        If a record is damaged.
    """
    return [read_json(segment / "segment.json") for segment in segments]


def steps_of(records: Sequence[dict[str, Any]]) -> int:
    """Steps of segments together."""
    return sum(int(record["n_steps"]) for record in records)


def learned(folder: Path) -> tuple[list[babf.State], list[Array] | None]:
    """What each whole segment added to bABF's sums, and its sums of the mean force of the atoms.

    Both are in the order of `segments`. The latter are those of `babf.binned`, or None where the
    input does not want them.

    Raises
    ------
    UserError
        If a file is damaged.
    """
    by_walker = [segments_of(home) for home in homes(folder)]  # while walkers may be adding more
    found = [
        block
        for segments in by_walker
        for block in babf.blocks([babf.read_state(s / "babf.state") for s in segments])
    ]
    files = [segment / MEAN_FORCE for segments in by_walker for segment in segments]
    if not files or not files[0].exists():
        return found, None
    return found, [babf.binned(found[0].grid, *meanforce.read(file)) for file in files]


def copy_state(folder: Path, target: Path) -> None:
    """Write what all walkers of an iteration have learned in the end as one state file."""
    last = [segments_of(home)[-1] / "babf.state" for home in homes(folder) if segments_of(home)]
    if len(last) == 1:
        with replacing(target) as temporary:
            shutil.copyfile(last[0], temporary)
        return
    total = babf.read_state(last[0])
    for state in last[1:]:
        total = total + babf.read_state(state)
    babf.write_state(target, total)


def barrier_so_far(folder: Path) -> str:
    """The barrier from what an iteration has sampled, in words."""
    found, mean_force = learned(folder)
    return f"barrier {babf.profile(found, mean_force=mean_force).barrier}"


def read_colvar(path: Path) -> dict[str, Array]:
    """Columns of a COLVAR file by their names, shape (M,) each.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            names = file.readline().split()[2:]
            rows = [line.split() for line in file if not line.startswith("#")]
            table = np.array(rows, dtype=float).reshape(len(rows), len(names))
        return dict(zip(names, table.T, strict=True))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a COLVAR file ({error}).") from None


def homes(folder: Path) -> list[Path]:
    """The folders that hold an iteration's segments: its walkers', or itself."""
    return sorted(path for path in folder.glob("walker-*") if path.is_dir()) or [folder]


def segments_of(home: Path) -> list[Path]:
    """The whole segments of one walker, in order."""
    return sorted(path.parent for path in home.glob("segment-*/segment.json"))


def segment_name(k: int) -> str:
    """Name of segment k; names are ordered as the numbers are."""
    return f"segment-{k:06d}"
