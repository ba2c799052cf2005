"""Transmission coefficients of a Langevin double well across Kramers' turnover."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import units
from scipy.integrate import quad

from plumed_cv import rates
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import Dynamics
from plumed_cv.engines.ase import AseEngine
from plumed_cv.structures import cell_of
from tests.truth import kramers, landscape
from tests.truth.landscape import LANDSCAPES, Array
from tests.truth.test_truth import between

KELVIN = 400.0
KT = units.kB * KELVIN
WELL = LANDSCAPES["three atoms"]  # s is a particle of its own, of an aluminium atom's mass
MASS = float(WELL.reference.get_masses()[0])
FS = units.fs  # ASE's unit of time is 1/FS fs


@pytest.fixture(scope="module")
def engine() -> Iterator[AseEngine]:
    folder = Path(landscape.__file__).parent
    arguments = {"name": "three atoms"}
    atoms = WELL.state(0.0)
    with AseEngine("landscape.OnLandscape", atoms, arguments=arguments, directory=folder) as opened:
        yield opened


def variable() -> CollectiveVariable:
    return between(WELL.state(0.0), WELL.state(WELL.length))


def transition_state_rate(s: float) -> float:
    """Through the surface at s, 1/fs, by quadrature."""
    reactant = quad(lambda x: np.exp(-WELL.energy_along(x) / KT), -0.6, 0.5 * WELL.length)[0]
    speed = (KT / (2 * np.pi * MASS)) ** 0.5 * FS
    return float(speed * np.exp(-WELL.energy_along(s) / KT) / reactant)


def exact_rate(friction_per_ps: float, functions: int) -> float:
    """From one well to the other, 1/fs."""
    speed = (KT / MASS) ** 0.5 * FS
    ends = (-0.65, WELL.length + 0.65)
    return 0.5 * kramers.relaxation(
        lambda s: WELL.energy_along(s) / KT,
        ends,
        speed,
        friction_per_ps / 1000,
        functions=functions,
    )


def shots(
    engine: AseEngine,
    friction_per_ps: float,
    residence_ps: float,
    timestep_fs: float,
    number: int,
    at: float = 0.5,
) -> list[rates.Shot]:
    """From exact samples near a surface: s evenly in a window, y by Boltzmann's distribution."""
    rng = np.random.default_rng(7)
    shooter = rates.Shooter(
        variable=variable(),
        cell=cell_of(WELL.reference),
        dynamics=Dynamics(KELVIN, timestep_fs, "langevin", friction_per_ps),
        cores=(0.2, 0.8),
        limit_A=None,
        residence_fs=1000 * residence_ps,
        longest_fs=1000 * max(20.0, 10 * residence_ps),
    )
    tasks = []
    for k in range(number):
        s = WELL.length * (at + rng.uniform(-0.02, 0.02))
        y = rng.normal(scale=(KT / WELL.stiffness) ** 0.5, size=len(WELL.basis) - 1)
        positions = WELL.positions(np.array([s, *y]))
        tasks.append(((f"{k:06d}", 0), positions, k))
    return [outcome.shot for outcome in shooter.shoot(engine, tasks)]


def above(at: float) -> Callable[[Array], Array]:
    top = float(WELL.energy_along(at * WELL.length))
    return lambda xi: np.asarray(WELL.energy_along(xi * WELL.length) - top)


def test_the_spectrum_has_kramers_limits() -> None:
    """Strong friction: omega_0 omega_b / (2 pi gamma) exp(-E/kT), corrected for finite barriers."""
    friction = 600.0
    found = exact_rate(friction, 24)
    # In the limit of overdamped dynamics the mean first passage time is a double integral.
    diffusion = KT / MASS * FS**2 / (friction / 1000)
    s = np.linspace(-0.65, WELL.length + 0.65, 6001)
    weight = np.exp(-WELL.energy_along(s) / KT)
    step = s[1] - s[0]
    inside = np.cumsum(weight) * step
    between_wells = (s >= 0) & (s <= WELL.length)
    time = np.sum((inside / weight)[between_wells]) * step / diffusion
    # From minimum to minimum: at the far one half of all have come to stay.
    assert found * time == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("friction", "residence_ps", "timestep_fs", "functions", "number"),
    [
        (30.0, 0.6, 3.0, 60, 80),
        pytest.param(2.0, 4.0, 3.0, 160, 200, marks=pytest.mark.slow),
        pytest.param(10.0, 1.0, 3.0, 80, 400, marks=pytest.mark.slow),
        pytest.param(100.0, 0.6, 1.0, 40, 500, marks=pytest.mark.slow),
        pytest.param(350.0, 2.0, 1.0, 24, 400, marks=pytest.mark.slow),
    ],
)
def test_double_well_across_kramers_turnover(
    engine: AseEngine,
    friction: float,
    residence_ps: float,
    timestep_fs: float,
    functions: int,
    number: int,
) -> None:
    """kappa from 0.05 to 0.8; four standard errors are one failure in 10^4.

    Crossings that are undone within one step are missed: with a friction of a tenth per step this
    adds 2 % to kappa, with a third 5 %. The plateau of the reactive flux does not depend on it.
    """
    expected = exact_rate(friction, functions) / transition_state_rate(0.5 * WELL.length)
    found = rates.estimate_transmission(
        shots(engine, friction, residence_ps, timestep_fs, number), above(0.5), KT
    )
    print(friction, expected, found.kappa, found.reactive_flux, found.n_steps)
    assert found.unresolved == 0.0
    assert found.kappa.error < 0.2 * found.kappa.value
    missed = 2e-4 * friction * timestep_fs * expected
    assert abs(found.kappa.value - expected) < 4 * found.kappa.error + missed
    assert abs(found.reactive_flux.value - expected) < 4 * found.reactive_flux.error


@pytest.mark.slow
def test_the_rate_does_not_depend_on_the_surface(engine: AseEngine) -> None:
    """k_TST differs; four standard errors are one failure in 10^4."""
    exact = exact_rate(30.0, 60)
    of_bounds = []
    for at in (0.42, 0.5, 0.58):
        found = rates.estimate_transmission(
            shots(engine, 30.0, 0.6, 3.0, 500, at), above(at), KT
        ).kappa
        bound = transition_state_rate(at * WELL.length)
        of_bounds.append(bound)
        print(at, bound, found, found.value * bound / exact)
        assert abs(found.value * bound - exact) < 4 * found.error * bound
    assert of_bounds[0] > 1.3 * of_bounds[1]
