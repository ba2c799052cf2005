"""Collective variables as scikit-learn's estimators: known answers, its own checks, refusals."""

import pickle
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import plumed_cv as pcv
from plumed_cv import cv
from plumed_cv.common.errors import UserError
from plumed_cv.structures import cell_of
from tests import vacancy

N_FEATURES = 12  # of four atoms


def noisy_line(n: int = 300) -> tuple[Atoms, Atoms, list[Atoms], NDArray[np.float64]]:
    """Noisy structures on the line between the vacancy's end states, and their positions."""
    initial, final = vacancy.end_states()
    rng = np.random.default_rng(5)
    places = rng.uniform(size=n)
    structures = []
    for place in places:
        atoms = initial.copy()
        atoms.positions += place * (final.positions - initial.positions)
        atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        structures.append(atoms)
    return initial, final, structures, places


def test_a_learned_cv_follows_the_process_and_is_saved(tmp_path: Path) -> None:
    """On a straight path, xi is the position; noise of 0.03 A on 2.5 A changes it by 0.012."""
    initial, final, structures, places = noisy_line()
    model = pcv.AutoencoderCV(initial, final, n_components=3, random_state=1)
    epochs: list[int] = []
    found = model.fit(structures, progress=lambda epoch, *_: epochs.append(epoch))
    assert found is model
    xi = model.transform(structures)
    assert xi.shape == (300, 1)
    assert float(np.std(xi[:, 0] - places)) < 0.04
    np.testing.assert_allclose(model.transform([initial, final])[:, 0], [0, 1], atol=1e-9)
    assert model.n_features_in_ == 3 * 53
    assert model.components_.shape == (3, 159)
    assert len(model.loss_curve_) == len(epochs) == epochs[-1]
    assert model.loss_curve_[-1] < 0.1 * model.loss_curve_[0]
    model.save(tmp_path / "cv.safetensors")
    loaded = pcv.load_cv(tmp_path / "cv.safetensors")
    positions = np.stack([atoms.positions for atoms in structures[:5]])
    np.testing.assert_allclose(loaded.value(positions, cell_of(initial)), xi[:5], atol=1e-9)
    assert pcv.similarity(loaded, pcv.LinearCV(initial, final).fit().cv_) < 0.01


def test_all_kinds_of_structures_are_the_same_to_it(tmp_path: Path) -> None:
    initial, final, structures, _ = noisy_line(20)
    line = pcv.LinearCV(initial, final).fit()
    expected = line.transform(structures)
    u = pcv.DisplacementFrame(initial).fit().transform(structures)
    assert u.shape == (20, 159)
    np.testing.assert_allclose(line.transform(u), expected, atol=1e-12)
    np.testing.assert_allclose(line.transform(u.reshape(20, 53, 3)), expected, atol=1e-12)
    ase.io.write(tmp_path / "md.xyz", structures, format="extxyz")
    np.testing.assert_allclose(line.transform(tmp_path / "md.xyz"), expected, atol=1e-6)
    np.testing.assert_allclose(line.transform(structures[0]), expected[:1], atol=1e-12)
    np.testing.assert_allclose(line.transform(line.inverse_transform(expected)), expected)
    # A crystal that is turned as a whole is the same structure.
    turned = structures[0].copy()
    turned.rotate(40, "x", rotate_cell=True)
    np.testing.assert_allclose(line.transform(turned), expected[:1], atol=1e-9)
    bare = cv.linear(initial.symbols, cell_of(initial), initial.positions, final.positions)
    np.testing.assert_array_equal(line.cv_.pca_components, bare.pca_components)


def test_pipelines_and_clones() -> None:
    initial, final, structures, _ = noisy_line(100)
    model = pcv.AutoencoderCV(initial, final, n_components=2, random_state=3)
    xi = model.fit(structures).transform(structures)
    again = clone(model)
    assert not hasattr(again, "cv_")
    np.testing.assert_array_equal(again.fit(structures).transform(structures), xi)
    pipeline = make_pipeline(pcv.DisplacementFrame(initial), clone(model))
    np.testing.assert_allclose(pipeline.fit(structures).transform(structures), xi, atol=1e-9)
    assert pipeline.get_feature_names_out().tolist() == ["node-0"]
    pipeline.set_params(autoencodercv__random_state=4)
    assert np.abs(pipeline.fit(structures).transform(structures) - xi).max() > 1e-6
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.transform(structures), xi)
    components = make_pipeline(pcv.DisplacementFrame(initial), PCA(4)).fit(structures)
    assert components.transform(structures[:7]).shape == (7, 4)
    names = pcv.DisplacementFrame(initial).fit().get_feature_names_out()
    assert names[:4].tolist() == ["x1", "y1", "z1", "x2"]


