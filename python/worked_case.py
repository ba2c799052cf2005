"""Command line and output that the worked cases of pages share (`clusters`, `surfaces`)."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plumed_cv.common.numbers import with_error

Found = dict[str, Any]


def main(
    description: str | None, data: Path, run: Callable[[Path], Found], show: Callable[[Found], None]
) -> None:
    """Run the example and write its numbers to a file, or print the numbers of that file."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("task", nargs="?", choices=["run"])
    parser.add_argument("folder", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.task == "run":
        data.write_text(json.dumps(run(arguments.folder), indent=2) + "\n", encoding="utf-8")
    show(json.loads(data.read_text(encoding="utf-8")))


def show_zero_kelvin(found: Found) -> None:
    """Print the barrier at 0 K and the harmonic flux barrier."""
    print(f"barrier at 0 K: {found['barrier_0K_eV']:.3f} eV")
    print(f"harmonic flux barrier: {found['harmonic_flux_barrier_eV']:.3f} eV")


def show_iteration(number: int, part: Found) -> None:
    """Print the flux barrier of an iteration, which are numbered from 1."""
    value = with_error(part["flux_barrier_eV"], part["flux_barrier_error_eV"], "eV")
    print(f"iteration {number} ({part['kind']} CV): flux barrier {value}")
