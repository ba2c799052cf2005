"""Pictures of a run and of a path, in files of any format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from plumed_cv.babf import Profile, Surface
from plumed_cv.energy import Reconstruction
from plumed_cv.errors import UserError
from plumed_cv.files import replacing
from plumed_cv.frame import Array


def plot_profiles(
    path: Path | str,
    profiles: Sequence[tuple[str, Profile]],
    title: str,
    zero_kelvin: tuple[Array, Array] | None = None,
) -> None:
    """Draw free energy profiles with bands of one standard error, the last one strongest.

    Parameters
    ----------
    path
        The picture; its suffix chooses the format.
    profiles
        Label and profile of each iteration.
    title
        What was sampled.
    zero_kelvin
        Collective variable and energy (eV) along the minimum energy path, shapes (K,), if known.

    Raises
    ------
    UserError
        If there is no such format.
    """
    figure, axes = _figure(path)
    colours = colormaps["viridis"](np.linspace(0.8, 0.0, max(len(profiles), 2)))
    for k, (label, profile) in enumerate(profiles):
        last = k + 1 == len(profiles)
        axes.plot(
            profile.xi,
            profile.A,
            color=colours[k],
            linewidth=2.0 if last else 1.0,
            label=f"{label}: {profile.barrier}",
        )
        axes.fill_between(
            profile.xi,
            profile.A - profile.A_error,
            profile.A + profile.A_error,
            color=colours[k],
            alpha=0.25,
            linewidth=0,
        )
    if zero_kelvin is not None:
        axes.plot(*zero_kelvin, "k--", linewidth=0.8, label="0 K minimum energy path")
    axes.set_xlabel(r"collective variable $\xi$")
    axes.set_ylabel("free energy (eV)")
    axes.set_title(title)
    axes.margins(x=0)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(fontsize="small", loc="lower center")
    _save(figure, path)


def plot_surface(path: Path | str, surface: Surface, title: str) -> None:
    """Draw a free energy on the plane of two CVs, white where there are no samples.

    Parameters
    ----------
    path
        The picture; its suffix chooses the format.
    surface
        What `babf.surface` returned.
    title
        What was sampled.

    Raises
    ------
    UserError
        If there is no such format.
    """
    figure, axes = _figure(path)
    A = np.ma.masked_invalid(surface.on_grid(surface.A))
    first, second = (axis.nodes for axis in surface.axes)
    # A few bins that were seen once are no reason for a scale on which basins look flat.
    top = float(np.percentile(A.compressed(), 98))
    drawn = axes.contourf(first, second, A, np.linspace(0.0, top, 17), cmap="viridis", extend="max")
    axes.contour(first, second, A, drawn.levels[::2], colors="black", linewidths=0.4)
    figure.colorbar(drawn, ax=axes, label="free energy (eV)")
    axes.set_xlabel(surface.arguments[0])
    axes.set_ylabel(surface.arguments[1])
    axes.set_title(title)
    _save(figure, path)


def plot_energy_profiles(path: Path | str, result: Reconstruction) -> None:
    """Draw the energy along a path and what components and autoencoder make of it (Figs. 5, 6).

    Parameters
    ----------
    path
        The picture; its suffix chooses the format.
    result
        What `energy.reconstruct` returned.

    Raises
    ------
    UserError
        If there is no such format.
    """
    figure, axes = _figure(path)
    components = f"D = {result.variable.n_components}"
    subspace = "PCA" if result.training.subspace == "pca" else "PCA of the mean path"
    profiles = (
        (result.neb, "path", "black", "-"),
        (result.pca, f"{subspace}, {components}", "tab:orange", "--"),
        (result.ae_pca, f"AE+PCA, {components}", "tab:blue", "-"),
    )
    axes.plot(result.path.arc_length, result.path.energies, "o", color="black", markersize=4)
    for profile, words, colour, style in profiles:
        label = f"{words}: {profile.barrier:.4f} eV"
        if profile is not result.neb and result.neb.barrier > 0:
            label += f" ({100 * (profile.barrier / result.neb.barrier - 1):+.1f} %)"
        above = 3 if style == "--" else 2  # or the solid lines would hide it
        axes.plot(profile.parameter, profile.energy, style, color=colour, label=label, zorder=above)
    axes.set_xlabel("arc length along the path")
    axes.set_ylabel("energy (eV)")
    axes.set_title(f"{len(result.path.species)} atoms, {result.n_structures:,} structures")
    axes.margins(x=0.01)
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_fve(path: Path | str, results: Sequence[tuple[str, Reconstruction]]) -> None:
    """Draw the fraction of variance explained by each component, filled up to the elbow (Fig. 2).

    Parameters
    ----------
    path
        The picture; its suffix chooses the format.
    results
        Label and reconstruction of each system.

    Raises
    ------
    UserError
        If there is no such format.
    """
    figure, axes = _figure(path)
    for k, (label, result) in enumerate(results):
        fractions, elbow = result.fraction_of_variance, result.elbow
        number = np.arange(1, len(fractions) + 1)
        colour = f"C{k}"
        axes.semilogy(number, fractions, color=colour, linewidth=0.8)
        for part, face in ((slice(elbow), colour), (slice(elbow, None), "white")):
            axes.plot(number[part], fractions[part], "o", color=colour, markerfacecolor=face)
        axes.plot([], [], "o-", color=colour, label=f"{label}: elbow at {elbow}")
    axes.set_xlabel("principal component")
    axes.set_ylabel("fraction of variance explained")
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_localisation(path: Path | str, result: Reconstruction) -> None:
    """Draw each atom's share in the components by its distance from the most mobile atom (Fig. 3).

    Parameters
    ----------
    path
        The picture; its suffix chooses the format.
    result
        What `energy.reconstruct` returned.

    Raises
    ------
    UserError
        If there is no such format.
    """
    figure, axes = _figure(path)
    found = result.localisation
    initial = result.path.images[0]
    centre = int(found.amplitude.argmax())
    distances = initial.get_distances(centre, range(len(initial)), mic=bool(initial.pbc.any()))
    groups = (
        (found.moving, found.share, "tab:blue"),
        (~found.moving, 1.0 - found.share, "white"),
    )
    for atoms, share, face in groups:
        axes.plot(
            distances[atoms],
            found.amplitude[atoms],
            "o",
            color="tab:blue",
            markerfacecolor=face,
            markersize=4,
            label=f"{atoms.sum()} atoms with {100 * share:.0f} % of the squared displacement",
        )
    axes.axhline(found.noise, color="black", linestyle="--", linewidth=0.8, label="thermal noise")
    axes.set_xlabel("distance from the most mobile atom (Å)")
    axes.set_ylabel(r"$\mathrm{var}_{D,a}$ (Å)")
    axes.set_title(f"{len(initial)} atoms, {found.verdict}")
    axes.set_yscale("log")
    axes.legend(fontsize="small")
    _save(figure, path)


def _figure(path: Path | str) -> tuple[Figure, Any]:
    """A figure with one set of axes, if there is a format for the picture's name."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    formats = figure.canvas.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".") not in formats:
        raise UserError(f"{path}: a picture's name ends in one of .{', .'.join(sorted(formats))}.")
    return figure, figure.subplots()


def _save(figure: Figure, path: Path | str) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
