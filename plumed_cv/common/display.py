"""Axes and tables for objects that have a display in notebooks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from plumed_cv.common.extras import require

if TYPE_CHECKING:  # importing both takes nearly a second
    from matplotlib.axes import Axes
    from pandas import DataFrame


def axes_or_new(ax: "Axes | None") -> "Axes":
    """Return the axes, or the axes of a new pyplot figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def draw_band(ax: "Axes", x: ArrayLike, y: ArrayLike, error: ArrayLike, **style: Any) -> None:
    """Draw a curve with a band of one standard error.

    Parameters
    ----------
    ax
        The axes to draw on.
    x, y, error
        Shapes (M,). There is no band where the error is NaN.
    style
        As for `Axes.plot`.
    """
    (curve,) = ax.plot(x, y, **style)
    y, error = np.asarray(y, dtype=float), np.nan_to_num(np.asarray(error, dtype=float))
    ax.fill_between(x, y - error, y + error, color=curve.get_color(), alpha=0.22, linewidth=0)


def make_table(columns: Mapping[str, Any], index: str | None = None) -> "DataFrame":
    """Return columns as a pandas DataFrame.

    Raises
    ------
    MissingPackageError
        If pandas is not installed.
    """
    found: DataFrame = require("pandas").DataFrame(dict(columns))
    return found if index is None else found.set_index(index)
