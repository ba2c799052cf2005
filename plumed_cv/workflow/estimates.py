"""Estimates from the samples of an iteration: barriers, rates and populations with errors."""

import operator
from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy.stats import norm, t

from plumed_cv import freeenergy
from plumed_cv.common.errors import UserError
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.keys import as_json, or_none, profile_as_json, step_as_json
from plumed_cv.workflow.samples import OF_FLUX, Sampled, count_crossings

T = TypeVar("T")

MOST_BLOCKS = 60  # for errors; their time grows quadratically

# The estimators. The second one also uses the snapshots of earlier iterations.
MEAN_FORCE, POOLED = "mean force of the atoms", "mean force of the atoms in all iterations"
HISTOGRAM = "histogram"


class Estimated(NamedTuple):
    """Result of one estimator.

    Attributes
    ----------
    profile, flux
        Its profile and its flux.
    note
        Why the flux is unknown, or None.
    """

    profile: freeenergy.Profile
    flux: freeenergy.Flux
    note: str | None


def analyse_samples(
    found: Sampled,
    walkers: Sequence[int] | None = None,
    states: tuple[float, float] = (0.0, 1.0),
) -> tuple[freeenergy.Profile, dict[str, Any]]:
    """Return the profile of the samples, and barriers, differences and rates by their keys.

    If there are forces on the atoms, all estimators are evaluated. The one with the smallest error
    of the flux barrier gives the answer. Earlier iterations count only if the mean force agrees
    with and without them.

    Parameters
    ----------
    found
        The samples. Without columns of COLVAR the flux is not computed.
    walkers
        Number of blocks of each walker, one walker after the other; by default one walker.
    states
        The CV in the reactant and in the product.

    Returns
    -------
    Profile, dict
        The results contain `estimator`, which gave them; `estimators`, the results of each one;
        `estimators_agree`, null if unknown; and `pooled_snapshots`, the number of earlier snapshots
        that count.
    """
    estimates = evaluate_estimators(found, walkers, states)
    chosen = _most_precise(estimates)
    profile, flux, note = estimates[chosen]
    result: dict[str, Any] = profile_as_json(profile)
    if found.series:
        result = as_json({"flux_barrier": flux.barrier}) | result  # it is the first key
        result |= as_json({"activation_free_energy": flux.activation}) | {
            "tst_rate_per_s": or_none(flux.rate_per_s.value),
            "tst_rate_error_per_s": or_none(flux.rate_per_s.error),
            "dividing_surface": or_none(flux.surface),
            "steps": [step_as_json(step) for step in flux.steps],
            "populations": [or_none(share.value) for share in flux.populations],
            "populations_error": [or_none(share.error) for share in flux.populations],
            "depths_kT": list(flux.depths_kT),
            "note": note,
        }
    return profile, result | as_json(
        {"histogram_barrier": estimates[HISTOGRAM].profile.barrier}
    ) | {
        "estimator": chosen,
        "estimators": {
            name: as_json({"flux_barrier": each.flux.barrier, "delta_F": each.profile.delta_F})
            for name, each in estimates.items()
        },
        "estimators_agree": _agree(list(estimates.values())),
        "pooled_snapshots": found.earlier.snapshots if found.earlier and chosen == POOLED else 0,
    }


def evaluate_estimators(
    found: Sampled,
    walkers: Sequence[int] | None = None,
    states: tuple[float, float] = (0.0, 1.0),
) -> dict[str, Estimated]:
    """Return the result of each estimator by name; parameters as for `analyse_samples`."""
    estimates = {HISTOGRAM: estimate(found, None, walkers, states)}
    if found.mean_force is not None:
        if found.earlier is not None:
            together = estimate(found, found.mean_force, walkers, states, found.earlier)
            estimates = {POOLED: together} | estimates
        estimates = {MEAN_FORCE: estimate(found, found.mean_force, walkers, states)} | estimates
    return estimates


def estimate(
    found: Sampled,
    mean_force: Sequence[Array] | None,
    walkers: Sequence[int] | None = None,
    states: tuple[float, float] = (0.0, 1.0),
    earlier: freeenergy.Earlier | None = None,
) -> Estimated:
    """Results of one estimator: mean force, with `earlier` or without, or histogram.

    Parameters are those of `analyse_samples` and `freeenergy.estimate_profile`.
    """
    unknown = freeenergy.Estimate(np.nan, np.nan)
    flux, note = freeenergy.Flux(unknown, unknown, unknown, np.nan), None
    if found.series:
        try:
            flux = _flux(found, mean_force, walkers, states, earlier)
            note = flux.note
        except UserError as error:  # the profile does not need the flux
            note = str(error)
    profile = freeenergy.estimate_profile(
        found.blocks, states, mean_force, walkers=walkers, basins=flux.basins, earlier=earlier
    )
    if mean_force is None and found.series:
        profile = profile.widened(factor_of_few_crossings(found, walkers, states, flux))
    return Estimated(profile, flux, note)


def _flux(
    found: Sampled,
    mean_force: Sequence[Array] | None,
    walkers: Sequence[int] | None,
    states: tuple[float, float],
    earlier: freeenergy.Earlier | None = None,
) -> freeenergy.Flux:
    xi, gradnorm, invmass = (found.series[f"ae.{name}"] for name in OF_FLUX)
    flux = freeenergy.estimate_flux(
        found.blocks,
        xi,
        gradnorm,
        invmass,
        states,
        mean_force,
        walkers=walkers,
        earlier=earlier,
    )
    if mean_force is None:
        return flux.widened(factor_of_few_crossings(found, walkers, states, flux))
    return flux


