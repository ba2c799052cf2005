"""TORCH_CV in a real PLUMED: against torch itself, AUTOENCODER, and numerical derivatives."""

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plumed
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plumed_cv.cv import ACTIVATIONS, CollectiveVariable, linear, random_model
from plumed_cv.kernel import Plumed
from plumed_cv.torchscript import plumed_line, write_torchscript
from tests.plumed.test_autoencoder import (
    NO_CELL,
    TRICLINIC,
    assert_derivatives_of_the_bias,
    configurations,
    sentence,
    step,
)

MakePlumed = Callable[..., Any]
Array = NDArray[np.float64]

ROOT = Path(__file__).parents[2]


class Distance(nn.Module):
    """The distance of the first two atoms by the minimum image, in a cell of any shape."""

    def forward(self, positions: Tensor, cell: Tensor) -> Tensor:
        step = positions[1] - positions[0]
        images = torch.round(step.detach() @ torch.linalg.inv(cell.detach()))
        return (step - images @ cell).square().sum().sqrt()


class Gyration(nn.Module):
    """Mean square distances from the centre and from the first atom: two numbers, no cell."""

    def forward(self, positions: Tensor) -> Tensor:
        centred = positions - positions.mean(dim=0)
        first = positions - positions[0]
        return torch.stack([(centred**2).sum(), (first**2).sum()]) / positions.shape[0]


class Logarithm(nn.Module):
    def forward(self, arguments: Tensor) -> Tensor:
        return torch.log(arguments)


class Root(nn.Module):
    def forward(self, arguments: Tensor) -> Tensor:
        return torch.sqrt(arguments - arguments.detach())


class Detached(nn.Module):
    def forward(self, arguments: Tensor) -> Tensor:
        return arguments.detach().sum()


class TwoTensors(nn.Module):
    def forward(self, arguments: Tensor) -> tuple[Tensor, Tensor]:
        return arguments, arguments


class WrongGradient(nn.Module):
    def forward(self, arguments: Tensor) -> Tensor:
        return arguments.sum()

    @torch.jit.export
    def value_and_gradient(self, arguments: Tensor) -> tuple[Tensor, Tensor]:
        return arguments.sum(), arguments[0, :1]


def save(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module.eval()).save(str(path))
    return path


