"""What the page of a run says: the status, the answer, checks, tables, charts and files, in words.

Everything is text or safe markup; the templates do nothing but arrange it.
"""

import base64
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ase import Atoms, units
from markupsafe import Markup

import plumed_cv
from plumed_cv import provenance
from plumed_cv.frame import Array
from plumed_cv.report import charts, contents, scene
from plumed_cv.report.contents import Part, Run
from plumed_cv.report.numbers import duration, scientific, with_error

_KJ_MOL = units.mol / units.kJ  # of an eV
_HASHED = ("cv.safetensors", "fes.dat", "babf.state", "plumed.dat", "result.json", "path.xyz")
_CROSSINGS = 10  # fewer say little about what separates the end states


def of(run: Run) -> dict[str, Any]:
    """All that the template shows."""
    root = run.files.root
    written = run.files.result.stat().st_mtime if run.result else None
    return {
        "version": plumed_cv.__version__,
        "duration": duration,
        "directory": root.name if root.name != "run" else f"{root.parent.name}/{root.name}",
        "formula": _formula(run),
        "kelvin": f"{run.kelvin:g}",
        "started": _moment(run.starts[0]["time"]) if run.starts else None,
        "ended": _moment(datetime.fromtimestamp(written, UTC).isoformat()) if written else None,
        "status": _status(run),
        "answer": _answer(run),
        "checks": _checks(run),
        "iterations": [_row(part, run) for part in run.parts],
        "figures": _figures(run),
        "localisation": _localisation(run),
        "cost": _cost(run),
        "input": _input_text(run),
        "starts": run.starts,
        "seed": run.given["iteration"]["seed"],
        "hashes": [
            (name, provenance.sha256(root / name)) for name in _HASHED if (root / name).exists()
        ],
        "production": _text(root / "plumed.dat") if run.ended else None,
        "downloads": _downloads(run),
    }


def _status(run: Run) -> dict[str, Any]:
    """How the run stands, in the words that come first."""
    limits, steps = run.limits, run.settings.steps * run.settings.repetitions
    if not run.ended:
        last = run.parts[-1] if run.parts else None
        if last is None:
            so_far = "Nothing has been sampled yet."
        elif last.result is None:
            so_far = (
                f"Iteration {last.number} has sampled {last.steps:,} of {steps:,} steps; "
                "it goes on, or was stopped."
            )
        elif last.result["barrier_eV"] is None:
            so_far = f"Iteration {last.number} did not reach both end states; raise sampling.steps."
        else:
            so_far = f"Iteration {last.number} is done; the next one has not sampled anything yet."
        answer = run.answer
        if answer is not None:
            of = "that iteration's" if answer is last else f"those of iteration {answer.number}"
            so_far += f" The numbers below are {of}: preliminary."
        return {
            "kind": "bad",
            "headline": "This run has not ended",
            "sentence": so_far,
            "remedy": "The command that started it goes on from there: ",
            "command": "plumed-cv run INPUT.toml",
        }
    assert run.result is not None
    if not run.result["converged"]:
        if limits.criterion == "equivalence":
            why = (
                f"1 − cos between the last two CVs is {run.result['similarity']:.3f}; they count "
                f"as equivalent below {limits.tolerance:g}."
            )
        else:
            why = (
                "The last two flux barriers do not agree within two errors, or the error is not "
                f"below {limits.barrier_tolerance_eV:g} eV."
            )
        return {
            "kind": "bad",
            "headline": "Not converged",
            "sentence": f"The procedure stopped at its limit of {len(run.parts)} iterations. {why} "
            "Take the numbers below as preliminary.",
            "remedy": "Raise iteration.maximum in the input and run again, or raise "
            "sampling.steps.",
            "command": None,
        }
    return {
        "kind": "good",
        "headline": "Converged",
        "sentence": f"after {len(run.parts)} iterations: {run.result['stopped_by']}.",
        "remedy": None,
        "command": None,
    }


def _answer(run: Run) -> dict[str, Any] | None:
    """The numbers that the run was for."""
    part = run.answer
    if part is None:
        return None
    given = part.numbers

    def estimate(name: str) -> str:
        return with_error(given.get(f"{name}_eV"), given.get(f"{name}_error_eV"))

    barrier, error = given["barrier_eV"], given["barrier_error_eV"]
    in_kJ, error_kJ = (None if n is None else n * _KJ_MOL for n in (barrier, error))
    return {
        "barrier": estimate("barrier"),
        "barrier_kJ": with_error(in_kJ, error_kJ, "kJ/mol"),
        "flux": estimate("flux_barrier"),
        "delta": estimate("delta_F"),
        "histogram": None
        if given.get("estimator", "histogram") == "histogram"
        else estimate("histogram_barrier"),
        "activation": estimate("activation_free_energy"),
        "rate": scientific(given.get("tst_rate_per_s"), given.get("tst_rate_error_per_s"), "s⁻¹"),
        "surface": given.get("dividing_surface"),
        "zero": None if run.path is None else f"{run.path.barrier:.4f} eV",
        "of": part.label,
        "note": given.get("note"),
        "time_ns": f"{1e-6 * run.settings.timestep_fs * sum(p.steps for p in run.parts):.3g}",
        "steps": f"{sum(p.steps for p in run.parts):,}",
    }


