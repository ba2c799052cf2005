"""Principal components against an exact diagonalisation, and the elbow on known spectra."""

import numpy as np
import pytest

from plumed_cv.common.errors import UserError
from plumed_cv.cv import pca


def snapshots(n: int = 3000, n_atoms: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Three strong directions of known variance in weak noise, all free of translation."""
    rng = np.random.default_rng(3)
    raw = rng.normal(size=(3, n_atoms, 3))
    raw -= raw.mean(axis=1, keepdims=True)
    directions = np.linalg.qr(raw.reshape(3, -1).T)[0].T
    weights = rng.normal(size=(n, 3)) * np.sqrt([1.0, 0.5, 0.2])
    noise = rng.normal(scale=0.05, size=(n, n_atoms, 3))
    noise -= noise.mean(axis=1, keepdims=True)
    return (weights @ directions).reshape(n, n_atoms, 3) + noise, directions


def test_equals_the_diagonalised_covariance() -> None:
    u, directions = snapshots()
    found = pca.fit(u, 5)
    flat = u.reshape(len(u), -1)
    values = np.linalg.eigvalsh(np.cov(flat.T))[::-1]  # Eqs. 1-2
    np.testing.assert_allclose(found.variances[:3], values[:3], rtol=1e-6)
    assert found.total_variance == pytest.approx(values.sum(), rel=1e-9)
    overlap = np.linalg.svd(found.components[:3] @ directions.T, compute_uv=False)
    np.testing.assert_allclose(overlap, 1, atol=1e-3)
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(found.components.reshape(5, -1, 3).sum(axis=1), 0, atol=1e-12)


def test_large_data_are_read_in_pieces_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    u, _ = snapshots()
    whole = pca.fit(u, 3)
    monkeypatch.setattr(pca, "_MOST_NUMBERS", 1000)
    pieces = pca.fit(u, 3)
    np.testing.assert_allclose(pieces.variances, whole.variances, rtol=1e-9)
    np.testing.assert_allclose(pieces.total_variance, whole.total_variance, rtol=1e-9)
    np.testing.assert_allclose(pieces.mean, whole.mean, atol=1e-12)
    turns = pieces.components @ whole.components.T
    np.testing.assert_allclose(abs(turns), np.eye(3), atol=1e-8)


def test_a_straight_mean_path_has_one_component() -> None:
    """Components from rounding would contain translation, which a model file refuses."""
    _, directions = snapshots()
    s = np.linspace(0.0, 1.0, 400)
    u = (s[:, None] * directions[0]).reshape(400, 20, 3).astype(np.float32)
    found, _ = pca.fit_mean_path(u, s, 5)
    assert found.components.shape == (1, 60)
    np.testing.assert_allclose(abs(found.components[0] @ directions[0]), 1.0, atol=1e-6)
    np.testing.assert_allclose(found.components.reshape(-1, 3).sum(axis=0), 0.0, atol=1e-12)


def test_projection_and_localisation() -> None:
    u, _ = snapshots()
    found = pca.fit(u, 4)
    x = found.project(u)
    expected = (u.reshape(len(u), -1) - found.mean) @ found.components.T
    np.testing.assert_allclose(x, expected, atol=1e-5)
    # Eq. 3: the squares sum to the variance within the components.
    assert np.sum(found.localisation**2) == pytest.approx(found.variances.sum())


def test_elbow_is_the_number_of_strong_directions() -> None:
    u, _ = snapshots()
    assert pca.elbow(pca.fit(u, 30).fraction_of_variance) == 3


@pytest.mark.parametrize("kind", ["few", "constant"])
def test_too_little_to_learn_from(kind: str) -> None:
    u = np.ones((200, 20, 3)) if kind == "constant" else snapshots(4)[0]
    sentence = "do not differ" if kind == "constant" else "need more than 4 structures"
    with pytest.raises(UserError, match=sentence):
        pca.fit(u, 10)
