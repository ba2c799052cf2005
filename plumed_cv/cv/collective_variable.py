"""The collective variable: value, gradient, mean path, deviation from it, and the model file.

It uses only NumPy, in double precision, and is the reference for the C++ action AUTOENCODER.
Lengths are in angstrom, and the collective variable has no unit. N atoms, D components, d latent
dimensions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

import plumed_cv
from plumed_cv.common.errors import UserError
from plumed_cv.cv import model_file
from plumed_cv.cv.network import ACTIVATIONS, Layer, forward, layers_of
from plumed_cv.structures.frame import (
    Array,
    Drift,
    align,
    complete_cell,
    displacements,
    make_whole,
    periodic_directions,
    turn_back,
)


@dataclass(frozen=True)
class CollectiveVariable:
    """A collective variable xi(q) = scale (f_e(U_D^T (u(q) - mean)) - shift), Secs. 2.2 and 3.3.

    Parameters
    ----------
    serials
        PLUMED serial numbers (from 1) of the atoms, shape (N,).
    species
        Chemical symbol of each atom.
    reference_positions, reference_cell
        The reference structure of the displacement frame, shapes (N, 3) and (3, 3), angstrom.
    pca_mean, pca_components
        Mean displacement, shape (3N,), angstrom, and orthonormal rows U_D^T, shape (D, 3N).
    encoder, decoder
        The layers f_e: D -> d and f_d: d -> D; all but the last have the activation.
    activation
        A name in `ACTIVATIONS`.
    latent_shift, latent_scale
        The scaling for which xi(q0) = 0 and xi(q1) = 1, shape (d,).
    end_displacements
        Displacement-frame coordinates of the end states q0 and q1, shape (2, N, 3), angstrom.
    kind
        "linear" or "autoencoder".
    alignment
        "none", or "optimal" for molecules: each structure is first rotated onto the reference. The
        reference then has no cell.
    drift
        "removed": the mean displacement of the atoms is subtracted. "kept": it is not, because
        fixed atoms hold the structure.
    provenance
        Origin of the model; anything that JSON can contain.

    Raises
    ------
    UserError
        If there is no such alignment or drift, or if the reference of an alignment has a cell.
    """

    serials: NDArray[np.int64]
    species: tuple[str, ...]
    reference_positions: Array
    reference_cell: Array
    pca_mean: Array
    pca_components: Array
    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    activation: str
    latent_shift: Array
    latent_scale: Array
    end_displacements: Array
    kind: str = "autoencoder"
    alignment: str = "none"
    drift: Drift = "removed"
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.alignment not in ("none", "optimal"):
            raise UserError(f"alignment = {self.alignment!r}: choose 'none' or 'optimal'.")
        if self.is_aligned and np.any(self.reference_cell):
            raise UserError(
                "alignment = 'optimal': a reference for alignment has no cell; use 'none', or "
                "structures without a cell."
            )
        if self.drift not in ("removed", "kept"):
            raise UserError(f"drift = {self.drift!r}: choose 'removed' or 'kept'.")
        if self.is_aligned and self.drift == "kept":
            raise UserError(
                "alignment = 'optimal' rotates and moves structures, but fixed atoms hold them; "
                "choose alignment = 'none'."
            )

    def __repr__(self) -> str:
        widths = [self.n_components, *(len(layer.bias) for layer in self.encoder)]
        return (
            f"CollectiveVariable({self.kind}, {self.n_atoms} atoms, "
            f"{'-'.join(map(str, widths))}, {self.activation})"
        )

    @property
    def is_aligned(self) -> bool:
        """Whether structures are rotated onto the reference."""
        return self.alignment == "optimal"

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return len(self.serials)

    @property
    def n_components(self) -> int:
        """Number of principal components D."""
        return len(self.pca_components)

    @property
    def n_latent(self) -> int:
        """Number of latent dimensions d."""
        return len(self.latent_shift)

    @cached_property
    def masses(self) -> Array:
        """Standard atomic masses, shape (N,), amu."""
        return np.asarray([atomic_masses[atomic_numbers[s]] for s in self.species])

    def displacements(self, positions: NDArray[Any], cell: NDArray[Any]) -> Array:
        """Displacement-frame coordinates, shape (..., N, 3), angstrom; see `frame`."""
        if self.is_aligned:
            return align(positions, cell, self.reference_positions)[0]
        return displacements(
            positions, cell, self.reference_positions, self.reference_cell, self.drift
        )

    def components(self, displacements: NDArray[Any]) -> Array:
        """Principal components x of displacements: (..., N, 3) -> (..., D), angstrom."""
        flat = displacements.reshape(*displacements.shape[:-2], 3 * self.n_atoms)
        return np.asarray((flat - self.pca_mean) @ self.pca_components.T)

    def encode(self, components: NDArray[Any]) -> Array:
        """Collective variable of principal components: (..., D) -> (..., d)."""
        latent = forward(self.encoder, self.activation, components)
        return (latent - self.latent_shift) * self.latent_scale

    def encoder_jacobian(self, components: NDArray[Any]) -> Array:
        """Jacobian d xi / d x, shape (..., d, D), 1/angstrom."""
        derivative = ACTIVATIONS[self.activation][1]
        inputs = components
        jacobian = np.broadcast_to(
            np.eye(self.n_components), (*components.shape, self.n_components)
        )
        for k, layer in enumerate(self.encoder):
            z = inputs @ layer.weight.T + layer.bias
            jacobian = layer.weight @ jacobian
            if k + 1 < len(self.encoder):
                jacobian = derivative(z)[..., None] * jacobian
                inputs = ACTIVATIONS[self.activation][0](z)
        return np.asarray(self.latent_scale[:, None] * jacobian)

    @property
    def has_curvature(self) -> bool:
        """Whether second derivatives describe changes of the gradient: not across kinks of relu."""
        return self.activation != "relu" or len(self.encoder) == 1

    def flow_divergence(self, components: NDArray[Any]) -> Array:
        """Divergence of grad xi/|grad xi|^2, (..., D) -> (...), no unit; d = 1, no alignment.

        One pass through the encoder carries the Laplacian and the second derivative along the
        gradient: div(g/|g|^2) = (lap xi - 2 g.H.g/|g|^2)/|g|^2, with the Hessian H. The components
        are orthonormal, so these derivatives equal those in space.
        """
        gradient = self.encoder_jacobian(components)[..., 0, :]  # (..., D)
        function, slope, curvature = ACTIVATIONS[self.activation]
        inputs = components
        # For all nodes: the gradient and the two second derivatives.
        first = np.broadcast_to(np.eye(self.n_components), (*inputs.shape, self.n_components))
        laplacian, along = np.zeros_like(inputs), np.zeros_like(inputs)
        for k, layer in enumerate(self.encoder):
            z = inputs @ layer.weight.T + layer.bias
            first = layer.weight @ first
            laplacian, along = laplacian @ layer.weight.T, along @ layer.weight.T
            if k + 1 < len(self.encoder):
                bend, turn = curvature(z), (first @ gradient[..., None])[..., 0]
                laplacian = slope(z) * laplacian + bend * np.sum(first**2, axis=-1)
                along = slope(z) * along + bend * turn**2
                first = slope(z)[..., None] * first
                inputs = function(z)
        square = np.sum(gradient**2, axis=-1)
        scale = self.latent_scale[0]
        return np.asarray(scale * (laplacian - 2.0 * along / square[..., None])[..., 0] / square)

    def decode(self, value: NDArray[Any]) -> Array:
        """Principal components of the mean path at values: (..., d) -> (..., D), angstrom."""
        latent = np.asarray(value) / self.latent_scale + self.latent_shift
        return forward(self.decoder, self.activation, latent)

    def path(self, value: NDArray[Any]) -> Array:
        """Displacements of the mean path q^(xi): (..., d) -> (..., N, 3), angstrom."""
        flat = self.decode(value) @ self.pca_components + self.pca_mean
        return flat.reshape(*flat.shape[:-1], self.n_atoms, 3)

    def value(self, positions: NDArray[Any], cell: NDArray[Any]) -> Array:
        """Collective variable of structures: positions (..., N, 3), cell (3, 3) -> (..., d)."""
        return self.encode(self.components(self.displacements(positions, cell)))

    def gradient(self, positions: NDArray[Any], cell: NDArray[Any]) -> Array:
        """Gradient d xi / d r, shape (..., d, N, 3), 1/angstrom."""
        if not self.is_aligned:
            return self.gradient_of(self.displacements(positions, cell))
        u, rotations = align(positions, cell, self.reference_positions)
        return np.asarray(self.gradient_of(u) @ rotations[..., None, :, :])

    def gradient_of(self, displacements: NDArray[Any]) -> Array:
        """Gradient d xi / d r at displacements (..., N, 3), shape (..., d, N, 3), 1/angstrom.

        With alignment, the gradient is in the orientation of the reference.
        """
        jacobian = self.encoder_jacobian(self.components(displacements))
        flat = jacobian @ self.pca_components
        gradients = flat.reshape(*flat.shape[:-1], self.n_atoms, 3)
        if self.is_aligned:
            gradients = turn_back(gradients, displacements, self.reference_positions)
        return np.asarray(gradients)

    def strain_derivative(self, positions: NDArray[Any], cell: NDArray[Any]) -> Array:
        """Derivative of xi with respect to a strain of cell and atoms, (..., d, 3, 3), no unit.

        Element [k, a, b] belongs to the strain e_ab of r_b -> r_b + sum_a r_a e_ab.
        """
        arms, gradients = self.displacements(positions, cell), self.gradient(positions, cell)
        if self.is_aligned:
            arms = np.asarray(positions)
            if np.any(cell):
                arms = make_whole(arms, cell, self.reference_positions)
        else:  # the part of the reference that does not follow the cell
            full = complete_cell(self.reference_cell)
            still = np.where(periodic_directions(self.reference_cell)[:, None], 0.0, full)
            arms = arms + self.reference_positions @ np.linalg.inv(full) @ still
        return np.asarray(np.einsum("...ia,...kib->...kab", arms, gradients))

    def deviation(self, positions: NDArray[Any], cell: NDArray[Any]) -> Array:
        """Distance from the mean path orthogonal to d xi/d u (Eq. 21), shape (...), angstrom."""
        u = self.displacements(positions, cell)
        x = self.components(u)
        flat = u.reshape(*x.shape[:-1], 3 * self.n_atoms) - self.pca_mean
        off_path = flat - self.decode(self.encode(x)) @ self.pca_components
        gradient = self.encoder_jacobian(x) @ self.pca_components
        overlap = gradient @ off_path[..., None]
        gram = gradient @ np.swapaxes(gradient, -1, -2)
        along = np.swapaxes(gradient, -1, -2) @ (np.linalg.pinv(gram) @ overlap)
        return np.asarray(np.linalg.norm(off_path - along[..., 0], axis=-1))

    def atom_deviations(self, positions: NDArray[Any], cell: NDArray[Any]) -> Array:
        """Distance of each atom from its position on the mean path, shape (..., N), angstrom.

        |u_i - u^_i(xi)|. The largest one is AUTOENCODER's `maxdev`. It shows the jump of one atom
        in a system of any size, whereas `deviation` grows with the thermal motion of all atoms.
        """
        u = self.displacements(positions, cell)
        return np.asarray(np.linalg.norm(u - self.path(self.encode(self.components(u))), axis=-1))

    def gradient_norm(self, positions: NDArray[Any], cell: NDArray[Any]) -> Array:
        """sqrt(det G) with G_kl = grad xi_k . grad xi_l, shape (...); 1/angstrom for d = 1."""
        u = self.displacements(positions, cell)
        if self.is_aligned:
            gradients = self.gradient_of(u)
            rows = gradients.reshape(*gradients.shape[:-2], 3 * self.n_atoms)
        else:  # the same, because the components are orthonormal
            rows = self.encoder_jacobian(self.components(u))
        determinant = np.linalg.det(rows @ np.swapaxes(rows, -1, -2))
        return np.asarray(np.sqrt(np.maximum(determinant, 0.0)))  # rounding may make it negative

    def save(self, path: Path | str) -> None:
        """Write the model file (safetensors), with a check vector that the C++ action verifies.

        Raises
        ------
        UserError
            If the file cannot be written.
        """
        rng = np.random.default_rng(0)
        noise = rng.normal(scale=0.05, size=(self.n_atoms, 3))
        change = rng.uniform(-0.01, 0.01, size=(3, 3))
        strain = np.eye(3) + 0.5 * (change + change.T)  # without a rotation
        check_cell = self.reference_cell @ strain
        scaling = strain if self.reference_cell.any() else np.eye(3)
        middle = self.reference_positions + self.end_displacements.mean(axis=0)
        turn = Rotation.random(random_state=0).as_matrix() if self.is_aligned else np.eye(3)
        check_positions = (middle @ scaling + noise) @ turn
        tensors = {
            "serials": self.serials.astype(np.int64),
            "reference_positions": self.reference_positions,
            "reference_cell": self.reference_cell,
            "pca_mean": self.pca_mean,
            "pca_components": self.pca_components,
            "latent_shift": self.latent_shift,
            "latent_scale": self.latent_scale,
            "end_displacements": self.end_displacements,
            "check_positions": check_positions,
            "check_cell": check_cell,
            "check_value": self.value(check_positions, check_cell),
            "check_gradient": self.gradient(check_positions, check_cell),
            "check_deviation": np.atleast_1d(self.deviation(check_positions, check_cell)),
        }
        for name, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
            for k, layer in enumerate(layers):
                tensors[f"{name}.{k}.weight"] = layer.weight
                tensors[f"{name}.{k}.bias"] = layer.bias
        metadata = {
            "length_unit": "angstrom",
            "activation": self.activation,
            "kind": self.kind,
            "alignment": self.alignment,
            "drift": self.drift,
            "species": json.dumps(self.species),
            "written_by": f"plumed_cv {plumed_cv.__version__}",
            "provenance": json.dumps(self.provenance),
        }
        model_file.write(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path | str) -> "CollectiveVariable":
        """Read a model file.

        Raises
        ------
        UserError
            If the file is missing, truncated, foreign, of another version, contains values that are
            not finite, or does not reproduce its own check vector or checksum.
        """
        tensors, metadata, changed = model_file.read(path)
        try:
            model = cls(
                serials=tensors["serials"],
                species=tuple(json.loads(metadata["species"])),
                reference_positions=tensors["reference_positions"],
                reference_cell=tensors["reference_cell"],
                pca_mean=tensors["pca_mean"],
                pca_components=tensors["pca_components"],
                encoder=layers_of(tensors, "encoder"),
                decoder=layers_of(tensors, "decoder"),
                activation=metadata["activation"],
                latent_shift=tensors["latent_shift"],
                latent_scale=tensors["latent_scale"],
                end_displacements=tensors["end_displacements"],
                kind=metadata["kind"],
                alignment=metadata.get("alignment", "none"),
                drift="kept" if metadata.get("drift", "removed") == "kept" else "removed",
                provenance=json.loads(metadata["provenance"]),
            )
            if metadata["length_unit"] != "angstrom":
                raise UserError(
                    f"its length unit is {metadata['length_unit']!r}, not angstrom; train or "
                    "export it again."
                )
            check = (tensors["check_positions"], tensors["check_cell"])
            agrees = (
                len(model.species) == model.n_atoms
                and np.allclose(model.value(*check), tensors["check_value"], rtol=1e-9, atol=1e-12)
                and np.allclose(
                    model.gradient(*check), tensors["check_gradient"], rtol=1e-9, atol=1e-12
                )
                and np.allclose(model.deviation(*check), tensors["check_deviation"], rtol=1e-9)
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except KeyError as error:
            raise UserError(
                f"{path}: the model file lacks {error}; train or export it again."
            ) from None
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            raise UserError(
                f"{path}: the arrays do not fit together ({error}); train or export it again."
            ) from None
        if not agrees:
            raise UserError(
                f"{path}: does not reproduce its own check vector; the file has been changed or "
                "damaged. Train or export it again."
            )
        # The check vector does not detect every change: which atoms are meant, or a ReLU that is
        # off.
        if changed:
            raise UserError(
                f"{path}: was changed or damaged, as its checksum shows. Train or export it again."
            )
        return model


def load_cv(path: Path | str) -> CollectiveVariable:
    """Read the model file of a collective variable, as `CollectiveVariable.load`."""
    return CollectiveVariable.load(path)


def random_model(
    rng: np.random.Generator,
    n_atoms: int,
    n_components: int,
    hidden: Sequence[int],
    n_latent: int = 1,
    activation: str = "relu",
    cell: NDArray[Any] | None = None,
    alignment: str = "none",
    drift: Drift = "removed",
) -> CollectiveVariable:
    """Return a model with random weights, for tests and benchmarks.

    Parameters
    ----------
    rng
        Random number generator of all parameters.
    n_atoms, n_components, n_latent
        N atoms, D components, d latent dimensions.
    hidden
        Widths of the encoder's hidden layers; the decoder mirrors them.
    activation
        One of `ACTIVATIONS`.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom; no periodicity if None.
    alignment
        "none" for solids, "optimal" for molecules.
    drift
        As for `CollectiveVariable`.
    """
    cell = np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64)
    fractional = rng.uniform(size=(n_atoms, 3))
    positions = fractional @ np.where(periodic_directions(cell)[:, None], cell, 10.0 * np.eye(3))
    raw = rng.normal(size=(n_components, n_atoms, 3))
    if drift == "removed":
        raw -= raw.mean(axis=1, keepdims=True)
    components = np.linalg.qr(raw.reshape(n_components, -1).T)[0].T
    mean = rng.normal(scale=0.1, size=(n_atoms, 3))
    mean -= mean.mean(axis=0)

    def layers(widths: Sequence[int]) -> tuple[Layer, ...]:
        return tuple(
            Layer(rng.normal(scale=(2.0 / (m + n)) ** 0.5, size=(n, m)), rng.normal(size=n) * 0.1)
            for m, n in pairwise(widths)
        )

    ends = rng.normal(scale=0.3, size=(2, n_atoms, 3))
    ends -= ends.mean(axis=1, keepdims=True)
    return CollectiveVariable(
        serials=np.arange(1, n_atoms + 1),
        species=("Fe",) * n_atoms,
        reference_positions=positions,
        reference_cell=cell,
        pca_mean=mean.ravel(),
        pca_components=components,
        encoder=layers([n_components, *hidden, n_latent]),
        decoder=layers([n_latent, *reversed(hidden), n_components]),
        activation=activation,
        latent_shift=rng.normal(size=n_latent) * 0.1,
        latent_scale=rng.uniform(0.5, 2.0, size=n_latent),
        end_displacements=ends,
        alignment=alignment,
        drift=drift,
    )
