"""Runs that are killed at random moments in all stages and started again."""

import argparse
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from python.drills.runs import contents, reference, start

# Ways to end a process, and whether all that it has started gets the signal too.
ENDS = {
    "SIGKILL": (signal.SIGKILL, False),
    "SIGKILL to the group": (signal.SIGKILL, True),
    "SIGTERM": (signal.SIGTERM, False),
    "Ctrl-C": (signal.SIGINT, True),
}
STAGES = (
    *("before the start", "minimum energy path", "first variable", "sampling 1", "training 1"),
    *("sampling 2", "training 2", "the answer"),
)


def stage(run: Path) -> int:
    """Return the stage of a run, one of STAGES, from its files."""
    if not (run / "provenance.json").exists():
        return 0
    for n, name in enumerate(("path.xyz", "cv-0.safetensors")):
        if not (run / name).exists():
            return 1 + n
    for n in (1, 2):
        folder = run / f"iteration-{n}"
        if not (folder / "result.json").exists():
            # fes.dat is written when the sampling has ended
            return 2 * n + 1 + (folder / "fes.dat").exists()
    return len(STAGES) - 1


def watch(
    process: subprocess.Popen[bytes], run: Path, until: int = len(STAGES)
) -> dict[int, float]:
    """Watch a run until it ends or reaches a stage; return the start of each stage, s."""
    began, entered = time.monotonic(), {stage(run): 0.0}
    while process.poll() is None and max(entered) < until:
        time.sleep(0.01)
        entered.setdefault(stage(run), time.monotonic() - began)
    return entered


def durations(file: Path, run: Path, log: Path) -> list[float]:
    """Duration of each of STAGES in an undisturbed run, s."""
    process = start(file, run, log)
    began = time.monotonic()
    entered = watch(process, run)
    entered[len(STAGES)] = time.monotonic() - began
    for n in reversed(range(len(STAGES))):  # too short to be seen
        entered.setdefault(n, entered[n + 1])
    return [entered[n + 1] - entered[n] for n in range(len(STAGES))]


def kill_until(
    file: Path,
    whole: dict[str, Any],
    folder: Path,
    kills: int,
    seconds: list[float],
    minutes: float = 60.0,
    seed: int = 1,
) -> dict[str, Any]:
    """Kill runs at random moments, continue each until it is complete, and compare.

    A moment is a random stage of those to come, and a random time in it: so the kills reach all
    stages, also where the machine has become slower or faster than it was.

    Parameters
    ----------
    file
        The input.
    whole
        `contents` of a run that was left alone.
    folder
        Where the runs go.
    kills
        How often to kill.
    seconds
        `durations`.
    minutes
        After so many no further kill.
    seed
        Of the moments and the ways.

    Returns
    -------
    dict
        Counts: kills by way and stage, runs, those whose files differ, starts that ended in an
        error of their own, interrupts that ended in a traceback.
    """
    rng = np.random.default_rng(seed)
    ways: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    runs, different, refused, tracebacks, leftovers = 0, 0, [], 0, 0
    end = time.monotonic() + 60.0 * minutes

    def more() -> bool:
        return sum(ways.values()) < kills and time.monotonic() < end

    while more():
        run, log = folder / f"run-{runs:03d}", folder / f"run-{runs:03d}.log"
        while True:
            target, way = int(rng.integers(stage(run), len(STAGES))), list(ENDS)[rng.integers(4)]
            process = start(file, run, log)
            if more():
                # What Python takes to start comes before the rest of a stage that had begun.
                longest = seconds[target] + (seconds[0] if target == stage(run) else 0.0)
                watch(process, run, target)
                time.sleep(rng.uniform(0, longest))
            else:
                process.wait()
            if process.poll() is not None:
                if process.returncode == 0:
                    break
                refused.append(log.read_text())
                if len(refused) > kills:
                    break
                time.sleep(1.0)
                continue
            number, group = ENDS[way]
            stages[STAGES[stage(run)]] += 1
            ways[way] += 1
            (os.killpg if group else os.kill)(process.pid, number)
            process.wait()
            tracebacks += way == "Ctrl-C" and "Traceback" in log.read_text()
            if rng.random() < 0.5 and run.exists():
                _scatter_times(run, rng)
        print(f"{sum(ways.values())} kills, {runs + 1} runs done", flush=True)
        different += contents(run) != whole
        leftovers += len(list(run.rglob("unfinished-*"))) + len(list(run.rglob(".*-*.*")))
        shutil.rmtree(run)
        runs += 1
    return {
        "kills": {name: ways[name] for name in ENDS},
        "stages": {name: stages[name] for name in STAGES},
        "runs": runs,
        "runs_that_differ": different,
        "restarts_refused": len(refused),
        "refusals": sorted({text.strip().splitlines()[-1] for text in refused if text.strip()}),
        "tracebacks_after_ctrl_c": tracebacks,
        "leftover_files": leftovers,
        "seconds_undisturbed": round(sum(seconds), 1),
    }


def kills(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Kills at random moments in all stages; in half of them, all files get a random age."""
    file, whole = reference(folder)
    timed = folder / "timed"
    shutil.rmtree(timed, ignore_errors=True)
    seconds = durations(file, timed, folder / "timed.log")
    return kill_until(file, whole, folder, arguments.kills, seconds, arguments.minutes)


def _scatter_times(run: Path, rng: np.random.Generator) -> None:
    """Give all files a random age, as if the clock had jumped while they were written."""
    for file in run.rglob("*"):
        if file.is_file():
            moment = rng.uniform(0, 4e9)  # 1970 to 2096
            os.utime(file, (moment, moment))
