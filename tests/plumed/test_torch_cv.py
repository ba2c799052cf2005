"""TORCH_CV in a real PLUMED: against torch itself, and numerical derivatives."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plumed_cv.setup.kernel import Plumed
from tests.conftest import MakePlumed
from tests.plumed.autoencoder import NO_CELL, TRICLINIC, assert_derivatives_of_the_bias, step
from tests.plumed.torch_models import FOUR_ATOMS, Distance, network, save


class Gyration(nn.Module):
    """Mean square distances from the centre and from the first atom: two numbers, no cell."""

    def forward(self, positions: Tensor) -> Tensor:
        centred = positions - positions.mean(dim=0)
        first = positions - positions[0]
        return torch.stack([(centred**2).sum(), (first**2).sum()]) / positions.shape[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("action", ["TORCH_CV MODEL", "TORCH_CV FILE", "PYTORCH_MODEL FILE"])
def test_of_arguments(
    make_plumed: MakePlumed,
    plumed_installation: Plumed,
    torch_plugin: Path,
    tmp_path: Path,
    dtype: torch.dtype,
    action: str,
) -> None:
    if action.startswith("PYTORCH") and plumed_installation.version.startswith("2.9"):
        pytest.skip("the action has no second name before 2.10")
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


def test_a_gpu_is_taken_where_there_is_one(
    make_plumed: MakePlumed, torch_plugin: Path, tmp_path: Path
) -> None:
    save(network(1, 1), tmp_path / "model.pt")
    lines = f"d: DISTANCE ATOMS=1,2\ncv: TORCH_CV MODEL={tmp_path}/model.pt ARG=d DEVICE=auto"
    make_plumed(2, f"LOAD FILE={torch_plugin}\n{lines}").finalize()
    found = "cuda" if torch.cuda.is_available() else "cpu"
    assert f"float64 on {found}, with 1 outputs" in (tmp_path / "plumed.log").read_text()


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
