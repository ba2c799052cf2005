"""The answer of a run as an object: barriers, rate, profile, CV and checks."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumed_cv import freeenergy
from plumed_cv.common.display import axes_or_new, make_table
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json
from plumed_cv.cv import CollectiveVariable, energy
from plumed_cv.freeenergy import Estimate, Profile
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.workflow.analysis import Analysis, Convergence, read_sampled
from plumed_cv.workflow.checks import Check
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.keys import minima_of, surfaces_of
from plumed_cv.workflow.rate import Rate
from plumed_cv.workflow.results import estimate_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Result:
    """The answer of a run.

    Attributes
    ----------
    directory
        The run directory.
    data
        The contents of result.json.
    """

    directory: Path
    data: dict[str, Any]

    def __repr__(self) -> str:
        verdict = "converged" if self.converged else "NOT converged"
        return (
            f"Result({self.directory}: flux barrier {self.flux_barrier}, delta F {self.delta_F}, "
            f"{self.rate}, {verdict})"
        )

    @property
    def temperature_K(self) -> float:  # noqa: N802
        """Temperature, K."""
        return float(self.data["temperature_K"])

    @property
    def flux_barrier(self) -> Estimate:
        """Flux barrier (free energy of the flux through the dividing surface), eV."""
        return estimate_of(self.data, "flux_barrier")

    @property
    def model_error(self) -> Estimate:
        """Standard deviation of the flux barriers of the committee's potentials, eV."""
        return estimate_of(self.data, "model_error")

    @property
    def activation_free_energy(self) -> Estimate:
        """Activation free energy -kT ln(h rate / kT) of transition state theory, eV."""
        return estimate_of(self.data, "activation_free_energy")

    @property
    def barrier(self) -> Estimate:
        """Height of the profile, eV; it depends on the scale of the CV."""
        return estimate_of(self.data, "barrier")

    @property
    def delta_F(self) -> Estimate:  # noqa: N802
        """Free energy of the basin of the product minus that of the reactant, eV."""
        return estimate_of(self.data, "delta_F")

    @property
    def rate(self) -> Rate:
        """Rate from the reactant to the product, 1/s."""
        return Rate.of(self.data)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Barriers between successive basins, in order, in the format of result.json."""
        return list(self.data.get("steps") or [])

    @property
    def converged(self) -> bool:
        """Whether all checks have passed."""
        return bool(self.data["converged"])

    @property
    def checks(self) -> list[Check]:
        """The checks of the answer: name, passed (None: not possible), sentence."""
        return [Check(**check) for check in self.data.get("checks", [])]

    @property
    def advice(self) -> str | None:
        """What to do if the run has not converged."""
        return self.data.get("advice")

    @property
    def md_steps(self) -> int:
        """Number of molecular dynamics steps of all iterations."""
        return int(self.data["md_steps"])

    @property
    def answer_iteration(self) -> int:
        """Number of the iteration that gives the results."""
        return int(self.data.get("answer_iteration", len(self.data["iterations"])))

    @cached_property
    def profile(self) -> Profile:
        """Free energy profile along the CV."""
        return freeenergy.read_fes(self.directory / "fes.dat")

    @cached_property
    def cv(self) -> CollectiveVariable:
        """The collective variable of the profile."""
        return CollectiveVariable.load(self.directory / "cv.safetensors")

    @cached_property
    def path(self) -> EnergyPath | None:
        """Minimum energy path at 0 K, from relaxed end state to end state; None for a molecule."""
        file = RunDirectory(self.directory).path
        return load_path(file) if file.exists() else None

    @cached_property
    def analysis(self) -> Analysis:
        """The samples of the iteration that gives the answer, read from its segments.

        Raises
        ------
        UserError
            If its folder is missing, or a file in it is damaged.
        """
        n = self.answer_iteration
        found, walkers = read_sampled(RunDirectory(self.directory).iteration(n))
        return Analysis(
            found, tuple(walkers), self.profile.states, self.profile, self.data["iterations"][n - 1]
        )

    def forward_backward_convergence(self, n: int = 10) -> Convergence:
        """Estimate the flux barrier from the first and last 1/n, 2/n, ... of the answer's data.

        See `Analysis.forward_backward_convergence`. Only samples of this iteration are used,
        without the snapshots of earlier iterations.
        """
        return self.analysis.forward_backward_convergence(n)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the profile, the dividing surfaces and basins, and the energy of the path at 0 K.

        Parameters
        ----------
        ax
            The axes to draw on; those of a new matplotlib figure if None.
        """
        from plumed_cv.figures import draw_profiles  # importing matplotlib takes nearly 1 s

        ax = axes_or_new(ax)
        zero_kelvin = None
        if self.path is not None:
            xi = energy.values_at_images(self.path, self.cv)
            zero_kelvin = (xi, self.path.energies)
        curve = (f"{self.temperature_K:g} K", self.profile)
        surfaces, minima = surfaces_of(self.data), minima_of(self.data)
        draw_profiles(ax, [curve], zero_kelvin, surfaces, minima)
        return ax

    def to_dataframe(self) -> "DataFrame":
        """Return a table of the iterations: barriers and errors, eV, steps, similarity, CV.

        Raises
        ------
        UserError
            If pandas is not installed.
        """
        names = (
            *("iteration", "kind", "flux_barrier_eV", "flux_barrier_error_eV", "barrier_eV"),
            *("barrier_error_eV", "delta_F_eV", "delta_F_error_eV", "tst_rate_per_s"),
            *("tst_rate_error_per_s", "crossings", "similarity", "md_steps"),
        )
        iterations = self.data["iterations"]
        columns = {name: [part.get(name) for part in iterations] for name in names}
        return make_table(columns, index="iteration")


def read_result(directory: Path | str) -> Result:
    """Read the answer of a finished run.

    Parameters
    ----------
    directory
        The run directory.

    Raises
    ------
    UserError
        If it contains no result.json, or this file is damaged.
    """
    files = RunDirectory(Path(directory))
    if not files.result.exists():
        raise UserError(
            f"{directory}: contains no result.json, so it is not the directory of a finished run; "
            "start the run again to continue it."
        )
    return Result(files.root, read_json(files.result))
