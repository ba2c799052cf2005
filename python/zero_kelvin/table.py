"""The paper's 0 K results (Sec. 4.1) for five systems: table and figures, with five seeds each.

    python python/zero_kelvin/table.py PATHS                    # run what is missing, then print
    python python/zero_kelvin/table.py PATHS vacancy cluster    # only these systems
    python python/zero_kelvin/table.py PATHS --variants         # what was tried, on the small ones
    python python/zero_kelvin/table.py                          # print and draw the committed data

PATHS is the folder of `systems.py`. Results are written to docs/zero-kelvin/NAME.json after each
run, so that a stopped command can be continued. The figures are in the same folder.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from plumed_cv import cv
from plumed_cv.common.files import replacing, write_text
from plumed_cv.cv import energy, pca, symmetry
from plumed_cv.cv.reconstruction import Reconstruction, compare, reconstruct
from plumed_cv.cv.training import RECIPES, Training
from plumed_cv.paths.path import EnergyPath, load_path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "zero-kelvin"
SEEDS = 5
NOISE_A2 = 0.005
LABELS = {"paper": "paper", "denoising": "mean path"}

# Structures, variance of the noise (A^2), and components of the paper's recipe: those of the paper.
# Ours takes them by the elbow, but for the dislocations, whose elbow drowns in the noise.
CASES: dict[str, list[tuple[int, float, int]]] = {
    "vacancy": [(20_000, NOISE_A2, 12)],
    "dumbbell": [(20_000, NOISE_A2, 12)],
    "di-interstitial": [(20_000, NOISE_A2, 12)],
    "cluster": [(50_000, NOISE_A2, 10)],
    "dislocations": [(20_000, 0.0025, 20), (150_000, 0.0025, 20)],
}
PAPER_HIDDEN = {"dislocations": (120, 120)}  # otherwise two layers of D
COUNTS = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)

# What was tried, from the paper's recipe to the default, one thing at a time.
PAPER, DEFAULT = RECIPES["paper"], RECIPES["denoising"]
VARIANTS: dict[str, Training] = {
    "paper": PAPER,
    "paper, free decoder": replace(PAPER, tied=False),
    "paper, tanh": replace(PAPER, activation="tanh"),
    "paper, tanh, free decoder": replace(PAPER, activation="tanh", tied=False),
    "paper, components of the mean path": replace(PAPER, subspace="mean path"),
    "paper, best of 3": replace(PAPER, restarts=3),
    "default, plain PCA": replace(DEFAULT, subspace="pca"),
    "default, relu": replace(DEFAULT, activation="relu"),
    "default, silu": replace(DEFAULT, activation="silu"),
    "default, tied": replace(DEFAULT, tied=True),
    "default, one hidden layer of 24": replace(DEFAULT, hidden=(24,)),
    "default, two of 12": replace(DEFAULT, hidden=(12, 12)),
    "default, best of 3": replace(DEFAULT, restarts=3),
    "default, no symmetry": DEFAULT,
    "default": DEFAULT,
}


def run(
    path: EnergyPath,
    training: Training,
    n_structures: int,
    noise_A2: float,
    n_components: int | None,
    use_symmetry: bool = True,
) -> Reconstruction:
    """Reconstruct the energy of a path with a progress bar."""
    with Console(stderr=True).status("") as status:
        return reconstruct(
            path,
            n_structures,
            noise_A2,
            n_components,
            training,
            training.seed,
            lambda done, total, stage: status.update(f"{stage}, epoch {done:.0f} of {total:.0f}"),
            use_symmetry,
        )


def row(found: Reconstruction) -> dict[str, Any]:
    """The numbers of one run."""
    subspace, whole = compare(found.pca, found.neb), compare(found.ae_pca, found.neb)
    return {
        "structures": found.n_structures,
        "noise_A2": found.variance_A2,
        "seed": found.seed,
        "components": found.variable.n_components,
        "elbow": found.elbow,
        "pca_error_percent": subspace["barrier_error_percent"],
        "error_percent": whole["barrier_error_percent"],
        "end_point_error_meV": 1e3 * (whole["end_point_error_eV"] or 0.0),
        "rms_meV": 1e3 * (whole["rms_eV"] or 0.0),
        "seconds": sum(found.seconds.values()),
    }


def run_table(name: str, path: EnergyPath) -> None:
    """Run what is missing of a system's part of the table."""
    for recipe in ("denoising", "paper"):
        for n_structures, noise_A2, paper_components in CASES[name]:
            for seed in range(SEEDS):
                data = read(name)
                key = f"{recipe} {n_structures}"
                done = data.setdefault("runs", {}).setdefault(key, [])
                if len(done) > seed:
                    continue
                training = replace(RECIPES[recipe], seed=seed)
                if recipe == "paper":
                    training = replace(training, hidden=PAPER_HIDDEN.get(name))
                by_elbow = recipe == "denoising" and name != "dislocations"
                components = None if by_elbow else paper_components
                found = run(path, training, n_structures, noise_A2, components)
                done.append(row(found))
                if seed == 0:
                    keep_pictures(data, recipe, found)
                write(name, data)


