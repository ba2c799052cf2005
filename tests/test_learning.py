"""How a run chooses its first CV and its grid: on analytic paths, without dynamics."""

import json
import shutil
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pytest

from plumed_cv import sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Log
from plumed_cv.cv import CollectiveVariable, energy
from plumed_cv.engines import Engine
from plumed_cv.freeenergy import Estimate, Grid, Profile, write_fes
from plumed_cv.input_file import CV, Config, Lammps, PathSection, Sampling, System
from plumed_cv.paths.path import EnergyPath
from plumed_cv.sampling import guard
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.defaults import with_defaults
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.learning import check_components, choose_functions, write_first_cv
from tests.test_energy import arc, basis, images


class Heard(Log):
    """A reporter that records its messages."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, text: str) -> None:
        """Keep a result."""
        self.sentences.append(text)


def around() -> EnergyPath:
    """Three quarters of a circle of radius 1 A."""
    t = 1.5 * np.pi * np.linspace(0, 1, 41)
    plane = basis(2)
    points = (1 - np.cos(t))[:, None] * plane[0] + np.sin(t)[:, None] * plane[1]
    tangents = np.sin(t)[:, None] * plane[0] + np.cos(t)[:, None] * plane[1]
    slopes: Array = np.sin(t / 1.5 * 2) / 1.5
    return images(points, np.sin(t / 1.5) ** 2, slopes[:, None] * tangents)


def settings(
    components: int = 4,
    margin: float | tuple[float, float] | None = None,
    atom_deviation_limit_A: float | Literal["auto", "off"] = "auto",
) -> Config:
    return Config(
        system=System(initial=Path("a"), final=Path("b"), temperature_K=300.0),
        engine=Lammps(potential=[]),
        path=PathSection(structures=2000, noise_A2=0.002),
        cv=CV(components=components),
        sampling=Sampling(margin=margin, atom_deviation_limit_A=atom_deviation_limit_A),
    )


def first_cv(folder: Path, config: Config, path: EnergyPath) -> tuple[RunDirectory, list[str]]:
    files, heard = RunDirectory(folder), Heard()
    path.save(files.path)
    engine = cast(Engine, None)  # the input gives the noise, so none is asked
    write_first_cv(config, files, path, (path.images[0], path.images[-1]), engine, heard)
    return files, heard.sentences


def test_a_path_that_turns_back_gets_a_cv_that_rises_along_it(tmp_path: Path) -> None:
    path = around()
    files, said = first_cv(tmp_path, settings(), path)
    assert len(said) == 2
    assert "The CV depends on 12 of 12 atoms" in said[0]
    assert "The linear CV decreases by 0.21 along the minimum energy path" in said[1]
    first = CollectiveVariable.load(files.cv(0))
    assert first.kind == "autoencoder"
    assert energy.measure_fall(path, first) < 1e-3
    xi = energy.values_along(path, first)
    np.testing.assert_allclose(xi, path.curve.parameter, atol=0.03)


def test_a_path_along_which_the_linear_cv_rises_keeps_it(tmp_path: Path) -> None:
    files, said = first_cv(tmp_path, settings(), arc(basis(2)))
    assert CollectiveVariable.load(files.cv(0)).kind == "linear"
    assert len(said) == 1


def test_a_cv_that_does_not_rise_is_refused(tmp_path: Path) -> None:
    """With one component, a network gives at best its projection, which turns back."""
    with pytest.raises(
        UserError, match=r"cv-0, .* decreases by .* raise path\.structures"
    ) as caught:
        first_cv(tmp_path, settings(components=1), around())
    assert "\n" not in str(caught.value)


def test_a_run_keeps_its_grid_and_its_guard(tmp_path: Path) -> None:
    path = arc(basis(2))
    files, _ = first_cv(tmp_path, settings(), path)
    config = with_defaults(settings(), files, 1)
    expected = energy.compute_margins(path, CollectiveVariable.load(files.cv(0)), 300 * 8.617e-5)
    assert config.sampling.margin == pytest.approx(expected, abs=1e-3)
    lower, upper, bins = sampling.make_grid(config.sampling)
    assert (lower, upper) == pytest.approx((-expected[0], 1 + expected[1]), abs=0.006)
    assert (upper - lower) / bins == pytest.approx(0.01)
    limit_A = guard.choose_limit("auto", CollectiveVariable.load(files.cv(0)), noise_A2=0.002)
    assert config.sampling.atom_deviation_limit_A == limit_A
    kept = {"margin": [0.3, 0.4], "atom_deviation_limit_A": 1.25}
    (files.iteration(1) / "defaults.json").write_text(json.dumps(kept))
    again = with_defaults(settings(), files, 1).sampling
    assert (again.margin, again.atom_deviation_limit_A) == ((0.3, 0.4), 1.25)
    for given in (0.1, (0.1, 0.25)):
        chosen = settings(margin=given, atom_deviation_limit_A="off")
        assert with_defaults(chosen, files, 2) == chosen
        assert not files.iteration(2).exists()
    assert sampling.make_grid(chosen.sampling) == pytest.approx((-0.1, 1.25, 135))


def sampled_profile(
    margins: tuple[float, float], rises_kT: tuple[float, float], between_kT: float = 0.0
) -> Profile:
    """Two states, a barrier with a basin in it, and what A rises by up to each end."""
    grid = Grid(-margins[0], 1.0 + margins[1], 100)
    kT, xi = 300 * 8.617e-5, grid.nodes
    inside = 20 * np.sin(np.pi * xi) ** 2 - between_kT * np.exp(-(((xi - 0.3) / 0.06) ** 2))
    A = np.where(xi < 0, rises_kT[0] * (xi / margins[0]) ** 2, inside)
    A = kT * np.where(xi > 1, rises_kT[1] * ((xi - 1) / margins[1]) ** 2, A)
    one, value = np.ones(len(xi)), Estimate(0.0, 0.0, "eV")
    return Profile("ae.node-0", grid, kT, (0.0, 1.0), A, A, one, one, one, value, value, value)


@pytest.mark.parametrize("between_kT", [0.0, 25.0])  # of a basin that is lower than the states
def test_a_state_that_is_wider_than_expected_gets_a_wider_grid(
    between_kT: float, tmp_path: Path
) -> None:
    path = arc(basis(2))
    files, _ = first_cv(tmp_path, settings(), path)
    first = with_defaults(settings(), files, 1).sampling.margin
    assert isinstance(first, tuple)
    longest = 0.85 * 0.5  # of the distance to the barrier, which is in the middle
    margin = first
    for n, rises_kT, expected in (
        (1, (6.0, 6.0), first),
        (2, (1.5, 6.0), (min(2 * first[0], longest), first[1])),
        (3, (6.0, 6.0), (min(2 * first[0], longest), first[1])),  # it stays as wide
        (4, (1.5, np.nan), (longest, first[1])),
    ):
        write_fes(files.iteration(n) / "fes.dat", sampled_profile(margin, rises_kT, between_kT))
        shutil.copy(files.cv(0), files.cv(n))
        found = with_defaults(settings(), files, n + 1).sampling.margin
        assert isinstance(found, tuple)
        assert found == pytest.approx(expected, abs=0.02)
        margin = found


def test_functions_and_most_components_follow_the_length(tmp_path: Path) -> None:
    path = around()  # of 1.5 pi: 4.7 angstrom
    assert choose_functions(settings(), path) == 10
    assert choose_functions(settings(), arc(basis(2))) == 6
    check_components(settings(components=9), path)
    check_components(settings(components=10))  # it is not known yet
    with pytest.raises(UserError, match=r"the mean path has 9; set cv\.functions = 11"):
        first_cv(tmp_path, settings(components=10), path)


def test_molecules_have_no_path_to_find_the_grid_by(tmp_path: Path) -> None:
    config = with_defaults(settings(atom_deviation_limit_A="off"), RunDirectory(tmp_path), 1)
    assert config.sampling.margin == (0.2, 0.2)
