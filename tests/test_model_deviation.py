"""The guard for extrapolation: potentials that disagree where one of them is wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from plumed_cv import input_file, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import Dynamics, Segment, State, Watch, deviation
from plumed_cv.engines.ase import AseEngine
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.sampling import list_segments, read_colvar, read_records
from plumed_cv.structures.frame import Array
from tests.truth import landscape
from tests.truth.landscape import LANDSCAPES, Landscape
from tests.truth.models import Model, Wall, exact

HOME = Path(landscape.__file__).parent
CURVED = LANDSCAPES["three atoms, curved"]


def test_deviation_is_the_largest_standard_deviation_of_a_force() -> None:
    forces = np.zeros((3, 2, 3))
    forces[:, 0] = [[0, 0, 0], [0, 3, 0], [0, 0, 3]]  # mean (0, 1, 1): squares 2, 5, 5
    assert deviation.compute_deviation(forces) == pytest.approx(6**0.5)
    forces[:, 1, 0] = [-4, 0, 4]
    assert deviation.compute_deviation(forces) == pytest.approx(4.0)


def test_limit_is_twice_a_quantile() -> None:
    assert deviation.choose_limit(np.arange(101.0)) == pytest.approx(198.0)


def forces_of(potential: Landscape, positions: Array) -> Array:
    return np.array([potential.energy_and_forces(each)[1] for each in positions])


def on(name: str) -> tuple[str, dict[str, str], Path]:
    return "landscape.OnLandscape", {"name": name}, HOME


def watched(folder: Path, limit: float, **options: Any) -> Any:
    """Plain dynamics on the landscape from its top, on which another one is wrong."""
    atoms = CURVED.state(0.5 * CURVED.length)
    name, arguments, directory = on("three atoms, curved")
    with AseEngine(name, atoms, arguments=arguments, directory=directory, **options) as engine:
        dynamics = Dynamics(300.0, timestep_fs=3.0, friction_per_ps=5.0)
        folder.mkdir()
        segment = Segment(
            folder, State.of(atoms), dynamics, 400, 3, snapshot_stride=5, watch=Watch(limit, 5)
        )
        return engine.run(segment)


def test_potentials_that_agree_have_no_limit(tmp_path: Path) -> None:
    settings = write(tmp_path / "same", "three atoms, curved", 2000, '"auto"')
    with pytest.raises(
        UserError, match=r"the potentials give the same forces in the reactant; give"
    ):
        workflow.run(settings, tmp_path / "run")


def test_dynamics_ends_at_the_limit(tmp_path: Path) -> None:
    """The file has the deviation of every snapshot, and the last one is the first beyond."""
    free = watched(tmp_path / "free", 1e9, members=[on("wrong at the product")])
    assert not free.stopped
    every = read_colvar(tmp_path / "free" / deviation.FILE)
    np.testing.assert_allclose(every["time"], 15.0 * np.arange(1, 81))
    positions = free.end.positions
    both = np.array([each.energy_and_forces(positions)[1] for each in (CURVED, WRONG)])
    assert every["deviation"][-1] == pytest.approx(deviation.compute_deviation(both), rel=1e-8)
    limit = float(np.quantile(every["deviation"], 0.7))
    first = int(np.argmax(every["deviation"] > limit))
    found = watched(tmp_path / "stopped", limit, members=[on("wrong at the product")])
    assert found.stopped
    assert not found.stopped_by_plumed
    assert found.n_steps == 5 * (first + 1)
    assert found.deviation == pytest.approx(every["deviation"][first], rel=1e-8)


def test_a_calculator_may_have_its_own_uncertainty(tmp_path: Path) -> None:
    found = watched(tmp_path / "a", 1e-3, uncertainty="forces")  # of a structure in motion
    assert found.deviation > 1e-3
    with pytest.raises(UserError, match=r"engine\.uncertainty = 'spread': .* it has energy"):
        watched(tmp_path / "b", 1.0, uncertainty="spread")


WRONG = LANDSCAPES["wrong at the product"]
INPUT = f"""
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = 300.0
[engine]
name = "ase"
calculator = "landscape.OnLandscape"
arguments = {{ name = "three atoms, curved" }}
directory = "{HOME}"
committee = [{{ arguments = {{ name = "OTHER" }} }}]
[path]
images = 11
fmax_eV_A = 0.01
structures = 2000
[sampling]
steps = STEPS
timestep_fs = 3.0
snapshot_stride = 5
model_deviation_limit = LIMIT
[iteration]
minimum = 1
maximum = 1
[rate]
enabled = false
"""


def write(folder: Path, other: str, steps: int, limit: str) -> input_file.Config:
    folder.mkdir()
    for name, s in (("initial", 0.0), ("final", CURVED.length)):
        CURVED.state(s).write(folder / f"{name}.xyz", format="extxyz")
    text = INPUT.replace("OTHER", other).replace("STEPS", str(steps)).replace("LIMIT", limit)
    (folder / "model.toml").write_text(text)
    return input_file.load(folder / "model.toml")


def test_a_model_that_is_wrong_beyond_the_reactant_gives_no_barrier(tmp_path: Path) -> None:
    """Nothing stops in the reactant, and nothing is sampled where the model is wrong."""
    settings = write(tmp_path / "wrong", "wrong at the product", 12_000, '"auto"')
    with pytest.raises(UserError, match="20 trajectories ended because the model deviation"):
        workflow.run(settings, tmp_path / "run")
    limit = json.loads((tmp_path / "run" / "model-deviation.json").read_text())["limit"]
    segments = list_segments(tmp_path / "run" / "iteration-1")
    records = read_records(segments)
    stops = [record["departure"] for record in records if record["stopped"]]
    assert all(0.55 < stop["xi"] < 0.95 for stop in stops)
    assert all(stop["model_deviation"] > limit for stop in stops)
    for segment in segments:
        kept = read_colvar(segment / deviation.FILE)
        assert (kept["deviation"] <= limit).all()
        printed = read_colvar(segment / "colvar")["time"]
        np.testing.assert_allclose(kept["time"], printed[printed > 0.0])
    changed = write(tmp_path / "other", "stiffer top", 12_000, '"auto"')
    with pytest.raises(UserError, match=r"another engine\.committee"):
        workflow.run(changed, tmp_path / "run")


def beyond(u: Array, limit: float) -> Array:
    """Energy that excludes structures whose deviation is beyond a limit, eV.

    The two potentials differ by their stiffness k(s): forces -(k bend, k y) and -k' y^2/2.
    """
    z = (u.reshape(len(u), -1)) @ CURVED.basis.T
    s, y = z[:, 0], z[:, 1:]
    bend = np.zeros_like(y)
    bend[:, :1] = CURVED.curve[1](s)
    off = y - CURVED.centre(s)
    ks = [each.stiffness_at(s) for each in (CURVED, STIFF)]
    slopes = [
        -k * each.log_softness.derivative()(s) for k, each in zip(ks, (CURVED, STIFF), strict=True)
    ]
    k, slope = ks[1] - ks[0], slopes[1] - slopes[0]
    along = 0.5 * slope * (off**2).sum(axis=1) - k * (off * bend).sum(axis=1)
    gradient = np.concatenate([along[:, None], k[:, None] * off], axis=1)
    of_atoms = (gradient @ CURVED.basis).reshape(len(u), -1, 3)
    found = np.linalg.norm(of_atoms, axis=2).max(axis=1) / 2**0.5
    return np.where(found > limit, 100.0, 0.0)


STIFF = LANDSCAPES["stiffer top"]
LIMIT = 0.3  # exceeded by few structures
MARK = 0.18  # exceeded by many of those at the top


def test_forces_of_the_quadrature_are_those_of_the_landscapes() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(scale=0.1, size=(50, 6))
    z[:, 0] = rng.uniform(0.2, 0.8, 50) * CURVED.length
    z[:, 1:] += CURVED.centre(z[:, 0])
    positions = CURVED.positions(z)
    pairs = np.stack([forces_of(each, positions) for each in (CURVED, STIFF)], axis=1)
    found = np.array(list(map(deviation.compute_deviation, pairs)))
    inside = beyond(positions - CURVED.reference.positions, MARK) == 0.0
    assert 5 < inside.sum() < 45
    np.testing.assert_array_equal(inside, found <= MARK)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a limit."""
    folder = tmp_path_factory.mktemp("free")
    workflow.run(write(folder / "input", "stiffer top", 12_000, '"off"'), folder / "run")
    return folder / "run"


