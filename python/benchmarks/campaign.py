"""Cost of `plumed-cv campaign` itself, with 100 events on this machine and with 1000 workers.

    python python/benchmarks/campaign.py [--quick] [--output docs/campaigns.json] [PART ...]
    python python/benchmarks/campaign.py --table docs/campaigns.json

A catalogue has one event, the jump of a vacancy in copper (31 atoms, EMT), under many names. Each
is a real event for the campaign: a process for each name computes the harmonic rates. The parts are

- `machine`: the campaign with two jobs and 100 events. The processor time of the campaign's process
  is compared with that of the processes of the events.
- `workers`: the campaign on a dask scheduler with 1000 workers and twice as many events. Scheduler
  and workers are threads of one process. Each event is replaced by a wait of `--wait` seconds. The
  processor time of this process, without that of idle workers in the same time, is the cost of the
  campaign, the scheduler and the workers together.
- `kills`: the campaign with two jobs and `--killed-events` events is killed at 20 random moments
  and started again. Its rates.csv is compared with that of a campaign that is not killed, byte by
  byte.

Results of parts that are not named stay in the file.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
from ase.build import bulk

from plumed_cv.events import find_jumps
from plumed_cv.workflow import campaign

INPUT = """
[system]
temperature_K = [500.0, 700.0]

[engine]
name = "ase"
calculator = "ase.calculators.emt.EMT"

[path]
images = 5
fmax_eV_A = 0.05
"""
MINUTE_S = 60.0  # an event that is short for a run
# The command line, which writes its processor time, and that of its processes, when it ends.
_TIMED = """
import atexit, json, resource, sys, time
def write(file=sys.argv.pop(1)):
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = {"own": time.process_time(), "events": used.ru_utime + used.ru_stime}
    open(file, "w").write(json.dumps(times))
atexit.register(write)
from plumed_cv.cli import main
main()
"""
# What 1000 workers in one process do beside their work: samples of their own speed and memory.
_QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.admin.tick.interval": "1h",
    "distributed.worker.memory.monitor-interval": "1h",
}


def make_catalogue(folder: Path, events: int) -> Path:
    """Write a catalogue of one event under many names; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    bulk("Cu", "fcc", a=3.6).write(folder / "cu.cif")
    (folder / "cu.toml").write_text(INPUT)
    catalogue = folder / "catalogue"
    found = find_jumps(folder / "cu.cif", folder / "cu.toml", catalogue, species="Cu", width_A=7.0)
    assert len(found["events"]) == 1
    return copy_event(catalogue, events)


def copy_event(catalogue: Path, events: int) -> Path:
    """Give the first event of a catalogue more names."""
    file = catalogue / "catalogue.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    first = content["events"][0]
    names = [f"Cu-vacancy-{k + 1}" for k in range(events)]
    content["events"] = [{**first, "id": name} for name in names]
    for name in names[1:]:
        if not (catalogue / name).exists():
            shutil.copytree(catalogue / names[0], catalogue / name)
    file.write_text(json.dumps(content), encoding="utf-8")
    return catalogue


