"""The rate of a process at one temperature."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from plumed_cv.common.display import axes_or_new, make_table
from plumed_cv.common.numbers import scientific, with_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


@dataclass(frozen=True)
class Rate:
    """Rate from the reactant to the product; unknown values are None.

    Attributes
    ----------
    temperature_K
        Temperature, K.
    tst_rate_per_s, tst_rate_error_per_s
        Rate of transition state theory through the best dividing surface, 1/s, which is an upper
        bound, and its standard error.
    transmission, transmission_error
        Transmission coefficient, the ratio of the flux that leads to the product to that of
        transition state theory, and its standard error.
    rate_per_s
        The rate: the product of the transmission coefficient and the rate of transition state
        theory, 1/s.
    rate_error_factor
        The rate is known within this factor (one standard error).
    """

    temperature_K: float
    tst_rate_per_s: float | None = None
    tst_rate_error_per_s: float | None = None
    transmission: float | None = None
    transmission_error: float | None = None
    rate_per_s: float | None = None
    rate_error_factor: float | None = None

    @classmethod
    def of(cls, numbers: dict[str, Any]) -> "Rate":
        """Take the rate from the keys of result.json."""
        return cls(**{name: numbers.get(name) for name in cls.__dataclass_fields__})  # type: ignore[arg-type]

    def __repr__(self) -> str:
        at = f"at {self.temperature_K:g} K"
        value = self.best_per_s
        if value is None:
            return f"Rate(unknown {at})"
        lower, upper = self._bounds(value)
        number = scientific(value, None, "1/s").removesuffix(", error unknown")
        words = f"{number} within a factor of {upper / value:.2g}" if upper > lower else number
        if self.rate_per_s is None:
            return f"Rate({words} {at}, transition state theory)"
        if self.transmission is None:
            return f"Rate({words} {at})"
        kappa = with_error(self.transmission, self.transmission_error, "")
        return f"Rate({words} {at}, transmission {kappa.replace(' , error unknown', '').strip()})"

    @property
    def best_per_s(self) -> float | None:
        """The rate if it is known, otherwise that of transition state theory, 1/s."""
        return self.tst_rate_per_s if self.rate_per_s is None else self.rate_per_s

    def plot(self, ax: "Axes | None" = None, **style: Any) -> "Axes":
        """Draw a point of an Arrhenius plot: `best_per_s`, logarithmic, against 1000 K / T.

        Parameters
        ----------
        ax
            Axes of matplotlib to draw on; those of a new figure if None.
        style
            As for `Axes.errorbar`.
        """
        ax = axes_or_new(ax)
        value = self.best_per_s
        if value is not None:
            lower, upper = self._bounds(value)
            errors = [[value - lower], [upper - value]]
            ax.errorbar([1000.0 / self.temperature_K], [value], errors, **{"fmt": "o"} | style)
        ax.set_yscale("log")
        ax.set_xlabel("1000 K / T")
        ax.set_ylabel("rate (1/s)")
        return ax

    def to_dataframe(self) -> "DataFrame":
        """Return a table of one row, whose columns are the attributes.

        Raises
        ------
        UserError
            If pandas is not installed.
        """
        return make_table({name: [getattr(self, name)] for name in self.__dataclass_fields__})

    def _bounds(self, value: float) -> tuple[float, float]:
        """The rate minus and plus one standard error, 1/s, as a factor."""
        if self.rate_per_s is not None:
            factor = self.rate_error_factor or 1.0
        else:  # the error of its logarithm, to first order
            factor = float(np.exp((self.tst_rate_error_per_s or 0.0) / value))
        return value / factor, value * factor
