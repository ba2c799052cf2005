"""Results of a run or of states of BABF: rates, profiles, reports and exports."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from plumed_cv.cli.options import AsJson, check_extended_xyz, check_folder
from plumed_cv.common.bars import Bars, err
from plumed_cv.common.errors import UserError
from plumed_cv.terminal import (
    print_committee,
    print_correction,
    print_harmonic,
    print_rate,
    print_surface,
    resumable,
)


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
        typer.Option(help="another dividing surface, on which the rate must not depend: a check"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the rate of a run with its transmission coefficient.

    The coefficient follows from trajectories of plain dynamics. They start from snapshots on the
    dividing surface and use the engine of the input. Existing trajectories are kept, so a smaller
    error only adds some. 'plumed-cv run' does this by itself once it has converged.

    Example: plumed-cv rate demo/run --error 0.05
    """
    from plumed_cv import report, workflow

    if error is not None and not 0 < error < 1:
        raise UserError(f"--error {error:g}: the relative error is between 0 and 1.")
    with resumable():
        result = workflow.transmission.compute_rate(
            run_directory, Bars(), error=error, shots=shots, surface=surface
        )
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    elif surface is not None:
        print(workflow.transmission.in_words(result))
    else:
        print_rate(result)
        print(f"Report: {report.write(run_directory)}")


def committee(
    run_directory: Annotated[Path, typer.Argument(help="directory of a run that has ended")],
    snapshots: Annotated[
        int | None,
        typer.Option(min=100, help="snapshots that each potential computes; 4000 if absent"),
    ] = None,
    deviation_limit: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="model deviation beyond which snapshots are marked, eV/angstrom; from the "
            "reactant if absent",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the error of the potential from other potentials.

    The potentials of engine.committee compute forces and energies of snapshots of the run. Existing
    values are kept, so more snapshots only add to them. 'plumed-cv run' does this by itself once it
    has converged. Snapshots in which the potentials disagree about the forces are marked.

    Example: plumed-cv committee demo/run --snapshots 8000
    """
    from plumed_cv import report, workflow

    with resumable():
        result = workflow.committee.compute_committee(
            run_directory, Bars(), snapshots=snapshots, deviation_limit=deviation_limit
        )
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print_committee(result)
        print(f"Report: {report.write(run_directory)}")


def label(
    run_directory: Annotated[Path, typer.Argument(help="directory of a run that has ended")],
    number: Annotated[
        int | None,
        typer.Option("--number", "-n", help="structures for the correction; 100 if absent"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="extended XYZ; labels.xyz in the run if absent"),
    ] = None,
    training: Annotated[
        int | None,
        typer.Option(
            min=0, help="further structures that differ most, for training alone; 0 if absent"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="seed of the random choice; 1 if absent")
    ] = None,
    uncertain: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="instead, so many structures around the path in which the committee of the run "
            "disagrees most, for training alone",
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="structures that came back with energies and forces")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Correct the barrier by a better method, such as DFT.

    The command first chooses structures of a run to compute with a better method. They are a random
    sample along the CV with known probabilities. Compute their energies and forces without
    relaxing them. With --labels, the barrier is then corrected from the potential of the run to
    that method.

    Choose 100 structures: plumed-cv label demo/run -n 100 -o labels.xyz

    When they have come back: plumed-cv label demo/run --labels computed.xyz

    Only to train the model: plumed-cv label demo/run --uncertain 20 -o uncertain.xyz
    """
    from plumed_cv import report, workflow

    choice = {"--number": number, "--training": training, "--seed": seed}
    if uncertain is not None:
        _refuse_beside("--uncertain", choice | {"--labels": labels})
        target = output or run_directory / "uncertain.xyz"
        check_extended_xyz(target)
        rows = workflow.find_uncertain(run_directory, uncertain, target, Bars())
        if as_json:
            print(json.dumps(rows, indent=2, allow_nan=False))
        else:
            print(f"Structures to compute: {target}")
        return
    if labels is None:
        target = output or run_directory / "labels.xyz"
        if output is not None:
            check_extended_xyz(output)
        found = workflow.label.choose(
            run_directory,
            workflow.label.LABELS if number is None else number,
            target,
            training=training or 0,
            seed=1 if seed is None else seed,
            reporter=Bars(),
        )
        if as_json:
            print(json.dumps(found, indent=2, allow_nan=False))
        else:
            print(f"Structures to compute: {target}")
        return
    _refuse_beside("--labels", choice | {"--output": output})
    result = workflow.label.correct(run_directory, labels, Bars())
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print_correction(result)
        print(f"Report: {report.write(run_directory)}")


def _refuse_beside(option: str, others: Mapping[str, object]) -> None:
    for name, value in others.items():
        if value is not None:
            raise UserError(f"{name}: has no effect with {option}; leave one of them out.")


def report(
    run_directory: Annotated[Path, typer.Argument(help="directory of a run, finished or not")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="output; report.html in the run directory if absent"),
    ] = None,
) -> None:
    """Write one HTML page with all results of a run.

    The page needs no network and no other file. It begins with a note if the run has not ended or
    has not converged.

    Example: plumed-cv report demo/run
    """
    from plumed_cv import report as pages

    if output is not None:
        check_folder(output)
    print(pages.write(run_directory, output))


