"""The autoencoder of Sec. 3.1 and its training: from displacements to a collective variable.

Trained in single precision on principal components of displacements (angstrom) by PyTorch, handed
over in double precision as layers that `cv.CollectiveVariable` evaluates.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from plumed_cv import pca
from plumed_cv.cv import CollectiveVariable, Layer
from plumed_cv.errors import UserError

# Learning rate and epochs of each stage: from 20 epochs at 0.02 down to 200 at 5e-6 (Sec. 3.1).
SCHEDULE: tuple[tuple[float, int], ...] = (
    (2e-2, 20),
    (1e-2, 20),
    (5e-3, 20),
    (2e-3, 40),
    (1e-3, 40),
    (5e-4, 40),
    (2e-4, 40),
    (1e-4, 40),
    (5e-5, 40),
    (2e-5, 40),
    (1e-5, 100),
    (5e-6, 200),
)

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": functional.elu,
    "softplus": functional.softplus,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
}

# Called after every epoch with the epochs done, the epochs in all, and the mean square error (A^2).
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Training:
    """How an autoencoder is trained; the defaults are the paper's (Sec. 3.1).

    Parameters
    ----------
    hidden
        Widths of the hidden layers of the encoder; the decoder mirrors them. None: two of width D.
    activation
        Activation of the hidden layers: relu, tanh, elu, softplus, silu or sigmoid.
    tied
        Whether the decoder uses the encoder's weights transposed.
    n_latent
        Number of latent dimensions d.
    schedule
        Pairs of learning rate and epochs.
    batch_size
        Structures a batch.
    restarts
        Networks trained from different initial weights; the one of the lowest loss is kept.
    seed
        Seed of weights and batches.
    """

    hidden: tuple[int, ...] | None = None
    activation: str = "relu"
    tied: bool = True
    n_latent: int = 1
    schedule: tuple[tuple[float, int], ...] = SCHEDULE
    batch_size: int = 1000
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.activation not in _ACTIVATIONS:
            raise UserError(
                f"There is no activation {self.activation!r}; choose one of "
                f"{', '.join(_ACTIVATIONS)}."
            )
        if self.hidden is not None and not (self.hidden and min(self.hidden) > 0):
            raise UserError(f"Hidden layers of widths {self.hidden}: give positive numbers.")
        if min(self.n_latent, self.batch_size, self.restarts) < 1:
            raise UserError("Latent dimensions, batch size and restarts must be 1 or more.")

    @property
    def n_epochs(self) -> int:
        """Epochs of all restarts together."""
        return self.restarts * sum(epochs for _, epochs in self.schedule)


class Autoencoder(nn.Module):
    """A symmetric autoencoder D -> hidden -> d -> hidden -> D."""

    def __init__(self, n_components: int, training: Training, generator: torch.Generator) -> None:
        super().__init__()
        hidden = training.hidden or (n_components, n_components)
        widths = (n_components, *hidden, training.n_latent)
        self.activation = _ACTIVATIONS[training.activation]
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
    """

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    losses: NDArray[np.float64]


def train(
    components: NDArray[Any],
    training: Training,
    progress: Progress = lambda epoch, epochs, loss: None,
) -> Network:
    """Train an autoencoder on principal components (Sec. 3.1).

    Parameters
    ----------
    components
        Shape (M, D), angstrom.
    training
        Network and schedule.
    progress
        Called after every epoch.

    Raises
    ------
    UserError
        If there are fewer than two structures, values that are not finite, or a loss that diverges.
    """
    if len(components) < 2 or not np.isfinite(components).all():
        raise UserError("Training needs at least two structures with finite positions.")
    # One factor for all components keeps the mean square error the paper's objective.
    scale = float(np.std(components, axis=0).max())
    if not scale > 0:
        raise UserError("The structures do not differ; there is nothing to learn from them.")
    data = torch.as_tensor(np.ascontiguousarray(components / scale), dtype=torch.float32)
    with _one_thread():
        runs = [
            _restart(data, training, restart, scale**2, progress)
            for restart in range(training.restarts)
        ]
    finite = [run for run in runs if np.isfinite(run[0][-1])]
    if not finite:
        raise UserError("The training diverged; lower the learning rates of the schedule.")
    losses, model = min(finite, key=lambda run: run[0][-1])
    encoder, decoder = model.layers()
    first, last = encoder[0], decoder[-1]
    return Network(
        encoder=(Layer(first.weight / scale, first.bias), *encoder[1:]),
        decoder=(*decoder[:-1], Layer(last.weight * scale, last.bias * scale)),
        losses=np.array(losses) * scale**2,
    )


