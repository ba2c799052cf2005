"""Commands on the installation: `doctor`, the plugin and PLUMED's kernel."""

import json
from pathlib import Path
from typing import Annotated

import typer

from plumed_cv.cli.options import AsJson
from plumed_cv.common.bars import err, make_bars
from plumed_cv.terminal import print_findings


def doctor(as_json: AsJson = False) -> None:
    """Report what is installed, and how to get what is missing.

    The report covers PLUMED, the plugin, the engines and the Python packages. A second table shows
    the installed versions and those with which the tests were run. The exit status is 1 if
    something necessary is missing.
    """
    from plumed_cv.doctor import examine as examine
    from plumed_cv.doctor import tested_versions

    findings, tested = examine(), tested_versions()
    if as_json:
        rows = [vars(finding) | {"tested": tested.get(finding.name)} for finding in findings]
        print(json.dumps(rows, indent=2))
    else:
        print_findings(findings, tested)
    if not all(finding.ok for finding in findings if finding.required):
        raise typer.Exit(1)


def plugin(
    torch: Annotated[
        bool, typer.Option("--torch", help="the plugin with TORCH_CV, which needs this torch")
    ] = False,
) -> None:
    """Build the PLUMED plugin if needed, and print its path.

    The path is for LOAD FILE= in a plumed.dat.

    Example: echo "LOAD FILE=$(plumed-cv plugin)" > plumed.dat
    """
    from plumed_cv.setup.plugin import build_plugin

    print(build_plugin(torch=torch))


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
    """Print the path of PLUMED's kernel, or build a faster one.

    To build an optimised kernel takes 10 to 20 minutes and 70 MB. Its sources are those in the
    package of the wheel, or any release of PLUMED from 2.9 on.
    """
    from plumed_cv.setup.kernel import find_plumed
    from plumed_cv.setup.kernel_build import build_optimised_kernel

    if optimised or mpi or source:
        with make_bars() as progress:
            found = build_optimised_kernel(progress, mpi=mpi, source=source)
    if not mpi:
        found = find_plumed()
    print(found.kernel)
    err.print(f"PLUMED {found.version}{', with MPI' if found.mpi else ''}, {found.source}")