def test_some_atoms_of_a_molecule() -> None:
    """A rotation does not change the CV, and neither does the hydrogen atom."""
    initial = Atoms("CONH", [[0, 0, 0], [1.2, 0, 0], [-0.7, 1.1, 0], [-0.3, 2.0, 0.4]])
    final = initial.copy()
    final.positions[1] += [0.1, 0.3, 0.5]
    line = pcv.LinearCV(initial, final, atoms="heavy", alignment="optimal").fit()
    assert line.n_features_in_ == 9
    turned = final.copy()
    turned.rotate(70, (1, 2, 3))
    turned.positions[3] += 1.0
    np.testing.assert_allclose(line.transform([initial, final, turned]), [[0], [1], [1]], atol=1e-9)


def test_refusals() -> None:
    initial, final, structures, _ = noisy_line(30)
    model = pcv.AutoencoderCV(initial, final)
    with pytest.raises(NotFittedError):
        model.transform(structures)
    with pytest.raises(NotFittedError):
        model.save("cv.safetensors")
    other = structures[0].copy()
    other.symbols[4] = "Ni"
    with pytest.raises(UserError, match=r"structure 2: its atom 5 is Ni, but Fe in the end states"):
        model.fit([structures[0], other])
    with pytest.raises(ValueError, match="X has 6 features, but LinearCV is expecting 159"):
        pcv.LinearCV(initial, final).fit(np.zeros((3, 2, 3)))
    with pytest.raises(UserError, match="same structure"):
        pcv.LinearCV(initial, initial).fit()
    with pytest.raises(UserError, match="choose one of denoising, paper"):
        pcv.AutoencoderCV(initial, final, recipe="paint").fit(structures)
    with pytest.raises(UserError, match="'none' or 'optimal'"):
        pcv.DisplacementFrame(initial, alignment="best").fit()


def checked(estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scikit-learn check an estimator.

    Its data have as many features as each check likes. They are mapped onto twelve, linearly and
    in the same way each time, and lose their common offset: 100 angstrom in one of the checks.
    """

    def displacements(_: object, X: Any, **kernel: object) -> Any:
        if np.ndim(X) != 2:
            return X
        mapping = np.random.default_rng(1).normal(size=(X.shape[1], N_FEATURES))
        if len(mapping) > 1:
            mapping -= mapping.mean(axis=0)
        return X @ mapping

    monkeypatch.setattr(estimator_checks, "_enforce_estimator_tags_X", displacements)
    skipped = {"check_array_api_input": "needs SCIPY_ARRAY_API"}
    done = estimator_checks.check_estimator(estimator, expected_failed_checks=skipped)
    passed = [check for check in done if check["status"] == "passed"]
    assert len(passed) > 40


def four_atoms() -> tuple[Atoms, Atoms]:
    initial = Atoms("FeNiFeNi", [[0, 0, 0], [2.5, 0, 0], [0, 2.5, 0], [0, 0, 2.5]])
    final = initial.copy()
    final.positions += np.random.default_rng(0).normal(scale=0.3, size=(4, 3))
    return initial, final


@pytest.mark.filterwarnings("ignore")  # scikit-learn's, on checks that are skipped
@pytest.mark.parametrize("kind", ["frame", "line"])
def test_scikit_learns_checks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    initial, final = four_atoms()
    frame = pcv.DisplacementFrame(initial)
    checked(frame if kind == "frame" else pcv.LinearCV(initial, final), monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks_of_the_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """One component and two functions, because some checks have ten samples."""
    initial, final = four_atoms()
    checked(pcv.AutoencoderCV(initial, final, n_functions=2, n_components=1), monkeypatch)