def start(catalogue: Path, times: Path, jobs: int) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own."""
    words = [sys.executable, "-c", _TIMED, str(times), "campaign", str(catalogue), "--harmonic"]
    return subprocess.Popen(
        [*words, "--jobs", str(jobs)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def on_this_machine(catalogue: Path, jobs: int) -> dict[str, float]:
    """Do all events; return the seconds of the campaign, of its processes, and in all."""
    times = catalogue.with_name("times.json")
    load, began = os.getloadavg()[0], time.perf_counter()
    status = start(catalogue, times, jobs).wait()
    wall = time.perf_counter() - began
    assert status == 0, f"exit status {status}"
    return {**json.loads(times.read_text(encoding="utf-8")), "wall": wall, "load": load}


def on_workers(catalogue: Path, workers: int, wait_s: float) -> dict[str, float]:
    """Do the campaign with many workers in this process, each event a wait; return seconds."""
    import dask
    from distributed import LocalCluster

    def wait(job: campaign.Job) -> None:
        time.sleep(wait_s)

    with (
        dask.config.set(_QUIET),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            memory_limit=0,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,  # workers that are ended complain
        ) as cluster,
        patch.object(campaign, "_execute", wait),
    ):
        before = time.process_time()
        time.sleep(wait_s)
        idle = (time.process_time() - before) / wait_s
        before, began = time.process_time(), time.perf_counter()
        content = campaign.run_campaign(
            catalogue, harmonic=True, scheduler=cluster.scheduler_address
        )
        wall = time.perf_counter() - began
        used = time.process_time() - before
    assert not content["failures"]
    return {
        "workers": workers,
        "events": len({row["event"] for row in content["rates"]}),
        "wait": wait_s,
        "wall": wall,
        "used": used,
        "idle_per_second": idle,
        "own": used - idle * wall,
    }


def kill(catalogue: Path, jobs: int, kills: int, wall: float, expected: bytes) -> dict[str, Any]:
    """Kill the campaign at random moments; half of the time also all that it has started.

    Parameters
    ----------
    catalogue
        The catalogue, without rates.
    jobs
        Number of jobs.
    kills
        How often to kill.
    wall
        Duration of a campaign that is not killed, s.
    expected
        Its rates.csv.

    Returns
    -------
    dict
        Number of kills, how many events had results at each, and whether rates.csv is the same.
    """
    rng = np.random.default_rng(1)
    done: list[int] = []
    times = catalogue.with_name("times.json")
    while len(done) < kills:
        process = start(catalogue, times, jobs)
        while not psutil.Process(process.pid).children() and process.poll() is None:
            time.sleep(0.05)  # until an event is at work
        try:
            process.wait(timeout=rng.uniform(0.0, 2.0 * wall / kills))
        except subprocess.TimeoutExpired:
            if rng.random() < 0.5:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            done.append(len(list(catalogue.glob("*/harmonic/harmonic.json"))))
            print(f"{len(done)} kills, {done[-1]} events done", flush=True)
        else:
            assert process.returncode == 0, f"exit status {process.returncode}"
            break  # it was faster than this
    status = start(catalogue, times, jobs).wait()
    assert status == 0, f"exit status {status}"
    return {
        "kills": len(done),
        "done": done,
        "same": (catalogue / "rates.csv").read_bytes() == expected,
    }


def measure_machine(folder: Path, events: int, jobs: int) -> dict[str, Any]:
    """Do a campaign on this machine; return its seconds."""
    return on_this_machine(make_catalogue(folder, events), jobs) | {"count": events, "jobs": jobs}


def measure_workers(folder: Path, workers: int, wait_s: float) -> dict[str, Any]:
    """Compute one event, and do the campaign with many workers; return its seconds."""
    catalogue = make_catalogue(folder, 1)
    on_this_machine(catalogue, 1)
    return on_workers(copy_event(catalogue, 2 * workers), workers, wait_s)


def measure_kills(folder: Path, events: int, jobs: int, kills: int) -> dict[str, Any]:
    """Do a campaign in peace and another one with kills; return what `kill` does."""
    catalogue = make_catalogue(folder, events)
    fresh = Path(shutil.copytree(catalogue, folder / "kills" / "catalogue"))
    wall = on_this_machine(catalogue, jobs)["wall"]
    expected = (catalogue / "rates.csv").read_bytes()
    return kill(fresh, jobs, kills, wall, expected) | {"events": events, "jobs": jobs}


def show(results: dict[str, Any]) -> None:
    """Print the tables of docs/diffusion.md."""
    if found := results.get("machine"):
        print("| events | jobs | events (CPU s) | campaign (CPU s) | share | load before |")
        print("|" + " --- |" * 6)
        share = 100 * found["own"] / found["events"]
        print(
            f"| {found['count']} | {found['jobs']} | {found['events']:.0f} | {found['own']:.1f} "
            f"| {share:.2f} % | {found['load']:.1f} |\n"
        )
    if found := results.get("workers"):
        each = found["own"] / found["events"]
        print("| workers | events | wait (s) | time (s) | CPU an event (ms) | share of a minute |")
        print("|" + " --- |" * 6)
        print(
            f"| {found['workers']} | {found['events']} | {found['wait']:g} | {found['wall']:.0f} "
            f"| {1e3 * each:.1f} | {100 * each / MINUTE_S:.3f} % |\n"
        )
    if found := results.get("kills"):
        print("| events | jobs | kills | events with rates at each kill | rates.csv |")
        print("|" + " --- |" * 5)
        done = ", ".join(map(str, found["done"]))
        print(
            f"| {found['events']} | {found['jobs']} | {found['kills']} | {done} "
            f"| {'the same' if found['same'] else 'differs'} |"
        )


def main() -> None:
    """Measure and print, or print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ("machine", "workers", "kills")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="a few events, workers and kills")
    parser.add_argument("--wait", type=float, help="of an event on the simulated workers, s")
    parser.add_argument("--killed-events", type=int, help="events of the campaign that is killed")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--table", type=Path, help="print the numbers of this JSON file")
    arguments = parser.parse_args()
    if arguments.table:
        show(json.loads(arguments.table.read_text(encoding="utf-8")))
        return
    events, jobs, workers, kills = (2, 1, 4, 1) if arguments.quick else (100, 2, 1000, 20)
    wait_s = arguments.wait or (1.0 if arguments.quick else 20.0)
    killed = arguments.killed_events or events
    parts = {
        "machine": lambda folder: measure_machine(folder, events, jobs),
        "workers": lambda folder: measure_workers(folder, workers, wait_s),
        "kills": lambda folder: measure_kills(folder, killed, jobs, kills),
    }
    found: dict[str, Any] = {}
    for name in arguments.parts or names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = parts[name](Path(folder))
        if output := arguments.output:
            old = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
            output.write_text(json.dumps(old | found, indent=1) + "\n", encoding="utf-8")
    show(found)


if __name__ == "__main__":
    main()
