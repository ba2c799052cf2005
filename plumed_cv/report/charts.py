"""Charts of the report as inline SVG whose colours are the page's: light, dark and on paper.

matplotlib draws with colours that stand for names; in the SVG they become CSS variables.
"""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from plumed_cv.babf import Estimate
from plumed_cv.frame import Array

INK, MUTED, GRID = "#000001", "#000002", "#000003"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"}
_EARLIER = ["#000011", "#000012", "#000013", "#000014"]
_LAST = "#000010"
_VARIABLES |= {_LAST: "last"} | {
    colour: f"earlier-{k}" for k, colour in enumerate(_EARLIER, start=1)
}
_DASHES = ["-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1.5, 1.5))]

MOST_POINTS = 1500  # drawn of a series in time

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "plumed_cv",
    "text.parse_math": False,  # what stands in a run directory is text
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.4,
}


def profiles(
    curves: Sequence[tuple[str, Array, Array, Array]],
    zero_kelvin: tuple[Array, Array] | None,
    states: tuple[float, float],
    alt: str,
) -> Markup:
    """Free energy profiles with bands of one standard error.

    Parameters
    ----------
    curves
        Of each iteration its label and, shape (n,) each, the CV, A and the error of A, eV.
    zero_kelvin
        CV and energy (eV) along the minimum energy path.
    states
        The CV in the reactant and in the product.
    alt
        The chart in words.
    """
    with rc_context(_STYLE):
        figure, axes = _figure(5.0, 3.4)
        for k, (label, xi, A, error) in enumerate(curves):
            colour, dash = _look(k, len(curves))
            axes.fill_between(xi, A - error, A + error, color=colour, alpha=0.22, linewidth=0)
            axes.plot(xi, A, color=colour, linestyle=dash, label=label,
                      linewidth=2.0 if k + 1 == len(curves) else 1.2)  # fmt: skip
        if zero_kelvin is not None:
            axes.plot(*zero_kelvin, color=MUTED, linestyle=":", label="0 K, minimum energy path")
        for state in states:
            axes.axvline(state, color=GRID, linewidth=1.0, zorder=0)
        axes.set_xlabel("collective variable ξ")
        axes.set_ylabel("free energy (eV)")
        axes.margins(x=0)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _legend_above(axes)
        return _svg(figure, "profiles", alt)


def barrier_with_steps(curves: Sequence[tuple[str, Array, Sequence[Estimate]]], alt: str) -> Markup:
    """The barrier from the first so many steps, with its error."""
    with rc_context(_STYLE):
        figure, axes = _figure()
        for k, (label, steps, estimates) in enumerate(curves):
            colour, dash = _look(k, len(curves))
            value = np.array([estimate.value for estimate in estimates])
            error = np.nan_to_num(np.array([estimate.error for estimate in estimates]))
            axes.fill_between(
                steps, value - error, value + error, color=colour, alpha=0.22, linewidth=0
            )
            few = "o" if len(steps) < 4 else "none"
            axes.plot(steps, value, marker=few, color=colour, linestyle=dash, label=label)
        axes.set_xlabel("MD steps of the iteration")
        axes.set_ylabel("barrier (eV)")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.locator_params(axis="x", nbins=5)
        _legend_above(axes)
        return _svg(figure, "steps", alt)


def lines(
    name: str,
    curves: Sequence[tuple[str, Array, Array]],
    labels: tuple[str, str],
    alt: str,
    *,
    logarithmic: bool = False,
    diagonal: bool = False,
    limit: tuple[str, float] | None = None,
) -> Markup:
    """Curves over one axis, the last one strongest.

    Parameters
    ----------
    name
        What the elements of the picture are called, as no others of the page.
    curves
        Label and, shape (n,) each, x and y.
    labels
        Of the axes.
    alt
        The chart in words.
    logarithmic
        Whether the y axis is.
    diagonal
        Whether the diagonal is drawn.
    limit
        A level, and what it means.
    """
    with rc_context(_STYLE):
        figure, axes = _figure()
        if diagonal:
            axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", label="even along the path")
        for k, (label, x, y) in enumerate(curves):
            colour, dash = _look(k, len(curves))
            axes.plot(x, y, color=colour, linestyle=dash, label=label)
        if limit is not None:
            axes.axhline(limit[1], color=MUTED, linestyle=":", label=limit[0])
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(x=0.01)
        if logarithmic:
            _logarithmic(axes)
        else:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _legend_above(axes)
        return _svg(figure, name, alt)


def variance(curves: Sequence[tuple[str, Array]], elbow: int | None, alt: str) -> Markup:
    """Fraction of variance explained by each component (Fig. 2), and the elbow."""
    with rc_context(_STYLE):
        figure, axes = _figure()
        for k, (label, fractions) in enumerate(curves):
            colour, _ = _look(k, len(curves))
            number = np.arange(1, len(fractions) + 1)
            axes.plot(number, fractions, "o-", color=colour, label=label, markersize=3.5,
                      linewidth=0.9)  # fmt: skip
        if elbow is not None:
            axes.axvline(elbow + 0.5, color=MUTED, linestyle=":", label=f"elbow: {elbow}")
        _logarithmic(axes)
        axes.set_xlabel("principal component")
        axes.set_ylabel("fraction of variance")
        _legend_above(axes)
        return _svg(figure, "variance", alt)


