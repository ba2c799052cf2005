"""The end states of docs/other-processes.md are the defects that the page names."""

import numpy as np
import pytest

from python import other_processes


@pytest.mark.parametrize("name", other_processes.PROCESSES)
def test_one_atom_moves_or_a_dumbbell_jumps(name: str) -> None:
    initial, final = other_processes.PROCESSES[name]["ends"]()
    assert list(initial.symbols) == list(final.symbols)
    moved = np.linalg.norm(final.positions - initial.positions, axis=1)
    if "vacancy" in name:
        assert (moved > 0.1).sum() == 1
        distances = initial.get_all_distances(mic=True)
        assert moved.max() == pytest.approx(distances[distances > 0].min(), rel=0.01)
    tilted = np.abs(np.tril(initial.cell.array, -1)).max() > 1.0
    assert tilted == name.startswith(("vacancy in Cu", "vacancy in Mg"))
