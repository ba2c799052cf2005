"""All events of a catalogue at all temperatures: one process for each event, results in one table.

    catalogue.json          the events (`events.catalogue`)
    Fe-vacancy-1/           an event
        run/                its runs, as `plumed-cv run` writes them
        harmonic/           its harmonic rates, as `plumed-cv harmonic` writes them
        run.log, harmonic.log   what these commands said
    rates.csv, rates.json   rates of all events at all temperatures, and what failed

Each event is done by the command that a user would type. An event that fails is set aside with its
last sentence. The same command goes on after any stop, because the runs themselves do.
"""

import csv
import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import units

from plumed_cv import sampling
from plumed_cv.common.errors import UserError, naming
from plumed_cv.common.files import locked, read_json, write_text
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.events.catalogue import INPUT, Catalogue, Event, read_catalogue
from plumed_cv.setup.tools import n_cores
from plumed_cv.workflow import saddle_points
from plumed_cv.workflow.allocation import raise_work
from plumed_cv.workflow.harmonic_theory import check_one_cell, rate_of
from plumed_cv.workflow.provenance import check_same_energies, refuse_other_input
from plumed_cv.workflow.temperatures import COLUMNS

HARMONIC = "harmonic"
_ROUNDS = 5  # of raised steps
_STOP = "stop"  # a file in the catalogue that ends all events
_STOPPED = "stopped"
_POLL_S = 0.5
_SHARE = 0.005  # of the time, for the table of an unfinished campaign
_PATIENCE_S = 30.0
# A process that ends with the campaign, and leaves Ctrl-C to it.
_CHILD = """
import sys
from plumed_cv.sampling.walkers import follow
follow(int(sys.argv.pop(1)))
from plumed_cv.cli import main
main()
"""


@dataclass(frozen=True)
class Job:
    """The command of one event; it can be sent to another machine that sees the same files.

    Attributes
    ----------
    event
        Name of the event.
    command
        Words after `plumed-cv`.
    log
        File for what it says.
    root
        Folder of the catalogue.
    """

    event: str
    command: tuple[str, ...]
    log: Path
    root: Path


