"""The autoencoder of Sec. 3.1 and its training: from displacements to a collective variable.

Trained on principal components of displacements (angstrom) by PyTorch, in single precision unless
told otherwise, on the processor or a GPU, as `training` says; handed over in double precision as
layers that `cv.CollectiveVariable` evaluates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import missing
from plumed_cv.common.threads import one_thread
from plumed_cv.cv import meanpath, pca
from plumed_cv.cv.collective_variable import CollectiveVariable, Layer
from plumed_cv.cv.meanpath import MeanPath
from plumed_cv.cv.symmetry import Operation
from plumed_cv.cv.training import Training
from plumed_cv.structures.frame import Array, chunks

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ModuleNotFoundError:
    raise missing("torch") from None

_DTYPES = {"single": torch.float32, "double": torch.float64}

# The mean path is continued beyond its ends by this part of its length, with so many structures
# there for each one of the data, at either end.
_REACH_BEYOND = 0.5
_SHARE_BEYOND = 0.1

# Of the slope along the mean path in the loss. More makes xi more even and its gradient less true.
_SLOPE_WEIGHT = 0.2

# Called after every epoch with the epochs done, the epochs in all, and the mean square error (A^2).
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Examples:
    """What a network learns from, along D components and for M structures, angstrom.

    Parameters
    ----------
    inputs
        The structures, shape (M, D).
    targets
        What the decoder is to make of them, shape (M, D).
    tangents
        The direction that the gradient of the encoder is to have, shape (M, D).
    lengths
        The value that it is to have, shape (M,). Both None: the encoder is left free.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    tangents: NDArray[Any] | None = None
    lengths: NDArray[Any] | None = None


class Autoencoder(nn.Module):
    """A symmetric autoencoder D -> hidden -> d -> hidden -> D.

    Parameters
    ----------
    n_components
        Number of components D.
    training
        Its hidden layers, activation, latent dimensions, and whether the decoder is tied.
    generator
        Source of the initial weights.
    """

    def __init__(self, n_components: int, training: Training, generator: torch.Generator) -> None:
        super().__init__()
        hidden = training.hidden or (training.default_width(n_components),) * 2
        widths = (n_components, *hidden, training.n_latent)
        self.activation = getattr(functional, training.activation)  # one of `cv.ACTIVATIONS`
        self.weights = _glorot(widths, generator)
        self.biases = _zeros(widths[1:])
        self.decoder_biases = _zeros(widths[-2::-1])
        self.decoder_weights = None if training.tied else _glorot(widths[::-1], generator)

    def encode(self, x: Tensor) -> Tensor:
        """Latent coordinates of components, (M, D) -> (M, d)."""
        return self._chain(x, list(self.weights), self.biases)

    def decode(self, latent: Tensor) -> Tensor:
        """Components of latent coordinates, (M, d) -> (M, D)."""
        return self._chain(latent, self._decoder_weights(), self.decoder_biases)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct components, (M, D) -> (M, D)."""
        return self.decode(self.encode(x))

    def layers(self) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
        """Encoder and decoder as NumPy layers in double precision."""
        return (
            tuple(map(_layer, self.weights, self.biases)),
            tuple(map(_layer, self._decoder_weights(), self.decoder_biases)),
        )

    def _decoder_weights(self) -> list[Tensor]:
        if self.decoder_weights is not None:
            return list(self.decoder_weights)
        return [weight.T for weight in reversed(list(self.weights))]

    def _chain(
        self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | nn.ParameterList
    ) -> Tensor:
        last = len(weights) - 1
        for k, weight in enumerate(weights):
            x = functional.linear(x, weight, biases[k])
            if k < last:
                x = self.activation(x)
        return x


@dataclass(frozen=True)
class Network:
    """A trained autoencoder acting on components in angstrom.

    Parameters
    ----------
    encoder, decoder
        The layers of f_e and f_d.
    losses
        Mean square error of each epoch, A^2, of the restart that was kept.
    misalignment
        Mean of 1 - cos^2 between the gradient of the encoder and the mean path in the last epoch;
        0 if the gradient was left free.
    """

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    losses: NDArray[np.float64]
    misalignment: float

    def __repr__(self) -> str:
        widths = [self.encoder[0].weight.shape[1], *(len(layer.bias) for layer in self.encoder)]
        return (
            f"Network({'-'.join(map(str, widths))}, error {self.losses[-1] ** 0.5:.4f} A after "
            f"{len(self.losses)} epochs)"
        )


@one_thread()
def train(
    examples: Examples,
    training: Training,
    progress: Progress = lambda epoch, epochs, loss: None,
) -> Network:
    """Train an autoencoder on principal components (Sec. 3.1).

    Parameters
    ----------
    examples
        Inputs and targets.
    training
        Network and schedule.
    progress
        Called after every epoch.

    Raises
    ------
    UserError
        If there are fewer than two structures, values that are not finite, or a loss that diverges.
    """
    if len(examples.inputs) < 2 or not np.isfinite(examples.inputs).all():
        raise UserError("Training needs at least two structures with finite positions.")
    # One factor for all components keeps the mean square error the paper's objective.
    scale = float(np.std(examples.inputs, axis=0).max())
    if not scale > 0:
        raise UserError("The structures do not differ; there is nothing to learn from them.")
    data = _Tensors.of(examples, scale, find_device(training.device), _DTYPES[training.precision])
    runs = [
        _restart(data, training, restart, scale**2, progress)
        for restart in range(training.restarts)
    ]
    finite = [run for run in runs if np.isfinite(run[0][-1]).all()]
    if not finite:
        raise UserError("The training diverged; lower the learning rates of the schedule.")
    losses, model = min(finite, key=lambda run: sum(run[0][-1]))
    encoder, decoder = model.layers()
    first, last = encoder[0], decoder[-1]
    return Network(
        encoder=(Layer(first.weight / scale, first.bias), *encoder[1:]),
        decoder=(*decoder[:-1], Layer(last.weight * scale, last.bias * scale)),
        losses=np.array(losses)[:, 0] * scale**2,
        misalignment=losses[-1][1],
    )


def find_device(name: str) -> torch.device:
    """Return the device of a name of `Training`, tried.

    Raises
    ------
    UserError
        If there is none of that name here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise UserError(
            f"device = {name!r}: torch {torch.__version__} cannot compute there ({reason}); take "
            "'cpu', or install a torch with CUDA and NVIDIA's driver (https://pytorch.org)."
        ) from None
    return torch.device(name)


