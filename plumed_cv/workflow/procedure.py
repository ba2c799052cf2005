"""Sample, train, compare, repeat: the missing parts of a run directory are done in order."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from plumed_cv import freeenergy, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, write_text
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.cv import CollectiveVariable, energy
from plumed_cv.engines import Engine, State
from plumed_cv.input_file import Config
from plumed_cv.paths.path import EnergyPath
from plumed_cv.sampling import guard
from plumed_cv.setup.kernel import Plumed, find_plumed
from plumed_cv.setup.plugin import build_plugin
from plumed_cv.workflow import committee, earlier, provenance, transmission
from plumed_cv.workflow.beginning import take_over
from plumed_cv.workflow.defaults import with_defaults
from plumed_cv.workflow.deviation import describe_stops, write_limit
from plumed_cv.workflow.directory import RunDirectory, claimed
from plumed_cv.workflow.harmonic_theory import count_events
from plumed_cv.workflow.learning import (
    check_components,
    compute_noise_floor,
    train_on_snapshots,
    write_first_cv,
)
from plumed_cv.workflow.mep import check_rotation, find_path, read_end_states, read_path
from plumed_cv.workflow.repetitions import compare_repetitions
from plumed_cv.workflow.results import analyse, complete, drop_constrained, summarise, write_answer
from plumed_cv.workflow.speed import watch_speed
from plumed_cv.workflow.verdict import judge, stopped_by


class NoBarrierError(UserError):
    """A sampling did not reach both end states; its report shows the progress."""


def run(
    config: Config,
    directory: Path | str,
    reporter: Reporter | None = None,
    *,
    inputs_only: bool = False,
    before: RunDirectory | None = None,
) -> dict[str, Any]:
    """Start or continue the iterative procedure at one temperature.

    Parameters
    ----------
    config
        The input.
    directory
        The run directory; made if absent.
    reporter
        Receives the progress.
    inputs_only
        Write the inputs of the next sampling and return before it. `sample` runs it, here or
        elsewhere, and `run` continues from its results.
    before
        The run at another temperature from which a new one begins, see `beginning.take_over`.

    Returns
    -------
    dict
        Content of `result.json`: `rate_per_s`, `transmission`, `flux_barrier_eV`, `barrier_eV` and
        `delta_F_eV` with their errors, `converged`, `similarity`, `md_steps`, `iterations`, and
        more. Before a sampling: `iteration`, and `walkers`, the numbers of the walkers to run with
        `sample`.

    Raises
    ------
    NoBarrierError
        If a sampling was too short to reach both end states.
    UserError
        If the input does not fit, a file was damaged, another run uses the directory, or the
        directory contains a run with another input.
    """
    reporter = reporter or Log()
    if config.system.temperatures_K:
        raise UserError(
            f"system.temperature_K = {list(config.system.temperatures_K)}: one temperature is run "
            "here; 'plumed-cv run' takes several."
        )
    if config.cv.latent > 1:
        raise UserError(
            f"cv.latent = {config.cv.latent}: 'plumed-cv run' samples one latent dimension; train "
            "a model of more with 'plumed-cv train --latent' and bias it as in "
            "plumed_inputs/babf_2d_latent.dat."
        )
    if config.cv.device == "cuda":  # checked before the sampling; importing torch takes seconds
        from plumed_cv.cv.autoencoder import find_device

        find_device(config.cv.device)
    files = RunDirectory(Path(directory).absolute())
    check_components(config)
    initial, final = read_end_states(config, reporter.say)
    check_rotation(config, initial)
    with claimed(files.root), sampling.open_engine(config, initial) as engine:
        provenance.check_same_input(files.root, config)
        plumed = find_plumed()
        plugin = build_plugin(plumed)
        provenance.record(files.provenance, config, plumed, plugin)
        if before is not None:
            take_over(config, files, before, initial, engine, reporter)
        if files.beginning.exists():  # the first iteration already has a learned CV
            limits = config.iteration.model_copy(update={"minimum": 1})
            config = config.model_copy(update={"iteration": limits})
        path = None
        if config.cv.alignment == "none":
            path = _path(config, files, engine, reporter)
        count_events(files, engine)
        write_first_cv(config, files, path, (initial, final), engine, reporter)
        write_limit(config, files, engine, path.images[0] if path else initial, reporter)
        reopened = _reopen(config, files, plugin, reporter)
        iterations: list[dict[str, Any]] = []
        while not _is_last(config, files, iterations, reopened):
            n = len(iterations) + 1
            if inputs_only and not files.has_ended(n):
                files.iteration(n).mkdir(exist_ok=True)
                waiting = sampling.prepare(_tasks(config, files, n, plugin), engine)
                if waiting:
                    return {"iteration": n, "walkers": [task.number for task in waiting]}
            iterations.append(_iterate(config, files, n, engine, plumed, plugin, initial, reporter))
        result = write_answer(config, files, path, initial, plugin, iterations)
        result = committee.complete(config, files, engine, initial, result, reporter)
        return transmission.complete(config, files, engine, initial, result, reporter)


def sample(
    config: Config, directory: Path | str, walker: int = 0, reporter: Reporter | None = None
) -> None:
    """Run the share of one walker in the sampling that `run` with `inputs_only` has prepared.

    Parameters
    ----------
    config
        The input.
    directory
        The run directory.
    walker
        Its number, from 0, over the walkers of all repetitions.
    reporter
        Receives the progress.

    Raises
    ------
    UserError
        If there is nothing to sample, another process works on it, and as for `run`.
    """
    reporter = reporter or Log()
    files = RunDirectory(Path(directory).absolute())
    n = files.last_begun()
    if n == 0 or files.has_ended(n):
        raise UserError(
            f"{files.root}: there is nothing to sample; 'plumed-cv run --inputs-only' prepares it."
        )
    provenance.check_same_input(files.root, config)
    tasks = _tasks(config, files, n, build_plugin(find_plumed()))
    if not 0 <= walker < len(tasks):
        shares = "sampling.walkers"
        if config.sampling.repetitions > 1:
            shares = "sampling.walkers x sampling.repetitions"
        raise UserError(f"--walker {walker}: {shares} = {len(tasks)}, counted from 0.")
    task = tasks[walker]
    with (
        sampling.open_engine(config, task.atoms) as engine,
        reporter.task(f"iteration {n}: bABF sampling", task.steps) as update,
    ):
        sampling.run_walkers([task], engine, update, rescue=True)


def _path(config: Config, files: RunDirectory, engine: Engine, reporter: Reporter) -> EnergyPath:
    """Return the minimum energy path; it is computed unless it exists."""
    if not files.path.exists():
        started = time.perf_counter()
        find_path(config, files.path, reporter, engine)
        taken = {"seconds": time.perf_counter() - started}
        write_text(files.root / "path.json", json.dumps(taken))
    return read_path(files)  # rounded as in the file, so that a resumed run is the same


def _iterate(
    config: Config,
    files: RunDirectory,
    n: int,
    engine: Engine,
    plumed: Plumed,
    plugin: Path,
    atoms: Atoms,
    reporter: Reporter,
) -> dict[str, Any]:
    """Sample along cv-(n-1), train cv-n, compare the two; return the result of the iteration."""
    if files.has_ended(n):
        return complete(files, n, read_json(files.iteration_result(n)))
    folder = files.iteration(n)
    folder.mkdir(exist_ok=True)
    old = CollectiveVariable.load(files.cv(n - 1))
    tasks = _tasks(config, files, n, plugin)
    if blind := guard.describe_blindness(tasks[0].variable, tasks[0].atom_limit_A):
        reporter.say(f"Iteration {n}: {blind}")
    steps = config.sampling.steps * config.sampling.repetitions
    with reporter.task(f"iteration {n}: bABF sampling", steps) as update:
        watched = watch_speed(update, tasks, plumed, reporter.say)
        seconds_sampling = sampling.sample(tasks, engine, watched)
    earlier.pool(config, files, n, atoms)
    result = drop_constrained(analyse(folder), engine.constrained, old.serials)
    result |= compare_repetitions(folder)
    result |= {
        "iteration": n,
        "cv": files.cv(n - 1).name,
        "kind": old.kind,
        "seconds_sampling": seconds_sampling,
        "profile_of": " and ".join(("the potential", *config.sampling.extra_biases)),
    }
    if result["barrier_eV"] is None:
        _write_result(files, n, result | {"similarity": None})  # for the report
        if stops := result["model_deviation_stops"]:
            raise NoBarrierError(
                f"{folder}: its {result['md_steps']} steps did not reach both end states, and "
                f"{describe_stops(stops)} There is no barrier within the limit: compute such "
                "structures with a better method and train the potential on them, or raise "
                "sampling.model_deviation_limit in a new directory."
            )
        raise NoBarrierError(
            f"{folder}: its {result['md_steps']} steps did not reach both end states, so there is "
            "no barrier; raise sampling.steps and run again to continue from there, or first "
            "remove that folder if there will be many more, because its ramp stays that short."
        )
    if not files.cv(n).exists():
        train_on_snapshots(config, files, atoms, n, reporter)
    result = complete(files, n, result)
    result["similarity_floor"] = None
    if result["similarity"] > config.iteration.tolerance and n >= config.iteration.minimum:
        result["similarity_floor"] = compute_noise_floor(config, files, atoms, n, reporter)
    _write_result(files, n, result)
    stops = result["model_deviation_stops"]
    if stops:
        reporter.say(f"Iteration {n}: {describe_stops(stops)}")
    for note in (result["note"], result["repetitions_note"]):
        if note:
            reporter.say(f"Iteration {n}: {note}")
    if config.sampling.extra_biases:
        reporter.say(
            f"The profile is that of {result['profile_of']} (sampling.plumed), from the histogram."
        )
    reporter.say(
        f"Iteration {n} ({old.kind} CV): {summarise(result)}; "
        f"1 - cos to the next CV {result['similarity']:.3f}"
    )
    return result


def _write_result(files: RunDirectory, n: int, result: dict[str, Any]) -> None:
    write_text(files.iteration_result(n), json.dumps(result, indent=2, allow_nan=False))


def _reopen(config: Config, files: RunDirectory, plugin: Path, reporter: Reporter) -> int:
    """Reopen the last iteration if the input asks for more of it; return its number.

    Earlier iterations stay as they are, because later ones were learned from their results.
    """
    n = files.last_begun()
    tasks = _tasks(config, files, n, plugin) if n else []
    if not all(task.is_done for task in tasks):
        began, now = tasks[0].parameters.ramp, sampling.choose_ramp(config.sampling)
        if began != now:
            reporter.say(
                f"Iteration {n} keeps its ramp of {began:,} steps (Eq. 12); "
                f"a new iteration of this length would have {now:,}."
            )
        # The result is removed last: without it the iteration would count as unfinished.
        for file in (files.result, files.cv(n), files.training(n), files.iteration_result(n)):
            file.unlink(missing_ok=True)
    return n


def _is_last(
    config: Config, files: RunDirectory, iterations: list[dict[str, Any]], begun: int
) -> bool:
    """Whether no iteration follows these; one that has ended always counts."""
    n = len(iterations)
    if n < begun and (files.has_ended(n + 1) or n + 1 == begun):
        return False
    if n >= config.iteration.maximum:
        return True
    if not n:
        return False
    kelvin = config.system.temperature_K
    verdict = judge(files, iterations, config.iteration, config.sampling, kelvin)
    return stopped_by(verdict, n, config.iteration) is not None


def _tasks(config: Config, files: RunDirectory, n: int, plugin: Path) -> list[sampling.WalkerTask]:
    """Return the tasks of all walkers and repetitions of iteration n, by `WalkerTask.number`."""
    config = with_defaults(config, files, n)
    atoms = read_end_states(config)[0]
    at_rest = files.path.exists()
    images = read_path(files).images if at_rest else (atoms,)
    prior = _prior(config, files, n)
    folder = files.iteration(n)
    starts = [State.of(images[0])] * config.sampling.walkers
    if config.sampling.start == "path":
        starts = sampling.spread(images, config.sampling.walkers)
    return [
        sampling.WalkerTask(
            config=config,
            atoms=atoms,
            start=start,
            model=files.cv(n - 1),
            plugin=plugin,
            iteration=n,
            folder=folder,
            walker=k,
            prior=prior,
            at_rest=at_rest,
            repetition=repetition,
        )
        for repetition in range(config.sampling.repetitions)
        for k, start in enumerate(starts)
    ]


def _prior(config: Config, files: RunDirectory, n: int) -> Path | None:
    """Write the initial profile of the bias of iteration n, if there is one."""
    kind, target = config.sampling.prior, files.iteration(n) / "prior.dat"
    grid = freeenergy.Grid(*sampling.make_grid(config.sampling))
    if n == 1 and files.beginning.exists():
        if not target.exists():
            handed = read_json(files.beginning)
            freeenergy.write_prior(target, grid, handed["xi"], handed["A_eV"])
        return target
    if kind == "none" or (kind == "previous" and n == 1):
        return None
    if not target.exists():
        variable = CollectiveVariable.load(files.cv(n - 1))
        if kind == "energy":
            path = read_path(files)
            xi, A = energy.values_at_images(path, variable), path.energies
        else:
            profile = freeenergy.read_fes(files.iteration(n - 1) / "fes.dat")
            known = np.isfinite(profile.A)
            before = CollectiveVariable.load(files.cv(n - 2))
            along = before.path(profile.xi[known, None])
            xi, A = variable.encode(variable.components(along))[:, 0], profile.A[known]
        freeenergy.write_prior(target, grid, xi, A)
    return target
