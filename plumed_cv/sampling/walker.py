"""Shares of walkers: segment after segment, from the existing ones to the last step."""

import json
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase import units

from plumed_cv import freeenergy
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import locked, write_text
from plumed_cv.common.progress import Update
from plumed_cv.engines import RECORD, Engine, Segment, SegmentResult, State, deviation, read_record
from plumed_cv.freeenergy import meanforce
from plumed_cv.sampling import guard
from plumed_cv.sampling.folders import (
    ATOMS,
    MEAN_FORCE,
    count_steps,
    describe_barrier,
    list_segments_of,
    read_colvar,
    read_end,
    segment_name,
)
from plumed_cv.sampling.next_segment import (
    NATIVE,
    make_segment,
    prepare_segment,
    skipped_steps,
    whole_limit,
    write_native,
)
from plumed_cv.sampling.task import WalkerTask

BEGINNINGS = 5  # attempts to heat the first segment: at high temperature, an atom may hop meanwhile
PATIENCE_S = 30.0  # for a process that is being stopped, or whose parent was killed

_Share = Generator[Segment, SegmentResult, None]


def run_walkers(
    tasks: Sequence[WalkerTask],
    engine: Engine,
    update: Update = lambda done, note: None,
    *,
    rescue: bool = False,
) -> None:
    """Run the missing part of the share of one walker, or of several together.

    Several walkers begin their segments at the same time, and an engine may evaluate their
    structures in batches. A walker whose segment the guard ends waits for the others.

    Parameters
    ----------
    tasks
        The shares.
    engine
        The engine that runs them.
    update
        Called with the number of steps completed by these walkers.
    rescue
        Whether a segment that was cut short is continued from its last state instead of repeated.

    Raises
    ------
    UserError
        If the engine refuses, the guard stops all trajectories of a walker, another process works
        there, or a file `stop` appears in the folder of the iteration.
    """
    folder, sampling = tasks[0].folder, tasks[0].config.sampling
    is_whole = len(tasks) == sampling.walkers * sampling.repetitions
    with ExitStack() as stack:
        shares = [_share(task, engine, rescue) for task in tasks]
        if len(tasks) > 1:
            shares = [_name_walker(task, share) for task, share in zip(tasks, shares, strict=True)]
        waiting = [stack.enter_context(closing(share)) for share in shares]
        results: list[SegmentResult | None] = [None] * len(waiting)
        while wanted := _next_segments(waiting, results):
            k, steps = tasks[0].next, sum(count_steps(task.done()) for task in tasks)
            note = describe_barrier(folder) if is_whole and k and k % 4 == 0 else ""

            def progress(i: int, before: int = steps, note: str = note) -> None:
                if (folder / "stop").exists():
                    raise UserError(
                        f"{folder / 'stop'}: this file ends the sampling; run again to continue."
                    )
                update(before + i, note)

            progress(0)
            waiting = [share for share, _ in wanted]
            results = list(engine.run_all([segment for _, segment in wanted], progress))


def _next_segments(
    shares: Sequence[_Share], results: Sequence[SegmentResult | None]
) -> list[tuple[_Share, Segment]]:
    """Give shares the results of their segments; return those that go on, and their next ones."""
    wanted = []
    for share, result in zip(shares, results, strict=True):
        with suppress(StopIteration):
            wanted.append((share, next(share) if result is None else share.send(result)))
    return wanted


def prepare(tasks: Sequence[WalkerTask], engine: Engine) -> list[WalkerTask]:
    """Write the plumed.dat of the next segment of each walker, without running it.

    Samples of a segment that was cut short are kept, up to its last state.

    Returns
    -------
    Orders with a missing part.

    Raises
    ------
    UserError
        If another process works on one of them.
    """
    waiting = []
    for task in tasks:
        if task.is_done:
            continue
        (task.folder / "stop").unlink(missing_ok=True)
        with at_work(task):
            _check_states(task)
            _take_in(task, engine)
            _rescue(task, engine)
            if not task.is_done:
                segment = prepare_segment(task, task.done())
                assert isinstance(segment.plumed, str)
                write_text(segment.directory / "plumed.dat", segment.plumed)
                write_native(task, engine)
                waiting.append(task)
            else:
                shutil.rmtree(task.home / NATIVE, ignore_errors=True)  # all its results are read
    return waiting


