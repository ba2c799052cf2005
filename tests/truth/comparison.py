"""Runs of the model systems, and the deviation of their results from the exact ones."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plumed_cv import workflow
from plumed_cv.cv import CollectiveVariable
from plumed_cv.workflow import estimates
from plumed_cv.workflow.keys import or_none
from tests.truth.models import QUANTITIES, Model, exact

ESTIMATORS = (estimates.MEAN_FORCE, estimates.POOLED, estimates.HISTOGRAM)


@dataclass(frozen=True)
class Comparison:
    """A result and the exact value: eV, or 1/s for a rate.

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
        """Deviation in units of the error; for a rate, that of the logarithms."""
        if self.value is None or self.error is None:
            return np.nan
        if self.quantity == "tst_rate":
            error = np.hypot(self.error / self.value, self.exact_error / self.exact)
            return float(np.log(self.value / self.exact) / error)
        return float((self.value - self.exact) / np.hypot(self.error, self.exact_error))


def comparisons(model: Model, run: Path) -> Iterator[Comparison]:
    """Compare all iterations of a finished run with the exact answers.

    A run gives the answers of its most precise estimator; here all are asked.
    """
    for result in json.loads((run / "result.json").read_text())["iterations"]:
        along = exact(model, CollectiveVariable.load(run / result["cv"]))
        found = workflow.read_samples(run / f"iteration-{result['iteration']}")
        for estimator, answer in estimates.evaluate_estimators(found).items():
            rate = answer.flux.rate_per_s
            values = workflow.profile_as_json(answer.profile)
            values |= workflow.as_json({"flux_barrier": answer.flux.barrier})
            values |= {
                "tst_rate_1/s": or_none(rate.value),
                "tst_rate_error_1/s": or_none(rate.error),
            }
            for quantity in QUANTITIES:
                unit = "1/s" if quantity == "tst_rate" else "eV"
                yield Comparison(
                    result["iteration"],
                    estimator,
                    quantity,
                    values[f"{quantity}_{unit}"],
                    values[f"{quantity}_error_{unit}"],
                    *getattr(along, quantity),
                )
