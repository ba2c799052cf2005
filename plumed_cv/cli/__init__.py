"""The command line `plumed-cv`: it reads arguments, calls the package and prints.

The commands are functions, grouped by subject: `setup` for what is installed, `runs` for a run,
`results` for what follows from it, `events` for all events of a defect, `learning` for a CV without
a run. `options` has what several of them share. Importing the other modules of the package takes
seconds, so each command imports only what it needs, and --help is fast.
"""

import inspect
import logging
import re
import sys
from collections.abc import Callable
from typing import Annotated

import typer

import plumed_cv
from plumed_cv.cli import events, learning, results, runs, setup
from plumed_cv.common.bars import err
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import log


def _help(command: Callable[..., None]) -> str:
    """Return the docstring of a command. After a backspace, click does not wrap the examples."""
    return re.sub("^(?=.*: plumed-cv )", "\b\n", inspect.getdoc(command) or "", flags=re.MULTILINE)


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

for command in (  # in this order in --help
    setup.doctor,
    setup.plugin,
    setup.plumed,
    runs.init,
    runs.run,
    runs.sample,
    results.rate,
    results.committee,
    results.label,
    results.report,
    runs.path,
    results.harmonic,
    events.jumps,
    events.discover,
    events.campaign,
    events.diffusion,
    learning.energy,
    learning.train,
    results.fes,
    results.export,
):
    app.command(help=_help(command))(command)


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
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())  # to standard error
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
