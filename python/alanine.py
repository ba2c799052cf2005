"""Alanine dipeptide by a learned CV: the free energy difference of its states in each iteration.

    plumed-cv init alanine alanine && plumed-cv run alanine/alanine.toml     # some minutes
    python -m python.alanine alanine/run            # print the table
    python -m python.alanine alanine/run --keep     # and keep it in docs/alanine.json
    python -m python.alanine                        # print what is kept

The difference is F(C7ax) - F(rest); a structure is in C7ax if 0 < phi < 125 degrees. A run along xi
gives this difference for any bias, because the bias depends only on xi:

    -kT ln [ int p(xi) exp(-A/kT) dxi / int (1 - p(xi)) exp(-A/kT) dxi ]

where p(xi) is the fraction of the snapshots at xi that are in C7ax. Errors are from a jackknife
over ten blocks of segments. The reference is OPES_METAD on phi and psi (`ramachandran.py`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv import freeenergy, sampling, workflow
from plumed_cv.common.files import read_json, write_text
from plumed_cv.freeenergy import Estimate
from plumed_cv.freeenergy.jackknife import jackknife
from python.ramachandran import RIGHT

DATA = Path(__file__).resolve().parent.parent / "docs" / "alanine.json"
KT_EV = 8.617333262e-5 * 300.0
BLOCKS = 10
CORES = ((0.6, 1.5), (-2.6, -0.9))  # phi well inside C7ax, and inside the other wells


def difference(folder: Path) -> Estimate:
    """F(C7ax) - F(rest) of an iteration, eV."""
    blocks, _, printed, _ = workflow.read_samples(folder)
    phi = [np.loadtxt(segment / "torsions")[:, 1] for segment in sampling.list_segments(folder)]

    def of(kept: list[int]) -> NDArray[np.float64]:
        profile = freeenergy.estimate_profile([blocks[k] for k in kept])
        known = np.isfinite(profile.A)
        xi = np.concatenate([printed["ae.node-0"][k] for k in kept])
        angle = np.concatenate([phi[k] for k in kept])
        right = (angle > RIGHT[0]) & (angle < RIGHT[1])
        nodes = profile.xi[known]
        edges = np.concatenate([[-np.inf], 0.5 * (nodes[1:] + nodes[:-1]), [np.inf]])
        total, inside = np.histogram(xi, edges)[0], np.histogram(xi[right], edges)[0]
        weight = np.exp(-(profile.A[known] - profile.A[known].min()) / KT_EV)
        part = inside / np.maximum(total, 1)
        ratio = (part * weight).sum() / ((1.0 - part) * weight).sum()
        return np.array([-KT_EV * np.log(ratio)])

    groups = [part.tolist() for part in np.array_split(np.arange(len(blocks)), BLOCKS)]
    value, error = jackknife(groups, np.ones(BLOCKS).tolist(), of)
    return Estimate(float(value[0]), float(error[0]))


def crossings(folder: Path) -> int:
    """Number of passages from well inside C7ax to well inside the other states, or back."""
    phi = np.concatenate([np.loadtxt(s / "torsions")[:, 1] for s in sampling.list_segments(folder)])
    inside = np.array([(phi > low) & (phi < high) for low, high in CORES])
    return int(np.abs(np.diff(inside[0, inside.any(axis=0)].astype(int))).sum())


def rows(run: Path) -> list[dict[str, Any]]:
    """Results of the iterations of a run."""
    found = []
    for n, part in enumerate(read_json(run / "result.json")["iterations"], start=1):
        estimate = difference(run / f"iteration-{n}")
        kept = {key: part[key] for key in ("kind", "md_steps", "similarity", "seconds_sampling")}
        kept |= {"barrier_eV": part["barrier_eV"], "barrier_error_eV": part["barrier_error_eV"]}
        kept["crossings"] = crossings(run / f"iteration-{n}")
        found.append({**kept, **workflow.as_json({"difference": estimate})})
    return found


def words(row: dict[str, Any], name: str) -> Estimate:
    """A number of a row with its error; NaN if unknown."""
    value, error = (
        np.nan if row[key] is None else float(row[key])
        for key in (f"{name}_eV", f"{name}_error_eV")
    )
    return Estimate(value, error)


def main() -> None:
    """Print the table of a run or of the committed data."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="run directory")
    parser.add_argument("--keep", action="store_true", help="write docs/alanine.json")
    arguments = parser.parse_args()
    found = json.loads(DATA.read_text()) if arguments.run is None else rows(arguments.run)
    if arguments.run is not None and arguments.keep:
        write_text(DATA, json.dumps(found, indent=1))
    print("| iteration | CV | steps | barrier (eV) | F(C7ax) - F(rest) (eV) ", end="")
    print("| crossings | 1 - cos to the next |")
    print("|" + " --- |" * 7)
    for n, row in enumerate(found, start=1):
        estimates = [words(row, name) for name in ("barrier", "difference")]
        cells = [n, row["kind"], f"{row['md_steps']:,}", *estimates]
        cells += [row["crossings"], f"{row['similarity']:.2f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
