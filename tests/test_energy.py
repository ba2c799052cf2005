"""The energy along a path: analytic paths with known integrals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from numpy.typing import NDArray

from plumed_cv import cv
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable, Layer, energy, random_model
from plumed_cv.cv.reconstruction import reconstruct
from plumed_cv.cv.training import RECIPES, Training
from plumed_cv.figures import plot_localisation
from plumed_cv.paths.neb import find_minimum_energy_path
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array
from tests.valleys import CURVATURE, SPRING, CurvedValley, pair

N_ATOMS, RADIUS, ANGLE, HEIGHT, TILT = 12, 1.3, 2.0, 0.7, -0.15


def basis(n_directions: int, atoms: slice = slice(None), seed: int = 0) -> Array:
    """Orthonormal directions without translation, (n, 3N), in which only `atoms` move."""
    rng = np.random.default_rng(seed)
    raw = np.zeros((n_directions, N_ATOMS, 3))
    raw[:, atoms] = rng.normal(size=raw[:, atoms].shape)
    raw[:, atoms] -= raw[:, atoms].mean(axis=1, keepdims=True)
    directions = np.linalg.qr(raw.reshape(n_directions, -1).T)[0].T
    return np.asarray(directions)


def height(s: Array) -> Array:
    """Energy along the path: two humps, and an end below the beginning."""
    return HEIGHT * np.sin(np.pi * s) ** 2 * (1 + 0.5 * np.cos(2 * np.pi * s) ** 2) + TILT * s


def slope(s: Array) -> Array:
    step = 1e-6
    return np.asarray((height(s + step) - height(s - step)) / (2 * step))


def images(positions: Array, energies: Array, gradients: Array) -> EnergyPath:
    home = np.random.default_rng(9).uniform(0, 9, size=(N_ATOMS, 3))
    path = []
    for u, e, g in zip(positions, energies, gradients, strict=True):
        atoms = Atoms("H" * N_ATOMS, positions=home + u.reshape(-1, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=e - 40.0, forces=-g.reshape(-1, 3))
        path.append(atoms)
    return EnergyPath(tuple(path))


def arc(
    directions: Array, n_images: int = 25, stiffness: float = 5.0, off: float = 0.0
) -> EnergyPath:
    """The bottom of a valley along an arc in the plane of two directions, a minimum energy path.

    V = height(angle / ANGLE) + stiffness / 2 (r - RADIUS)^2; `off` moves the images out of the
    bottom, to the radius RADIUS + off.
    """
    s = np.linspace(0, 1, n_images)
    radial = np.cos(ANGLE * s)[:, None] * directions[0] + np.sin(ANGLE * s)[:, None] * directions[1]
    around = np.cos(ANGLE * s)[:, None] * directions[1] - np.sin(ANGLE * s)[:, None] * directions[0]
    gradients = (slope(s) / ANGLE / (RADIUS + off))[:, None] * around
    gradients += stiffness * off * radial
    energies = height(s) + 0.5 * stiffness * off**2
    return images((RADIUS + off) * radial, energies, gradients)


def line(direction: Array, n_images: int = 25) -> EnergyPath:
    s = np.linspace(0, 1, n_images)
    gradients = (slope(s) / RADIUS)[:, None] * direction
    return images(RADIUS * s[:, None] * direction, height(s), gradients)


def linear_cv(path: EnergyPath) -> CollectiveVariable:
    ends = path.images[0].positions, path.images[-1].positions
    return cv.linear(path.species, path.cell, *ends)


def along(path: EnergyPath, directions: Array, mean: Array | None = None) -> CollectiveVariable:
    """A variable whose components are given directions and whose encoder keeps the first."""
    first = Layer(np.eye(1, len(directions)), np.zeros(1))
    last = Layer(np.eye(len(directions), 1), np.zeros(len(directions)))
    return replace(
        linear_cv(path),
        pca_mean=np.zeros(3 * N_ATOMS) if mean is None else mean,
        pca_components=directions,
        encoder=(first,),
        decoder=(last,),
        latent_scale=np.ones(1),
    )


class Angle(CollectiveVariable):
    """The angle in the plane of the two components: the exact variable of `arc`."""

    def encoder_jacobian(self, components: NDArray[Any]) -> Array:
        x, y = components[..., 0], components[..., 1]
        turned = np.stack([-y, x], axis=-1)[..., None, :]
        return np.asarray(turned / (x**2 + y**2)[..., None, None])


def straight(energies: Array, gradients: Array) -> EnergyPath:
    """A straight path of equal steps with given energies and slopes, eV and eV per length."""
    direction = basis(1)[0]
    s = np.linspace(0, 1, len(energies))
    slopes = (gradients / RADIUS)[:, None] * direction
    return images(RADIUS * s[:, None] * direction, energies, slopes)


def test_margins_hold_the_thermal_motion_and_stop_before_the_next_barrier() -> None:
    s, top = np.linspace(0, 1, 41), 0.6
    path = straight(top * np.sin(np.pi * s) ** 2, top * np.pi * np.sin(2 * np.pi * s))
    line = linear_cv(path)
    for kT in (0.01, 0.03, 0.045):
        expected = np.arcsin((6 * kT / top) ** 0.5) / np.pi
        assert energy.compute_margins(path, line, kT) == pytest.approx([expected] * 2, abs=2e-3)
    # With xi(-0.5) as high a barrier behind the state: 0.2 of the path is left before its top.
    assert energy.compute_margins(path, line, 0.09) == pytest.approx([0.3, 0.3], abs=2e-3)
    assert energy.compute_margins(path, line, 1e-5) == (0.05, 0.05)
    # What a sampling has shown to be needed may come closer to that barrier.
    wider = energy.compute_margins(path, line, 0.09, (0.4, 0.6))
    assert wider == pytest.approx([0.4, 0.425], abs=2e-3)
    # Twice the same hop: the first top counts, and both ends are alike.
    path = straight(top * np.sin(2 * np.pi * s) ** 2, 2 * top * np.pi * np.sin(4 * np.pi * s))
    assert energy.compute_margins(path, linear_cv(path), 0.09) == pytest.approx(
        [0.15, 0.15], abs=2e-3
    )
    # A wide initial state and a narrow final one, 0.4 eV above it.
    values = np.where(
        s < 0.75, np.sin(np.pi * s / 1.5) ** 2, 0.4 + 0.6 * np.sin(2 * np.pi * s) ** 2
    )
    slopes = np.gradient(values, s)
    below, above = energy.compute_margins(straight(values, slopes), linear_cv(path), 0.04)
    assert below == pytest.approx(1.5 * np.arcsin(0.24**0.5) / np.pi, abs=0.01)
    assert above == pytest.approx(np.arcsin(0.4**0.5) / (2 * np.pi), abs=0.01)


def test_whether_a_variable_rises_along_a_path() -> None:
    assert energy.measure_fall(arc(basis(2)), linear_cv(arc(basis(2)))) == pytest.approx(
        0, abs=1e-12
    )
    # Three quarters of a circle: the projection on the line between the ends turns back twice.
    t = 1.5 * np.pi * np.linspace(0, 1, 41)
    plane = basis(2)
    points = (1 - np.cos(t))[:, None] * plane[0] + np.sin(t)[:, None] * plane[1]
    around = images(points, np.sin(t / 3) ** 2, np.zeros_like(points))
    projected = points @ (points[-1] / (points[-1] @ points[-1]))
    expected = (np.maximum.accumulate(projected) - projected).max()
    assert expected > 0.2
    assert energy.measure_fall(around, linear_cv(around)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("n_images", "accuracy"), [(20, 2e-3), (30, 5e-4)])
def test_the_exact_variable_gives_the_exact_energy(n_images: int, accuracy: float) -> None:
    plane = basis(2)
    path = arc(plane, n_images)
    variable = along(path, plane, mean=-RADIUS * plane[0])
    exact = Angle(**{name: getattr(variable, name) for name in variable.__dataclass_fields__})
    for profile in (energy.along_variable(path, exact), energy.along_path(path)):
        s = profile.parameter
        np.testing.assert_allclose(profile.energy, height(s) - height(s[0]), atol=accuracy * HEIGHT)
        assert profile.end_point == pytest.approx(TILT, abs=accuracy * HEIGHT)
    np.testing.assert_allclose(
        energy.interpolate_images(path).energy, height(s) - height(s[0]), atol=accuracy * HEIGHT
    )


def test_the_top_between_two_images_is_found() -> None:
    path = arc(basis(2), 24)  # no image is on a top
    top = height(np.linspace(0, 1, 10001)).max()
    assert path.energies.max() < top - 1e-3
    assert energy.interpolate_images(path).barrier == pytest.approx(top, abs=2e-4)


@pytest.mark.parametrize("degrees", [0.0, 20.0, 60.0])
def test_a_gradient_off_the_path_loses_the_squared_cosine(degrees: float) -> None:
    plane = basis(2)
    path = line(plane[0])
    turned = np.cos(np.radians(degrees)) * plane[0] + np.sin(np.radians(degrees)) * plane[1]
    profile = energy.along_variable(path, along(path, turned[None]))
    expected = np.cos(np.radians(degrees)) ** 2 * energy.along_path(path).energy
    np.testing.assert_allclose(profile.energy, expected, atol=1e-12)


def test_the_whole_space_gives_the_path_and_a_part_its_share() -> None:
    whole = basis(3 * N_ATOMS - 3)
    path = arc(basis(2, seed=5), off=0.1)  # with forces across the path
    np.testing.assert_allclose(
        energy.along_components(path, along(path, whole)).energy,
        energy.along_path(path).energy,
        atol=1e-12,
    )
    straight = line(whole[0])
    part = along(straight, whole[[3, 7]])
    np.testing.assert_allclose(energy.along_components(straight, part).energy, 0, atol=1e-12)


@pytest.mark.parametrize("n_latent", [1, 2, 3])
def test_mixing_latent_dimensions_changes_nothing(n_latent: int) -> None:
    rng = np.random.default_rng(3)
    path = arc(basis(2))
    model = random_model(rng, N_ATOMS, 5, (7,), n_latent, activation="tanh")
    model = replace(
        model,
        species=path.species,
        reference_positions=path.images[0].positions,
        reference_cell=np.zeros((3, 3)),
    )
    profile = energy.along_variable(path, model)
    mixing = rng.normal(size=(n_latent, n_latent))
    last = model.encoder[-1]
    mixed = (*model.encoder[:-1], Layer(mixing @ last.weight, mixing @ last.bias))
    scaled = replace(model, encoder=mixed, latent_scale=np.ones(n_latent))
    np.testing.assert_allclose(
        energy.along_variable(path, scaled).energy, profile.energy, atol=1e-10
    )
    assert np.abs(profile.energy).max() > 0.01


def test_as_many_latent_dimensions_as_components_are_the_components() -> None:
    path = arc(basis(2))
    variable = along(path, np.vstack([basis(2)[:1], basis(1, seed=8)]))
    variable = replace(
        variable, pca_components=np.linalg.qr(variable.pca_components.T)[0].T,
        encoder=(Layer(np.array([[1.0, 0.3], [-2.0, 1.0]]), np.zeros(2)),),
        decoder=(Layer(np.eye(2), np.zeros(2)),),
        latent_shift=np.zeros(2), latent_scale=np.ones(2),
    )  # fmt: skip
    np.testing.assert_allclose(
        energy.along_variable(path, variable).energy,
        energy.along_components(path, variable).energy,
        atol=1e-12,
    )


def test_a_flat_variable_gives_no_energy() -> None:
    path = line(basis(1)[0])
    flat = replace(along(path, basis(1)), encoder=(Layer(np.zeros((1, 1)), np.zeros(1)),))
    np.testing.assert_array_equal(energy.along_variable(path, flat).energy, 0)


def test_forces_across_the_path() -> None:
    plane = basis(2)
    # In the valley only the ends, which are no minima, have forces that count.
    around = np.cos(ANGLE) * plane[1] - np.sin(ANGLE) * plane[0]
    largest = np.linalg.norm([plane[1].reshape(-1, 3), around.reshape(-1, 3)], axis=2).max()
    at_ends = abs(TILT) / ANGLE / RADIUS * largest
    assert energy.force_across(arc(plane)) == pytest.approx(at_ends, rel=0.01)
    path = arc(plane, off=0.1)
    expected = 0.5 * np.linalg.norm(plane[0].reshape(-1, 3), axis=1).max()
    assert 0.5 * expected < energy.force_across(path) < 2 * expected


@pytest.mark.parametrize("n_images", [7, 11, 19])
def test_a_band_that_has_converged_has_no_forces_across(n_images: int) -> None:
    """By the tangents of splines, seven images of a curved path have ten times the limit."""
    ends = pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1)
    path = find_minimum_energy_path(*ends, CurvedValley, n_images, fmax_eV_A=0.01)
    assert energy.force_across(path) <= 0.01 * (1 + 1e-9)
    # A band that was not relaxed: the straight line, 0.6 A from the bottom of the valley.
    images = []
    for x in np.linspace(-1.0, 1.0, n_images):
        images.append(pair(x, 0.0, 0.0))
        images[-1].calc = CurvedValley()  # type: ignore[no-untyped-call]
        images[-1].get_forces()
    assert energy.force_across(EnergyPath(tuple(images))) == pytest.approx(
        SPRING * CURVATURE, rel=1e-3
    )


def changed(path: EnergyPath, force: float = 1.0, energies: float = 1.0) -> EnergyPath:
    copies = []
    for image in path.images:
        atoms = image.copy()
        results = image.calc.results
        atoms.calc = SinglePointCalculator(
            atoms, energy=energies * results["energy"], forces=force * results["forces"]
        )
        copies.append(atoms)
    return EnergyPath(tuple(copies), "mine.xyz")


@pytest.mark.parametrize(
    ("force", "energies", "sentence"),
    [
        (-1.0, 1.0, "point uphill: multiply them by -1"),
        (1 / 25.711, 1.0, r"in Ry/bohr: multiply them by 25\.71"),
        (-1 / 25.711, 1.0, r"gradients in Ry/bohr: multiply them by -25\.71"),
        (1 / 51.422, 1.0, r"in Ha/bohr: multiply them by 51\.42"),
        (0.529177, 1.0, r"in eV/bohr: multiply them by 1\.889"),
        (10.0, 1.0, r"in eV/nm: multiply them by 0\.1"),
        (23.0605, 1.0, r"in kcal/mol/A: multiply them by 0\.04336"),
        (96.485, 1.0, r"in kJ/mol/A: multiply them by 0\.01036"),
        (964.85, 1.0, r"in kJ/mol/nm: multiply them by 0\.001036"),
        (1.0, 1 / 13.6057, r"energies are in Ry: multiply them by 13\.60"),
        (1.0, 1 / 27.2114, r"energies are in Ha: multiply them by 27\.21"),
        (1.0, 23.0605, r"energies are in kcal/mol: multiply them by 0\.04336"),
        (1.0, 0.0, "all images have the same energy"),
        (0.3, 1.0, r"add up to 0\.3\d* times the energies"),
        (0.0, 1.0, "add up to 0 times the energies"),
    ],
)
def test_forces_of_another_unit_or_sign(force: float, energies: float, sentence: str) -> None:
    path = arc(basis(2))
    assert energy.check_forces(path) < 1e-3
    with pytest.raises(UserError, match=sentence) as caught:
        energy.check_forces(changed(path, force, energies))
    assert str(caught.value).startswith("mine.xyz")
    assert "\n" not in str(caught.value)


def test_images_far_apart_are_not_blamed_on_the_calculation() -> None:
    """The forces of these arcs are exact; five images give the work with an error of 28 %."""
    plane = basis(2)
    assert 0.2 < energy.check_forces(arc(plane, 5)) < 0.35
    assert 0.1 < energy.check_forces(arc(plane, 6)) < 0.2
    with pytest.raises(UserError, match=r"4 images are too far apart.*; give more images"):
        energy.check_forces(arc(plane, 4))
    # The same factor on the forces of dense images is another calculation.
    with pytest.raises(UserError, match="more than the distances of 25 images explain"):
        energy.check_forces(changed(arc(plane, 25), 0.767))


def test_forces_on_held_atoms_are_none_across_the_path() -> None:
    moving = np.random.default_rng(1).normal(size=(N_ATOMS, 3))
    moving[:2] = 0.0
    moving[2:] -= moving[2:].mean(axis=0)
    path = line(moving.ravel() / np.linalg.norm(moving))
    copies = [image.copy() for image in path.images]
    for copy, image in zip(copies, path.images, strict=True):
        forces = image.get_forces()
        forces[0] += 3.0
        forces[1] -= 3.0
        copy.calc = SinglePointCalculator(copy, energy=image.get_potential_energy(), forces=forces)
    assert energy.force_across(EnergyPath(tuple(copies))) > 2
    for copy in copies:
        copy.set_constraint(FixAtoms([0, 1]))
    assert energy.force_across(EnergyPath(tuple(copies))) <= energy.force_across(path) + 1e-9


def test_forces_of_other_atoms_are_refused() -> None:
    path = arc(basis(2))
    copies = []
    for image in path.images:
        atoms = image.copy()
        atoms.calc = SinglePointCalculator(
            atoms, energy=image.get_potential_energy(), forces=image.get_forces()[::-1]
        )
        copies.append(atoms)
    with pytest.raises(UserError, match="of the same calculation as the energies"):
        energy.check_forces(EnergyPath(tuple(copies)))


SHORT = ((1e-2, 20), (1e-3, 10))


def test_an_autoencoder_finds_the_arc_again() -> None:
    """With little noise, PCA finds the plane, the network the angle, and both the energy."""
    path = arc(basis(2))
    stages: list[str] = []
    training = Training(
        hidden=(12, 12), activation="tanh", tied=False, seed=1,
        schedule=((1e-2, 40), (1e-3, 40), (1e-4, 20)), batch_size=100,
    )  # fmt: skip
    found = reconstruct(
        path, 3000, 1e-4, 4, training, 1, lambda done, total, stage: stages.append(stage)
    )
    result = found.as_dict()["profiles"]
    assert abs(result["pca"]["barrier_error_percent"]) < 0.5
    assert abs(result["ae_pca"]["barrier_error_percent"]) < 2
    assert abs(result["ae_pca"]["end_point_error_percent"]) < 2
    assert result["ae_pca"]["rms_percent"] < 2
    assert result["neb"]["rms_percent"] == 0
    assert found.elbow == 2
    assert len(stages) == training.n_epochs + 2
    np.testing.assert_allclose(found.xi[[0, -1], 0], [0, 1], atol=1e-9)
    json.dumps(found.as_dict(), allow_nan=False)
    again = reconstruct(path, 3000, 1e-4, 4, training, 1)
    np.testing.assert_array_equal(again.ae_pca.energy, found.ae_pca.energy)


def test_two_latent_dimensions_are_the_plane_of_the_arc() -> None:
    """Both gradients span the plane, so that Eq. 19 gives the result of the components."""
    path = arc(basis(2), off=0.1)  # with forces across the path, which one dimension leaves out
    training = replace(RECIPES["paper"], n_latent=2, activation="tanh", schedule=SHORT)
    found = reconstruct(path, 3000, 1e-4, 2, training, 1)
    assert found.xi.shape == (len(found.neb.parameter), 2)
    np.testing.assert_allclose(found.xi[[0, -1]], [[0, 0], [1, 1]], atol=1e-9)
    assert found.ae_pca.deviation_from(found.pca) < 1e-9
    json.dumps(found.as_dict(), allow_nan=False)


def test_the_mean_path_filters_the_noise() -> None:
    """Noise as large as the motion tilts the components of structures, not of their mean."""
    path = arc(basis(2))
    losses = {}
    for name, recipe in RECIPES.items():
        found = reconstruct(path, 2000, 0.05, 6, replace(recipe, schedule=((1e-2, 2),)))
        losses[name] = found.pca.deviation_from(found.neb)
        assert found.as_dict()["subspace"] == recipe.subspace
    assert losses["denoising"] < 0.5 * losses["paper"]


def test_localisation_is_the_motion_of_the_atoms() -> None:
    quick = Training(schedule=((1e-2, 2),))
    few = arc(basis(2, slice(3)))
    found = reconstruct(few, 2000, 0.001, 2, quick).localisation
    assert found.moving.tolist() == [True] * 3 + [False] * (N_ATOMS - 3)
    assert found.verdict == "localised"
    assert found.share == pytest.approx(1.0)
    # Averages over the arc in closed form: of cos, sin, their squares and product.
    a, plane = ANGLE, basis(2, slice(3)).reshape(2, N_ATOMS, 3)
    mean = np.array([np.sin(a) / a, (1 - np.cos(a)) / a])
    second = np.array(
        [
            [0.5 + np.sin(2 * a) / (4 * a), np.sin(a) ** 2 / (2 * a)],
            [np.sin(a) ** 2 / (2 * a), 0.5 - np.sin(2 * a) / (4 * a)],
        ]
    )
    covariance = RADIUS**2 * (second - np.outer(mean, mean))
    expected = np.einsum("kl,kai,lai->a", covariance, plane, plane)
    np.testing.assert_allclose(found.motion, expected, atol=1e-4)
    np.testing.assert_allclose(found.amplitude**2, expected, atol=0.05 * expected.max())
    assert found.participation == pytest.approx(expected.sum() ** 2 / (expected**2).sum(), rel=1e-3)
    spread = reconstruct(arc(basis(2)), 2000, 0.15, 2, quick).localisation
    assert spread.verdict == "extended"
    assert "0.387 Å" in spread.sentence
    assert spread.participation > 6


def test_the_picture_of_the_atoms_leaves_out_fixed_atoms(tmp_path: Path) -> None:
    path = arc(basis(2, slice(3)))
    for image in path.images:
        image.set_constraint(FixAtoms([10, 11]))
    found = reconstruct(path, 500, 0.001, 2, Training(schedule=((1e-2, 2),)))
    assert len(found.localisation.amplitude) == N_ATOMS - 2
    plot_localisation(tmp_path / "localisation.png", found)
    assert (tmp_path / "localisation.png").stat().st_size > 10_000


def test_bad_requests() -> None:
    path = arc(basis(2))
    with pytest.raises(UserError, match="1 structures"):
        reconstruct(path, 1)
    with pytest.raises(UserError, match="variance -1"):
        reconstruct(path, 100, -1)
    with pytest.raises(UserError, match="one of other atoms"):
        energy.along_variable(path, random_model(np.random.default_rng(0), 5, 3, (3,)))