def learn(
    displacements: NDArray[Any],
    frame: CollectiveVariable,
    n_components: int,
    training: Training,
    progress: Progress = lambda epoch, epochs, loss: None,
    provenance: dict[str, Any] | None = None,
) -> tuple[CollectiveVariable, pca.PrincipalComponents, Network]:
    """Principal components and autoencoder of displacements, as a collective variable.

    Parameters
    ----------
    displacements
        Displacement-frame coordinates, shape (M, N, 3), angstrom.
    frame
        Any collective variable of the same atoms: it gives atoms, reference and end states.
    n_components
        Number of principal components D.
    training
        Network and schedule.
    progress
        Called after every epoch.
    provenance
        What to record in the model besides the training's own figures.

    Returns
    -------
    tuple
        The collective variable with xi(q0) = 0 and xi(q1) = 1, the principal components, and the
        network with its losses.

    Raises
    ------
    UserError
        If the network gives both end states the same value, or as for `pca.fit` and `train`.
    """
    principal = pca.fit(displacements, n_components, training.seed)
    network = train(principal.project(displacements), training, progress)
    variable = CollectiveVariable(
        serials=frame.serials,
        species=frame.species,
        reference_positions=frame.reference_positions,
        reference_cell=frame.reference_cell,
        pca_mean=principal.mean,
        pca_components=principal.components,
        encoder=network.encoder,
        decoder=network.decoder,
        activation=training.activation,
        latent_shift=np.zeros(training.n_latent),
        latent_scale=np.ones(training.n_latent),
        end_displacements=frame.end_displacements,
        provenance={
            **(provenance or {}),
            "structures": len(displacements),
            "final_loss_A2": float(network.losses[-1]),
            "seed": training.seed,
        },
    )
    return rescaled(variable), principal, network


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


def _restart(
    data: Tensor, training: Training, restart: int, unit: float, progress: Progress
) -> tuple[list[float], Autoencoder]:
    """Train one network; returns the losses of its epochs and itself."""
    generator = torch.Generator().manual_seed(training.seed * 1000 + restart)
    model = Autoencoder(data.shape[1], training, generator)
    before = restart * training.n_epochs // training.restarts

    def report(epoch: int, loss: float) -> None:
        progress(before + epoch, training.n_epochs, loss * unit)

    return _descend(model, data, training, generator, report), model


@contextmanager
def _one_thread() -> Iterator[None]:
    """At these sizes a thread pool costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _descend(
    model: Autoencoder,
    data: Tensor,
    training: Training,
    generator: torch.Generator,
    progress: Callable[[int, float], None],
) -> list[float]:
    """Run the schedule; returns the mean square error of each epoch."""
    optimiser = torch.optim.Adam(model.parameters(), lr=training.schedule[0][0], fused=True)
    losses: list[float] = []
    for rate, epochs in training.schedule:
        for group in optimiser.param_groups:
            group["lr"] = rate
        for _ in range(epochs):
            total = torch.zeros(())
            order = torch.randperm(len(data), generator=generator)
            for batch in data[order].split(training.batch_size):
                optimiser.zero_grad()
                loss = functional.mse_loss(model(batch), batch)
                loss.backward()
                optimiser.step()
                total += loss.detach() * len(batch)
            losses.append(float(total) / len(data))
            progress(len(losses), losses[-1])
    return losses


def _glorot(widths: Sequence[int], generator: torch.Generator) -> nn.ParameterList:
    """Weights of layers between the given widths, Glorot normal."""
    return nn.ParameterList(
        nn.init.xavier_normal_(torch.empty(n, m), generator=generator) for m, n in pairwise(widths)
    )


def _zeros(widths: Sequence[int]) -> nn.ParameterList:
    return nn.ParameterList(torch.zeros(n) for n in widths)


def _layer(weight: Tensor, bias: Tensor) -> Layer:
    return Layer(
        weight.detach().numpy().astype(np.float64), bias.detach().numpy().astype(np.float64)
    )
