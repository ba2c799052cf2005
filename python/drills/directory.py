"""What a run directory may meet: a full disk, one that cannot be written to, other runs."""

import argparse
import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from python.drills.runs import attempt, contents, is_a_sentence, reference, start


@contextlib.contextmanager
def small_disk(where: Path, kilobytes: int) -> Iterator[Callable[[str], None]]:
    """A disk of so many kB (tmpfs, for root alone), and a function that mounts it otherwise."""
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", where], check=True)
    try:
        yield lambda options: (
            subprocess.run(["mount", "-o", f"remount,{options}", where], check=True),
            None,
        )[1]
    finally:
        subprocess.run(["umount", where], check=True)


def fill_disk(file: Path, whole: dict[str, Any], where: Path, step_kB: int) -> dict[str, Any]:
    """A run on a disk that is full again and again, each time a little larger.

    Returns
    -------
    dict
        How often the disk was full, how often that was not said in one sentence, and whether the
        run's files differ in the end; and the same for a disk that cannot be written to.
    """
    size, full, silent = step_kB, 0, []
    with small_disk(where, size) as remount:
        run = where / "run"
        while True:
            status, said = attempt(file, run)
            if status == 0:
                break
            full += 1
            if not is_a_sentence(said):
                silent.append(said)
            size += step_kB
            remount(f"size={size}k")
        differs = contents(run) != whole
        remount(f"size={size}k,ro")
        status, said = attempt(file, run)
        read_only = "finished run is shown" if status == 0 else said.strip().splitlines()[-1]
        status, said = attempt(file, where / "another")
        new = status == 1 and is_a_sentence(said)
    return {
        "times_full": full,
        "last_kB": size,
        "not_one_sentence": len(silent),
        "what_was_said_then": silent,
        "differs": differs,
        "read_only_finished": _without_path(read_only, where),
        "read_only_new_is_one_sentence": new,
    }


def disk(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A run on a disk that is full time and again."""
    file, whole = reference(folder)
    return fill_disk(file, whole, folder / "disk", arguments.step_kB)


def company(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Several runs in one directory: one works, the others refuse."""
    file, whole = reference(folder)
    run, logs = folder / "company", [folder / f"company-{i}.log" for i in range(6)]
    processes = [start(file, run, log) for log in logs]
    statuses = [process.wait() for process in processes]
    texts = [log.read_text() for log in logs]
    refused = sum("another run is at work" in text and is_a_sentence(text) for text in texts)
    return {
        "started": len(logs),
        "done": statuses.count(0),
        "refused": refused,
        "differs": contents(run) != whole,
    }


def _without_path(text: str, folder: Path) -> str:
    return text.replace(str(folder), "...")
