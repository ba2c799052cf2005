"""The autoencoder of Sec. 3.1 and its training on principal components.

PyTorch trains it on the components (angstrom), on the processor or a GPU according to `training`,
in single precision by default. The result is passed on in double precision, as layers that
`cv.CollectiveVariable` evaluates. `learning` makes the components and the collective variable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import missing
from plumed_cv.common.threads import one_thread
from plumed_cv.cv.network import Layer
from plumed_cv.cv.training import Training

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ModuleNotFoundError:
    raise missing("torch") from None

_DTYPES = {"single": torch.float32, "double": torch.float64}


# Weight of the slope along the mean path in the loss. A larger weight makes xi more even, but its
# gradient less accurate.
_SLOPE_WEIGHT = 0.2


# Called after every epoch with the completed epochs, all epochs, and the mean square error (A^2).
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Examples:
    """Training data of a network with D components and M structures, angstrom.

    Parameters
    ----------
    inputs
        The structures, shape (M, D).
    targets
        Target of the decoder for the structures, shape (M, D).
    tangents
        Target of the direction of the encoder's gradient, shape (M, D).
    lengths
        Target of the encoder's value, shape (M,). If both are None, the encoder is free.
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
        Its hidden layers, activation, latent dimensions, and whether the decoder has tied weights.
    generator
        Random number generator of the initial weights.
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
        Mean square error of each epoch, A^2, for the selected restart.
    misalignment
        Mean of 1 - cos^2 between the gradient of the encoder and the mean path in the last epoch; 0
        if the gradient was free.
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
        If there are fewer than two structures, values are not finite, or the loss diverges.
    """
    if len(examples.inputs) < 2 or not np.isfinite(examples.inputs).all():
        raise UserError(
            "Training needs at least two structures with finite positions, not "
            f"{len(examples.inputs)}; give more structures."
        )
    # With one factor for all components, the mean square error remains the objective of the paper.
    scale = float(np.std(examples.inputs, axis=0).max())
    if not scale > 0:
        raise UserError(
            f"The {len(examples.inputs)} structures are all the same, so nothing can be learned "
            "from them; give structures of dynamics that goes from one state to the other."
        )
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
    """Return the device of a name in `Training` after testing it.

    Raises
    ------
    UserError
        If there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise UserError(
            f"device = {name!r}: torch {torch.__version__} cannot use it ({reason}); use "
            "'cpu', or install a torch with CUDA and NVIDIA's driver (https://pytorch.org)."
        ) from None
    return torch.device(name)


@dataclass(frozen=True)
class _Tensors:
    """Training data as tensors in units of the scale."""

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
    """Train one network; return the terms of the loss in its epochs, and the network."""
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
    """Run the schedule; return the terms of the loss, averaged over each epoch."""
    optimiser = torch.optim.Adam(model.parameters(), lr=training.schedule[0][0], fused=True)
    n = len(data.inputs)
    losses: list[list[float]] = []
    for rate, epochs in training.schedule:
        for group in optimiser.param_groups:
            group["lr"] = rate
        for _ in range(epochs):
            total = data.inputs.new_zeros(4)
            # Drawn on the processor, so that batches do not depend on the device.
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
    """Return the terms of the loss for some structures, shape (4,).

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
