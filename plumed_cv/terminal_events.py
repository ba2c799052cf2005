"""Output of the commands for all events of a defect: tables of jumps, rates and diffusion."""

from typing import Any

from rich.table import Table

from plumed_cv.terminal import format_known, out


def print_jumps(found: dict[str, Any]) -> None:
    """Print the events of a catalogue: a row for each."""
    columns = ("event", "sites", "length (A)", "jumps", "reverse jumps", "energy (eV)")
    table = Table(*columns, box=None, pad_edge=False)
    for event in found["events"]:
        table.add_row(
            event["id"],
            f"{event['initial_site']} to {event['final_site']}",
            f"{event['length_A']:.3f}",
            str(event["multiplicity"]),
            str(event["reverse_multiplicity"]),
            f"{event['energy_eV']:+.4f}",
        )
    out.print(table)
    crystal, cells = found["crystal"], " x ".join(map(str, found["supercell"]["repeats"]))
    solute = f" with a solute atom of {found['solute']}" if "solute" in found else ""
    print(
        f"{crystal['formula']}, {crystal['space_group']}: {found['defect']} of {found['species']}"
        f"{solute} in {cells} conventional cells, {found['supercell']['atoms']} atoms. Jumps: "
        "number of equivalent ones from each site; energy: final minus initial state, relaxed."
    )
    if "solute" in found:
        print(
            "Sites: 0 is a vacancy far from the solute; 1, 2, ... are pairs of both, from the "
            "nearest one. Their energies relative to both far from each other (eV): "
            f"{', '.join(f'{energy:+.4f}' for energy in found['pair_energies_eV'])}."
        )
    if found["directions"] < 3:
        print(
            f"Attention: these jumps carry the defect along {found['directions']} directions only."
        )


def print_discovery(found: dict[str, Any]) -> None:
    """Print the events that were discovered, a row for each, and what else is known of them."""
    columns = ("event", "barrier (eV)", "energy (eV)", "moves (A)", "events", "reverse", "found")
    table = Table(*columns, "copies", box=None, pad_edge=False)
    for event in found["events"]:
        table.add_row(
            event["id"],
            f"{event['barrier_eV']:.4f}",
            f"{event['energy_eV']:+.4f}",
            f"{event['length_A']:.2f}",
            str(event["multiplicity"]),
            str(event["reverse_multiplicity"]),
            str(event["times_found"]),
            f"{event['copies_found']} of {event['copies']}",
        )
    table.columns[0].no_wrap = True  # a name that is cut off cannot be typed
    out.print(table)
    of = found["discovery"]
    print(
        "Energy: final minus initial state; moves: the atom that moves most; events and reverse: "
        "numbers of equivalent ones from the initial and from the final state; found: searches "
        "that found it; copies: equivalent saddle points that were found."
    )
    print(
        f"{of['searches']} searches, {of['force_calls']:,} calculations of forces; "
        f"{of['ended_at_a_saddle']} ended at a saddle point, {of['connected']} of them at one of "
        f"this state, {of['counted']} below {of['max_barrier_eV']:.3f} eV."
    )
    print(
        f"Confidence that no event below {of['max_barrier_eV']:.3f} eV is missing: "
        f"{of['confidence']:.3f}. The last {of['known_since_last_new']} searches that count found "
        f"known events: {1 / max(1, of['known_since_last_new']):.2g}. Probability that one is "
        f"missing if all are found equally often: {of['missing_if_equal']:.2g}; that an event is "
        f"missing which is as rare as the rarest one, found {of['rarest_found']} times: "
        f"{of['missing_if_rare']:.2g}."
    )
    if of["confidence"] < of["confidence_target"]:
        print(
            f"Attention: the confidence is below {of['confidence_target']:g}; allow more searches "
            "(--searches), and the same command continues."
        )
    for event in found["events"]:
        depth = event["barrier_eV"] - event["energy_eV"]
        if depth < of["shallow"] * event["barrier_eV"]:
            print(
                f"Attention: {event['id']} ends in a minimum that is only {depth:.4f} eV deep; "
                "where the system goes from there is not known. Short hot trajectories show it, "
                "and --also takes what they reach."
            )
        if passes := event["passes"]:
            print(
                f"{event['id']} passes a minimum at {passes['energy_eV']:+.4f} eV that is only "
                f"{passes['depth_eV']:.4f} eV deep (passed.xyz in its folder)."
            )
        if other := event["same_final_as"]:
            print(
                f"Attention: {other} and {event['id']} have equivalent final states; an elastic "
                "band between their ends finds one of the two saddle points."
            )
    high = [each for each in of["left_out"] if each["reason"] == "high barrier"]
    if high:
        words = ", ".join(f"{each['barrier_eV']:.3f}" for each in high)
        print(f"Events above this barrier that were found, too (eV): {words}")
    for each in of["left_out"]:
        if each not in high:
            print(f"Left out: {each['id']}, {each['barrier_eV']:.4f} eV: {each['reason']}")


