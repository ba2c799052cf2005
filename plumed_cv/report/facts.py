"""Content of the report of a run: status, answer, checks, tables, charts and files.

Everything is text or safe markup. The templates only arrange it.
"""

import base64
import json
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ase import Atoms, units
from markupsafe import Markup

import plumed_cv
from plumed_cv import workflow
from plumed_cv.common.files import read_json, sha256
from plumed_cv.common.numbers import (
    cv_in_words,
    duration,
    energy_in_words,
    error_of_factor,
    scientific,
    with_error,
)
from plumed_cv.common.toml import value_in_toml
from plumed_cv.cv import selection
from plumed_cv.report import charts, contents, scene
from plumed_cv.report.contents import Part, Run
from plumed_cv.report.run_charts import draw_charts

_KJ_MOL = units.mol / units.kJ  # kJ/mol per eV
_HASHED = ("cv.safetensors", "fes.dat", "babf.state", "plumed.dat", "result.json", "path.xyz")


def collect_facts(run: Run) -> dict[str, Any]:
    """Return everything that the template shows."""
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
        "rate": _rate(run),
        "committee": _committee(run),
        "labels": _labels(run),
        "steps": _steps(run),
        "checks": run.judged["checks"],
        "iterations": [_row(part, run) for part in run.parts],
        "figures": draw_charts(run),
        "localisation": _localisation(run),
        "cost": _cost(run),
        "input": _input_text(run),
        "starts": run.starts,
        "seed": run.given["iteration"]["seed"],
        "hashes": [(name, sha256(root / name)) for name in _HASHED if (root / name).exists()],
        "production": _text(root / "plumed.dat") if run.ended else None,
        "downloads": _downloads(run),
    }


def _status(run: Run) -> dict[str, Any]:
    """Status of the run: the text at the top of the page."""
    judged = run.judged
    if not run.ended:
        return _unfinished(run)
    number = f"{len(run.parts)} iteration{'s' if len(run.parts) > 1 else ''}"
    if judged["converged"]:
        return {
            "kind": "good",
            "headline": "Converged",
            "sentence": f"after {number}: {judged['stopped_by']}.",
            "remedy": None,
            "command": None,
        }
    failed = [check["name"] for check in judged["checks"] if not check["passed"]]
    return {
        "kind": "bad",
        "headline": "Not converged",
        "sentence": f"The procedure stopped after {number}: {judged['stopped_by']}. "
        f"Failed: {', '.join(failed)}. The numbers below are preliminary.",
        "remedy": judged["advice"],
        "command": None,
    }


def _unfinished(run: Run) -> dict[str, Any]:
    """Status of a run that has no answer yet."""
    steps, last = run.settings.steps, run.parts[-1] if run.parts else None
    remedy, command = "The command that started the run continues it: ", "plumed-cv run INPUT.toml"
    if last is None:
        so_far = "Nothing has been sampled yet."
    elif last.steps >= steps and last.numbers["barrier_eV"] is None:
        so_far = (
            f"The {last.steps:,} steps of iteration {last.number} did not reach both end states, "
            "so there is no barrier."
        )
        remedy, command = "Raise sampling.steps and run again.", ""
    elif last.result is not None:
        so_far = f"Iteration {last.number} is done; the next one has not sampled anything yet."
    else:
        so_far = (
            f"Iteration {last.number} has sampled {last.steps:,} of {steps:,} steps. It is still "
            "active or was stopped."
        )
    if run.answer is not None:
        of = "this iteration" if run.answer is last else f"iteration {run.answer.number}"
        so_far += f" The numbers below are preliminary results of {of}."
    return {
        "kind": "bad",
        "headline": "This run has not ended",
        "sentence": so_far,
        "remedy": remedy,
        "command": command or None,
    }


