"""The minimum energy path by an elastic band, against analytic answers."""

import re
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from scipy.signal import find_peaks

from plumed_cv.common.errors import UserError
from plumed_cv.paths import neb
from plumed_cv.paths.neb import find_minimum_energy_path, measure_noise
from plumed_cv.paths.path import EnergyPath
from tests.valleys import CURVATURE, HEIGHT, LOWER, SPRING, CurvedValley, pair, relaxed_path

DEEP = 0.3  # eV, of the minimum between the end states


@pytest.fixture(scope="module")
def valley() -> EnergyPath:
    return relaxed_path()


class TwoValleys(Calculator):
    """As `CurvedValley`, but with two paths: between them, on the straight line, is a ridge.

    At x = 0 the energy is HEIGHT - LOWER y^2 + y^4, so both saddle points are LOWER^2/4 below it.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        x, y, z = atoms.positions[1] - atoms.positions[0] - [5.0, 0.0, 0.0]
        stiff = 0.5 * SPRING * x**2 - LOWER * (1 - x**2)
        energy = HEIGHT * (1 - x**2) ** 2 + stiff * y**2 + y**4 + 0.5 * SPRING * z**2
        along = -4 * HEIGHT * x * (1 - x**2) + (SPRING + 2 * LOWER) * x * y**2
        gradient = np.array([along, 2 * stiff * y + 4 * y**3, SPRING * z])
        self.results = {"energy": energy, "forces": np.stack([gradient, -gradient])}


class NoisyValley(CurvedValley):
    """The valley with forces that are rounded badly: an error that depends on every digit of y."""

    noise = 1e-4  # eV/A

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        phase = 1e8 * (atoms.positions[1] - atoms.positions[0])
        error = self.noise * 2**0.5 * np.sin(phase)
        self.results["forces"] = self.results["forces"] + np.stack([-error, error])


class VeryNoisyValley(NoisyValley):
    noise = 0.1


class ThreeValleys(CurvedValley):
    """As `CurvedValley`, but with a third minimum between two saddle points of the same height.

    The energy along the arc is DEEP x^2 lower than 27/4 HEIGHT x^2 (1 - x^2)^2 would be at x = 0.
    """

    def along(self, x: float) -> tuple[float, float]:
        return along_three(x), (along_three(x + 1e-5) - along_three(x - 1e-5)) / 2e-5


def along_three(x: Any) -> Any:
    """Energy of `ThreeValleys` along its arc: 0 at x = -1 and 1, -DEEP at 0."""
    return 27 / 4 * HEIGHT * x**2 * (1 - x**2) ** 2 - DEEP * (1 - x**2) ** 2


class Rough(CurvedValley):
    """A crease along z = 0, where the force jumps from -0.02 to 0.02 eV/A."""

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        pull = 0.02 * np.sign((atoms.positions[1] - atoms.positions[0])[2])
        self.results["energy"] += abs(0.02 * (atoms.positions[1] - atoms.positions[0])[2])
        self.results["forces"] = self.results["forces"] + pull * np.array([[0, 0, 1], [0, 0, -1]])


class RoughTop(Rough):
    """The same only in the middle of the path, where an image has to climb."""

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        x = (atoms.positions[1] - atoms.positions[0])[0] - 5.0
        kind = Rough if abs(x) < 0.5 else CurvedValley
        kind.calculate(self, atoms, properties, system_changes)


class Tethered(Calculator):
    """Atom 1 moves in a double well along x, all others are on springs to places in space."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        moved = atoms.positions - tethered(0.0).positions
        moved -= 12.0 * np.round(moved / 12.0)
        (x, y, z), off = moved[0], moved[1:]
        forces = np.empty((len(atoms), 3))
        forces[0] = [4 * HEIGHT * x * (1 - x**2), -SPRING * y, -SPRING * z]
        forces[1:] = -SPRING * off
        energy = HEIGHT * (1 - x**2) ** 2
        energy += 0.5 * SPRING * (y**2 + z**2 + np.sum(off**2))
        self.results = {"energy": energy, "forces": forces}


