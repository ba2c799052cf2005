"""The command line `plumed-cv`: it reads arguments, calls the package and prints."""

import json
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

import plumed_cv
from plumed_cv.common.bars import Bars, bar, err
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.terminal import (
    print_campaign,
    print_diffusion,
    print_discovery,
    print_energies,
    print_findings,
    print_harmonic,
    print_iterations,
    print_jumps,
    print_keys,
    print_rate,
    print_rates,
    print_surface,
    resumable,
)

# Importing the other modules takes seconds. Each command imports only what it needs, so that
# --help is fast.

app = typer.Typer(
    help="Learn collective variables by autoencoders and sample them by Bayesian adaptive "
    "biasing force, in any engine that has PLUMED.",
    epilog="Exit status: 0 success; 1 failure, with the reason and the remedy on standard error; "
    "2 wrong command line; 3 inputs are written (run --inputs-only); 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Input = Annotated[Path, typer.Argument(help="input file (TOML)")]
AsJson = Annotated[bool, typer.Option("--json", help="print only JSON")]
Latent = typer.Option(min=1, help="latent dimensions d; more than one needs the recipe paper")
Device = typer.Option(help="device for the training: cpu, cuda, or auto (cuda if there is one)")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Report which of PLUMED, the plugin and the engines are installed, and how to get the rest.

    A second table shows the installed versions and those with which the tests were run. The exit
    status is 1 if something necessary is missing.
    """
    from plumed_cv.doctor import doctor as examine
    from plumed_cv.doctor import tested_versions

    findings, tested = examine(), tested_versions()
    if as_json:
        rows = [vars(finding) | {"tested": tested.get(finding.name)} for finding in findings]
        print(json.dumps(rows, indent=2))
    else:
        print_findings(findings, tested)
    if not all(finding.ok for finding in findings if finding.required):
        raise typer.Exit(1)


@app.command()
def plugin(
    torch: Annotated[
        bool, typer.Option("--torch", help="the plugin with TORCH_CV, which needs this torch")
    ] = False,
) -> None:
    """Build the PLUMED plugin if needed and print its path, for LOAD FILE= in a plumed.dat.

    Example: echo "LOAD FILE=$(plumed-cv plugin)" > plumed.dat
    """
    from plumed_cv.setup.plugin import build_plugin

    print(build_plugin(torch=torch))


@app.command()
def plumed(
    optimised: Annotated[
        bool, typer.Option("--optimised", help="build a kernel with -O3 and use it in later runs")
    ] = False,
    mpi: Annotated[
        bool, typer.Option("--mpi", help="build a kernel with MPI; set PLUMED_KERNEL to its path")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option(help="build these sources of PLUMED: an archive of a release, or a folder"),
    ] = None,
) -> None:
    """Print the path of PLUMED's kernel, or build an optimised kernel (10 to 20 minutes, 70 MB).

    The sources are those in the package of the wheel, or any release of PLUMED from 2.9 on.
    """
    from plumed_cv.setup.kernel import find_plumed
    from plumed_cv.setup.kernel_build import build_optimised_kernel

    if optimised or mpi or source:
        with bar() as progress:
            found = build_optimised_kernel(progress, mpi=mpi, source=source)
    if not mpi:
        found = find_plumed()
    print(found.kernel)
    err.print(f"PLUMED {found.version}{', with MPI' if found.mpi else ''}, {found.source}")


def _examples() -> list[str]:
    """Names of the examples, also for shell completion."""
    folder = resources.files(plumed_cv) / "examples"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


@app.command()
def init(
    name: Annotated[
        str | None,
        typer.Argument(help="example to copy; if absent, list them", autocompletion=_examples),
    ] = None,
    directory: Annotated[
        Path | None, typer.Argument(help="new folder; if absent, the name of the example")
    ] = None,
) -> None:
    """Copy an example and build its structures.

    Example: plumed-cv init vacancy-fe demo && plumed-cv run demo/vacancy.toml
    """
    names = _examples()
    if name is None:
        print("\n".join(names))
        return
    if name not in names:
        raise UserError(f"There is no example {name!r}; the examples are {', '.join(names)}.")
    directory = directory or Path(name)
    if directory.exists():
        raise UserError(f"{directory}: exists already; name another folder.")
    directory.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".init-", dir=directory.absolute().parent) as nearby:
        new = Path(nearby) / directory.name  # renamed when complete, in case this is killed
        with resources.as_file(resources.files(plumed_cv) / "examples" / name) as source:
            shutil.copytree(source, new, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run([sys.executable, "build.py"], cwd=new, check=True)
        new.rename(directory)
    inputs = " ".join(str(path) for path in sorted(directory.glob("*.toml")))
    print(f"Now: plumed-cv run {inputs}")


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(help="input file (TOML)")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", "-d", help="run directory; 'run' beside the input")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="list all keys of the input file")] = False,
    inputs_only: Annotated[
        bool,
        typer.Option("--inputs-only", help="stop before each sampling and write a job.sh for it"),
    ] = False,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="of several temperatures, do the others if one fails"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Learn the CV and its free energy profile: sample, train, compare, repeat.

    The same command continues a run that was stopped in any way. It also continues a finished run
    if sampling.steps, sampling.repetitions or iteration.maximum were raised, or if a temperature
    was added to a list in system.temperature_K. It writes report.html in the run directory. With
    --inputs-only, the exit status is 3 if a sampling is to be done.

    Example: plumed-cv run demo/vacancy.toml
    """
    from plumed_cv import config as configuration

    if keys:
        print_keys(configuration.describe_keys())
        return
    if config is None:
        raise UserError("Which input file? For example: plumed-cv run demo/vacancy.toml")
    settings = configuration.load(config)
    from plumed_cv import report, workflow

    directory = directory or config.parent / "run"
    try:
        with resumable():
            result = workflow.run(
                settings, directory, Bars(), inputs_only=inputs_only, keep_going=keep_going
            )
    except workflow.NoBarrierError as error:
        raise UserError(f"{error} {report.write(directory)} shows what was sampled.") from None
    if "walkers" in result:
        at = workflow.RunDirectory(Path(result.get("directory", directory)))
        folder = at.iteration(result["iteration"])
        write_text(folder / "job.sh", _job(config, directory, result["walkers"]))
        print(f"{folder / 'job.sh'}: edit it, run it on any machine, then start this again.")
        raise typer.Exit(3)
    page = report.write(directory)
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        if settings.system.temperatures_K:
            print_rates(result)
        else:
            print_iterations(result)
        print(f"Report: {page}   all results: {directory}")
    if result.get("failures"):
        raise typer.Exit(1)


def _job(config: Path, directory: Path, walkers: list[int]) -> str:
    """Return the job script for the sampling that `run --inputs-only` has prepared."""
    words = ["plumed-cv", "sample", str(config.absolute()), "--dir", str(directory.absolute())]
    return f"""#!/bin/sh
# The next sampling, with a process for each walker. Edit this script for your machine or its queue.
# It needs plumed-cv, the engine, the input and the run directory. If you run it on a copy, copy the
# results back. A job that was cut short counts up to the last state of its segment. If there is a
# native/run.sh in this folder, it does the same with only the engine and PLUMED.
status=0
for walker in {" ".join(map(str, walkers))}; do
    {shlex.join(words)} --walker "$walker" &
    processes="$processes $!"
done
for process in $processes; do
    wait "$process" || status=1
done
exit $status
"""


@app.command()
def sample(
    config: Input,
    directory: Annotated[
        Path | None, typer.Option("--dir", "-d", help="run directory; 'run' beside the input")
    ] = None,
    walker: Annotated[int, typer.Option("--walker", "-w", help="number of the walker, from 0")] = 0,
) -> None:
    """Run the part of one walker in the sampling that 'run --inputs-only' has prepared.

    Example: plumed-cv sample demo/vacancy.toml
    """
    from plumed_cv import config as configuration
    from plumed_cv import workflow

    settings = configuration.load(config)
    with resumable():
        workflow.sample(settings, directory or config.parent / "run", walker, Bars())


@app.command()
def rate(
    run_directory: Annotated[Path, typer.Argument(help="directory of a run that has ended")],
    error: Annotated[
        float | None,
        typer.Option(help="relative error of the transmission coefficient; the input's if absent"),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(min=1, help="pairs of trajectories at most; the input's if absent"),
    ] = None,
    surface: Annotated[
        float | None,
        typer.Option(help="another dividing surface, of which the rate must not depend: a check"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the transmission coefficient of a run, and the rate, by plain dynamics.

    From snapshots on the dividing surface, with the engine of the input. What is there is kept, so
    that a smaller error only adds shots. 'plumed-cv run' does this by itself once it has converged.

    Example: plumed-cv rate demo/run --error 0.05
    """
    from plumed_cv import report, workflow

    if error is not None and not 0 < error < 1:
        raise UserError(f"--error {error:g}: the relative error is between 0 and 1.")
    with resumable():
        result = workflow.transmission.of_directory(
            run_directory, Bars(), error=error, shots=shots, surface=surface
        )
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    elif surface is not None:
        print(workflow.transmission.in_words(result))
    else:
        print_rate(result)
        print(f"Report: {report.write(run_directory)}")


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(help="directory of a run, finished or not")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="output; report.html in the run directory if absent"),
    ] = None,
) -> None:
    """Write one HTML page with all results of a run, finished or not.

    The page needs no network and no other file. It begins with a note if the run has not ended or
    has not converged.

    Example: plumed-cv report demo/run
    """
    from plumed_cv import report as pages

    if output is not None:
        _check_folder(output)
    print(pages.write(run_directory, output))


@app.command()
def path(
    config: Input,
    output: Annotated[Path, typer.Option("--output", "-o", help="extended XYZ")] = Path("path.xyz"),
) -> None:
    """Relax the end states and find the minimum energy path between them.

    Example: plumed-cv path demo/vacancy.toml -o path.xyz
    """
    from plumed_cv import config as configuration
    from plumed_cv import workflow

    settings = configuration.load(config)
    _check_folder(output)
    workflow.find_path(settings, output, Bars())


@app.command()
def harmonic(
    source: Annotated[Path, typer.Argument(help="input file (TOML), or the directory of a run")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="folder, of an input; 'harmonic' beside it if absent"),
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(min=1e-3, help="K, of a rate; may be given several times")
    ] = None,
    step: Annotated[
        float,
        typer.Option(min=1e-6, help="displacement of a coordinate for the differences, angstrom"),
    ] = 0.001,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="of an input, also the rate of the way back")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute the rate by harmonic transition state theory, with quantum corrections.

    From Hessians at the minimum and at the saddle point of the minimum energy path, by differences
    of forces. Of a run the result is put beside its own, in the folder 'harmonic'. Started again
    after any stop, it goes on where it was.

    With the directory of a run: plumed-cv harmonic demo/run

    With an input: plumed-cv harmonic demo/vacancy.toml --temperature 300 --temperature 500
    """
    from plumed_cv import config as configuration
    from plumed_cv import report, workflow

    kelvin = temperature or []
    with resumable():
        if source.is_dir():
            if output is not None:
                raise UserError(f"--output {output}: the results of a run are kept in the run.")
            if reverse:
                raise UserError(f"--reverse: is for an input; {source} is the directory of a run.")
            found = workflow.harmonic_of(source, Bars(), temperatures_K=kelvin, step_A=step)
            folder = source
        else:
            folder = output or source.parent / "harmonic"
            found = workflow.harmonic(
                configuration.load(source),
                folder,
                temperatures_K=kelvin,
                step_A=step,
                reverse=reverse,
                reporter=Bars(),
            )
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_harmonic(found)
        for sentence in workflow.anharmonicity(source) if source.is_dir() else ():
            print(sentence)
        print(f"All results: {folder}")
    if source.is_dir():
        report.write(source)


@app.command()
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
    tolerance: Annotated[
        float, typer.Option(min=1e-6, help="tolerance of the space group, angstrom")
    ] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Find the jumps of a vacancy or interstitial that differ by symmetry; write a catalogue.

    The catalogue has a folder for each such jump, with relaxed end states and an input for
    'plumed-cv run'. All keys of the given input are kept, except its end states.

    Examples: plumed-cv jumps fe.cif --input demo/vacancy.toml --species Fe -o fe-vacancy
              plumed-cv jumps fe.cif -i demo/vacancy.toml --species Fe --relax-cell --width 14
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
        reporter=Bars(),
    )
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_jumps(found)
        first = output / found["events"][0]["id"] / "input.toml"
        print(f"Catalogue: {output}   an event: plumed-cv run {first}")


@app.command()
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
    as_json: AsJson = False,
) -> None:
    """Find the events that begin at one state, by searches for saddle points; write a catalogue.

    No final state is needed. Events that the symmetry of the state maps onto each other are one.
    The catalogue is like that of 'plumed-cv jumps', so that 'plumed-cv campaign' computes the
    rates. Started again after any stop, it goes on where it was.

    Examples: plumed-cv discover demo/initial.xyz --input demo/vacancy.toml -o fe-events
              plumed-cv discover demo/initial.xyz -i demo/vacancy.toml --max-barrier 1.0 -o fe-1eV
    """
    from plumed_cv import events

    if not 0 < confidence < 1:
        raise UserError(f"--confidence {confidence:g}: the confidence is between 0 and 1.")
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
            reporter=Bars(),
        )
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_discovery(found)
        print(f"Catalogue: {output}   all rates: plumed-cv campaign {output} --harmonic")


@app.command()
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
    as_json: AsJson = False,
) -> None:
    """Do the runs of all events of a catalogue at all temperatures, and write one table of rates.

    The same command goes on after a stop of any kind. An event that fails is set aside with the
    reason, and the others are done; the exit status is then 1.

    Examples: plumed-cv campaign fe-vacancy --harmonic
              plumed-cv campaign fe-vacancy
    """
    from plumed_cv import workflow

    if scheduler is not None and jobs > 1:
        raise UserError(f"--jobs {jobs}: the scheduler decides this; leave it out.")
    with resumable():
        found = workflow.campaign(
            catalogue, harmonic=harmonic, jobs=jobs, scheduler=scheduler, reporter=Bars()
        )
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_campaign(found)
        print(f"All rates: {catalogue / 'rates.csv'} and {catalogue / 'rates.json'}")
    if found["failures"]:
        raise typer.Exit(1)


