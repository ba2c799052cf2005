"""Searches of one state in several processes, with the result of one search after another.

Each search depends on its number and on the energy at which it ends, and on nothing else. Some
searches are therefore begun ahead, with the energy that is known then. If a search in between finds
a new lowest barrier, this energy may change, and the searches ahead are done again.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Protocol

import numpy as np
from ase import Atoms

from plumed_cv import sampling
from plumed_cv.common.extras import require
from plumed_cv.engines import Engine
from plumed_cv.engines.process import KilledError
from plumed_cv.events.saddles import Ints, Outcome, Searcher
from plumed_cv.input_file import Config

# Searches that are begun at once, for each process. With one, all processes would wait for a long
# search. Those that are not needed in the end are lost.
_AHEAD = 4

Search = Callable[[int, float], Outcome]  # of the number of a search and the energy where it ends


@dataclass(frozen=True)
class SearchTask:
    """The searches of one state; can be sent to another process.

    Attributes
    ----------
    config
        Input with the engine.
    given
        Structure for which all processes open their engines. Along directions without periodicity,
        LAMMPS's box depends on it, and the box determines the order of its list of neighbours.
    reactant
        The relaxed initial state.
    centres, radius_A
        As for `Searcher`.
    seed
        Seed of all searches.
    """

    config: Config
    given: Atoms
    reactant: Atoms
    centres: Ints
    radius_A: float
    seed: int

    def searcher(self, engine: Engine) -> Searcher:
        """Return what does the searches."""
        return Searcher(engine, self.reactant, self.centres, self.radius_A)

    def search(self, searcher: Searcher, number: int, ceiling_eV: float) -> Outcome:
        """Do the search with a number, from 1, which ends above an energy."""
        return searcher.search(np.random.default_rng([self.seed, number]), ceiling_eV)


@contextmanager
def open_searches(
    task: SearchTask, searcher: Searcher, jobs: int, scheduler: str | None, last: int
) -> Iterator[Search]:
    """Yield a function that returns the outcome of a search; it is called with 1, 2, ... in turn.

    Parameters
    ----------
    task
        The searches.
    searcher
        Does them in this process if there is one job and no scheduler.
    jobs
        Number of processes of this machine.
    scheduler
        Address or file of a dask scheduler whose workers do the searches instead.
    last
        Number of the last search that may be asked for.

    Raises
    ------
    UserError
        If no scheduler answers. The function raises a KilledError if a process is killed.
    """
    if scheduler is not None:
        with sampling.open_cluster(scheduler, "--scheduler") as cluster:
            client = require("distributed").default_client()
            yield Ahead(
                cluster, partial(_search_once, task), lambda: sum(client.nthreads().values()), last
            )
    elif jobs > 1:
        with _open_processes(jobs) as pool:
            yield Ahead(pool, partial(_search, task), lambda: jobs, last)
    else:
        yield lambda number, ceiling_eV: task.search(searcher, number, ceiling_eV)


class Ahead:
    """Begins searches ahead and returns their outcomes in order.

    Parameters
    ----------
    pool
        Does the searches.
    search
        Does one search; can be sent to another process.
    at_once
        Returns the number of searches that the pool can do at the same time.
    last
        Number of the last search.
    """

    def __init__(
        self, pool: Executor, search: Search, at_once: Callable[[], int], last: int
    ) -> None:
        self._pool, self._search, self._at_once, self._last = pool, search, at_once, last
        self._begun: dict[tuple[int, float], Future[Outcome]] = {}

    def __call__(self, number: int, ceiling_eV: float) -> Outcome:
        """Return the outcome of a search; begin those after it.

        Raises
        ------
        KilledError
            If a process is killed.
        """
        for key in [key for key in self._begun if key[1] != ceiling_eV]:
            self._begun.pop(key).cancel()
        try:
            ahead = _AHEAD * max(1, self._at_once())
            for each in range(number, min(number + ahead, self._last + 1)):
                if (each, ceiling_eV) not in self._begun:
                    future = self._pool.submit(self._search, each, ceiling_eV)
                    self._begun[each, ceiling_eV] = future
            return self._begun.pop((number, ceiling_eV)).result()
        except BrokenProcessPool:
            raise KilledError("the process of a search was killed") from None
        except Exception as error:
            if sampling.is_of_cluster(error):
                raise KilledError(f"a worker of the scheduler has failed ({error})") from None
            raise


@contextmanager
def _open_processes(jobs: int) -> Iterator[Executor]:
    """Yield processes of this machine. At the end of the block, or of this process, they end."""
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    with ours, theirs:
        pool = ProcessPoolExecutor(jobs, context, _follow, (theirs,))
        try:
            yield pool
        finally:
            ours.close()  # nobody waits for searches that do not count
            pool.shutdown(cancel_futures=True)


class _Pipe(Protocol):
    """The end of a pipe that is read; its class is another one on Windows."""

    def poll(self, timeout: float | None = ...) -> bool: ...


def _follow(pipe: _Pipe) -> None:
    """In a process of the pool: leave interrupts to the parent, and end when it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        pipe.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_searchers: list[Searcher] = []  # of a process of the pool: one, with its engine


def _search(task: SearchTask, number: int, ceiling_eV: float) -> Outcome:
    """Search in a process of the pool, which keeps its engine."""
    if not _searchers:
        _searchers.append(task.searcher(sampling.open_engine(task.config, task.given)))
    return task.search(_searchers[0], number, ceiling_eV)


def _search_once(task: SearchTask, number: int, ceiling_eV: float) -> Outcome:
    """Search in a worker of a cluster, which may serve others later, so that the engine ends."""
    with sampling.open_engine(task.config, task.given) as engine:
        return task.search(task.searcher(engine), number, ceiling_eV)
