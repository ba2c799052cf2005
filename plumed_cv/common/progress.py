"""Progress reporting."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

# Called with the amount of work done so far and a short note on the present result.
Update = Callable[[float, str], None]


class Reporter(Protocol):
    """Receiver of the messages and the progress of a run."""

    def say(self, text: str) -> None:
        """Report a result or a note."""

    def task(self, name: str, total: float | None) -> AbstractContextManager[Update]:
        """Show the progress of one task until the block ends."""


class Silent:
    """A reporter that ignores everything."""

    def say(self, text: str) -> None:
        """Ignore the message."""

    def task(self, name: str, total: float | None) -> AbstractContextManager[Update]:
        """Show nothing."""
        return nullcontext(lambda done, note: None)