@app.command()
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
    """Compute diffusion coefficients from the rates of a campaign, with errors.

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
    found = workflow.diffusion(
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


@app.command()
def energy(
    source: Annotated[
        list[Path],
        typer.Argument(help="input file (TOML), or images of a path in one file or one file each"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder")] = Path("energy"),
    structures: Annotated[
        int | None, typer.Option(min=2, help="noisy structures; if absent, 20000 or as the input")
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="variance of a coordinate, A^2; if absent, 0.005 or as the input"),
    ] = None,
    components: Annotated[
        int | None, typer.Option(min=1, help="principal components D; if absent, from the elbow")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="denoising or paper; if absent, denoising or as the input")
    ] = None,
    latent: Annotated[int | None, Latent] = None,
    device: Annotated[str | None, Device] = None,
    symmetry: Annotated[
        bool | None,
        typer.Option(help="use the symmetry of the path; if absent, yes or as the input"),
    ] = None,
    atoms: Annotated[
        str, typer.Option(help="atoms of the CV: all, auto, heavy, a radius (A), or serial numbers")
    ] = "all",
    seed: Annotated[int | None, typer.Option(min=0, help="seed of noise and training")] = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="input file with the engine that computes missing forces"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Test at 0 K whether an autoencoder reproduces the energy along a path.

    The output contains the energy profiles of the path, of its principal components and of the
    learned CV, with errors; the fraction of variance explained; and the atoms that take part (a
    column for OVITO). Images may have any format of ASE, with energies (eV) and forces
    (eV/angstrom).

    With an input file: plumed-cv energy demo/vacancy.toml

    With images in one file: plumed-cv energy path.xyz --structures 50000 -o c15

    With one file for each image: plumed-cv energy neb/0?/OUTCAR
    """
    from plumed_cv import config as configuration

    if noise is not None and not noise > 0:
        raise UserError(f"--noise {noise}: the variance must be positive.")
    inputs = [file for file in source if file.suffix == ".toml"]
    if inputs and len(source) > 1:
        raise UserError(f"{inputs[0]}: give either one input file or the images of a path.")
    if inputs and engine:
        raise UserError(f"--engine {engine}: {inputs[0]} already names an engine.")
    settings = configuration.load(inputs[0]) if inputs else None
    forces = configuration.load(engine) if engine else None
    from plumed_cv import workflow

    found = workflow.energy(
        settings or (source if len(source) > 1 else source[0]),
        output,
        n_structures=structures,
        noise_A2=noise,
        n_components=components,
        recipe=recipe,
        n_latent=latent,
        device=device,
        use_symmetry=symmetry,
        atoms=_atoms(atoms),
        seed=seed,
        engine=forces,
        reporter=Bars(),
    )
    result = found.as_dict()
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print_energies(result)
        print(f"Figures and all results: {output}")