def print_campaign(found: dict[str, Any]) -> None:
    """Print the rates of a campaign, a row for each event and temperature, and what failed."""
    columns = ("event", "T (K)", "rate (1/s)", "factor", "kappa", "back (1/s)", "jumps", "rate of")
    table = Table(*columns, box=None, pad_edge=False)
    for row in found["rates"]:
        table.add_row(
            row["event"],
            f"{row['temperature_K']:g}{'' if row['converged'] else '*'}",
            format_known(row["rate_per_s"], ".3g"),
            format_known(row["error_factor"], ".2f"),
            "" if row["transmission"] is None else f"{row['transmission']:.2f}",
            "" if row["reverse_rate_per_s"] is None else f"{row['reverse_rate_per_s']:.3g}",
            str(row["multiplicity"]),
            row["source"],
        )
    table.columns[0].no_wrap = True  # a name that is cut off cannot be typed
    out.print(table)
    print("Rates of one jump, each within its factor, one standard error; *: not converged.")
    for row in found["rates"]:
        if row["rate_note"]:
            print(f"Attention: {row['event']}, {row['temperature_K']:g} K: {row['rate_note']}")
    for each in found["failures"]:
        at = "" if each["temperature_K"] is None else f" at {each['temperature_K']:g} K"
        print(f"Set aside: {each['event']}{at}: {each['reason']}")


def print_diffusion(found: dict[str, Any]) -> None:
    """Print diffusion coefficients: a row for each temperature, and the fits."""
    columns = ("T (K)", "D (m2/s)", "factor", "f", "D tracer (m2/s)", "factor", "rates")
    table = Table(*columns, box=None, pad_edge=False)
    for row in found["temperatures"]:
        table.add_row(
            f"{row['temperature_K']:g}{'' if row['converged'] else '*'}",
            f"{row['D_m2_per_s']:.3g}",
            f"{row['error_factor']:.2f}",
            "" if row["correlation_factor"] is None else f"{row['correlation_factor']:.4f}",
            "" if row["D_tracer_m2_per_s"] is None else f"{row['D_tracer_m2_per_s']:.3g}",
            "" if row["tracer_error_factor"] is None else f"{row['tracer_error_factor']:.2f}",
            row["source"],
        )
    out.print(table)
    print(
        f"D: of one {found['defect']} of {found['species']}, mean of three directions; f: "
        "correlation factor of a tracer atom. Factors are one standard error. *: not converged."
    )
    solute = found["solute"]
    if solute is not None:
        print_solute(found)
    if len(found["temperatures"][0]["rates"]) > 1:
        for row in found["temperatures"]:
            worst = max(row["rates"], key=lambda rate: float(rate["share_of_variance"]))
            if worst["share_of_variance"] > 0:
                print(
                    f"{row['temperature_K']:g} K: {100 * worst['share_of_variance']:.0f} % of the "
                    f"variance of D{'' if solute is None else f' of {solute}'} comes from the rate "
                    f"of {worst['event']}."
                )
    for name, of in (
        ("fit", f"the {found['defect']}"),
        ("tracer_fit", "a tracer atom"),
        ("solute_fit", f"{solute}"),
    ):
        fit = found[name]
        if fit is None:
            continue
        from plumed_cv.common.numbers import with_error

        energy = with_error(fit["activation_energy_eV"], fit["activation_energy_error_eV"])
        factor = fit["D0_error_factor"]
        within = "" if factor is None else f" (within a factor {factor:.2f})"
        print(
            f"Of {of} at {fit['temperature_K']:.0f} K: activation energy {energy}, D0 "
            f"{fit['D0_m2_per_s']:.3g} m2/s{within}."
        )
        if fit["note"]:
            print(fit["note"])
    for note in found["notes"]:
        print(f"Attention: {note}")


def print_solute(found: dict[str, Any]) -> None:
    """Print the diffusion coefficients of a solute: a row for each temperature."""
    solute, host = found["solute"], found["species"]
    columns = ("T (K)", f"D {solute} (m2/s)", "factor", "f", f"D {solute} / D {host}", "factor")
    table = Table(*columns, box=None, pad_edge=False)
    for row in found["temperatures"]:
        known = row["D_solute_m2_per_s"] is not None
        table.add_row(
            f"{row['temperature_K']:g}{'' if row['converged'] else '*'}",
            format_known(row["D_solute_m2_per_s"], ".3g") if known else "",
            format_known(row["solute_error_factor"], ".2f") if known else "",
            format_known(row["solute_correlation_factor"], ".4f"),
            format_known(row["solute_to_tracer"], ".3g"),
            format_known(row["solute_to_tracer_error_factor"], ".2f"),
        )
    out.print(table)
    print(
        f"D {solute}: of a solute atom by all vacancies, with --formation; f: its correlation "
        f"factor; D {host}: of a tracer atom of {host}."
    )
