"""Cost of a step with a model as AUTOENCODER, as TORCH_CV on atoms, and on POSITION arguments.

    python python/benchmarks/torch_cv.py [--quick] [--output docs/torch-cv.json]

The model is an autoencoder CV of bcc iron with random weights. The last row corresponds to
PYTORCH_MODEL, which takes arguments in float32: one POSITION for each atom. The action is TORCH_CV
under that name, which does the same as PYTORCH_MODEL in this case.

Every input biases the CV by a RESTRAINT of constant force. A step is one of PLUMED alone, in a loop
without engine and Python (step_cost.cpp), on one thread, in processor time of that thread. The
script also prints the CV's own part of the time of a step. For this it subtracts the time of a step
in which an action that does nothing requests the same atoms and PLUMED returns forces on them.
Short runs are done in turn. The script prints medians with half the distance of the quartiles (+-),
and the difference of the shortest times ("best"), which other processes on the machine disturb
least. All inputs must give the same value of the CV.
"""

import argparse
import json
import platform
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.cv import CollectiveVariable
from plumed_cv.cv.torchscript import write_torchscript
from plumed_cv.setup.kernel import find_plumed
from plumed_cv.setup.plugin import build_plugin
from python.benchmarks.step_cost import Array, Loop, iron, middle, model_of

SIZES = {127: 24, 1026: 20}  # atoms: principal components, and width of the two hidden layers
NOTHING = "nothing"


class OfArguments(torch.nn.Module):
    """A model of positions and cell as one of 3N arguments, in a constant cell."""

    def __init__(self, model: Any, cell: Array) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("cell", torch.tensor(cell))

    def forward(self, arguments: Tensor) -> Tensor:
        """Take shape (1, 3N) and return (1, d)."""
        value: Tensor = self.model(arguments.reshape(-1, 3), self.cell)
        return value.reshape(1, -1)