@contextmanager
def at_work(task: WalkerTask) -> Iterator[None]:
    """Ensure that only this process works on this walker.

    Raises
    ------
    UserError
        If another process works on it for longer than it may take to end.
    """
    task.home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(task.home / ".lock", PATIENCE_S))
        except TimeoutError:
            raise UserError(
                f"{task.home}: another process works in this folder; end it and run again."
            ) from None
        yield


def _check_states(task: WalkerTask) -> None:
    """Refuse a damaged state before any step; PLUMED and the analysis would find it only later.

    Raises
    ------
    UserError
        If the state of a complete segment is missing or damaged.
    """
    for segment in list_segments_of(task.home):
        read_end(segment)


def _share(task: WalkerTask, engine: Engine, rescue: bool) -> _Share:
    """Yield the missing segments of a walker, and receive their results."""
    with at_work(task):
        _check_states(task)
        _take_in(task, engine)
        if rescue:
            _rescue(task, engine)
        done = task.done()
        while count_steps(done) < task.steps:
            for attempt in range(BEGINNINGS):
                segment = prepare_segment(task, done, attempt)
                outcome = yield segment
                if not _left_at_once(segment, outcome):
                    break
            if not outcome.stopped:
                _check_state(segment.directory / "babf.state", segment.first_step + outcome.n_steps)
            done.append(_keep(task, segment, outcome, engine))


def _name_walker(task: WalkerTask, share: _Share) -> _Share:
    """Yield from the share of one of several walkers, whose number is added to messages."""
    try:
        yield from share
    except UserError as error:
        raise UserError(f"{describe_end(task)}: {error}") from error


def describe_end(task: WalkerTask) -> str:
    """Return the beginning of the message about a walker that cannot continue."""
    return f"{task.base}: walker {task.walker} ended before its share was done"


def _left_at_once(segment: Segment, outcome: SegmentResult) -> bool:
    """Whether the guard ended a segment before BABF learned: then there is no state."""
    return outcome.stopped and not (segment.directory / "babf.state").exists()


