"""An analysis without any run: read states, make a profile, draw it and print it.

A program of its own, `python analysis.py FOLDER`, for Python environments with the base
installation of plumed_cv and nothing else; tests/test_install.py runs it.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase.build import bulk

import plumed_cv
from plumed_cv import cv, doctor, figures, freeenergy, structures, workflow
from plumed_cv.cli import app
from plumed_cv.common.errors import UserError

KT_EV = 0.025
HEIGHT = 3.0  # kT
INPUT = """
system = { initial = "a.xyz", final = "b.xyz", temperature_K = 300.0 }
engine = { name = "lammps", potential = ["pair_style zero 3.0"] }
"""


def sampled(seed: int, n_steps: int = 4000) -> freeenergy.State:
    """Brownian dynamics in a double well with its bABF bias; the wells are at 0 and 1."""
    rng = np.random.default_rng(seed)
    estimator = freeenergy.Estimator(freeenergy.Grid(-0.3, 1.3, 80), KT_EV)
    x, step = 0.0, 1e-3  # of 2 D dt
    for _ in range(n_steps):
        force = -32.0 * HEIGHT * x * (1.0 - x) * (1.0 - 2.0 * x)  # of 16 h x^2 (1 - x)^2, in kT
        force += float(estimator.learn(x).force_eV) / KT_EV
        x += 0.5 * step * force + step**0.5 * rng.standard_normal()
    return estimator.state


def refusal(*arguments: str) -> str:
    """Run a command that must be refused, and return the sentence."""
    try:
        app(list(arguments), standalone_mode=False)
    except UserError as error:
        return str(error)
    raise AssertionError(f"{arguments} should have been refused")


def main(folder: Path) -> None:
    states = [folder / f"{seed}.state" for seed in range(4)]
    for seed, file in enumerate(states):
        freeenergy.write_state(file, sampled(seed))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        profile_file, picture = folder / "fes.dat", folder / "fes.png"
        output = ["-o", str(profile_file), "--picture", str(picture), "--json"]
        app(["fes", *map(str, states), "--walkers", *output], standalone_mode=False)
    result = json.loads(said.getvalue())
    # Four runs of 4000 steps have an error of some 0.15 kT.
    assert abs(result["barrier_eV"] / KT_EV - HEIGHT) < 1.0, result
    assert picture.stat().st_size > 5000
    xi, _, energies, *_ = np.loadtxt(profile_file, unpack=True)
    profile = freeenergy.read_fes(profile_file)
    assert np.array_equal(profile.xi, xi)
    assert np.array_equal(profile.A, energies, equal_nan=True)
    figures.plot_profiles(folder / "again.pdf", [("again", profile)], "profile")

    # A CV, its file and its values; a structure file.
    atoms = bulk("Fe", cubic=True) * (2, 2, 2)
    moved = atoms.positions.copy()
    moved[0] += 0.5
    variable = cv.linear(atoms.get_chemical_symbols(), atoms.cell.array, atoms.positions, moved)
    variable.save(folder / "cv.safetensors")
    ase.io.write(folder / "a.xyz", atoms)
    again = cv.CollectiveVariable.load(folder / "cv.safetensors")
    first = structures.read_structure(folder / "a.xyz")
    assert abs(again.value(first.positions, first.cell.array)[0]) < 1e-6
    assert workflow.RESULTS

    # What needs more says which extra brings it.
    print(plumed_cv.__file__)
    print(refusal("report", str(folder)))
    print(refusal("export", str(folder / "cv.safetensors"), str(folder / "cv.pt"), "--torch"))
    ends = ["--initial", str(folder / "a.xyz"), "--final", str(folder / "b.xyz")]
    ase.io.write(folder / "b.xyz", ase.Atoms(atoms.symbols, moved, cell=atoms.cell, pbc=True))
    print(refusal("train", str(folder / "md.dcd"), *ends))
    (folder / "input.toml").write_text(INPUT, encoding="utf-8")
    print(refusal("run", str(folder / "input.toml")))
    findings = {finding.name: finding for finding in doctor.examine()}
    print(findings["LAMMPS"].detail, findings["LAMMPS"].remedy)
    print(findings["Extras"].remedy)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
