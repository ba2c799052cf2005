"""An observer of trajectories; the engines' processes import it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Recorder:
    """Records each step, and ends the trajectory after `enough` steps."""

    enough: int = 10**9
    seen: list[Array] = field(default_factory=list)

    def see(self, positions: Array) -> bool:
        self.seen.append(positions)
        return len(self.positions) >= self.enough

    @property
    def positions(self) -> Array:
        return np.concatenate(self.seen)
