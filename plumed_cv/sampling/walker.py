"""One walker's share: segment after segment, from what is there to the last step."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from filelock import FileLock, Timeout

from plumed_cv import babf, meanforce
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import (
    Dynamics,
    Engine,
    Segment,
    SegmentResult,
    State,
    maxwell_boltzmann,
)
from plumed_cv.errors import UserError
from plumed_cv.files import write_text
from plumed_cv.plumed import babf_input
from plumed_cv.progress import Update
from plumed_cv.sampling.folders import (
    MEAN_FORCE,
    barrier_so_far,
    remedy,
    segment_name,
    segments_of,
    state_of,
    steps_of,
)
from plumed_cv.sampling.order import Order

NATIVE = "native"  # folder of inputs that need no plumed_cv where they run
RESTARTS = 20  # so many guard stops one after the other mean that the guard is too tight
PATIENCE_S = 30.0  # for a process that was told to stop, or whose parent was killed


def run_walker(
    order: Order,
    engine: Engine,
    update: Update = lambda done, note: None,
    *,
    rescue: bool = False,
) -> None:
    """Run what is missing of one walker's share.

    Parameters
    ----------
    order
        The share.
    engine
        Runs it.
    update
        Is told the steps done.
    rescue
        Whether a segment that was cut short is gone on with, from its last state, and not repeated.

    Raises
    ------
    UserError
        If the engine refuses, the guard never lets it go on, another process works there, or a
        file `stop` appears in the iteration's folder.
    """
    with at_work(order):
        _check_states(order)
        _take_in(order, engine)
        if rescue:
            _rescue(order, engine)
        _run_segments(order, engine, update)


def prepare(orders: Sequence[Order], engine: Engine) -> list[Order]:
    """Write the plumed.dat that each walker's next segment begins with, and run nothing.

    What a segment that was cut short has sampled is kept, up to its last state.

    Returns
    -------
    Those orders of which something is missing.

    Raises
    ------
    UserError
        If another process works on one of them.
    """
    waiting = []
    for order in orders:
        if order.is_done:
            continue
        (order.folder / "stop").unlink(missing_ok=True)
        with at_work(order):
            _check_states(order)
            _take_in(order, engine)
            _rescue(order, engine)
            if not order.is_done:
                segment = _next_segment(order, order.done())
                assert isinstance(segment.plumed, str)
                write_text(segment.directory / "plumed.dat", segment.plumed)
                _write_native(order, engine)
                waiting.append(order)
            else:
                shutil.rmtree(order.home / NATIVE, ignore_errors=True)  # all of it is taken in
    return waiting


@contextmanager
def at_work(order: Order) -> Iterator[None]:
    """Be the only process that works on this walker.

    Raises
    ------
    UserError
        If another one does, for longer than it may take to end.
    """
    order.home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(order.home / ".lock")
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        raise UserError(
            f"{order.home}: another process is at work there; end it and run again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _check_states(order: Order) -> None:
    """Refuse a damaged state before any step: PLUMED and the analysis would find it later.

    Raises
    ------
    UserError
        If that of a whole segment is missing or damaged.
    """
    for segment in segments_of(order.home):
        state_of(segment)


def _run_segments(order: Order, engine: Engine, update: Update) -> None:
    sampling, stop = order.config.sampling, order.folder / "stop"
    several = sampling.walkers * sampling.repetitions > 1
    done = order.done()
    steps = steps_of(done)
    while steps < order.steps:
        k = order.next
        segment = _next_segment(order, done)
        note = barrier_so_far(order.folder) if k and k % 4 == 0 and not several else ""

        def progress(i: int, before: int = steps, note: str = note) -> None:
            if stop.exists():
                raise UserError(f"{stop}: this file ends the sampling; run again to go on.")
            update(before + i, note)

        progress(0)
        outcome = engine.run(segment, progress)
        if not outcome.stopped_by_plumed:
            _check_state(segment.directory / "babf.state", segment.first_step + outcome.n_steps)
        done.append(_keep(order, k, outcome, engine))
        steps += outcome.n_steps


def _keep(order: Order, k: int, outcome: SegmentResult, engine: Engine) -> dict[str, Any]:
    """Make a whole segment of an unfinished one; return its record."""
    folder = order.home / f"unfinished-{segment_name(k)}"
    outcome.end.save(folder / "end.npz")
    began = time.monotonic()
    _write_mean_force(order, folder, engine)
    part = {
        "n_steps": outcome.n_steps,
        "stopped": outcome.stopped_by_plumed,
        "seconds": outcome.seconds + time.monotonic() - began,
    }
    write_text(folder / "segment.json", json.dumps(part))
    shutil.rmtree(order.home / segment_name(k), ignore_errors=True)  # what is left of a removed one
    folder.replace(order.home / segment_name(k))
    return part


def _rescue(order: Order, engine: Engine) -> bool:
    """Keep what a segment that was cut short has sampled, up to its last state.

    The next segment starts from its last snapshot, with new velocities.

    Returns
    -------
    Whether there was something to keep.
    """
    done = order.done()
    k = order.next
    folder = order.home / f"unfinished-{segment_name(k)}"
    state = folder / "babf.state"
    try:
        n_steps = babf.last_step(state)
    except UserError:  # there is none, or PLUMED was writing the first one
        return False
    if not n_steps:
        return False
    segment = _segment(order, done, folder, None)
    end = engine.rescue(segment, n_steps)
    if end is None:
        return False
    # Engines differ in the digits of a time.
    _cut_table(folder / "colvar", (n_steps + 0.5) * order.config.sampling.timestep_fs)
    seconds = state.stat().st_mtime - (folder / "plumed.dat").stat().st_mtime
    snapshots = folder / "snapshots.dcd"
    _keep(order, k, SegmentResult(n_steps, False, end, snapshots, max(0.0, seconds)), engine)
    return True


def _write_mean_force(order: Order, folder: Path, engine: Engine) -> None:
    """Compute the forces in a segment's snapshots, without the bias, and what they are along xi.

    Nothing where the input does not want it, or says nothing and it cannot be had.
    """
    wanted = order.config.sampling.mean_force
    if wanted is False or (wanted is None and order.config.engine.name == "gromacs"):
        return
    variable = CollectiveVariable.load(order.model)
    if wanted is None and not meanforce.is_known(variable):
        return
    xi, along = np.zeros((2, 0))
    if (file := folder / "snapshots.dcd").exists():
        kT_eV = units.kB * order.config.system.temperature_K
        xi, along = meanforce.of_trajectory(variable, file, order.start.cell, engine.forces, kT_eV)
    meanforce.write(folder / MEAN_FORCE, xi, along)


def _take_in(order: Order, engine: Engine) -> None:
    """Keep what the engine's own inputs have given (`_write_native`), as far as it goes."""
    while not order.is_done:
        name = segment_name(order.next)
        if not (order.home / NATIVE / name / "babf.state").is_file():
            return
        unfinished = order.home / f"unfinished-{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(order.home / NATIVE / name, unfinished)
        if not _rescue(order, engine):
            return


