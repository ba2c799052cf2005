"""Settings of the training of an autoencoder, and the two recipes.

The recipe of the paper reconstructs the noisy structures themselves. A loss that consists of noise
hardly depends on the slope of the encoder across the path, which determines energies (Eq. 18). The
default recipe is a denoising autoencoder. It maps a noisy structure to its point of the mean path,
keeps the gradient of the encoder parallel to the path, and makes its value the length of the path,
so that equal steps of the variable are equal distances. Without noise this loss is zero, so a lower
loss means a better collective variable.

Nothing here imports torch, which takes seconds. `autoencoder` performs the training.
"""

import re
from dataclasses import dataclass
from typing import Literal

from plumed_cv.common.errors import UserError
from plumed_cv.cv import meanpath
from plumed_cv.cv.network import ACTIVATIONS

# Learning rate and epochs of each stage.
SCHEDULE: tuple[tuple[float, int], ...] = (
    (2e-2, 20),
    (1e-2, 20),
    (4e-3, 15),
    (1e-3, 12),
    (2e-4, 8),
)

# Schedule of the paper: from 20 epochs at 0.02 down to 200 at 5e-6 (Sec. 3.1).
PAPER_SCHEDULE: tuple[tuple[float, int], ...] = (
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


@dataclass(frozen=True)
class Training:
    """Settings of a training; `RECIPES` has named ones, such as the paper's (Sec. 3.1).

    Parameters
    ----------
    hidden
        Widths of the hidden layers of the encoder; the decoder mirrors them. If None, two layers of
        width D for the target "structure", as in the paper, and of width 2D for the "mean path".
    activation
        Activation of the hidden layers: relu, tanh, elu, softplus, silu or sigmoid.
    tied
        Whether the decoder uses the transposed weights of the encoder.
    subspace
        Components of the "mean path" through the structures, or of the structures themselves:
        "pca".
    target
        Target of the decoder: the point of the "mean path" that belongs to the structure, with the
        gradient of the encoder along the path, or the "structure".
    functions
        Number of Legendre polynomials of the mean path. There is at least one component fewer. The
        choice of `meanpath.fit` if None. A run sets it from the length of its path.
    n_latent
        Number of latent dimensions d; more than one only for the target "structure".
    schedule
        Pairs of learning rate and epochs.
    batch_size
        Number of structures in a batch.
    restarts
        Number of networks with different initial weights; the one with the lowest loss is kept.
    seed
        Seed of weights and batches, which do not depend on the device.
    device
        Device of the training: "cpu"; "cuda", an NVIDIA GPU (or "cuda:1", ...); "auto", a GPU if
        there is one.
    precision
        "single" or "double". In double precision, GPU and processor agree except for rounding.

    Raises
    ------
    UserError
        If a setting is impossible, or two settings contradict each other.
    """

    hidden: tuple[int, ...] | None = None
    activation: str = "tanh"
    tied: bool = False
    subspace: Literal["mean path", "pca"] = "mean path"
    target: Literal["mean path", "structure"] = "mean path"
    functions: int | None = None
    n_latent: int = 1
    schedule: tuple[tuple[float, int], ...] = SCHEDULE
    batch_size: int = 250
    restarts: int = 1
    seed: int = 0
    device: str = "cpu"
    precision: Literal["single", "double"] = "single"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"There is no activation {self.activation!r}; choose one of "
                f"{', '.join(ACTIVATIONS)}."
            )
        if self.hidden is not None and not (self.hidden and min(self.hidden) > 0):
            raise UserError(f"Hidden layers of widths {self.hidden}: give positive numbers.")
        if min(self.n_latent, self.batch_size, self.restarts) < 1:
            raise UserError("Latent dimensions, batch size and restarts must be 1 or more.")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UserError(f"device = {self.device!r}: choose cpu, cuda, cuda:1, ..., or auto.")
        if self.precision not in ("single", "double"):
            raise UserError(f"precision = {self.precision!r}: choose single or double.")
        if self.n_latent > 1 and self.target == "mean path":
            raise UserError(
                f"{self.n_latent} latent dimensions: a mean path has one; use the recipe 'paper', "
                "whose target is the structure."
            )

    def default_width(self, n_components: int) -> int:
        """Width of the hidden layers for D components if `hidden` is None."""
        return n_components if self.target == "structure" else 2 * n_components

    def limited(self, n_components: int, at_rest: bool = False) -> int:
        """Return the number of components, limited to L - 1 for a mean path of L functions."""
        if self.subspace == "pca":
            return n_components
        default = meanpath.AT_REST_FUNCTIONS if at_rest else meanpath.N_FUNCTIONS
        return min(n_components, (self.functions or default) - 1)

    @property
    def n_epochs(self) -> int:
        """Total number of epochs of all restarts."""
        return self.restarts * sum(epochs for _, epochs in self.schedule)


# Recipes by name.
RECIPES = {
    "denoising": Training(),
    "paper": Training(
        activation="relu",
        tied=True,
        subspace="pca",
        target="structure",
        schedule=PAPER_SCHEDULE,
        batch_size=1000,
    ),
}
