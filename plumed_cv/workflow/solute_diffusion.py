"""Diffusion coefficient of a solute from the rates of its catalogue, with errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import units

from plumed_cv.events.catalogue import Catalogue
from plumed_cv.events.diffusion import (
    FEW_STATES,
    STATES,
    Walk,
    combine_rates,
    compute_correlation_factors,
    compute_diffusivity,
    compute_solute_diffusivity,
)
from plumed_cv.events.exports import Rates
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.formation import Formation
from plumed_cv.workflow.propagation import compute_slopes, error_of, propagate_error

_FAR_EV = 0.03  # energies of the farthest pairs above this are worth a word


def walk_of(catalogue: Catalogue, values: Array) -> Walk:
    """Walk of the defect, without a solute, from the values of `Rates`."""
    network, n = catalogue.network, len(catalogue.events)
    kinds = network.sites.number_of_kinds
    return combine_rates(network, np.exp(values[: len(network.jumps)]), values[n : n + kinds])


def compute_solute(
    catalogue: Catalogue,
    rates: Rates,
    formation: Formation | None,
    of_rates: Sequence[dict[str, Any]],
    *,
    ratio: bool,
) -> dict[str, Any]:
    """Coefficient of the solute, or what is known of it without the concentration of vacancies.

    The shares of the variance in `of_rates` become those of the coefficient of the solute. `ratio`
    is whether its ratio to that of a tracer is computed.
    """
    network, pairs, values = catalogue.network, catalogue.pairs, rates.values
    assert pairs is not None
    n, own = len(catalogue.events), len(network.jumps)

    def tensors(given: Array, states: tuple[int, int]) -> tuple[Array, Array]:
        walk = walk_of(catalogue, given)
        return compute_solute_diffusivity(
            network, walk, pairs, np.exp(given[own:n]), given[n:], states
        )

    def ln_solute(given: Array) -> float:
        return float(np.log(np.trace(tensors(given, FEW_STATES)[0]) / 3.0))

    def ln_tracer(given: Array, states: tuple[int, int] = FEW_STATES) -> float:
        walk = walk_of(catalogue, given)
        factors = compute_correlation_factors(network, walk, states)
        return float(np.log(np.trace(factors @ compute_diffusivity(walk)) / 3.0))

    tensor, uncorrelated = tensors(values, STATES)
    slopes = compute_slopes(ln_solute, values, rates.covariance)
    error = error_of(slopes, rates.covariance)
    for k, each in enumerate(of_rates):
        share = slopes[k] ** 2 * rates.covariance[k, k]
        each["share_of_variance"] = float(share / error**2) if error > 0 else 0.0
    row: dict[str, Any] = {
        "solute_correlation_factor": float(np.trace(tensor) / np.trace(uncorrelated)),
        "solute_error_factor": float(np.exp(error)),
    }
    if ratio:
        tracer = ln_tracer(values, STATES)
        of_ratio = propagate_error(lambda given: ln_solute(given) - ln_tracer(given), values,
                          rates.covariance)  # fmt: skip
        row["solute_to_tracer"] = float(np.trace(tensor) / 3.0 / np.exp(tracer))
        row["solute_to_tracer_error_factor"] = float(np.exp(of_ratio))
    if formation is not None:
        kT = units.kB * rates.temperature_K
        energy, of_energy = formation.at(rates.temperature_K)
        D = np.exp(-energy / kT) * rates.stretch**2 * np.trace(tensor) / 3.0
        row["D_solute_m2_per_s"] = float(D * 1e-20)
        row["solute_error_factor"] = float(np.exp(np.hypot(error, of_energy / kT)))
    return row


def describe_farthest_pair(catalogue: Catalogue) -> str | None:
    """What a reader must know if the farthest pairs are not free of interaction."""
    pairs = catalogue.pairs
    assert pairs is not None
    energies = [pairs.energies_eV[kind] for kind in pairs.references]
    worst = max(energies, key=abs)
    if abs(worst) < _FAR_EV:
        return None
    return (
        f"the farthest pair of the {pairs.solute} atom and a vacancy has an energy of "
        f"{worst:+.3f} eV relative to both alone, which enters the population of all pairs; try a "
        "wider cell (--width) or a longer range (--solute-range) in 'plumed-cv jumps'."
    )