def exact_barriers(run: Path, limit: float) -> tuple[float, float]:
    """Flux barrier of all structures, and of those within a limit."""
    variable = CollectiveVariable.load(run / "cv-0.safetensors")
    model = Model("curved", "three atoms, curved")
    limited = replace(model, wall=Wall("", lambda u: beyond(u, limit)))
    return (
        exact(model, variable).flux_barrier[0],
        exact(limited, variable).flux_barrier[0],
    )


@pytest.mark.slow
def test_a_run_with_the_limit_has_the_barrier_within_it(finished: Path, tmp_path: Path) -> None:
    """Within five errors of the quadrature: odds of one in a million."""
    settings = write(tmp_path / "input", "stiffer top", 12_000, str(LIMIT))
    result = workflow.run(settings, tmp_path / "run")
    within = exact_barriers(finished, LIMIT)[1]
    error = result["flux_barrier_error_eV"]
    assert error < 0.02  # below 0.01 on one processor, 0.012 on another
    assert abs(result["flux_barrier_eV"] - within) < 5 * error


@pytest.mark.slow
def test_marks_of_a_run_tell_the_barrier_within_the_limit(finished: Path) -> None:
    """Within five errors of the quadrature, and far from no difference."""
    result = workflow.committee.compute_committee(finished, snapshots=3000, deviation_limit=MARK)
    marks = result["committee"]["model_deviation"]
    everything, within = exact_barriers(finished, MARK)
    found = marks["flux_barrier_within_difference_eV"]
    error = marks["flux_barrier_within_difference_error_eV"]
    assert error < 0.01
    assert within - everything > 0.015
    assert abs(found - (within - everything)) < 5 * error
    assert marks["limit"] == MARK
    assert marks["reactant_largest"] < MARK < marks["surface_median"]
    folder = finished / f"iteration-{result['answer_iteration']}" / "committee"
    marked = json.loads((folder / "marked.json").read_text())
    assert len(marked) == marks["marked"] > 100
    assert min(marked.values()) > MARK
    again = workflow.committee.compute_committee(finished, snapshots=3000)  # no value is missing
    free = again["committee"]["model_deviation"]
    assert marks["reactant_median"] == pytest.approx(free["reactant_median"])
    assert free["limit"] < MARK
    assert free["marked"] > marks["marked"]


