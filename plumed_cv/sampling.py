"""The bABF run of one iteration: in segments, by one walker or by several at once.

A walker has a folder of its own with its segments; of a run with one walker that is the folder of
the iteration itself:

    iteration-n/segment-kkk/             one walker
    iteration-n/walker-w/segment-kkk/    several
    iteration-n/shared/walker-w.state    what they learn from each other (WALKERS_DIR of BABF)

Several walkers run through the interface of `concurrent.futures.Executor`, in processes of this
machine or in those of a dask cluster that sees the same files. What a walker has to do is an
`Order`, and all that it has done is in its folder: whoever works on the same order later goes on
after the last whole segment. Jobs of `plumed-cv sample` also keep what a segment that was cut short
has sampled: a run that must repeat to the last bit does not.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from filelock import FileLock, Timeout

from plumed_cv import babf
from plumed_cv.config import Ase, Config, Gromacs, Lammps, Sampling
from plumed_cv.engines import Dynamics, Engine, Segment, SegmentResult, State
from plumed_cv.engines.ase import AseEngine
from plumed_cv.engines.gromacs import GromacsEngine
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.engines.lammps_input import LammpsInput
from plumed_cv.engines.lammps_program import LammpsProgram
from plumed_cv.errors import UserError
from plumed_cv.files import read_json, replacing, write_text
from plumed_cv.plumed import babf_input
from plumed_cv.progress import Update

NATIVE = "native"  # folder of inputs that need no plumed_cv where they run
STATES = 10  # written in a segment
RESTARTS = 20  # so many guard stops one after the other mean that the guard is too tight

_POLL_S = 0.5  # seconds between looks at what the walkers have done
_PATIENCE_S = 30.0  # for a process that was told to stop, or whose parent was killed


@dataclass(frozen=True)
class Order:
    """One walker's share of the bABF run of an iteration; it can be sent to another process.

    Attributes
    ----------
    config
        The input.
    atoms
        What the engine is set up for.
    start
        Where the walker starts.
    model
        File of the collective variable.
    plugin
        The plugin with the actions.
    iteration
        Number of the iteration.
    folder
        Folder of the iteration.
    walker
        Number of the walker, from 0.
    prior
        File of the profile that the bias starts from, or None.
    """

    config: Config
    atoms: Atoms
    start: State
    model: Path
    plugin: Path
    iteration: int
    folder: Path
    walker: int
    prior: Path | None = None

    @property
    def home(self) -> Path:
        """Folder of this walker's segments."""
        several = self.config.sampling.walkers > 1
        return self.folder / f"walker-{self.walker:04d}" if several else self.folder

    @property
    def steps(self) -> int:
        """Steps of this walker; the last one takes what does not divide."""
        sampling, stride = self.config.sampling, self.config.sampling.snapshot_stride
        share = sampling.steps // sampling.walkers // stride * stride
        last = self.walker == sampling.walkers - 1
        return sampling.steps - share * self.walker if last else share

    @property
    def segment_steps(self) -> int:
        """Steps of a segment; the last ones take what does not divide."""
        sampling, stride = self.config.sampling, self.config.sampling.snapshot_stride
        number = max(1, round(sampling.segments / sampling.walkers))
        return max(stride, sampling.steps // sampling.walkers // number // stride * stride)

    @property
    def state_steps(self) -> int:
        """Steps between states, up to which a segment that is cut short counts."""
        stride = self.config.sampling.snapshot_stride
        return max(stride, self.segment_steps // STATES // stride * stride)

    def done(self) -> list[dict[str, Any]]:
        """The records of the whole segments, in order."""
        return [read_json(segment / "segment.json") for segment in _segments_of(self.home)]


def open_engine(config: Config, atoms: Atoms) -> Engine:
    """Open the engine of the input for `atoms`."""
    section = config.engine
    directory = section.directory or Path()
    match section:
        case Gromacs():
            return GromacsEngine(
                section.mdp,
                section.topology,
                section.structure,
                atoms,
                tpr=section.tpr,
                restraints=section.restraints,
                index=section.index,
                directory=directory,
                program=section.program,
                options=section.options,
                max_warnings=section.max_warnings,
            )
        case Ase():
            return AseEngine(
                section.calculator, atoms, arguments=section.arguments, directory=directory
            )
    if section.program is not None:
        return LammpsProgram(
            section.program,
            section.potential,
            atoms,
            species=section.species,
            directory=directory,
        )
    return LammpsEngine(
        section.potential,
        atoms,
        species=section.species,
        directory=directory,
        coupling=section.coupling,
    )


def sample(orders: Sequence[Order], engine: Engine, update: Update) -> float:
    """Run what is missing of an iteration; return the seconds of the walker that took longest.

    Parameters
    ----------
    orders
        One for each walker. A single one is run here, unless the input names a scheduler.
    engine
        Runs a walker that is run here.
    update
        Is told the steps done by all walkers.

    Raises
    ------
    UserError
        If a walker cannot go on. The others have then done their share, and what is done stays.
    """
    if len(orders) == 1 and orders[0].config.sampling.scheduler is None:
        (orders[0].folder / "stop").unlink(missing_ok=True)
        run_walker(orders[0], engine, update)
    else:
        _run_at_once(orders, update)
    return max(float(sum(part["seconds"] for part in order.done())) for order in orders)


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
    with _at_work(order):
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
        if _steps_done(order) == order.steps:
            continue
        (order.folder / "stop").unlink(missing_ok=True)
        with _at_work(order):
            _take_in(order, engine)
            _rescue(order, engine)
            if _steps_done(order) < order.steps:
                segment = _next_segment(order, order.done())
                assert isinstance(segment.plumed, str)
                write_text(segment.directory / "plumed.dat", segment.plumed)
                _write_native(order)
                waiting.append(order)
            else:
                shutil.rmtree(order.home / NATIVE, ignore_errors=True)  # all of it is taken in
    return waiting


def segments(folder: Path) -> list[Path]:
    """The whole segments of an iteration, in order, one walker after the other."""
    return [segment for home in _homes(folder) for segment in _segments_of(home)]


def blocks(folder: Path) -> list[babf.State]:
    """What each whole segment of an iteration added to the sums, in the order of `segments`."""
    return [
        block
        for home in _homes(folder)
        for block in babf.blocks([babf.read_state(s / "babf.state") for s in _segments_of(home)])
    ]


def copy_state(folder: Path, target: Path) -> None:
    """Write what all walkers of an iteration have learned in the end as one state file."""
    last = [_segments_of(home)[-1] / "babf.state" for home in _homes(folder) if _segments_of(home)]
    if len(last) == 1:
        with replacing(target) as temporary:
            shutil.copyfile(last[0], temporary)
        return
    total = babf.read_state(last[0])
    for state in last[1:]:
        total = total + babf.read_state(state)
    babf.write_state(target, total)


def grid(sampling: Sampling) -> tuple[float, float, int]:
    """The grid from -margin to 1 + margin, with nodes at 0 and 1: ends and number of intervals."""
    bins = sampling.bins
    extra = round(sampling.margin * bins)
    return (-extra / bins, 1.0 + extra / bins, bins + 2 * extra)


def ramp(sampling: Sampling) -> int:
    """Steps over which the weights grow to 1: N of Eq. 12."""
    return round(sampling.ramp * sampling.steps)


@contextmanager
def _at_work(order: Order) -> Iterator[None]:
    """Be the only process that works on this walker."""
    order.home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(order.home / ".lock")
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout:
        raise UserError(
            f"{order.home}: another process is at work there; end it and run again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _run_segments(order: Order, engine: Engine, update: Update) -> None:
    sampling, stop = order.config.sampling, order.folder / "stop"
    several = sampling.walkers > 1
    done = order.done()
    steps = sum(part["n_steps"] for part in done)
    while steps < order.steps:
        k = len(done)
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
        done.append(_keep(order, k, outcome))
        steps += outcome.n_steps


def _keep(order: Order, k: int, outcome: SegmentResult) -> dict[str, Any]:
    """Make a whole segment of an unfinished one; return its record."""
    folder = order.home / f"unfinished-{_segment_name(k)}"
    outcome.end.save(folder / "end.npz")
    part = {
        "n_steps": outcome.n_steps,
        "stopped": outcome.stopped_by_plumed,
        "seconds": outcome.seconds,
    }
    write_text(folder / "segment.json", json.dumps(part))
    folder.replace(order.home / _segment_name(k))
    return part


def _rescue(order: Order, engine: Engine) -> bool:
    """Keep what a segment that was cut short has sampled, up to its last state.

    The next segment starts from its last snapshot, with new velocities.

    Returns
    -------
    Whether there was something to keep.
    """
    done = order.done()
    k = len(done)
    folder = order.home / f"unfinished-{_segment_name(k)}"
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
    last = n_steps * order.config.sampling.timestep_fs
    _cut_table(folder / "colvar", last * (1 + 1e-9))
    seconds = state.stat().st_mtime - (folder / "plumed.dat").stat().st_mtime
    snapshots = folder / "snapshots.dcd"
    _keep(order, k, SegmentResult(n_steps, False, end, snapshots, max(0.0, seconds)))
    return True


def _take_in(order: Order, engine: Engine) -> None:
    """Keep what the engine's own inputs have given (`_write_native`), as far as it goes."""
    while _steps_done(order) < order.steps:
        name = _segment_name(len(order.done()))
        if not (order.home / NATIVE / name / "babf.state").is_file():
            return
        unfinished = order.home / f"unfinished-{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(order.home / NATIVE / name, unfinished)
        if not _rescue(order, engine):
            return


def _write_native(order: Order) -> None:
    """Write the segments that are missing as inputs of LAMMPS alone, in a folder of their own.

    Not for several walkers, nor with a guard, after which a segment starts from the beginning.
    """
    native, config, done = order.home / NATIVE, order.config, order.done()
    shutil.rmtree(native, ignore_errors=True)
    section, sampling = config.engine, config.sampling
    if (
        not isinstance(section, Lammps)
        or sampling.walkers > 1
        or sampling.deviation_limit_A is not None
    ):
        return
    native.mkdir()
    for file in (order.model, order.plugin, order.prior):
        if file is not None:
            shutil.copyfile(file, native / file.name)
    if done:
        previous = _segment_name(len(done) - 1)
        (native / previous).mkdir()
        shutil.copyfile(order.home / previous / "babf.state", native / previous / "babf.state")
    there = replace(
        order,
        model=native / order.model.name,
        prior=None if order.prior is None else native / order.prior.name,
    )
    first = _segment(order, done, native, None)
    parts = []
    left = order.steps - sum(part["n_steps"] for part in done)
    for k in range(len(done), len(done) + -(-left // order.segment_steps)):
        folder = native / _segment_name(k)
        folder.mkdir()
        n_steps = min(order.segment_steps, left)
        text = _plumed_dat(there, k, folder, Path("..") / order.plugin.name)
        parts.append(
            replace(first, directory=folder, n_steps=n_steps, seed=_seed(order, k), plumed=text)
        )
        left -= n_steps
    directory = section.directory or Path()
    LammpsInput(section.potential, order.atoms, section.species, directory).write_job(native, parts)


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
    shared = order.folder / "shared"
    if several:
        shared.mkdir(exist_ok=True)
    k = len(done)
    if k >= RESTARTS and all(part["stopped"] for part in done[-RESTARTS:]):
        raise UserError(
            f"sampling.deviation_limit_A = {sampling.deviation_limit_A}: the last "
            f"{RESTARTS} parts of iteration {order.iteration} all ended there; thermal motion "
            "alone exceeds it (see ae.dev in colvar). Start with a larger one in a new "
            "directory."
        )
    if k == 0:  # what a first segment that was killed has contributed
        (shared / f"walker-{order.walker}.state").unlink(missing_ok=True)
    unfinished = order.home / f"unfinished-{_segment_name(k)}"
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
        ramp=ramp(sampling),
        grid=grid(sampling),
        kappa_eV=sampling.kappa_eV,
        state_in=Path("..") / _segment_name(k - 1) / "babf.state" if k else None,
        prior=_relative(order.prior, folder) if order.prior and not k else None,
        tau=babf.weight_of_first(sampling.prior_samples, ramp(sampling)) if order.prior else None,
        state_out=Path("babf.state"),
        state_stride=order.state_steps,
        colvar=Path("colvar"),
        colvar_stride=sampling.snapshot_stride,
        deviation_limit_A=sampling.deviation_limit_A,
        walkers=(sampling.walkers, order.walker, _relative(order.folder / "shared", folder))
        if sampling.walkers > 1
        else None,
    )
    return lines + sampling.plumed


def _segment(
    order: Order, done: Sequence[dict[str, Any]], folder: Path, plumed_dat: str | None
) -> Segment:
    """The segment that comes after these, in a folder."""
    sampling, k = order.config.sampling, len(done)
    fresh = k == 0 or done[-1]["stopped"]
    previous = order.home / _segment_name(k - 1)
    return Segment(
        directory=folder,
        start=order.start if fresh else State.load(previous / "end.npz"),
        dynamics=Dynamics(
            order.config.system.temperature_K,
            sampling.timestep_fs,
            sampling.thermostat,
            sampling.friction_per_ps,
        ),
        n_steps=min(order.segment_steps, order.steps - sum(part["n_steps"] for part in done)),
        seed=_seed(order, k),
        plumed=plumed_dat,
        count_start=fresh,
        snapshot_stride=sampling.snapshot_stride,
    )


def barrier_so_far(folder: Path) -> str:
    """The barrier from what an iteration has sampled, in words."""
    return f"barrier {babf.profile(blocks(folder)).barrier}"


def _run_at_once(orders: Sequence[Order], update: Update) -> None:
    """Run all walkers until each has done its share or failed."""
    folder = orders[0].folder
    stop = folder / "stop"
    waiting = [order for order in orders if _steps_done(order) < order.steps]
    if not waiting:
        return
    # Processes of a cluster may outlive the one that started them; new ones take over.
    stop.touch()
    for order in waiting:
        with _at_work(order):
            pass
    stop.unlink(missing_ok=True)
    with _executors(orders[0].config, len(waiting)) as executors:
        futures = [
            executor.submit(_work, order)
            for executor, order in zip(executors, waiting, strict=True)
        ]
        try:
            _watch(orders, futures, update)
        except BaseException:
            stop.touch()
            wait(futures, timeout=_PATIENCE_S)
            raise
        finally:
            stop.unlink(missing_ok=True)
        failures = {
            order.walker: failure
            for order, future in zip(waiting, futures, strict=True)
            if (failure := future.exception()) is not None
        }
    for walker, failure in failures.items():
        what = f"{folder}: walker {walker} ended before its share was done"
        remedy = "what all walkers have sampled is kept, and the same command goes on from there."
        if isinstance(failure, UserError):
            raise UserError(f"{what}: {failure}")
        if isinstance(failure, BrokenProcessPool):
            raise UserError(f"{what}, for its process was killed; {remedy}")
        if type(failure).__module__.startswith("distributed"):
            raise UserError(f"{what} ({failure}); {remedy}")
        raise failure


def _watch(orders: Sequence[Order], futures: Sequence[Future[None]], update: Update) -> None:
    """Tell how the walkers get on until all have ended."""
    told, note, waiting = 0, "", set(futures)
    steps: dict[Path, int] = {}  # of the whole segments, each of which is read once
    while waiting:
        _, waiting = wait(waiting, timeout=_POLL_S + 0.01 * len(orders))
        for order in orders:
            for segment in _segments_of(order.home):
                if segment not in steps:
                    steps[segment] = read_json(segment / "segment.json")["n_steps"]
        if len(steps) >= told + 4 * len(orders):
            told, note = len(steps), barrier_so_far(orders[0].folder)
        update(sum(steps.values()), note)


def _work(order: Order) -> None:
    """What a process does with an order."""
    with open_engine(order.config, order.atoms) as engine:
        run_walker(order, engine)


@contextmanager
def _executors(config: Config, number: int) -> Iterator[list[Executor]]:
    """An executor for each of so many walkers."""
    if config.sampling.scheduler is not None:
        with _cluster(config.sampling.scheduler) as executor:
            yield [executor] * number
        return
    # A process that dies takes its pool along, so each walker has one of its own.
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), _follow, (os.getpid(),))
            )
            for _ in range(number)
        ]


