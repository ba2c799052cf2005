"""Collective variables as estimators in the sense of scikit-learn: fit, transform, save.

They accept structures as ASE `Atoms`, as trajectory files, or as arrays of displacements, and can
be part of a `sklearn.pipeline.Pipeline`. Lengths are in angstrom. M structures of N atoms, d latent
dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import missing
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.cv.projection import Chosen, linear, select
from plumed_cv.cv.training import RECIPES
from plumed_cv.structures import (
    cell_of,
    check_atoms,
    check_end_states,
    check_order,
    check_range,
    drift_of,
    held_atoms,
    orient,
)
from plumed_cv.structures.frame import Array, align, displacements, make_whole

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted
except ModuleNotFoundError:
    raise missing("sklearn") from None

# One or more structures, trajectory files, or displacements of shape (M, N, 3) or (M, 3N).
Structures = Atoms | Sequence[Atoms] | Path | str | Sequence[Path | str] | NDArray[Any]

MOST_COMPONENTS = 12  # the default, as for `plumed-cv train`


class _Reference:
    """The atoms of the coordinates, and their positions in the displacement frame."""

    def __init__(self, reference: Atoms, atoms: Chosen, alignment: str) -> None:
        if alignment not in ("none", "optimal"):
            raise UserError(f"alignment = {alignment!r}: choose 'none' or 'optimal'.")
        turned = orient(reference)
        self.symbols = tuple(turned.get_chemical_symbols())
        self.serials = select(atoms, self.symbols, held_atoms(reference))
        self.drift = drift_of(reference)
        self.species = tuple(self.symbols[serial - 1] for serial in self.serials)
        self.cell = cell_of(turned)
        self.is_aligned = alignment == "optimal"
        self.reference_positions: Array = turned.positions[self.serials - 1]
        if self.is_aligned and self.cell.any():
            self.reference_positions = make_whole(
                self.reference_positions, self.cell, self.reference_positions
            )

    def displacements(self, positions: NDArray[Any], cell: NDArray[Any]) -> Array:
        """Displacement-frame coordinates, shape (..., N, 3), angstrom."""
        if self.is_aligned:
            return align(positions, cell, self.reference_positions)[0]
        return displacements(positions, cell, self.reference_positions, self.cell, self.drift)

    def read(self, X: Structures, of: str, fewest: int = 1) -> NDArray[Any]:
        """Displacements of structures, shape (M, 3N), angstrom, for the estimator `of`."""
        items: list[Any] = [X] if isinstance(X, Atoms | Path | str) else []
        if isinstance(X, Sequence):
            items = items or list(X)
        if items and all(isinstance(item, Path | str) for item in items):
            from plumed_cv.structures.trajectory import read_displacements  # mdtraj takes a second

            found = read_displacements(items, self, species=self.symbols)
            return found.reshape(len(found), -1)
        if items and all(isinstance(item, Atoms) for item in items):
            return np.stack([self._of_atoms(number, item) for number, item in enumerate(items, 1)])
        array = check_array(
            X,
            dtype=[np.float64, np.float32],
            allow_nd=True,
            ensure_min_samples=fewest,
            estimator=of,
        )
        array = array.reshape(len(array), -1)
        wanted = 3 * len(self.serials)
        if array.shape[1] != wanted:
            n = len(self.serials)
            raise ValueError(
                f"X has {array.shape[1]} features, but {of} is expecting {wanted} features as "
                f"input: displacements of {n} atoms in angstrom, shape (M, {n}, 3) or "
                f"(M, {wanted}); or give structures as ase.Atoms"
            )
        return np.asarray(array)

    def _of_atoms(self, number: int, atoms: Atoms) -> Array:
        try:
            check_atoms(atoms, self.symbols)
            turned = orient(atoms)
            chosen = turned.positions[self.serials - 1]
            return self.displacements(chosen, cell_of(turned)).ravel()
        except UserError as error:
            raise UserError(f"structure {number}: {str(error).rstrip('.')}.") from None


class _Transformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Common base of the estimators."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags


class DisplacementFrame(_Transformer):
    """Displacements of structures from a reference, for scikit-learn's own estimators.

    Parameters
    ----------
    reference
        The structure from which displacements are measured; the reference follows the cell.
    atoms
        Selected atoms: "all", "heavy" (no hydrogen), or PLUMED's serial numbers, "1-10,15".
    alignment
        "none"; "optimal" first rotates each structure onto the reference, for molecules.

    Attributes
    ----------
    n_features_in_
        Number of coordinates 3N.

    Examples
    --------
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.pipeline import make_pipeline
    >>> components = make_pipeline(DisplacementFrame(initial), PCA(5))  # doctest: +SKIP
    """

    def __init__(
        self,
        reference: Atoms,
        *,
        atoms: Chosen = "all",
        alignment: str = "none",
    ) -> None:
        self.reference = reference
        self.atoms = atoms
        self.alignment = alignment

    def fit(self, X: Structures | None = None, y: object = None) -> Self:
        """Read the reference. The structures X are checked if they are given; `y` is ignored.

        Raises
        ------
        UserError
            If the reference is unsuitable, or X has other atoms.
        """
        reference = _Reference(self.reference, self.atoms, self.alignment)
        if X is not None:
            reference.read(X, type(self).__name__)
        self.reference_ = reference
        self.n_features_in_ = 3 * len(reference.serials)
        return self

    def transform(self, X: Structures) -> NDArray[Any]:
        """Displacements of structures, shape (M, 3N), angstrom: x1, y1, z1, x2, ...

        Raises
        ------
        UserError
            If X has other atoms than the reference.
        """
        check_is_fitted(self, "reference_")
        return self.reference_.read(X, type(self).__name__)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Names of the coordinates: x1, y1, z1, x2, ..., with PLUMED's serial numbers."""
        check_is_fitted(self, "reference_")
        serials = self.reference_.serials
        return np.array([f"{axis}{serial}" for serial in serials for axis in "xyz"], dtype=object)


