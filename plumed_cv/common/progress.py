"""Progress reporting: to the log, to a function of the caller's, or to a terminal."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

log = logging.getLogger("plumed_cv")

# Called with the amount done so far and a few words on how it stands.
Update = Callable[[float, str], None]


class Reporter(Protocol):
    """Is told how the run goes."""

    def say(self, text: str) -> None:
        """Tell a result."""

    def task(self, name: str, total: float | None) -> AbstractContextManager[Update]:
        """Show the progress of one task until the block ends."""


class Log:
    """A reporter that writes results and the beginnings of tasks to the logger "plumed_cv".

    Their level is INFO, so that nothing is shown until `logging` is told to show it.
    """

    def say(self, text: str) -> None:
        """Log a result."""
        log.info(text)

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator[Update]:
        """Log that a task begins."""
        log.info(name)
        yield lambda done, note: None


class Callback(Log):
    """A reporter that calls a function with the progress, and logs results.

    Parameters
    ----------
    function
        Called with the name of the task, the amount done, the amount in all (None if unknown) and
        a few words on how it stands.
    """

    def __init__(self, function: Callable[[str, float, float | None, str], None]) -> None:
        self._function = function

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator[Update]:
        """Call the function at the start of a task and whenever it gets on."""
        log.info(name)
        self._function(name, 0.0, total, "")
        yield lambda done, note: self._function(name, done, total, note)