@contextmanager
def _cluster(scheduler: str) -> Iterator[Executor]:
    """The workers of a dask cluster."""
    try:
        from distributed import Client
    except ImportError:
        raise UserError(
            f"sampling.scheduler = {scheduler}: needs dask.distributed; "
            'pip install "plumed_cv[cluster]".'
        ) from None
    where = {"address" if "://" in scheduler else "scheduler_file": scheduler}
    if "://" not in scheduler and not Path(scheduler).is_file():
        raise UserError(
            f"sampling.scheduler = {scheduler}: there is no such file; start the scheduler first "
            "(dask scheduler --scheduler-file ...), or give its address as tcp://..."
        )
    try:
        client = Client(**where)
    except (OSError, ValueError) as error:
        raise UserError(
            f"sampling.scheduler = {scheduler}: no dask scheduler answers there ({error})."
        ) from None
    with client:
        yield client.get_executor()


def _follow(parent: int) -> None:
    """In a process of this machine: leave interrupts to the parent, and end when it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _steps_done(order: Order) -> int:
    return sum(part["n_steps"] for part in order.done())


def _homes(folder: Path) -> list[Path]:
    """The folders that hold an iteration's segments: its walkers', or itself."""
    return sorted(path for path in folder.glob("walker-*") if path.is_dir()) or [folder]


def _segments_of(home: Path) -> list[Path]:
    return sorted(path.parent for path in home.glob("segment-*/segment.json"))


def _segment_name(k: int) -> str:
    return f"segment-{k:06d}"  # by number and by name the same order


def _relative(path: Path, folder: Path) -> Path:
    """So that the run directory can be moved."""
    return Path(os.path.relpath(path, folder))


def _seed(order: Order, segment: int) -> int:
    key = [order.config.iteration.seed, order.iteration, segment]
    if order.config.sampling.walkers > 1:
        key.append(order.walker)
    return int(np.random.SeedSequence(key).generate_state(1)[0])