COPPER = {
    "u3": ["pair_style eam", "pair_coeff * * Cu_u3.eam"],
    "mishin": ["pair_style eam/alloy", "pair_coeff * * Cu_mishin1.eam.alloy Cu"],
}


def test_two_potentials_of_copper_disagree_most_on_the_way() -> None:
    """A vacancy in 107 atoms with noise: 1.8 times as much, and few are beyond the limit."""
    initial: Atoms = bulk("Cu", "fcc", a=3.63, cubic=True).repeat(3)
    hole = initial.positions[0].copy()
    del initial[0]
    nearest = int(np.argmin(np.linalg.norm(initial.positions - hole, axis=1)))
    rng = np.random.default_rng(1)
    noise = rng.normal(scale=0.08, size=(40, *initial.positions.shape))
    at_rest, halfway = initial.positions + noise, initial.positions + noise
    halfway[:, nearest] += 0.5 * (hole - initial.positions[nearest])
    forces = []
    for potential in COPPER.values():
        with LammpsEngine(potential, initial) as engine:
            forces.append([engine.forces(each, initial.cell.array) for each in (at_rest, halfway)])
    found = np.array(
        [
            [deviation.compute_deviation(pair) for pair in np.stack(both, axis=1)]
            for both in zip(*forces, strict=True)
        ]
    )
    reactant, on_the_way = found
    assert 1.5 < np.median(on_the_way) / np.median(reactant) < 2.5
    limit = deviation.choose_limit(reactant)
    assert 0 < np.count_nonzero(on_the_way > limit) < 10  # of 40
