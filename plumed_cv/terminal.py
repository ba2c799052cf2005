"""Output of the command line: progress, tables, and the message after an interruption."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from plumed_cv.common.bars import err

if TYPE_CHECKING:  # these imports take seconds, and --help should be fast
    from plumed_cv.doctor import Finding
    from plumed_cv.freeenergy import Surface

OTHER_EVENTS = 5  # the most frequent ones, which are printed

# No markup: file names and messages may contain brackets, as in plumed_cv[all].
out = Console(soft_wrap=True, highlight=False, markup=False)


@contextmanager
def resumable() -> Iterator[None]:
    """Report an interruption of work that the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("plumed-cv: interrupted; the same command continues from here.")
        raise typer.Exit(130) from None


def print_findings(findings: Sequence["Finding"], tested: Mapping[str, str]) -> None:
    """Print the findings with their remedies, and the installed and the tested versions."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column()
    table.add_column(overflow="fold")  # a command or path is not cut
    for finding in findings:
        missing = Text("!!", "red") if finding.required else Text("--", "yellow")
        mark = Text("ok", "green") if finding.ok else missing
        table.add_row(mark, finding.name, finding.detail)
        if finding.remedy:
            table.add_row("", "", Text(f"-> {finding.remedy}", "yellow"))
    out.print(table)
    here = {finding.name: finding.version for finding in findings}
    support = Table("version of", "installed", "tested", box=None, pad_edge=False)
    for name, number in tested.items():
        support.add_row(name, here.get(name) or "none", number)
    out.print()
    out.print(support)


def print_keys(keys: Iterable[tuple[str, str, str]]) -> None:
    """Print the keys of the input file: name, default and meaning."""
    table = Table("key", "default", "meaning", box=None, pad_edge=False)
    for row in keys:
        table.add_row(*row)
    out.print(table)


def print_iterations(result: dict[str, Any]) -> None:
    """Print the content of `result.json`: a row for each iteration, the steps, and the answer."""
    from plumed_cv.common.numbers import energy_in_words, error_of_factor, scientific
    from plumed_cv.workflow import RESULTS, escape_in_words, in_words

    columns = [f"{words} (eV)" for words in RESULTS.values()]
    table = Table("", "CV", *columns, "1-cos", "MD steps", box=None, pad_edge=False)
    for part in result["iterations"]:
        words = [in_words(part, name).removesuffix(" eV") for name in RESULTS]
        values = [value.replace(" ± ", "±") for value in words]
        mark = "*" if part["iteration"] == result["answer_iteration"] else ""
        table.add_row(
            f"{part['iteration']}{mark}",
            part["kind"],
            *values,
            f"{part['similarity']:.3f}",
            f"{part['md_steps']:,}",
        )
    out.print(table)
    _print_steps(result.get("steps") or [], result.get("populations") or [])
    print(f"* the answer: {result['answer_because']}")
    for check in result["checks"]:
        if not check["passed"]:
            print(f"Attention: {check['sentence']}")
    if result.get("rate_per_s") is not None:
        print_rate(result)
    if result.get("committee"):
        print_committee(result)
    if sentence := escape_in_words(result):
        print(sentence)
    if result.get("harmonic"):
        print(result["harmonic"]["sentence"])
    exact = result.get("rate_per_s")
    error = error_of_factor(exact, result.get("rate_error_factor"))
    if error is not None:
        rate = "rate " + scientific(exact, error, "1/s")
    else:
        rate = "rate of transition state theory " + scientific(
            result.get("tst_rate_per_s"), result.get("tst_rate_error_per_s"), "1/s"
        )
    barrier = in_words(result, "flux_barrier")
    if result.get("committee"):
        barrier += f" (error of the potential {energy_in_words(result, 'model_error', 'eV')})"
    says = f"{'converged' if result['converged'] else 'NOT converged'}: {result['stopped_by']}"
    advice = f" {result['advice']}" if result["advice"] else ""
    print(
        f"At {result['temperature_K']:g} K: flux barrier {barrier}, "
        f"{rate}, height of the profile {in_words(result, 'barrier')} ({says}).{advice}"
    )


def print_rates(result: dict[str, Any]) -> None:
    """Print the content of rates.json: a row for each temperature, and the fit."""
    from plumed_cv.workflow import fit_in_words

    columns = ("T (K)", "rate (1/s)", "factor", "kappa", "events", "escape (1/s)", "F_flux (eV)")
    table = Table(*columns, box=None, pad_edge=False)
    for row in result["rates"]:
        table.add_row(
            f"{row['temperature_K']:g}{'' if row['converged'] else '*'}",
            format_known(row["rate_per_s"], ".3g"),
            format_known(row["error_factor"], ".2f"),
            format_known(row["transmission"], ".2f"),
            format_known(row["multiplicity"], "d"),
            format_known(row["escape_rate_per_s"], ".3g"),
            format_known(row["flux_barrier_eV"], ".3f"),
        )
    out.print(table)
    sources = ", ".join(dict.fromkeys(row["source"] for row in result["rates"]))
    print(
        f"Rates of one event ({sources}), each within its factor, one standard error; events: "
        "equivalent ones, whose total is the escape rate; *: not converged."
    )
    for row in result["rates"]:
        if row["rate_note"]:
            print(f"Attention: {row['temperature_K']:g} K: {row['rate_note']}")
    for sentence in fit_in_words(result["fit"]):
        print(sentence)


def format_known(value: float | None, form: str) -> str:
    """Return a number in a format, or "unknown"."""
    return "unknown" if value is None else format(value, form)


def print_harmonic(found: dict[str, Any]) -> None:
    """Print the content of harmonic.json."""
    print(
        f"Harmonic theory: barrier {found['barrier_eV']:.4f} eV, between zero-point levels "
        f"{found['zero_point_barrier_eV']:.4f} eV; prefactor {found['prefactor_per_s']:.3g} 1/s; "
        f"imaginary frequency {found['imaginary_frequency_THz']:.2f} THz; crossover to tunnelling "
        f"at {found['crossover_temperature_K']:.0f} K"
    )
    columns = ("T (K)", "rate (1/s)", "flux barrier (eV)", "quantum partition functions (1/s)")
    table = Table(*columns, "Wigner", "with both (1/s)", box=None, pad_edge=False)
    for row in found["rates"]:
        wigner, quantum = row["wigner_factor"], row["quantum_rate_per_s"]
        table.add_row(
            f"{row['temperature_K']:g}",
            f"{row['rate_per_s']:.3g}",
            f"{row['flux_barrier_eV']:.4f}",
            f"{row['quantum_partition_rate_per_s']:.3g}",
            "" if wigner is None else f"{wigner:.3f}",
            "" if quantum is None else f"{quantum:.3g}",
        )
    out.print(table)
    for note in found["notes"]:
        print(note)


def print_rate(result: dict[str, Any]) -> None:
    """Print the rate, what it is made of, and where trajectories went."""
    from plumed_cv.common.numbers import scientific
    from plumed_cv.workflow import transmission

    print(transmission.in_words(result))
    bound = scientific(result.get("tst_rate_per_s"), result.get("tst_rate_error_per_s"), "1/s")
    print(f"Of transition state theory, an upper bound within its error: {bound}")
    details = result["rate"]
    print(f"It is {details['of']}.")
    for number, step in enumerate(details["steps"], start=1):
        print(
            f"Surface {number} at xi = {step['surface']:.3f}: {step['shots']} shots from "
            f"{step['snapshots']} snapshots, {step['md_steps']:,} MD steps; "
            f"{100 * step['left']:.2g} % of the trajectories left the process, "
            f"{100 * step['unresolved']:.2g} % did not come to a basin"
        )
    events = result["other_events"]
    for event in events[:OTHER_EVENTS]:
        print(
            f"Other event, from the {event['from']}: {100 * event['share']:.2g} % of the "
            f"trajectories, to a minimum at {event['energy_eV']:+.3f} eV ({event['structure']})"
        )
    if len(events) > OTHER_EVENTS:
        share = sum(event["share"] for event in events[OTHER_EVENTS:])
        print(
            f"{len(events) - OTHER_EVENTS} more events, {100 * share:.2g} % of the trajectories in "
            "all: other_events in result.json"
        )
    if result["rate_note"]:
        print(f"Attention: {result['rate_note']}")


def print_committee(result: dict[str, Any]) -> None:
    """Print the barriers of the potentials of a committee, and the error of the potential."""
    from plumed_cv.common.numbers import energy_in_words
    from plumed_cv.workflow.marks import describe_marks

    found = result["committee"]
    columns = ("", "potential", "flux barrier (eV)", "difference (eV)", "by", "effective")
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.no_wrap = True  # a number that is cut off is wrong
    table.add_row("0", found["potential"], energy_in_words(result, "flux_barrier"), "", "", "")
    for number, member in enumerate(found["members"], 1):
        table.add_row(
            str(number),
            member["potential"],
            energy_in_words(member, "flux_barrier"),
            energy_in_words(member, "difference"),
            member["by"],
            f"{member['effective_snapshots']:.0f}",
        )
    out.print(table)
    print(
        "Difference: to the potential of the run. Effective: least effective number of snapshots "
        "in a window of the CV after reweighting."
    )
    for member in found["members"]:
        if member["note"]:
            print(f"Attention: {member['note']}.")
    if "model_deviation" in found:  # not in results of earlier versions
        print(describe_marks(found["model_deviation"]))


def print_correction(result: dict[str, Any]) -> None:
    """Print the correction by labels: a row for each way to find it."""
    from plumed_cv import workflow
    from plumed_cv.common.numbers import energy_in_words

    columns = ("correction by", "flux barrier (eV)", "delta F (eV)", "of labels (eV)", "overlap")
    table = Table(*columns, box=None, pad_edge=False)
    for way in result["ways"]:
        error = way["error_of_labels_eV"]
        table.add_row(
            ("* " if way["by"] == result["by"] else "  ") + way["by"],
            energy_in_words(way, "difference"),
            energy_in_words(way, "delta_F_difference"),
            "" if error is None else f"{error:.4f}",
            "yes" if way["trusted"] else "too small",
        )
    out.print(table)
    print(
        "Correction: reference minus potential of the run. Of labels: the part of the error of the "
        "flux barrier that more labels reduce; the rest is that of the snapshots."
    )
    spread, rest = result["spread_of_differences_eV"], result["spread_not_learned_eV"]
    print(
        f"Energy difference in the labels: standard deviation {spread:.3f} eV, and {rest:.3f} eV "
        "without what was learned from the forces. Least effective number in a window: "
        f"{result['effective_labels']:.0f} labels, {result['effective_snapshots']:.0f} of "
        f"{result['snapshots']:,} snapshots."
    )
    if result["labels"] < result["chosen"]:
        print(
            f"Attention: {result['chosen'] - result['labels']} of {result['chosen']} labels are "
            "missing. This is a bias if they failed because of their structures."
        )
    if result["note"]:
        print(f"Attention: {result['note']}.")
    print(workflow.label.in_words(result))


def _print_steps(steps: Sequence[dict[str, Any]], populations: Sequence[float | None]) -> None:
    """Print one line for each step if there are several, and the populations."""
    from plumed_cv.common.numbers import scientific, with_error

    if len(steps) < 2:
        return
    for number, step in enumerate(steps, start=1):
        ways = []
        for way in ("", "reverse_"):
            barrier, rate = f"{way}flux_barrier", f"{way}rate"
            ways.append(
                with_error(step.get(f"{barrier}_eV"), step.get(f"{barrier}_error_eV"))
                + ", rate "
                + scientific(step.get(f"{rate}_per_s"), step.get(f"{rate}_error_per_s"), "1/s")
            )
        places = [step[key] for key in ("reactant_xi", "surface", "product_xi")]
        over = "xi {:.2f} over {:.2f} to {:.2f}".format(*places)
        print(f"step {number}, {over}: flux barrier {ways[0]}; reverse {ways[1]}")
    known = [f"{100 * share:.3g} %" for share in populations if share is not None]
    if known:  # of all basins, or of none
        shares = ", ".join(known)
        print(f"populations of the basins: {shares}")


def print_energies(result: dict[str, Any]) -> None:
    """Print the content of `energy.json`."""
    table = Table(
        "", "barrier (eV)", "error", "error (%)", "end point (eV)", "error", "RMS (eV)",
        box=None, pad_edge=False,
    )  # fmt: skip
    names = {"neb": "path", "pca": f"PCA, D = {result['components']}", "ae_pca": "AE+PCA"}
    for name, words in names.items():
        row = result["profiles"][name]
        percent, end = row["barrier_error_percent"], f"{row['end_point_eV']:.4f}"
        barrier = f"{row['barrier_eV']:.4f}"
        if name == "neb":
            table.add_row(words, barrier, "", "", end)
            continue
        table.add_row(
            words,
            barrier,
            f"{row['barrier_error_eV']:+.4f}",
            "" if percent is None else f"{percent:+.2f}",
            end,
            f"{row['end_point_error_eV']:+.4f}",
            f"{row['rms_eV']:.4f}",
        )
    out.print(table)
    operations = result["symmetry_operations"]
    print(
        f"{result['atoms']} atoms, {result['images']} images, {result['structures']:,} structures, "
        f"elbow at {result['elbow']} components, {sum(result['seconds'].values()):.0f} s; "
        f"components of the {'structures' if result['subspace'] == 'pca' else 'mean path'}"
        + (f", {operations} symmetry operations" if operations > 1 else "")
    )
    print(result["localisation"]["sentence"])
    for note in result["notes"]:
        print(note)


def print_surface(output: Path, surface: "Surface", md_steps: int, as_json: bool) -> None:
    """Print the minima of a free energy on two CVs."""
    minima = [
        {
            **dict(zip(surface.arguments, point, strict=True)),
            f"A_{surface.energy_unit}": A.value,
            f"A_error_{surface.energy_unit}": A.error if math.isfinite(A.error) else None,
        }
        for point, A in surface.minima()
    ]
    if as_json:
        print(json.dumps({"minima": minima, "md_steps": md_steps}, indent=2, allow_nan=False))
        return
    visited = int((surface.count > 0).sum())
    print(
        f"{output}: {visited} of {len(surface.count)} bins visited in {md_steps:,} steps; minima:"
    )
    for point, A in surface.minima()[:8]:
        at = ", ".join(
            f"{name} = {x:.3f}" for name, x in zip(surface.arguments, point, strict=True)
        )
        print(f"  {at}: {A}")
