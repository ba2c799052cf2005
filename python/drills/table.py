"""Results of the drills, in docs/robustness.json and as a table in docs/robustness.md."""

from pathlib import Path
from typing import Any

from plumed_cv.common.files import write_text

DATA = Path(__file__).resolve().parents[2] / "docs" / "robustness.json"


def table(found: dict[str, Any]) -> list[str]:
    """Results of the drills as the lines of a Markdown table."""
    lines = ["| drill | how often | result |", "|---|---|---|"]
    if "kills" in found:
        counts = found["kills"]
        for name, kind in (("by way", "kills"), ("by stage", "stages")):
            each = ", ".join(f"{key} {n}" for key, n in counts[kind].items())
            lines.append(f"| {name} | {each} | |")
        lines.insert(
            -2,
            f"| kills | {sum(counts['kills'].values())} in {counts['runs']} runs | "
            f"{counts['runs_that_differ']} runs differ, {counts['restarts_refused']} starts "
            f"refused, {counts['tracebacks_after_ctrl_c']} tracebacks after Ctrl-C, "
            f"{counts['leftover_files']} files left over |",
        )
    if "disk" in found:
        counts = found["disk"]
        lines.append(
            f"| disk full | {counts['times_full']} times in one run | "
            f"{counts['not_one_sentence']} times not one sentence; the result "
            f"{'differs' if counts['differs'] else 'is the same'} |"
        )
    if "company" in found:
        counts = found["company"]
        lines.append(
            f"| runs in one directory | {counts['started']} at once | {counts['done']} done, "
            f"{counts['refused']} refused in a sentence |"
        )
    if "core" in found:
        for name, counts in found["core"]["readers"].items():
            lines.append(
                f"| C++: {name} | {counts['cases']:,} files | {counts['refused']:,} refused, "
                f"{counts['read']:,} read |"
            )
    for name, counts in found.get("fuzz", {}).items():
        lines.append(
            f"| libFuzzer: {name} | {counts['cases']:,} files | {counts['refused']:,} refused, "
            f"{counts['read']:,} read; {counts['places']:,} places in the code reached, "
            f"{counts['kept']:,} files kept that reached new ones |"
        )
    for name, counts in found.get("readers", {}).items():
        otherwise = f"{counts['otherwise']:,} as something else"
        lines.append(
            f"| Python: {name} | {counts['cases']:,} files | {counts['refused']:,} refused, "
            f"{counts['read']:,} read, {otherwise}; {counts['broken']} other exceptions |"
        )
    if "updates" in found:
        counts = found["updates"]
        lines.append(
            f"| updates of the sums | {counts['updates']:,} | largest relative error "
            f"{counts['largest_relative_error']:.1e} |"
        )
    if "memory" in found:
        tenths = found["memory"]["resident_kB_after_each_tenth"]
        lines.append(
            f"| steps of AUTOENCODER and BABF | {found['memory']['steps']:,} | resident memory "
            f"{tenths[0]:,} kB after the first tenth, {tenths[-1]:,} kB at the end; slope "
            f"{found['memory']['slope_kB_per_million_steps']} kB a million steps |"
        )
    if "snapshots" in found:
        counts = found["snapshots"]
        lines.append(
            f"| training on a trajectory | {counts['structures']:,} structures of "
            f"{counts['atoms']} atoms | {counts['peak_kB'] // 1024:,} MB at most, of which "
            f"{counts['displacements_kB'] // 1024:,} are the displacements; {counts['seconds']} s |"
        )
    return lines


def show(found: dict[str, Any]) -> None:
    """Put the table into the page."""
    page = DATA.with_suffix(".md")
    before, _, rest = page.read_text(encoding="utf-8").partition("| drill |")
    _, _, after = rest.partition("\n\n")
    write_text(page, before + "\n".join(table(found)) + "\n\n" + after)