def _write_native(order: Order, engine: Engine) -> None:
    """Write the segments that are missing as inputs of the engine alone, in a folder of their own.

    Not for several walkers, nor with a guard, after which a segment starts from the beginning, nor
    for an engine that is no program.
    """
    native, sampling, done = order.home / NATIVE, order.config.sampling, order.done()
    shutil.rmtree(native, ignore_errors=True)
    if sampling.walkers > 1 or sampling.deviation_limit_A is not None:
        return
    native.mkdir()
    for file in (order.model, order.plugin, order.prior):
        if file is not None:
            shutil.copyfile(file, native / file.name)
    if (previous := order.previous) is not None:
        (native / previous.name).mkdir()
        shutil.copyfile(previous / "babf.state", native / previous.name / "babf.state")
    there = replace(
        order,
        model=native / order.model.name,
        prior=None if order.prior is None else native / order.prior.name,
    )
    first = _segment(order, done, native, None)
    parts: list[Segment] = []
    left = order.steps - steps_of(done)
    for k in range(order.next, order.next + -(-left // order.segment_steps)):
        folder = native / segment_name(k)
        folder.mkdir()
        n_steps = min(order.segment_steps, left)
        text = _plumed_dat(there, k, folder, Path("..") / order.plugin.name)
        part = replace(first, directory=folder, n_steps=n_steps, seed=_seed(order, k), plumed=text)
        parts.append(replace(part, count_start=False) if parts else part)
        left -= n_steps
    if not engine.write_job(native, parts):
        shutil.rmtree(native)


def _cut_table(file: Path, last: float) -> None:
    """Leave of a file that PLUMED prints the whole lines up to a time."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    width = len(lines[0].split()) - 2  # of "#! FIELDS ..."

    def stays(line: str) -> bool:
        words = line.split()
        whole = line.endswith("\n") and len(words) == width
        return line.startswith("#") or (whole and float(words[0]) <= last)

    write_text(file, "".join(filter(stays, lines)))


def _check_state(file: Path, last_step: int) -> None:
    """Raise a UserError unless a state was written at the end of its segment.

    PLUMED writes it when it is taken down and cannot report that there was no room.
    """
    try:
        found = babf.last_step(file)
    except UserError as error:
        raise UserError(f"{error}. Is the disk full? Make room and run again.") from None
    if found != last_step:
        raise UserError(
            f"{file}: is of step {found} and not of the last, {last_step}; is the disk full? Make "
            "room and run again."
        )


def _next_segment(order: Order, done: Sequence[dict[str, Any]]) -> Segment:
    """Make the folder of the segment that comes after these; what was in it is removed."""
    sampling = order.config.sampling
    several = sampling.walkers > 1
    shared = order.shared
    if several:
        shared.mkdir(exist_ok=True)
    k = order.next
    if k >= RESTARTS and all(part["stopped"] for part in done[-RESTARTS:]):
        raise UserError(
            f"sampling.deviation_limit_A = {sampling.deviation_limit_A}: the last "
            f"{RESTARTS} parts of iteration {order.iteration} all ended there; thermal motion "
            "alone exceeds it (see ae.dev in colvar). Start with a larger one in a new "
            "directory."
        )
    if k == 0:  # what a first segment that was killed has contributed
        (shared / f"walker-{order.walker}.state").unlink(missing_ok=True)
    unfinished = order.home / f"unfinished-{segment_name(k)}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    plumed_dat = _plumed_dat(order, k, unfinished, order.plugin)
    return _segment(order, done, unfinished, plumed_dat)


def _plumed_dat(order: Order, k: int, folder: Path, plugin: Path) -> str:
    """The PLUMED input of segment k, in a folder beside that of the one before."""
    sampling = order.config.sampling
    lines = babf_input(
        plugin,
        _relative(order.model, folder),
        temperature_K=order.config.system.temperature_K,
        **order.parameters._asdict(),
        state_in=Path("..") / segment_name(k - 1) / "babf.state" if k else None,
        prior=_relative(order.prior, folder) if order.prior and not k else None,
        state_out=Path("babf.state"),
        state_stride=order.state_steps,
        colvar=Path("colvar"),
        colvar_stride=sampling.snapshot_stride,
        deviation_limit_A=sampling.deviation_limit_A,
        walkers=(sampling.walkers, order.walker, _relative(order.shared, folder))
        if sampling.walkers > 1
        else None,
    )
    return lines + sampling.plumed


def _segment(
    order: Order, done: Sequence[dict[str, Any]], folder: Path, plumed_dat: str | None
) -> Segment:
    """The segment that comes after these, in a folder."""
    sampling, k = order.config.sampling, order.next
    fresh = k == 0 or done[-1]["stopped"]
    return Segment(
        directory=folder,
        start=_fresh_start(order, k) if fresh else _end_of(order.home / segment_name(k - 1)),
        dynamics=Dynamics(
            order.config.system.temperature_K,
            sampling.timestep_fs,
            sampling.thermostat,
            sampling.friction_per_ps,
        ),
        n_steps=min(order.segment_steps, order.steps - steps_of(done)),
        seed=_seed(order, k),
        plumed=plumed_dat,
        count_start=fresh,
        snapshot_stride=sampling.snapshot_stride,
    )


def _fresh_start(order: Order, k: int) -> State:
    """Where segment k starts when it follows none.

    Atoms at rest in a structure of the minimum energy path have no energy in their springs and
    give half of their kinetic energy to them at once, so they get twice of it.
    """
    if not order.at_rest:
        return order.start
    rng = np.random.default_rng(_seed(order, k))
    masses, doubled_K = order.atoms.get_masses(), 2.0 * order.config.system.temperature_K
    return replace(order.start, velocities=maxwell_boltzmann(rng, masses, doubled_K))


def _end_of(segment: Path) -> State:
    """Where a whole segment ended."""
    with remedy(segment):
        return State.load(segment / "end.npz")


def _relative(path: Path, folder: Path) -> Path:
    """So that the run directory can be moved."""
    return Path(os.path.relpath(path, folder))


def _seed(order: Order, segment: int) -> int:
    key = [order.config.iteration.seed, order.iteration, segment]
    if order.config.sampling.walkers > 1 or order.repetition:
        key.append(order.walker)
    if order.repetition:
        key.append(order.repetition)
    return int(np.random.SeedSequence(key).generate_state(1)[0])
