"""Samples of an iteration: learned sums, printed values, crossings and temperature."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumed_cv import freeenergy, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.setup.plumed_actions import length_in_angstrom, units_of
from plumed_cv.structures.frame import Array
from plumed_cv.workflow import earlier

OF_FLUX = ("node-0", "gradnorm", "invmass")  # the components of AUTOENCODER that the flux needs


class Sampled(NamedTuple):
    """Samples of an iteration: learned sums and printed values of each segment.

    Attributes
    ----------
    blocks
        Contribution of each segment to bABF's sums.
    mean_force
        Its sums of the mean force of the atoms, as for `freeenergy.estimate_profile`, or None.
    series
        The columns of COLVAR by name.
    earlier
        Contribution of earlier iterations to the mean force, or None.
    """

    blocks: list[freeenergy.State]
    mean_force: list[Array] | None
    series: dict[str, list[Array]]
    earlier: freeenergy.Earlier | None = None


def read_samples(folder: Path) -> Sampled:
    """Return learned sums and printed values of the segments of an iteration.

    Parameters
    ----------
    folder
        The folder of an iteration.

    Raises
    ------
    UserError
        If it has no complete segment, or a file of one is damaged.
    """
    segments = sampling.list_segments(folder)
    if not segments:
        raise UserError(f"{folder}: contains no finished segment of a bABF run.")
    printed = []
    for segment in segments:
        with sampling.remedy(segment):
            printed.append(sampling.read_colvar(segment / "colvar"))
    series = {name: [part[name] for part in printed] for name in printed[0]}
    return Sampled(*sampling.read_learned(folder), series, earlier.read(folder))


def count_crossings(
    xi: Sequence[Array],
    walkers: Sequence[int],
    states: tuple[float, float] = (0.0, 1.0),
) -> int:
    """Number of passages of walkers from one state to the other.

    A segment starts where the last one ended, or at an earlier place if the guard ended that one at
    once. A leap to the other state between two segments is no passage.

    Parameters
    ----------
    xi
        The series of each segment, one walker after the other.
    walkers
        Number of segments of each walker.
    states
        Minima of reactant and product. A state counts as visited within a tenth of their distance.
    """
    reactant, product = states
    number, first = 0, 0
    for segments in walkers:
        own = [part for part in xi[first : first + segments] if len(part)]
        place = (np.concatenate(own or [np.zeros(0)]) - reactant) / (product - reactant)
        starts = np.cumsum([len(part) for part in own], dtype=np.int64)[:-1]
        leaps = starts[np.abs(place[starts] - place[starts - 1]) > 0.5]
        for stretch in np.split(place, leaps):
            visits = np.select([stretch < 0.1, stretch > 0.9], [-1, 1])
            number += int(np.count_nonzero(np.diff(visits[visits != 0])))
        first += segments
    return number


def estimate_temperature(found: Sampled) -> freeenergy.Estimate:
    """Kinetic temperature along the collective variable and its error, K.

    Segments count as their samples do in the free energy: less while the bias is still rough.
    """
    of_segments, weights = [], []
    for block, series in zip(found.blocks, found.series.get("ae.temp", []), strict=False):
        known = series[np.isfinite(series)]
        if len(known) and block.sums[0].any():
            of_segments.append(float(known.mean()))
            weights.append(float(block.sums[0].sum()))
    if not weights:
        return freeenergy.Estimate(np.nan, np.nan)
    value = float(np.average(of_segments, weights=weights))
    independent = np.sum(weights) ** 2 / np.sum(np.square(weights))
    if independent < 2:
        return freeenergy.Estimate(value, np.nan)
    variance = np.average((np.array(of_segments) - value) ** 2, weights=weights)
    return freeenergy.Estimate(value, float((variance / (independent - 1)) ** 0.5))


def read_colvar_beside(
    files: Sequence[Path], states: Sequence[freeenergy.State]
) -> dict[str, list[Array]]:
    """Return the columns of the file `colvar` in the folder of each state file, by name.

    The result is empty unless every state has a folder of its own with a `plumed.dat` and a
    `colvar` that has the columns of an exported plumed.dat, or if UNITS is NATURAL. The gradients
    are converted from the UNITS of plumed.dat to angstrom and amu.

    Parameters
    ----------
    files, states
        The state files, and what they contain.

    Raises
    ------
    UserError
        If a `colvar` is damaged, or the length unit of a state is not that of plumed.dat.
    """
    folders = [file.parent for file in files]
    if len(set(map(Path.resolve, folders))) < len(folders):
        return {}
    printed = []
    for folder, state in zip(folders, states, strict=True):
        if not all((folder / name).is_file() for name in ("colvar", "plumed.dat")):
            return {}
        lines = (folder / "plumed.dat").read_text(encoding="utf-8")
        units = units_of(lines, folder)
        columns = sampling.read_colvar(folder / "colvar")
        known = all(f"ae.{name}" in columns for name in OF_FLUX)
        if units is None or state.energy_unit != "eV" or not known:
            return {}
        length_A, mass_amu = units
        if state.length_unit and not math.isclose(
            length_in_angstrom(state.length_unit), length_A, rel_tol=1e-6
        ):
            raise UserError(
                f"{folder / 'plumed.dat'}: its length unit is {length_A:g} angstrom, but that of "
                f"the state is {state.length_unit}; put the plumed.dat of the run there, or "
                "remove it to do without the flux barrier"
            )
        xi, gradnorm, invmass = (columns[f"ae.{name}"] for name in OF_FLUX)
        printed.append((xi, gradnorm / length_A, invmass / (length_A**2 * mass_amu)))
    return {f"ae.{name}": [part[k] for part in printed] for k, name in enumerate(OF_FLUX)}