@app.command()
def train(
    trajectories: Annotated[
        list[Path],
        typer.Argument(help="any format of mdtraj or ASE (also file@index), or LAMMPS dumps"),
    ],
    initial: Annotated[Path, typer.Option(help="structure where the CV is 0")],
    final: Annotated[Path, typer.Option(help="structure where the CV is 1")],
    output: Annotated[Path, typer.Option("--output", "-o", help="model file")] = Path(
        "cv.safetensors"
    ),
    components: Annotated[
        int | None,
        typer.Option(min=1, help="principal components D; if absent, 12 or those of the mean path"),
    ] = None,
    functions: Annotated[
        int | None,
        typer.Option(min=3, help="polynomials of the mean path, more than components; 6 if absent"),
    ] = None,
    hidden: Annotated[
        str, typer.Option(help="widths of hidden layers, such as 24,24; if absent, as the recipe")
    ] = "",
    recipe: Annotated[str, typer.Option(help="denoising or paper")] = "denoising",
    latent: Annotated[int, Latent] = 1,
    device: Annotated[str, Device] = "cpu",
    activation: Annotated[
        str | None,
        typer.Option(help="relu, tanh, elu, softplus, silu or sigmoid; if absent, as the recipe"),
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="read only every n-th structure")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="seed of weights and batches")] = 0,
    alignment: Annotated[
        str, typer.Option(help="none, or optimal for a molecule, which is fitted to --initial")
    ] = "none",
    atoms: Annotated[
        str, typer.Option(help="atoms of the CV: all, heavy, or serial numbers such as 1-10,15")
    ] = "all",
) -> None:
    """Train an autoencoder CV on trajectories.

    The structures are rotated so that the first cell vector is along x and the second in the xy
    plane, as in LAMMPS and in trajectory files.

    Examples: plumed-cv train md.dcd --initial a.xyz --final b.xyz -o cv.safetensors
              plumed-cv train md.xtc --initial a.pdb --final b.pdb --alignment optimal --atoms heavy
    """
    from plumed_cv import cv
    from plumed_cv.cv import autoencoder
    from plumed_cv.cv.training import RECIPES
    from plumed_cv.structures import (
        cell_of,
        check_end_states,
        check_order,
        check_range,
        drift_of,
        held_atoms,
        oriented,
        read_structure,
    )
    from plumed_cv.structures.trajectory import read_displacements

    try:
        widths = tuple(int(width) for width in hidden.split(",")) if hidden else None
    except ValueError:
        raise UserError(f"--hidden {hidden}: give widths such as 24,24.") from None
    _check_folder(output)
    if recipe not in RECIPES:
        raise UserError(f"--recipe {recipe}: the recipes are {', '.join(RECIPES)}.")
    chosen = RECIPES[recipe]
    training = replace(
        chosen, hidden=widths, functions=functions, n_latent=latent, device=device, seed=seed
    )
    if activation:
        training = replace(training, activation=activation)
    first, last = oriented(read_structure(initial)), oriented(read_structure(final))
    check_end_states(first, last)
    if alignment == "none":
        check_order(first, last, "give --final the order of --initial.")
        check_range(first, last)
    species = first.get_chemical_symbols()
    ends = (first.positions, last.positions)
    serials = cv.select(atoms, species, held_atoms(first))
    linear = cv.linear(species, cell_of(first), *ends, alignment, serials, drift_of(first))
    data = read_displacements(trajectories, linear, stride=stride, species=species)
    with Bars().task("training", training.n_epochs) as update:
        learned, _, network = autoencoder.learn(
            data,
            linear,
            components or training.limited(12),
            training,
            lambda epoch, epochs, loss: update(epoch, f"error {loss**0.5:.4f} A"),
        )
    learned.save(output)
    print(f"{output}: {learned}, {len(data)} structures, error {network.losses[-1] ** 0.5:.4f} A")


