"""The shots of a run and the rate that follows from them.

`Stage` makes the shots of a run in batches and reuses those that exist. `Workers` makes the shots
of a batch in this process, or in parallel in one process for each walker.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from plumed_cv import rates, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, sha256, write_text
from plumed_cv.common.progress import Reporter
from plumed_cv.cv import CollectiveVariable, symmetry
from plumed_cv.engines import Dynamics, Engine
from plumed_cv.input_file import Config
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.defaults import atom_limit
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.estimates import evaluate_estimators
from plumed_cv.workflow.harmonic_theory import escape_rate
from plumed_cv.workflow.keys import or_none
from plumed_cv.workflow.mep import read_path
from plumed_cv.workflow.rate_of_steps import (
    combine_steps,
    describe_rate,
    factor_of,
    find_doubts,
    shares_of_time,
)
from plumed_cv.workflow.samples import read_samples

BATCH = 40  # shots; the error is checked after each batch
VELOCITIES = 2  # shots from each snapshot: two separate its committor from chance
FEWEST_SHOTS = 80
MOST_VELOCITIES = 20  # largest number of shots from one snapshot; more would need more snapshots
MOVED = 0.1  # if a surface or a core moves farther than this, in xi, its shots are made again
LARGEST_ERROR = 0.5  # relative error allowed for a step that contributes little to the whole
LEAST_KAPPA = 1e-3  # replaces a coefficient of 0 when times are divided among steps


class Workers:
    """Makes shots in this process, or in parallel in one process for each walker.

    An engine that evaluates structures in batches makes them together in this process.
    """

    def __init__(self, config: Config, initial: Atoms, engine: Engine) -> None:
        self._config, self._initial, self._engine = config, initial, engine
        self._number = min(config.sampling.walkers, BATCH // VELOCITIES)

    def __enter__(self) -> Callable[[rates.Shooter, Sequence[rates.Task]], list[rates.Outcome]]:
        here = self._number == 1 or self._config.engine.walks_together
        if here and self._config.sampling.scheduler is None:
            return self._here
        self._pool = sampling.open_executors(self._config, self._number)
        self._executors = self._pool.__enter__()
        return self._at_once

    def __exit__(self, *error: Any) -> None:
        if hasattr(self, "_pool"):
            self._pool.__exit__(*error)

    def _here(self, shooter: rates.Shooter, tasks: Sequence[rates.Task]) -> list[rates.Outcome]:
        return shooter.shoot(self._engine, tasks)

    def _at_once(self, shooter: rates.Shooter, tasks: Sequence[rates.Task]) -> list[rates.Outcome]:
        parts = [tasks[k :: self._number] for k in range(self._number)]
        futures = [
            executor.submit(_work, self._config, self._initial, shooter, part)
            for executor, part in zip(self._executors, parts, strict=True)
        ]
        found = [future.result() for future in futures]
        return [found[k % self._number][k // self._number] for k in range(len(tasks))]


def _work(
    config: Config, initial: Atoms, shooter: rates.Shooter, tasks: Sequence[rates.Task]
) -> list[rates.Outcome]:
    """Make the shots of one process in a batch."""
    with sampling.open_engine(config, initial) as engine:
        return shooter.shoot(engine, tasks)


@dataclass
class Stage:
    """The rate of one run.

    Attributes
    ----------
    config, files, initial
        The input, the run directory and the initial state.
    result
        The contents of result.json.
    engine
        Runs the trajectories, unless several walkers do.
    reporter
        Receives the progress.
    """

    config: Config
    files: RunDirectory
    initial: Atoms
    result: dict[str, Any]
    engine: Engine
    reporter: Reporter

    def count_shots(self) -> int:
        """Return the number of shots that exist from each surface, at least."""
        files = [self._folder / f"step-{k + 1}.json" for k in range(len(self.result["steps"]))]
        if not all(file.exists() for file in files):
            return 0
        pairs = zip(files, self._surfaces, strict=True)
        return min(len(self._load(file, surface)[1]) for file, surface in pairs)

    def complete(self) -> dict[str, Any]:
        """Make the missing shots; write result.json with the rate and return its contents."""
        shares = weights = shares_of_time(self.result)
        found: list[rates.Transmission] = []
        while True:
            before = [each.shots for each in found]
            found = [
                self._shots(k, surface, self._target(weights, k))
                for k, surface in enumerate(self._surfaces)
            ]
            if [each.shots for each in found] == before:
                break
            # A small coefficient makes its step take more of the time, so it is needed better.
            weights = shares / np.maximum([each.kappa.value for each in found], LEAST_KAPPA)
            weights /= weights.sum()
        result = self.result | combine_steps(self.result, found, shares, self._kT_eV)
        result["rate"] = self._details(found)
        result["rate_note"] = find_doubts(result, found, self.config.rate)
        result["other_events"] = self._other_events()
        result |= escape_rate(result)
        self.files.write_result(result)
        return result

    def through(self, xi: float) -> dict[str, Any]:
        """Return the rate of a step through another dividing surface.

        Raises
        ------
        UserError
            If the surface is in a basin.
        """
        inside = [k for k, each in enumerate(self._surfaces) if each.cores[0] < xi < each.cores[1]]
        if not inside:
            ranges = ", ".join(
                f"from {each.cores[0]:.3f} to {each.cores[1]:.3f}" for each in self._surfaces
            )
            raise UserError(f"--surface {xi:g}: lies in a basin; dividing surfaces are {ranges}.")
        best, step = self._surfaces[inside[0]], self.result["steps"][inside[0]]
        other = best.moved_to(xi)
        bound = step["rate_per_s"] * float(np.exp((best.top_eV - other.top_eV) / self._kT_eV))
        kappa = self._shots(f"surface-{xi:g}", other, self.config.rate.error).kappa
        of_bound = step["rate_error_per_s"]
        factor = None
        if of_bound is not None and kappa.value > 0:
            factor = factor_of(kappa.error / kappa.value, of_bound / step["rate_per_s"])
        return {
            "surface": xi,
            "rate_per_s": bound * kappa.value,
            "rate_error_factor": factor,
            "transmission": kappa.value,
            "transmission_error": or_none(kappa.error),
            "tst_rate_per_s": bound,
        }

    @property
    def _n(self) -> int:
        return int(self.result["answer_iteration"])

    @property
    def _folder(self) -> Path:
        return self.files.rate(self._n)

    @property
    def _kT_eV(self) -> float:  # noqa: N802
        return float(units.kB * self.config.system.temperature_K)

    @cached_property
    def _variable(self) -> CollectiveVariable:
        return CollectiveVariable.load(self.files.cv(self._n - 1))

    @cached_property
    def _surfaces(self) -> list[rates.Surface]:
        """The surfaces of the steps, determined once from the samples."""
        self._folder.mkdir(exist_ok=True)
        file = self._folder / "surfaces.json"
        steps = self.result["iterations"][self._n - 1]["md_steps"]
        if file.exists():
            record = read_json(file)
            if record["md_steps"] == steps:
                nodes, W = np.array(record["nodes"]), np.array(record["W_eV"])
                return [
                    rates.Surface(each["xi"], tuple(each["cores"]), each["top_eV"], nodes, W)
                    for each in record["surfaces"]
                ]
        folder = self.files.iteration(self._n)
        found = read_samples(folder)
        by_name = evaluate_estimators(found, sampling.count_segments(folder))
        flux = by_name[self.result["estimator"]].flux
        surfaces = rates.find_surfaces(found.blocks[0].grid, flux)
        record = {
            "md_steps": steps,
            "surfaces": [
                {"xi": each.xi, "cores": each.cores, "top_eV": each.top_eV} for each in surfaces
            ],
            "nodes": surfaces[0].nodes.tolist(),
            "W_eV": surfaces[0].W_eV.tolist(),
        }
        write_text(file, json.dumps(record))
        return surfaces

    @cached_property
    def _snapshots(self) -> list[rates.Snapshot]:
        folder = self.files.iteration(self._n)
        return rates.read_snapshots(
            folder,
            sampling.list_segments(folder),
            self._variable,
            cell_of(self.initial),
            self.initial.get_chemical_symbols(),
        )

    @cached_property
    def _events(self) -> rates.Events | None:
        """None for a molecule, which has no minimum energy path."""
        if not self.files.path.exists():
            return None
        path = read_path(self.files)
        return rates.Events(
            self._folder, (path.images[0], path.images[-1]), symmetry.find_path_operations(path)
        )

    def _target(self, shares: Array, k: int) -> float:
        """Relative error of a step's transmission coefficient that the total error requires."""
        if shares[k] <= 0:
            return LARGEST_ERROR
        return float(
            min(LARGEST_ERROR, self.config.rate.error / (shares[k] * len(shares) ** 0.5))
            if len(shares) > 1
            else self.config.rate.error
        )

    def _shooter(self, surface: rates.Surface) -> rates.Shooter:
        settings, sampled_by = self.config.rate, self.config.sampling
        thermostat = "none" if settings.dynamics == "nve" else "langevin"
        return rates.Shooter(
            variable=self._variable,
            cell=cell_of(self.initial),
            dynamics=Dynamics(
                self.config.system.temperature_K,
                sampled_by.timestep_fs,
                thermostat,  # type: ignore[arg-type]
                sampled_by.friction_per_ps,
            ),
            cores=surface.cores,
            limit_A=atom_limit(sampled_by, self.files, self._variable),
            residence_fs=1000.0 * settings.residence_ps,
            longest_fs=1000.0 * settings.longest_ps,
        )

    def _shots(self, step: int | str, surface: rates.Surface, target: float) -> rates.Transmission:
        """Make the missing shots from one surface, and estimate its transmission coefficient.

        Parameters
        ----------
        step
            Number of the step from 0, or a name.
        surface
            The surface from which shots start.
        target
            Shots are made until the relative error is below this.
        """
        name = f"step-{step + 1}" if isinstance(step, int) else step
        file = self._folder / f"{name}.json"
        surface, done = self._load(file, surface)
        most = self.config.rate.shots
        found = self._estimate(done, surface) if done else None
        if _is_enough(found, len(done), most, target):
            assert found is not None
            return found
        chosen = rates.select_snapshots(
            surface, self._snapshots, self._kT_eV, at_top=isinstance(step, int)
        )
        most = min(most, MOST_VELOCITIES * len(chosen))
        order = rates.spread_order(len(chosen))
        shooter = self._shooter(surface)
        title = "transmission coefficient"
        if len(self._surfaces) > 1:
            title += f" of {name}"
        with self.reporter.task(title, most) as update, self._workers() as work:
            while not _is_enough(found, len(done), most, target):
                numbers = range(len(done), min(len(done) + BATCH, most))
                tasks = [self._task(chosen, order, name, number) for number in numbers]
                done += [self._identified(outcome) for outcome in work(shooter, tasks)]
                self._save(file, surface, done)
                found = self._estimate(done, surface)
                update(len(done), f"{found.kappa} after {len(done)} shots")
        assert found is not None
        return found

    def _estimate(self, shots: list[rates.Shot], surface: rates.Surface) -> rates.Transmission:
        """The transmission coefficient of shots from a surface of a step, or from another one."""
        k = [each.cores[0] < surface.xi < each.cores[1] for each in self._surfaces].index(True)
        step = self.result["steps"][k]
        both_per_s = (step["rate_per_s"] or 0.0) + (step["reverse_rate_per_s"] or 0.0)
        above_best = (self._surfaces[k].top_eV - surface.top_eV) / self._kT_eV
        return rates.estimate_transmission(
            shots,
            surface.above,
            self._kT_eV,
            lambda name: Path(name).parent.as_posix(),
            both_per_fs=1e-15 * both_per_s * float(np.exp(above_best)),
            residence_fs=1000.0 * self.config.rate.residence_ps,
        )

    def _task(
        self, chosen: Sequence[rates.Snapshot], order: NDArray[np.int64], name: str, number: int
    ) -> rates.Task:
        """Return the start of shot `number`."""
        from plumed_cv.structures.trajectory import read_positions  # importing mdtraj takes 1 s

        snapshot = chosen[order[number // VELOCITIES % len(order)]]
        file = self.files.iteration(self._n) / snapshot.segment / "snapshots.dcd"
        key = [self.config.iteration.seed, self._n, *name.encode(), number]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        return (snapshot.segment, snapshot.number), read_positions(file, snapshot.number), seed

    def _identified(self, outcome: rates.Outcome) -> rates.Shot:
        """Return the shot with the events by which its trajectories left the process."""
        shot = outcome.shot
        legs = []
        for leg, end in zip((shot.forward, shot.backward), outcome.ends, strict=True):
            if end is not None and self._events is not None:
                event = self._events.identify(end)
                if isinstance(event, int):
                    leg = leg._replace(event=event)
                else:  # it was away from the path but did not leave
                    leg = leg._replace(end=event, left=False)
            legs.append(leg)
        return shot._replace(forward=legs[0], backward=legs[1])

    def _settings(self) -> dict[str, Any]:
        """Settings that the shots depend on; with other settings they are made again."""
        settings, by = self.config.rate, self.config.sampling
        return {
            "cv_sha256": sha256(self.files.cv(self._n - 1)),
            "dynamics": settings.dynamics,
            "friction_per_ps": by.friction_per_ps if settings.dynamics == "langevin" else None,
            "timestep_fs": by.timestep_fs,
            "residence_ps": settings.residence_ps,
            "longest_ps": settings.longest_ps,
        }

    def _load(self, file: Path, surface: rates.Surface) -> tuple[rates.Surface, list[rates.Shot]]:
        """Return the surface with the cores of the existing shots, and these shots."""
        if not file.exists():
            return surface, []
        record = read_json(file)
        # Where the cores are elsewhere, the shots have joined other basins.
        before, now = [record["surface"], *record["cores"]], [surface.xi, *surface.cores]
        moved = np.abs(np.subtract(before, now)).max()
        if record["settings"] != self._settings() or moved > MOVED:
            return surface, []
        kept = replace(surface, cores=tuple(record["cores"]))
        return kept, [rates.Shot.of_json(shot) for shot in record["shots"]]

    def _save(self, file: Path, surface: rates.Surface, shots: list[rates.Shot]) -> None:
        record = {
            "settings": self._settings(),
            "surface": surface.xi,
            "cores": surface.cores,
            "shots": [shot.as_json() for shot in shots],
        }
        write_text(file, json.dumps(record))

    def _workers(self) -> Workers:
        return Workers(self.config, self.initial, self.engine)

    def _details(self, found: list[rates.Transmission]) -> dict[str, Any]:
        settings = self.config.rate
        steps = [
            {"surface": surface.xi, "cores": list(surface.cores)} | rates.as_json(each)
            for surface, each in zip(self._surfaces, found, strict=True)
        ]
        return {
            "of": describe_rate(len(found)),
            "dynamics": settings.dynamics,
            "residence_ps": settings.residence_ps,
            "md_steps": sum(each.n_steps for each in found),
            "steps": steps,
        }

    def _other_events(self) -> list[dict[str, Any]]:
        """The events by which trajectories left the process, the most frequent one first."""
        if self._events is None:
            return []
        count: dict[tuple[int, str], int] = {}
        legs = 0
        for k, surface in enumerate(self._surfaces):
            _, shots = self._load(self._folder / f"step-{k + 1}.json", surface)
            for leg in (leg for shot in shots for leg in (shot.forward, shot.backward)):
                legs += 1
                if leg.event:
                    key = (leg.event, leg.end)
                    count[key] = count.get(key, 0) + 1
        initial = read_path(self.files).images[0].get_potential_energy()
        places = {"before": "reactant", "behind": "product", "other": "dividing surface"}
        return [
            {
                "structure": self._events.file(event).relative_to(self.files.root).as_posix(),
                "from": places[end],
                "trajectories": number,
                "share": number / legs,
                "energy_eV": self._events.energy_eV(event) - float(initial),
            }
            for (event, end), number in sorted(count.items(), key=lambda item: -item[1])
        ]


def _is_enough(found: rates.Transmission | None, number: int, most: int, target: float) -> bool:
    if found is None:
        return False
    return number >= most or (number >= FEWEST_SHOTS and found.relative_error <= target)