class _CV(_Transformer):
    """A collective variable between two end states; `fit` sets `cv_`."""

    initial: Atoms
    final: Atoms
    atoms: Chosen
    alignment: str
    reference_: _Reference
    cv_: CollectiveVariable

    def _line(self) -> tuple[_Reference, CollectiveVariable]:
        """The reference, and the linear CV between the end states."""
        initial, final = orient(self.initial), orient(self.final)
        check_end_states(initial, final)
        if self.alignment == "none":
            check_order(initial, final, "give final the order of initial.")
            check_range(initial, final)
        reference = _Reference(initial, self.atoms, self.alignment)
        ends = (initial.positions, final.positions)
        line = linear(
            reference.symbols,
            reference.cell,
            *ends,
            self.alignment,
            reference.serials,
            reference.drift,
        )
        return reference, line

    def transform(self, X: Structures) -> Array:
        """Values of the collective variable, shape (M, d): 0 at the initial state, 1 at the final.

        Parameters
        ----------
        X
            Structures, trajectory files, or displacements, as for `fit`.

        Raises
        ------
        NotFittedError
            Before `fit`.
        UserError
            If structures have other atoms.
        ValueError
            If an array has another number of features.
        """
        check_is_fitted(self, "cv_")
        u = self.reference_.read(X, type(self).__name__)
        return self.cv_.encode(self.cv_.components(u.reshape(len(u), -1, 3)))

    def inverse_transform(self, X: NDArray[Any]) -> Array:
        """Displacements of the mean path at values (M, d) of the CV, shape (M, 3N), angstrom."""
        check_is_fitted(self, "cv_")
        values = check_array(X, dtype=np.float64)
        return self.cv_.path(values).reshape(len(values), -1)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Names of the latent dimensions as in PLUMED: node-0, node-1, ..."""
        check_is_fitted(self, "cv_")
        return np.array([f"node-{k}" for k in range(self.cv_.n_latent)], dtype=object)

    def save(self, path: Path | str) -> None:
        """Write the model file for the PLUMED action AUTOENCODER and for `load_cv`.

        Raises
        ------
        NotFittedError
            Before `fit`.
        UserError
            If the file cannot be written.
        """
        check_is_fitted(self, "cv_")
        self.cv_.save(path)


class LinearCV(_CV):
    """Projection on the difference of two end states: 0 at the first, 1 at the second.

    Parameters
    ----------
    initial, final
        End states: the same atoms in the same order and cell.
    atoms, alignment
        As for `DisplacementFrame`.

    Attributes
    ----------
    cv_
        The collective variable, a `CollectiveVariable`.
    n_features_in_
        Number of coordinates 3N.
    """

    def __init__(
        self,
        initial: Atoms,
        final: Atoms,
        *,
        atoms: Chosen = "all",
        alignment: str = "none",
    ) -> None:
        self.initial = initial
        self.final = final
        self.atoms = atoms
        self.alignment = alignment

    def fit(self, X: Structures | None = None, y: object = None) -> Self:
        """Compute the line between the end states. X is checked if given; `y` is ignored.

        Raises
        ------
        UserError
            If the end states do not belong together, or X has other atoms.
        """
        reference, line = self._line()
        if X is not None:
            reference.read(X, type(self).__name__)
        self.reference_, self.cv_ = reference, line
        self.n_features_in_ = 3 * line.n_atoms
        return self


class AutoencoderCV(_CV):
    """A collective variable learned by an autoencoder from structures between two end states.

    Parameters
    ----------
    initial, final
        End states, where the CV is 0 and 1: the same atoms in the same order and cell.
    atoms, alignment
        As for `DisplacementFrame`.
    recipe
        "denoising", or "paper" for that of Baima et al. (Sec. 3.1); see `cv.training.RECIPES`.
    n_components
        Number of principal components D; if None, 12 or the number that the mean path has.
    n_functions
        Number of polynomials of the mean path; 6 if None.
    n_latent
        Number of latent dimensions d; more than one needs the recipe "paper".
    hidden
        Widths of the encoder's hidden layers; if None, two layers of the recipe.
    activation
        Activation of the hidden layers: relu, tanh, elu, softplus, silu or sigmoid; that of the
        recipe
        if None.
    restarts
        Number of trained networks; the one with the lowest loss is kept.
    device
        "cpu", "cuda" or "auto".
    random_state
        Seed of weights and batches.

    Attributes
    ----------
    cv_
        The collective variable, a `CollectiveVariable`.
    components_
        The principal components, shape (D, 3N).
    loss_curve_
        Mean square error of each epoch, A^2, shape (epochs,).
    misalignment_
        Mean of 1 - cos^2 between the CV's gradient and the mean path at the end.
    n_features_in_
        Number of coordinates 3N.

    Examples
    --------
    >>> model = AutoencoderCV(initial, final, random_state=1)  # doctest: +SKIP
    >>> xi = model.fit(snapshots).transform(snapshots)  # doctest: +SKIP
    >>> model.save("cv.safetensors")  # doctest: +SKIP
    """

    def __init__(
        self,
        initial: Atoms,
        final: Atoms,
        *,
        atoms: Chosen = "all",
        alignment: str = "none",
        recipe: str = "denoising",
        n_components: int | None = None,
        n_functions: int | None = None,
        n_latent: int = 1,
        hidden: tuple[int, ...] | None = None,
        activation: str | None = None,
        restarts: int = 1,
        device: str = "cpu",
        random_state: Any = 0,
    ) -> None:
        self.initial = initial
        self.final = final
        self.atoms = atoms
        self.alignment = alignment
        self.recipe = recipe
        self.n_components = n_components
        self.n_functions = n_functions
        self.n_latent = n_latent
        self.hidden = hidden
        self.activation = activation
        self.restarts = restarts
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        X: Structures,
        y: object = None,
        *,
        coordinate: NDArray[Any] | None = None,
        progress: Callable[[int, int, float], None] = lambda epoch, epochs, loss: None,
    ) -> Self:
        """Learn the collective variable.

        Parameters
        ----------
        X
            Structures along the process: `Atoms`, trajectory files, or displacements from
            `initial` as by `DisplacementFrame`, shape (M, N, 3) or (M, 3N), angstrom.
        y
            Ignored.
        coordinate
            Position of each structure along the process, shape (M,), 0 and 1 at the end states: the
            path parameter or an earlier CV. If None, the projection on the line between the end
            states.
        progress
            Called after every epoch with the completed epochs, all epochs, and the mean square
            error (A^2).

        Raises
        ------
        UserError
            If the end states or structures do not belong together, a setting is impossible, and as
            for `cv.learning.learn`.
        ValueError
            If an array has another number of features, or values are not finite.
        """
        from plumed_cv.cv import learning  # torch takes seconds to import

        if self.recipe not in RECIPES:
            raise UserError(f"recipe = {self.recipe!r}: choose one of {', '.join(RECIPES)}.")
        training = replace(
            RECIPES[self.recipe],
            hidden=None if self.hidden is None else tuple(self.hidden),
            functions=self.n_functions,
            n_latent=self.n_latent,
            restarts=self.restarts,
            device=self.device,
            seed=int(self.random_state)
            if isinstance(self.random_state, int | np.integer)
            else int(check_random_state(self.random_state).randint(2**31 - 1)),
        )
        if self.activation is not None:
            training = replace(training, activation=self.activation)
        reference, line = self._line()
        u = reference.read(X, type(self).__name__, fewest=2)
        if coordinate is not None:
            coordinate = np.asarray(coordinate, dtype=np.float64)
        found, principal, network = learning.learn(
            u.reshape(len(u), -1, 3),
            line,
            self.n_components or training.limited(MOST_COMPONENTS),
            training,
            progress,
            coordinate=coordinate,
        )
        self.reference_, self.cv_ = reference, found
        self.components_ = principal.components
        self.loss_curve_ = network.losses
        self.misalignment_ = network.misalignment
        self.n_features_in_ = u.shape[1]
        return self