def _answer(run: Run) -> dict[str, Any] | None:
    """Results of the iteration that gives the answer."""
    part = run.answer
    if part is None:
        return None
    given = part.numbers
    flux, error = given.get("flux_barrier_eV"), given.get("flux_barrier_error_eV")
    in_kJ, error_kJ = (None if n is None else n * _KJ_MOL for n in (flux, error))
    temperature = given.get("cv_temperature_K"), given.get("cv_temperature_error_K")
    return {
        "flux": energy_in_words(given, "flux_barrier", "eV"),
        "flux_kJ": with_error(in_kJ, error_kJ, "kJ/mol"),
        "barrier": energy_in_words(given, "barrier", "eV"),
        "delta": energy_in_words(given, "delta_F", "eV"),
        "difference": energy_in_words(given, "A1_minus_A0", "eV"),
        "estimator": given.get("estimator"),
        "pooled": f"{given['pooled_snapshots']:,}" if given.get("pooled_snapshots") else None,
        "estimators": [
            (name, energy_in_words(found, "flux_barrier", "eV"))
            for name, found in (given.get("estimators") or {}).items()
        ],
        "activation": energy_in_words(given, "activation_free_energy", "eV"),
        "rate": scientific(given.get("tst_rate_per_s"), given.get("tst_rate_error_per_s"), "s⁻¹"),
        "events": None if run.result is None else run.result.get("multiplicity"),
        "events_note": None if run.result is None else run.result.get("multiplicity_note"),
        "escape": None if run.result is None else _escape(run.result),
        "source": None if run.result is None else workflow.rate_of(run.result)[3],
        "harmonic": None if run.result is None else run.result.get("harmonic"),
        "surface": given.get("dividing_surface"),
        "temperature": None if temperature[0] is None else with_error(*temperature, "K"),
        "zero": None if run.path is None else f"{run.path.barrier:.4f} eV",
        "of": part.label,
        "because": run.judged["answer_because"] if len(run.parts) > 1 else None,
        "note": given.get("note"),
        "time_ns": f"{1e-6 * run.settings.timestep_fs * sum(p.steps for p in run.parts):.3g}",
        "steps": f"{sum(p.steps for p in run.parts):,}",
    }


def _escape(result: dict[str, Any]) -> str:
    """Total rate of all equivalent events."""
    rate, error = (result.get(f"escape_rate{of}_per_s") for of in ("", "_error"))
    return scientific(rate, error, "s⁻¹")


def _rate(run: Run) -> dict[str, Any] | None:
    """The rate with its transmission coefficients; None if it has not been computed."""
    given = run.result if run.ended else None
    if given is None or given.get("rate") is None:
        return None
    details = given["rate"]
    return {
        "rate": _of_factor(given["rate_per_s"], given["rate_error_factor"]),
        "reverse": _of_factor(given["reverse_rate_per_s"], given["reverse_rate_error_factor"]),
        "transmission": with_error(given["transmission"], given["transmission_error"], "").strip(),
        "of": details["of"],
        "dynamics": "at constant energy" if details["dynamics"] == "nve" else "with the thermostat",
        "residence": f"{details['residence_ps']:g}",
        "note": given["rate_note"],
        "surfaces": [
            {
                "xi": cv_in_words(step["surface"]),
                "kappa": with_error(step["transmission"], step["transmission_error"], "").strip(),
                "flux": with_error(step["reactive_flux"], step["reactive_flux_error"], "").strip(),
                "shots": step["shots"],
                "snapshots": step["snapshots"],
                "steps": f"{step['md_steps']:,}",
                "recrossing": _percent(step["recrossing"]),
                "committor": _percent(step["committor"]),
                "spread": _percent(step["committor_spread"]),
                "left": _percent(step["left"]),
                "unresolved": _percent(step["unresolved"]),
            }
            for step in details["steps"]
        ],
        "events": [
            {
                "structure": event["structure"],
                "from": event["from"],
                "share": _percent(event["share"]),
                "energy": f"{event['energy_eV']:+.3f}".replace("-", "−"),
            }
            for event in given["other_events"]
        ],
    }


def _committee(run: Run) -> dict[str, Any] | None:
    """Barriers of the other potentials; None if they have not been computed."""
    given = run.result if run.ended else None
    if given is None or given.get("committee") is None:
        return None
    found = given["committee"]
    names = ("difference", "same_structures", "second_order", "reweighted")
    return {
        "error": energy_in_words(given, "model_error", "eV"),
        "sentence": workflow.committee.in_words(given),
        "first": found["potential"],
        "barrier": energy_in_words(given, "flux_barrier"),
        "members": [
            {
                "number": number,
                "potential": member["potential"],
                "barrier": energy_in_words(member, "flux_barrier"),
                "by": member["by"],
                "effective": f"{member['effective_snapshots']:.0f}",
            }
            | {name: energy_in_words(member, name) for name in names}
            for number, member in enumerate(found["members"], 1)
        ],
        "notes": [member["note"] for member in found["members"] if member["note"]],
    }


def _labels(run: Run) -> dict[str, Any] | None:
    """The correction by labels; None if there is none, or it belongs to an earlier answer."""
    file = run.files.correction
    if not run.ended or run.result is None or not file.exists():
        return None
    given = read_json(file)
    if given["before_eV"] != run.result["flux_barrier_eV"]:
        return None
    return {
        "sentence": workflow.label.in_words(given),
        "ways": [
            {
                "by": way["by"],
                "answer": way["by"] == given["by"],
                "difference": energy_in_words(way, "difference"),
                "delta": energy_in_words(way, "delta_F_difference"),
                "overlap": "yes" if way["trusted"] else "too small",
            }
            for way in given["ways"]
        ],
        "number": f"{given['effective_labels']:.0f}",
        "note": given["note"],
    }


