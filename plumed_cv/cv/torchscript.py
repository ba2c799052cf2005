"""A collective variable as TorchScript, for TORCH_CV and other programs that run such files."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import missing
from plumed_cv.common.files import replacing
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.structures.frame import Array, find_bonds, in_words, periodic_directions

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError:
    raise missing("torch") from None


def write_torchscript(cv: CollectiveVariable, path: Path | str) -> None:
    """Write a TorchScript file that returns `node-0`, ... of a collective variable, in float64.

    `forward` receives the positions, shape (N, 3), and the cell, shape (3, 3), both in angstrom,
    and returns the d values. `value_and_gradient` also returns their derivatives with respect to
    the positions, shape (d, N, 3), and to the cell at fixed positions, shape (d, 3, 3).

    Raises
    ------
    UserError
        If the file cannot be written.
    """
    with warnings.catch_warnings():  # torch recommends another format, which needs no libtorch
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.script(_Model(cv).double().eval())
        with replacing(path) as temporary:
            try:
                module.save(str(temporary))
            except RuntimeError as error:
                raise UserError(f"{path}: cannot be written ({error}).") from None


def plumed_line(cv: CollectiveVariable, file: Path | str) -> str:
    """Return the line of a plumed.dat that evaluates the file."""
    return f"cv: TORCH_CV MODEL={file} ATOMS={_ranges([int(s) for s in cv.serials])}"


class _Model(torch.nn.Module):
    """The displacement frame of `CollectiveVariable` and a network on its 3N displacements.

    The components and their mean are part of the first layer, shift and scale part of the last one.
    """

    reference: Tensor
    bonds: Tensor
    tree: Tensor

    def __init__(self, cv: CollectiveVariable) -> None:
        super().__init__()
        self.aligned = cv.is_aligned
        self.kept = cv.drift == "kept"
        periodic = periodic_directions(cv.reference_cell)
        if periodic.any() and not periodic.all():
            raise UserError(
                f"a model that is periodic along {in_words(periodic)} only cannot be exported as "
                "TorchScript; use its model file with the action AUTOENCODER."
            )
        self.periodic = bool(periodic.all())
        self.linear = len(cv.encoder) == 1
        self.activation = cv.activation
        reference = cv.reference_positions
        pairs, tree = np.zeros((0, 2), dtype=np.int64), np.zeros((0, 0))
        if self.aligned:
            pairs, tree = _spanning_tree(reference)
            reference = reference - reference.mean(axis=0)
        if self.periodic:  # in fractions of the cell, because the reference follows the cell
            reference = np.asarray(np.linalg.solve(cv.reference_cell.T, reference.T).T)
        for name, array in {"reference": reference, "bonds": pairs, "tree": tree}.items():
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(array)))
        weights = [layer.weight for layer in cv.encoder]
        biases = [layer.bias for layer in cv.encoder]
        weights[0] = weights[0] @ cv.pca_components
        biases[0] = biases[0] - weights[0] @ cv.pca_mean
        weights[-1] = cv.latent_scale[:, None] * weights[-1]
        biases[-1] = cv.latent_scale * (biases[-1] - cv.latent_shift)
        self.weights = torch.nn.ParameterList(map(torch.tensor, weights))
        self.biases = torch.nn.ParameterList(map(torch.tensor, biases))

    def forward(self, positions: Tensor, cell: Tensor) -> Tensor:
        """Return the values, shape (d,)."""
        shifts, _, _ = self.displacements(positions, cell)
        z = shifts.reshape(-1)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):  # noqa: B905
            z = torch.addmv(bias, weight, self.activate(z) if k else z)
        return z

    @torch.jit.export
    def value_and_gradient(self, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values, shape (d,), their gradients (d, N, 3) and those to the cell."""
        shifts, images, rotation = self.displacements(positions, cell)
        z = shifts.reshape(-1)
        first, jacobian = z, z  # of the values to the output of the first layer, shape (d, width)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):  # noqa: B905
            if k == 0:
                first = weight
                z = torch.addmv(bias, weight, z)
            else:
                slopes = weight * self.slope(z)
                jacobian = slopes @ jacobian if k > 1 else slopes
                z = torch.addmv(bias, weight, self.activate(z))
        gradient = first if self.linear else jacobian @ first
        gradient = gradient.reshape(z.numel(), -1, 3)
        lattice = images
        if self.aligned:  # as `frame.turned_back`
            torques = torch.cross((shifts + self.reference).expand_as(gradient), gradient, dim=2)
            change = torch.linalg.solve(self.inertia(shifts + self.reference), torques.sum(1).t())
            turned = torch.cross(
                self.reference.expand_as(gradient), change.t()[:, None].expand_as(gradient), dim=2
            )
            gradient = (gradient + turned) @ rotation
        elif self.periodic:
            lattice = self.reference + images
        return z, gradient, -(lattice.t() @ gradient)

    def displacements(self, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the displacements, shape (N, 3), the images taken, and the rotation.

        It is `frame.displacements` and `frame.align` without their checks. In a solid, it differs
        by a common shift of all atoms, because the gradients of the atoms add up to zero.
        """
        images = torch.zeros_like(positions)
        rotation = torch.eye(3, dtype=positions.dtype, device=positions.device)
        if self.aligned:
            if bool(torch.any(cell != 0)):
                steps = (positions[self.bonds[:, 1]] - positions[self.bonds[:, 0]]).detach()
                images = self.tree @ torch.round(steps @ torch.linalg.inv(cell.detach()))
                positions = positions - images @ cell
            centred = positions - positions.mean(dim=0)
            left, _, right = torch.linalg.svd(centred.detach().t() @ self.reference)
            flip = torch.ones_like(left)
            flip[:, 2] = torch.sign(torch.det(left @ right))
            rotation = ((left * flip) @ right).t()
            turned = centred @ rotation.t()
            # A step of Newton's method that is zero except for rounding, and has the derivatives of
            # the best rotation.
            torque = torch.cross(turned, self.reference, dim=1).sum(0)
            change = torch.linalg.solve(self.inertia(turned.detach()), torque)
            turned = turned + torch.cross(change.expand_as(turned), turned, dim=1)
            return turned - self.reference, images, rotation
        if self.periodic:
            shifts = torch.addmm(positions, self.reference, cell, alpha=-1.0)
            if not self.kept:
                shifts = shifts - shifts[:1]
            images = torch.round(shifts.detach() @ torch.linalg.inv(cell.detach()))
            return torch.addmm(shifts, images, cell, alpha=-1.0), images, rotation
        shifts = positions - self.reference
        if not self.kept:
            shifts = shifts - shifts[:1]
        return shifts, images, rotation

    def inertia(self, turned: Tensor) -> Tensor:
        """Return the matrix of `frame.turned_back`, shape (3, 3)."""
        moments = turned.t() @ self.reference
        identity = torch.eye(3, dtype=turned.dtype, device=turned.device)
        return torch.trace(moments) * identity - moments

    def activate(self, z: Tensor) -> Tensor:
        """Return the activation function, one of `cv.ACTIVATIONS`."""
        if self.activation == "relu":
            return torch.relu(z)
        if self.activation == "tanh":
            return torch.tanh(z)
        if self.activation == "elu":
            return torch.where(z > 0, z, torch.expm1(torch.clamp(z, max=0.0)))
        if self.activation == "softplus":
            return torch.logaddexp(torch.zeros_like(z), z)
        if self.activation == "silu":
            return z * torch.sigmoid(z)
        return torch.sigmoid(z)

    def slope(self, z: Tensor) -> Tensor:
        """Return the derivative of the activation function."""
        if self.activation == "relu":
            return (z > 0).to(z.dtype)
        if self.activation == "tanh":
            return 1 - torch.tanh(z) ** 2
        if self.activation == "elu":
            return torch.exp(torch.clamp(z, max=0.0))
        s = torch.sigmoid(z)
        if self.activation == "softplus":
            return s
        if self.activation == "silu":
            return s * (1 + z * (1 - s))
        return s * (1 - s)


def _spanning_tree(reference: Array) -> tuple[NDArray[np.int64], Array]:
    """Return the bonds of `frame.make_whole`, shape (N-1, 2), and which lead to an atom, (N, N-1).

    The image of an atom is the sum of those along the bonds from the first atom to it.
    """
    pairs = find_bonds(reference)
    path = np.zeros((len(reference), len(pairs)))
    for k, (parent, atom) in enumerate(pairs):
        path[atom] = path[parent]
        path[atom, k] = 1.0
    return pairs, path


def _ranges(serials: Sequence[int]) -> str:
    """Return serial numbers in the form of PLUMED's lists: 1-4,7."""
    parts: list[list[int]] = []
    for serial in serials:
        if parts and serial == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], serial]
        else:
            parts.append([serial])
    return ",".join("-".join(map(str, part)) for part in parts)