def tethered(x: float) -> Atoms:
    """Atom 1 at a place in a cell of 12 A, and eleven others."""
    others = [[3 + 3 * i, 3 * j, 3 * k] for i in (0, 1) for j in (0, 1, 2) for k in (0, 1)][:11]
    return Atoms("H12", positions=[[x, 0, 0], *others], cell=[12, 12, 12], pbc=True)


def test_noise_of_the_forces_sets_the_tolerance(valley: EnergyPath) -> None:
    """Forces that never fall below 1e-4 eV/A, as in single precision: the path is as good."""
    said: list[str] = []
    ends = pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1)
    path = find_minimum_energy_path(*ends, NoisyValley, 15, say=said.append)
    assert path.barrier == pytest.approx(valley.barrier, abs=1e-4)
    assert len(said) == 1
    assert "have a noise of" in said[0]
    assert "instead of 0.001 eV/A" in said[0]
    said.clear()
    find_minimum_energy_path(*ends, CurvedValley, 15, say=said.append)
    assert not said
    with pytest.raises(UserError, match="compute them in double precision"):
        find_minimum_energy_path(*ends, VeryNoisyValley, 15)


def test_noise_of_forces_is_measured() -> None:
    """Of three independent components, within a factor of four in five structures."""
    for k in range(5):
        state = pair(-0.9 + 0.1 * k, 0.1, 0.1)
        noise = measure_noise(state, NoisyValley())  # type: ignore[no-untyped-call]
        assert 0.25 < noise / NoisyValley.noise < 4.0
        assert measure_noise(state, CurvedValley()) < 1e-8  # type: ignore[no-untyped-call]


def test_in_an_external_field_the_states_stay_where_they_are() -> None:
    """If it drifted by 1/6 A, the final state would have 0.4 eV in the springs."""
    final = tethered(0.9)
    final.positions += [12.0, 0.0, 0.0]  # a lattice vector is no other place
    path = find_minimum_energy_path(tethered(-0.9), final, Tethered, 15)
    assert path.barrier == pytest.approx(HEIGHT, abs=1e-4)
    np.testing.assert_allclose(path.images[-1].positions, tethered(1.0).positions, atol=1e-3)
    for image in path.images:
        again = image.copy()
        again.calc = Tethered()  # type: ignore[no-untyped-call]
        assert again.get_potential_energy() == pytest.approx(image.get_potential_energy())
        np.testing.assert_allclose(image.positions[1:], tethered(0.0).positions[1:], atol=1e-3)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_band_leaves_the_ridge_between_two_symmetric_paths(fixed: bool) -> None:
    """Along the straight line between the states there is no force to either side."""
    initial, final = pair(-1.0, 0.0, 0.0), pair(1.0, 0.0, 0.0)
    if fixed:
        for state in (initial, final):
            state.set_constraint(FixAtoms([0]))
    path = find_minimum_energy_path(initial, final, TwoValleys, 15)
    assert path.barrier == pytest.approx(HEIGHT - LOWER**2 / 4, abs=1e-5)
    saddle = path.images[7].positions[1] - path.images[7].positions[0] - [5, 0, 0]
    np.testing.assert_allclose(np.abs(saddle), [0, (LOWER / 2) ** 0.5, 0], atol=1e-3)


def test_barrier_and_shape_are_the_analytic_ones(valley: EnergyPath) -> None:
    assert valley.barrier == pytest.approx(HEIGHT, abs=1e-5)
    assert valley.energies[[0, -1]] == pytest.approx([0, 0], abs=1e-5)
    top = valley.images[int(np.argmax(valley.energies))]
    saddle = top.positions[1] - top.positions[0] - [5, 0, 0]
    np.testing.assert_allclose(saddle, [0, CURVATURE, 0], atol=1e-3)
    # On a minimum energy path the forces are along the path.
    tangents = valley.spline.derivative()(valley.arc_length)
    tangents /= np.linalg.norm(tangents, axis=(1, 2), keepdims=True)
    forces = np.stack([image.get_forces() for image in valley.images])
    along = np.sum(forces * tangents, axis=(1, 2), keepdims=True) * tangents
    # Between knots 0.2 A apart the spline's tangent is off by some hundredths of a radian.
    assert np.abs(forces - along).max() < 0.1 * np.abs(along).max()