def network(n_inputs: int, n_outputs: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(4)
    layers = nn.Sequential(nn.Linear(n_inputs, 8), nn.Tanh(), nn.Linear(8, n_outputs))
    return layers.to(dtype)


FOUR_ATOMS = np.array([[0.0, 0.0, 0.0], [1.4, 0.1, 0.2], [2.0, 1.4, -0.3], [3.1, 1.2, 0.9]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("action", ["TORCH_CV MODEL", "TORCH_CV FILE", "PYTORCH_MODEL FILE"])
def test_of_arguments(
    make_plumed: MakePlumed, torch_plugin: Path, tmp_path: Path, dtype: torch.dtype, action: str
) -> None:
    module = network(3, 2, dtype)
    save(module, tmp_path / "model.pt")
    handle = make_plumed(
        4,
        f"LOAD FILE={torch_plugin}\n"
        "d: DISTANCE ATOMS=1,2\na: ANGLE ATOMS=1,2,3\nt: TORSION ATOMS=1,2,3,4\n"
        f"cv: {action}={tmp_path}/model.pt ARG=d,a,t\n"
        f"PRINT ARG=d,a,t,cv.node-0,cv.node-1 FILE={tmp_path}/colvar FMT=%.17g\n"
        f"DUMPDERIVATIVES ARG=cv.node-0,cv.node-1 FILE={tmp_path}/derivatives FMT=%.17g",
    )
    step(handle, 0, FOUR_ATOMS, NO_CELL)
    handle.finalize()
    row = np.loadtxt(tmp_path / "colvar")[1:]
    x = torch.tensor(row[None, :3], dtype=dtype)
    jacobian = torch.autograd.functional.jacobian(module, x).numpy()[0, :, 0]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    np.testing.assert_allclose(row[3:], module(x).detach().numpy()[0], rtol=tolerance)
    got = np.loadtxt(tmp_path / "derivatives")[:, 2:].T
    np.testing.assert_allclose(got, jacobian, rtol=tolerance, atol=tolerance)


def test_default_file_and_traced_models(
    make_plumed: MakePlumed,
    torch_plugin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    module = network(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(module, torch.zeros(1, 1, dtype=torch.float64)).save("model.ptc")
    handle = make_plumed(
        2,
        f"LOAD FILE={torch_plugin}\nd: DISTANCE ATOMS=1,2\ncv: TORCH_CV ARG=d\n"
        "PRINT ARG=d,cv.node-0 FILE=colvar FMT=%.17g",
    )
    step(handle, 0, FOUR_ATOMS[:2], NO_CELL)
    handle.finalize()
    _, distance, value = np.loadtxt("colvar")
    expected = module(torch.tensor([[distance]], dtype=torch.float64)).item()
    assert value == pytest.approx(expected, rel=1e-14)


def test_forces_and_virial_by_way_of_arguments(
    make_plumed: MakePlumed, torch_plugin: Path, tmp_path: Path
) -> None:
    save(network(3, 2), tmp_path / "model.pt")
    handle = make_plumed(
        4,
        f"LOAD FILE={torch_plugin}\n"
        "d: DISTANCE ATOMS=1,4\na: ANGLE ATOMS=1,2,3\nt: TORSION ATOMS=1,2,3,4\n"
        f"cv: TORCH_CV MODEL={tmp_path}/model.pt ARG=d,a,t\n"
        "RESTRAINT ARG=cv.node-0,cv.node-1 AT=2.3,-1 KAPPA=2,1",
    )
    assert_derivatives_of_the_bias(handle, FOUR_ATOMS, TRICLINIC)


@pytest.mark.parametrize("units", ["UNITS LENGTH=A ENERGY=eV TIME=fs", "UNITS LENGTH=nm"])
def test_forces_and_virial_of_atoms_in_a_cell(
    make_plumed: MakePlumed, torch_plugin: Path, tmp_path: Path, units: str
) -> None:
    save(Distance(), tmp_path / "model.pt")
    positions = FOUR_ATOMS.copy()
    positions[1] += TRICLINIC[0] - 2 * TRICLINIC[2]
    lines = (
        f"LOAD FILE={torch_plugin}\nd: DISTANCE ATOMS=4,2\n"
        f"cv: TORCH_CV MODEL={tmp_path}/model.pt ATOMS=4,2\n"
        f"PRINT ARG=d,cv.node-0 FILE={tmp_path}/colvar FMT=%.17g\n"
        "RESTRAINT ARG=cv.node-0 AT=1.5 KAPPA=200"
    )
    handle = make_plumed(4, lines, units=units)
    assert_derivatives_of_the_bias(handle, positions, TRICLINIC)
    _, distance, value = np.loadtxt(tmp_path / "colvar")[0]
    per_angstrom = 0.1 if "nm" in units else 1.0
    assert value * per_angstrom == pytest.approx(distance, rel=1e-12)


def test_numerical_derivatives(make_plumed: MakePlumed, torch_plugin: Path, tmp_path: Path) -> None:
    save(Distance(), tmp_path / "distance.pt")
    save(network(2, 2), tmp_path / "network.pt")
    lines = f"LOAD FILE={torch_plugin}\nd: DISTANCE ATOMS=1,2\ne: DISTANCE ATOMS=3,4\n"
    for kind, model in [("ATOMS=4,2", "distance"), ("ARG=d,e", "network")]:
        for label, flag in [("a", ""), ("n", "NUMERICAL_DERIVATIVES")]:
            lines += f"{label}{model}: TORCH_CV MODEL={tmp_path}/{model}.pt {kind} {flag}\n"
        lines += (
            f"DUMPDERIVATIVES ARG=a{model}.node-0,n{model}.node-0 FILE={tmp_path}/{model} "
            "FMT=%.12g\n"
        )
    handle = make_plumed(4, lines)
    step(handle, 0, FOUR_ATOMS, TRICLINIC)
    handle.finalize()
    for model, count in [("distance", 15), ("network", 2)]:
        analytic, numerical = np.loadtxt(tmp_path / model)[:, 2:].T
        assert len(analytic) == count
        np.testing.assert_allclose(analytic, numerical, atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_molecules_are_made_whole(
    make_plumed: MakePlumed, torch_plugin: Path, tmp_path: Path, whole: bool
) -> None:
    """A model without cell, on a molecule that lies across a border."""
    save(Gyration(), tmp_path / "model.pt")
    positions = FOUR_ATOMS.copy()
    positions[2:] -= TRICLINIC[1]
    handle = make_plumed(
        4,
        f"LOAD FILE={torch_plugin}\n"
        f"cv: TORCH_CV MODEL={tmp_path}/model.pt ATOMS=1-4 {'' if whole else 'NOPBC'}\n"
        f"PRINT ARG=cv.* FILE={tmp_path}/colvar FMT=%.17g\n"
        "RESTRAINT ARG=cv.node-1 AT=2.0 KAPPA=1",
    )
    assert_derivatives_of_the_bias(handle, positions, TRICLINIC)
    expected = Gyration()(torch.tensor(FOUR_ATOMS if whole else positions)).numpy()
    np.testing.assert_allclose(np.loadtxt(tmp_path / "colvar")[0, 1:], expected, rtol=1e-12)


class Linear(nn.Module):
    """Products of the positions, in the type of a parameter."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=dtype) / 3)

    def forward(self, positions: Tensor) -> Tensor:
        return positions @ self.weight


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, True), (torch.float64, False)])
def test_the_model_chooses_the_number_type(
    make_plumed: MakePlumed, torch_plugin: Path, tmp_path: Path, dtype: torch.dtype, rounding: bool
) -> None:
    save(Linear(dtype), tmp_path / "model.pt")
    handle = make_plumed(
        1,
        f"LOAD FILE={torch_plugin}\ncv: TORCH_CV MODEL={tmp_path}/model.pt ATOMS=1\n"
        f"PRINT ARG=cv.node-0 FILE={tmp_path}/colvar FMT=%.17g",
    )
    step(handle, 0, np.full((1, 3), 1.0 + 1e-9), NO_CELL)
    handle.finalize()
    value = np.loadtxt(tmp_path / "colvar")[1]
    assert abs(value - (1.0 + 1e-9)) < (1e-6 if rounding else 1e-14)
    assert (abs(value - (1.0 + 1e-9)) > 1e-12) == rounding
    log = (tmp_path / "plumed.log").read_text()
    assert f"{'float32' if rounding else 'float64'} on cpu, with 1 outputs" in log
    assert "TorchScript file is a program" in log
    assert f"libtorch {torch.__version__.split('+')[0]}" in log


def without_own_gradient(source: Path, target: Path) -> None:
    """Copy a TorchScript file with `forward` alone."""

    class Forward(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, positions: Tensor, cell: Tensor) -> Tensor:
            value: Tensor = self.model(positions, cell)
            return value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded = torch.jit.load(str(source))
    save(Forward(loaded), target)


GPU = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a GPU of NVIDIA's and a torch with CUDA (https://pytorch.org)",
)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("frame", ["no cell", "triclinic", "aligned"])
def test_agrees_with_autoencoder(
    make_plumed: MakePlumed,
    torch_plugin: Path,
    tmp_path: Path,
    activation: str,
    frame: str,
    device: str,
) -> None:
    """An exported model, by its own gradient and by autograd: values, forces and virial."""
    rng = np.random.default_rng([*activation.encode()])
    cell = TRICLINIC if frame == "triclinic" else NO_CELL
    alignment = "optimal" if frame == "aligned" else "none"
    cv = random_model(rng, 13, 7, [6, 9], 2, activation, cell, alignment)
    cv.save(tmp_path / "cv.safetensors")
    write_torchscript(cv, tmp_path / "own.pt")
    without_own_gradient(tmp_path / "own.pt", tmp_path / "autograd.pt")
    structures = configurations(cv, rng)
    results = []
    for number, action in enumerate(
        (
            f"AUTOENCODER MODEL={tmp_path}/cv.safetensors",
            f"TORCH_CV MODEL={tmp_path}/own.pt ATOMS=1-13 DEVICE={device}",
            f"TORCH_CV MODEL={tmp_path}/autograd.pt ATOMS=1-13 DEVICE={device}",
        )
    ):
        handle = make_plumed(
            13,
            f"LOAD FILE={torch_plugin}\ncv: {action}\n"
            f"PRINT ARG=cv.node-0,cv.node-1 FILE={tmp_path}/colvar{number} FMT=%.17g\n"
            "RESTRAINT ARG=cv.node-0,cv.node-1 AT=0,0 SLOPE=1,-2 KAPPA=0,0",
            log=f"log{number}",
        )
        pushed = [step(handle, k, *structure) for k, structure in enumerate(structures)]
        handle.finalize()
        values = np.loadtxt(tmp_path / f"colvar{number}")[:, 1:]
        results.append((values, *map(np.array, zip(*pushed, strict=True))))
    assert "own value_and_gradient" in (tmp_path / "log1").read_text()
    assert "by autograd" in (tmp_path / "log2").read_text()
    for other in results[1:]:
        for expected, got in zip(results[0], other, strict=True):
            size = abs(expected).max()
            assert size > 1e-3
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12 * size)


def test_linear_model_and_float32(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    initial = rng.uniform(size=(20, 3)) @ TRICLINIC
    cv = linear(["Fe"] * 20, TRICLINIC, initial, initial + rng.normal(scale=0.2, size=(20, 3)))
    write_torchscript(cv, tmp_path / "cv.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.load(str(tmp_path / "cv.pt"))
    ((positions, cell),) = configurations(cv, rng, 1)
    for dtype, tolerance in [(torch.float64, 1e-11), (torch.float32, 1e-4)]:
        model.to(dtype)
        arguments = torch.tensor(positions, dtype=dtype), torch.tensor(cell, dtype=dtype)
        value, gradient, _ = model.value_and_gradient(*arguments)
        assert value.dtype == dtype
        np.testing.assert_allclose(value.detach(), cv.value(positions, cell), rtol=tolerance)
        np.testing.assert_allclose(model(*arguments).detach(), value.detach(), rtol=tolerance)
        expected = cv.gradient(positions, cell)
        np.testing.assert_allclose(gradient.detach(), expected, rtol=tolerance, atol=tolerance)


def test_export_by_the_command_line(
    make_plumed: MakePlumed, torch_plugin: Path, tmp_path: Path
) -> None:
    cv = random_model(np.random.default_rng(3), 6, 4, [5], 1, "tanh", TRICLINIC)
    cv.save(tmp_path / "cv.safetensors")
    command = [sys.executable, "-c", "from plumed_cv.cli import main; main()", "export"]
    arguments = ["cv.safetensors", "cv.pt"]
    refused = subprocess.run(
        [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "--torch" in refused.stderr
    done = subprocess.run(
        [*command, *arguments, "--torch"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    line = done.stdout.split("as  ")[1].strip()
    assert line == "cv: TORCH_CV MODEL=cv.pt ATOMS=1-6"
    line = line.replace("cv.pt", str(tmp_path / "cv.pt"))
    handle = make_plumed(
        6, f"LOAD FILE={torch_plugin}\n{line}\nPRINT ARG=cv.* FILE={tmp_path}/colvar FMT=%.17g"
    )
    ((positions, cell),) = configurations(cv, np.random.default_rng(1), 1)
    step(handle, 0, positions, cell)
    handle.finalize()
    value = np.loadtxt(tmp_path / "colvar")[1]
    assert value == pytest.approx(cv.value(positions, cell)[0], rel=1e-12)


def test_lists_of_atoms() -> None:
    cv = random_model(np.random.default_rng(3), 6, 4, [5])
    serials = np.array([1, 2, 3, 9, 7, 8])
    renumbered = CollectiveVariable(**{**vars(cv), "serials": serials})
    assert plumed_line(renumbered, "a.pt") == "cv: TORCH_CV MODEL=a.pt ATOMS=1-3,9,7-8"


# A step of two PLUMEDs, one after the other, in a process of its own; prints the forces.
PROCESS = """
import sys
from pathlib import Path
order, kernel, plugin, model = sys.argv[1:]
if order == "torch first":
    import torch
    torch.set_num_threads(3)
    threads = torch.__config__.parallel_info()
import numpy as np, plumed

def run():
    handle = plumed.Plumed(kernel=kernel)
    handle.cmd("setNatoms", 4)
    handle.cmd("setLogFile", "/dev/null")
    handle.cmd("init")
    for line in (f"LOAD FILE={plugin}", "d: DISTANCE ATOMS=1,2", "e: DISTANCE ATOMS=3,4",
                 f"cv: TORCH_CV MODEL={model} ARG=d,e", "RESTRAINT ARG=cv.node-0 AT=1 KAPPA=9"):
        handle.cmd("readInputLine", line)
    arrays = {"Box": np.zeros((3, 3)), "Positions": np.arange(12.0).reshape(4, 3) ** 0.5,
              "Masses": np.ones(4), "Forces": np.zeros((4, 3)), "Virial": np.zeros((3, 3))}
    handle.cmd("setStep", 0)
    for name, array in arrays.items():
        handle.cmd("set" + name, array)
    handle.cmd("calc")
    handle.finalize()
    return arrays["Forces"]

first = run()
assert ("torch" in sys.modules) == (order == "torch first")
if order == "torch last":
    import torch
    x = torch.ones(3, requires_grad=True)
    (x ** 2).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]
assert (run() == first).all()
if order == "torch first":
    assert torch.__config__.parallel_info() == threads
print(first.tolist())
"""


def test_processes_with_and_without_pythons_torch(
    plumed_installation: Plumed, torch_plugin: Path, tmp_path: Path
) -> None:
    """Autograd works whoever holds the interpreter lock, and a second PLUMED after the first."""
    save(network(2, 1), tmp_path / "model.pt")
    arguments = [str(plumed_installation.kernel), str(torch_plugin), str(tmp_path / "model.pt")]
    shown = []
    for order in ("no torch", "torch first", "torch last"):
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, order, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (order, done.stderr)
        shown.append(done.stdout)
    assert shown[0] == shown[1] == shown[2]
    assert "nan" not in shown[0]


# Evaluates a large model; prints how many threads that started, and the number of each OpenMP.
THREADS = """
import ctypes, os, sys
import numpy as np, plumed
kernel, plugin, model, threads = sys.argv[1:]
handle = plumed.Plumed(kernel=kernel)
handle.cmd("setNatoms", 1)
handle.cmd("setLogFile", "/dev/null")
handle.cmd("init")
handle.cmd("readInputLine", f"LOAD FILE={plugin}")
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split("/")[-1]}
runtimes = [ctypes.CDLL(library) for library in libraries]
for runtime in runtimes:
    runtime.omp_set_num_threads(5)
before = len(os.listdir("/proc/self/task"))
handle.cmd("readInputLine", f"cv: TORCH_CV MODEL={model} ATOMS=1 THREADS={threads}")
print(len(os.listdir("/proc/self/task")) - before, *{r.omp_get_max_threads() for r in runtimes})
"""


class Large(nn.Module):
    """Elementwise work on so many numbers that torch would use all its threads."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.tanh(positions.sum() * torch.ones(1_000_000, dtype=positions.dtype)).mean()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux shows")
def test_threads(plumed_installation: Plumed, torch_plugin: Path, tmp_path: Path) -> None:
    """One thread by default, and the engine's own number of threads stays as it was."""
    save(Large(), tmp_path / "model.pt")
    for threads in (1, 3):
        done = subprocess.run(
            [
                *(sys.executable, "-c", THREADS, str(plumed_installation.kernel)),
                *(str(torch_plugin), str(tmp_path / "model.pt"), str(threads)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        # The model is evaluated once when it is read.
        started, *numbers = map(int, done.stdout.split())
        assert numbers == [5]
        assert started == 0 if threads == 1 else started >= 2


def test_the_other_plugin_needs_no_torch(plugin: Path, plumed_installation: Plumed) -> None:
    if not Path("/proc/self/maps").is_file():
        pytest.skip("looks at the loaded libraries as Linux shows them")
    code = (
        "import sys, plumed; h = plumed.Plumed(kernel=sys.argv[1]); h.cmd('setNatoms', 1); "
        "h.cmd('setLogFile', '/dev/null'); h.cmd('init'); "
        "h.cmd('readInputLine', 'LOAD FILE=' + sys.argv[2]); print(open('/proc/self/maps').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(plumed_installation.kernel), str(plugin)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert plugin.name in done.stdout
    assert not re.search(r"libtorch|libc10", done.stdout)


MISTAKES = {
    "missing file": ("MODEL=none.pt ARG=d", r"none\.pt: there is no such file"),
    "text": ("MODEL=text.pt ARG=d", r"text\.pt: this is no TorchScript file"),
    "state dictionary": ("MODEL=state.pt ARG=d", r"state\.pt: this is no TorchScript file"),
    "arguments": (
        "MODEL=three.pt ARG=d",
        r"three\.pt: the model does not take 1 argument \(.*shapes.*\); give those it was made",
    ),
    "atoms": ("MODEL=three.pt ATOMS=1", r"three\.pt: the model does not take 1 atom \("),
    "nothing": ("MODEL=three.pt", r"give either the values \(ARG\) or the atoms \(ATOMS\)"),
    "both": ("MODEL=one.pt ARG=d ATOMS=1", r"give either the values"),
    "twice": ("MODEL=one.pt FILE=one.pt ARG=d", r"MODEL and FILE mean the same"),
    "half": ("MODEL=half.pt ARG=d", r"half\.pt: its numbers are of type Half and must be float32"),
    "of atoms": ("MODEL=distance.pt ARG=d", r"several tensors, so it is a model of atoms"),
    "tuple": ("MODEL=tuple.pt ARG=d", r"forward returns .*Tensor.* and not a tensor"),
    "detached": ("MODEL=detached.pt ARG=d", r"the output has no derivatives"),
    "own gradient": ("MODEL=wrong.pt ARG=d,e", r"1 values and 1 derivatives for 2 arguments"),
    "device": ("MODEL=one.pt ARG=d DEVICE=tpu", r"DEVICE=tpu: there are cpu and cuda"),
    "threads": ("MODEL=one.pt ARG=d THREADS=0", r"THREADS=0: give at least 1"),
    "nan": ("MODEL=log.pt ARG=negative", r"log\.pt: node-0 is -?nan for -1\.4"),
    "derivative": ("MODEL=root.pt ARG=d", r"root\.pt: a derivative is not a finite number for 1"),
}
if not torch.cuda.is_available():
    MISTAKES["cuda"] = ("MODEL=one.pt ARG=d DEVICE=cuda", r"DEVICE=cuda: .* finds no CUDA device")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(
    make_plumed: MakePlumed,
    torch_plugin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pt").write_text("not a model\n")
    torch.save(network(1, 1).state_dict(), "state.pt")
    for name, module in {
        "one": network(1, 1),
        "three": network(4, 1),
        "half": network(1, 1, torch.float16),
        "distance": Distance(),
        "tuple": TwoTensors(),
        "detached": Detached(),
        "wrong": WrongGradient(),
        "log": Logarithm(),
        "root": Root(),
    }.items():
        save(module, Path(f"{name}.pt"))
    keywords, message = MISTAKES[mistake]
    lines = (
        f"LOAD FILE={torch_plugin}\nd: DISTANCE ATOMS=1,2\ne: DISTANCE ATOMS=2,3\n"
        f"negative: CUSTOM ARG=d FUNC=-x PERIODIC=NO\n"
        f"cv: TORCH_CV {keywords}\nRESTRAINT ARG=cv.node-0 AT=0 KAPPA=1"
    )

    def run() -> None:
        step(make_plumed(4, lines), 0, FOUR_ATOMS, NO_CELL)

    with pytest.raises(plumed.PlumedError) as caught:
        run()
    assert re.search(message, sentence(caught.value))
