"""Pictures of a run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from plumed_cv.babf import Profile
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
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    formats = figure.canvas.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".") not in formats:
        raise UserError(f"{path}: a picture's name ends in one of .{', .'.join(sorted(formats))}.")
    axes = figure.subplots()
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
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
