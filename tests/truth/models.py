"""The model systems of docs/truth.md: inputs of `plumed-cv run`, and their exact answers.

An answer belongs to a collective variable (CV) and is a quadrature over the landscape's own
coordinates: it uses the value and the gradient of the CV, and nothing of the estimators.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import units
from scipy.signal import find_peaks
from scipy.stats import norm, qmc

from plumed_cv.cv import CollectiveVariable
from plumed_cv.structures.frame import Array
from tests.truth import landscape as landscapes
from tests.truth.landscape import LANDSCAPES, Landscape

# What is compared, by the beginnings of the keys of result.json.
QUANTITIES = ("flux_barrier", "tst_rate", "delta_F", "barrier", "A1_minus_A0")

_BIN = 0.005  # of the quadrature's histogram, in xi
_NEAR = 10  # bins of the best surface for masses around that for lengths
_STEPS = 512  # of s, in twice the length of the path
_POINTS = 256  # quasi-random ones of the y
_SCRAMBLES = 8  # independent quadratures, whose spread is the error


@dataclass(frozen=True)
class Wall:
    """An energy that PLUMED adds: its lines, and W of displacements (..., N, 3), eV."""

    lines: str
    energy: Callable[[Array], Array]


@dataclass(frozen=True)
class Model:
    """A landscape at a temperature, with the parameters of its sampling.

    Attributes
    ----------
    name
        As the page calls it.
    landscape
        Its name in `LANDSCAPES`.
    temperature_K, timestep_fs, friction_per_ps, steps
        Temperature, K, time step, fs, friction, 1/ps, and steps an iteration.
    engine
        "ase" or "lammps".
    wall
        What `sampling.plumed` adds.
    mean_force
        Whether the input asks for the mean force of the atoms; it says nothing if None.
    """

    name: str
    landscape: str
    temperature_K: float = 300.0
    timestep_fs: float = 3.0
    friction_per_ps: float = 5.0
    steps: int = 15_000
    engine: str = "ase"
    wall: Wall | None = None
    mean_force: bool | None = None

    @property
    def potential(self) -> Landscape:
        """The landscape."""
        return LANDSCAPES[self.landscape]

    @property
    def kT_eV(self) -> float:  # noqa: N802
        """Temperature, eV."""
        return float(units.kB * self.temperature_K)

    def free_energy(self, s: Array) -> Array:
        """A along s, V1 + m/2 kT ln k, without a wall, eV."""
        m = len(self.potential.basis) - 1
        entropic = 0.5 * m * self.kT_eV * np.log(self.potential.stiffness_at(s))
        return np.asarray(self.potential.energy_along(s) + entropic)

    def write(self, folder: Path, seed: int, steps: int | None = None) -> Path:
        """Write end states and input into a new folder; returns the input.

        Parameters
        ----------
        folder
            New folder.
        seed
            Seed of the run.
        steps
            Steps an iteration; the model's own if None.
        """
        folder.mkdir(parents=True)
        potential = self.potential
        for name, s in (("initial", 0.0), ("final", potential.length)):
            potential.state(s).write(folder / f"{name}.xyz", format="extxyz")
        if self.engine == "lammps":
            commands = ",\n".join(f'"{c}"' for c in landscapes.lammps_commands(self.landscape))
            engine = f"potential = [\n{commands}]"
        else:
            engine = (
                'name = "ase"\n'
                'calculator = "landscape.OnLandscape"\n'
                f'arguments = {{ name = "{self.landscape}" }}\n'
                f'directory = "{Path(landscapes.__file__).parent}"'
            )
        text = _INPUT.format(
            model=self,
            engine=engine,
            seed=seed,
            steps=steps or self.steps,
            plumed="" if self.wall is None else self.wall.lines,
        )
        if self.mean_force is not None:
            text = text.replace(
                "plumed =", f"mean_force = {str(self.mean_force).lower()}\nplumed ="
            )
        (folder / "model.toml").write_text(text)
        return folder / "model.toml"


_INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = {model.temperature_K}
[engine]
{engine}
[path]
images = 11
fmax_eV_A = 0.01
structures = 2000
[sampling]
steps = {steps}
timestep_fs = {model.timestep_fs}
friction_per_ps = {model.friction_per_ps}
snapshot_stride = 5
plumed = '''{plumed}'''
[iteration]
maximum = 2
tolerance = 1e-9
seed = {seed}
[rate]
enabled = false
"""


@dataclass(frozen=True)
class Exact:
    """Exact results along a CV by their names: values and errors of the quadrature.

    The basins are those of W = -kT ln(rho <|grad xi| 1 A>), 2 kT deep or more; P_1, ..., P_b are
    their populations, up to the dividing surfaces where W is highest between them.

    Attributes
    ----------
    flux_barrier
        Highest W between the states, over -kT ln P_1, eV.
    tst_rate
        1/k = P_1 sum_i 1/J_i, J_i the least flux between basins i and i + 1, 1/s.
    delta_F
        -kT ln(P_b/P_1), eV.
    barrier
        Profile: the highest A with 0 < xi < 1 over the lowest in the first basin, eV.
    A1_minus_A0
        A(1) - A(0), eV.
    """

    flux_barrier: tuple[float, float]
    tst_rate: tuple[float, float]
    delta_F: tuple[float, float]
    barrier: tuple[float, float]
    A1_minus_A0: tuple[float, float]


