"""Models trained by mlcolvar as CVs of biased dynamics in PLUMED.

A particle in two wells (at x = -1 and 1 angstrom) is all that is simulated; what is tested is that
PLUMED biases along the very variables that mlcolvar computes.
"""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from plumed_cv.setup.kernel import Plumed
from tests.conftest import unavailable
from tests.plumed.autoencoder import NO_CELL, step

MakePlumed = Callable[..., Any]
Array = NDArray[np.float64]

KT = 300 * 8.617333262e-5  # eV
EV_PER_A = 964.8533212331  # kJ/mol/nm
STEPS = 600

BIASES = {
    "BABF": "b: BABF ARG=cv.node-0 TEMP=300 GRID_MIN={low} GRID_MAX={high} GRID_BIN=50 RAMP=100 "
    "KAPPA=0.4",
    "OPES_METAD": "b: OPES_METAD ARG=cv.node-0 TEMP=300 PACE=20 BARRIER=0.2 SIGMA={sigma} "
    "FILE={folder}/KERNELS",
}


def slope(x: Array) -> Array:
    """Gradient of 4 kT (x^2 - 1)^2 + 10 kT (y^2 + z^2), eV/angstrom."""
    return KT * np.array([16 * x[0] * (x[0] ** 2 - 1), 20 * x[1], 20 * x[2]])


def brownian(rng: np.random.Generator, start: Array, n_steps: int, bias: Any = None) -> Array:
    """Overdamped dynamics, shape (n_steps, 3), angstrom, with the forces of `bias`, eV/angstrom."""
    diffusion = 0.003  # angstrom^2 a step
    x, made = start.copy(), []
    for number in range(n_steps):
        made.append(x)
        force = -slope(x) + (bias(number, x) if bias else 0.0)
        x = x + diffusion / KT * force + rng.normal(scale=(2 * diffusion) ** 0.5, size=3)
    return np.array(made)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three kinds of CV, each trained for moments on a few hundred structures."""
    try:
        import lightning
        from mlcolvar.cvs import AutoEncoderCV, DeepTDA, DeepTICA
        from mlcolvar.data import DictDataset, DictModule
        from mlcolvar.utils.timelagged import create_timelagged_dataset
    except ImportError as error:
        unavailable(f"mlcolvar cannot be imported ({error}): pip install mlcolvar")
    rng = np.random.default_rng(0)
    wells = [brownian(rng, np.array([side, 0.0, 0.0]), 300) for side in (-1.0, 1.0)]
    data = torch.tensor(np.concatenate(wells), dtype=torch.float32)
    labels = torch.tensor([0.0] * 300 + [1.0] * 300)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mlcolvar")
    trained: dict[str, Any] = {}
    for name, model, dataset in [
        ("autoencoder", AutoEncoderCV(encoder_layers=[3, 8, 1]), DictDataset({"data": data})),
        (
            "deep-tda",
            DeepTDA(2, 1, target_centers=[-7, 7], target_sigmas=[0.5, 0.5], layers=[3, 8, 1]),
            DictDataset({"data": data, "labels": labels}),
        ),
        (
            "deep-tica",
            DeepTICA(layers=[3, 8, 2], n_cvs=2),
            create_timelagged_dataset(data, lag_time=5),
        ),
    ]:
        trainer = lightning.Trainer(
            max_epochs=5,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(model, DictModule(dataset, lengths=[0.8, 0.2]))
        trained[name] = model.eval()
    return trained


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["autoencoder", "deep-tda", "deep-tica"])
def test_biased_along_a_model_of_mlcolvar(
    make_plumed: MakePlumed,
    plumed_installation: Plumed,
    torch_plugin: Path,
    tmp_path: Path,
    models: dict[str, Any],
    name: str,
    dtype: torch.dtype,
    bias: str,
) -> None:
    model = copy.deepcopy(models[name]).to(dtype)
    file = tmp_path / "model.ptc"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to_torchscript(str(file), method="trace")
    ends = model(torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]], dtype=dtype)).detach().numpy()[:, 0]
    reach = 3 * abs(float(ends[1] - ends[0])) + 1.0
    settings = {
        "low": ends.mean() - reach,
        "high": ends.mean() + reach,
        "sigma": reach / 50,
        "folder": tmp_path,
    }
    zeta = ",b.zeta" if bias == "BABF" else ""
    has_name = not plumed_installation.version.startswith("2.9")
    handle = make_plumed(
        1,
        f"LOAD FILE={torch_plugin}\np: POSITION ATOM=1 NOPBC\n"
        f"cv: {'PYTORCH_MODEL' if has_name else 'TORCH_CV'} FILE={file} ARG=p.x,p.y,p.z\n"
        f"{BIASES[bias].format(**settings)}\n"
        f"PRINT ARG=cv.node-0,b.bias{zeta} FILE={tmp_path}/colvar FMT=%.17g\n"
        f"DUMPDERIVATIVES ARG=cv.node-0 FILE={tmp_path}/derivatives FMT=%.17g",
    )
    pushes = []

    def push(number: int, x: Array) -> Array:
        forces, _ = step(handle, number, x[None], NO_CELL)
        force: Array = forces[0] / EV_PER_A
        pushes.append(force)
        return force

    visited = brownian(np.random.default_rng(1), np.array([-1.0, 0.0, 0.0]), STEPS, push)
    handle.finalize()

    # What mlcolvar itself says for the positions that PLUMED was given.
    x = torch.tensor(visited, dtype=dtype, requires_grad=True)
    values = model(x)[:, 0]
    (gradients,) = torch.autograd.grad(values.sum(), x)
    gradient = gradients.double().numpy()
    rounding = 2e-5 if dtype == torch.float32 else 1e-12
    columns = np.loadtxt(tmp_path / "colvar")[:, 1:].T
    scale = abs(values.detach().numpy()).max()
    np.testing.assert_allclose(
        columns[0], values.detach().double().numpy(), rtol=rounding, atol=rounding * scale
    )
    got = np.loadtxt(tmp_path / "derivatives")[:, 2].reshape(STEPS, 3)
    np.testing.assert_allclose(got, gradient, rtol=rounding, atol=rounding * abs(gradient).max())

    # The bias acts, and along the gradient alone.
    force = np.array(pushes)
    assert np.ptp(columns[1]) > 0.1 * KT
    strength = (force * got).sum(axis=1) / (got**2).sum(axis=1)
    np.testing.assert_allclose(force, strength[:, None] * got, atol=1e-9 * abs(force).max())
    if bias == "BABF":
        expected = 0.4 * (columns[2] - columns[0])
        np.testing.assert_allclose(strength, expected, atol=1e-6 * abs(expected).max())
