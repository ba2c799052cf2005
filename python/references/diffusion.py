"""Diffusion coefficients of vacancies from plain dynamics, for docs/diffusion.md.

    python -m python.references.diffusion      # from docs/flux.json, hops.json, transmission.json

The first two tables are of the iron vacancy at 1000 K, the third one is of other temperatures and
elements, with the rates of `transmission`, and the last one is of hydrogen in nickel.

The dynamics is that of `flux`: three trajectories, here as one. The first table compares

    D = 1/6 d/dt <|x(t) - x(0)|^2>

of the vacancy, between two times, with D = z k d^2 / 6 for z = 8 jumps of length d with the rates k
that were counted (`hops` defines them) or computed by plumed_cv.

The second table has the sum of the coefficients of all atoms, from their mean square displacements
between two times. Divided by that of the vacancy, it becomes the correlation factor at long times.
The coefficient of the vacancy is that of the lasting hops, or that between the same two times.
Beside it is the exact ratio of a random walk in the same cell of 128 sites. Errors are the
jackknife over 20 blocks.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from plumed_cv.common.files import read_json
from plumed_cv.common.numbers import error_of_factor, scientific
from plumed_cv.structures.frame import Array
from python.references import defects, flux, hops, plain_dynamics, transmission

NAME = "fe-1000K"
TEMPERATURES = ("fe-700K", "fe-850K", "fe-1000K", "al-850K", "cu-1000K")
LAGS_PS = (2, 10, 20, 50, 100, 200)
_UNIT = 10.0  # angstrom^2/ps in 1e-9 m^2/s
_FRAMES_PER_PS = round(1000.0 / plain_dynamics.FRAME_FS)


def displacements(
    case: defects.Case, whole: hops.Found, every: Sequence[hops.Hop]
) -> tuple[Array, Array]:
    """Sum of the jumps up to each picosecond.

    Returns
    -------
    atoms, defect
        Shapes (M, N, 3) and (M, 3), angstrom.
    """
    moved = np.zeros((whole.frames // _FRAMES_PER_PS + 1, len(case.start()[1]), 3))
    for hop in every:
        moment = int(np.ceil(hop.time_fs / 1000.0))
        if moment < len(moved):
            moved[moment, hop.atom] += hops.vector(case, hop)
    atoms = np.cumsum(moved, axis=0)
    return atoms, -atoms.sum(axis=1) if case.interstitial is None else atoms[:, -1]


def coefficients(places: Array, lags_ps: tuple[int, int]) -> Array:
    """Diffusion coefficient from the growth of the square displacement between two times.

    Parameters
    ----------
    places
        At each picosecond, shape (M, N, 3), angstrom.
    lags_ps
        Both times.

    Returns
    -------
    Array
        Shape (`hops.BLOCKS`,), 1e-9 m^2/s: the sum over all N, from each block of beginnings.
    """
    starts = len(places) - lags_ps[1]
    early, late = (
        np.sum((places[lag : lag + starts] - places[:starts]) ** 2, axis=(1, 2)) for lag in lags_ps
    )
    means = [block.mean() for block in np.array_split(late - early, hops.BLOCKS)]
    return np.array(means) / (6.0 * (lags_ps[1] - lags_ps[0])) * _UNIT


def walked(lags_ps: tuple[int, int], rate_per_s: float) -> float:
    """Return the same ratio for a random walk: one vacancy and all atoms in the periodic cell.

    The states are the positions s of the vacancy relative to an atom. The atom jumps only if the
    vacancy is beside it, with the mean velocity b_s, and the next jump remembers this one:

        <|x(t)|^2> = z k d^2 t - 2 int_0^t (t - t') b exp(-L t') b dt' ,

    summed over the atoms, with the matrix L of the rates of the states.
    """
    case = flux.CASES[NAME]
    sites, edge = case.sites(), case.edge_A
    apart = sites[:, None] - sites
    apart -= edge * np.round(apart / edge)
    near = np.abs(np.linalg.norm(apart, axis=2) - hops.hop_A(case)) < 0.1
    k = rate_per_s * 1e-12  # 1/ps
    leave = k * near
    beside = np.flatnonzero(near[0])  # the atom is on site 0
    for site in beside:
        # The exchange: the vacancy is then on the other side of the atom.
        other = int(np.argmin(np.linalg.norm(_image(apart[:, 0] + apart[site, 0], edge), axis=1)))
        leave[site, 0] = 0.0
        leave[site, other] += k
    states = slice(1, None)
    matrix = leave[states, states]
    values, vectors = np.linalg.eigh(np.diag(matrix.sum(axis=1)) - matrix)
    velocity = np.zeros((len(sites), 3))
    velocity[beside] = k * apart[beside, 0]
    weights = np.sum((vectors.T @ velocity[states]) ** 2, axis=1)
    moving = values > 1e-9 * values.max()
    values, weights = values[moving], weights[moving]

    def square(t: float) -> float:
        remembered = t / values + np.expm1(-values * t) / values**2
        return float(full * t - 2.0 * weights @ remembered)

    full = k * case.neighbours * hops.hop_A(case) ** 2
    early, late = (square(t) for t in lags_ps)
    return (late - early) / (full * (lags_ps[1] - lags_ps[0]))


def _image(vectors: Array, edge: float) -> Array:
    return vectors - edge * np.round(vectors / edge)


def ratio(values: Array, others: Array | float = 1.0) -> tuple[float, float]:
    """Mean over the blocks, or ratio of two means, and its jackknife error."""
    others = np.broadcast_to(others, values.shape)
    without = (values.sum() - values) / (others.sum() - others)
    error = np.sqrt((len(values) - 1) * np.var(without))
    return float(values.sum() / others.sum()), float(error)


def print_tables(data: dict[str, Any]) -> None:
    """Print both tables from the data of docs/flux.json."""
    case = flux.CASES[NAME]
    whole, every = flux.joined(NAME, data["plain"])
    atoms, vacancy = displacements(case, whole, every)
    unit = case.neighbours * hops.hop_A(case) ** 2 / 6 * 1e-12 * _UNIT  # 1e-9 m^2/s of 1/s
    print("| vacancy of iron, 1000 K | D (1e-9 m²/s) |\n| --- | --- |")
    for lags in ((2, 10), (10, 50)):
        D = coefficients(vacancy[:, None], lags)
        print(f"| mean square displacement, {lags[0]} to {lags[1]} ps | {_words(*ratio(D))} |")
    times = np.array([hop.time_fs for hop in every])
    last = hops.lasting(case, whole, every)
    for words, rate in (
        ("all hops", hops.rate(case, whole, times)),
        ("hops that are not undone within 1 ps", last),
    ):
        print(f"| {words} | {_words(unit * rate.per_s, unit * rate.error_per_s)} |")
    for each in data["plumed_cv"]["through"]:
        k, surface = each["rate_per_s"], each["surface"]
        value, error = unit * k, unit * (error_of_factor(k, each["rate_error_factor"]) or np.nan)
        print(f"| plumed_cv, shots from ξ = {surface:g} | {_words(value, error)} |")
    bound = data["plumed_cv"]["through"][1]["tst_rate_per_s"]
    error = unit * bound * data["plumed_cv"]["relative_error"]
    print(f"| plumed_cv, transition state theory at ξ = 0.4 | {_words(unit * bound, error)} |")
    print("\n| between | all atoms, D (1e-9 m²/s) | / lasting hops | / vacancy | random walk |")
    print("|" + " --- |" * 5)
    for lags in itertools.pairwise(LAGS_PS):
        D, of_vacancy = (coefficients(x, lags) for x in (atoms, vacancy[:, None]))
        value, error = ratio(D)
        f = value / (unit * last.per_s)
        of_f = f * float(np.hypot(error / value, last.error_per_s / last.per_s))
        cells = [
            f"{lags[0]} and {lags[1]} ps",
            *(_words(value, error), _words(f, of_f), _words(*ratio(D, of_vacancy))),
            f"{walked(lags, last.per_s):.3f}",
        ]
        print("| " + " | ".join(cells) + " |")
    print(f"| long times | | | | {walked((10_000, 20_000), last.per_s):.3f} |")


def print_temperatures() -> None:
    """Print the coefficients at all temperatures with counted hops: a row for each."""
    rates, plain = read_json(transmission.DATA), read_json(flux.DATA)
    counted = hops.read()
    print(
        "\n| vacancy | T (K) | hops | D, plain dynamics (m²/s) | D, lasting hops (m²/s) "
        "| D, plumed_cv (m²/s) | ratio to plain dynamics |"
    )
    print("|" + " --- |" * 7)
    for name in TEMPERATURES:
        case: defects.Case
        if name in plain:
            case = flux.CASES[name]
            whole, every = flux.joined(name, plain[name]["plain"])
        else:
            case, whole = defects.CASES[name], counted[name]
            every = hops.find_hops(case, whole)
        places = displacements(case, whole, every)[1][:, None]
        of_plain = ratio(coefficients(places, LAGS_PS[:2]))
        unit = case.neighbours * hops.hop_A(case) ** 2 / 6 * 1e-12 * _UNIT  # 1e-9 m^2/s of 1/s
        last = hops.lasting(case, whole, every)
        k = rates[name]["rate_per_s"]
        error = error_of_factor(k, rates[name]["rate_error_factor"]) or np.nan
        of_run = unit * k, unit * error
        quotient = of_run[0] / of_plain[0]
        spread = quotient * float(np.hypot(of_run[1] / of_run[0], of_plain[1] / of_plain[0]))
        cells = [
            *(case.element, f"{case.temperature_K:g}", str(len(every))),
            *(
                scientific(1e-9 * value, 1e-9 * of_value, "").strip()
                for value, of_value in (
                    of_plain,
                    (unit * last.per_s, unit * last.error_per_s),
                    of_run,
                )
            ),
            f"{quotient:.2f} ± {spread:.2f}",
        ]
        print("| " + " | ".join(cells) + " |")


def print_lengths(name: str = "h-in-ni-900K") -> None:
    """Print how far an interstitial atom goes in a hop, and what this does to its diffusion."""
    case = flux.CASES[name]
    whole, every = flux.joined(name, read_json(flux.DATA)[name]["plain"])
    last = [hop for hop, back in zip(every, hops.undone(every), strict=True) if not back]
    lengths = np.array([np.linalg.norm(hops.vector(case, hop)) for hop in last])
    near = lengths < 0.6 * case.lattice_A  # from or to a tetrahedral site
    first = ~near & (lengths < 0.75 * case.lattice_A)
    print(f"\n| {case.what.partition(',')[0]}, {case.temperature_K:g} K | value |\n| --- | --- |")
    print(f"| hops that last | {len(last)} |")
    for words, chosen in (
        ("to one of the nearest octahedral sites", first),
        ("farther", ~near & ~first),
        ("from or to a tetrahedral site, for more than 200 fs", near),
    ):
        print(f"| {words} | {chosen.mean():.0%} |")
    places = displacements(case, whole, every)[1][:, None]
    value, error = ratio(coefficients(places, LAGS_PS[:2]))
    time_ps = whole.frames * plain_dynamics.FRAME_FS * 1e-3
    of_squares = float(np.sum(lengths**2)) / (6.0 * time_ps) * _UNIT
    alone = len(last) * case.lattice_A**2 / 2.0 / (6.0 * time_ps) * _UNIT
    print(f"| D (1e-9 m²/s), mean square displacement | {_words(value, error)} |")
    print(f"| from the squares of the lengths of these hops | {of_squares:.2f} |")
    print(f"| if all of these hops were to the nearest sites | {alone:.2f} |")


def _words(value: float, error: float) -> str:
    return f"{value:.2f} ± {error:.2f}"


if __name__ == "__main__":
    print_tables(read_json(flux.DATA)[NAME])
    print_temperatures()
    print_lengths()