def factor_of_few_crossings(
    found: Sampled,
    walkers: Sequence[int] | None,
    states: tuple[float, float],
    flux: freeenergy.Flux,
) -> float:
    """Factor by which the errors of a histogram must exceed those of the jackknife.

    Each crossing, and each further walker, gives one independent value of the difference between
    the two states. An error estimated from n + 1 independent values is itself uncertain:
    deviations in units of this error follow Student's t with n degrees of freedom. With the
    factor, 95 of 100 deviations are smaller than twice the error.

    Parameters
    ----------
    found, walkers, states
        As for `analyse_samples`.
    flux
        The flux of the histogram, with the minima of reactant and product.

    Returns
    -------
    float
        NaN if there are fewer than two values, because the error is then unknown.
    """
    walkers = [len(found.blocks)] if walkers is None else list(walkers)
    ends = (flux.steps[0].reactant, flux.steps[-1].product) if flux.steps else states
    values = count_crossings(found.series["ae.node-0"], walkers, ends) + len(walkers) - 1
    return float(t.ppf(0.975, values - 1) / norm.ppf(0.975)) if values > 1 else np.nan


def _most_precise(estimates: dict[str, Estimated]) -> str:
    """The estimator with the smallest error of the flux barrier; the first one if none is known.

    It is never that of all iterations if it disagrees with the iteration's own mean force.
    """
    errors = {name: each.flux.barrier.error for name, each in estimates.items()}
    known = [name for name, error in errors.items() if np.isfinite(error)]
    if POOLED in known:
        own = [estimates[MEAN_FORCE], estimates[POOLED]]
        if MEAN_FORCE not in known or not _agree(own):
            known.remove(POOLED)
    return min(known, key=errors.__getitem__) if known else next(iter(estimates))


def _agree(estimates: Sequence[Estimated]) -> bool | None:
    """Whether flux barriers and differences of all pairs of estimators agree; None if unknown.

    Unknown values of a pair are not compared. The others agree within three times the larger of the
    two errors. Both estimates come from the same trajectory, so their difference has a smaller
    error than that of independent ones, which is the root of the sum of squares.
    """
    verdicts = []
    for pair in combinations(estimates, 2):
        for one, other in (
            [each.flux.barrier for each in pair],
            [each.profile.delta_F for each in pair],
        ):
            off, limit = abs(one.value - other.value), 3.0 * max(one.error, other.error)
            if np.isfinite([off, limit]).all():
                verdicts.append(bool(off < limit))
    return all(verdicts) if verdicts else None


def analyse_course(
    found: Sampled,
    walkers: Sequence[int],
    result: dict[str, Any],
) -> dict[str, Any]:
    """Return the course of an iteration: `crossings` and the flux barriers of both halves.

    Parameters
    ----------
    found
        Samples of the iteration.
    walkers
        Number of segments of each walker.
    result
        Result of the iteration: `estimator`, and `steps` with the minima of reactant and product.
    """
    steps = result.get("steps") or [{}]
    ends = (steps[0].get("reactant_xi", 0.0), steps[-1].get("product_xi", 1.0))
    own = np.split(np.arange(len(found.blocks)), np.cumsum(walkers)[:-1])
    halves = zip(*(np.array_split(segments, 2) for segments in own), strict=True)
    first, second = (estimate_flux_barrier(found, half, result.get("estimator")) for half in halves)
    return {
        "crossings": count_crossings(found.series["ae.node-0"], walkers, ends),
        **as_json({"first_half_flux_barrier": first, "second_half_flux_barrier": second}),
    }


def estimate_flux_barrier(
    found: Sampled,
    by_walker: Sequence[Sequence[int]],
    estimator: str | None,
    states: tuple[float, float] = (0.0, 1.0),
) -> freeenergy.Estimate:
    """Return the flux barrier from some segments, in few blocks so that its error is fast.

    Parameters
    ----------
    found
        What was sampled.
    by_walker
        The numbers of the segments of each walker.
    estimator
        `MEAN_FORCE` or `POOLED`, if the mean force is to be taken: that of these segments alone.
        Earlier iterations would be the same in every part of a run, and hide that parts differ.
    states
        The CV in the reactant and in the product.

    Returns
    -------
    Estimate
        Unknown where there is none.
    """
    most = max(1, MOST_BLOCKS // max(1, len(by_walker)))
    split = [np.array_split(own, min(len(own), most)) for own in by_walker if len(own)]
    groups = [group for own in split for group in own]
    if not groups:
        return freeenergy.Estimate(np.nan, np.nan)

    def merged(parts: Sequence[T]) -> list[T]:
        return [reduce(operator.add, [parts[k] for k in group]) for group in groups]

    xi, gradnorm, invmass = (
        [np.concatenate([found.series[f"ae.{name}"][k] for k in group]) for group in groups]
        for name in OF_FLUX
    )
    atoms = None
    if found.mean_force is not None and estimator in (MEAN_FORCE, POOLED):
        atoms = merged(found.mean_force)
    part = Sampled(
        merged(found.blocks),
        atoms,
        {"ae.node-0": xi, "ae.gradnorm": gradnorm, "ae.invmass": invmass},
    )
    try:
        return _flux(part, atoms, [len(own) for own in split], states).barrier
    except UserError:
        return freeenergy.Estimate(np.nan, np.nan)
