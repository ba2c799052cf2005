"""Shots in this process, or in parallel in one process for each walker."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ase import Atoms

from plumed_cv import rates, sampling
from plumed_cv.config import Config
from plumed_cv.engines import Engine
from plumed_cv.structures.frame import Array

BATCH = 40  # shots; the error is checked after each batch
VELOCITIES = 2  # shots from each snapshot: two separate its committor from chance

Task = tuple[tuple[str, int], Array, int]  # name and number of a snapshot, its positions, a seed


class Workers:
    """Makes shots in this process, or in parallel in one process for each walker."""

    def __init__(self, config: Config, initial: Atoms, engine: Engine) -> None:
        self._config, self._initial, self._engine = config, initial, engine
        self._number = min(config.sampling.walkers, BATCH // VELOCITIES)

    def __enter__(self) -> Callable[[rates.Shooter, Sequence[Task]], list[rates.Outcome]]:
        if self._number == 1 and self._config.sampling.scheduler is None:
            return self._here
        self._pool = sampling.executors(self._config, self._number)
        self._executors = self._pool.__enter__()
        return self._at_once

    def __exit__(self, *error: Any) -> None:
        if hasattr(self, "_pool"):
            self._pool.__exit__(*error)

    def _here(self, shooter: rates.Shooter, tasks: Sequence[Task]) -> list[rates.Outcome]:
        return list(_shoot(self._engine, shooter, tasks))

    def _at_once(self, shooter: rates.Shooter, tasks: Sequence[Task]) -> list[rates.Outcome]:
        parts = [tasks[k :: self._number] for k in range(self._number)]
        futures = [
            executor.submit(_work, self._config, self._initial, shooter, part)
            for executor, part in zip(self._executors, parts, strict=True)
        ]
        found = [future.result() for future in futures]
        return [found[k % self._number][k // self._number] for k in range(len(tasks))]


def _work(
    config: Config, initial: Atoms, shooter: rates.Shooter, tasks: Sequence[Task]
) -> list[rates.Outcome]:
    """Make the shots of one process in a batch."""
    with sampling.open_engine(config, initial) as engine:
        return list(_shoot(engine, shooter, tasks))


def _shoot(
    engine: Engine, shooter: rates.Shooter, tasks: Sequence[Task]
) -> Iterator[rates.Outcome]:
    for snapshot, positions, seed in tasks:
        yield shooter.shoot(engine, snapshot, positions, seed)
