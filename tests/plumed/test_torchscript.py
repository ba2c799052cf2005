"""Exported TorchScript models in PLUMED: TORCH_CV against AUTOENCODER."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from plumed_cv.cv import ACTIVATIONS, CollectiveVariable, linear, random_model
from plumed_cv.cv.torchscript import plumed_line, write_torchscript
from python.benchmarks.torch_cv import WithoutGradient
from tests.conftest import MakePlumed
from tests.plumed.autoencoder import NO_CELL, TRICLINIC, configurations, step
from tests.plumed.torch_models import save


def without_own_gradient(source: Path, target: Path) -> None:
    """Copy a TorchScript file with `forward` alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded = torch.jit.load(str(source))
    save(WithoutGradient(loaded), target)


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
    line = done.stdout.split("use  ")[1].strip()
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