@one_thread()
def learn(
    displacements: NDArray[Any],
    variable: CollectiveVariable,
    n_components: int,
    training: Training,
    progress: Progress = lambda epoch, epochs, loss: None,
    provenance: dict[str, Any] | None = None,
    coordinate: NDArray[Any] | None = None,
    symmetry: Sequence[Operation] = (),
    through_ends: bool = False,
    continued: bool = True,
) -> tuple[CollectiveVariable, pca.PrincipalComponents, Network]:
    """Principal components and autoencoder of displacements, as a collective variable.

    Parameters
    ----------
    displacements
        Displacement-frame coordinates, shape (M, N, 3), angstrom.
    variable
        Any collective variable of the same atoms: it gives atoms, reference and end states.
    n_components
        Number of principal components D.
    training
        Network and schedule.
    progress
        Called after every epoch.
    provenance
        What to record in the model besides the training's own figures.
    coordinate
        Place of each structure along the process, shape (M,): the path parameter or a previous
        collective variable. By default the projection on the line between the end states.
    symmetry
        Operations that the mean path is made to have (`symmetry.operations`); none by default.
    through_ends
        Whether the mean path must pass through the end states: at 0 K, with independent noise on
        the coordinates. Then it is also held to be elastic, see `meanpath.fit`.
    continued
        Whether structures are added beyond both ends of the mean path, on its straight
        continuations by half of its length, so that the variable rises there as it does between the
        end states. Without them it saturates. Never with several latent dimensions, where there is
        no one path.

    Returns
    -------
    tuple
        The collective variable with xi(q0) = 0 and xi(q1) = 1, the principal components, and the
        network with its losses.

    Raises
    ------
    UserError
        If the network gives both end states the same value, or as for `pca.fit`, `meanpath.fit` and
        `train`.
    """
    if coordinate is None:
        coordinate = _along_the_line(displacements, variable)
    principal, examples = _examples(
        displacements,
        coordinate,
        n_components,
        training,
        symmetry,
        variable if through_ends else None,
        continued and training.n_latent == 1,
    )
    network = train(examples, training, progress)
    learned = CollectiveVariable(
        serials=variable.serials,
        species=variable.species,
        reference_positions=variable.reference_positions,
        reference_cell=variable.reference_cell,
        pca_mean=principal.mean,
        pca_components=principal.components,
        encoder=network.encoder,
        decoder=network.decoder,
        activation=training.activation,
        latent_shift=np.zeros(training.n_latent),
        latent_scale=np.ones(training.n_latent),
        end_displacements=variable.end_displacements,
        alignment=variable.alignment,
        provenance={
            **(provenance or {}),
            "structures": len(displacements),
            "final_loss_A2": float(network.losses[-1]),
            "final_misalignment": network.misalignment,
            "seed": training.seed,
        },
    )
    return rescaled(learned), principal, network