def exact(model: Model, variable: CollectiveVariable) -> Exact:
    """The exact answers for a model along a CV.

    Parameters
    ----------
    model
        The model. With a wall, what is sampled is V + W, and so are the answers.
    variable
        The CV.
    """
    found = np.array([_quadrature(model, variable, seed) for seed in range(_SCRAMBLES)])
    mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / _SCRAMBLES**0.5
    return Exact(*((float(m), float(e)) for m, e in zip(mean, error, strict=True)))


def _quadrature(model: Model, variable: CollectiveVariable, seed: int) -> list[float]:
    """The values of `Exact`: even steps of s, of different beginnings, for each point of the y."""
    potential, kT = model.potential, model.kT_eV
    m = len(potential.basis) - 1
    unit = qmc.Sobol(1 + m, seed=seed).random(_POINTS)
    steps = (np.arange(_STEPS) + unit[:, :1]) / _STEPS
    s = potential.length * (-0.5 + 2.0 * steps).ravel()
    gaussian = np.repeat(norm.ppf(unit[:, 1:]), _STEPS, axis=0)
    y = potential.centre(s) + gaussian * np.sqrt(kT / potential.stiffness_at(s))[:, None]
    u = potential.positions(np.concatenate([s[:, None], y], axis=1)) - potential.reference.positions
    energy = model.free_energy(s)
    if model.wall is not None:
        energy = energy + model.wall.energy(u)
    weight = np.exp(-(energy - energy.min()) / kT)
    u -= u.mean(axis=1, keepdims=True)
    x = variable.components(u)
    xi = variable.encode(x)[:, 0]
    gradient = variable.encoder_jacobian(x)[:, 0] @ variable.pca_components
    of_atoms = (gradient.reshape(len(u), -1, 3) ** 2).sum(axis=2)
    gradnorm = np.sqrt(of_atoms.sum(axis=1))
    speed = np.sqrt((of_atoms / variable.masses).sum(axis=1))
    edges = np.arange(-0.5 - 0.5 * _BIN, 1.5 + _BIN, _BIN)  # 0 and 1 are midpoints
    xi_of_bin = 0.5 * (edges[1:] + edges[:-1])
    rho, norms, speeds = (
        np.histogram(xi, edges, weights=weight * factor)[0] for factor in (1.0, gradnorm, speed)
    )
    with np.errstate(divide="ignore"):
        A, W = -kT * np.log(rho), -kT * np.log(norms / _BIN)
    # A symmetric top can have two equal highest bins: they are one wall.
    walls = find_peaks(np.nan_to_num(W, posinf=1e9), prominence=2.0 * kT, distance=2 * _NEAR)[0]
    walls = [wall for wall in walls if 0.0 < xi_of_bin[wall] < 1.0]
    populations = [part.sum() for part in np.split(rho, walls)]
    # A^-1 amu^-1/2 (eV)^1/2 is the speed of xi in ASE's unit of time.
    flux = np.sqrt(kT / (2.0 * np.pi)) * units.second * speeds / _BIN
    least = [flux[wall - _NEAR : wall + _NEAR + 1].min() for wall in walls]
    inside = (xi_of_bin > 0) & (xi_of_bin < 1)
    ends = [int(np.argmin(abs(xi_of_bin - end))) for end in (0.0, 1.0)]
    return [
        W[walls].max() + kT * np.log(populations[0]),
        1.0 / (populations[0] * np.sum(1.0 / np.array(least))),
        -kT * np.log(populations[-1] / populations[0]),
        A[inside].max() - A[: walls[0]].min(),
        A[ends[1]] - A[ends[0]],
    ]


def _oblique(u: Array) -> Array:
    return np.asarray(0.3 * np.maximum(0.0, -2.4 - (u[:, 1, 0] - u[:, 0, 0])) ** 2)


MODELS = {
    model.name: model
    for model in (
        Model("symmetric", "symmetric"),
        Model("asymmetric", "asymmetric"),
        Model("three wells", "three wells"),
        Model("curved", "curved"),
        Model("four jumps", "four jumps", temperature_K=400.0, timestep_fs=2.0, steps=40_000),
        Model("two masses", "two masses", timestep_fs=1.0),
        Model(
            "wall",
            "symmetric",
            steps=40_000,
            wall=Wall(
                "d: DISTANCE ATOMS=1,2 COMPONENTS\n"
                "wall: LOWER_WALLS ARG=d.x AT=-2.4 KAPPA=0.3 EXP=2 EPS=1\n",
                _oblique,
            ),
        ),
        Model("hot", "hot", temperature_K=1000.0),
        Model("LAMMPS", "three atoms, curved", engine="lammps", steps=10_000),
        Model("straight", "three atoms", engine="lammps", steps=10_000),
    )
}
