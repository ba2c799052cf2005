"""A Lennard-Jones potential as a model of torch-sim.

The one that comes with torch-sim 0.3 has forces that are twice the gradient of its energy.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch_sim
from ase import Atoms
from ase.neighborlist import neighbor_list
from torch_sim.models.interface import ModelInterface


class Argon(ModelInterface):  # type: ignore[misc]
    """The energy is shifted to zero at the cutoff; forces and stress are its derivatives."""

    def __init__(self, epsilon: float, sigma: float, rc: float) -> None:
        super().__init__()
        self._device, self._dtype = torch.device("cpu"), torch.float64
        self._compute_forces = self._compute_stress = True
        self.epsilon, self.sigma, self.rc = epsilon, sigma, rc

    def forward(self, state: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Energy (M,), forces (M N, 3) and stress (M, 3, 3)."""
        found = [self._of_one(*system) for system in self._systems(state)]
        energy, forces, stress = zip(*found, strict=True)
        return {
            "energy": torch.stack(energy),
            "forces": torch.cat(forces),
            "stress": torch.stack(stress),
        }

    def _systems(self, state: Any) -> Iterator[tuple[Atoms, torch.Tensor]]:
        for k, atoms in enumerate(torch_sim.io.state_to_atoms(state)):
            yield atoms, state.positions[state.system_idx == k]

    def _of_one(
        self, atoms: Atoms, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first, second, shifts = neighbor_list("ijS", atoms, self.rc)
        positions = positions.detach().clone().requires_grad_()
        strain = torch.zeros(3, 3, dtype=self._dtype, requires_grad=True)
        images = torch.tensor(shifts @ atoms.cell.array)
        vectors = positions[second] - positions[first] + images
        lengths = (vectors + vectors @ strain).norm(dim=1)
        power, edge = (self.sigma / lengths) ** 6, (self.sigma / self.rc) ** 6
        energy = 2 * self.epsilon * (power**2 - power - edge**2 + edge).sum()  # pairs come twice
        slope, virial = torch.autograd.grad(energy, (positions, strain))
        volume = atoms.cell.volume or 1.0
        return energy.detach(), -slope, virial / volume
