"""Runs of the model systems, and how far their results are from the exact ones."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plumed_cv import freeenergy, workflow
from plumed_cv.cv import CollectiveVariable
from plumed_cv.workflow import results
from tests.truth.models import QUANTITIES, Model, exact

ESTIMATORS = (results.MEAN_FORCE, results.HISTOGRAM)


@dataclass(frozen=True)
class Comparison:
    """A result beside the exact one: eV, or for a rate 1/s.

    Attributes
    ----------
    iteration
        Number of the iteration.
    estimator
        One of `ESTIMATORS`.
    quantity
        One of `models.QUANTITIES`.
    value, error
        The result and its stated error; None where the run says that it is unknown.
    exact
        The exact value along the iteration's CV.
    """

    iteration: int
    estimator: str
    quantity: str
    value: float | None
    error: float | None
    exact: float
    exact_error: float

    @property
    def deviation(self) -> float:
        """How many errors the result is too high; of a rate the logarithms are compared."""
        if self.value is None or self.error is None:
            return np.nan
        if self.quantity == "tst_rate":
            error = np.hypot(self.error / self.value, self.exact_error / self.exact)
            return float(np.log(self.value / self.exact) / error)
        return float((self.value - self.exact) / np.hypot(self.error, self.exact_error))


def comparisons(model: Model, run: Path) -> Iterator[Comparison]:
    """Compare all iterations of a finished run with the exact answers.

    A run gives the answers of its more precise estimator; here both are asked.
    """
    for result in json.loads((run / "result.json").read_text())["iterations"]:
        along = exact(model, CollectiveVariable.load(run / result["cv"]))
        found = workflow.sampled(run / f"iteration-{result['iteration']}")
        answers = {results.HISTOGRAM: results.analysed(found._replace(mean_force=None))[1]}
        if found.mean_force is not None:
            answers = {results.MEAN_FORCE: _of_mean_force(found)} | answers
        for estimator, values in answers.items():
            for quantity in QUANTITIES:
                unit = "per_s" if quantity == "tst_rate" else "eV"
                yield Comparison(
                    result["iteration"],
                    estimator,
                    quantity,
                    values[f"{quantity}_{unit}"],
                    values[f"{quantity}_error_{unit}"],
                    *getattr(along, quantity),
                )


def _of_mean_force(found: results.Sampled) -> dict[str, float | None]:
    xi, norm, mass = (found.series[f"ae.{name}"] for name in ("node-0", "gradnorm", "invmass"))
    flux = freeenergy.flux(found.blocks, xi, norm, mass, mean_force=found.mean_force)
    profile = freeenergy.profile(found.blocks, mean_force=found.mean_force, basins=flux.basins)
    rate = flux.rate_per_s
    return (
        workflow.barriers(profile)
        | workflow.as_json({"flux_barrier": flux.barrier})
        | {"tst_rate_per_s": rate.value, "tst_rate_error_per_s": rate.error}
    )
