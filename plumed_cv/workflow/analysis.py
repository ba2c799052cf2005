"""Results from samples of bABF and their convergence: of an iteration, or of other runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units

from plumed_cv import freeenergy, sampling
from plumed_cv.common.display import axes_or_new, make_table
from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy import Estimate, Profile
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.estimates import MEAN_FORCE, POOLED, analyse_samples, estimate_flux_barrier
from plumed_cv.workflow.rate import Rate
from plumed_cv.workflow.results import estimate_of
from plumed_cv.workflow.samples import Sampled, read_colvar_beside, read_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


def read_sampled(
    source: Path | str | Sequence[Path | str], independent: bool = False
) -> tuple[Sampled, list[int]]:
    """Read what runs with BABF have sampled.

    Parameters
    ----------
    source
        The folder of an iteration, or state files of BABF; the columns of `colvar` beside each
        state are read where they are those of an exported plumed.dat, in any UNITS.
    independent
        Whether state files are of independent runs, not of one run as it went on.

    Returns
    -------
    Sampled, list
        The samples in blocks, and the number of blocks of each independent run.

    Raises
    ------
    UserError
        If a file is missing, damaged or another one.
    """
    files = [Path(file) for file in _listed(source)]
    if len(files) == 1 and files[0].is_dir():
        return read_samples(files[0]), sampling.count_segments(files[0])
    states = [freeenergy.read_state(file) for file in files]
    _check_together(files, states, independent)
    printed = read_colvar_beside(files, states)
    if independent:
        return Sampled(states, None, printed), [1] * len(states)
    return Sampled(freeenergy.split_into_blocks(states), None, printed), [len(states)]


def _check_together(
    files: Sequence[Path], states: Sequence[freeenergy.State], independent: bool
) -> None:
    """Refuse a state that is given twice, and states that do not belong together.

    Raises
    ------
    UserError
        With the names of the two files.
    """
    known: dict[bytes, Path] = {}
    for file, state in zip(files, states, strict=True):
        same = known.setdefault(state.sums.tobytes(), file)
        if same is not file:
            raise UserError(f"{file}: is the same state as {same}; give each state once.")
    for (file, state), (other, later) in pairwise(zip(files, states, strict=True)):
        try:
            _ = state + later if independent else later - state
        except UserError as error:
            raise UserError(f"{other}, after {file}: {error}.") from None


def _listed(source: Path | str | Sequence[Path | str]) -> Sequence[Path | str]:
    return [source] if isinstance(source, Path | str) else source


def explain_unknown_error(
    found: Sampled, profile: Profile, source: Path | str | Sequence[Path | str]
) -> str | None:
    """Say why the error of a barrier is unknown, with the remedy; None if it is known.

    Parameters
    ----------
    found
        The samples in blocks.
    profile
        Their profile.
    source
        The state files, or the folder of an iteration.
    """
    names = list(map(str, _listed(source)))
    if not np.isfinite(profile.barrier.value) or np.isfinite(profile.barrier.error):
        return None
    of_files = len(names) == len(found.blocks)
    more = (
        "give more states: those of the run at successive times (STORE_STATES of BABF keeps them), "
        "or those of independent runs with --walkers"
        if of_files
        else "sample longer"
    )
    if len(found.blocks) == 1:
        return f"{names[0]}: the errors are unknown, because they need several states; {more}."
    for k in range(len(found.blocks)):
        rest = [block for i, block in enumerate(found.blocks) if i != k]
        if not np.isfinite(freeenergy.estimate_profile(rest, profile.states).barrier.value):
            name = names[k] if of_files else f"{names[0]}, segment {k + 1}"
            return (
                f"{name}: the errors are unknown, because the samples without this state do not "
                f"reach both end states; {more}."
            )
    return f"{names[0]}: the errors are unknown, because one state has nearly all samples; {more}."


def analyse_states(
    source: Path | str | Sequence[Path | str],
    *,
    independent: bool = False,
    reactant: float = 0.0,
    product: float = 1.0,
) -> "Analysis":
    """Compute profile, barriers and rate from what BABF has written, as `plumed-cv fes` does.

    Parameters
    ----------
    source
        State files of BABF, in the order of time, or the folder of an iteration. With a `colvar`
        and a plumed.dat as `plumed-cv export` writes them beside each state, flux barrier and rate
        are known too.
    independent
        Whether the files are of independent runs (walkers), not of one run as it went on.
    reactant, product
        Values of the CV in the two states.

    Raises
    ------
    UserError
        If a file is missing, damaged or another one, or the states are of two CVs.
    """
    found, walkers = read_sampled(source, independent)
    if found.blocks and len(found.blocks[0].axes) == 2:
        raise UserError("The states are of two CVs; freeenergy.estimate_surface takes them.")
    states = (reactant, product)
    profile, numbers = analyse_samples(found, walkers, states)
    numbers["error_note"] = explain_unknown_error(found, profile, source)
    return Analysis(found, tuple(walkers), states, profile, numbers)


@dataclass(frozen=True, eq=False)
class Analysis:
    """Results from samples of bABF.

    Attributes
    ----------
    found
        The samples in blocks.
    walkers
        Number of blocks of each independent run.
    states
        The CV in the reactant and in the product.
    profile
        The free energy profile.
    numbers
        Barriers, differences and rates with errors, by the keys of result.json.
    """

    found: Sampled
    walkers: tuple[int, ...]
    states: tuple[float, float]
    profile: Profile
    numbers: dict[str, Any]

    def __repr__(self) -> str:
        barrier = self.flux_barrier
        known = f"flux barrier {barrier}" if self.found.series else f"barrier {self.barrier}"
        return f"Analysis({self.md_steps:,} steps: {known}, delta F {self.delta_F})"

    @property
    def md_steps(self) -> int:
        """Number of steps that the estimator has learned from."""
        return sum(block.steps for block in self.found.blocks)

    @property
    def flux_barrier(self) -> Estimate:
        """Flux barrier, eV; unknown without the columns of COLVAR."""
        return estimate_of(self.numbers, "flux_barrier")

    @property
    def barrier(self) -> Estimate:
        """Height of the profile, eV, which depends on the CV's scale."""
        return self.profile.barrier

    @property
    def delta_F(self) -> Estimate:  # noqa: N802
        """Free energy of the product's basin less that of the reactant's, eV."""
        return self.profile.delta_F

    @property
    def rate(self) -> Rate:
        """Rate of transition state theory; unknown without COLVAR and in natural units."""
        kT_eV = self.profile.kT_eV if self.profile.energy_unit == "eV" else np.nan
        return Rate.of(self.numbers | {"temperature_K": kT_eV / units.kB})

    @property
    def note(self) -> str | None:
        """Why the flux barrier or an error is unknown, or None."""
        return self.numbers.get("note") or self.numbers.get("error_note")

    def plot(self, ax: "Axes | None" = None, **style: Any) -> "Axes":
        """Draw the profile, as `Profile.plot`."""
        return self.profile.plot(ax, **style)

    def to_dataframe(self) -> "DataFrame":
        """Return the profile as a table, as `Profile.to_dataframe`."""
        return self.profile.to_dataframe()

    def forward_backward_convergence(self, n: int = 10) -> "Convergence":
        """Estimate the barrier from the first and from the last 1/n, 2/n, ... of the blocks.

        Parameters
        ----------
        n
            Number of fractions.

        Returns
        -------
        Convergence
            Of the flux barrier; of the height of the profile where the flux is not known. Where
            the forward and backward values differ by more than their errors, the first part of
            the samples is not in equilibrium, or the errors are too small.

        Raises
        ------
        UserError
            If there are fewer than two fractions or blocks.
        """
        ends = np.cumsum(self.walkers)
        own = [range(end - k, end) for end, k in zip(ends, self.walkers, strict=True)]
        longest = max(self.walkers)
        if min(n, longest) < 2:
            raise UserError(
                f"{longest} blocks in {n} parts: convergence needs two blocks of a run and two "
                "fractions or more."
            )
        counts = np.unique(np.ceil(np.arange(1, n + 1) / n * longest).astype(int))
        fractions = counts / longest
        forward, backward = [], []
        for fraction in fractions:
            numbers = [max(1, round(fraction * len(blocks))) for blocks in own]
            pairs = list(zip(own, numbers, strict=True))
            forward.append(self._barrier_of([blocks[:k] for blocks, k in pairs]))
            backward.append(self._barrier_of([blocks[len(blocks) - k :] for blocks, k in pairs]))
        return Convergence(
            quantity="flux barrier" if self.found.series else "barrier",
            fraction=fractions,
            forward_eV=np.array([estimate.value for estimate in forward]),
            forward_error_eV=np.array([estimate.error for estimate in forward]),
            backward_eV=np.array([estimate.value for estimate in backward]),
            backward_error_eV=np.array([estimate.error for estimate in backward]),
            unit=forward[0].unit,
        )

    def _barrier_of(self, by_walker: Sequence[Sequence[int]]) -> Estimate:
        """The barrier from some blocks of each run."""
        estimator = self.numbers.get("estimator")
        if self.found.series:
            return estimate_flux_barrier(self.found, by_walker, estimator, self.states)
        chosen = [k for blocks in by_walker for k in blocks]
        atoms = self.found.mean_force if estimator in (MEAN_FORCE, POOLED) else None
        return freeenergy.estimate_profile(
            [self.found.blocks[k] for k in chosen],
            self.states,
            None if atoms is None else [atoms[k] for k in chosen],
            walkers=[len(blocks) for blocks in by_walker],
        ).barrier


