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
