"""Time and memory of training a collective variable, each case in a separate process.

    python python/benchmarks/training.py             # 50 000 structures of 1026 atoms
    python python/benchmarks/training.py --large     # also 150 000 of 2754 atoms, 5 GB
    python python/benchmarks/training.py --rounds 3  # repeat, and print the spread

The structures lie on a curve in six dimensions with independent noise, like structures from a path
at 0 K, for a ball of bcc iron. Both recipes are timed on one thread, with ten components and two
layers of ten. The linear algebra is compared with scikit-learn's randomised PCA in the same
process. Limits: 60 s and 2 GB for the first case, 6 GB for the second.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

CASES = {"cluster": (50_000, 1026, 60.0, 2.0), "dislocations": (150_000, 2754, None, 6.0)}
COMPONENTS = 10


def measure(recipe: str, n_structures: int, n_atoms: int, peer: bool) -> dict[str, Any]:
    """Train once in this process; return seconds and the largest memory in GB."""
    import numpy as np
    from ase.build import bulk

    from plumed_cv import cv
    from plumed_cv.cv import learning, meanpath
    from plumed_cv.cv.training import RECIPES
    from plumed_cv.structures.frame import chunks

    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(3 * n_atoms, 6)))[0].T
    s = np.linspace(0.0, 1.0, n_structures)

    def curve(s: np.ndarray) -> np.ndarray:
        waves = [np.sin(np.pi * k * s) / k**2 for k in range(1, 6)]
        return np.asarray(np.stack([2.5 * s, *waves], axis=1) @ axes)

    displacements = np.empty((n_structures, n_atoms, 3), dtype=np.float32)
    for part in chunks(n_structures):
        noise = rng.standard_normal((len(s[part]), 3 * n_atoms), dtype=np.float32)
        whole = (curve(s[part]) + 0.07 * noise).reshape(-1, n_atoms, 3)
        displacements[part] = whole - whole.mean(axis=1, keepdims=True)
    crystal = bulk("Fe", cubic=True).repeat(12).positions
    inside = np.argsort(np.linalg.norm(crystal - crystal.mean(axis=0), axis=1))[:n_atoms]
    reference = crystal[inside]
    end = curve(np.ones(1)).reshape(n_atoms, 3)
    linear = cv.linear(["Fe"] * n_atoms, np.zeros((3, 3)), reference, reference + end)
    began = time.perf_counter()
    learning.learn(
        displacements,
        linear,
        COMPONENTS,
        RECIPES[recipe],
        coordinate=s,
        through_ends=True,
    )
    result = {
        "seconds": time.perf_counter() - began,
        "GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    if peer:
        from sklearn.decomposition import PCA

        from plumed_cv.cv import pca

        fits = {
            "sklearn": PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit,
            "pca": lambda flat: pca.fit(flat.reshape(displacements.shape), COMPONENTS),
            "mean path": lambda flat: meanpath.fit(flat.reshape(displacements.shape), s),
        }
        for words, fit in fits.items():
            began = time.perf_counter()
            fit(displacements.reshape(n_structures, -1))
            result[words] = time.perf_counter() - began
        result["GB with sklearn"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return result


def main() -> None:
    """Run the cases and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also the large case")
    parser.add_argument("--rounds", type=int, default=1, help="repetitions of each case")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)  # what this process is to do
    arguments = parser.parse_args()
    if arguments.case:
        recipe, n_structures, n_atoms, peer = arguments.case
        print(json.dumps(measure(recipe, int(n_structures), int(n_atoms), peer == "1")))
        return
    for name, (n_structures, n_atoms, most_s, most_GB) in CASES.items():
        if name == "dislocations" and not arguments.large:
            continue
        for recipe in ("denoising", "paper"):
            peer = recipe == "denoising" and name == "cluster"
            case = [recipe, str(n_structures), str(n_atoms), "1" if peer else "0"]
            runs = []
            for _ in range(arguments.rounds):
                command = [sys.executable, __file__, "--case", *case]
                threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                done = subprocess.run(
                    command, env=os.environ | threads, check=True, capture_output=True, text=True
                )
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            seconds = [run["seconds"] for run in runs]
            limit = f" of {most_s:.0f}" if most_s else ""
            print(
                f"{name}, {recipe}: {n_structures:,} structures of {n_atoms} atoms in "
                f"{min(seconds):.0f}-{max(seconds):.0f} s{limit}, "
                f"{max(run['GB'] for run in runs):.2f} GB of {most_GB:.0f}",
                flush=True,
            )
            if peer:
                part = min(runs, key=lambda run: float(run["sklearn"]))
                print(
                    f"{name}, linear algebra alone: scikit-learn's PCA {part['sklearn']:.1f} s, "
                    f"ours {part['pca'] / part['sklearn']:.2f} of it, mean path "
                    f"{part['mean path'] / part['sklearn']:.2f} of it; "
                    f"{part['GB with sklearn']:.2f} GB with scikit-learn's copy"
                )


if __name__ == "__main__":
    main()
