"""What the worked cases of pages share (`clusters`, `monolayer`, `surfaces`)."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ase import Atoms

from plumed_cv import input_file, workflow
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


def prepare(folder: Path, states: tuple[Atoms, Atoms], text: str, name: str) -> None:
    """Write the end states and the input `name` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for state, atoms in zip(("initial", "final"), states, strict=True):
        atoms.write(folder / f"{state}.xyz")
    (folder / name).write_text(text)


def run_crystal(folder: Path, name: str) -> Found:
    """Run the input `name` of a folder, and harmonic theory; return the numbers of a page."""
    result = workflow.run(input_file.load(folder / name), folder / "run")
    found = workflow.compare_harmonic(folder / "run")
    keys = ("kind", "flux_barrier_eV", "flux_barrier_error_eV")
    return {
        "iterations": [{key: part[key] for key in keys} for part in result["iterations"]],
        "converged": result["converged"],
        "multiplicity": result["multiplicity"],
        "tst_rate_per_s": result["tst_rate_per_s"],
        "tst_rate_error_per_s": result["tst_rate_error_per_s"],
        "transmission": result.get("transmission"),
        "transmission_error": result.get("transmission_error"),
        "barrier_0K_eV": found["barrier_eV"],
        "harmonic_flux_barrier_eV": found["rates"][0]["flux_barrier_eV"],
        "harmonic_rate_per_s": found["rates"][0]["rate_per_s"],
        "cv_atoms": result["cv_atoms"],
    }


def show_crystal(found: Found) -> None:
    """Print what `run_crystal` has found."""
    show_zero_kelvin(found)
    for number, part in enumerate(found["iterations"], 1):
        show_iteration(number, part)
    print(f"harmonic rate: {found['harmonic_rate_per_s']:.2e} 1/s")
    print(f"rate of transition state theory: {tst_rate(found)}", end="")
    print(f"; {found['multiplicity']} equivalent events")


def tst_rate(found: Found) -> str:
    """The rate of transition state theory of one event, in words."""
    return f"{found['tst_rate_per_s']:.2e} ± {found['tst_rate_error_per_s']:.1e} 1/s"


def kappa(found: Found) -> str:
    """The transmission coefficient, in words."""
    return with_error(found["transmission"], found["transmission_error"], "").strip()


def flux_barrier(part: Found) -> str:
    """The flux barrier of an iteration, in words."""
    return with_error(part["flux_barrier_eV"], part["flux_barrier_error_eV"], "eV")


def show_zero_kelvin(found: Found) -> None:
    """Print the barrier at 0 K and the harmonic flux barrier."""
    print(f"barrier at 0 K: {found['barrier_0K_eV']:.3f} eV")
    print(f"harmonic flux barrier: {found['harmonic_flux_barrier_eV']:.3f} eV")


def show_iteration(number: int, part: Found) -> None:
    """Print the flux barrier of an iteration, which are numbered from 1."""
    print(f"iteration {number} ({part['kind']} CV): flux barrier {flux_barrier(part)}")
