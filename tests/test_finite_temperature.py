"""The committed runs of python/finite_temperature.py against the independent references."""

import json

import numpy as np
import pytest

from python import finite_temperature


@pytest.mark.committed
@pytest.mark.parametrize("temperature_K", finite_temperature.STEPS)
def test_flux_barriers_of_the_last_iteration(temperature_K: int) -> None:
    """A learned CV's surfaces are between those of the linear CV and planes of the path.

    Three errors, of some twenty degrees of freedom: one in two hundred would be further away.
    """
    data = json.loads(finite_temperature.DATA.read_text(encoding="utf-8"))
    runs = [run["result"] for run in data.values() if run["temperature_K"] == temperature_K]
    assert runs
    found = finite_temperature.references(temperature_K)
    for run in runs:
        value, error = run["flux_barrier_eV"], run["flux_barrier_error_eV"]
        ends = [
            reference["symmetric_flux_barrier_eV"]
            + sign * 3 * np.hypot(error, reference["symmetric_flux_barrier_error_eV"])
            for reference in found.values()
            for sign in (-1, 1)
        ]
        low, high = min(ends), max(ends)
        assert low < value < high
        assert abs(run["delta_F_eV"]) < 3 * run["delta_F_error_eV"]
        assert run["converged"]
