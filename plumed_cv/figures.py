"""Figures of a run and of a path in one style: files of any format, and the charts of a report.

`plot_*` writes a file. `draw_*` draws on axes, those of a report or of your own script.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing
from plumed_cv.cv.localisation import Localisation
from plumed_cv.cv.reconstruction import Reconstruction
from plumed_cv.freeenergy import Profile, Surface, unit_in_words
from plumed_cv.structures.frame import Array

# Everything is drawn in these colours. A page knows them and has others for the dark scheme.
COLOURS = {
    "ink": "#1a2027",
    "muted": "#55606c",
    "grid": "#e1e5ea",
    "surface": "#ffffff",
    "last": "#005f9e",
    "earlier-1": "#a85b00",
    "earlier-2": "#00735a",
    "earlier-3": "#9c3f78",
    "earlier-4": "#5f6872",
}
INK, MUTED, GRID, SURFACE, LAST, *EARLIER = COLOURS.values()
_DASHES = ["-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1.5, 1.5))]

STYLE: Any = {
    "text.parse_math": False,  # texts from a run directory are not formulae
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


def plot_profiles(
    path: Path | str,
    profiles: Sequence[tuple[str, Profile]],
    title: str,
    zero_kelvin: tuple[Array, Array] | None = None,
    surfaces: Sequence[float] = (),
    minima: Sequence[float] = (),
) -> None:
    """Draw free energy profiles into a file.

    Parameters
    ----------
    path
        The figure; its suffix selects the format.
    profiles, zero_kelvin, surfaces, minima
        As for `draw_profiles`.
    title
        Title of the figure.

    Raises
    ------
    UserError
        If there is no such format.
    """
    with _picture(path, title) as axes:
        draw_profiles(axes, profiles, zero_kelvin, surfaces, minima)


def draw_profiles(
    axes: Axes,
    profiles: Sequence[tuple[str, Profile]],
    zero_kelvin: tuple[Array, Array] | None = None,
    surfaces: Sequence[float] = (),
    minima: Sequence[float] = (),
) -> None:
    """Draw free energy profiles with bands of one standard error; the last one is emphasised.

    Parameters
    ----------
    axes
        Axes to draw on.
    profiles
        Label and profile of each iteration.
    zero_kelvin
        Collective variable and energy (eV) along the minimum energy path, shapes (K,), if known.
    surfaces, minima
        Dividing surfaces and minima of the basins of the last profile, as values of its CV.
    """
    for k, (label, profile) in enumerate(profiles):
        colour, dash = look(k, len(profiles))
        width = 2.0 if k + 1 == len(profiles) else 1.2
        profile.plot(axes, color=colour, linestyle=dash, linewidth=width, label=label)
    if zero_kelvin is not None:
        axes.plot(*zero_kelvin, color=MUTED, linestyle=":", label="0 K, minimum energy path")
    last = profiles[-1][1]
    for state in last.states:
        if last.xi[0] <= state <= last.xi[-1]:
            axes.axvline(state, color=MUTED, linewidth=0.6, zorder=0)
    for k, surface in enumerate(surfaces):
        label = "" if k else f"dividing surface{'s' if len(surfaces) > 1 else ''}"
        axes.axvline(surface, color=INK, linewidth=0.9, linestyle="--", zorder=0, label=label)
    if len(minima):
        heights = np.interp(minima, last.xi, np.nan_to_num(last.A))
        axes.plot(minima, heights, "^", color=INK, markersize=6, clip_on=False, label="basins")
    axes.margins(x=0)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    add_legend(axes)


def plot_surface(path: Path | str, surface: Surface, title: str) -> None:
    """Draw a free energy on the plane of two CVs, white where there are no samples.

    Parameters
    ----------
    path
        The figure; its suffix selects the format.
    surface
        Result of `freeenergy.estimate_surface`.
    title
        Title of the figure.

    Raises
    ------
    UserError
        If there is no such format.
    """
    A = np.ma.masked_invalid(surface.on_grid(surface.A))
    first, second = (axis.nodes for axis in surface.axes)
    # A few bins with one sample must not set the scale, because basins would then look flat.
    levels = np.linspace(0.0, float(np.percentile(A.compressed(), 98)), 17)
    with _picture(path, title) as axes:
        drawn = axes.contourf(first, second, A, levels, cmap="viridis", extend="max")
        axes.contour(first, second, A, levels[::2], colors=INK, linewidths=0.4)
        axes.figure.colorbar(
            drawn, ax=axes, label=f"free energy ({unit_in_words(surface.energy_unit)})"
        )
        axes.set_xlabel(surface.arguments[0])
        axes.set_ylabel(surface.arguments[1])


def plot_energy_profiles(path: Path | str, result: Reconstruction) -> None:
    """Draw the energy along a path, of the path, the components and the autoencoder (Figs. 5, 6).

    Parameters
    ----------
    path
        The figure; its suffix selects the format.
    result
        Result of `reconstruct`.

    Raises
    ------
    UserError
        If there is no such format.
    """
    components = f"D = {result.variable.n_components}"
    subspace = "PCA" if result.training.subspace == "pca" else "PCA of the mean path"
    profiles = (
        (result.neb, "path", INK, "-"),
        (result.pca, f"{subspace}, {components}", EARLIER[0], "--"),
        (result.ae_pca, f"AE+PCA, {components}", LAST, "-"),
    )
    title = f"{len(result.path.species)} atoms, {result.n_structures:,} structures"
    with _picture(path, title) as axes:
        axes.plot(result.path.arc_length, result.path.energies, "o", color=INK, markersize=4)
        for profile, words, colour, style in profiles:
            label = f"{words}: {profile.barrier:.4f} eV"
            if profile is not result.neb and result.neb.barrier > 0:
                label += f" ({100 * (profile.barrier / result.neb.barrier - 1):+.1f} %)"
            axes.plot(
                *(profile.parameter, profile.energy, style),
                color=colour,
                label=label,
                zorder=3 if style == "--" else 2,  # the solid lines would hide it otherwise
            )
        axes.set_xlabel("arc length along the path")
        axes.set_ylabel("energy (eV)")
        axes.margins(x=0.01)
        add_legend(axes)


def plot_fve(path: Path | str, results: Sequence[tuple[str, Reconstruction]]) -> None:
    """Draw the fraction of variance explained by each component into a file (Fig. 2).

    Parameters
    ----------
    path
        The figure; its suffix selects the format.
    results
        Label and reconstruction of each system.

    Raises
    ------
    UserError
        If there is no such format.
    """
    with _picture(path) as axes:
        draw_fve(
            axes, [(words, found.fraction_of_variance, found.elbow) for words, found in results]
        )


def draw_fve(axes: Axes, curves: Sequence[tuple[str, Array, int | None]]) -> None:
    """Draw the fraction of variance explained by each component, filled up to the elbow (Fig. 2).

    Parameters
    ----------
    axes
        Axes to draw on.
    curves
        Label, fractions and number of components before the elbow; None if all were used.
    """
    for k, (label, fractions, elbow) in enumerate(curves):
        colour, _ = look(k, len(curves))
        number = np.arange(1, len(fractions) + 1)
        axes.plot(number, fractions, color=colour, linewidth=0.9)
        for part, face in ((slice(elbow), colour), (slice(elbow, None), SURFACE)):
            if elbow is not None or face == colour:
                axes.plot(number[part], fractions[part], "o", color=colour, markersize=3.5,
                          markerfacecolor=face)  # fmt: skip
        named = label if elbow is None else f"{label}: elbow at {elbow}"
        axes.plot([], [], "o-", color=colour, markersize=3.5, linewidth=0.9, label=named)
    make_logarithmic(axes)
    axes.set_xlabel("principal component")
    axes.set_ylabel("fraction of variance explained")
    add_legend(axes)


def plot_localisation(path: Path | str, result: Reconstruction) -> None:
    """Draw the amplitude of each atom in the components into a file (Fig. 3).

    Parameters
    ----------
    path
        The figure; its suffix selects the format.
    result
        Result of `reconstruct`.

    Raises
    ------
    UserError
        If there is no such format.
    """
    found = result.localisation
    initial = result.path.of_atoms(result.selection.serials).images[0]
    centre = int(found.amplitude.argmax())
    distances = initial.get_distances(centre, range(len(initial)), mic=bool(initial.pbc.any()))
    with _picture(path, f"{len(initial)} atoms, {found.verdict}") as axes:
        draw_localisation(axes, distances, found)


def draw_localisation(axes: Axes, distances: Array, found: Localisation) -> None:
    """Draw the amplitude of each atom against its distance from the most mobile one (Fig. 3).

    Parameters
    ----------
    axes
        Axes to draw on.
    distances
        Shape (N,), angstrom.
    found
        Which atoms take part.
    """
    groups = (
        (found.moving, found.share, LAST),
        (~found.moving, 1.0 - found.share, SURFACE),
    )
    for atoms, share, face in groups:
        number = f"{atoms.sum()} {'atom' if atoms.sum() == 1 else 'atoms'}"
        axes.plot(
            distances[atoms],
            found.amplitude[atoms],
            "o",
            color=LAST,
            markersize=4,
            markerfacecolor=face,
            markeredgewidth=0.8,
            label=f"{number} with {100 * share:.0f} % of the squared displacement",
        )
    axes.axhline(found.noise, color=MUTED, linestyle=":", label="thermal noise")
    make_logarithmic(axes)
    axes.set_xlabel("distance from the most mobile atom (Å)")
    axes.set_ylabel("amplitude var_D (Å)")
    add_legend(axes)


def plot_arrhenius(
    path: Path | str,
    rows: Sequence[dict[str, Any]],
    curve: tuple[Array, Array] | None,
    title: str,
) -> None:
    """Draw rates over the inverse temperature into a file, as `draw_arrhenius` does.

    Raises
    ------
    UserError
        If there is no such format.
    """
    with _picture(path, title) as axes:
        draw_arrhenius(axes, rows, curve)


def draw_arrhenius(
    axes: Axes, rows: Sequence[dict[str, Any]], curve: tuple[Array, Array] | None
) -> None:
    """Draw rates over the inverse temperature, with errors of one sigma and their fit.

    Parameters
    ----------
    axes
        On which.
    rows
        The `rates` of rates.json.
    curve
        Temperatures, K, and fitted rates there, 1/s, shape (n,) each; None where there is no fit.
    """
    known = [row for row in rows if row["rate_per_s"]]
    kelvin = np.array([row["temperature_K"] for row in known])
    rate = np.array([row["rate_per_s"] for row in known])
    if curve is not None:
        axes.plot(1e3 / curve[0], curve[1], color=LAST, label="fit")
    factor = np.array([row["error_factor"] or 1.0 for row in known])
    axes.errorbar(1e3 / kelvin, rate, [rate - rate / factor, rate * factor - rate], fmt="o",
                  color=LAST, markersize=4, capsize=2.5, linewidth=1.0, label="rate")  # fmt: skip
    for name, marker, label in (
        ("tst_rate_per_s", "^", "transition state theory"),
        ("harmonic_rate_per_s", "s", "harmonic theory"),
    ):
        others = [(1e3 / row["temperature_K"], row[name]) for row in rows if row[name]]
        if others and others != list(zip(1e3 / kelvin, rate, strict=True)):
            axes.plot(*np.transpose(others), marker, color=EARLIER[0] if marker == "^" else MUTED,
                      markerfacecolor="none", markersize=6, label=label)  # fmt: skip
    make_logarithmic(axes)
    axes.set_xlabel("1000 K / T")
    axes.set_ylabel("rate of one event (1/s)")
    add_legend(axes)


def plot_diffusion(path: Path | str, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Draw diffusion coefficients over the inverse temperature, with errors of one sigma.

    Parameters
    ----------
    path
        The file.
    rows
        The `temperatures` of diffusion.json.
    title
        The title.

    Raises
    ------
    UserError
        If there is no such format.
    """
    with _picture(path, title) as axes:
        for name, error, label, colour in (
            ("D_m2_per_s", "error_factor", "of the defect", LAST),
            ("D_tracer_m2_per_s", "tracer_error_factor", "of a tracer atom", EARLIER[0]),
            ("D_solute_m2_per_s", "solute_error_factor", "of the solute", EARLIER[1]),
        ):
            known = [row for row in rows if row.get(name)]
            if not known:
                continue
            D, factor = (np.array([row[key] for row in known]) for key in (name, error))
            x = 1e3 / np.array([row["temperature_K"] for row in known])
            axes.errorbar(x, D, [D - D / factor, D * factor - D], fmt="o-", color=colour,
                          markersize=4, capsize=2.5, linewidth=1.0, label=label)  # fmt: skip
        make_logarithmic(axes)
        axes.set_xlabel("1000 K / T")
        axes.set_ylabel("diffusion coefficient (m²/s)")
        add_legend(axes)


def look(k: int, number: int) -> tuple[str, Any]:
    """Colour and dashes of curve k of `number` curves; the last one always looks the same."""
    if k + 1 == number:
        return LAST, "-"
    return EARLIER[k % len(EARLIER)], _DASHES[(k + 1) % len(_DASHES)]


def add_legend(axes: Axes) -> None:
    """Put a legend above the axes, where it covers no data."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1, borderaxespad=0.2)


def make_logarithmic(axes: Axes) -> None:
    """Make the y axis logarithmic, with numbers as plain text and not as formulae."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high / low < 30
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


@contextmanager
def _picture(path: Path | str, title: str | None = None) -> Iterator[Axes]:
    """Yield axes whose figure is written to a file with a known format."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.0, 3.6), layout="constrained")
        formats = figure.canvas.get_supported_filetypes()
        if Path(path).suffix.removeprefix(".") not in formats:
            raise UserError(
                f"{path}: the name of a figure must end in one of .{', .'.join(sorted(formats))}."
            )
        yield figure.subplots()
        if title is not None:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9.0)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=200)