def run_campaign(
    folder: Path | str,
    *,
    harmonic: bool = False,
    jobs: int = 1,
    scheduler: str | None = None,
    error: float | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Do or continue the runs of all events of a catalogue, and write the table of rates.

    Parameters
    ----------
    folder
        The catalogue.
    harmonic
        Whether harmonic rates are computed instead of runs.
    jobs
        Number of events at the same time on this machine.
    scheduler
        Address or scheduler file of a dask scheduler whose workers do the events.
    error
        Relative error of the diffusion coefficient at every temperature, or of the rate of all
        events together if they were discovered from one state. If it is larger, steps and shots of
        the events that matter most to it are raised in their inputs, and these events continue.
    reporter
        Receives the progress.

    Returns
    -------
    dict
        The content of rates.json: `rates`, one row for each event, temperature and kind of rate,
        and `failures`.

    Raises
    ------
    UserError
        If there is no catalogue, another campaign is at work in it, an input cannot be read,
        the events need more cores than there are, or the error is unknown.
    """
    reporter = reporter or Log()
    catalogue = read_catalogue(folder)
    todo = [_job(catalogue, event, harmonic) for event in catalogue.events]
    # A campaign that goes on begins with what is missing; the other events end after a check.
    todo.sort(key=_has_result)
    _check_inputs(catalogue, harmonic, jobs, scheduler)
    with _alone(catalogue.root):
        reasons: dict[str, str] = {}
        _do(catalogue, todo, jobs, scheduler, reasons, reporter)
        if error is not None:
            for _ in range(_ROUNDS):
                raised = raise_work(catalogue, error, reporter)
                if not raised:
                    break
                again = [job for job in todo if job.event in raised]
                _do(catalogue, again, jobs, scheduler, reasons, reporter)
            else:
                reporter.say(
                    "The steps were raised five times; start the campaign again to continue."
                )
        return write_rates(catalogue, reasons)


def _do(
    catalogue: Catalogue,
    todo: Sequence[Job],
    jobs: int,
    scheduler: str | None,
    reasons: dict[str, str],
    reporter: Reporter,
) -> None:
    """Do these events, and collect the reasons of those that fail.

    The table is written after an event, but not so often that it takes more than `_SHARE` of the
    time: it has the rates of all events, so that each one makes the next table take longer.
    """
    written = took = 0.0
    try:
        with reporter.task("events", len(todo)) as update:
            for done, (job, reason) in enumerate(_results(todo, jobs, scheduler), 1):
                reasons.pop(job.event, None)
                if reason is not None:
                    reasons[job.event] = reason
                    reporter.say(f"{job.event}: set aside: {reason}")
                update(done, job.event)
                began = time.monotonic()
                if began - written >= took / _SHARE:
                    write_rates(catalogue, reasons)
                    written = time.monotonic()
                    took = written - began
    finally:
        write_rates(catalogue, reasons)


def write_rates(catalogue: Catalogue, reasons: dict[str, str]) -> dict[str, Any]:
    """Write rates.csv and rates.json from what there is.

    Parameters
    ----------
    catalogue
        The catalogue.
    reasons
        Why an event failed as a whole, by its name.

    Returns
    -------
    dict
        The content of rates.json.
    """
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for event in catalogue.events:
        of_runs, aside = _of_runs(catalogue, event)
        of_harmonic, outdated = _of_harmonic(catalogue, event)
        rows += [*of_runs, *of_harmonic]
        if event.id in reasons and not aside:
            aside = [{"temperature_K": None, "reason": reasons[event.id]}]
        if outdated not in (None, reasons.get(event.id)):
            aside = [*aside, {"temperature_K": None, "reason": outdated}]
        failures += [{"event": event.id, **each} for each in aside]
    content = {
        "rates": rows,
        "failures": failures,
        "units": {
            "rate_per_s": "1/s, of one of the equivalent jumps",
            "error_factor": "the rate is within this factor, one standard error",
            "delta_F_eV": "free energy of the final minus that of the initial state, eV",
        },
    }
    write_text(catalogue.root / "rates.json", json.dumps(content, indent=2, allow_nan=False))
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow(row)
        if row["reverse_rate_per_s"] is not None:
            table.writerow(_reverse(row))
    write_text(catalogue.root / "rates.csv", text.getvalue())
    return content


def _reverse(row: dict[str, Any]) -> dict[str, Any]:
    """The row of rates.csv for the jumps back, which have another rate."""
    return {
        **row,
        "event": f"{row['event']}-reverse",
        "rate_per_s": row["reverse_rate_per_s"],
        "error_factor": row["reverse_error_factor"],
        "multiplicity": row["reverse_multiplicity"],
        "flux_barrier_eV": None,
    }


def _of_runs(
    catalogue: Catalogue, event: Event
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the runs of an event, and the temperatures that failed."""
    root = catalogue.folder(event) / "run"
    files, aside = [root / "result.json"], []
    if (root / "temperatures.json").exists():
        kelvin = read_json(root / "temperatures.json")["temperatures_K"]
        files = [root / f"{temperature_K:g}K" / "result.json" for temperature_K in kelvin]
        if (root / "rates.json").exists():
            aside = read_json(root / "rates.json").get("failures", [])
    rows, outdated = [], []
    for file in files:
        if not file.exists():
            continue
        result = read_json(file)
        if reason := _of_another_input(catalogue, event, file.parent, result["temperature_K"]):
            outdated.append({"temperature_K": result["temperature_K"], "reason": reason})
            continue
        rate, _, factor, source = rate_of(result)
        note = result.get("rate_note")
        if (paths := saddle_points.factor_of(result)) is None:
            note = "; ".join(filter(None, (note, result["multiplicity_note"].rstrip("."))))
        row = _row(event, result["temperature_K"], source, rate, factor) | {
            "transmission": result.get("transmission"),
            "flux_barrier_eV": result.get("flux_barrier_eV"),
            "converged": result["converged"],
            "rate_note": note,
            "directory": file.parent.relative_to(catalogue.root).as_posix(),
        }
        if source != "transition state theory":
            bound = {key: result.get(key) for key in ("tst_rate_per_s", "tst_rate_error_per_s")}
            row["tst_rate_per_s"], _, row["tst_error_factor"], _ = rate_of(bound)
        else:
            row["tst_rate_per_s"], row["tst_error_factor"] = rate, factor
        if not event.is_symmetric:
            row["delta_F_eV"] = result.get("delta_F_eV")
            row["delta_F_error_eV"] = result.get("delta_F_error_eV")
            row["reverse_rate_per_s"] = result.get("reverse_rate_per_s")
            row["reverse_error_factor"] = result.get("reverse_rate_error_factor")
            _by_detailed_balance(row)
        for key in ("rate_per_s", "tst_rate_per_s", "reverse_rate_per_s"):
            if row[key] is not None:  # all equal saddle points belong to the event
                row[key] *= paths or 1.0
        rows.append(row)
    aside = [each for each in aside if not _has([*rows, *outdated], each["temperature_K"])]
    return rows, [*aside, *outdated]


def _of_another_input(
    catalogue: Catalogue, event: Event, run: Path, temperature_K: float
) -> str | None:
    """Why the results of a run are not those of the input of an event; None if they are."""
    try:
        config = catalogue.config(event)
        config = config.model_copy(update={"system": config.system.at(temperature_K)})
        refuse_other_input(run.absolute(), config)
    except UserError as error:
        return str(error)
    return None


def _by_detailed_balance(row: dict[str, Any]) -> None:
    """Fill in the rate of the way back, if only the free energies of the two states are known."""
    if row["reverse_rate_per_s"] or not row["rate_per_s"] or row["delta_F_eV"] is None:
        return
    kT = units.kB * row["temperature_K"]
    row["reverse_rate_per_s"] = row["rate_per_s"] * math.exp(row["delta_F_eV"] / kT)
    if row["error_factor"] and row["delta_F_error_eV"] is not None:
        error = math.hypot(math.log(row["error_factor"]), row["delta_F_error_eV"] / kT)
        row["reverse_error_factor"] = math.exp(error)


def _has(rows: Sequence[dict[str, Any]], temperature_K: float) -> bool:
    return any(row["temperature_K"] == temperature_K for row in rows)


def _of_harmonic(catalogue: Catalogue, event: Event) -> tuple[list[dict[str, Any]], str | None]:
    """Return the rows of the harmonic rates of an event; why not, if they are of another input."""
    file = catalogue.folder(event) / HARMONIC / "harmonic.json"
    if not file.exists():
        return [], None
    try:
        check_same_energies(file.parent.absolute(), catalogue.config(event))
    except UserError as error:
        return [], str(error)
    found = read_json(file)
    rows = []
    equal, more = found.get("equal_saddle_points", 1), found.get("other_maxima", 0)
    note = None
    if more:
        note = (
            f"the path has {more} more {'maxima' if more > 1 else 'maximum'} of nearly the same "
            "height, and the harmonic rate over the highest one alone is an upper bound"
        )
    for k, at in enumerate(found["rates"]):
        factor, rate = found["prefactor_error_factor"], equal * at["rate_per_s"]
        row = _row(event, at["temperature_K"], HARMONIC, rate, factor) | {
            "flux_barrier_eV": at["flux_barrier_eV"],
            "converged": True,
            "rate_note": note,
            "directory": file.parent.relative_to(catalogue.root).as_posix(),
        }
        if back := found.get("reverse"):
            reverse = equal * back["rates"][k]["rate_per_s"]
            noise = back["prefactor_error_factor"]
            kT = units.kB * at["temperature_K"]
            row["reverse_rate_per_s"], row["reverse_error_factor"] = reverse, noise
            row["delta_F_eV"] = -kT * math.log(rate / reverse)
            row["delta_F_error_eV"] = kT * math.log(factor * noise)
        rows.append(row)
    return rows, None


def _row(
    event: Event, temperature_K: float, source: str, rate: float | None, factor: float | None
) -> dict[str, Any]:
    """A row of rates.json; what is not known of every event is None."""
    return {
        "event": event.id,
        "temperature_K": temperature_K,
        "rate_per_s": rate,
        "error_factor": factor,
        "transmission": None,
        "rate_note": None,
        "multiplicity": event.jump.multiplicity,
        "flux_barrier_eV": None,
        "source": source,
        "tst_rate_per_s": None,
        "tst_error_factor": None,
        "reverse_rate_per_s": None,
        "reverse_error_factor": None,
        "reverse_multiplicity": event.jump.reverse_multiplicity,
        "delta_F_eV": None,
        "delta_F_error_eV": None,
    }


def _job(catalogue: Catalogue, event: Event, harmonic: bool) -> Job:
    folder = catalogue.folder(event).absolute()
    words = [str(folder / INPUT)]
    if harmonic:
        words = [HARMONIC, *words, *(() if event.is_symmetric else ("--reverse",))]
    else:
        words = ["run", *words, "--keep-going"]
    return Job(event.id, tuple(words), folder / f"{words[0]}.log", catalogue.root.absolute())


def _has_result(job: Job) -> bool:
    """Whether the folder of the runs or of the harmonic rates of an event has a result."""
    names = ("result.json", "rates.json", "harmonic.json")
    return any((job.log.with_suffix("") / name).exists() for name in names)


def _check_inputs(catalogue: Catalogue, harmonic: bool, jobs: int, scheduler: str | None) -> None:
    """Refuse what would fail hours later."""
    for event in catalogue.events:
        config = catalogue.config(event)
        file = catalogue.folder(event) / INPUT
        if harmonic:
            with naming(file):
                check_one_cell(config)
        together = harmonic or config.engine.walks_together
        cores = 1 if together else config.sampling.walkers * config.sampling.repetitions
        if scheduler is None and jobs > 1 and jobs * cores > n_cores():
            raise UserError(
                f"--jobs {jobs}: {file} runs {cores} processes for each event, {jobs * cores} in "
                f"all, and this machine has {n_cores()} cores; use fewer jobs, or fewer walkers."
            )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Exclude other campaigns from a catalogue."""
    try:
        with locked(root / ".lock", timeout_s=0.0):
            yield
    except TimeoutError:
        raise UserError(
            f"{root}: another campaign is at work in this catalogue; wait for its end, or end it."
        ) from None
    except OSError as error:
        raise UserError(f"{root}: cannot be used for a campaign: {error.strerror}.") from None


def _results(
    todo: Sequence[Job], jobs: int, scheduler: str | None
) -> Iterator[tuple[Job, str | None]]:
    """Yield each job that has ended, and the reason if it failed."""
    root = todo[0].root
    stop = root / _STOP
    if scheduler is not None:  # workers of a campaign that was killed may still be at work
        stop.touch()
        time.sleep(4 * _POLL_S)
    stop.unlink(missing_ok=True)
    with ExitStack() as stack:
        pool: Executor
        if scheduler is None:
            pool = stack.enter_context(ThreadPoolExecutor(jobs))
        else:
            pool = stack.enter_context(sampling.open_cluster(scheduler, "--scheduler"))
        futures: dict[Future[str | None], Job] = {pool.submit(_execute, job): job for job in todo}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not sampling.is_of_cluster(error):
                    raise error
                yield futures[future], future.result() if error is None else str(error)
        except BaseException:
            stop.touch()
            for future in futures:
                future.cancel()
            wait(futures, timeout=_PATIENCE_S)
            raise
        finally:
            stop.unlink(missing_ok=True)


def _execute(job: Job) -> str | None:
    """Run the command of a job to its end; return why it failed, or None."""
    stop = job.root / _STOP
    if stop.exists():
        return _STOPPED
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # one core for each process
    words = [sys.executable, "-c", _CHILD, str(os.getpid()), *job.command]
    with job.log.open("wb") as log:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        # `process.wait(timeout=...)` would look 20 times a second whether the process has ended.
        ended, stopped = threading.Event(), threading.Event()

        def watch() -> None:
            while not ended.wait(_POLL_S):
                if stop.exists():
                    stopped.set()
                    process.terminate()
                    return

        threading.Thread(target=watch, daemon=True).start()
        process.wait()
        ended.set()
    if stopped.is_set():
        return _STOPPED
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"its process was ended by signal {-process.returncode}; see {job.log.name}."
    said = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
    sentences = [line for line in said if line.startswith("plumed-cv: ")]
    if sentences:
        return sentences[-1].removeprefix("plumed-cv: ")
    return f"exit status {process.returncode}; see {job.log.name}."
