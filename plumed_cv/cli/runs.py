"""A run from its input: `init`, `run`, `sample` and `path`."""

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

import plumed_cv
from plumed_cv.cli.options import AsJson, Input, check_extended_xyz
from plumed_cv.common.bars import Bars
from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import check_installed
from plumed_cv.common.files import write_text
from plumed_cv.terminal import print_iterations, print_keys, print_rates, resumable


def _examples() -> list[str]:
    """Names of the examples, also for shell completion."""
    folder = resources.files(plumed_cv) / "examples"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


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
        raise UserError(f"{directory}: already exists; name another folder.")
    directory.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".init-", dir=directory.absolute().parent) as nearby:
        new = Path(nearby) / directory.name  # renamed when complete, in case this is killed
        with resources.as_file(resources.files(plumed_cv) / "examples" / name) as source:
            shutil.copytree(source, new, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run([sys.executable, "build.py"], cwd=new, check=True)
        new.rename(directory)
    inputs = " ".join(str(path) for path in sorted(directory.glob("*.toml")))
    print(f"Now: plumed-cv run {inputs}")


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
    """Learn the CV, and compute the free energy and the rate.

    Each iteration samples the CV, trains the next one on the snapshots and compares the two. The
    same command continues a run that was stopped in any way. It also continues a finished run
    if sampling.steps, sampling.repetitions or iteration.maximum were raised, or if a temperature
    was added to a list in system.temperature_K. It writes report.html in the run directory. With
    --inputs-only, the exit status is 3 if a sampling is to be done.

    Example: plumed-cv run demo/vacancy.toml
    """
    from plumed_cv import input_file

    if keys:
        print_keys(input_file.describe_keys())
        return
    if config is None:
        raise UserError("Which input file? For example: plumed-cv run demo/vacancy.toml")
    settings = input_file.load(config)
    training = () if inputs_only else ("sklearn", "torch")
    check_installed("jinja2", "mdtraj", *training, *settings.engine.packages)
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


def sample(
    config: Input,
    directory: Annotated[
        Path | None, typer.Option("--dir", "-d", help="run directory; 'run' beside the input")
    ] = None,
    walker: Annotated[int, typer.Option("--walker", "-w", help="number of the walker, from 0")] = 0,
) -> None:
    """Run a sampling that 'run --inputs-only' has prepared.

    Example: plumed-cv sample demo/vacancy.toml
    """
    from plumed_cv import input_file, workflow

    settings = input_file.load(config)
    with resumable():
        workflow.sample(settings, directory or config.parent / "run", walker, Bars())


def path(
    config: Input,
    output: Annotated[Path, typer.Option("--output", "-o", help="extended XYZ")] = Path("path.xyz"),
) -> None:
    """Find the minimum energy path between the relaxed end states.

    Example: plumed-cv path demo/vacancy.toml -o path.xyz
    """
    from plumed_cv import input_file, workflow

    settings = input_file.load(config)
    check_extended_xyz(output)
    workflow.find_path(settings, output, Bars())
