"""Print the reference flux barriers as a table and draw their profiles, from the committed data.

    python -m python.references.table

The figure goes to docs/references/profiles.png.
"""

import argparse
import json
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plumed_cv.common.files import replacing
from python.references import common, harmonic
from python.references.common import Case

COLOURS = {100: "tab:blue", 300: "tab:green", 500: "tab:red"}


def milli(result: dict[str, Any] | None, name: str) -> str:
    """A result and its error in meV, or nothing."""
    if result is None or result.get(f"{name}_eV") is None:
        return ""
    value, error = result[f"{name}_eV"], result.get(f"{name}_error_eV")
    return f"{1e3 * value:.1f}" + ("" if error is None else f" ± {1e3 * error:.1f}")


def babf_rows() -> dict[str, list[tuple[float, float]]]:
    """Flux barriers and errors (eV) of the package's own runs in docs/vacancy-fe.json, by CV."""
    file = common.DOCS.parent / "vacancy-fe.json"
    rows: dict[str, list[tuple[float, float]]] = {"linear": [], "autoencoder": []}
    for run in json.loads(file.read_text(encoding="utf-8")):
        for part in run["result"]["iterations"]:
            value, error = part["flux_barrier_eV"], part["flux_barrier_error_eV"]
            if value is not None and error is not None:
                rows[part["kind"]].append((value, error))
    return rows


def print_table() -> None:
    """Print a row for every case, then the package's own results."""
    umbrella, line, pafi, expansions = map(
        common.read_data, ("umbrella", "pafi-line", "pafi", "harmonic")
    )
    print("| case | umbrella, linear CV | planes of the line | harmonic, linear CV ", end="")
    print("| planes of the path | harmonic | A(1)-A(0), umbrella | rate, path (1/s) |")
    print("|" + " --- |" * 8)
    for case in cases():
        flat = harmonic.limits(expansions[case.cell], case.temperature_K)
        along, planes = umbrella.get(case.name), pafi.get(case.name)
        cells = [
            case.name,
            milli(along, "symmetric_flux_barrier"),
            milli(line.get(case.name), "symmetric_flux_barrier"),
            milli(flat, "linear_flux_barrier"),
            milli(planes, "symmetric_flux_barrier"),
            milli(flat, "flux_barrier"),
            milli(along, "delta_F"),
            f"{planes['rate_per_s']:.2g}" if planes else "",
        ]
        print("| " + " | ".join(cells) + " |")
    print()
    for kind, rows in babf_rows().items():
        value, error = common.mean_of_runs(*zip(*rows, strict=True))
        print(
            f"bABF, {kind} CV, {len(rows)} iterations of paper-300K (docs/vacancy-fe.json): "
            f"{1e3 * value:.1f} ± {1e3 * error:.1f} meV"
        )


def cases() -> list[Case]:
    """All cells and temperatures with data."""
    found = [
        common.case(name) for name in {**common.read_data("umbrella"), **common.read_data("pafi")}
    ]
    order = list(common.CELLS_A)
    return sorted(found, key=lambda case: (order.index(case.cell), case.temperature_K))


def draw() -> None:
    """Draw the profiles along the linear CV and those of the path's planes, cell by cell."""
    umbrella, pafi = common.read_data("umbrella"), common.read_data("pafi")
    figure = Figure(figsize=(9, 7), layout="constrained")
    grid = figure.subplots(2, len(common.CELLS_A), sharey="row", squeeze=False)
    for column, (cell, edge) in enumerate(common.CELLS_A.items()):
        upper, lower = grid[0, column], grid[1, column]
        for T in common.TEMPERATURES_K:
            key = Case(cell, T).name
            if along := umbrella.get(key):
                _band(upper, along["xi"], along, "symmetric_A", T)
            if planes := pafi.get(key):
                s = np.array(planes["s_A"]) / planes["length_A"]
                _band(lower, s, planes, "symmetric_F", T)
        upper.set_title(f"{cell}: L = {edge:.4f} Å")
        upper.set_xlabel("linear CV ξ")
        lower.set_xlabel("s / length of the minimum energy path")
    grid[0, 0].set_ylabel("A(ξ) (eV), umbrella sampling")
    grid[1, 0].set_ylabel("F(s) (eV), hyperplanes")
    grid[0, 0].legend()
    with replacing(common.DOCS / "profiles.png") as temporary:
        figure.savefig(temporary, dpi=110)


def _band(axes: Axes, x: Any, result: dict[str, Any], name: str, temperature_K: int) -> None:
    value, error = (
        np.array([np.nan if v is None else v for v in result[f"{name}{end}_eV"]])
        for end in ("", "_error")
    )
    colour = COLOURS[temperature_K]
    axes.plot(x, value, color=colour, label=f"{temperature_K} K")
    axes.fill_between(x, value - 2 * error, value + 2 * error, color=colour, alpha=0.3)
    axes.set_ylim(-0.02, 0.75)


def main() -> None:
    """Print and draw."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print_table()
    draw()


if __name__ == "__main__":
    main()
