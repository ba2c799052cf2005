"""All events of a defect: `jumps`, `discover`, `campaign` and `diffusion`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from plumed_cv.cli.options import AsJson
from plumed_cv.common.bars import Bars
from plumed_cv.common.errors import UserError
from plumed_cv.terminal import resumable
from plumed_cv.terminal_events import (
    print_campaign,
    print_diffusion,
    print_discovery,
    print_jumps,
)


def jumps(
    crystal: Annotated[
        Path, typer.Argument(help="crystal without the defect: CIF, POSCAR or any format of ASE")
    ],
    config: Annotated[
        Path,
        typer.Option("--input", "-i", help="input file with the engine and the temperatures"),
    ],
    species: Annotated[str, typer.Option(help="element of the vacancy or interstitial atom")],
    output: Annotated[Path, typer.Option("--output", "-o", help="new folder")] = Path("catalogue"),
    interstitial: Annotated[
        bool, typer.Option("--interstitial", help="an interstitial atom; a vacancy if absent")
    ] = False,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="site of the interstitial, fractional coordinates of the given cell as 0.5,0.5,0; "
            "one of each kind; the largest holes if absent"
        ),
    ] = None,
    cutoff: Annotated[
        float | None,
        typer.Option(min=0.1, help="length of the longest jump, angstrom; chosen if absent"),
    ] = None,
    width: Annotated[
        float, typer.Option(min=1.0, help="smallest width of the supercell, angstrom")
    ] = 10.0,
    relax_cell: Annotated[
        bool, typer.Option("--relax-cell", help="first relax the cell of the crystal")
    ] = False,
    solute: Annotated[
        str | None,
        typer.Option(help="element of a solute atom: the jumps of the vacancy near it, too"),
    ] = None,
    solute_range: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="largest distance of the vacancy from the solute at which its jumps have rates of "
            "their own, angstrom; that of a jump if absent",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=1e-6, help="tolerance of the space group, angstrom")
    ] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Find the jumps of a vacancy or interstitial in a crystal.

    Jumps that the symmetry of the crystal maps onto each other count as one. The command
    writes a catalogue, which has a folder for each such jump, with relaxed end states and an input
    for 'plumed-cv run'. All keys of the given input are kept, except its end states.

    Examples: plumed-cv jumps fe.cif --input demo/vacancy.toml --species Fe -o fe-vacancy
              plumed-cv jumps fe.cif -i demo/vacancy.toml --species Fe --relax-cell --width 14
              plumed-cv jumps al.cif -i al-cu.toml --species Al --solute Cu -o al-cu
    """
    from plumed_cv import events

    try:
        sites = [[float(x) for x in place.split(",")] for place in site or ()]
        if any(len(place) != 3 for place in sites):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--site {', '.join(site or ())}: give three numbers as 0.5,0.5,0."
        ) from None
    found = events.find_jumps(
        crystal,
        config,
        output,
        species=species,
        defect="interstitial" if interstitial else "vacancy",
        sites=sites,
        cutoff_A=cutoff,
        width_A=width,
        tolerance_A=tolerance,
        relax_cell=relax_cell,
        solute=solute,
        solute_range_A=solute_range,
        reporter=Bars(),
    )
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_jumps(found)
        first = output / found["events"][0]["id"] / "input.toml"
        print(f"Catalogue: {output}   an event: plumed-cv run {first}")


