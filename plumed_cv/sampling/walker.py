"""Share of one walker: segment after segment, from the existing ones to the last step."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import units

from plumed_cv import freeenergy
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import locked, write_text
from plumed_cv.common.progress import Update
from plumed_cv.engines import (
    RECORD,
    Dynamics,
    Engine,
    Record,
    Segment,
    SegmentResult,
    State,
    maxwell_boltzmann,
    read_record,
)
from plumed_cv.freeenergy import meanforce
from plumed_cv.sampling import guard
from plumed_cv.sampling.folders import (
    ATOMS,
    MEAN_FORCE,
    barrier_so_far,
    read_colvar,
    remedy,
    segment_name,
    segments_of,
    state_of,
    steps_of,
)
from plumed_cv.sampling.task import WalkerTask
from plumed_cv.setup.plugin import babf_input

NATIVE = "native"  # folder of inputs that run without plumed_cv
RESTARTS = 20  # this number of successive stops by the guard without a valid snapshot ends the run
EQUILIBRATION_PS = 0.4  # of the first segment: the bias acts, but no sample counts
PATIENCE_S = 30.0  # for a process that is being stopped, or whose parent was killed


def run_walker(
    task: WalkerTask,
    engine: Engine,
    update: Update = lambda done, note: None,
    *,
    rescue: bool = False,
) -> None:
    """Run the missing part of one walker's share.

    Parameters
    ----------
    task
        The share.
    engine
        The engine that runs it.
    update
        Called with the number of completed steps.
    rescue
        Whether a segment that was cut short is continued from its last state instead of repeated.

    Raises
    ------
    UserError
        If the engine refuses, the guard stops all trajectories, another process works there, or a
        file `stop` appears in the folder of the iteration.
    """
    with at_work(task):
        _check_states(task)
        _take_in(task, engine)
        if rescue:
            _rescue(task, engine)
        _run_segments(task, engine, update)


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
                segment = _next_segment(task, task.done())
                assert isinstance(segment.plumed, str)
                write_text(segment.directory / "plumed.dat", segment.plumed)
                _write_native(task, engine)
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
    for segment in segments_of(task.home):
        state_of(segment)


def _run_segments(task: WalkerTask, engine: Engine, update: Update) -> None:
    sampling, stop = task.config.sampling, task.folder / "stop"
    several = sampling.walkers * sampling.repetitions > 1
    done = task.done()
    steps = steps_of(done)
    while steps < task.steps:
        k = task.next
        segment = _next_segment(task, done)
        note = barrier_so_far(task.folder) if k and k % 4 == 0 and not several else ""

        def progress(i: int, before: int = steps, note: str = note) -> None:
            if stop.exists():
                raise UserError(f"{stop}: this file ends the sampling; run again to continue.")
            update(before + i, note)

        progress(0)
        outcome = engine.run(segment, progress)
        if not outcome.stopped_by_plumed:
            _check_state(segment.directory / "babf.state", segment.first_step + outcome.n_steps)
        done.append(_keep(task, segment, outcome, engine))
        steps += outcome.n_steps


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
        "stopped": outcome.stopped_by_plumed,
    }
    skipped = min(_skipped(task, segment), outcome.n_steps)
    n_kept, end = outcome.n_steps, outcome.end
    if outcome.stopped_by_plumed:
        if not (folder / "babf.state").exists():
            raise UserError(
                f"sampling.atom_deviation_limit_A = {task.config.sampling.atom_deviation_limit_A}"
                f": the first trajectory of iteration {task.iteration} left the mean path after "
                f"{outcome.n_steps} steps, before anything was learned; raise this limit in a new "
                "directory, or relax the structure first"
            )
        outcome.end.save(folder / "left.npz")
        departure = guard.Departure.of(task.variable, outcome.end)
        part["departure"] = departure.as_dict()
        n_kept, end = _back_inside(task, segment, departure.atom)
    end.save(folder / "end.npz")
    stride = task.config.sampling.snapshot_stride
    first, last = -(-skipped // stride), n_kept // stride
    part["n_counted"] = stride * max(0, last - first)
    if skipped or outcome.stopped_by_plumed:
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
        _cut_table(folder / "colvar", begin, (n_kept + 0.5) * timestep_fs)
    _write_mean_force(task, folder, engine, slice(first, max(first, last)))
    part["seconds"] = outcome.seconds + time.monotonic() - began
    write_text(folder / "segment.json", json.dumps(part))
    final = task.home / folder.name.removeprefix("unfinished-")
    shutil.rmtree(final, ignore_errors=True)  # remains of a removed segment
    folder.replace(final)
    return part


def _skipped(task: WalkerTask, segment: Segment) -> int:
    """Steps at the beginning of a segment that do not count: the heat-up of the first segment.

    After a stop by the guard the positions are those of the equilibrium, and the velocities are
    independent of them.
    """
    if task.next or not segment.count_start:
        return 0
    steps = round(1000.0 * EQUILIBRATION_PS / segment.dynamics.timestep_fs)
    stride = task.config.sampling.snapshot_stride
    return min(steps, task.segment_steps // 4) // stride * stride


def _whole_limit(task: WalkerTask, k: int) -> float | None:
    """Limit on the distance of the whole structure from the path in segment k, angstrom.

    Atoms that start at rest with twice the kinetic energy move away together. For a moment all
    energy is potential energy, twice as much as in equilibrium.
    """
    limit = task.config.sampling.deviation_limit_A
    return limit * 2.0**0.5 if limit is not None and k == 0 and task.at_rest else limit


def _back_inside(task: WalkerTask, segment: Segment, atom: int) -> tuple[int, State]:
    """Steps of a segment that count after the guard stopped an atom, and the state at their end.

    The atom is given by its serial number.
    """
    from plumed_cv.structures.trajectory import positions_of  # importing mdtraj takes a second

    limits = task.atom_limit_A, _whole_limit(task, task.next)
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
    first_out = int(outside.argmax()) if outside.any() else len(outside)
    for k in guard.inside(largest[:first_out], whole[:first_out], *limits)[::-1].tolist():
        if (k + 1) % fewer:
            continue
        number = (k + 1) // fewer - 1
        state = State(positions_of(segment.directory / "snapshots.dcd", number), segment.start.cell)
        if limits[0] is None or guard.is_home(task.variable, state, atom, limits[0]):
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
        n_steps = freeenergy.last_step(state)
    except UserError:  # there is no state, or PLUMED was writing the first one
        return False
    if not n_steps:
        return False
    segment = _segment(task, done, folder, records=(folder / RECORD).exists())
    end = engine.rescue(segment, n_steps)
    if end is None:
        return False
    # Engines write different digits of a time.
    last = (n_steps + 0.5) * task.config.sampling.timestep_fs
    _cut_table(folder / "colvar", -np.inf, last)
    seconds = state.stat().st_mtime - (folder / "plumed.dat").stat().st_mtime
    snapshots = folder / "snapshots.dcd"
    stopped = _guard_spoke(folder)
    outcome = SegmentResult(n_steps, stopped, end, snapshots, max(0.0, seconds))
    _keep(task, segment, outcome, engine)
    return True


def _guard_spoke(folder: Path) -> bool:
    """Whether the limit of the guard was exceeded in a segment: COMMITTOR then writes a line."""
    return any(
        line.strip() and not line.startswith("#")
        for file in folder.glob("guard.*")
        for line in file.read_text(encoding="utf-8").splitlines()
    )


def _write_mean_force(task: WalkerTask, folder: Path, engine: Engine, counted: slice) -> None:
    """Write positions of the variable's atoms, the forces on them, and their sums along xi.

    The forces are those of the potential without the bias. If the engine has not recorded them,
    they are computed again in the snapshots.

    Parameters
    ----------
    task, engine
        As for `run_walker`.
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
        positions, forces = meanforce.computed(variable, trajectory, task.start.cell, engine.forces)
    else:
        positions, forces = np.zeros((2, 0, variable.n_atoms, 3))
    meanforce.write_atoms(folder / ATOMS, positions, forces)
    record.unlink(missing_ok=True)
    kT_eV = units.kB * task.config.system.temperature_K
    found = meanforce.of_atoms(variable, folder / ATOMS, task.start.cell, kT_eV)
    meanforce.write(folder / MEAN_FORCE, *found)


