"""Content of the page of a run at several temperatures: rates, their fit, links to the runs."""

import os
from pathlib import Path
from typing import Any

import plumed_cv
from plumed_cv import workflow
from plumed_cv.common.numbers import with_error
from plumed_cv.report import charts


def collect_facts(directory: Path, output: Path) -> dict[str, Any]:
    """All that the template shows.

    Parameters
    ----------
    directory
        Of a run at several temperatures, ended or not.
    output
        The page, from which links lead to those of the runs.
    """
    root = directory.absolute()
    places = list(workflow.iterate_runs(root))
    found = workflow.write_rates(root)
    rows = found["rates"]
    missing = [f"{kelvin:g} K" for kelvin, place in places if not (place / "result.json").exists()]
    unsure = [f"{row['temperature_K']:g} K" for row in rows if not row["converged"]]
    sentences = workflow.fit_in_words(found["fit"])
    return {
        "version": plumed_cv.__version__,
        "directory": root.name if root.name != "run" else f"{root.parent.name}/{root.name}",
        "kelvin": ", ".join(f"{kelvin:g}" for kelvin, _ in places),
        "status": _status(missing, unsure),
        "rows": [
            {
                "kelvin": f"{row['temperature_K']:g}",
                "rate": _rounded(row["rate_per_s"]),
                "factor": "unknown"
                if row["error_factor"] is None
                else f"{row['error_factor']:.2f}",
                "transmission": "—"
                if row["transmission"] is None
                else f"{row['transmission']:.2f}",
                "events": "—" if row["multiplicity"] is None else row["multiplicity"],
                "escape": _rounded(row["escape_rate_per_s"]),
                "harmonic": _rounded(row["harmonic_rate_per_s"], "—"),
                "flux": with_error(
                    row["flux_barrier_eV"], row["flux_barrier_error_eV"], ""
                ).strip(),
                "source": row["source"],
                "converged": row["converged"],
            }
            for row in rows
        ],
        "pages": [
            (f"{kelvin:g} K", os.path.relpath(place / "report.html", output.absolute().parent))
            for kelvin, place in places
            if (place / "report.html").exists()
        ],
        "chart": charts.arrhenius(
            rows,
            workflow.make_curve(rows),
            "Rate of one event in 1/s over 1000 K / T; " + " ".join(sentences),
        )
        if any(row["rate_per_s"] for row in rows)
        else None,
        "sentences": sentences,
    }


def _rounded(rate: float | None, unknown: str = "unknown") -> str:
    return unknown if rate is None else f"{rate:.3g}"


def _status(missing: list[str], unsure: list[str]) -> dict[str, str]:
    """The state of the run, in the first words of the page."""
    if missing:
        return {
            "kind": "bad",
            "headline": "This run has not ended",
            "sentence": f"No result yet at {', '.join(missing)}. The command that started it goes "
            "on from there.",
        }
    if unsure:
        return {
            "kind": "bad",
            "headline": "Not converged",
            "sentence": f"At {', '.join(unsure)}: see the pages of these runs for what to do.",
        }
    return {
        "kind": "good",
        "headline": "Converged",
        "sentence": "at every temperature: all checks passed.",
    }