@dataclass(frozen=True, eq=False)
class Convergence:
    """The barrier from the first and from the last part of the samples, by the size of the part.

    Attributes
    ----------
    quantity
        What was estimated: "flux barrier", or "barrier".
    fraction
        Share of the blocks of each run, shape (K,), rising to 1.
    forward_eV, forward_error_eV
        From the first part, and its standard error, shape (K,), eV; NaN where unknown.
    backward_eV, backward_error_eV
        From the last part.
    unit
        The energy unit: "eV", or "natural" for runs with PLUMED's UNITS NATURAL.
    """

    quantity: str
    fraction: Array
    forward_eV: Array
    forward_error_eV: Array
    backward_eV: Array
    backward_error_eV: Array
    unit: str = "eV"

    def __repr__(self) -> str:
        middle = int(np.searchsorted(self.fraction, 0.5))
        first, last = (
            Estimate(float(values[middle]), float(errors[middle]), self.unit)
            for values, errors in (
                (self.forward_eV, self.forward_error_eV),
                (self.backward_eV, self.backward_error_eV),
            )
        )
        share = f"{100 * self.fraction[middle]:.0f} %"
        return f"Convergence({self.quantity}: first {share} {first}, last {share} {last})"

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw both curves with their errors, and the value of all samples as a band."""
        ax = axes_or_new(ax)
        whole, error = self.forward_eV[-1], self.forward_error_eV[-1]
        if np.isfinite([whole, error]).all():
            ax.axhspan(whole - error, whole + error, color="0.85", label="whole run")
        for values, errors, marker, name in (
            (self.forward_eV, self.forward_error_eV, "o", "first part (forward)"),
            (self.backward_eV, self.backward_error_eV, "s", "last part (backward)"),
        ):
            ax.errorbar(self.fraction, values, errors, marker=marker, capsize=2, label=name)
        ax.set_xlabel("share of the run")
        ax.set_ylabel(f"{self.quantity} ({freeenergy.unit_in_words(self.unit)})")
        ax.legend()
        return ax

    def to_dataframe(self) -> "DataFrame":
        """Return a table with the columns fraction, forward_eV, forward_error_eV, ...

        In natural units the columns are forward_natural, ...

        Raises
        ------
        UserError
            If pandas is not installed.
        """
        names = (
            *("fraction", "forward_eV", "forward_error_eV"),
            *("backward_eV", "backward_error_eV"),
        )
        return make_table(
            {name.replace("_eV", f"_{self.unit}"): getattr(self, name) for name in names}
        )
