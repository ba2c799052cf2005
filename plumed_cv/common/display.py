"""Axes and tables for objects that show themselves in a notebook."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from plumed_cv.common.extras import needed

if TYPE_CHECKING:  # both take most of a second
    from matplotlib.axes import Axes
    from pandas import DataFrame


def axes_or_new(ax: "Axes | None") -> "Axes":
    """Return the axes, or those of a new figure of pyplot's."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def draw_band(ax: "Axes", x: ArrayLike, y: ArrayLike, error: ArrayLike, **style: Any) -> None:
    """Draw a curve with a band of one standard error.

    Parameters
    ----------
    ax
        On which.
    x, y, error
        Shapes (M,). Where the error is NaN there is no band.
    style
        As for `Axes.plot`.
    """
    (curve,) = ax.plot(x, y, **style)
    y, error = np.asarray(y, dtype=float), np.nan_to_num(np.asarray(error, dtype=float))
    ax.fill_between(x, y - error, y + error, color=curve.get_color(), alpha=0.22, linewidth=0)


def table(columns: Mapping[str, Any], index: str | None = None) -> "DataFrame":
    """Return columns as a DataFrame of pandas.

    Raises
    ------
    MissingPackageError
        If pandas is not installed.
    """
    found: DataFrame = needed("pandas").DataFrame(dict(columns))
    return found if index is None else found.set_index(index)