def _checks(run: Run) -> list[dict[str, Any]]:
    """What speaks for the answer and against it."""
    part = run.answer
    if part is None:
        return []
    checks = []

    def check(ok: bool, words: str) -> None:
        checks.append({"ok": ok, "words": words})

    delta, barrier = part.profile.delta_F, part.profile.barrier
    if not np.isfinite(barrier.value):
        check(False, "One of the end states was not reached, so there is no barrier.")
    elif not np.isfinite(barrier.error):
        check(False, "There are too few independent parts for an error bar.")
    else:
        share = barrier.error / max(barrier.value, 1e-12)
        check(share < 0.1, f"The error bar is {100 * share:.2g} % of the barrier.")
    if run.path is not None and abs(run.path.energies[-1]) < 1e-3 and np.isfinite(delta.error):
        off = abs(delta.value) / delta.error
        check(
            off < 3.0 and delta.error < 2.0 * part.profile.kT_eV,
            "The end states have the same energy at 0 K, so A(1) − A(0) should be 0: it is "
            f"{with_error(delta.value, delta.error)}, {off:.1f} standard errors away.",
        )
    crossings = part.crossings()
    check(
        crossings >= _CROSSINGS,
        f"The dynamics went from one end state to the other {crossings} times in iteration "
        f"{part.number}" + ("." if crossings >= _CROSSINGS else "; ten or more would be better."),
    )
    limit = run.settings.deviation_limit_A
    if limit is None:
        check(True, "No guard was set (sampling.deviation_limit_A).")
    else:
        check(
            part.restarts <= 0.1 * len(part.records),
            f"The guard (deviation above {limit:g} Å) put the dynamics back to the first end state "
            f"{part.restarts} times in iteration {part.number}.",
        )
    steps, estimates = part.convergence()
    if len(estimates) > 3 and np.isfinite(estimates[-1].error):
        half = estimates[int(np.searchsorted(steps, 0.5 * steps[-1]))]
        moved = abs(estimates[-1].value - half.value)
        if np.isfinite(half.error):
            check(
                moved < 2.0 * half.error,
                "From half of the steps to all of them the barrier moved by "
                f"{1e3 * moved:.0f} meV; its error was {1e3 * half.error:.0f} meV at half.",
            )
    return checks


def _row(part: Part, run: Run) -> dict[str, Any]:
    """An iteration in the table."""
    result = part.numbers

    def estimate(name: str) -> str:
        return with_error(result.get(f"{name}_eV"), result.get(f"{name}_error_eV"), "").strip()

    similarity = result.get("similarity")
    return {
        "number": part.number,
        "kind": part.variable.kind,
        "ended": part.result is not None,
        "answer": part is run.answer,
        "barrier": estimate("barrier"),
        "flux": estimate("flux_barrier"),
        "delta": estimate("delta_F"),
        "similarity": "—" if similarity is None else f"{similarity:.3f}",
        "steps": f"{part.steps:,}",
        "crossings": part.crossings(),
        "restarts": part.restarts,
    }


def _figures(run: Run) -> dict[str, Markup]:
    """The charts that the run has data for, by name."""
    figures: dict[str, Markup] = {}
    parts, answer = run.parts, run.answer
    if answer is not None:
        zero = None
        if run.path is not None:
            zero = (run.along_path(answer.variable), run.path.energies)
        figures["profiles"] = charts.profiles(
            [(part.label, part.profile) for part in parts],
            zero,
            "Free energy in eV over the collective variable, one curve an iteration; barriers "
            + ", ".join(f"iteration {p.number}: {p.profile.barrier}" for p in parts),
        )
        growth = [(part.label, *part.convergence()) for part in parts]
        if any(estimates for _, _, estimates in growth):
            figures["steps"] = charts.barrier_with_steps(
                growth,
                "Barrier over the number of steps it is computed from, one curve an iteration, "
                f"ending at {parts[-1].profile.barrier}",
            )
        histograms = []
        for part in parts:
            edges = np.append(part.profile.xi, part.profile.xi[-1] + part.profile.grid.spacing)
            edges = edges - 0.5 * part.profile.grid.spacing
            counts = np.histogram(np.concatenate(part.xi), edges)[0].astype(float)
            histograms.append((part.label, edges, 100 * counts / max(counts.sum(), 1)))
        figures["histogram"] = charts.histogram(
            histograms,
            "Share of the samples over the collective variable, one outline an iteration",
        )
        steps, xi, deviation, stops = answer.history()
        figures["history"] = charts.history(
            steps,
            xi,
            deviation,
            stops,
            run.settings.deviation_limit_A,
            f"Collective variable and deviation from the path over the steps of iteration "
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
            "Each collective variable over the arc length of the minimum energy path, from 0 to 1",
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
            limit=(f"mean that counts as equivalent: {tolerance:g}", tolerance),
        )
    _training_figures(run, figures)
    return figures


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
            "Root mean square error of the decoder over the epochs of each training, ending at "
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