def _along_the_line(
    displacements: NDArray[Any], variable: CollectiveVariable
) -> NDArray[np.float64]:
    """The linear collective variable, step 0 of Sec. 2.4, shape (M,)."""
    start, end = variable.end_displacements
    line = (end - start).ravel()
    parts = [
        displacements[part].reshape(-1, line.size) @ line for part in chunks(len(displacements))
    ]
    return np.asarray((np.concatenate(parts) - start.ravel() @ line) / (line @ line))


def _examples(
    displacements: NDArray[Any],
    s: NDArray[Any],
    n_components: int,
    training: Training,
    symmetry: Sequence[Operation],
    at_rest: CollectiveVariable | None,
    continued: bool,
) -> tuple[pca.PrincipalComponents, Examples]:
    """The subspace of a training, and what there is to learn in it."""
    if training.subspace == "pca":
        principal = pca.fit(displacements, n_components, training.seed)
        path = None
    else:
        principal, path = pca.fit_mean_path(
            displacements, s, n_components, symmetry, at_rest, training.functions
        )
    inputs = principal.project(displacements)
    if training.target == "structure" and not continued:
        return principal, Examples(inputs, inputs)
    path = path or meanpath.fit(displacements, s, symmetry, at_rest, training.functions)
    origin = principal.components @ principal.mean
    noise = inputs - (path.points(s, principal.components) - origin)
    if continued:
        beyond, nearest = _beyond(path, s)
        s, noise = np.concatenate([s, beyond]), np.concatenate([noise, noise[nearest]])
    targets = path.points(s, principal.components) - origin
    if training.target == "structure":
        return principal, Examples(targets + noise, targets + noise)
    tangents = path.tangents(s, principal.components)
    tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-300)
    # A structure belongs to the point of the path that is nearest: thermal motion along the path
    # is taken out, as the noise of Sec. 3.2 has none.
    noise -= np.sum(noise * tangents, axis=1, keepdims=True) * tangents
    lengths = path.lengths(s, principal.components)
    return principal, Examples(targets + noise, targets, tangents, lengths - lengths.mean())


def _beyond(path: MeanPath, s: NDArray[Any]) -> tuple[Array, NDArray[np.int64]]:
    """Places on the straight continuations of a mean path, and structures to take noise from.

    Without examples there the network goes over to a constant. A harmonic wall at the end of the
    grid would then not act on the atoms, and a run could leave the process.

    Parameters
    ----------
    path
        The mean path.
    s
        Places of the structures, shape (M,).

    Returns
    -------
    tuple
        Places beyond both ends, shape (B,), and for each of them the index of one of the structures
        that are nearest to that end, shape (B,).
    """
    n = max(1, round(_SHARE_BEYOND * len(s)))
    order = np.argsort(s, kind="stable")
    length = float(np.diff(path.lengths(np.array([0.0, 1.0])))[0])
    speeds = np.linalg.norm(path.tangents(np.array([path.first, path.last])), axis=1)
    steps = (np.arange(n) + 0.5) / n * _REACH_BEYOND * length / np.maximum(speeds, 1e-9)[:, None]
    places = np.concatenate([path.first - steps[0], path.last + steps[1]])
    return places, np.concatenate([order[:n], order[-n:]])


def rescaled(variable: CollectiveVariable) -> CollectiveVariable:
    """The same collective variable with xi(q0) = 0 and xi(q1) = 1 (Sec. 3.3).

    Raises
    ------
    UserError
        If it gives both end states the same value.
    """
    ends = variable.components(variable.end_displacements)
    latent = variable.encode(ends) / variable.latent_scale + variable.latent_shift
    span = latent[1] - latent[0]
    spread = np.abs(latent).max() + 1.0
    if (np.abs(span) < 1e-6 * spread).any():
        raise UserError(
            "The autoencoder does not tell the end states apart; give it more structures, more "
            "principal components, or another seed."
        )
    return replace(variable, latent_shift=latent[0], latent_scale=1.0 / span)


