"""Models for TORCH_CV, and their files."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class Distance(nn.Module):
    """The distance of the first two atoms by the minimum image, in a cell of any shape."""

    def forward(self, positions: Tensor, cell: Tensor) -> Tensor:
        step = positions[1] - positions[0]
        images = torch.round(step.detach() @ torch.linalg.inv(cell.detach()))
        return (step - images @ cell).square().sum().sqrt()


def save(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module.eval()).save(str(path))
    return path


def network(n_inputs: int, n_outputs: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(4)
    layers = nn.Sequential(nn.Linear(n_inputs, 8), nn.Tanh(), nn.Linear(8, n_outputs))
    return layers.to(dtype)


FOUR_ATOMS = np.array([[0.0, 0.0, 0.0], [1.4, 0.1, 0.2], [2.0, 1.4, -0.3], [3.1, 1.2, 0.9]])
