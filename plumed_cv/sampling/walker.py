"""One walker's share: segment after segment, from what is there to the last step."""

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
    Dynamics,
    Engine,
    Segment,
    SegmentResult,
    State,
    maxwell_boltzmann,
)
from plumed_cv.freeenergy import meanforce
from plumed_cv.sampling import guard
from plumed_cv.sampling.folders import (
    FORCES,
    MEAN_FORCE,
    barrier_so_far,
    read_colvar,
    remedy,
    segment_name,
    segments_of,
    state_of,
    steps_of,
)
from plumed_cv.sampling.order import Order
from plumed_cv.setup.plugin import babf_input

NATIVE = "native"  # folder of inputs that need no plumed_cv where they run
RESTARTS = 20  # so many stops by the guard without a snapshot that counts end the run
EQUILIBRATION_PS = 0.4  # of a first segment: the bias acts and nothing counts
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
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(order.home / ".lock", PATIENCE_S))
        except TimeoutError:
            raise UserError(
                f"{order.home}: another process is at work there; end it and run again."
            ) from None
        yield


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
        done.append(_keep(order, segment, outcome, engine))
        steps += outcome.n_steps


def _keep(order: Order, segment: Segment, outcome: SegmentResult, engine: Engine) -> dict[str, Any]:
    """Make a whole segment of an unfinished one; return its record.

    Its files then hold what counts: neither the beginning of the first one, while the atoms come to
    the temperature, nor the way out of the guard's limit.
    """
    folder = segment.directory
    began = time.monotonic()
    part: dict[str, Any] = {
        "n_steps": outcome.n_steps,
        "stopped": outcome.stopped_by_plumed,
    }
    skipped = min(_skipped(order, segment), outcome.n_steps)
    n_kept, end = outcome.n_steps, outcome.end
    if outcome.stopped_by_plumed:
        if not (folder / "babf.state").exists():
            raise UserError(
                f"sampling.atom_deviation_limit_A = {order.config.sampling.atom_deviation_limit_A}"
                f": the first trajectory of iteration {order.iteration} left the mean path after "
                f"{outcome.n_steps} steps, before anything was learned; raise it in a new "
                "directory, or relax the structure first"
            )
        outcome.end.save(folder / "left.npz")
        departure = guard.Departure.of(order.variable, outcome.end)
        part["departure"] = departure.as_dict()
        n_kept, end = _back_inside(order, segment, departure.atom)
    end.save(folder / "end.npz")
    stride = segment.snapshot_stride
    first, last = -(-skipped // stride), n_kept // stride
    part["n_counted"] = stride * max(0, last - first)
    if skipped or outcome.stopped_by_plumed:
        from plumed_cv.structures.trajectory import keep  # mdtraj takes most of a second

        keep(folder / "snapshots.dcd", first, last, periodic=engine.periodic)
        timestep_fs = segment.dynamics.timestep_fs
        # Engines differ in the digits of a time.
        begin = (skipped + 0.5) * timestep_fs if skipped else -np.inf
        _cut_table(folder / "colvar", begin, (n_kept + 0.5) * timestep_fs)
    _write_mean_force(order, folder, engine)
    part["seconds"] = outcome.seconds + time.monotonic() - began
    write_text(folder / "segment.json", json.dumps(part))
    final = order.home / folder.name.removeprefix("unfinished-")
    shutil.rmtree(final, ignore_errors=True)  # what is left of a removed one
    folder.replace(final)
    return part


def _skipped(order: Order, segment: Segment) -> int:
    """Steps at the beginning of a segment that do not count: of the first one, while it heats up.

    After the guard the atoms are where the equilibrium had them, and velocities do not depend on
    that.
    """
    if order.next or not segment.count_start:
        return 0
    steps = round(1000.0 * EQUILIBRATION_PS / segment.dynamics.timestep_fs)
    stride = segment.snapshot_stride
    return min(steps, order.segment_steps // 4) // stride * stride


def _whole_limit(order: Order, k: int) -> float | None:
    """Limit on the distance of the whole structure from the path in segment k, angstrom.

    Atoms that start at rest with twice the kinetic energy swing out together: for a moment all of
    it is potential energy, twice as much as in equilibrium.
    """
    limit = order.config.sampling.deviation_limit_A
    return limit * 2.0**0.5 if limit is not None and k == 0 and order.at_rest else limit


def _back_inside(order: Order, segment: Segment, atom: int) -> tuple[int, State]:
    """Steps of a segment that count after the guard stopped an atom, and where to go on: their end.

    The atom is given by its serial number.
    """
    from plumed_cv.structures.trajectory import positions_of  # mdtraj takes most of a second

    limits = order.atom_limit_A, _whole_limit(order, order.next)
    stride = segment.snapshot_stride
    columns = read_colvar(segment.directory / "colvar")
    steps = np.rint(columns["time"] / segment.dynamics.timestep_fs).astype(int)
    kept = steps > 0  # the start is in no snapshot
    largest, whole = columns["ae.maxdev"][kept], columns["ae.dev"][kept]
    outside = np.zeros(len(largest), dtype=bool)
    for values, limit in zip((largest, whole), limits, strict=True):
        if limit is not None:
            outside |= values > limit
    first_out = int(outside.argmax()) if outside.any() else len(outside)
    for k in guard.inside(largest[:first_out], whole[:first_out], *limits)[::-1].tolist():
        state = State(positions_of(segment.directory / "snapshots.dcd", k), segment.start.cell)
        if limits[0] is None or guard.is_home(order.variable, state, atom, limits[0]):
            return (k + 1) * stride, state
    return 0, State(segment.start.positions, segment.start.cell)


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
        n_steps = freeenergy.last_step(state)
    except UserError:  # there is none, or PLUMED was writing the first one
        return False
    if not n_steps:
        return False
    segment = _segment(order, done, folder, None)
    end = engine.rescue(segment, n_steps)
    if end is None:
        return False
    # Engines differ in the digits of a time.
    last = (n_steps + 0.5) * order.config.sampling.timestep_fs
    _cut_table(folder / "colvar", -np.inf, last)
    seconds = state.stat().st_mtime - (folder / "plumed.dat").stat().st_mtime
    snapshots = folder / "snapshots.dcd"
    stopped = _guard_spoke(folder)
    outcome = SegmentResult(n_steps, stopped, end, snapshots, max(0.0, seconds))
    _keep(order, segment, outcome, engine)
    return True


def _guard_spoke(folder: Path) -> bool:
    """Whether the guard's limit was passed in a segment: COMMITTOR has written a line then."""
    return any(
        line.strip() and not line.startswith("#")
        for file in folder.glob("guard.*")
        for line in file.read_text(encoding="utf-8").splitlines()
    )


def _write_mean_force(order: Order, folder: Path, engine: Engine) -> None:
    """Compute the forces in a segment's snapshots, without the bias, and what they are along xi.

    Nothing where the input does not want it, or says nothing and it cannot be had.
    """
    wanted = order.config.sampling.mean_force
    if wanted is False or (wanted is None and order.config.engine.name == "gromacs"):
        return
    if order.config.sampling.extra_biases:  # which the forces of the potential leave out
        return
    variable = order.variable
    if wanted is None and not meanforce.is_known(variable):
        return
    xi, along = np.zeros((2, 0))
    if (file := folder / "snapshots.dcd").exists():
        kT_eV = units.kB * order.config.system.temperature_K
        (folder / FORCES).unlink(missing_ok=True)
        xi, along = meanforce.of_trajectory(
            variable, file, order.start.cell, engine.forces, kT_eV, folder / FORCES
        )
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

    Not for several walkers, nor for an engine that is no program, nor with a guard for GROMACS,
    whose own PLUMED interface goes on where PLUMED asks for the end.
    """
    native, sampling, done = order.home / NATIVE, order.config.sampling, order.done()
    shutil.rmtree(native, ignore_errors=True)
    guarded = sampling.deviation_limit_A is not None or order.atom_limit_A is not None
    if sampling.walkers > 1 or (guarded and order.config.engine.name == "gromacs"):
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
        part = replace(first, directory=folder, n_steps=n_steps, seed=_seed(order, k))
        if parts:
            part = replace(part, count_start=False)
        text = _plumed_dat(there, k, folder, Path("..") / order.plugin.name, _skipped(order, part))
        parts.append(replace(part, plumed=text))
        left -= n_steps
    if not engine.write_job(native, parts):
        shutil.rmtree(native)


def _cut_table(file: Path, first: float, last: float) -> None:
    """Leave of a file that PLUMED prints the whole lines after a time and up to another one."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    width = len(lines[0].split()) - 2  # of "#! FIELDS ..."

    def stays(line: str) -> bool:
        words = line.split()
        whole = line.endswith("\n") and len(words) == width
        return line.startswith("#") or (whole and first < float(words[0]) <= last)

    write_text(file, "".join(filter(stays, lines)))


def _check_state(file: Path, last_step: int) -> None:
    """Raise a UserError unless a state was written at the end of its segment.

    PLUMED writes it when it is taken down and cannot report that there was no room.
    """
    try:
        found = freeenergy.last_step(file)
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
    _check_progress(order, done)
    if k == 0:  # what a first segment that was killed has contributed
        (shared / f"walker-{order.walker}.state").unlink(missing_ok=True)
    unfinished = order.home / f"unfinished-{segment_name(k)}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    segment = _segment(order, done, unfinished, None)
    skipped = _skipped(order, segment)
    return replace(segment, plumed=_plumed_dat(order, k, unfinished, order.plugin, skipped))


def _check_progress(order: Order, done: Sequence[dict[str, Any]]) -> None:
    """Refuse to go on where the guard ends every segment before anything in it counts.

    Raises
    ------
    UserError
        If it has done so in the last `RESTARTS` segments.
    """
    last = done[-RESTARTS:]
    if len(last) < RESTARTS or any(part.get("n_counted", part["n_steps"]) for part in last):
        return
    of_atom = Counter(part["departure"]["atom"] for part in last)
    (atom, times), departure = of_atom.most_common(1)[0], last[-1]["departure"]
    raise UserError(
        f"iteration {order.iteration}: the guard ended the last {RESTARTS} trajectories at once "
        f"(atom {atom} left the path {times} times; the last time it was "
        f"{departure['distance_A']:.2f} A away, the structure {departure['deviation_A']:.2f} A); "
        f"sampling.atom_deviation_limit_A = {order.config.sampling.atom_deviation_limit_A} or "
        f"deviation_limit_A = {order.config.sampling.deviation_limit_A} is below the thermal "
        "motion, or the system leaves the process for good: look at ae.maxdev and ae.dev in "
        "colvar, and start with a larger limit or a lower temperature in a new directory"
    )


def _plumed_dat(order: Order, k: int, folder: Path, plugin: Path, skipped: int) -> str:
    """The PLUMED input of segment k, in a folder beside that of the one before.

    The bias does not learn from the first `skipped` steps.
    """
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
        deviation_limit_A=_whole_limit(order, k),
        atom_limit_A=order.atom_limit_A,
        # A state is due after so many samples and must come before the step that is printed next.
        learn_from_fs=(skipped - 0.5) * sampling.timestep_fs if skipped else None,
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
    return Segment(
        directory=folder,
        start=_start_after(order, done) if done else _first_start(order),
        dynamics=Dynamics(
            order.config.system.temperature_K,
            sampling.timestep_fs,
            sampling.thermostat,
            sampling.friction_per_ps,
        ),
        n_steps=min(order.segment_steps, order.steps - steps_of(done)),
        seed=_seed(order, k),
        plumed=plumed_dat,
        count_start=k == 0,
        snapshot_stride=sampling.snapshot_stride,
    )


def _start_after(order: Order, done: Sequence[dict[str, Any]]) -> State:
    """Where the segment after these starts.

    Where the last one ended, if anything in it counts. After n segments that the guard ended at
    once, where the n-th last one ended in which something counts: their common start was on the
    way out.
    """
    parts = segments_of(order.home)
    counted = [k for k, part in enumerate(done) if part.get("n_counted", part["n_steps"])]
    failed = len(done) - 1 - (counted[-1] if counted else -1)
    if failed and failed >= len(counted):
        return order.start
    return _end_of(parts[counted[-1 - failed]])


def _first_start(order: Order) -> State:
    """Where the first segment starts.

    Atoms at rest in a structure of the minimum energy path have no energy in their springs and
    give half of their kinetic energy to them at once, so they get twice of it.
    """
    if not order.at_rest:
        return order.start
    rng = np.random.default_rng(_seed(order, 0))
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