def harmonic(
    source: Annotated[Path, typer.Argument(help="input file (TOML), or the directory of a run")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="folder, for an input; 'harmonic' beside it if absent"),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(min=1e-3, help="temperature of a rate, K; may be given several times"),
    ] = None,
    step: Annotated[
        float,
        typer.Option(min=1e-6, help="displacement of a coordinate for the differences, angstrom"),
    ] = 0.001,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="also the rate of the reverse process, for an input")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute the rate by harmonic transition state theory.

    The Hessians at the minimum and at the saddle point of the minimum energy path are computed by
    differences of forces. The output also has the rate with quantum corrections. For a run, the
    result is compared with its rate and written to its folder 'harmonic'. The same command
    continues after a stop of any kind.

    With the directory of a run: plumed-cv harmonic demo/run

    With an input: plumed-cv harmonic demo/vacancy.toml --temperature 300 --temperature 500
    """
    from plumed_cv import input_file, report, workflow

    kelvin = temperature or []
    with resumable():
        if source.is_dir():
            if output is not None:
                raise UserError(f"--output {output}: the results of a run are kept in the run.")
            if reverse:
                raise UserError(f"--reverse: is for an input; {source} is the directory of a run.")
            found = workflow.compare_harmonic(source, Bars(), temperatures_K=kelvin, step_A=step)
            folder = source
        else:
            folder = output or source.parent / "harmonic"
            found = workflow.compute_harmonic(
                input_file.load(source),
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
        for sentence in workflow.describe_anharmonicity(source) if source.is_dir() else ():
            print(sentence)
        print(f"All results: {folder}")
    if source.is_dir():
        report.write(source)


def fes(
    states: Annotated[
        list[Path], typer.Argument(help="folder of an iteration, or state files of BABF")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="file for the profile")] = Path(
        "fes.dat"
    ),
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
    """Compute the free energy with errors from states of BABF.

    The states belong to one CV or two.

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
        surface = freeenergy.estimate_surface(blocks, walkers=lengths)
        freeenergy.write_surface(output, surface)
        if picture:
            plot_surface(picture, surface, str(output))
        print_surface(output, surface, sum(block.steps for block in blocks), as_json)
        return
    ends = (0.0 if reactant is None else reactant, 1.0 if product is None else product)
    profile, result = workflow.analyse_samples(found, lengths, ends)
    freeenergy.write_fes(output, profile)
    if picture:
        label = f"{profile.argument}: {workflow.summarise(result)}"
        plot_profiles(picture, [(label, profile)], str(output))
    result["md_steps"] = sum(block.steps for block in blocks)
    result["error_note"] = workflow.explain_unknown_error(found, profile, states)
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print(f"{output}: {workflow.summarise(result)}")
        if rate := result.get("tst_rate_per_s"):
            words = scientific(rate, result["tst_rate_error_per_s"], "1/s")
            print(f"Rate of transition state theory: {words}")
        if result.get("note"):
            known = result.get("flux_barrier_eV") is not None
            print(f"{'Attention' if known else 'The flux barrier is unknown'}: {result['note']}")
    if result["error_note"]:
        err.print(result["error_note"])
    if not math.isfinite(profile.barrier.value) and None in (reactant, product):
        err.print(
            f"{output}: the CV was not sampled from {ends[0]:g} to {ends[1]:g}; give its values in "
            "the two states by --reactant and --product."
        )


def export(
    source: Annotated[
        Path, typer.Argument(help="directory of a finished run; with --torch, also a model")
    ],
    output: Annotated[Path, typer.Argument(help="new folder, or new file for a model")],
    torch: Annotated[
        bool, typer.Option("--torch", help="write the CV as TorchScript (cv.pt) for TORCH_CV")
    ] = False,
) -> None:
    """Write the CV of a run, and a plumed.dat for any engine.

    The plumed.dat samples the CV from the start. Its bias is BABF, with the temperature and the
    grid of the run.

    Example: plumed-cv export demo/run production

    Only a model, as TorchScript: plumed-cv export cv.safetensors cv.pt --torch
    """
    if output.exists():
        raise UserError(f"{output}: already exists; give another name.")
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