def keep_pictures(data: dict[str, Any], recipe: str, found: Reconstruction) -> None:
    """Add the data for the figures of a system."""
    path = found.path
    initial = path.images[0]
    centre = int(found.localisation.amplitude.argmax())
    distances = initial.get_distances(centre, range(len(initial)), mic=True)
    data["atoms"] = len(initial)
    data["arc_length"] = rounded(path.arc_length)
    data["energies_eV"] = rounded(path.energies, 7)
    data["verdict"] = found.localisation.sentence
    data["noise_A"] = found.localisation.noise
    data.setdefault("parameter", {})[recipe] = rounded(found.neb.parameter[::8])
    data.setdefault("profile_eV", {})[recipe] = rounded(found.ae_pca.energy[::8], 7)
    data.setdefault("pca_profile_eV", {})[recipe] = rounded(found.pca.energy[::8], 7)
    if recipe == "denoising":
        data["elbow"] = found.elbow
        data["fraction_of_variance"] = [float(f"{x:.4g}") for x in found.fraction_of_variance]
        data["distance_A"] = rounded(distances, 3)
        data["var_A"] = rounded(found.localisation.amplitude)


def run_counts(name: str, path: EnergyPath) -> None:
    """Compute missing losses of the subspaces alone against the number of structures."""
    noise_A2 = CASES[name][0][1]
    first, last = path.images[0], path.images[-1]
    linear = cv.linear(path.species, path.cell, first.positions, last.positions)
    operations = symmetry.find_path_operations(path)
    data = read(name)
    data["operations"] = len(operations)
    counts = data.setdefault("counts", {})
    barrier = energy.interpolate_images(path).barrier
    for n_structures in COUNTS:
        if str(n_structures) in counts:
            continue
        losses: dict[str, list[float]] = {"pca": [], "mean path": [], "mean path, symmetry": []}
        for seed in range(3):
            samples = path.noisy_samples(n_structures, noise_A2, np.random.default_rng(seed))
            s = np.linspace(0.0, 1.0, n_structures)
            found = {
                "pca": pca.fit(samples, 12, seed),
                "mean path": pca.fit_mean_path(samples, s, 12, (), linear)[0],
                "mean path, symmetry": pca.fit_mean_path(samples, s, 12, operations, linear)[0],
            }
            for words, components in found.items():
                profile = energy.along_components(path, within(linear, components))
                losses[words].append(100.0 * (profile.barrier / barrier - 1.0))
        counts[str(n_structures)] = {words: rounded(loss, 3) for words, loss in losses.items()}
        write(name, data)


def within(
    linear: cv.CollectiveVariable, components: pca.PrincipalComponents
) -> cv.CollectiveVariable:
    """A CV with given components; `along_components` uses only these."""
    n = len(components.components)
    first = cv.Layer(np.ones((1, n)), np.zeros(1))
    return replace(
        linear,
        pca_mean=components.mean,
        pca_components=components.components,
        encoder=(first,),
        decoder=(cv.Layer(np.ones((n, 1)), np.zeros(n)),),
    )


def run_variants(name: str, path: EnergyPath) -> None:
    """Run the missing variants, three seeds each."""
    n_structures, noise_A2, components = CASES[name][0]
    for seed in range(3):
        for words, variant in VARIANTS.items():
            data = read(name)
            done = data.setdefault("variants", {}).setdefault(words, [])
            if len(done) > seed:
                continue
            use_symmetry = words != "default, no symmetry"
            training = replace(variant, seed=seed)
            found = run(
                path, training, min(n_structures, 20_000), noise_A2, components, use_symmetry
            )
            done.append(row(found))
            write(name, data)


def print_table(names: list[str]) -> None:
    """Print the table of all systems."""
    print(
        "| system | atoms | structures | recipe | seeds | D | NEB barrier (eV) | PCA error (%) ",
        end="",
    )
    print(
        "| AE+PCA barrier (eV) | AE+PCA error (%), median (worst) | end point error (meV) ", end=""
    )
    print("| RMS (meV) | seconds |")
    print("|" + " --- |" * 13)
    for name, data in of(names):
        barrier = max(data["energies_eV"])
        for key, runs in sorted(data.get("runs", {}).items()):
            recipe, structures = key.split()
            errors = [part["error_percent"] for part in runs]
            worst = max(errors, key=abs)
            middle = {key: median(abs(part[key]) for part in runs) for key in runs[0]}
            cells = [name, data["atoms"], f"{int(structures):,}", LABELS[recipe]]
            cells += [len(runs), runs[0]["components"], f"{barrier:.4f}"]
            cells += [f"{median(part['pca_error_percent'] for part in runs):+.2f}"]
            cells += [f"{barrier * (1 + median(errors) / 100):.4f}"]
            cells += [f"{median(errors):+.2f} ({worst:+.2f})"]
            cells += [f"{middle['end_point_error_meV']:.1f}", f"{middle['rms_meV']:.1f}"]
            cells += [f"{middle['seconds']:.0f}"]
            print("| " + " | ".join(map(str, cells)) + " |")


