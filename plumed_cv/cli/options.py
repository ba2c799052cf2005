"""Arguments and checks that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from plumed_cv.common.errors import UserError

Input = Annotated[Path, typer.Argument(help="input file (TOML)")]
AsJson = Annotated[bool, typer.Option("--json", help="print only JSON")]


def check_folder(output: Path) -> None:
    """Refuse an output in a missing folder before hours of work."""
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output}: its folder does not exist; make it first.")


def check_extended_xyz(output: Path) -> None:
    """Refuse an output of structures that other programs would read as another format."""
    check_folder(output)
    if output.suffix not in (".xyz", ".extxyz"):
        raise UserError(
            f"{output}: structures are written as extended XYZ; give the file the suffix .xyz."
        )
