"""Progress bars by rich: on a terminal, or in a notebook."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from plumed_cv.common.progress import Update

# No markup: file names and messages may contain brackets, as in plumed_cv[all].
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


class Bars:
    """A reporter with bars on a terminal or in a notebook, and with one line a task elsewhere."""

    def say(self, text: str) -> None:
        """Print a result."""
        err.print(text)

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator[Update]:
        """Show one task until the block ends."""
        if not (err.is_terminal or err.is_jupyter):
            err.print(name)
            yield lambda done, note: None
            return
        with make_bars(TextColumn("{task.fields[note]}")) as progress:
            task = progress.add_task(name, total=total, note="")

            def update(done: float, note: str) -> None:
                progress.update(task, completed=done)
                if note:
                    progress.update(task, note=note)

            yield update


def make_bars(*more: ProgressColumn) -> Progress:
    """Return a display with one bar for each task, on standard error."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        *more,
        console=err,
    )