def _of_factor(rate: float | None, factor: float | None) -> str:
    """A rate per second whose error is a factor."""
    return scientific(rate, error_of_factor(rate, factor), "s⁻¹")


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.2g}"


def _steps(run: Run) -> list[dict[str, Any]]:
    """Rows of the table of steps; empty for a process with one step."""
    given = run.answer.numbers if run.answer else {}
    steps, populations = given.get("steps") or [], given.get("populations") or []
    if len(steps) < 2:
        return []
    unknown = [None] * (len(steps) + 1)
    ends = pairwise("—" if x is None else f"{100 * x:.3g}" for x in populations or unknown)
    return [
        {
            "number": k,
            "reactant": cv_in_words(step.get("reactant_xi")),
            "surface": cv_in_words(step.get("surface")),
            "product": cv_in_words(step.get("product_xi")),
            "flux": energy_in_words(step, "flux_barrier"),
            "reverse_flux": energy_in_words(step, "reverse_flux_barrier"),
            "rate": scientific(step.get("rate_per_s"), step.get("rate_error_per_s"), ""),
            "reverse_rate": scientific(
                step.get("reverse_rate_per_s"), step.get("reverse_rate_error_per_s"), ""
            ),
            "population": before,
            "population_behind": behind,
        }
        for k, (step, (before, behind)) in enumerate(zip(steps, ends, strict=True), start=1)
    ]


def _row(part: Part, run: Run) -> dict[str, Any]:
    """Row of an iteration in the table."""
    result = part.numbers
    similarity = result.get("similarity")
    return {
        "number": part.number,
        "kind": part.variable.kind,
        "ended": part.result is not None,
        "answer": part is run.answer,
        "flux": energy_in_words(result, "flux_barrier"),
        "barrier": energy_in_words(result, "barrier"),
        "delta": energy_in_words(result, "delta_F"),
        "similarity": "—" if similarity is None else f"{similarity:.3f}",
        "steps": f"{part.steps:,}",
        "crossings": "—" if result.get("crossings") is None else result["crossings"],
        "restarts": part.restarts,
    }


def _localisation(run: Run) -> dict[str, Any] | None:
    """Sentence, numbers and figures of the atoms that take part."""
    located = run.localisation()
    if located is None:
        return None
    variable, found = located
    picture = scene.around_process(variable, found)
    low, high, gradient = scene.scale(found)
    species = variable.species
    order = np.argsort(-found.amplitude)[:10]
    total = found.motion.sum()
    chosen = contents.json_of(run.files.atoms)
    return {
        "sentence": found.sentence,
        "chosen": None
        if chosen is None or run.path is None
        else selection.describe_choice(chosen, len(run.path.species)),
        "data": picture.data(),
        "views": [
            picture.view(2, "View perpendicular to the motion of the most mobile atom"),
            picture.view(1, "The same atoms, rotated by a right angle about this motion"),
        ],
        "low": f"{low:.2g}",
        "high": f"{high:.2g}",
        "gradient": Markup(gradient),
        "shown": len(picture.atoms),
        "atoms": variable.n_atoms,
        "chart": charts.localisation(
            scene.distances(variable),
            found,
            "Amplitude of each atom against its distance from the most mobile atom; "
            + found.sentence,
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
    """Steps and wall times of the iterations."""
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
    """Return the input as TOML with all defaults; files have a name and a hash."""
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
                lines.append(f"{key} = {value_in_toml(value)}")
        if section == "engine":
            for name, digest in given.get("engine", {}).get("files", {}).items():
                lines.append(f"    # {name}: sha256 {digest}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def write_localisation(run: Run, output: Path) -> bool:
    """Write the end states with the amplitude of each atom; return False if there are none yet."""
    located = run.localisation()
    if located is None:
        return False
    variable, found = located
    cell = variable.reference_cell
    ends = [
        Atoms(variable.species, variable.reference_positions + u, cell=cell, pbc=cell.any(axis=1))
        for u in variable.end_displacements
    ]
    found.write(output, ends)
    return True


def _downloads(run: Run) -> list[tuple[str, str]]:
    """Files inside the page: name, and content as a data URL."""
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
    species = run.path.species if run.path else run.variables[0].species if run.variables else ()
    return list(Counter(species).items())


def _moment(iso: str) -> str:
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M UTC")


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