def _atoms(text: str) -> str | float:
    """A selection of atoms, in which a number alone is a radius."""
    try:
        return float(text)
    except ValueError:
        return text


@app.command()
def fes(
    states: Annotated[
        list[Path], typer.Argument(help="folder of an iteration, or state files of BABF")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="profile")] = Path("fes.dat"),
    picture: Annotated[Path | None, typer.Option(help="file for a figure of the profile")] = None,
    reactant: Annotated[
        float | None, typer.Option(help="value of the CV in the reactant; 0 if absent")
    ] = None,
    product: Annotated[
        float | None, typer.Option(help="value of the CV in the product; 1 if absent")
    ] = None,
    walkers: Annotated[
        bool,
        typer.Option(help="the states belong to independent runs, not to successive times of one"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute the free energy with errors from states of BABF on one CV or two.

    The output also has the flux barrier and the rate for the folder of an iteration, and for runs
    with an exported plumed.dat if the colvar is in the folder of each state.

    Examples: plumed-cv fes demo/run/iteration-2 -o fes.dat
              plumed-cv fes walker-*/babf.state --walkers --picture fes.png
    """
    from plumed_cv import freeenergy, workflow
    from plumed_cv.common.numbers import scientific
    from plumed_cv.figures import plot_profiles, plot_surface

    found, lengths = workflow.read_sampled(states, walkers)
    blocks = found.blocks
    if blocks and len(blocks[0].axes) == 2:
        if reactant is not None or product is not None:
            raise UserError("--reactant and --product need one CV; these states have two.")
        surface = freeenergy.surface(blocks, walkers=lengths)
        freeenergy.write_surface(output, surface)
        if picture:
            plot_surface(picture, surface, str(output))
        print_surface(output, surface, sum(block.steps for block in blocks), as_json)
        return
    ends = (0.0 if reactant is None else reactant, 1.0 if product is None else product)
    profile, result = workflow.analysed(found, lengths, ends)
    freeenergy.write_fes(output, profile)
    if picture:
        label = f"{profile.argument}: {workflow.summary(result)}"
        plot_profiles(picture, [(label, profile)], str(output))
    result["md_steps"] = sum(block.steps for block in blocks)
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print(f"{output}: {workflow.summary(result)}")
        if rate := result.get("tst_rate_per_s"):
            words = scientific(rate, result["tst_rate_error_per_s"], "1/s")
            print(f"Rate of transition state theory: {words}")
        if result.get("note"):
            print(f"The flux barrier is unknown: {result['note']}")
    if not math.isfinite(profile.barrier.value) and None in (reactant, product):
        err.print(
            f"{output}: the CV was not sampled from {ends[0]:g} to {ends[1]:g}; give its values in "
            "the two states by --reactant and --product."
        )


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="directory of a finished run; with --torch, also a model")
    ],
    output: Annotated[Path, typer.Argument(help="new folder, or new file for a model")],
    torch: Annotated[
        bool, typer.Option("--torch", help="write the CV as TorchScript (cv.pt) for TORCH_CV")
    ] = False,
) -> None:
    """Write the CV of a run and a plumed.dat that samples it from the start in any engine.

    The bias is BABF, with the temperature and the grid of the run.

    Example: plumed-cv export demo/run production

    Only a model, as TorchScript: plumed-cv export cv.safetensors cv.pt --torch
    """
    if output.exists():
        raise UserError(f"{output}: exists already; give another name.")
    file = output
    if source.is_file():
        if not torch:
            raise UserError(f"{source}: is a model file; --torch converts it to TorchScript.")
        from plumed_cv.cv import CollectiveVariable

        variable = CollectiveVariable.load(source)
    else:
        from plumed_cv import workflow
        from plumed_cv.setup.plugin import build_plugin

        variable = workflow.export(source, output, build_plugin())
        print(f"{output / 'plumed.dat'}: {variable} with BABF")
        file = output / "cv.pt"
    if torch:
        from plumed_cv.cv.torchscript import plumed_line, write_torchscript

        write_torchscript(variable, file)
        print(f"{file}: in PLUMED, use  {plumed_line(variable, file.name)}")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Options before a command."""
    if version:
        print(f"plumed_cv {plumed_cv.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. Wrong input or a full disk give one sentence and exit status 1."""
    try:
        app()
    except UserError as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"{error.filename or 'a file'}: {error.strerror or error}."
    else:
        return
    err.print(f"plumed-cv: {sentence}", style="red" if err.is_terminal else None)
    sys.exit(1)


def _check_folder(output: Path) -> None:
    """Refuse an output in a missing folder before hours of work."""
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output}: its folder does not exist; make it first.")


if __name__ == "__main__":
    main()
