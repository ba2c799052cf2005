"""The Ramachandran free energy of alanine dipeptide in vacuum, by BABF on two CVs and by OPES.

    python -m python.ramachandran RUNS       # run (or continue) in this folder, then print
    python -m python.ramachandran            # print from the committed data

GROMACS 2025 or newer with its PLUMED interface (`gmx` on PATH or in the variable GMX) does both
runs: 300 K, 2 fs, the same topology, 60 by 60 bins on phi and psi. BABF runs in segments, each of
which continues the previous one; the sums of the segments are the blocks for its errors. OPES_METAD
does one run and is weighted by exp(bias/kT); its blocks are parts of COLVAR. The first fifth of
each run is omitted. Results are written to docs/babf-2d-alanine.npz, with a picture in the same
folder. The runs take half an hour on one busy core.
"""

import argparse
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import plumed_cv
from plumed_cv import freeenergy
from plumed_cv.common.files import replacing, write_text
from plumed_cv.engines.gromacs import find_gromacs
from plumed_cv.freeenergy.jackknife import jackknife
from plumed_cv.freeenergy.sums import weights_of
from plumed_cv.setup.kernel import find_plumed
from plumed_cv.setup.plugin import build_plugin

Array = NDArray[np.float64]

DATA = Path(__file__).resolve().parent.parent / "docs" / "babf-2d-alanine.npz"
PICTURE = DATA.with_suffix(".png")
SEEDS = (1, 2)
SEGMENTS = 10  # of each run
STEPS = 400_000  # of each segment
SKIPPED = 2  # segments at the beginning of each run
BINS = 60
TEMPERATURE_K = 300.0
KT = 0.0083144626 * TEMPERATURE_K  # kJ/mol
KJ_MOL_PER_EV = 96.48533
HIGHEST = 10.0  # kT: what is compared
RIGHT = (0.0, np.radians(125.0))  # phi of C7ax and its surroundings; all else is the left basin

ANGLES = "phi: TORSION ATOMS=5,7,9,15\npsi: TORSION ATOMS=7,9,15,17\n"
BIASES = {
    "babf": "LOAD FILE={plugin}\n" + ANGLES + "b: BABF ARG=phi,psi TEMP=300 GRID_MIN=-pi,-pi "
    "GRID_MAX=pi,pi GRID_BIN={bins},{bins} RAMP=400000 STATE_WFILE=babf.state{restart}\n",
    "opes": ANGLES + "o: OPES_METAD ARG=phi,psi TEMP=300 PACE=500 BARRIER=50\n"
    "PRINT ARG=phi,psi,o.bias STRIDE=50 FILE=COLVAR\n",
}
MDP = """
integrator = sd
dt = 0.002
nsteps = {steps}
tc-grps = System
tau-t = 0.5
ref-t = 300
ld-seed = {seed}
gen-vel = {start}
gen-temp = 300
gen-seed = {seed}
continuation = {going_on}
nstxout = 0
nstlog = {steps}
nstenergy = 0
nstcalcenergy = 100
"""


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs")
    runs = parser.parse_args().runs
    if runs is not None:
        build(runs)
        for seed in SEEDS:
            for segment in range(SEGMENTS):
                md(runs, "babf", seed, segment, STEPS)
            md(runs, "opes", seed, 0, SEGMENTS * STEPS)
        collect(runs)
    with np.load(DATA) as data:
        report(dict(data))


def build(runs: Path) -> None:
    """Write the topology, the structure and the run parameters of the example."""
    runs.mkdir(exist_ok=True, parents=True)
    example = resources.files(plumed_cv) / "examples" / "alanine"
    if not (runs / "topol.top").exists():
        with resources.as_file(example / "build.py") as script:
            subprocess.run([sys.executable, str(script)], cwd=runs, check=True)
    write_text(runs / "example.mdp", (example / "md.mdp").read_text())


def folder_of(runs: Path, bias: str, seed: int, segment: int) -> Path:
    """Return the folder of a piece of a run."""
    return runs / f"{bias}-{seed}" / f"{segment:02d}"


def md(runs: Path, bias: str, seed: int, segment: int, steps: int) -> None:
    """Run a piece unless it exists."""
    folder = folder_of(runs, bias, seed, segment)
    if (folder / "done").exists():
        return
    folder.mkdir(exist_ok=True, parents=True)
    before = folder_of(runs, bias, seed, segment - 1)
    kernel, command = find_plumed(), [*find_gromacs().command, "-quiet", "-nobackup"]
    start = segment == 0
    parameters = MDP.format(
        steps=steps,
        seed=1000 * seed + segment + 1,
        start="yes" if start else "no",
        going_on="no" if start else "yes",
    )
    write_text(folder / "md.mdp", (runs / "example.mdp").read_text() + parameters)
    text = BIASES[bias].format(
        plugin=build_plugin(kernel) if bias == "babf" else "",
        bins=BINS,
        restart="" if start else f" STATE_RFILE={(before / 'babf.state').absolute()}",
    )
    write_text(folder / "plumed.dat", text)
    structure = runs / "conf.gro" if start else before / "md.gro"
    kernel.activate()
    velocities = [] if start else ["-t", str((before / "md.cpt").absolute())]
    for words in (
        [
            *("grompp", "-f", "md.mdp", "-c", str(structure.absolute())),
            *("-p", str((runs / "topol.top").absolute()), "-o", "md.tpr", *velocities),
        ],
        [
            "mdrun",
            "-deffnm",
            "md",
            "-plumed",
            "plumed.dat",
            *["-ntmpi", "1", "-ntomp", "1", "-pin", "off"],
        ],
    ):
        with (folder / "log").open("w") as log:
            subprocess.run(
                [*command, *words], cwd=folder, check=True, stdout=log, stderr=subprocess.STDOUT
            )
    (folder / "done").touch()