@dataclass(frozen=True)
class _Tensors:
    """Examples as tensors in units of the scale."""

    inputs: Tensor
    targets: Tensor
    tangents: Tensor | None
    lengths: Tensor | None

    @classmethod
    def of(
        cls, examples: Examples, scale: float, device: torch.device, dtype: torch.dtype
    ) -> "_Tensors":
        def tensor(array: NDArray[Any] | None, unit: float = scale) -> Tensor | None:
            if array is None:
                return None
            return torch.as_tensor(np.ascontiguousarray(array / unit), dtype=dtype, device=device)

        inputs, targets = tensor(examples.inputs), tensor(examples.targets)
        assert inputs is not None
        assert targets is not None
        return cls(inputs, targets, tensor(examples.tangents, 1.0), tensor(examples.lengths))


def _restart(
    data: _Tensors, training: Training, restart: int, unit: float, progress: Progress
) -> tuple[list[list[float]], Autoencoder]:
    """Train one network; returns the terms of the loss of its epochs, and itself."""
    generator = torch.Generator().manual_seed(training.seed * 1000 + restart)
    model = Autoencoder(data.inputs.shape[1], training, generator).to(data.inputs)
    before = restart * training.n_epochs // training.restarts

    def report(epoch: int, loss: float) -> None:
        progress(before + epoch, training.n_epochs, loss * unit)

    return _descend(model, data, training, generator, report), model


def _descend(
    model: Autoencoder,
    data: _Tensors,
    training: Training,
    generator: torch.Generator,
    progress: Callable[[int, float], None],
) -> list[list[float]]:
    """Run the schedule; returns the terms of the loss, averaged over each epoch."""
    optimiser = torch.optim.Adam(model.parameters(), lr=training.schedule[0][0], fused=True)
    n = len(data.inputs)
    losses: list[list[float]] = []
    for rate, epochs in training.schedule:
        for group in optimiser.param_groups:
            group["lr"] = rate
        for _ in range(epochs):
            total = data.inputs.new_zeros(4)
            # Drawn on the processor: the same batches whatever the device.
            order = torch.randperm(n, generator=generator).to(data.inputs.device)
            for batch in order.split(training.batch_size):
                optimiser.zero_grad()
                terms = _losses(model, data, batch)
                terms.sum().backward()
                optimiser.step()
                total += terms.detach() * len(batch)
            losses.append((total / n).tolist())
            progress(len(losses), losses[-1][0])
    return losses


def _losses(model: Autoencoder, data: _Tensors, batch: Tensor) -> Tensor:
    """What is minimised, for some structures, shape (4,).

    The mean square error, the mean of 1 - cos^2 between the encoder's gradient and the tangents,
    the mean square error of its values, and that of its slope along the tangents, weighted.
    """
    inputs = data.inputs[batch]
    if data.tangents is None or data.lengths is None:
        error = functional.mse_loss(model(inputs), data.targets[batch])
        return torch.stack([error, *error.new_zeros(3)])
    inputs.requires_grad_()
    latent = model.encode(inputs)
    (gradient,) = torch.autograd.grad(latent.sum(), inputs, create_graph=True)
    along = (gradient * data.tangents[batch]).sum(dim=1)
    cosine2 = along**2 / (gradient.square().sum(dim=1) + 1e-12)
    error = functional.mse_loss(model.decode(latent), data.targets[batch])
    length = functional.mse_loss(latent[:, 0], data.lengths[batch])
    slope = _SLOPE_WEIGHT * (along - 1.0).square().mean()
    return torch.stack([error, 1.0 - cosine2.mean(), length, slope])


def _glorot(widths: Sequence[int], generator: torch.Generator) -> nn.ParameterList:
    """Weights of layers between the given widths, Glorot normal."""
    return nn.ParameterList(
        nn.init.xavier_normal_(torch.empty(n, m), generator=generator) for m, n in pairwise(widths)
    )


def _zeros(widths: Sequence[int]) -> nn.ParameterList:
    return nn.ParameterList(torch.zeros(n) for n in widths)


def _layer(weight: Tensor, bias: Tensor) -> Layer:
    return Layer(
        weight.detach().cpu().numpy().astype(np.float64),
        bias.detach().cpu().numpy().astype(np.float64),
    )
