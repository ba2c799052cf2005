"""The limit of the model deviation from the reactant, and where trajectories exceeded it."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.common.progress import Reporter
from plumed_cv.engines import Dynamics, Engine, State, deviation
from plumed_cv.engines.ase import AseEngine
from plumed_cv.input_file import Config
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.directory import RunDirectory

STRUCTURES = 100  # of the reactant, from which the limit follows
EQUILIBRATION_PS = 0.4  # of the dynamics from which they come


@dataclass
class _Every:
    """Keeps every n-th structure of a trajectory."""

    stride: int
    structures: list[Array] = field(default_factory=list)
    seen: int = 0

    def see(self, positions: Array) -> bool:
        """Keep what is due; the trajectory goes on."""
        for structure in positions:
            self.seen += 1
            if self.seen % self.stride == 0:
                self.structures.append(structure.copy())
        return False


def write_limit(
    config: Config, files: RunDirectory, engine: Engine, reactant: Atoms, reporter: Reporter
) -> None:
    """Write the limit of `sampling.model_deviation_limit` = "auto", unless it has been done.

    Dynamics without a bias starts in the reactant. After the heat-up, the model deviation is
    computed in `STRUCTURES` structures that are `sampling.snapshot_stride` steps apart.

    Parameters
    ----------
    config, files, engine
        The input, the run directory and the open engine of the run.
    reactant
        The relaxed initial state.
    reporter
        Receives the progress.

    Raises
    ------
    UserError
        If the engine or another potential refuses.
    """
    sampling = config.sampling
    if sampling.model_deviation_limit != "auto" or files.deviation.exists():
        return
    assert isinstance(engine, AseEngine)  # other engines are refused in the input
    dynamics = Dynamics(
        config.system.temperature_K,
        sampling.timestep_fs,
        sampling.thermostat,
        sampling.friction_per_ps,
    )
    heating = round(1000.0 * EQUILIBRATION_PS / sampling.timestep_fs)
    stride, seed = sampling.snapshot_stride, config.iteration.seed
    with reporter.task("model deviation in the reactant", STRUCTURES):
        # At rest in a minimum: half of the kinetic energy goes to the potential one.
        hot = engine.follow(State.of(reactant), dynamics, heating, seed, _Every(heating)).end
        every = engine.follow(hot, dynamics, stride * STRUCTURES, seed + 1, _Every(stride))
        positions = np.array(every.observer.structures)
        found = engine.deviations(positions, cell_of(reactant))
    limit = deviation.choose_limit(found)
    if limit <= 0.0:
        raise UserError(
            "sampling.model_deviation_limit = 'auto': the potentials give the same forces in the "
            "reactant; give a number, or other potentials"
        )
    record = {
        "limit": limit,
        "median": float(np.median(found)),
        "largest": float(found.max()),
        "structures": len(found),
    }
    write_text(files.deviation, json.dumps(record))
    reporter.say(
        f"Model deviation in the reactant: {record['median']:.3g} (median) to "
        f"{record['largest']:.3g} in {len(found)} structures; a trajectory ends at {limit:.3g}."
    )


def find_stops(departures: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return how many trajectories the limit of the model deviation ended, and where.

    Parameters
    ----------
    departures
        How trajectories left the process, as in `restarted_at` of result.json.

    Returns
    -------
    dict or None
        `number`, lowest, median and highest CV (`xi`), and median deviation. None if there are
        none.
    """
    of_model = [each for each in departures if each.get("model_deviation") is not None]
    if not of_model:
        return None
    xi = np.quantile([each["xi"] for each in of_model], [0.0, 0.5, 1.0])
    return {
        "number": len(of_model),
        "xi": xi.tolist(),
        "median": float(np.median([each["model_deviation"] for each in of_model])),
    }


def describe_stops(stops: dict[str, Any]) -> str:
    """Return a sentence for the result of `find_stops`."""
    low, middle, high = stops["xi"]
    return (
        f"{stops['number']} trajectories ended because the model deviation exceeded its limit, at "
        f"xi = {low:.2f} to {high:.2f} (median {middle:.2f}). All results are those of structures "
        "within the limit."
    )
