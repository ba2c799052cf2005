"""Events of a defect from one state: searches until it is unlikely that one is missing.

    catalogue.json            the events (`events.catalogue`)
    Fe-event-1/               an event: initial.xyz, saddle.xyz, final.xyz, input.toml
    search/settings.json      what must be the same when the command goes on
    search/initial.xyz        the relaxed state
    search/searches.jsonl     a line for each search
    search/given.json         what was found towards other minima that were named
    search/saddle-1.xyz       each distinct saddle point, with the final state of its event

Each search has random numbers of its own, and the results are taken in the order of the searches. A
command that goes on after a stop, and one with several processes (`parallel`), therefore has the
same result as any other. Saddle points that the symmetry of the state maps onto each other are one
event.

`confidence` has the probability that no event is missing, `notebook` the record of the searches.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read

from plumed_cv import sampling
from plumed_cv.common.errors import UserError, naming
from plumed_cv.common.files import hashes_of_named, locked, read_json, replacing, write_text
from plumed_cv.common.progress import Log, Reporter
from plumed_cv.engines import Engine
from plumed_cv.engines.process import KilledError
from plumed_cv.events.catalogue import read_template
from plumed_cv.events.notebook import Notebook, ceiling_of, checksum
from plumed_cv.events.parallel import SearchTask, open_searches
from plumed_cv.events.saddles import RADIUS_A, Ints, find_defect_atoms
from plumed_cv.input_file import Config
from plumed_cv.paths import relax
from plumed_cv.setup.tools import n_cores
from plumed_cv.structures import cell_of, held_atoms, read_oriented, strip
from plumed_cv.structures.neighbours import Neighbours

SEARCHES = 1000
CONFIDENCE = 0.95

_ERRORS = 10  # searches in a row that may end with an error of the engine


def discover(
    structure: Path,
    template: Path,
    output: Path,
    *,
    around: Sequence[int] = (),
    also: Sequence[Path] = (),
    radius_A: float = RADIUS_A,
    searches: int = SEARCHES,
    seed: int = 0,
    max_barrier_eV: float | None = None,
    confidence: float = CONFIDENCE,
    jobs: int = 1,
    scheduler: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Find the events that begin at one state, and write a catalogue of them.

    Parameters
    ----------
    structure
        The state, with the defect.
    template
        Input file with the engine, the temperatures and all else that the events have in common.
        Its end states, if it names any, are not used.
    output
        Folder for the catalogue. Searches that are there are continued.
    around
        Serial numbers of atoms, from 1. The atoms within the radius of them are moved. If empty,
        the atoms of the defect are found by their surroundings.
    also
        Structures of other minima, for example those that trajectories reached: the event towards
        each is found by an elastic band.
    radius_A
        The radius, angstrom. Neighbours within it are displaced together with an atom.
    searches
        Number of searches at most.
    seed
        Seed of the searches.
    max_barrier_eV
        Largest barrier of the events; `ABOVE_LOWEST` times the lowest one if None.
    confidence
        The searches end when the confidence has this value.
    jobs
        Number of searches at the same time on this machine. The result does not depend on it.
    scheduler
        Address or scheduler file of a dask scheduler whose workers do the searches.
    reporter
        Receives the progress.

    Returns
    -------
    dict
        The content of catalogue.json: `events` and `discovery`.

    Raises
    ------
    UserError
        If the structure or the input cannot be used, the folder has searches of something else,
        there are more jobs than cores, a process is killed, or no event is found.
    """
    if scheduler is None and jobs > n_cores():
        raise UserError(
            f"--jobs {jobs}: this machine has {n_cores()} cores, and each search needs one; use "
            "fewer jobs, or the workers of a cluster (--scheduler)."
        )
    reporter = reporter or Log()
    content, config = read_template(template)
    given = _read(structure, config)
    folder = output / "search"
    if output.exists() and not (folder / "settings.json").exists():
        raise UserError(f"{output}: already exists and has no searches; name another folder.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output}: its folder does not exist; make it first.")
    engine_keys = {key: each for key, each in content["engine"].items() if key != "directory"}
    settings = {
        "structure": checksum(given),
        "engine": engine_keys,
        "engine.files": hashes_of_named(engine_keys, config.engine.directory or Path()),
        "fmax_eV_A": config.path.fmax_eV_A,
        "around": list(around),
        "radius_A": radius_A,
        "seed": seed,
    }
    _check_serials(around, given)
    others = [(file.name, _read(file, config)) for file in also]
    with sampling.open_engine(config, given) as engine:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(folder / ".lock", timeout_s=0.0):
                return _discover(
                    engine, given, structure, config, content, output, settings, others,
                    searches, max_barrier_eV, confidence, jobs, scheduler, reporter,
                )  # fmt: skip
        except TimeoutError:
            raise UserError(
                f"{output}: another process searches in this folder; wait for its end, or end it."
            ) from None
        except KilledError as error:
            raise UserError(
                f"{output}: {error}; the searches so far are kept, and the same command continues; "
                "if memory was short, use fewer jobs."
            ) from None