class WithoutGradient(torch.nn.Module):
    """A model without its method value_and_gradient."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, positions: Tensor, cell: Tensor) -> Tensor:
        """Return the value."""
        value: Tensor = self.model(positions, cell)
        return value


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    plumed = find_plumed()
    plumed.activate()
    results: dict[str, Any] = {
        "processor": processor(),
        "plumed": f"{plumed.version}, {'' if plumed.optimised else 'not '}optimised",
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loop = Loop(plumed, folder)
        results["sizes"] = [
            measure(loop, folder, n_atoms, 3 if arguments.quick else 21) for n_atoms in SIZES
        ]
    print(f"{results['processor']}; PLUMED {results['plumed']}; torch {results['torch']}")
    for size in results["sizes"]:
        print_size(size)
    if arguments.output:
        write_text(arguments.output, json.dumps(results, indent=1) + "\n")


def measure(loop: Loop, folder: Path, n_atoms: int, repetitions: int) -> dict[str, Any]:
    """Return microseconds a step for each way to evaluate the model."""
    atoms = iron(n_atoms)
    cell = np.ascontiguousarray(atoms.cell.array)
    model = model_of(atoms, SIZES[n_atoms])
    inputs = write_inputs(model, cell, folder)
    rng = np.random.default_rng(1)
    frames = atoms.positions + rng.normal(scale=0.05, size=(16, n_atoms, 3))
    handles = {}
    for name, text in inputs.items():
        (folder / "plumed.dat").write_text(text)
        handles[name] = loop.open(folder / "plumed.dat", n_atoms)
    lengths = {name: max(4, 40_000 // n_atoms) for name in inputs}
    for name in inputs:
        if "POSITION" in name:
            lengths[name] = max(4, lengths[name] // 40)
    times: dict[str, list[float]] = {name: [] for name in inputs}
    for _ in range(repetitions + 1):
        for name, handle in handles.items():
            times[name].append(loop.run(handle, frames, cell, lengths[name]))
    for handle in handles.values():
        loop.close(handle)
    check_values(folder, inputs, model, frames, cell)
    array = {name: np.array(values[1:]) for name, values in times.items()}  # without the first
    reference = next(name for name in inputs if name.startswith("AUTOENCODER"))
    rows = []
    for name, values in array.items():
        row: dict[str, Any] = {"name": name}
        for key, numbers in {
            "step": values,
            "own": values - array[NOTHING],
            "ratio": (values - array[NOTHING]) / (array[reference] - array[NOTHING]),
        }.items():
            row[key], row[f"{key}_spread"] = middle(numbers)
        row["own_best"] = float(values.min() - array[NOTHING].min())
        rows.append(row)
    return {"atoms": n_atoms, "components": SIZES[n_atoms], "rows": rows}


def write_inputs(model: CollectiveVariable, cell: Array, folder: Path) -> dict[str, str]:
    """Write the model in its forms; return the inputs."""
    n = model.n_atoms
    stem = folder / str(n)
    model.save(stem.with_suffix(".safetensors"))
    write_torchscript(model, stem.with_suffix(".own.pt"))
    script = torch.jit.load(str(stem.with_suffix(".own.pt")))
    torch.jit.script(WithoutGradient(script)).save(str(stem.with_suffix(".autograd.pt")))
    single = torch.jit.script(OfArguments(script, cell).float())
    single.save(str(stem.with_suffix(".arguments.pt")))

    head = "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
    bias = (
        "RESTRAINT ARG={} AT=0 KAPPA=0 SLOPE=0.1\nPRINT ARG={} STRIDE=1000000 FILE={} FMT=%.12g\n"
    )
    positions = "".join(f"p{i}: POSITION ATOM={i} NOPBC\n" for i in range(1, n + 1))
    components = ",".join(f"p{i}.{axis}" for i in range(1, n + 1) for axis in "xyz")
    ours = f"LOAD FILE={build_plugin()}\ncv: AUTOENCODER MODEL={stem}.safetensors\n"
    torchs = f"LOAD FILE={build_plugin(torch=True)}\n"
    lines = {
        NOTHING: f"n: NOTHING ATOMS=1-{n}\n",
        "AUTOENCODER": ours,
        "TORCH_CV on atoms, its own gradient": torchs
        + f"cv: TORCH_CV MODEL={stem}.own.pt ATOMS=1-{n}\n",
        "TORCH_CV on atoms, autograd": torchs
        + f"cv: TORCH_CV MODEL={stem}.autograd.pt ATOMS=1-{n}\n",
        "PYTORCH_MODEL on POSITION, float32": torchs
        + positions
        + f"cv: PYTORCH_MODEL FILE={stem}.arguments.pt ARG={components}\n",
    }
    inputs = {}
    for k, (name, text) in enumerate(lines.items()):
        value = "n" if name == NOTHING else "cv.node-0"
        inputs[name] = head + text + bias.format(value, value, colvar(folder, n, k))
    return inputs


def colvar(folder: Path, n_atoms: int, number: int) -> Path:
    """Return the file in which an input prints its CV."""
    return folder / f"colvar-{n_atoms}-{number}"


def check_values(
    folder: Path, inputs: dict[str, str], model: CollectiveVariable, frames: Array, cell: Array
) -> None:
    """Refuse timings of inputs that give different results."""
    expected = float(model.value(frames[0], cell)[0])
    for k, name in enumerate(inputs):
        if name == NOTHING:
            continue
        got = float(np.loadtxt(colvar(folder, model.n_atoms, k), ndmin=2)[0, 1])
        tolerance = 1e-4 if "float32" in name else 1e-9
        if not abs(got - expected) < tolerance:
            raise RuntimeError(f"{name} gives {got} and not {expected}")


def processor() -> str:
    """Return the processor's name from /proc/cpuinfo."""
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def print_size(size: dict[str, Any]) -> None:
    """Print the table of one number of atoms, in Markdown."""
    print(f"\n{size['atoms']} atoms, D = {size['components']}\n")
    print("| CV | us a step | of it the CV's own | best | times AUTOENCODER's |")
    print("|---|---:|---:|---:|---:|")
    for row in size["rows"]:
        cells = [row["name"], f"{row['step']:.1f} +- {row['step_spread']:.1f}"]
        if row["name"] == NOTHING:
            cells += ["", "", ""]
        else:
            cells.append(f"{row['own']:.1f} +- {row['own_spread']:.1f}")
            cells.append(f"{row['own_best']:.1f}")
            cells.append(f"{row['ratio']:.1f} +- {row['ratio_spread']:.1f}")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
