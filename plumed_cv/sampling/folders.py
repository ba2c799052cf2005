"""The folders of an iteration: complete segments, their results, and their names.

A segment that was removed leaves a gap. States contain sums from the start of their walker, so the
state after a gap still contains what was learned in it. Snapshots, printed values and forces of the
gap are lost.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv import freeenergy
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, replacing
from plumed_cv.common.tables import read_table
from plumed_cv.freeenergy import meanforce
from plumed_cv.structures.frame import Array

MEAN_FORCE = "mean-force.dat"  # sums of the mean force of a segment
ATOMS = "atoms.npz"  # positions of the CV's atoms and forces on them, for later iterations


def list_segments(folder: Path) -> list[Path]:
    """Complete segments of an iteration, in order, one walker after the other.

    The walkers of one repetition come before those of the next.
    """
    return [segment for part in list_repetitions(folder) for segment in part]


def list_repetitions(folder: Path) -> list[list[Path]]:
    """Complete segments of each independent repetition of an iteration, as in `list_segments`."""
    return [
        [segment for home in _walkers(base) for segment in list_segments_of(home)]
        for base in _repetitions(folder)
    ]


def count_segments(folder: Path) -> list[int]:
    """Number of complete segments of each walker, in the order of `list_segments`."""
    return [number for home in list_homes(folder) if (number := len(list_segments_of(home)))]


def read_records(segments: Sequence[Path]) -> list[dict[str, Any]]:
    """Records of complete segments: `n_steps`, `stopped` (by the guard) and `seconds`.

    Raises
    ------
    UserError
        If a record is damaged.
    """
    return [_read_record(segment) for segment in segments]


def _read_record(segment: Path) -> dict[str, Any]:
    return read_json(segment / "segment.json", _remedy_of(segment))


def count_steps(records: Sequence[dict[str, Any]]) -> int:
    """Total number of steps of segments."""
    return sum(int(record["n_steps"]) for record in records)


def share_discarded(records: Sequence[dict[str, Any]]) -> float:
    """Share of the steps that do not count: during the heat-up, and on a way out of the process."""
    counted = sum(int(record.get("n_counted", record["n_steps"])) for record in records)
    return 1.0 - counted / max(1, count_steps(records))


def read_learned(folder: Path) -> tuple[list[freeenergy.State], list[Array] | None]:
    """Contribution of each complete segment to bABF's sums, and its sums of the mean force.

    Both are in the order of `list_segments`. Steps on a way out of the process are in neither. The
    sums of the mean force are those of `freeenergy.bin_samples`, or None if the input does not ask
    for them.

    Raises
    ------
    UserError
        If a file is damaged.
    """
    by_walker = [
        list_segments_of(home) for home in list_homes(folder)
    ]  # walkers may be adding segments
    found = [
        _counted(block, segment)
        for segments in by_walker
        for block, segment in zip(
            freeenergy.split_into_blocks(list(map(read_end, segments))), segments, strict=True
        )
    ]
    all_segments = [segment for segments in by_walker for segment in segments]
    if not any((segment / MEAN_FORCE).exists() for segment in all_segments):
        return found, None
    sums = []
    for segment in all_segments:
        with remedy(segment):
            sums.append(
                freeenergy.bin_samples(found[0].grid, *meanforce.read(segment / MEAN_FORCE))
            )
    return found, sums


def _counted(block: freeenergy.State, segment: Path) -> freeenergy.State:
    """Contribution of a segment without the way out of the process.

    PLUMED has added it to its sums before the guard ended the trajectory. The histogram is
    therefore made again from the printed values, with the same mean weight. The sums of the
    conditional probabilities, which only A_k needs, are scaled.
    """
    record = _read_record(segment)
    n_counted = int(record.get("n_counted", record["n_steps"]))
    if not record["stopped"] or n_counted >= block.steps:
        return block
    with remedy(segment):
        printed = read_colvar(segment / "colvar")
    xi = printed[block.argument]
    number, offset = freeenergy.bin_samples(block.grid, xi, printed["b.zeta"] - xi)
    sums = block.sums * (n_counted / block.steps)
    weight = sums[2].sum() / max(1.0, number.sum())
    sums[2:] = weight * np.array([number, offset])
    return replace(block, steps=n_counted, sums=sums)


def copy_state(folder: Path, target: Path) -> None:
    """Write the final estimate of all walkers of an iteration as one state file."""
    last = [list_segments_of(home)[-1] for home in list_homes(folder) if list_segments_of(home)]
    if len(last) == 1:
        with replacing(target) as temporary:
            shutil.copyfile(last[0] / "babf.state", temporary)
        return
    total = read_end(last[0])
    for segment in last[1:]:
        total = total + read_end(segment)
    freeenergy.write_state(target, total)


def describe_barrier(folder: Path) -> str:
    """The present barrier of an iteration, as text."""
    found, mean_force = read_learned(folder)
    return f"barrier {freeenergy.estimate_profile(found, mean_force=mean_force).barrier}"


def read_colvar(path: Path) -> dict[str, Array]:
    """Columns of a COLVAR file by name, shape (M,) each.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    return read_table(path).columns


def list_homes(folder: Path) -> list[Path]:
    """Folders with the segments of an iteration, one for each walker of each repetition."""
    return [home for base in _repetitions(folder) for home in _walkers(base)]


def _repetitions(folder: Path) -> list[Path]:
    """Folders of the independent repetitions of an iteration; the first one is its own folder."""
    return [folder, *sorted(path for path in folder.glob("repetition-*") if path.is_dir())]


def _walkers(folder: Path) -> list[Path]:
    """Folders of the walkers of one repetition, or its own folder if there is only one walker."""
    return sorted(path for path in folder.glob("walker-*") if path.is_dir()) or [folder]


def list_segments_of(home: Path) -> list[Path]:
    """Complete segments of one walker, in order."""
    return sorted(path.parent for path in home.glob("segment-*/segment.json"))


def segment_name(k: int) -> str:
    """Name of segment k. The alphabetical order of names is that of the numbers."""
    return f"segment-{k:06d}"


def number_of(segment: Path) -> int:
    """The k of `segment_name`."""
    return int(segment.name.removeprefix("segment-"))


def read_end(segment: Path) -> freeenergy.State:
    """State of a walker at the end of a complete segment.

    Raises
    ------
    UserError
        If the file is missing or damaged.
    """
    with remedy(segment):
        return freeenergy.read_state(segment / "babf.state")


@contextmanager
def remedy(segment: Path) -> Iterator[None]:
    """Add the remedy to an error in a file of a segment.

    Raises
    ------
    UserError
        With the message of the reader and the remedy.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}; {_remedy_of(segment)}") from None


def _remedy_of(segment: Path) -> str:
    return (
        f"remove the folder {segment} and run again: the other segments stay, and steps that are "
        "missing are sampled again."
    )