def histogram(curves: Sequence[tuple[str, Array, Array]], alt: str) -> Markup:
    """How often each value of the CV was sampled."""
    with rc_context(_STYLE):
        figure, axes = _figure()
        for k, (label, edges, counts) in enumerate(curves):
            colour, _ = _look(k, len(curves))
            if k + 1 == len(curves):
                axes.stairs(counts, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(counts, edges, color=colour, label=label, linewidth=1.2)
        axes.set_xlabel("collective variable ξ")
        axes.set_ylabel("share of samples (%)")
        axes.margins(x=0)
        _legend_above(axes)
        return _svg(figure, "histogram", alt)


def history(
    steps: Array,
    xi: Array,
    deviation: Array,
    stops: Sequence[tuple[float, float]],
    limit: float | None,
    alt: str,
) -> Markup:
    """CV and deviation from the path in time, with the limit and the places of restarts.

    Parameters
    ----------
    steps, xi, deviation
        Shape (n,) each; so many are drawn as can be told apart.
    stops
        Step and deviation (angstrom) where the guard ended a part.
    limit
        The guard's limit, angstrom.
    alt
        The chart in words.
    """
    every = max(1, -(-len(steps) // MOST_POINTS))
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 3.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, values, label in (
            (upper, xi, "CV ξ"),
            (lower, deviation, "deviation (Å)"),
        ):
            axes.plot(steps[::every], values[::every], color=_LAST, linewidth=0.5, alpha=0.8)
            axes.set_ylabel(label)
            axes.margins(x=0)
        if limit is not None:
            lower.axhline(limit, color=INK, linestyle=":", linewidth=1.2)
            lower.annotate(f"guard {limit:g} Å", (1.0, limit), (0, 3), ha="right", va="bottom",
                           xycoords=("axes fraction", "data"), textcoords="offset points",
                           fontsize=8.5)  # fmt: skip
            lower.set_ylim(top=max(lower.get_ylim()[1], 1.15 * limit))
        if stops:
            lower.plot(*np.transpose(stops), "x", color=_EARLIER[0], markersize=6,
                       markeredgewidth=1.6)  # fmt: skip
        lower.set_xlabel("MD steps of the iteration")
        lower.xaxis.set_major_formatter(FuncFormatter(_thousands))
        return _svg(figure, "history", alt)


def by_distance(
    distance: Array, amplitude: Array, noise: float, moving: NDArray[np.bool_], alt: str
) -> Markup:
    """Each atom's share in the components by its distance from the most mobile one (Fig. 3).

    Parameters
    ----------
    distance, amplitude
        Shape (N,) each, angstrom.
    noise
        Standard deviation of the noise of one coordinate, angstrom.
    moving
        Which atoms exceed it, shape (N,).
    alt
        The chart in words.
    """
    with rc_context(_STYLE):
        figure, axes = _figure()
        for atoms, label, size, alpha in (
            (moving, "above the thermal noise", 5.0, 1.0),
            (~moving, "within it", 3.0, 0.55),
        ):
            number = f"{atoms.sum()} {'atom' if atoms.sum() == 1 else 'atoms'}"
            axes.plot(distance[atoms], amplitude[atoms], "o", color=_LAST, markersize=size,
                      alpha=alpha, markeredgewidth=0, label=f"{number} {label}")  # fmt: skip
        axes.axhline(noise, color=MUTED, linestyle=":", label="thermal noise")
        _logarithmic(axes)
        axes.set_xlabel("distance from the most mobile atom (Å)")
        axes.set_ylabel("amplitude (Å)")
        _legend_above(axes)
        return _svg(figure, "distance", alt)


def _figure(width: float = 4.4, height: float = 2.9) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _look(k: int, number: int) -> tuple[str, Any]:
    """Colour and dash of the k-th of so many curves; those of the last one are always the same."""
    if k + 1 == number:
        return _LAST, "-"
    return _EARLIER[k % len(_EARLIER)], _DASHES[(k + 1) % len(_DASHES)]


def _legend_above(axes: Axes) -> None:
    """A legend that hides no data."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1, borderaxespad=0.2)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic y axis whose numbers are plain text, not formulae."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high / low < 30
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}"


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an `svg` element with names of its own and the page's fonts and colours."""
    buffer = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    # Coordinates to a hundredth of a point; never the numbers that are read.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    head = f'<svg class="chart" role="img" aria-label="{escape(alt)}" viewBox="{box[1]}">'
    return Markup(head + text[text.index(">") + 1 :])