@pytest.mark.parametrize("n_images", [15, 61])
def test_images_stay_evenly_spaced_on_both_sides_of_the_top(n_images: int) -> None:
    path = find_minimum_energy_path(
        pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1), CurvedValley, n_images
    )
    steps = np.diff(path.arc_length)
    top = int(np.argmax(path.energies))
    for side in (steps[:top], steps[top:]):
        np.testing.assert_allclose(side, side.mean(), rtol=0.2)


def test_a_straight_first_guess_leads_to_the_same_path(valley: EnergyPath) -> None:
    ends = pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1)
    straight = find_minimum_energy_path(*ends, CurvedValley, 15, interpolation="linear")
    np.testing.assert_allclose(straight.energies, valley.energies, atol=2e-3)
    assert straight.barrier == pytest.approx(valley.barrier, abs=1e-5)


def test_in_a_large_system_atoms_are_kept_apart_where_they_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interstitial whose straight line passes close to an atom, in 251 atoms."""

    def band() -> list[Atoms]:
        crystal = bulk("Fe", "bcc", a=2.87, cubic=True).repeat(5)
        place = crystal.positions[124] + [0.0, 0.5, 0.3]
        images = []
        for x in np.linspace(-1.4, 1.4, 7):
            images.append(crystal + Atoms("Fe", positions=[place + np.array([x, 0.0, 0.0])]))
        return images

    straight, every, some = band(), band(), band()
    neb._keep_apart(every)
    monkeypatch.setattr(neb, "_MOST_APART", 100)
    neb._keep_apart(some)
    near = neb._around_the_motion(some[0], some[-1])
    assert len(near) <= 100
    far = np.setdiff1d(np.arange(251), near)
    for line, one, other in zip(straight, every, some, strict=True):
        np.testing.assert_array_equal(other.positions[far], line.positions[far])
        np.testing.assert_allclose(other.positions[near], one.positions[near], atol=0.1)
    moved = np.linalg.norm(some[3].positions - straight[3].positions, axis=1)
    assert moved.max() > 0.1


@pytest.mark.parametrize("n_images", [11, 15, 16])
def test_an_image_climbs_to_each_of_two_equal_saddle_points(n_images: int) -> None:
    """If only the highest one did, it would change from step to step and never converge."""
    ends = pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1)
    path = find_minimum_energy_path(*ends, ThreeValleys, n_images)
    x = np.linspace(-1.0, 1.0, 200001)
    expected = along_three(x).max()
    peaks, _ = find_peaks(path.energies)
    assert len(peaks) == 2
    assert path.energies[peaks] == pytest.approx(expected, abs=1e-5)
    assert path.energies.min() == pytest.approx(-DEEP, abs=0.1)


@pytest.mark.parametrize(
    ("potential", "max_steps", "stage", "how"),
    [
        (CurvedValley, 8, "initial state", r"on atom [12], and it still falls \(.* last 2 steps\)"),
        (Rough, 200, "initial state", r"on atom [12], and it is .* to .* in the last 50 steps, so"),
        (
            RoughTop,
            200,
            "climbing image",
            r"on atom [12] of image [2-5], and it is .* to .* in the",
        ),
    ],
)
def test_forces_that_do_not_converge_are_described(
    potential: type[Calculator], max_steps: int, stage: str, how: str
) -> None:
    """The sentence says where, how the force went, and a limit with which there is a path."""
    ends = pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1)
    with pytest.raises(UserError, match=how) as caught:
        find_minimum_energy_path(*ends, potential, 7, max_steps=max_steps)
    sentence = str(caught.value)
    assert sentence.startswith(f"The {stage} did not converge to ")
    limit = re.search(r"set path.fmax_eV_A to ([0-9.]+)", sentence)
    assert limit is not None
    if potential is not CurvedValley:  # whose remedy is a better structure, with 8 steps
        assert "do not change evenly" in sentence
        path = find_minimum_energy_path(*ends, potential, 7, float(limit[1]), max_steps)
        assert path.barrier == pytest.approx(HEIGHT, abs=0.05)