def discover(
    structure: Annotated[
        Path, typer.Argument(help="state with the defect: extended XYZ or any format of ASE")
    ],
    config: Annotated[
        Path,
        typer.Option("--input", "-i", help="input file with the engine and the temperatures"),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="folder; searches in it are continued")
    ] = Path("catalogue"),
    around: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="serial number of an atom: those within --radius of it are moved; may be given "
            "several times; if absent, the atoms of the defect are found",
        ),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="another minimum, such as other-1.xyz of a run: the event towards it is found by "
            "an elastic band; may be given several times"
        ),
    ] = None,
    radius: Annotated[
        float, typer.Option(min=0.1, help="neighbours that are displaced, angstrom")
    ] = 4.0,
    searches: Annotated[int, typer.Option(min=1, help="number of searches at most")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="seed of the searches")] = 0,
    max_barrier: Annotated[
        float | None,
        typer.Option(min=1e-3, help="largest barrier, eV; 1.5 times the lowest one if absent"),
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(help="search until the confidence that no event is missing has this value"),
    ] = 0.95,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="searches at the same time on this machine")
    ] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(help="address or file of a dask scheduler whose workers do the searches"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the events that begin at one state.

    The events are found by searches for saddle points, so no final state is needed. Events that the
    symmetry of the state maps onto each other count as one. The catalogue is like that of
    'plumed-cv jumps', so that 'plumed-cv campaign' computes the rates. The same command
    continues after a stop of any kind. The result does not depend on the number of jobs.

    Examples: plumed-cv discover demo/initial.xyz --input demo/vacancy.toml -o fe-events
              plumed-cv discover demo/initial.xyz -i demo/vacancy.toml --max-barrier 1.0 -o fe-1eV
              plumed-cv discover demo/initial.xyz -i demo/vacancy.toml -o fe-events --jobs 2
    """
    from plumed_cv import events

    if not 0 < confidence < 1:
        raise UserError(f"--confidence {confidence:g}: the confidence is between 0 and 1.")
    _check_jobs(jobs, scheduler)
    with resumable():
        found = events.discover(
            structure,
            config,
            output,
            around=around or (),
            also=also or (),
            radius_A=radius,
            searches=searches,
            seed=seed,
            max_barrier_eV=max_barrier,
            confidence=confidence,
            jobs=jobs,
            scheduler=scheduler,
            reporter=Bars(),
        )
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_discovery(found)
        print(f"Catalogue: {output}   all rates: plumed-cv campaign {output} --harmonic")


def campaign(
    catalogue: Annotated[
        Path, typer.Argument(help="folder that 'plumed-cv jumps' or 'discover' has written")
    ],
    harmonic: Annotated[
        bool, typer.Option("--harmonic", help="harmonic rates (minutes) instead of runs")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="events at the same time on this machine")
    ] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(help="address or file of a dask scheduler whose workers do the events"),
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=1.0,
            help="relative error of the diffusion coefficient (of the rate of all events, after "
            "'discover') at every temperature, up to which the events that matter most get more "
            "steps",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the rates of all events of a catalogue.

    Each event is run at all temperatures, and one table of rates is written. The same command
    continues after a stop of any kind. An event that fails is set aside with the reason, and the
    others are done; the exit status is then 1.

    Examples: plumed-cv campaign fe-vacancy --harmonic
              plumed-cv campaign fe-vacancy --error 0.1
    """
    from plumed_cv import workflow

    if harmonic and error is not None:
        raise UserError("--error: harmonic rates have no statistical error; leave it out.")
    _check_jobs(jobs, scheduler)
    with resumable():
        found = workflow.run_campaign(
            catalogue,
            harmonic=harmonic,
            jobs=jobs,
            scheduler=scheduler,
            error=error,
            reporter=Bars(),
        )
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_campaign(found)
        print(f"All rates: {catalogue / 'rates.csv'} and {catalogue / 'rates.json'}")
    if found["failures"]:
        raise typer.Exit(1)


def diffusion(
    catalogue: Annotated[Path, typer.Argument(help="catalogue with the rates of a campaign")],
    source: Annotated[
        str | None,
        typer.Option(
            help="rates to use: transmission, tst or harmonic; if absent, each event has the first "
            "of these, and harmonic rates are not mixed with others"
        ),
    ] = None,
    formation: Annotated[
        str | None,
        typer.Option(
            help="free energy of formation of a vacancy, eV: a number, or a CSV file with the "
            "columns temperature_K, free_energy_eV and error_eV"
        ),
    ] = None,
    formation_entropy: Annotated[
        float, typer.Option(help="entropy of formation, k; --formation is then the energy")
    ] = 0.0,
    export: Annotated[
        Path | None,
        typer.Option(
            help="folder for the rates of all jumps as CSV and JSON, for kinetic Monte Carlo, and "
            "as input of the package onsager"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute diffusion coefficients from the rates of a campaign.

    The coefficient of the defect itself is exact for its network of jumps. With the free energy of
    formation, that of tracer atoms by vacancies follows, with the exact correlation factor.

    Examples: plumed-cv diffusion fe-vacancy
              plumed-cv diffusion fe-vacancy --source harmonic --formation 1.72
              plumed-cv diffusion fe-vacancy --export fe-rates
    """
    from plumed_cv import workflow
    from plumed_cv.workflow.diffusion import SOURCES

    kinds = dict(zip(("transmission", "tst", "harmonic"), SOURCES, strict=True))
    if source is not None and source not in kinds:
        raise UserError(f"--source {source}: choose {', '.join(kinds)}.")
    if formation is None and formation_entropy:
        raise UserError("--formation-entropy: needs --formation, the energy of formation.")
    found = workflow.compute_diffusion(
        catalogue,
        source=None if source is None else kinds[source],
        formation=None
        if formation is None
        else workflow.read_formation(formation, formation_entropy),
        export=export,
    )
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_diffusion(found)
        print(f"All results: {catalogue / 'diffusion.csv'}, diffusion.json and diffusion.png")
        if export is not None:
            print(f"For other codes: {export / 'jumps.csv'}, jumps.json and onsager-*K.yaml")


def _check_jobs(jobs: int, scheduler: str | None) -> None:
    if scheduler is not None and jobs > 1:
        raise UserError(f"--jobs {jobs}: the scheduler decides this; leave it out.")
