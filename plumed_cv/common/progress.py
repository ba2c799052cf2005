"""Who is told how work gets on."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

# Called with the amount done so far and a few words on how it stands.
Update = Callable[[float, str], None]


class Reporter(Protocol):
    """Who is told how the run goes."""

    def say(self, text: str) -> None:
        """Tell a result."""

    def task(self, name: str, total: float | None) -> AbstractContextManager[Update]:
        """Show the progress of one task until the block ends."""


class Silent:
    """A reporter that tells nobody."""

    def say(self, text: str) -> None:
        """Tell nobody."""

    def task(self, name: str, total: float | None) -> AbstractContextManager[Update]:
        """Show nothing."""
        return nullcontext(lambda done, note: None)
