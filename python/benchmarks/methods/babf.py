"""bABF as `efficiency` compares it: alone, with a prior, with walkers, with a constant bias."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from plumed_cv import freeenergy, input_file, sampling, workflow
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.freeenergy import meanforce
from plumed_cv.setup.kernel import find_plumed
from plumed_cv.setup.plugin import babf_input, build_plugin
from python.benchmarks.methods.case import DYNAMICS, GRID, KT, STRIDE, Result, Setup
from python.references import common
from python.zero_kelvin.systems import POTENTIAL

SEGMENTS = 50
RAMP = 5  # the ramp of bABF is this part of the run
PRIOR_SAMPLES = 20  # of the first samples at a node
WALKERS, WALKERS_PRIOR_SAMPLES = 8, 300


@dataclass(frozen=True)
class Bias:
    """Settings of a run of bABF: steps of the ramp, the prior, its weight."""

    ramp: int
    prior: Path | None = None
    prior_samples: float | None = None


def run_babf(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Run bABF as the package does: once for each budget, since the ramp is a part of it."""
    return [_babf(setup, folder, seed, n, Bias(n // RAMP)) for n in budgets]


def run_babf_prior(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Run bABF that starts from the energy along the path."""
    return [
        _babf(setup, folder, seed, n, Bias(n // RAMP, setup.prior, PRIOR_SAMPLES)) for n in budgets
    ]


def run_babf_2fs(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Run bABF with the time step of the packaged example."""
    longer = replace(DYNAMICS, timestep_fs=2.0)
    return [_babf(setup, folder, seed, n, Bias(n // RAMP), longer) for n in budgets]


def run_babf_forces(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Run bABF as the package does by default: the profile from the forces in its snapshots."""
    return [_babf(setup, folder, seed, n, Bias(n // RAMP), forces=True) for n in budgets]


def run_babf_walkers(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Run several walkers that start along the path, with its energy as prior."""
    results = []
    for n_steps in budgets:
        settings = input_file.Config.model_validate(
            {
                "system": {
                    "initial": "initial.xyz",
                    "final": "final.xyz",
                    "temperature_K": DYNAMICS.temperature_K,
                },
                "engine": {"name": "lammps", "potential": POTENTIAL},
                "sampling": {
                    "steps": n_steps,
                    "walkers": WALKERS,
                    "start": "path",
                    "prior": "energy",
                    "prior_samples": WALKERS_PRIOR_SAMPLES,
                    "ramp": 1 / RAMP,
                    "margin": 0.1,
                    "segments": SEGMENTS,
                    "snapshot_stride": STRIDE,
                    "timestep_fs": DYNAMICS.timestep_fs,
                    "friction_per_ps": DYNAMICS.friction_per_ps,
                },
                "iteration": {"seed": common.seed(seed) % 2**31},
            }
        )
        images = setup.path.images
        starts = sampling.spread(images, WALKERS)
        (folder / str(n_steps)).mkdir()
        tasks = [
            sampling.WalkerTask(
                config=settings,
                atoms=images[0],
                start=start,
                model=setup.model,
                plugin=build_plugin(find_plumed()),
                iteration=1,
                folder=folder / str(n_steps),
                walker=k,
                prior=setup.prior,
                at_rest=True,
            )
            for k, start in enumerate(starts)
        ]
        with setup.engine() as engine:
            sampling.sample(tasks, engine, lambda done, note: None)
        blocks, mean_force, series, _ = workflow.read_samples(folder / str(n_steps))
        found = freeenergy.estimate_profile(blocks, mean_force=mean_force)
        results.append(_with_errors(found, max(float(part.max()) for part in series["ae.dev"])))
    return results


def run_oracle(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Run with a constant bias, the exact profile."""
    return [_babf(setup, folder, seed, n, Bias(0, setup.reference, np.inf)) for n in budgets]


def _babf(
    setup: Setup,
    folder: Path,
    seed: int,
    n_steps: int,
    bias: Bias,
    dynamics: Dynamics = DYNAMICS,
    *,
    forces: bool = False,
) -> Result:
    model = CollectiveVariable.load(setup.model)
    length = n_steps // SEGMENTS
    start, before = State.of(setup.path.images[0]), None
    states, mean_forces, deviation = [], [], 0.0
    with setup.engine() as engine:
        for k in range(SEGMENTS):
            part = folder / str(n_steps) / f"{k:02d}"
            part.mkdir(parents=True)
            text = babf_input(
                build_plugin(find_plumed()),
                setup.model,
                temperature_K=dynamics.temperature_K,
                ramp=bias.ramp,
                grid=(GRID.minimum, GRID.maximum, GRID.bins),
                prior=bias.prior,
                tau=bias.prior_samples,
                state_in=before,
                state_out=part / "babf.state",
                state_stride=length,
                colvar=part / "colvar",
                colvar_stride=STRIDE,
            )
            order = Segment(
                *(part, start, dynamics, length, common.seed(seed, k), text),
                count_start=before is None,
                snapshot_stride=STRIDE if forces else 0,
            )
            start, before = engine.run(order).end, part / "babf.state"
            states.append(freeenergy.read_state(before))
            deviation = max(deviation, float(np.loadtxt(part / "colvar")[:, 2].max()))
            if forces:
                snapshots, cell = part / "snapshots.dcd", setup.path.cell
                places, pulls = meanforce.compute_forces(model, snapshots, cell, engine.forces)
                along = meanforce.compute_instantaneous(
                    model, model.displacements(places, cell), pulls, KT
                )
                mean_forces.append(freeenergy.bin_samples(GRID, *along))
    return _with_errors(
        freeenergy.estimate_profile(
            freeenergy.split_into_blocks(states), mean_force=mean_forces or None
        ),
        deviation,
    )


def _with_errors(found: freeenergy.Profile, deviation_A: float) -> Result:
    """Barrier and difference of a profile of the package, with their errors."""
    return Result(
        *(found.barrier.value, found.A1_minus_A0.value),
        *(found.barrier.error, found.A1_minus_A0.error),
        deviation_A=deviation_A,
    )
