"""The Morse potential of torch-sim, with the derivatives of its energy as forces.

The forces of the pair potentials that come with torch-sim 0.3 are twice these.
"""

from typing import Any

import torch
from torch_sim.models.interface import ModelInterface
from torch_sim.models.morse import MorseModel


class Metal(ModelInterface):  # type: ignore[misc]
    """In double precision; without a stress."""

    def __init__(self, **arguments: float) -> None:
        super().__init__()
        self._device, self._dtype = torch.device("cpu"), torch.float64
        self._compute_forces, self._compute_stress = True, False
        self._of_pairs = MorseModel(dtype=self._dtype, **arguments)

    def forward(self, state: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Energy (M,) and forces (M N, 3)."""
        state.positions = state.positions.detach().requires_grad_()
        energy = self._of_pairs(state)["energy"]
        (slope,) = torch.autograd.grad(energy.sum(), state.positions)
        return {"energy": energy.detach(), "forces": -slope}
