"""All walkers of an iteration: in this process, in processes of their own or on a cluster."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.common.progress import Update
from plumed_cv.engines import Engine
from plumed_cv.input_file import Config
from plumed_cv.sampling.folders import count_steps, describe_barrier, list_segments_of, read_records
from plumed_cv.sampling.task import WalkerTask, open_engine
from plumed_cv.sampling.walker import PATIENCE_S, at_work, describe_end, run_walkers

_POLL_S = 0.5  # seconds between checks of the progress of the walkers


def sample(tasks: Sequence[WalkerTask], engine: Engine, update: Update) -> float:
    """Run the missing part of an iteration; return the seconds of the slowest walker.

    Parameters
    ----------
    tasks
        One task for each walker of each repetition. A single one runs in this process, and so do
        all of an engine with batches, unless the input names a scheduler.
    engine
        The engine of walkers that run in this process.
    update
        Called with the number of steps completed by all walkers.

    Raises
    ------
    UserError
        If a walker cannot continue. The others have then done their shares, and results are kept.
    """
    config = tasks[0].config
    together = len(tasks) == 1 or config.engine.walks_together
    if together and config.sampling.scheduler is None:
        (tasks[0].folder / "stop").unlink(missing_ok=True)
        run_walkers(tasks, engine, update)
    else:
        _run_at_once(tasks, update)
    return max(float(sum(part["seconds"] for part in task.done())) for task in tasks)


def _run_at_once(tasks: Sequence[WalkerTask], update: Update) -> None:
    """Run all walkers until each has done its share or failed."""
    folder = tasks[0].folder
    stop = folder / "stop"
    waiting = [task for task in tasks if not task.is_done]
    if not waiting:
        return
    # Processes of a cluster may outlive the process that started them; new ones take over.
    stop.touch()
    for task in waiting:
        with at_work(task):
            pass
    stop.unlink(missing_ok=True)
    with open_executors(tasks[0].config, len(waiting)) as pool:
        futures = [
            executor.submit(_work, task) for executor, task in zip(pool, waiting, strict=True)
        ]
        try:
            _watch(tasks, futures, update)
        except BaseException:
            stop.touch()
            wait(futures, timeout=PATIENCE_S)
            raise
        finally:
            stop.unlink(missing_ok=True)
        failures = [
            (task, failure)
            for task, future in zip(waiting, futures, strict=True)
            if (failure := future.exception()) is not None
        ]
    for task, failure in failures:
        what = describe_end(task)
        remedy = "the samples of all walkers are kept, and the same command continues from there."
        if isinstance(failure, UserError):
            raise UserError(f"{what}: {failure}")
        if isinstance(failure, BrokenProcessPool):
            raise UserError(f"{what}, because its process was killed; {remedy}")
        if is_of_cluster(failure):
            raise UserError(f"{what} ({failure}); {remedy}")
        raise failure


def _watch(tasks: Sequence[WalkerTask], futures: Sequence[Future[None]], update: Update) -> None:
    """Report the progress of the walkers until all have ended."""
    told, note, waiting = 0, "", set(futures)
    steps: dict[Path, int] = {}  # of the complete segments; each is read once
    while waiting:
        _, waiting = wait(waiting, timeout=_POLL_S + 0.01 * len(tasks))
        for task in tasks:
            for segment in list_segments_of(task.home):
                if segment not in steps:
                    steps[segment] = count_steps(read_records([segment]))
        if len(steps) >= told + 4 * len(tasks):
            told, note = len(steps), describe_barrier(tasks[0].folder)
        update(sum(steps.values()), note)


def _work(task: WalkerTask) -> None:
    """Do a task in a process."""
    with open_engine(task.config, task.atoms) as engine:
        run_walkers([task], engine)


@contextmanager
def open_executors(config: Config, number: int) -> Iterator[list[Executor]]:
    """Yield one executor for each of `number` walkers."""
    if config.sampling.scheduler is not None:
        with open_cluster(config.sampling.scheduler) as executor:
            yield [executor] * number
        return
    # A process that dies ends its pool, so each walker has a pool of its own.
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), follow, (os.getpid(),))
            )
            for _ in range(number)
        ]


@contextmanager
def open_cluster(scheduler: str, given_as: str = "sampling.scheduler =") -> Iterator[Executor]:
    """Yield the workers of a dask cluster.

    Parameters
    ----------
    scheduler
        Address or scheduler file.
    given_as
        What messages call it.

    Raises
    ------
    UserError
        If there is no such file, or no scheduler answers.
    """
    client_class = require("distributed").Client
    where = {"address" if "://" in scheduler else "scheduler_file": scheduler}
    if "://" not in scheduler and not Path(scheduler).is_file():
        raise UserError(
            f"{given_as} {scheduler}: there is no such file; start the scheduler first "
            "(dask scheduler --scheduler-file ...), or give its address as tcp://..."
        )
    try:
        client = client_class(**where)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{given_as} {scheduler}: no dask scheduler answers there ({error})."
        ) from None
    with client:
        yield client.get_executor()


def is_of_cluster(error: BaseException) -> bool:
    """Whether an error is of a dask cluster, such as a lost worker, and not of what it does."""
    return type(error).__module__.startswith("distributed")


def follow(parent: int) -> None:
    """In a process of this machine: ignore interrupts, and end when the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