def collect(runs: Path) -> None:
    """Make surfaces of both runs and write them."""
    blocks: list[freeenergy.State] = []
    series: list[Array] = []
    for seed in SEEDS:
        states = [
            freeenergy.read_state(folder_of(runs, "babf", seed, k) / "babf.state")
            for k in range(SEGMENTS)
        ]
        blocks += freeenergy.split_into_blocks(states)[SKIPPED:]
        colvar = np.loadtxt(folder_of(runs, "opes", seed, 0) / "COLVAR")[:, 1:]
        series += np.array_split(colvar, SEGMENTS)[SKIPPED:]
    surface = freeenergy.estimate_surface(blocks)
    axis = surface.axes[0]
    top = max(float(part[:, 2].max()) for part in series)
    histograms = [histogram(axis, part, top) for part in series]
    A_opes, opes_error = jackknife(histograms, [1.0] * len(histograms), free_energy_of)
    A_babf = surface.A * KJ_MOL_PER_EV
    delta, delta_error = jackknife(
        blocks, weights_of(blocks), lambda state: difference_of_babf(state, axis)
    )
    delta_opes, delta_opes_error = jackknife(
        histograms, [1.0] * len(histograms), lambda total: difference(total, axis)
    )
    with replacing(DATA) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            nodes=axis.nodes,
            babf=A_babf,
            babf_error=surface.A_error * KJ_MOL_PER_EV,
            opes=A_opes,
            opes_error=opes_error,
            difference=np.array([delta, delta_error, delta_opes, delta_opes_error]).reshape(2, 2),
            ns=np.array(len(SEEDS) * SEGMENTS * STEPS * 2e-6),
        )


def histogram(axis: freeenergy.Grid, part: Array, top: float) -> Array:
    """Return the weights exp(bias/kT) in the bins, (n,)."""
    phi, psi = axis.bin(part[:, 0]), axis.bin(part[:, 1])
    weights = np.exp((part[:, 2] - top) / KT)
    return np.asarray(np.bincount(psi * axis.bins + phi, weights, minlength=axis.bins**2), float)


def free_energy_of(histogram: Array) -> Array:
    """Return -kT ln of the share of each bin, kJ/mol."""
    with np.errstate(divide="ignore"):
        A = -KT * np.log(histogram / histogram.sum())
    A[np.isinf(A)] = np.nan
    return np.asarray(A)


def difference(density: Array, axis: freeenergy.Grid) -> Array:
    """Return the free energy of the right basin over that of the left one, (1,), kJ/mol."""
    phi = np.tile(axis.nodes, axis.bins)
    right = (phi > RIGHT[0]) & (phi < RIGHT[1])
    return np.array([-KT * np.log(density[right].sum() / density[~right].sum())])


def difference_of_babf(state: freeenergy.State, axis: freeenergy.Grid) -> Array:
    """Return the same of a surface by BABF."""
    A = freeenergy.estimate_surface([state]).A * KJ_MOL_PER_EV
    return difference(np.nan_to_num(np.exp(-(A - np.nanmin(A)) / KT)), axis)


def report(data: dict[str, Array]) -> None:
    """Print the comparison and draw both."""
    A, B = data["babf"], data["opes"]
    error = np.hypot(data["babf_error"], data["opes_error"])
    B = B - np.nanmin(B)
    low = (A < HIGHEST * KT) & (B < HIGHEST * KT) & (error > 0)
    weight = 1 / error[low] ** 2
    off = (A - B)[low] - np.sum(weight * (A - B)[low]) / weight.sum()
    z = off / error[low]
    (delta, delta_error), (delta_opes, delta_opes_error) = data["difference"]
    print(f"{data['ns']:g} ns of each; {low.sum()} bins below {HIGHEST:g} kT")
    print(f"BABF - OPES: {np.sqrt(np.mean(off**2)):.2f} kJ/mol RMS, {np.abs(off).max():.2f} most")
    print(
        f"standard error of a bin: BABF {np.median(data['babf_error'][low]):.2f} kJ/mol, ", end=""
    )
    print(f"OPES {np.median(data['opes_error'][low]):.2f} (medians)")
    print(f"within 1 error {np.mean(np.abs(z) < 1):.0%}, within 2 {np.mean(np.abs(z) < 2):.0%}")
    print(f"F(right) - F(left): BABF {delta:.2f} +- {delta_error:.2f} kJ/mol, ", end="")
    print(f"OPES {delta_opes:.2f} +- {delta_opes_error:.2f}")
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    levels = np.arange(0.0, 61.0, 5.0)
    degrees = np.degrees(data["nodes"])
    for axes, (name, values) in zip(
        figure.subplots(1, 2, sharey=True), (("BABF", A), ("OPES_METAD", B)), strict=True
    ):
        plane = np.ma.masked_invalid(values.reshape(len(degrees), len(degrees)))
        drawn = axes.contourf(degrees, degrees, plane - plane.min(), levels, cmap="viridis")
        axes.set_title(name)
        axes.set_xlabel("phi (degrees)")
    figure.axes[0].set_ylabel("psi (degrees)")
    figure.colorbar(drawn, ax=figure.axes, label="free energy (kJ/mol)")
    with replacing(PICTURE) as temporary:
        figure.savefig(temporary, dpi=100)
    print(f"Picture: {PICTURE}")


if __name__ == "__main__":
    main()