def _keep(
    task: WalkerTask, segment: Segment, outcome: SegmentResult, engine: Engine
) -> dict[str, Any]:
    """Turn an unfinished segment into a complete one; return its record.

    Its files then contain only what counts: neither the beginning of the first segment, in which
    the atoms reach the temperature, nor the way out of the limit of the guard.
    """
    folder = segment.directory
    began = time.monotonic()
    part: dict[str, Any] = {
        "n_steps": outcome.n_steps,
        "stopped": outcome.stopped,
    }
    skipped = min(skipped_steps(task, segment), outcome.n_steps)
    n_kept, end = outcome.n_steps, outcome.end
    if outcome.stopped:
        if _left_at_once(segment, outcome):
            _refuse_deviation(task, outcome)
            raise UserError(
                f"sampling.atom_deviation_limit_A = {task.config.sampling.atom_deviation_limit_A}"
                f": {BEGINNINGS} trajectories from the start of iteration {task.iteration} left "
                f"the mean path before anything was learned, the last one after {outcome.n_steps} "
                "steps; raise this limit in a new directory, or relax the structure first"
            )
        outcome.end.save(folder / "left.npz")
        departure = guard.Departure.of(task.variable, outcome.end)
        part["departure"] = departure.as_dict() | {"model_deviation": outcome.deviation}
        atom = departure.atom if outcome.stopped_by_plumed else None
        n_kept, end = _back_inside(task, segment, atom)
    end.save(folder / "end.npz")
    stride = task.config.sampling.snapshot_stride
    first, last = -(-skipped // stride), n_kept // stride
    part["n_counted"] = stride * max(0, last - first)
    if skipped or outcome.stopped:
        from plumed_cv.structures.trajectory import keep  # importing mdtraj takes most of a second

        whole = segment.snapshot_stride
        keep(
            folder / "snapshots.dcd",
            -(-skipped // whole),
            n_kept // whole,
            periodic=bool(engine.periodic.any()),
        )
        timestep_fs = segment.dynamics.timestep_fs
        # Engines write different digits of a time.
        begin = (skipped + 0.5) * timestep_fs if skipped else -np.inf
        for table in _tables(folder):
            _cut_table(table, begin, (n_kept + 0.5) * timestep_fs)
    _write_mean_force(task, folder, engine, slice(first, max(first, last)))
    part["seconds"] = outcome.seconds + time.monotonic() - began
    write_text(folder / "segment.json", json.dumps(part))
    final = task.home / folder.name.removeprefix("unfinished-")
    shutil.rmtree(final, ignore_errors=True)  # remains of a removed segment
    folder.replace(final)
    return part


def _tables(folder: Path) -> list[Path]:
    """The tables of a segment that have a line for each printed value."""
    return [folder / "colvar", *folder.glob(deviation.FILE)]


def _refuse_deviation(task: WalkerTask, outcome: SegmentResult) -> None:
    """Refuse a limit of the model deviation that is exceeded before anything is learned."""
    if outcome.deviation is not None:
        raise UserError(
            f"sampling.model_deviation_limit = {task.config.sampling.model_deviation_limit:g}: "
            f"{BEGINNINGS} trajectories from the start of iteration {task.iteration} exceeded it "
            f"before anything was learned, the last one by {outcome.deviation:.3g} after "
            f"{outcome.n_steps} steps; raise this limit in a new directory, or train the potential "
            "on such structures first"
        )


def _back_inside(task: WalkerTask, segment: Segment, atom: int | None) -> tuple[int, State]:
    """Steps of a segment that count after the guard stopped it, and the state at their end.

    The atom that left the process is given by its serial number; None if none left.
    """
    from plumed_cv.structures.trajectory import read_positions  # importing mdtraj takes a second

    limits = task.atom_limit_A, whole_limit(task, task.next)
    stride = task.config.sampling.snapshot_stride
    fewer = segment.snapshot_stride // stride  # records for each whole snapshot
    columns = read_colvar(segment.directory / "colvar")
    steps = np.rint(columns["time"] / segment.dynamics.timestep_fs).astype(int)
    kept = steps > 0  # there is no snapshot of the start
    largest, whole = columns["ae.maxdev"][kept], columns["ae.dev"][kept]
    outside = np.zeros(len(largest), dtype=bool)
    for values, limit in zip((largest, whole), limits, strict=True):
        if limit is not None:
            outside |= values > limit
    if segment.watch is not None:
        found = read_colvar(segment.directory / deviation.FILE)["deviation"][: len(largest)]
        outside[: len(found)] |= found > segment.watch.limit
    first_out = int(outside.argmax()) if outside.any() else len(outside)
    for k in guard.find_inside(largest[:first_out], whole[:first_out], *limits)[::-1].tolist():
        if (k + 1) % fewer:
            continue
        number = (k + 1) // fewer - 1
        state = State(
            read_positions(segment.directory / "snapshots.dcd", number), segment.start.cell
        )
        if (
            atom is None
            or limits[0] is None
            or guard.is_home(task.variable, state, atom, limits[0])
        ):
            return (k + 1) * stride, state
    return 0, State(segment.start.positions, segment.start.cell)


def _rescue(task: WalkerTask, engine: Engine) -> bool:
    """Keep the samples of a segment that was cut short, up to its last state.

    The next segment starts from its last snapshot, with new velocities.

    Returns
    -------
    Whether there were samples to keep.
    """
    done = task.done()
    k = task.next
    folder = task.home / f"unfinished-{segment_name(k)}"
    state = folder / "babf.state"
    try:
        n_steps = freeenergy.read_last_step(state)
    except UserError:  # there is no state, or PLUMED was writing the first one
        return False
    if not n_steps:
        return False
    segment = make_segment(task, done, folder, records=(folder / RECORD).exists())
    end = engine.rescue(segment, n_steps)
    if end is None:
        return False
    # Engines write different digits of a time.
    last = (n_steps + 0.5) * task.config.sampling.timestep_fs
    for table in _tables(folder):
        _cut_table(table, -np.inf, last)
    seconds = state.stat().st_mtime - (folder / "plumed.dat").stat().st_mtime
    snapshots = folder / "snapshots.dcd"
    stopped = _guard_spoke(folder)
    outcome = SegmentResult(
        n_steps, stopped, end, snapshots, max(0.0, seconds), _last_deviation(segment)
    )
    _keep(task, segment, outcome, engine)
    return True


def _guard_spoke(folder: Path) -> bool:
    """Whether the limit of the guard was exceeded in a segment: COMMITTOR then writes a line."""
    return any(
        line.strip() and not line.startswith("#")
        for file in folder.glob("guard.*")
        for line in file.read_text(encoding="utf-8").splitlines()
    )


def _last_deviation(segment: Segment) -> float | None:
    """The last model deviation of a segment that was cut short, if it is beyond the limit."""
    file = segment.directory / deviation.FILE
    if segment.watch is None or not file.exists():
        return None
    found = read_colvar(file)["deviation"]
    return float(found[-1]) if len(found) and found[-1] > segment.watch.limit else None


def _write_mean_force(task: WalkerTask, folder: Path, engine: Engine, counted: slice) -> None:
    """Write positions of the variable's atoms, the forces on them, and their sums along xi.

    The forces are those of the potential without the bias. If the engine has not recorded them,
    they are computed again in the snapshots.

    Parameters
    ----------
    task, engine
        As for `run_walkers`.
    folder
        The folder of the segment, with the snapshots that count.
    counted
        The records that count.
    """
    if not task.wants_forces:
        return
    variable = task.variable
    record, trajectory = folder / RECORD, folder / "snapshots.dcd"
    if record.exists():
        positions, forces = (part[counted] for part in read_record(record, variable.n_atoms))
    elif trajectory.exists():
        positions, forces = meanforce.compute_forces(
            variable, trajectory, task.start.cell, engine.forces
        )
    else:
        positions, forces = np.zeros((2, 0, variable.n_atoms, 3))
    meanforce.write_atoms(folder / ATOMS, positions, forces)
    record.unlink(missing_ok=True)
    kT_eV = units.kB * task.config.system.temperature_K
    found = meanforce.read_instantaneous(variable, folder / ATOMS, task.start.cell, kT_eV)
    meanforce.write(folder / MEAN_FORCE, *found)


def _take_in(task: WalkerTask, engine: Engine) -> None:
    """Read the results of the engine's own inputs (`write_native`), as far as they exist."""
    while not task.is_done:
        name = segment_name(task.next)
        if not (task.home / NATIVE / name / "babf.state").is_file():
            return
        unfinished = task.home / f"unfinished-{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(task.home / NATIVE / name, unfinished)
        if not _rescue(task, engine):
            return


def _cut_table(file: Path, first: float, last: float) -> None:
    """Keep only complete lines between two times in a file that PLUMED prints."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    width = len(lines[0].split()) - 2  # of "#! FIELDS ..."

    def stays(line: str) -> bool:
        words = line.split()
        whole = line.endswith("\n") and len(words) == width
        return line.startswith("#") or (whole and first < float(words[0]) <= last)

    write_text(file, "".join(filter(stays, lines)))


def _check_state(file: Path, last_step: int) -> None:
    """Raise a UserError unless a state was written at the end of its segment.

    PLUMED writes the state when it is closed, and cannot report that the disk was full.
    """
    try:
        found = freeenergy.read_last_step(file)
    except UserError as error:
        raise UserError(f"{error}. Is the disk full? Make room and run again.") from None
    if found != last_step:
        raise UserError(
            f"{file}: contains step {found} and not the last one, {last_step}; is the disk full? "
            "Make room and run again."
        )