def _localisation(run: Run) -> dict[str, Any] | None:
    """Which atoms take part, in words, numbers and pictures."""
    located = run.localisation()
    if located is None:
        return None
    variable, found = located
    picture = scene.around_process(variable, found)
    low, high, gradient = scene.scale(found)
    species = variable.species
    order = np.argsort(-found.amplitude)[:10]
    total = found.motion.sum()
    return {
        "sentence": found.sentence,
        "data": picture.data(),
        "views": [
            picture.view(2, "The atoms seen across the direction in which the most mobile moves"),
            picture.view(1, "The same atoms, turned by a right angle about that direction"),
        ],
        "low": f"{low:.2g}",
        "high": f"{high:.2g}",
        "gradient": Markup(gradient),
        "shown": len(picture.atoms),
        "atoms": variable.n_atoms,
        "chart": charts.localisation(
            scene.distances(variable),
            found,
            "Amplitude of each atom over its distance from the most mobile one; " + found.sentence,
        ),
        "table": [
            (
                int(variable.serials[k]),
                species[k],
                f"{found.amplitude[k]:.3f}",
                f"{100 * found.motion[k] / total:.1f}",
            )
            for k in order
        ],
    }


def _cost(run: Run) -> dict[str, Any]:
    """What was spent."""
    timestep_ns = 1e-6 * run.settings.timestep_fs
    rows: list[dict[str, Any]] = []
    for part in run.parts:
        training = run.trainings.get(part.number)
        rate = part.steps / part.seconds if part.seconds > 0 else None
        rows.append(
            {
                "name": f"iteration {part.number}",
                "steps": f"{part.steps:,}",
                "time_ns": f"{part.steps * timestep_ns:.3g}",
                "sampling": part.seconds,
                "rate": "—" if rate is None else f"{rate:,.0f}",
                "ns_day": "—" if rate is None else f"{86400 * rate * timestep_ns:,.0f}",
                "training": training["seconds"] if training else None,
                "structures": f"{training['structures']:,}" if training else "—",
            }
        )
    path = run.files.root / "path.json"
    seconds = [row[key] or 0.0 for row in rows for key in ("sampling", "training")]
    before = (contents.json_of(path) or {}).get("seconds")
    if 0 in run.trainings:
        seconds.append(run.trainings[0]["seconds"])
    return {
        "rows": rows,
        "path": before,
        "first": run.trainings[0]["seconds"] if 0 in run.trainings else None,
        "total": sum(seconds) + (before or 0.0),
        "walkers": run.settings.walkers,
    }


def _input_text(run: Run) -> str:
    """The input as TOML with all defaults; files by name and hash."""
    given = run.given
    whole = run.starts[-1]["input"] if run.starts else given
    lines = []
    for section, values in whole.items():
        lines.append(f"[{section}]")
        for key, value in values.items():
            recorded = given.get(section, {}).get(key)
            if value is None:
                continue
            if (section, key) in (("system", "initial"), ("system", "final"), ("path", "file")):
                names = [Path(name).name for name in ([value] if isinstance(value, str) else value)]
                hashes = [recorded] if isinstance(recorded, str) else recorded or []
                shown = names[0] if len(names) == 1 else names
                lines.append(f"{key} = {json.dumps(shown, ensure_ascii=False)}")
                lines += [f"    # sha256 {digest}" for digest in hashes]
            elif (section, key) == ("engine", "directory"):
                continue
            else:
                lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
        if section == "engine":
            for name, digest in given.get("engine", {}).get("files", {}).items():
                lines.append(f"    # {name}: sha256 {digest}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def write_localisation(run: Run, output: Path) -> bool:
    """Write the end states with each atom's amplitude; False if there is nothing to write yet."""
    located = run.localisation()
    if located is None:
        return False
    variable, found = located
    cell = variable.reference_cell
    ends = [
        Atoms(variable.species, variable.reference_positions + u, cell=cell, pbc=bool(cell.any()))
        for u in variable.end_displacements
    ]
    found.write(output, ends)
    return True


def _downloads(run: Run) -> list[tuple[str, str]]:
    """Files that travel within the page: name and content as a data address."""
    files: list[tuple[str, bytes]] = []
    root = run.files.root
    for name in ("fes.dat", "result.json", "plumed.dat") if run.ended else ():
        if (root / name).exists():
            files.append((name, (root / name).read_bytes()))
    with TemporaryDirectory() as folder:
        xyz = Path(folder) / "localisation.xyz"
        if write_localisation(run, xyz):
            files.append((xyz.name, xyz.read_bytes()))
    return [
        (name, "data:application/octet-stream;base64," + base64.b64encode(content).decode())
        for name, content in files
    ]


def _formula(run: Run) -> list[tuple[str, int]]:
    species = run.variables[0].species if run.variables else run.path.species if run.path else ()
    return list(Counter(species).items())


def _moment(iso: str) -> str:
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M UTC")


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
