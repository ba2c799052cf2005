"""Charts of the report as inline SVG in the colours of the page: light, dark and on paper.

In the SVG the colours of `plumed_cv.figures` become CSS variables.
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
from matplotlib.ticker import FuncFormatter

from plumed_cv import figures
from plumed_cv.common.display import draw_band
from plumed_cv.cv.localisation import Localisation
from plumed_cv.figures import EARLIER, INK, LAST, MUTED
from plumed_cv.freeenergy import Estimate, Profile
from plumed_cv.structures.frame import Array

MOST_POINTS = 1500  # largest number of drawn points of a time series

_STYLE: Any = figures.STYLE | {"svg.fonttype": "none", "svg.hashsalt": "plumed_cv"}


def profiles(
    curves: Sequence[tuple[str, Profile]],
    zero_kelvin: tuple[Array, Array] | None,
    surfaces: Sequence[float],
    minima: Sequence[float],
    alt: str,
) -> Markup:
    """Free energy profiles, as drawn by `figures.draw_profiles`; `alt` describes them."""
    with rc_context(_STYLE):
        figure, axes = _figure(5.0, 3.4)
        figures.draw_profiles(axes, curves, zero_kelvin, surfaces, minima)
        return _svg(figure, "profiles", alt)


def variance(curves: Sequence[tuple[str, Array, int | None]], alt: str) -> Markup:
    """Fraction of variance explained by each component, as drawn by `figures.draw_fve`."""
    with rc_context(_STYLE):
        figure, axes = _figure()
        figures.draw_fve(axes, curves)
        return _svg(figure, "variance", alt)


def localisation(distances: Array, found: Localisation, alt: str) -> Markup:
    """Atoms that take part, as drawn by `figures.draw_localisation`."""
    with rc_context(_STYLE):
        figure, axes = _figure()
        figures.draw_localisation(axes, distances, found)
        return _svg(figure, "distance", alt)


def barrier_with_steps(curves: Sequence[tuple[str, Array, Sequence[Estimate]]], alt: str) -> Markup:
    """The flux barrier as a function of the number of steps, with its error."""
    with rc_context(_STYLE):
        figure, axes = _figure()
        for k, (label, steps, estimates) in enumerate(curves):
            colour, dash = figures.look(k, len(curves))
            value = np.array([estimate.value for estimate in estimates])
            error = np.array([estimate.error for estimate in estimates])
            few = "o" if len(steps) < 4 else "none"
            style = {"marker": few, "color": colour, "linestyle": dash, "label": label}
            draw_band(axes, steps, value, error, **style)
        axes.set_xlabel("MD steps of the iteration")
        axes.set_ylabel("flux barrier (eV)")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.locator_params(axis="x", nbins=5)
        figures.add_legend(axes)
        return _svg(figure, "steps", alt)


def plateau(curves: Sequence[tuple[str, Array, Array, Array]], alt: str) -> Markup:
    """The reactive flux in time: label, times (ps), transmission coefficient, error, (n,) each."""
    with rc_context(_STYLE):
        figure, axes = _figure()
        for k, (label, times, kappa, error) in enumerate(curves):
            colour, dash = figures.look(k, len(curves))
            axes.fill_between(
                times, kappa - error, kappa + error, color=colour, alpha=0.22, linewidth=0
            )
            axes.plot(times, kappa, color=colour, linestyle=dash, label=label)
        axes.set_xlabel("time from the dividing surface (ps)")
        axes.set_ylabel("transmission coefficient κ(t)")
        axes.margins(x=0)
        axes.set_ylim(bottom=0.0)
        figures.add_legend(axes)
        return _svg(figure, "plateau", alt)


def committors(shares: Array, alt: str) -> Markup:
    """Histogram of the share of trajectories from a structure that lead to the product."""
    edges = np.linspace(-0.125, 1.125, 6)
    with rc_context(_STYLE):
        figure, axes = _figure()
        counts = 100 * np.histogram(shares, edges)[0] / max(1, len(shares))
        axes.bar(0.5 * (edges[1:] + edges[:-1]), counts, width=0.2, color=LAST, alpha=0.6)
        axes.set_xlabel("share of the trajectories that end behind the surface")
        axes.set_ylabel("structures (%)")
        return _svg(figure, "committors", alt)


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
    """Curves on common axes; the last one is emphasised.

    Parameters
    ----------
    name
        Name of the elements of the figure, unique in the page.
    curves
        Label, x and y, shape (n,) each.
    labels
        Labels of the axes.
    alt
        Description of the chart.
    logarithmic
        Whether the y axis is logarithmic.
    diagonal
        Whether the diagonal is drawn.
    limit
        A level and its meaning.
    """
    with rc_context(_STYLE):
        figure, axes = _figure()
        if diagonal:
            axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", label="even along the path")
        for k, (label, x, y) in enumerate(curves):
            colour, dash = figures.look(k, len(curves))
            axes.plot(x, y, color=colour, linestyle=dash, label=label)
        if limit is not None:
            axes.axhline(limit[1], color=MUTED, linestyle=":", label=limit[0])
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(x=0.01)
        if logarithmic:
            figures.make_logarithmic(axes)
        else:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        figures.add_legend(axes)
        return _svg(figure, name, alt)


def differences(
    curves: Sequence[tuple[str, Array, Array, Array]], spread: tuple[Array, Array], alt: str
) -> Markup:
    """Profiles of other potentials minus that of the run, with errors, and their spread.

    Parameters
    ----------
    curves
        Label, CV, difference and its error, eV, (n,) each.
    spread
        CV and standard deviation of all potentials, eV.
    alt
        Description of the chart.
    """
    with rc_context(_STYLE):
        figure, axes = _figure(5.0, 3.4)
        axes.fill_between(
            spread[0], -spread[1], spread[1], color=MUTED, alpha=0.2, linewidth=0, label="spread"
        )
        for k, (label, xi, value, error) in enumerate(curves):
            colour, dash = figures.look(k, len(curves))
            draw_band(axes, xi, value, error, color=colour, linestyle=dash, label=label)
        axes.set_xlabel("collective variable ξ")
        axes.set_ylabel("profile minus that of the run (eV)")
        axes.margins(x=0)
        figures.add_legend(axes)
        return _svg(figure, "committee", alt)


def arrhenius(
    rows: Sequence[dict[str, Any]], curve: tuple[Array, Array] | None, alt: str
) -> Markup:
    """Rates against the inverse temperature, as drawn by `figures.draw_arrhenius`."""
    with rc_context(_STYLE):
        figure, axes = _figure(5.0, 3.4)
        figures.draw_arrhenius(axes, rows, curve)
        return _svg(figure, "arrhenius", alt)


def histogram(curves: Sequence[tuple[str, Array, Array]], alt: str) -> Markup:
    """Frequency of the values of the CV in the samples."""
    with rc_context(_STYLE):
        figure, axes = _figure()
        for k, (label, edges, counts) in enumerate(curves):
            colour, _ = figures.look(k, len(curves))
            if k + 1 == len(curves):
                axes.stairs(counts, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(counts, edges, color=colour, label=label, linewidth=1.2)
        axes.set_xlabel("collective variable ξ")
        axes.set_ylabel("share of samples (%)")
        axes.margins(x=0)
        figures.add_legend(axes)
        return _svg(figure, "histogram", alt)


def history(
    steps: Array,
    xi: Array,
    deviation: Array,
    stops: Sequence[tuple[float, float]],
    limit: float | None,
    alt: str,
) -> Markup:
    """CV and deviation from the path as functions of time, with the limit and the restarts.

    Parameters
    ----------
    steps, xi, deviation
        Shape (n,) each; only as many points are drawn as can be distinguished.
    stops
        Step and deviation (angstrom) of the stops by the guard.
    limit
        The limit of the guard, angstrom.
    alt
        Description of the chart.
    """
    every = max(1, -(-len(steps) // MOST_POINTS))
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 3.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, values, label in (
            (upper, xi, "CV ξ"),
            (lower, deviation, "deviation (Å)"),
        ):
            axes.plot(steps[::every], values[::every], color=LAST, linewidth=0.5, alpha=0.8)
            axes.set_ylabel(label)
            axes.margins(x=0)
        if limit is not None:
            lower.axhline(limit, color=INK, linestyle=":", linewidth=1.2)
            lower.annotate(f"guard {limit:g} Å", (1.0, limit), (0, 3), ha="right", va="bottom",
                           xycoords=("axes fraction", "data"), textcoords="offset points",
                           fontsize=8.5)  # fmt: skip
            lower.set_ylim(top=max(lower.get_ylim()[1], 1.15 * limit))
        if stops:
            lower.plot(*np.transpose(stops), "x", color=EARLIER[0], markersize=6,
                       markeredgewidth=1.6)  # fmt: skip
        lower.set_xlabel("MD steps of the iteration")
        lower.xaxis.set_major_formatter(FuncFormatter(_thousands))
        return _svg(figure, "history", alt)


def _figure(width: float = 4.4, height: float = 2.9) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


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
    # Coordinates are rounded to a hundredth of a point; numbers that are read are not.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)
    for variable, colour in figures.COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    head = f'<svg class="chart" role="img" aria-label="{escape(alt)}" viewBox="{box[1]}">'
    return Markup(head + text[text.index(">") + 1 :])
