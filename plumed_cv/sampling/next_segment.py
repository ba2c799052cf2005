"""The next segment of a walker: where it starts, its seed, its steps and its PLUMED input."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv.common.errors import UserError
from plumed_cv.engines import (
    Dynamics,
    Engine,
    Record,
    Segment,
    State,
    Watch,
    draw_velocities,
)
from plumed_cv.sampling.folders import count_steps, list_segments_of, remedy, segment_name
from plumed_cv.sampling.task import WalkerTask
from plumed_cv.setup.plugin import babf_input

NATIVE = "native"  # folder of inputs that run without plumed_cv
RESTARTS = 20  # this number of successive stops by the guard without a valid snapshot ends the run
EQUILIBRATION_PS = 0.4  # of the first segment: the bias acts, but no sample counts


def skipped_steps(task: WalkerTask, segment: Segment) -> int:
    """Steps at the beginning of a segment that do not count: the heat-up of the first segment.

    After a stop by the guard the positions are those of the equilibrium, and the velocities are
    independent of them.
    """
    if task.next or not segment.count_start:
        return 0
    steps = round(1000.0 * EQUILIBRATION_PS / segment.dynamics.timestep_fs)
    stride = task.config.sampling.snapshot_stride
    return min(steps, task.segment_steps // 4) // stride * stride


def whole_limit(task: WalkerTask, k: int) -> float | None:
    """Limit on the distance of the whole structure from the path in segment k, angstrom.

    Atoms that start at rest with twice the kinetic energy move away together. For a moment all
    energy is potential energy, twice as much as in equilibrium.
    """
    limit = task.config.sampling.deviation_limit_A
    return limit * 2.0**0.5 if limit is not None and k == 0 and task.at_rest else limit


def write_native(task: WalkerTask, engine: Engine) -> None:
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
    first = make_segment(task, done, native, records=False)
    parts: list[Segment] = []
    left = task.steps - count_steps(done)
    for k in range(task.next, task.next + -(-left // task.segment_steps)):
        folder = native / segment_name(k)
        folder.mkdir()
        n_steps = min(task.segment_steps, left)
        part = replace(first, directory=folder, n_steps=n_steps, seed=_seed(task, k))
        if parts:
            part = replace(part, count_start=False)
        text = _plumed_dat(
            there, k, folder, Path("..") / task.plugin.name, skipped_steps(task, part)
        )
        parts.append(replace(part, plumed=text))
        left -= n_steps
    if not engine.write_job(native, parts):
        shutil.rmtree(native)


def prepare_segment(task: WalkerTask, done: Sequence[dict[str, Any]], attempt: int = 0) -> Segment:
    """Make the folder of the segment after `done`; an existing one is removed.

    Another attempt has other velocities and other random numbers.
    """
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
    segment = make_segment(task, done, unfinished, records=task.records, attempt=attempt)
    skipped = skipped_steps(task, segment)
    return replace(segment, plumed=_plumed_dat(task, k, unfinished, task.plugin, skipped))


def _check_progress(task: WalkerTask, done: Sequence[dict[str, Any]]) -> None:
    """Refuse to continue if the guard ends every segment before anything in it counts.

    Raises
    ------
    UserError
        If this happened in the last `RESTARTS` segments, or if the limit of the model deviation
        ended all of them.
    """
    last = done[-RESTARTS:]
    stops = [part["departure"] for part in last if "departure" in part]
    if len(stops) == RESTARTS and all(each.get("model_deviation") is not None for each in stops):
        xi = [each["xi"] for each in stops]
        raise UserError(
            f"iteration {task.iteration}: the last {RESTARTS} trajectories ended because the model "
            f"deviation exceeded {task.config.sampling.model_deviation_limit:.3g}, at xi = "
            f"{min(xi):.2f} to {max(xi):.2f}. There is no barrier within this limit: compute such "
            "structures with a better method and train the potential on them, or raise "
            "sampling.model_deviation_limit in a new directory"
        )
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
        deviation_limit_A=whole_limit(task, k),
        atom_limit_A=task.atom_limit_A,
        # A state is due after this number of samples, and must come before the step that is printed
        # next.
        learn_from_fs=(skipped - 0.5) * sampling.timestep_fs if skipped else None,
        walkers=(sampling.walkers, task.walker, _relative(task.shared, folder))
        if sampling.walkers > 1
        else None,
    )
    return lines + sampling.plumed


def make_segment(
    task: WalkerTask,
    done: Sequence[dict[str, Any]],
    folder: Path,
    *,
    records: bool,
    attempt: int = 0,
) -> Segment:
    """Return the segment after `done`, in a folder, without a PLUMED input.

    The engine of `task` may record the forces on the variable's atoms; an input of an engine alone
    (`write_native`) has none, but all whole snapshots.
    """
    sampling, k = task.config.sampling, task.next
    return Segment(
        directory=folder,
        start=_start_after(task, done) if done else _first_start(task, attempt),
        dynamics=Dynamics(
            task.config.system.temperature_K,
            sampling.timestep_fs,
            sampling.thermostat,
            sampling.friction_per_ps,
        ),
        n_steps=min(task.segment_steps, task.steps - count_steps(done)),
        seed=_seed(task, k, attempt),
        count_start=k == 0,
        snapshot_stride=task.whole_steps if records else sampling.snapshot_stride,
        record=Record(task.variable.serials, sampling.snapshot_stride) if records else None,
        watch=_watch(task),
    )


def _watch(task: WalkerTask) -> Watch | None:
    """Watch of the model deviation; its limit is a number from `workflow.with_defaults` on."""
    sampling = task.config.sampling
    if isinstance(sampling.model_deviation_limit, str):
        return None
    return Watch(sampling.model_deviation_limit, sampling.snapshot_stride)


def _start_after(task: WalkerTask, done: Sequence[dict[str, Any]]) -> State:
    """Configuration from which the segment after `done` starts.

    It is the end of the last segment if anything in it counts. After n segments that the guard
    ended at once, it is the end of the n-th last segment in which something counts, because their
    start was on a way out.
    """
    parts = list_segments_of(task.home)
    counted = [k for k, part in enumerate(done) if part.get("n_counted", part["n_steps"])]
    failed = len(done) - 1 - (counted[-1] if counted else -1)
    if failed and failed >= len(counted):
        return task.start
    return _end_of(parts[counted[-1 - failed]])


def _first_start(task: WalkerTask, attempt: int) -> State:
    """Configuration from which the first segment starts.

    Atoms at rest in a structure of the minimum energy path have no potential energy above it. They
    transfer half of their kinetic energy at once, so they get twice of it.
    """
    if not task.at_rest:
        return task.start
    rng = np.random.default_rng(_seed(task, 0, attempt))
    masses, doubled_K = task.atoms.get_masses(), 2.0 * task.config.system.temperature_K
    return replace(task.start, velocities=draw_velocities(rng, masses, doubled_K))


def _end_of(segment: Path) -> State:
    """Configuration at the end of a complete segment."""
    with remedy(segment):
        return State.load(segment / "end.npz")


def _relative(path: Path, folder: Path) -> Path:
    """Return a relative path, so that the run directory can be moved."""
    return Path(os.path.relpath(path, folder))


def _seed(task: WalkerTask, segment: int, attempt: int = 0) -> int:
    key = [task.config.iteration.seed, task.iteration, segment]
    if task.config.sampling.walkers > 1 or task.repetition:
        key.append(task.walker)
    if task.repetition:
        key.append(task.repetition)
    spawn_key = (attempt,) if attempt else ()
    return int(np.random.SeedSequence(key, spawn_key=spawn_key).generate_state(1)[0])