def _take_in(task: WalkerTask, engine: Engine) -> None:
    """Read the results of the engine's own inputs (`_write_native`), as far as they exist."""
    while not task.is_done:
        name = segment_name(task.next)
        if not (task.home / NATIVE / name / "babf.state").is_file():
            return
        unfinished = task.home / f"unfinished-{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(task.home / NATIVE / name, unfinished)
        if not _rescue(task, engine):
            return


def _write_native(task: WalkerTask, engine: Engine) -> None:
    """Write the missing segments as inputs of the engine alone, in a folder of their own.

    This is not done for several walkers, for an engine that is not a program, or with a guard for
    GROMACS, whose own PLUMED interface continues when PLUMED asks it to stop.
    """
    native, sampling, done = task.home / NATIVE, task.config.sampling, task.done()
    shutil.rmtree(native, ignore_errors=True)
    guarded = sampling.deviation_limit_A is not None or task.atom_limit_A is not None
    if sampling.walkers > 1 or (guarded and task.config.engine.name == "gromacs"):
        return
    native.mkdir()
    for file in (task.model, task.plugin, task.prior):
        if file is not None:
            shutil.copyfile(file, native / file.name)
    if (previous := task.previous) is not None:
        (native / previous.name).mkdir()
        shutil.copyfile(previous / "babf.state", native / previous.name / "babf.state")
    there = replace(
        task,
        model=native / task.model.name,
        prior=None if task.prior is None else native / task.prior.name,
    )
    first = _segment(task, done, native, records=False)
    parts: list[Segment] = []
    left = task.steps - steps_of(done)
    for k in range(task.next, task.next + -(-left // task.segment_steps)):
        folder = native / segment_name(k)
        folder.mkdir()
        n_steps = min(task.segment_steps, left)
        part = replace(first, directory=folder, n_steps=n_steps, seed=_seed(task, k))
        if parts:
            part = replace(part, count_start=False)
        text = _plumed_dat(there, k, folder, Path("..") / task.plugin.name, _skipped(task, part))
        parts.append(replace(part, plumed=text))
        left -= n_steps
    if not engine.write_job(native, parts):
        shutil.rmtree(native)


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
        found = freeenergy.last_step(file)
    except UserError as error:
        raise UserError(f"{error}. Is the disk full? Make room and run again.") from None
    if found != last_step:
        raise UserError(
            f"{file}: contains step {found} and not the last one, {last_step}; is the disk full? "
            "Make room and run again."
        )


def _next_segment(task: WalkerTask, done: Sequence[dict[str, Any]]) -> Segment:
    """Make the folder of the segment after `done`; an existing one is removed."""
    sampling = task.config.sampling
    several = sampling.walkers > 1
    shared = task.shared
    if several:
        shared.mkdir(exist_ok=True)
    k = task.next
    _check_progress(task, done)
    if k == 0:  # contribution of a first segment that was killed
        (shared / f"walker-{task.walker}.state").unlink(missing_ok=True)
    unfinished = task.home / f"unfinished-{segment_name(k)}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    segment = _segment(task, done, unfinished, records=task.records)
    skipped = _skipped(task, segment)
    return replace(segment, plumed=_plumed_dat(task, k, unfinished, task.plugin, skipped))


def _check_progress(task: WalkerTask, done: Sequence[dict[str, Any]]) -> None:
    """Refuse to continue if the guard ends every segment before anything in it counts.

    Raises
    ------
    UserError
        If this happened in the last `RESTARTS` segments.
    """
    last = done[-RESTARTS:]
    if len(last) < RESTARTS or any(part.get("n_counted", part["n_steps"]) for part in last):
        return
    of_atom = Counter(part["departure"]["atom"] for part in last)
    (atom, times), departure = of_atom.most_common(1)[0], last[-1]["departure"]
    raise UserError(
        f"iteration {task.iteration}: the guard ended the last {RESTARTS} trajectories at once "
        f"(atom {atom} left the path {times} times; the last time it was "
        f"{departure['distance_A']:.2f} A away, the structure {departure['deviation_A']:.2f} A); "
        f"sampling.atom_deviation_limit_A = {task.config.sampling.atom_deviation_limit_A} or "
        f"deviation_limit_A = {task.config.sampling.deviation_limit_A} is below the thermal "
        "motion, or the system leaves the process permanently: look at ae.maxdev and ae.dev in "
        "colvar, and start with a larger limit or a lower temperature in a new directory"
    )


def _plumed_dat(task: WalkerTask, k: int, folder: Path, plugin: Path, skipped: int) -> str:
    """Return the PLUMED input of segment k, in a folder next to that of the previous segment.

    The bias does not learn from the first `skipped` steps.
    """
    sampling = task.config.sampling
    lines = babf_input(
        plugin,
        _relative(task.model, folder),
        temperature_K=task.config.system.temperature_K,
        **task.parameters._asdict(),
        state_in=Path("..") / segment_name(k - 1) / "babf.state" if k else None,
        prior=_relative(task.prior, folder) if task.prior and not k else None,
        state_out=Path("babf.state"),
        state_stride=task.state_steps,
        colvar=Path("colvar"),
        colvar_stride=sampling.snapshot_stride,
        deviation_limit_A=_whole_limit(task, k),
        atom_limit_A=task.atom_limit_A,
        # A state is due after this number of samples, and must come before the step that is printed
        # next.
        learn_from_fs=(skipped - 0.5) * sampling.timestep_fs if skipped else None,
        walkers=(sampling.walkers, task.walker, _relative(task.shared, folder))
        if sampling.walkers > 1
        else None,
    )
    return lines + sampling.plumed


def _segment(
    task: WalkerTask, done: Sequence[dict[str, Any]], folder: Path, *, records: bool
) -> Segment:
    """Return the segment after `done`, in a folder, without a PLUMED input.

    The engine of `task` may record the forces on the variable's atoms; an input of an engine alone
    (`_write_native`) has none, but all whole snapshots.
    """
    sampling, k = task.config.sampling, task.next
    return Segment(
        directory=folder,
        start=_start_after(task, done) if done else _first_start(task),
        dynamics=Dynamics(
            task.config.system.temperature_K,
            sampling.timestep_fs,
            sampling.thermostat,
            sampling.friction_per_ps,
        ),
        n_steps=min(task.segment_steps, task.steps - steps_of(done)),
        seed=_seed(task, k),
        count_start=k == 0,
        snapshot_stride=task.whole_steps if records else sampling.snapshot_stride,
        record=Record(task.variable.serials, sampling.snapshot_stride) if records else None,
    )


def _start_after(task: WalkerTask, done: Sequence[dict[str, Any]]) -> State:
    """Configuration from which the segment after `done` starts.

    It is the end of the last segment if anything in it counts. After n segments that the guard
    ended at once, it is the end of the n-th last segment in which something counts, because their
    start was on a way out.
    """
    parts = segments_of(task.home)
    counted = [k for k, part in enumerate(done) if part.get("n_counted", part["n_steps"])]
    failed = len(done) - 1 - (counted[-1] if counted else -1)
    if failed and failed >= len(counted):
        return task.start
    return _end_of(parts[counted[-1 - failed]])


def _first_start(task: WalkerTask) -> State:
    """Configuration from which the first segment starts.

    Atoms at rest in a structure of the minimum energy path have no potential energy above it. They
    transfer half of their kinetic energy at once, so they get twice of it.
    """
    if not task.at_rest:
        return task.start
    rng = np.random.default_rng(_seed(task, 0))
    masses, doubled_K = task.atoms.get_masses(), 2.0 * task.config.system.temperature_K
    return replace(task.start, velocities=maxwell_boltzmann(rng, masses, doubled_K))


def _end_of(segment: Path) -> State:
    """Configuration at the end of a complete segment."""
    with remedy(segment):
        return State.load(segment / "end.npz")


def _relative(path: Path, folder: Path) -> Path:
    """Return a relative path, so that the run directory can be moved."""
    return Path(os.path.relpath(path, folder))


def _seed(task: WalkerTask, segment: int) -> int:
    key = [task.config.iteration.seed, task.iteration, segment]
    if task.config.sampling.walkers > 1 or task.repetition:
        key.append(task.walker)
    if task.repetition:
        key.append(task.repetition)
    return int(np.random.SeedSequence(key).generate_state(1)[0])
