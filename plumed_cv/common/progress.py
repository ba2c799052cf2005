"""Progress reporting: to the log, to a function of the caller, or to a terminal."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

log = logging.getLogger("plumed_cv")

# Called with the amount of work done so far and a short note on the present result.
Update = Callable[[float, str], None]


class Reporter(Protocol):
    """Receiver of the messages and the progress of a run."""

    def say(self, text: str) -> None:
        """Report a result or a note."""

    def task(self, name: str, total: float | None) -> AbstractContextManager[Update]:
        """Show the progress of one task until the block ends."""


class Log:
    """A reporter that writes results and the names of tasks to the logger "plumed_cv".

    The level is INFO, so nothing is shown unless `logging` is configured to show it.
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
        Called with the name of the task, the amount of work done, the total amount (None if
        unknown) and a short note on the present result.
    """

    def __init__(self, function: Callable[[str, float, float | None, str], None]) -> None:
        self._function = function

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator[Update]:
        """Call the function at the start of a task and at each progress."""
        log.info(name)
        self._function(name, 0.0, total, "")
        yield lambda done, note: self._function(name, done, total, note)