def print_variants(names: list[str]) -> None:
    """Print the table of variants."""
    columns = [(name, data["variants"]) for name, data in of(names) if "variants" in data]
    if not columns:
        return
    print("\n| barrier error (%), median (worst) of up to three seeds | ", end="")
    print(" | ".join(dict(columns)) + " |")
    print("| --- |" + " --- |" * len(columns))
    for words in VARIANTS:
        cells = []
        for _, variants in columns:
            errors = [part["error_percent"] for part in variants.get(words, [])]
            worst = max(errors, key=abs, default=None)
            cells.append(f"{median(errors):+.2f} ({worst:+.2f})" if errors else "")
        print(f"| {words} | " + " | ".join(cells) + " |")


def draw(names: list[str]) -> None:
    """Draw the figures of all systems that have data, numbered as in the paper."""
    systems = [(name, data) for name, data in of(names) if "fraction_of_variance" in data]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for k, (name, data) in enumerate(systems):
        values = data["fraction_of_variance"]
        number = np.arange(1, len(values) + 1)
        axes.semilogy(number, values, "o-", color=f"C{k}", markerfacecolor="white", linewidth=0.8)
        elbow = data["elbow"]
        label = f"{name}: elbow at {elbow}"
        axes.plot(number[:elbow], values[:elbow], "o", color=f"C{k}", label=label)
    axes.set_xlabel("principal component of the noisy structures")
    axes.set_ylabel("fraction of variance explained")
    axes.legend(fontsize="small")
    save(figure, "figure-2.png")

    columns = max(len(systems), 1)
    figure = Figure(figsize=(4.2 * columns, 7.4), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    for upper, lower, (name, data) in zip(grid[0], grid[1], systems, strict=True):
        upper.plot(data["arc_length"], data["energies_eV"], "ko", markersize=3, label="path")
        for recipe, colour in (("paper", "tab:red"), ("denoising", "tab:blue")):
            if recipe not in data["profile_eV"]:
                continue
            x = data["parameter"][recipe]
            label = f"AE+PCA, {LABELS[recipe]}"
            upper.plot(x, data["profile_eV"][recipe], color=colour, label=label)
            upper.plot(x, data["pca_profile_eV"][recipe], "--", color=colour, linewidth=0.8)
        upper.set_title(f"{name}, {data['atoms']} atoms")
        upper.set_xlabel("arc length along the path")
        upper.set_ylabel("energy (eV)")
        upper.legend(fontsize="small")
        lower.semilogy(data["distance_A"], data["var_A"], "o", markersize=3)
        lower.axhline(data["noise_A"], color="black", linestyle="--", linewidth=0.8)
        lower.set_xlabel("distance from the most mobile atom (Å)")
        lower.set_ylabel(r"$\mathrm{var}_{D,a}$ (Å)")
    save(figure, "figures-3-5-6.png")

    systems = [(name, data) for name, data in of(names) if "counts" in data]
    columns = max(len(systems), 1)
    figure = Figure(figsize=(3.0 * columns, 3.4), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axes, (name, data) in zip(panels, systems, strict=True):
        for words, marker in (("pca", "s"), ("mean path", "o"), ("mean path, symmetry", "^")):
            counts = {int(n): -float(np.mean(part[words])) for n, part in data["counts"].items()}
            axes.loglog(list(counts), list(counts.values()), f"{marker}-", label=words)
        operations = data["operations"]
        axes.set_title(
            f"{name} ({operations} operation{'s' * (operations > 1)})", fontsize="medium"
        )
        axes.set_xlabel("structures")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("barrier lost by the subspace (%)")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize="small")
    save(figure, "structures.png")


def of(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The systems that have data."""
    for name in names:
        data = read(name)
        if data:
            yield name, data


def read(name: str) -> dict[str, Any]:
    """The data of a system so far."""
    file = DOCS / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def write(name: str, data: dict[str, Any]) -> None:
    """Write the data of a system."""
    DOCS.mkdir(parents=True, exist_ok=True)
    write_text(DOCS / f"{name}.json", json.dumps(data))


def save(figure: Figure, name: str) -> None:
    """Write a figure beside the data."""
    with replacing(DOCS / name) as temporary:
        figure.savefig(temporary, dpi=110)


def rounded(values: Any, digits: int = 4) -> list[float]:
    """A list of rounded floats."""
    return [round(float(value), digits) for value in values]


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "paths", type=Path, nargs="?", help="folder of systems.py; none: only print"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--variants", action="store_true", help="also run what was tried")
    arguments = parser.parse_args()
    names = arguments.names or list(CASES)
    for name in names if arguments.paths else ():
        if name not in CASES:
            parser.error(f"{name}: the systems are {', '.join(CASES)}")
        began = time.monotonic()
        path = load_path(arguments.paths / f"{name}.xyz")
        run_table(name, path)
        run_counts(name, path)
        if arguments.variants:
            run_variants(name, path)
        peak_GB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{name}: {time.monotonic() - began:.0f} s, {peak_GB:.1f} GB at most so far")
    print_table(list(CASES))
    print_variants(list(CASES))
    draw(list(CASES))


if __name__ == "__main__":
    main()