def _discover(
    engine: Engine,
    given: Atoms,
    structure: Path,
    config: Config,
    content: dict[str, Any],
    output: Path,
    settings: dict[str, Any],
    others: Sequence[tuple[str, Atoms]],
    searches: int,
    max_barrier_eV: float | None,
    target: float,
    jobs: int,
    scheduler: str | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Do the searches in a folder that is locked, and write the catalogue."""
    folder = output / "search"
    reactant = _reactant(engine, given, folder, settings, config, reporter)
    with naming(structure):
        centres = _centres(reactant, settings["around"], settings["radius_A"])
    reporter.say(
        f"{structure.name}: {len(reactant)} atoms; searches move atom "
        f"{', '.join(str(k + 1) for k in centres[:20])}{', ...' if len(centres) > 20 else ''}."
    )
    task = SearchTask(config, given, reactant, centres, settings["radius_A"], settings["seed"])
    searcher = task.searcher(engine)
    notebook = Notebook(folder, reactant, searcher, config.path.fmax_eV_A)
    for name, other in others:
        said = notebook.towards(name, other)
        reporter.say(f"{name}: {said}")
    limit = notebook.limit(max_barrier_eV)
    errors = 0
    with (
        open_searches(task, searcher, jobs, scheduler, searches) as search,
        reporter.task("searches", searches) as update,
    ):
        while notebook.done < searches:
            now = notebook.confidence(limit)
            if now.value >= target:
                break
            update(notebook.done, f"{notebook.n_events(limit)} events, confidence {now.value:.2f}")
            ceiling_eV = ceiling_of(limit)
            line = notebook.add(search(notebook.done + 1, ceiling_eV), ceiling_eV)
            errors = errors + 1 if line["reason"].startswith("error") else 0
            if errors == _ERRORS:
                raise UserError(f"{structure}: {errors} searches in a row failed: {line['reason']}")
            if line["new_event"]:
                reporter.say(
                    f"Search {line['search']}: a new event, barrier {line['barrier_eV']:.4f} eV."
                )
            limit = notebook.limit(max_barrier_eV)
    if not notebook.n_events(limit):
        below = "" if limit is None else f" below {limit:g} eV"
        raise UserError(
            f"{structure}: {notebook.done} searches found no event{below} that begins at this "
            "state; do more (--searches), allow higher barriers (--max-barrier), or name the atoms "
            "(--around)."
        )
    assert limit is not None
    return notebook.write(output, structure, content, config, limit, target, searches)


def _read(structure: Path, config: Config) -> Atoms:
    """Read the state, rotated as engines need it, with the fixed atoms of the input."""
    moments = config.engine.may_use_moments
    atoms = read_oriented(structure, fixed=config.system.fixed, moments=moments)
    if not cell_of(atoms).any():
        raise UserError(
            f"{structure}: is not periodic; equivalent events are told by the symmetry of a "
            "crystal or a surface, so give the structure a cell and pbc."
        )
    return strip(atoms)


def _check_serials(around: Sequence[int], atoms: Atoms) -> None:
    for serial in around:
        if not 1 <= serial <= len(atoms):
            raise UserError(f"--around {serial}: the atoms have the numbers 1 to {len(atoms)}.")


def _reactant(
    engine: Engine,
    given: Atoms,
    folder: Path,
    settings: dict[str, Any],
    config: Config,
    reporter: Reporter,
) -> Atoms:
    """Relax the state, or read it if this was done before with the same settings."""
    file = folder / "settings.json"
    if file.exists():
        before = read_json(file)
        changed = [key for key, value in settings.items() if before.get(key) != value]
        if changed:
            raise UserError(
                f"{folder.parent}: has searches with another {', '.join(changed)}; name another "
                "folder."
            )
    else:
        state = given.copy()
        state.calc = engine.calculator()
        with reporter.task("relaxing the state", None) as update:
            relax(
                state,
                config.path.fmax_eV_A,
                "state",
                progress=lambda fmax, stage: update(0, f"{fmax:.4f} eV/A"),
            )
        state.calc = None
        with replacing(folder / "initial.xyz") as temporary:
            state.write(temporary, format="extxyz")
        write_text(file, json.dumps(settings, indent=1))
    atoms = read(folder / "initial.xyz")
    assert isinstance(atoms, Atoms)
    return atoms


def _centres(reactant: Atoms, around: Sequence[int], radius_A: float) -> Ints:
    """Atoms that the searches move, from 0."""
    if not around:
        return find_defect_atoms(reactant)
    places = reactant.positions[np.array(around) - 1]
    near = Neighbours(reactant.positions, cell_of(reactant), radius_A).of(places)
    return np.setdiff1d(near, held_atoms(reactant))
