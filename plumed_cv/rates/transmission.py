"""The transmission coefficient and its error, computed from shots.

The rate is k = kappa k_TST. k_TST counts every crossing of the dividing surface towards the product
as a reaction. kappa is the part of this flux that comes from one state and stays in the other
(Bennett, ACS Symp. Ser. 46, 63 (1977); Chandler, J. Chem. Phys. 68, 2959 (1978),
doi:10.1063/1.436049). If a trajectory joins the two basins with N crossings of the surface, a shot
could have started from each of the crossings with equal probability, and all of them belong to one
reaction. Therefore

    kappa = < h / N >,   h = 1 if the shot joins the two basins in either direction, else 0,

with the mean over the flux through the surface. The effective positive flux (van Erp and Bolhuis,
J. Comput. Phys. 205, 157 (2005), doi:10.1016/j.jcp.2004.11.003) counts only the first crossing.
kappa is its mean over all crossings of the same trajectory and so has a smaller variance. Hummer,
J. Chem. Phys. 120, 516 (2004), doi:10.1063/1.1630572, weights transition paths in the same way. The
reactive flux of Bennett and Chandler,

    kappa(t) = < theta(xi(t) - xi*) - theta(xi(-t) - xi*) >,

is computed from the same shots. Its plateau does not use the numbers of crossings: it is a check.

Few snapshots lie on the surface itself. Each shot starts on the isosurface of its own snapshot,
xi_i, and crossings of this isosurface are counted. kappa exp(-W/kT), with W the free energy of the
flux, is the same for all isosurfaces. Therefore every shot contributes to

    kappa(xi*) = < speed h/N exp(-(W(xi_i) - W*)/kT) > / < speed >,

where W* is the value from which k_TST is computed. The mean is over snapshots at given xi, and the
bias does not change it; the distribution of xi_i does not matter either. The weight `speed`, the
square root of sum_i |grad_i xi|^2/m_i, turns a mean over structures into a mean over the flux.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.freeenergy.jackknife import Estimate, jackknife
from plumed_cv.rates.shots import Leg, Shot
from plumed_cv.structures.frame import Array

TIMES = 61  # number of times of the plateau
FEWEST_SNAPSHOTS = 6  # with fewer snapshots no error is given
MOST_RETURNS = 0.2  # largest fraction of returns by chance for which the correction holds


@dataclass(frozen=True, eq=False)
class Transmission:
    """Result of the shots from one surface.

    Attributes
    ----------
    kappa
        The transmission coefficient, corrected for returns by chance.
    reactive_flux
        The same from the plateau of the reactive flux.
    times_fs, plateau, plateau_error
        kappa(t), (n,) each, without this correction.
    returns
        Fraction of the transitions that are undone by chance within the residence time, by an
        independent transition back. The shots take them for recrossings.
    shots, snapshots, n_steps
        Number of shots, of structures from which they start, and of steps of dynamics.
    unresolved, left, other
        Fractions of the trajectories that were not committed at the time limit, that left the
        process, and that left it before they reached the core of a basin.
    recrossing
        Fraction of the shots joining the two basins that cross the surface more than once.
    crossings
        Mean number of crossings of these shots, averaged over the flux.
    crossing_time_fs
        Mean time from the first to the last crossing of the shots that recross.
    commitment_fs
        Mean time from the surface to the last crossing, plus the residence time after it.
    committor
        Mean fraction of trajectories from structures on the surface that end behind it.
    committor_spread
        Standard deviation of that fraction from structure to structure. It is 0 for the best
        surface, whose committor is 1/2 everywhere, and 0.5 if each structure determines the end.
        NaN if no structure has two shots.
    committors
        Fraction of the trajectories that end behind the surface, for each structure with at least
        two shots.
    """

    kappa: Estimate
    reactive_flux: Estimate
    times_fs: Array
    plateau: Array
    plateau_error: Array
    returns: float
    shots: int
    snapshots: int
    n_steps: int
    unresolved: float
    left: float
    other: float
    recrossing: float
    crossings: float
    crossing_time_fs: float
    commitment_fs: float
    committor: float
    committor_spread: float
    committors: Array

    @property
    def relative_error(self) -> float:
        """The error of kappa divided by kappa; infinite if the error is unknown."""
        if not (np.isfinite(self.kappa.error) and self.kappa.value > 0):
            return np.inf
        return self.kappa.error / self.kappa.value


def estimate_transmission(
    shots: Sequence[Shot],
    above: Callable[[Array], Array],
    kT_eV: float,
    series: Callable[[str], str] = lambda segment: "",
    both_per_fs: float = 0.0,
    residence_fs: float = np.inf,
) -> Transmission:
    """Return the transmission coefficient of some shots.

    Parameters
    ----------
    shots
        At least one.
    above
        W(xi) - W* at values of the collective variable, (m,) -> (m,), eV.
    kT_eV
        Temperature, eV.
    series
        The independent run that each segment belongs to, by the name of the segment. Segments of
        one run are correlated; their names are in chronological order.
    both_per_fs
        Sum of the rates of transition state theory in both directions, 1/fs.
    residence_fs
        How long a trajectory must stay on one side before it is committed.

    Notes
    -----
    A trajectory that has come to a basin leaves it again with the rate k of an independent
    transition. Within the residence time t this looks like a recrossing, so the apparent
    coefficient is too small by a factor exp(-(k_forward + k_backward) t), with which the plateau
    decays (Chandler, J. Chem. Phys. 68, 2959 (1978)). The coefficient is divided by it. The time is
    shorter where the trajectory leaves the process before.
    """
    shots = sorted(shots, key=lambda shot: (series(shot.snapshot[0]), *shot.snapshot))
    xi = np.array([shot.xi for shot in shots])
    speed = np.array([shot.speed for shot in shots])
    weight = speed * np.exp(-above(xi) / kT_eV)
    joins = np.array([_joins(shot) for shot in shots])
    number = np.array([_crossings(shot) for shot in shots])
    times = _times(shots)
    over_time = np.array([_behind(shot.forward, times, True) for shot in shots], dtype=float)
    over_time -= np.array([_behind(shot.backward, times, False) for shot in shots], dtype=float)
    signed = np.array([_sign(shot) for shot in shots], dtype=float)
    columns = np.column_stack([speed, weight * joins / number, weight * signed])
    columns = np.concatenate([columns, weight[:, None] * over_time], axis=1)
    value, error = _means(columns, shots, series)
    legs = [leg for shot in shots for leg in (shot.forward, shot.backward)]
    reactive, flux = joins > 0, weight / number
    exposed = np.array([_exposed_fs(shot, residence_fs) for shot in shots])
    returns = 0.0
    if both_per_fs > 0 and reactive.any():
        bound = both_per_fs * _mean(exposed, flux, reactive)
        returns = _returns(float(value[0]), bound)
    factor = 1.0 / (1.0 - returns)
    again = reactive & (number > 1)
    committor, spread, committors = _committors(shots, speed)
    return Transmission(
        kappa=Estimate(float(value[0]) * factor, float(error[0]) * factor**2, ""),
        reactive_flux=Estimate(float(value[1]) * factor, float(error[1]) * factor**2, ""),
        times_fs=times,
        plateau=value[2:],
        plateau_error=error[2:],
        returns=returns,
        shots=len(shots),
        snapshots=len({shot.snapshot for shot in shots}),
        n_steps=sum(shot.n_steps for shot in shots),
        unresolved=_share(legs, lambda leg: leg.end == "unresolved"),
        left=_share(legs, lambda leg: leg.left),
        other=_share(legs, lambda leg: leg.end == "other"),
        recrossing=_mean(again, flux, reactive),
        crossings=_mean(number, flux, reactive),
        crossing_time_fs=_mean(np.array([_duration(shot) for shot in shots]), flux, again),
        commitment_fs=float(np.mean([leg.time_fs for leg in legs])),
        committor=committor,
        committor_spread=spread,
        committors=committors,
    )


def _means(
    columns: Array, shots: Sequence[Shot], series: Callable[[str], str]
) -> tuple[Array, Array]:
    """Sums of the columns divided by the sum of the first one, and the errors of these ratios.

    The parts are the segments of the sampling: shots from one segment are not independent. The
    error is that of `jackknife`, or that of independent shots where this is larger.
    """
    names = [shot.snapshot[0] for shot in shots]
    starts = [0, *(k for k in range(1, len(names)) if names[k] != names[k - 1])]
    parts = np.add.reduceat(columns, starts, axis=0)
    runs = [series(names[start]) for start in starts]
    lengths = [runs.count(run) for run in dict.fromkeys(runs)]
    value, error = jackknife(
        list(parts), parts[:, 0].tolist(), lambda total: total[1:] / total[0], lengths
    )
    if len(starts) < FEWEST_SNAPSHOTS:
        return value, np.full_like(error, np.nan)
    # Of few segments the jackknife's own error is large: never less than that of independent shots.
    weight = columns[:, :1]
    apart = columns[:, 1:] - weight * value
    independent = np.sqrt(np.sum(apart**2, axis=0)) / weight.sum()
    return value, np.maximum(error, independent)


def _joins(shot: Shot) -> bool:
    return {shot.forward.end, shot.backward.end} == {"before", "behind"}


def _sign(shot: Shot) -> int:
    """1 for a shot from before the surface to behind it, -1 for the opposite direction."""
    if not _joins(shot):
        return 0
    return 1 if shot.forward.end == "behind" else -1


def _crossings(shot: Shot) -> int:
    return 1 + len(shot.forward.crossings_fs) + len(shot.backward.crossings_fs)


def _duration(shot: Shot) -> float:
    """Time from the first crossing to the last."""
    return sum((leg.crossings_fs or (0.0,))[-1] for leg in (shot.forward, shot.backward))


def _returns(apparent: float, bound: float) -> float:
    """Fraction of the transitions that return by chance, at most a little above `MOST_RETURNS`.

    Parameters
    ----------
    apparent
        The coefficient without correction.
    bound
        (k_forward + k_backward) t with the rates of transition state theory.
    """
    returns = 0.0
    for _ in range(20):  # the rates contain the corrected coefficient
        returns = 1.0 - np.exp(-apparent / (1.0 - returns) * bound)
        if returns > MOST_RETURNS:
            break
    return float(min(returns, 1.1 * MOST_RETURNS))


def _exposed_fs(shot: Shot, residence_fs: float) -> float:
    """Time during which a shot could come back by chance, mean of both trajectories."""
    times = []
    for leg in (shot.forward, shot.backward):
        stay = leg.time_fs - (leg.crossings_fs or (0.0,))[-1]
        if leg.left:  # away from the path for this long, in which crossings do not count
            stay -= residence_fs
        times.append(min(max(stay, 0.0), residence_fs))
    return float(np.mean(times))


def _times(shots: Sequence[Shot]) -> Array:
    """Times for the plateau, to beyond nearly all crossings."""
    last = [
        (leg.crossings_fs or (0.0,))[-1] for shot in shots for leg in (shot.forward, shot.backward)
    ]
    longest = max(leg.time_fs for shot in shots for leg in (shot.forward, shot.backward))
    return np.linspace(0.0, min(longest, max(100.0, 1.25 * float(np.quantile(last, 0.98)))), TIMES)


def _behind(leg: Leg, times: Array, starts_behind: bool) -> Array:
    """Whether a trajectory is behind the surface at some times; after its end nothing changes."""
    crossed = np.searchsorted(np.array(leg.crossings_fs), times, side="right")
    return np.asarray((crossed % 2 == 0) == starts_behind)


def _share(legs: Sequence[Leg], is_one: Callable[[Leg], bool]) -> float:
    return float(np.mean([is_one(leg) for leg in legs]))


def _mean(values: NDArray[Any], weights: Array, chosen: NDArray[np.bool_]) -> float:
    if not chosen.any():
        return np.nan
    return float(np.average(values[chosen], weights=weights[chosen]))


def _committors(shots: Sequence[Shot], speed: Array) -> tuple[float, float, Array]:
    """Mean and spread of the committor, and its estimates for single structures.

    If a structure has the committor p, the mean product of two independent shots is p^2.
    """
    behind = {"before": 0.0, "behind": 1.0}
    of_shots = [
        [behind[leg.end] for leg in (shot.forward, shot.backward) if leg.end in behind]
        for shot in shots
    ]
    known = [k for k, ends in enumerate(of_shots) if len(ends) == 2]
    if not known:
        return np.nan, np.nan, np.zeros(0)
    share = {k: float(np.mean(of_shots[k])) for k in known}
    mean = float(np.average(list(share.values()), weights=speed[known]))
    by_structure: dict[tuple[str, int], list[float]] = {}
    for k in known:
        by_structure.setdefault(shots[k].snapshot, []).append(share[k])
    several = [shares for shares in by_structure.values() if len(shares) > 1]
    if not several:
        return mean, np.nan, np.zeros(0)
    single = np.mean([np.mean(shares) for shares in several])
    pairs = [
        (np.sum(shares) ** 2 - np.sum(np.square(shares))) / (len(shares) * (len(shares) - 1))
        for shares in several
    ]
    spread = float(max(0.0, np.mean(pairs) - single**2) ** 0.5)
    return mean, spread, np.array([np.mean(shares) for shares in several])


def as_json(found: Transmission) -> dict[str, Any]:
    """Return the numbers for result.json; unknown ones are None."""

    def known(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    return {
        "transmission": known(found.kappa.value),
        "transmission_error": known(found.kappa.error),
        "reactive_flux": known(found.reactive_flux.value),
        "reactive_flux_error": known(found.reactive_flux.error),
        "plateau": {
            "time_fs": found.times_fs.tolist(),
            "transmission": [known(value) for value in found.plateau],
            "transmission_error": [known(value) for value in found.plateau_error],
        },
        "returns_by_chance": found.returns,
        "shots": found.shots,
        "snapshots": found.snapshots,
        "md_steps": found.n_steps,
        "unresolved": found.unresolved,
        "left": found.left,
        "left_before_a_basin": found.other,
        "recrossing": known(found.recrossing),
        "crossings": known(found.crossings),
        "recrossing_time_fs": known(found.crossing_time_fs),
        "trajectory_fs": known(found.commitment_fs),
        "committor": known(found.committor),
        "committor_spread": known(found.committor_spread),
        "committors": found.committors.tolist(),
    }
