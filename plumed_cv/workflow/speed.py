"""How fast a sampling gets on, and what a faster kernel of PLUMED would save."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from plumed_cv.common.numbers import duration
from plumed_cv.common.progress import Update
from plumed_cv.sampling import WalkerTask
from plumed_cv.setup.kernel import Plumed, faster_kernel

SLOW_S = 600.0  # a sampling that takes longer says what would make it faster

# An optimised kernel needs a quarter to a seventh of the time of one compiled without optimisation.
_SHARE_LEFT = 0.25
_WORTH = 0.05  # least share of the time that an optimised kernel saves

# The table with which PLUMED ends its log: number and name of the task, cycles, seconds in all.
_TIMING = re.compile(r"^PLUMED: \d+ \D+ (\d+) +(\d+\.\d+) ", re.MULTILINE)


def read_plumed_seconds(log: Path) -> float | None:
    """Time that PLUMED took in the steps of a segment, s; None if its log does not say.

    Parameters
    ----------
    log
        PLUMED's log of a segment that has ended.
    """
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    times = [float(seconds) for _, seconds in _TIMING.findall(text)]
    return sum(times) if times else None


def what_a_fast_kernel_saves(task: WalkerTask, plumed: Plumed) -> str | None:
    """Return what to tell the user about the kernel, once a walker has ended a segment.

    Parameters
    ----------
    task
        The walker's share; the others are assumed to be as fast, at the same time.
    plumed
        The PLUMED of the run.

    Returns
    -------
    A sentence with a remedy; None if the kernel is an optimised one, the rest of the sampling takes
    less than `SLOW_S`, it would hardly be shorter, or PLUMED's log does not say how long it took.
    """
    done = task.done()
    if plumed.optimised or task.previous is None or not done[-1]["n_steps"]:
        return None
    in_plumed = read_plumed_seconds(task.previous / "plumed.log")
    taken, n_steps = float(done[-1]["seconds"]), int(done[-1]["n_steps"])
    left = (task.steps - sum(int(part["n_steps"]) for part in done)) * taken / n_steps
    if in_plumed is None or left < SLOW_S:
        return None
    if task.config.engine.walks_together:  # all of them took this time, one after another
        in_plumed *= task.config.sampling.walkers * task.config.sampling.repetitions
    share = min(1.0, in_plumed / taken)
    fast = left * (1.0 - share * (1.0 - _SHARE_LEFT))
    if left - fast < _WORTH * left:
        return None
    return (
        f"PLUMED takes {100 * share:.0f} % of this sampling, because its kernel was compiled "
        "without optimisation. With an optimised one the rest would take "
        f"{duration(fast)} or less and not {duration(left)}. Interrupt the run, "
        f"{faster_kernel(plumed)}, and start the run again; it continues from there."
    )


def watch_speed(
    update: Update, tasks: Sequence[WalkerTask], plumed: Plumed, say: Callable[[str], None]
) -> Update:
    """Return `update` with a look at the speed when the first walker has ended a segment."""
    waiting = [task for task in tasks if not task.is_done]
    before = len(waiting[0].done()) if waiting else 0

    def updated(steps: float, note: str) -> None:
        update(steps, note)
        if waiting and len(waiting[0].done()) > before:
            if said := what_a_fast_kernel_saves(waiting[0], plumed):
                say(said)
            waiting.clear()

    return updated
