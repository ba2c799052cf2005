"""The charts of a run: those for which it has data."""

import numpy as np
from markupsafe import Markup

from plumed_cv import workflow
from plumed_cv.common.numbers import cv_in_words, energy_in_words
from plumed_cv.report import charts
from plumed_cv.report.contents import Run
from plumed_cv.structures.frame import Array


def draw_charts(run: Run) -> dict[str, Markup]:
    """Charts for which the run has data, by name."""
    figures: dict[str, Markup] = {}
    parts, answer = run.parts, run.answer
    if answer is not None:
        zero = None
        if run.path is not None:
            zero = (run.along_path(answer.variable), run.path.energies)
        curves = [(part.label, part.profile) for part in parts if part is not answer]
        figures["profiles"] = charts.profiles(
            [*curves, (f"{answer.label}, the answer", answer.profile)],
            zero,
            workflow.surfaces_of(answer.numbers),
            workflow.minima_of(answer.numbers),
            "Free energy in eV against the collective variable, a curve for each iteration; flux "
            "barriers "
            + ", ".join(
                f"iteration {p.number}: {energy_in_words(p.numbers, 'flux_barrier', 'eV')}"
                for p in parts
            ),
        )
        growth = [(part.label, *part.convergence()) for part in parts]
        if any(estimates for _, _, estimates in growth):
            figures["steps"] = charts.barrier_with_steps(
                growth,
                "Flux barrier against the number of steps, a curve for each iteration, "
                f"ending at {energy_in_words(parts[-1].numbers, 'flux_barrier', 'eV')}",
            )
        histograms = []
        for part in parts:
            edges = np.append(part.profile.xi, part.profile.xi[-1] + part.profile.grid.spacing)
            edges = edges - 0.5 * part.profile.grid.spacing
            counts = np.histogram(np.concatenate(part.xi), edges)[0].astype(float)
            histograms.append((part.label, edges, 100 * counts / max(counts.sum(), 1)))
        figures["histogram"] = charts.histogram(
            histograms,
            "Share of the samples against the collective variable, an outline for each iteration",
        )
        steps, xi, deviation, stops = answer.history()
        figures["history"] = charts.history(
            steps,
            xi,
            deviation,
            stops,
            run.settings.deviation_limit_A,
            f"Collective variable and deviation from the path against the steps of iteration "
            f"{answer.number}, with {len(stops)} restarts by the guard",
        )
    if run.path is not None and run.variables:
        along_path = []
        for n, variable in enumerate(run.variables):
            label = f"CV {n} ({variable.kind})"
            along_path.append((label, run.path.arc_length, run.along_path(variable)))
        figures["along_path"] = charts.lines(
            "path",
            along_path,
            ("arc length along the 0 K path", "collective variable ξ"),
            "Each collective variable against the arc length of the minimum energy path, 0 to 1",
            diagonal=True,
        )
    similarities = run.similarities()
    if similarities:
        tolerance = run.limits.tolerance
        means = [f"{label}: mean {curve.mean():.3f}" for label, curve in similarities]
        points = np.linspace(0, 1, len(similarities[0][1]))
        figures["similarity"] = charts.lines(
            "similarity",
            [(mean, points, curve) for mean, (_, curve) in zip(means, similarities, strict=True)],
            ("ξ of the older CV", "1 − cos"),
            "1 minus the cosine between the gradients of successive collective variables along "
            f"the path; {', '.join(means)}; equivalent below {tolerance:g}",
            limit=(f"largest mean of equivalent CVs: {tolerance:g}", tolerance),
        )
    _committee_figure(run, figures)
    _rate_figures(run, figures)
    _training_figures(run, figures)
    return figures


def _committee_figure(run: Run, figures: dict[str, Markup]) -> None:
    found = (run.result or {}).get("committee") if run.ended else None
    if not found:
        return
    xi, spread = (np.array(found[key], dtype=float) for key in ("xi", "spread_eV"))
    curves = [
        (
            f"{number}: {member['potential']}",
            xi,
            np.array(member["along_eV"], dtype=float),
            np.array(member["along_error_eV"], dtype=float),
        )
        for number, member in enumerate(found["members"], 1)
    ]
    figures["committee"] = charts.differences(
        curves,
        (xi, spread),
        "Profile of each other potential minus that of the run, in eV, against the collective "
        f"variable; they differ most at {cv_in_words(found['disagree_most_at_xi'])}",
    )


def _rate_figures(run: Run, figures: dict[str, Markup]) -> None:
    details = (run.result or {}).get("rate") if run.ended else None
    if not details:
        return
    curves, shares = [], []
    for number, step in enumerate(details["steps"], 1):
        plateau = step["plateau"]
        kappa, error = (
            np.array(plateau[key], dtype=float) for key in ("transmission", "transmission_error")
        )
        label = f"surface {number} at ξ = {cv_in_words(step['surface'])}"
        curves.append((label, 1e-3 * np.array(plateau["time_fs"]), kappa, np.nan_to_num(error)))
        shares += step["committors"]
    figures["plateau"] = charts.plateau(
        curves,
        "Transmission coefficient against the time since the dividing surface, ending at "
        + ", ".join(f"{kappa[-1]:.2f} for {label}" for label, _, kappa, _ in curves),
    )
    if shares:
        figures["committors"] = charts.committors(
            np.array(shares),
            "Share of the structures on the dividing surface against the share of their "
            "trajectories that end behind it",
        )


def _training_figures(run: Run, figures: dict[str, Markup]) -> None:
    fractions: list[tuple[str, Array, int | None]] = []
    elbow = run.components.get("elbow")
    if scree := run.components.get("fraction_of_variance"):
        drawn = "noisy 0 K path" if run.path else "structures of iteration 1"
        fractions.append((drawn, np.array(scree), elbow))
    if run.trainings:
        n = max(run.trainings)
        record = run.trainings[n]
        shares = np.array(record["variances_A2"]) / record["total_variance_A2"]
        fractions.append((f"components of CV {n}", shares, None))
        figures["losses"] = charts.lines(
            "losses",
            [
                (f"CV {k}", np.arange(1.0, 1 + len(r["losses_A2"])), np.sqrt(r["losses_A2"]))
                for k, r in sorted(run.trainings.items())
            ],
            ("epoch", "RMS error (Å)"),
            "Root mean square error of the decoder against the epochs of each training, ending at "
            + ", ".join(
                f"{r['losses_A2'][-1] ** 0.5:.4f} Å for CV {k}"
                for k, r in sorted(run.trainings.items())
            ),
            logarithmic=True,
        )
    if fractions:
        figures["variance"] = charts.variance(
            fractions,
            "Fraction of variance explained by each principal component"
            + (f", with the elbow after component {elbow}" if elbow else ""),
        )
